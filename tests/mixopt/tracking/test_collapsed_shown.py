"""A collapsed router is seen wherever trials are: report, answer, MLflow, `mixopt show`, progress; and so is that none is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from mixopt.balance import judged
from mixopt.cli import app
from mixopt.history import TrialRecord
from mixopt.runner import Progress
from mixopt.terminal import SearchProgress, make_console
from mixopt.tracking.canvas import NARROW, WIDE
from mixopt.tracking.drawings.experts import MOST_CELLS, drawn_layers, expert_map, experts_figure, shown_trial
from mixopt.tracking.findings import Findings, read_findings
from mixopt.tracking.mirrored import search_run, trial_runs
from mixopt.tracking.note import answer_markdown
from mixopt.tracking.report.blocks import Drawing, Prose, Section, Table, missing
from mixopt.tracking.report.write import report_html, report_sections
from mixopt.trial import Outcome

SEARCH_ID = "5ea7c4" + "0" * 14
HOW = "layer 1: 6 of 8 experts dead, one expert sees 100% of the tokens"


def collapsed(outcome: Outcome) -> Outcome:
    balance = {**outcome.diagnostics["balance"]}
    balance["recent_rows"] = [[100_000, 100_000, 0, 0, 0, 0, 0, 0], balance["recent_rows"][1]]
    return dataclasses.replace(outcome, diagnostics=judged({**outcome.diagnostics, "balance": balance}))


@pytest.fixture(scope="module")
def finished(recorded: Callable[..., Any]) -> Any:
    """A finished search whose first trial, and one of the proposal's verification runs, have a collapsed router."""
    search = recorded()
    usual = search.outcome
    broken: set[str] = set()

    def outcome(trial: Any) -> Outcome:
        if (trial.label == "natural" and trial.seed == 0) or (trial.label.startswith("verify:proposal") and trial.seed == 1):
            broken.add(trial.trial_id)
            return collapsed(usual(trial))
        return usual(trial)

    search.outcome = outcome
    search.finish()
    assert len(broken) == 2
    search.broken = broken
    return search


@pytest.fixture(scope="module")
def findings(finished: Any) -> Findings:
    return read_findings(finished.history, SEARCH_ID)


def section(findings: Findings) -> Section:
    return next(section for section in report_sections(findings) if section.anchor == "experts")


def without_balance(findings: Findings) -> Findings:
    def strip(record: TrialRecord) -> TrialRecord:
        return (
            record if record.outcome is None else dataclasses.replace(record, outcome=dataclasses.replace(record.outcome, diagnostics={}))
        )

    return dataclasses.replace(findings, trials=tuple(map(strip, findings.trials)))


def healthy(findings: Findings, broken: set[str]) -> Findings:
    return dataclasses.replace(findings, trials=tuple(record for record in findings.trials if record.trial.trial_id not in broken))


def test_the_record_says_so(findings: Findings, finished: Any) -> None:
    stored = {record.trial.trial_id: record.outcome.diagnostics["balance"] for record in findings.trials if record.outcome}
    assert {trial_id for trial_id, balance in stored.items() if balance.get("collapsed")} == finished.broken
    assert all(stored[trial_id]["collapsed"] == HOW and stored[trial_id]["dead_experts"] == [6, 0] for trial_id in finished.broken)


def test_the_report_names_every_collapsed_router(findings: Findings, finished: Any) -> None:
    shown = section(findings)
    told = next(block for block in shown.blocks if isinstance(block, Prose))
    total = len(findings.balances)
    assert told.strong == f"The router has collapsed in 2 of {total} trials."
    assert "smaller proxies" in told.text
    named, by_domain, trials = (block for block in shown.blocks if isinstance(block, Table))
    assert {row[0] for row in named.rows} == {trial_id[:8] for trial_id in finished.broken}
    assert all(row[-1] == HOW for row in named.rows)
    assert len(by_domain.rows) == 2 * (1 + len(findings.domains))
    assert len(trials.rows) == total
    assert trials.rows[0][1] == "verification"
    assert [row[4] for row in trials.rows].count("6 0") == 2
    page = report_html(findings)
    assert HOW in page
    assert 'id="experts"' in page


def test_the_report_says_that_none_has_collapsed_or_that_nothing_was_counted(findings: Findings, finished: Any) -> None:
    well = healthy(findings, finished.broken)
    told = next(block for block in section(well).blocks if isinstance(block, Prose))
    assert told.text.startswith(f"No router has collapsed in {len(well.balances)} trials. An expert is dead")
    assert not told.strong
    old = without_balance(findings)
    assert section(old).blocks == [missing(section(old).blocks[0].text)]
    assert "Not measured" in section(old).blocks[0].text
    report_html(old)


