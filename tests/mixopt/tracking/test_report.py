"""The report: whole at every stage of a search, true to the record, safe to open, and small."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.errors import ConfigError, DataError
from mixopt.history import History
from mixopt.proposal import Effect, Relaxation
from mixopt.swarm import Swarm
from mixopt.tracking.canvas import LINE_BREAK, NARROW, WIDE
from mixopt.tracking.drawings.effects import effect_cells
from mixopt.tracking.drawings.runs import curves_figure
from mixopt.tracking.figures import FIGURES
from mixopt.tracking.findings import Findings, read_findings
from mixopt.tracking.mirrored import MEAN_CURVE, trial_runs
from mixopt.tracking.report.blocks import Drawing, Heading, Prose, Section, Table
from mixopt.tracking.report.measured import cost_by_stage, curves, noise_by_metric
from mixopt.tracking.report.runs import curves_section
from mixopt.tracking.report.svg import VARIABLES, inline_svg
from mixopt.tracking.report.write import report_html, report_sections, write_report

SEARCH_ID = "5ea7c4" + "0" * 14
MEGABYTES = 1_000_000
# Elements without an end tag.
VOID = {"meta", "link", "br", "hr", "img", "input", "col", "wbr", "base", "area", "embed", "source", "track"}


class Page(HTMLParser):
    """Reads a page: its elements in order, and whether every end tag closes what was opened last."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.words.append(data)


@pytest.fixture(scope="module")
def finished(recorded: Callable[..., Any]) -> History:
    history = recorded(6).finish(16).history
    assert isinstance(history, History)
    return history


@pytest.fixture(scope="module")
def findings(finished: History) -> Findings:
    return read_findings(finished, SEARCH_ID)


@pytest.fixture(scope="module")
def page(findings: Findings) -> str:
    return report_html(findings)


def words_of(section: Section) -> str:
    return " ".join(f"{block.strong} {block.text}" for block in section.blocks if isinstance(block, Prose))


def section(findings: Findings, anchor: str) -> Section:
    return next(section for section in report_sections(findings) if section.anchor == anchor)


def tables(section: Section) -> list[Table]:
    return [block for block in section.blocks if isinstance(block, Table)]