def test_the_answer_names_it_and_is_silent_otherwise(findings: Findings, finished: Any) -> None:
    text = answer_markdown(findings)
    assert f"the router has collapsed in 2 of {len(findings.balances)} trials" in text
    assert HOW in text
    for other in (healthy(findings, finished.broken), without_balance(findings)):
        assert "collapsed" not in answer_markdown(other)


def test_mlflow_shows_it_as_tag_metric_and_note(findings: Findings, finished: Any) -> None:
    for run in trial_runs(findings, "parent"):
        trial_id, metrics = run.tags["mixopt.trial_id"], {name: value for name, value, _ in run.measured}
        if trial_id in finished.broken:
            assert run.tags["mixopt.router"] == f"collapsed: {HOW}"
            assert run.tags["mlflow.note.content"].startswith(f"**Collapsed router** ({HOW}). ")
            assert (metrics["router/dead_experts"], metrics["router/fullest"]) == (6, 1)
        elif run.tags["mixopt.state"] == "completed":
            assert run.tags["mixopt.router"] == "in use"
            assert metrics["router/dead_experts"] == 0
            assert 0 < metrics["router/entropy"] < 1
        else:
            assert run.tags["mixopt.router"] == "not measured"
            assert "router/dead_experts" not in metrics
    parent = search_run(findings)
    assert parent.tags["mixopt.router"] == f"collapsed in 2 of {len(findings.balances)} trials"
    assert ("trials/collapsed", 2.0) in {point[:2] for point in parent.summaries}


def test_show_and_progress_say_it(finished: Any, findings: Findings, capsys: pytest.CaptureFixture[str]) -> None:
    shown = CliRunner().invoke(app, ["show", str(finished.folder)])
    assert shown.exit_code == 0, shown.output
    for trial_id in finished.broken:
        assert f"Trial {trial_id[:8]} has a collapsed router: {HOW}." in shown.output
    record = next(record for record in findings.trials if record.trial.trial_id in finished.broken)
    with SearchProgress(make_console(stderr=True)) as progress:
        progress.asked([record.trial])
        progress.finished(record)
        assert "collapsed" not in capsys.readouterr().err, "who finds a trial finished is not told again"
    with SearchProgress(make_console(stderr=True)) as progress:
        progress.asked([record.trial])
        progress.event(Progress(record.trial.trial_id, 1000))
        progress.finished(record)
    assert f"Trial {record.trial.trial_id[:8]} has a collapsed router: {HOW}." in capsys.readouterr().err


def test_the_map_is_of_a_run_of_the_proposal_and_its_rows_are_shares_of_tokens(findings: Findings) -> None:
    shown = expert_map(findings)
    assert shown is not None
    assert shown.names == ("training", *findings.domains)
    assert shown.trial.startswith("proposal")
    record, balance = shown_trial(findings) or (None, None)
    assert balance is not None
    assert record.stage == "verification"
    np.testing.assert_allclose(np.array(shown.shares_LNE).sum(-1), 2.0)
    rows = balance.by_set["key-python"][1]
    place = shown.names.index("python")
    assert shown.shares_LNE[1][place] == pytest.approx([2 * value / sum(rows) for value in rows])
    early = dataclasses.replace(findings, trials=tuple(record for record in findings.trials if record.stage == "search"))
    best = early.proposal.best_measured["trial_id"]
    assert shown_trial(early)[0].trial.trial_id == best
    assert shown_trial(without_balance(findings)) is None
    assert experts_figure(without_balance(findings)) is None


def test_maps_of_many_experts_stay_small(findings: Findings, recorded: Callable[..., Any]) -> None:
    """64 experts in 10 layers, of a search over 20 domains: the first and the last layers are drawn, the table has all."""
    search = recorded(20)
    usual = search.outcome

    def outcome(trial: Any) -> Outcome:
        balance = search.balance(np.random.default_rng(trial.seed), layers=10, experts=64)
        return dataclasses.replace(usual(trial), diagnostics={"balance": {**balance, "experts_per_token": 8}})

    search.outcome = outcome
    search.finish(12)
    wide = read_findings(search.history, SEARCH_ID)
    shown = expert_map(wide)
    assert shown is not None
    layers = drawn_layers(shown)
    assert layers == [0, 9]
    assert len(layers) * 64 * 21 <= 2 * MOST_CELLS
    for layout in (WIDE, NARROW):
        assert experts_figure(wide, layout) is not None
    assert any(isinstance(block, Drawing) for block in section(wide).blocks)
    assert len(report_html(wide).encode()) < 3_000_000
    assert drawn_layers(expert_map(findings)) == [0, 1]