def test_the_page_is_well_formed_and_needs_nothing_else(page: str) -> None:
    read = Page(page)
    assert page.startswith("<!DOCTYPE html>")
    assert read.open == []
    names = {tag for tag, _ in read.elements}
    assert not names & {"img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in read.elements:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), attributes
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in read.elements


def test_only_its_own_script_may_run(page: str) -> None:
    import base64
    import hashlib

    policy = next(a["content"] for tag, a in Page(page).elements if tag == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    script = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(script) == 1
    assert f"'sha256-{base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode()}'" in policy
    assert "default-src 'none'" in policy


def test_it_is_small(page: str) -> None:
    assert len(page.encode()) < 3 * MEGABYTES


def test_a_large_search_is_small_too(recorded: Callable[..., Any]) -> None:
    large = recorded(20)
    trials = large.begin().ask(600)
    large.complete(trials)
    large.verify(large.propose(trials))
    page = report_html(read_findings(large.history, SEARCH_ID))
    assert len(page.encode()) < 3 * MEGABYTES


def test_what_users_wrote_is_text(finished: History) -> None:
    evil = '<script>alert("1")</script><img src=x onerror=alert(2)>`</code>&amp;'
    findings = read_findings(finished, SEARCH_ID)
    proposal = findings.proposal
    assert proposal is not None
    domains = [{**domain, "group": evil} for domain in findings.context["domains"]]
    pairs = [{**pair, "label": evil} for pair in proposal.evidence["predicted"]]
    failed = next(record for record in findings.trials if record.failure is not None)
    assert failed.failure is not None
    shown = replace(
        findings,
        search=replace(findings.search, name=evil, experiment_yaml=f"output: '{evil}'\n# {evil}\n"),
        context={**findings.context, "domains": domains, "versions": {evil: evil}, "strategy": evil},
        proposal=replace(proposal, binding=(evil,), screened={"valid/web": evil}, evidence={**proposal.evidence, "predicted": pairs}),
        trials=(*findings.trials, replace(failed, failure=replace(failed.failure, message=evil))),
    )
    page = report_html(shown)
    read = Page(page)
    assert [tag for tag, _ in read.elements].count("script") == 1
    assert not [tag for tag, attributes in read.elements if tag == "img" or "onerror" in attributes]
    assert html.escape(evil, quote=False)[:20] in page
    assert "".join(read.words).count(evil.replace("`", "")) + "".join(read.words).count(evil) >= 8
    assert read.open == []


def test_relaxations_and_sensitivities_stand_by_what_holds_the_proposal_back(findings: Findings) -> None:
    proposal = findings.proposal
    assert proposal is not None
    relaxation = Relaxation(proposal.binding[0], "`max_epochs` raised from 4 to 4.4", Effect(-0.21, -0.4, -0.1), {})
    points = {"web": Effect(0.3, 0.1, 0.5), "python": Effect(-0.7, -0.9, -0.5)}
    shown = replace(findings, proposal=replace(proposal, relaxations=(relaxation,), sensitivities=points))
    blocks = section(shown, "mixture").blocks
    start = next(i for i, block in enumerate(blocks) if isinstance(block, Heading) and block.text == "What holds the proposal back")
    relaxed, pointed = (block for block in blocks[start:] if isinstance(block, Table))
    assert [row[0] for row in relaxed.rows] == list(proposal.binding)
    assert relaxed.rows[0][1] == "`max_epochs` raised from 4 to 4.4"
    assert [row[0] for row in pointed.rows] == ["python", "web"], "the most wanted first"
    assert pointed.folded, "small: behind a summary"
    assert not [block for block in section(findings, "mixture").blocks[start:] if isinstance(block, Table)], "old records have none"
    assert "One more point of a domain" in report_html(shown)


def test_numbers_are_those_of_the_record(findings: Findings) -> None:
    proposal, verification = findings.proposal, findings.verification
    assert proposal is not None
    assert verification is not None
    weights = proposal.mixture.as_dict()
    (shares, *_) = tables(section(findings, "mixture"))
    column = list(shares.head).index("proposal")
    assert {row[0]: row[column] for row in shares.rows} == {name: f"{weight:.1%}" for name, weight in weights.items()}
    (differences, *_) = tables(section(findings, "verification"))
    verdicts = {
        row.baseline: row.verdict for row in verification.comparisons if row.metric == "objective" and row.baseline in verification.rivals
    }
    assert sorted(row[-1] for row in differences.rows) == sorted(verdicts.values())
    assert verification.conclusion in words_of(section(findings, "verification"))
    (epochs,) = tables(section(findings, "epochs"))
    column = list(epochs.head).index("proposal")
    assert {row[0]: row[column] for row in epochs.rows} == {name: f"{value:.2f}" for name, value in proposal.epochs.items()}


def test_groups_are_summed_by_level(findings: Findings) -> None:
    assert findings.proposal is not None
    assert "By group" not in str(section(findings, "mixture"))
    paths = ["rest", "rest", "rest", "scarce/one", "scarce/two", "scarce/two"]
    domains = [{**domain, "group": path} for domain, path in zip(findings.context["domains"], paths, strict=True)]
    rules = [{"path": "scarce/two", "level": 2, "members": [], "shares": "natural"}]
    grouped = replace(findings, context={**findings.context, "domains": domains, "groups": rules})
    table = tables(section(grouped, "mixture"))[-1]
    weights = list(findings.proposal.mixture.as_dict().values())
    found = {row[0].strip(): row for row in table.rows}
    assert found["scarce"][1] == f"{sum(weights[3:]):.1%}"
    assert found["scarce/two"][1] == f"{sum(weights[4:]):.1%}"
    assert found["scarce/two"][-2] == f"{sum(weights[4:]) / sum(weights[3:]):.1%}"
    assert "natural shares" in found["scarce/two"][-1]


def test_noise_is_pooled_over_repeats_and_split_by_mixture(findings: Findings) -> None:
    swarm = findings.swarm
    rows = {row.metric: row for row in noise_by_metric(findings, findings.shown_metrics)}
    assert set(rows) == {"target/functions", "target/questions"}
    labels, values = swarm.trials()["label"].to_list(), swarm.values(["target/functions"])[:, 0]
    row = rows["target/functions"]
    stds = {}
    for name, title in (("natural", "natural"), ("uniform", "uniform"), ("unimax", "UniMax")):
        stds[title] = float(np.std(values[[label == name for label in labels]], ddof=1))
    assert {name: std for name, _, std in row.by_mixture} == pytest.approx(stds)
    assert row.noise_std == pytest.approx(np.sqrt(np.mean(np.square(list(stds.values())))))
    assert row.degrees_of_freedom == 6


def test_curves_end_where_the_swarm_does(findings: Findings) -> None:
    found = [curve for curve in curves(findings, "search", findings.shown_metrics) if curve.metric == "target/questions"]
    ends = dict(zip(findings.swarm.trial_ids, findings.swarm.values(["target/questions"])[:, 0], strict=True))
    assert {curve.trial_id: curve.bits_per_byte[-1] for curve in found} == pytest.approx(ends)
    assert {curve.tokens for curve in found} == {(250_000, 500_000, 1_000_000)}
    named = {curve.label for curve in found if curve.arms}
    assert named == {"natural", "uniform", "unimax"}
    mean = next(curve for curve in curves(findings, "search", findings.shown_metrics) if curve.metric == "bits_per_byte")
    parts = [
        c for c in curves(findings, "search", findings.shown_metrics) if c.trial_id == mean.trial_id and c.metric.startswith("target/")
    ]
    assert mean.bits_per_byte == pytest.approx(np.mean([part.bits_per_byte for part in parts], axis=0))


def on_curve_rows(findings: Findings) -> Findings:
    """As searches are recorded now: every end on the curve's rows, too, here .5 above that on all rows."""
    metrics = findings.context["metrics"]
    trials = []
    for record in findings.trials:
        outcome = record.outcome
        if outcome is not None:
            ends = [m for m in outcome.measurements if m.tokens == outcome.tokens]
            early = tuple(replace(m, evaluation_key=f"early {m.evaluation_key}", bits_per_byte=m.bits_per_byte + 0.5) for m in ends)
            outcome = replace(outcome, measurements=outcome.measurements + early)
        trials.append(replace(record, outcome=outcome))
    context = {**findings.context, "metrics_curve": {f"early {key}": name for key, name in metrics.items()}}
    context["recipe"] = {**context["recipe"], "schedule": "wsd", "decay_fraction": 0.2}
    return replace(findings, trials=tuple(trials), context=context)


def test_curves_are_drawn_on_one_set_of_rows_where_that_is_recorded(findings: Findings) -> None:
    before = curves(findings, "search", findings.shown_metrics)
    after = curves(on_curve_rows(findings), "search", findings.shown_metrics)
    assert {curve.one_set_of_rows for curve in before} == {False}
    assert {curve.one_set_of_rows for curve in after} == {True}
    for one, other in zip(before, after, strict=True):
        assert (one.tokens, one.bits_per_byte[:-1], one.bits_per_byte[-1]) == (other.tokens, other.bits_per_byte[:-1], other.all_rows)
        assert other.bits_per_byte[-1] == pytest.approx(one.bits_per_byte[-1] + 0.5)
    section = curves_section(on_curve_rows(findings))
    (table, _) = [block for block in section.blocks if isinstance(block, Table)]
    assert table.head[-1] == "end, all windows"
    assert all(float(row[-2]) == pytest.approx(float(row[-1]) + 0.5, abs=2e-4) for row in table.rows)
    assert any("falls over the last 20%" in block.text for block in section.blocks if isinstance(block, Prose))
    assert curves_figure("search", on_curve_rows(findings)) is not None
    older = curves_section(findings)
    assert all("end, all windows" not in block.head for block in older.blocks if isinstance(block, Table))
    assert not any(isinstance(block, Prose) for block in older.blocks), "its record does not say how the rate went"


def test_the_mean_along_the_way_is_mirrored_on_one_set_of_rows(findings: Findings) -> None:
    def points(of: Findings) -> list[tuple[str, float, int]]:
        record = next(record for record in of.trials if record.outcome)
        run = next(run for run in trial_runs(of, "parent") if run.tags["mixopt.trial_id"] == record.trial.trial_id)
        return [point for point in run.measured if point[0] == MEAN_CURVE]

    older, newer = points(findings), points(on_curve_rows(findings))
    assert [tokens for _, _, tokens in older] == [250_000, 500_000], "its end is not known on these rows"
    assert newer[:2] == older
    outcome = next(record.outcome for record in findings.trials if record.outcome)
    ends = {m.evaluation_key: m.bits_per_byte for m in outcome.measurements if m.tokens == outcome.tokens}
    assert newer[2][1:] == (pytest.approx((3 * ends["key-t"] + ends["key-q"]) / 4 + 0.5, rel=1e-5), 1_000_000)


def test_cost_counts_completed_trials_only(findings: Findings) -> None:
    search, verification = cost_by_stage(findings)
    assert (search.asked, search.states) == (16, {"completed": 15, "abandoned": 1})
    assert search.tokens == 15 * 1_000_000
    assert search.seconds == pytest.approx(15 * 21.5)
    assert verification.tokens == verification.states["completed"] * 1_500_000


def test_the_commands_name_folder_and_search(findings: Findings) -> None:
    text = str(report_sections(findings, Path("/data/my runs"))[-2].blocks)
    assert "mixopt export '/data/my runs' --search 5ea7c400 --to megatron" in text
    assert "mixopt export /corpus/out --search" in str(section(findings, "export"))  # as the experiment file has it


def test_every_drawing_of_a_section_is_a_figure(findings: Findings) -> None:
    drawings = [block for part in report_sections(findings) for block in part.blocks if isinstance(block, Drawing)]
    assert {block.name for block in drawings} == set(FIGURES)
    assert all(len(block.alt) > 20 for block in drawings)


class TestUnfinished:
    """The same page at every stage: each section is there and says what has not been measured."""

    def stages(self, recorded: Callable[..., Any]) -> list[tuple[str, Any]]:
        asked = recorded(3).begin()
        begun = recorded(3).begin()
        begun.complete(begun.ask(6)[:4])
        proposed = recorded(3).begin()
        trials = proposed.ask(10)
        proposed.complete(trials)
        proposed.propose(trials)
        return [("asked", asked), ("begun", begun), ("proposed", proposed)]

    def test_all_sections_stand_at_every_stage(self, recorded: Callable[..., Any], findings: Findings) -> None:
        anchors = [part.anchor for part in report_sections(findings)]
        for name, search in self.stages(recorded):
            early = read_findings(search.history, SEARCH_ID)
            # The front alone is a section of some searches only: those whose proposal has one.
            expected = [anchor for anchor in anchors if anchor != "front" or early.proposal is not None]
            assert [part.anchor for part in report_sections(early)] == expected, name
            read = Page(report_html(early))
            assert read.open == []
            if early.proposal is None:
                assert "No proposal yet" in words_of(section(early, "answer")), name
                assert "mixopt search FILE" in words_of(section(early, "answer"))
            verification = words_of(section(early, "verification"))
            assert ("larger proxies" if early.proposal else "Not verified: there is no mixture to verify yet.") in verification, name
            for part in report_sections(early):
                assert part.blocks, (name, part.anchor)

    def test_without_targets_the_domains_are_shown(self, findings: Findings) -> None:
        metrics = {key: metric for key, metric in findings.context["metrics"].items() if metric.startswith("valid/")}
        bare = replace(findings, context={**findings.context, "metrics": metrics})
        assert bare.shown_metrics == tuple(sorted(metrics.values()))
        assert Page(report_html(bare)).open == []

    def test_a_proposal_of_an_earlier_version_is_shown(self, findings: Findings) -> None:
        assert findings.proposal is not None
        old = replace(findings, proposal=replace(findings.proposal, evidence={}, near_optimal={}, best_measured={}))
        assert Page(report_html(old)).open == []
        assert "Not known" in words_of(section(old, "effects"))

    def test_an_empty_swarm_has_no_noise(self, findings: Findings) -> None:
        assert noise_by_metric(replace(findings, swarm=Swarm.empty(findings.domains)), findings.shown_metrics) == []


def test_writing_it_writes_the_figures_and_the_same_page_again(finished: History, tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", finished, SEARCH_ID, tmp_path / "figures")
    first = path.read_bytes()
    assert sorted(file.stem for file in (tmp_path / "figures").iterdir()) == sorted(FIGURES)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["report.html"]
    assert write_report(path, finished, SEARCH_ID).read_bytes() == first


def test_effects_are_fitted_again_where_the_record_has_none(recorded: Callable[..., Any]) -> None:
    from mixopt.tracking.report.refit import with_effects

    findings = read_findings(recorded(3).finish(16).history, SEARCH_ID)
    assert findings.proposal is not None
    assert with_effects(findings) is findings  # stored with the proposal: nothing is fitted
    evidence = {key: value for key, value in findings.proposal.evidence.items() if key != "domain_effects"}
    old = replace(findings, proposal=replace(findings.proposal, evidence=evidence))
    effects = with_effects(old).effects
    assert effects is not None
    assert set(effects.domains) == set(findings.domains)
    assert {"target/functions", "target/questions", "objective"} <= set(effects.metrics)
    assert np.isfinite([effects.mean, effects.low, effects.high]).all()


@pytest.mark.parametrize("layout", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("name", list(FIGURES))
def test_a_drawing_in_the_page_has_only_colours_of_the_page(findings: Findings, name: str, layout: Any) -> None:
    svg = inline_svg(FIGURES[name](findings, layout), "p", "what it shows & more")
    assert re.findall(r"(?:fill|stroke):\s*(?!none|var\()[^;\"]+", svg) == []
    assert set(re.findall(r"var\(--([a-z]+)", svg)) <= set(VARIABLES.values())
    assert "font-family" not in svg
    assert 'aria-label="what it shows &amp; more"' in svg
    assert "<text" in svg  # words stay words
    ids = re.findall(r' id="([^"]*)"', svg)
    assert len(ids) == len(set(ids))
    assert all(known.startswith("p-") for known in ids)
    assert set(re.findall(r'href="#([^"]*)"', svg)) | set(re.findall(r"url\(#([^)]*)\)", svg)) <= set(ids)


def test_marks_say_the_numbers_they_stand_for(findings: Findings) -> None:
    assert findings.proposal is not None
    svg = html.unescape(inline_svg(FIGURES["mixture"](findings, WIDE), "p", "alt"))
    for name, weight in findings.proposal.mixture.as_dict().items():
        assert f'data-tip="{name}{LINE_BREAK}proposal {weight:.1%}{LINE_BREAK}near-optimal' in svg
    assert svg.count('tabindex="0"') == 1
    orders = sorted(int(order) for order in re.findall(r'data-at="(\d+)"', svg))
    assert orders == list(range(svg.count('class="mark"')))


def test_the_objective_has_one_number_in_one_unit(findings: Findings) -> None:
    """The map of effects must not divide it by its own noise where it is in standard deviations of a seed already."""
    effects = findings.effects
    assert findings.proposal is not None
    assert effects is not None
    assert findings.proposal.evidence["objective_noise_std"] != pytest.approx(1.0, abs=0.01), "the case is not made"
    column = effects.metrics.index("objective")
    means = {name: row[column] for name, row in zip(effects.domains, effects.mean, strict=True)}
    assert findings.objective_unit == "standard deviations of a seed"
    assert {row[0].domain: row[0].scaled for row in effect_cells(findings)} == means
    in_bits = replace(findings.proposal, evidence={**findings.proposal.evidence, "objective_unit": "bits per byte"})
    noise = findings.proposal.evidence["objective_noise_std"]
    scaled = {row[0].domain: row[0].scaled for row in effect_cells(replace(findings, proposal=in_bits))}
    assert scaled == pytest.approx({name: mean / noise for name, mean in means.items()})


class TestCommand:
    """`mixopt report DIR`."""

    @pytest.fixture
    def folder(self, tmp_path: Path, recorded: Callable[..., Any]) -> Path:
        kind = type(recorded(3))
        kind(History.open(tmp_path / "record.sqlite"), 3).finish(8)
        return tmp_path

    def run(self, *words: str) -> Any:
        from typer.testing import CliRunner

        from mixopt.cli import app

        return CliRunner().invoke(app, ["report", *words])

    def test_it_writes_beside_the_answer_and_prints_the_path(self, folder: Path) -> None:
        result = self.run(str(folder))
        path = folder / "searches" / "demo-5ea7c400" / "report.html"
        assert result.stdout.strip() == str(path)
        assert Page(path.read_text(encoding="utf-8")).open == []
        assert f"mixopt export {folder} --search" in path.read_text(encoding="utf-8")
        assert {file.stem for file in (path.parent / "figures").glob("*.png")} == set(FIGURES)

    def test_it_writes_where_it_is_told(self, folder: Path) -> None:
        target = folder / "elsewhere" / "page.html"
        assert self.run(str(folder), "--out", str(target), "--search", "5ea7").stdout.strip() == str(target)
        assert target.exists()

    def test_a_folder_is_no_file(self, folder: Path) -> None:
        result = self.run(str(folder), "--out", str(folder))
        assert isinstance(result.exception, ConfigError)
        assert "is a folder" in result.exception.message

    def test_a_folder_without_a_search_is_said(self, tmp_path: Path) -> None:
        assert isinstance(self.run(str(tmp_path / "nothing")).exception, DataError)
