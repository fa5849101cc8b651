"""The answer in words: it says what the record holds, and nothing in a name can break its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import DataError
from mixopt.history import History
from mixopt.proposal import Effect, Relaxation
from mixopt.tracking.findings import Findings, read_findings
from mixopt.tracking.mirrored import NOTE_CHARACTERS, fitted_note
from mixopt.tracking.note import answer_markdown, answer_sentence, write_answer

SEARCH_ID = "5ea7c4" + "0" * 14


@pytest.fixture(scope="module")
def findings(recorded: Callable[..., Any]) -> Findings:
    return read_findings(recorded(6).finish(12).history, SEARCH_ID)


def section(text: str, title: str) -> str:
    return next(part for part in text.split("\n## ") if part.startswith(title))


def rows(part: str) -> list[list[str]]:
    """Cells of a section's table, without its head."""
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").replace("\\|", "¦").split("|")] for line in lines]


def recommending(findings: Findings, arm: str) -> Findings:
    assert findings.verification is not None
    return replace(findings, verification=replace(findings.verification, recommended=arm))


@pytest.mark.parametrize("arm", ["proposal", "best_measured"])
def test_the_first_sentence_is_the_mixture_to_use(findings: Findings, arm: str) -> None:
    """Not the proposal where verification recommends another: `mixopt export` writes that other one."""
    assert findings.proposal is not None
    assert findings.verification is not None
    (name, weight), *_ = sorted(findings.verification.arms[arm].items(), key=lambda item: (-item[1], item[0]))
    sentence = answer_sentence(recommending(findings, arm))
    assert sentence.startswith(f"**Train on {weight:.1%} {name}, ")
    assert "in 2 other domains.** This is the " + arm.replace("_", " ") in sentence
    assert "Predicted better than the natural mixture" in sentence


def test_an_unverified_proposal_says_so(findings: Findings) -> None:
    assert findings.proposal is not None
    evidence = {**findings.proposal.evidence, "guard": {"inside_noise": True}}
    unverified = replace(findings, verification=None, proposal=replace(findings.proposal, evidence=evidence))
    assert "No larger proxies have tested it and its predicted gain over the best measured mixture is inside the noise." in answer_sentence(
        unverified
    )


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"like_trials": 9, "other_sources": 0}, "- runs of the warm start: 9 like its own trials\n"),  # as it was stored before
        ({"like_trials": 9, "other_sources": 0, "by_source": {"trained/nano/1": 9}}, "- runs of the warm start: 9 like its own trials\n"),
        (
            {"like_trials": 9, "other_sources": 5, "by_source": {"trained/nano/1": 6, "trained/nano/2": 3, "earlier-0/nano/2": 5}},
            "and 5 of sources of their own, which only the surrogate sees (6 of trained/nano/1, 3 of trained/nano/2, 5 of earlier-0/nano/2)\n",
        ),
        ({"like_trials": 0, "other_sources": 0, "by_source": {}}, "- runs of the warm start: none fit\n"),
    ],
)
def test_earlier_runs_are_told_by_source(findings: Findings, counts: dict[str, Any], words: str) -> None:
    assert findings.proposal is not None
    evidence = {**findings.proposal.evidence, "earlier_runs": counts}
    assert words in answer_markdown(replace(findings, proposal=replace(findings.proposal, evidence=evidence)))


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        (Effect(-1.0, -2.0, -0.1), "Predicted better than"),
        (Effect(1.0, 0.1, 2.0), "Predicted worse than"),
        (Effect(-0.5, -2.0, 1.0), "Predicted not clearly different from"),
    ],
)
def test_an_effect_is_called_better_only_beyond_its_interval(findings: Findings, effect: Effect, words: str) -> None:
    assert findings.proposal is not None
    assert words in answer_sentence(replace(findings, proposal=replace(findings.proposal, objective=effect)))


def test_the_table_has_every_domain_with_its_numbers(findings: Findings) -> None:
    assert findings.proposal is not None
    weights = findings.proposal.mixture.as_dict()
    table = {row[0]: row for row in rows(section(answer_markdown(recommending(findings, "proposal")), "Mixture"))}
    assert set(table) == set(weights)
    for name, weight in weights.items():
        low, high = findings.proposal.near_optimal[name]
        natural = findings.context["natural"][name]
        expected = [f"**{weight:.1%}**", f"{low:.1%} to {high:.1%}", f"{natural:.1%}", f"{findings.proposal.epochs[name]:.2f} of 4"]
        assert table[name][1:] == expected


def test_another_mixture_to_use_stands_beside_the_proposal(findings: Findings) -> None:
    assert findings.proposal is not None
    assert findings.verification is not None
    used, proposed = findings.verification.arms["uniform"], findings.proposal.mixture.as_dict()
    text = answer_markdown(recommending(findings, "uniform"))
    assert "| domain | uniform | proposal | near-optimal | natural | epochs |" in text
    for name, *cells in rows(section(text, "Mixture")):
        assert cells[:2] == [f"**{used[name]:.1%}**", f"{proposed[name]:.1%}"]
        assert cells[-1] == f"{findings.proposal.epochs[name] * used[name] / proposed[name]:.2f} of 4"


def test_domains_with_few_unique_tokens_share_a_sentence(findings: Findings) -> None:
    unique = {"a": [64, "floored"], "b": [64, "floored"], "c": [900, ""], "d": [10, "capped"]}
    text = answer_markdown(replace(findings, context={**findings.context, "unique": unique}))
    assert "64 unique tokens of each of 2 domains: a, b (floored), so they repeat these less than" in text
    assert "10 unique tokens of d (capped), so they repeat it more than" in text


def test_what_relaxing_a_constraint_and_a_point_more_would_bring_is_told(findings: Findings) -> None:
    assert findings.proposal is not None
    (constraint,) = findings.proposal.binding
    relaxation = Relaxation(constraint, "`max_epochs` of markdown raised from 4 to 4.4", Effect(-0.21, -0.4, -0.1), {})
    points = {"web": 0.3, "python": -0.7, "docs": 0.01, "math": -0.02}
    proposal = replace(
        findings.proposal,
        relaxations=(relaxation,),
        sensitivities={name: Effect(mean, mean - 0.1, mean + 0.1) for name, mean in points.items()},
    )
    part = section(answer_markdown(replace(findings, proposal=proposal)), "What holds the proposal back")
    assert f"- {constraint} (`max_epochs` of markdown raised from 4 to 4.4: objective −0.21" in part
    assert "changes the objective most for: python −0.7" in part
    assert "web +0.3" in part
    assert "docs" not in part, "the steepest three"
    assert "point" not in section(answer_markdown(findings), "What holds the proposal back"), "records from before have none"


def test_words_are_aligned_left_and_numbers_right(findings: Findings) -> None:
    head, align = section(answer_markdown(findings), "Predicted effects").split("\n\n")[2].splitlines()[:2]
    assert head == "| metric | difference | 90% interval | verdict | remark |"
    assert align == "| --- | ---: | ---: | --- | --- |"


def test_the_surrogate_is_named_in_words(findings: Findings) -> None:
    assert findings.proposal is not None
    for name in ("GaussianProcess", "gaussian_process"):
        proposal = replace(findings.proposal, evidence={"surrogate": name})
        assert "- surrogate: Gaussian process; pull" in answer_markdown(replace(findings, proposal=proposal))


def test_effects_caps_and_verification_are_there(findings: Findings) -> None:
    assert findings.proposal is not None
    assert findings.verification is not None
    text = answer_markdown(findings)
    effects = {row[0]: row for row in rows(section(text, "Predicted effects"))}
    assert set(effects) == set(findings.proposal.effects)
    assert effects["valid/web"][-1] == "screened out: its spread over mixtures is within seed noise"
    assert "- markdown: 4 epochs allow at most 0.043" in section(text, "What holds the proposal back")
    verification = section(text, "Verification\n")
    assert findings.verification.conclusion in verification
    rivals = findings.verification.rivals
    assert len(rows(verification)) == len(rivals)
    by_metric = rows(section(text, "Verification by metric"))
    assert len(by_metric) == len({row.metric for row in findings.verification.comparisons}) - 1
    assert all(len(row) == 1 + len(rivals) for row in by_metric)


def test_before_the_proposal_it_says_how_far_the_search_is(findings: Findings) -> None:
    text = answer_markdown(replace(findings, proposal=None, verification=None))
    assert "No proposal yet: search finished; search trials: 1 abandoned, 11 completed" in text
    assert "Not verified" in answer_markdown(replace(findings, verification=None))


def test_names_cannot_break_a_table(findings: Findings) -> None:
    assert findings.proposal is not None
    proposal = replace(findings.proposal, effects={"target/a|b": Effect(-1, -2, 0)}, screened={"target/a|b": "one\ntwo|three"})
    (row,) = rows(section(answer_markdown(replace(findings, proposal=proposal)), "Predicted effects"))
    assert row[0] == "target/a¦b"
    assert row[-1] == "screened out: one two¦three"


def test_the_file_is_written_whole(recorded: Callable[..., Any], tmp_path: Path) -> None:
    search = recorded(6).finish(6)
    path = write_answer(tmp_path / "deep" / "answer.md", search.history, SEARCH_ID)
    assert path.read_text(encoding="utf-8") == answer_markdown(read_findings(search.history, SEARCH_ID))
    assert list(path.parent.iterdir()) == [path]


def test_a_search_without_context_is_refused(tmp_path: Path) -> None:
    with History.open(tmp_path / "record.sqlite") as history:
        history.add_search(SEARCH_ID, "demo", "name: demo")
        with pytest.raises(DataError, match="has no context"):
            write_answer(tmp_path / "answer.md", history, SEARCH_ID)


def test_a_note_too_long_for_mlflow_ends_with_a_whole_line() -> None:
    text = "\n".join(f"| row {number} | {'x' * 90} |" for number in range(200))
    note = fitted_note(text)
    assert len(note) <= NOTE_CHARACTERS
    body, _, rest = note.partition("\n\n")
    assert text.startswith(body + "\n")
    assert "answer.md" in rest
    assert fitted_note("short") == "short"


def test_weights_per_level_follow_the_mixture_to_use(findings: Findings) -> None:
    assert findings.verification is not None
    assert "Weights per level" not in answer_markdown(findings)
    names = findings.domains
    paths = dict(zip(names, ["web/high", "code", "web/low", "", "code", "web/high"], strict=True))
    domains = [domain | {"group": paths[domain["name"]]} for domain in findings.context["domains"]]
    rules = [
        {"path": "web", "level": 1, "members": [], "bounds": [0.1, 0.5]},
        {"path": "code", "level": 1, "members": [], "shares": "natural", "split": {}},
    ]
    context = {**findings.context, "domains": domains, "groups": rules, "levels": ["source", "quality"]}
    for arm in ("proposal", "uniform"):
        weights = findings.verification.arms[arm]
        part = section(answer_markdown(recommending(replace(findings, context=context), arm)), "Weights per level")
        assert "by source / quality" in part
        table = {row[0].strip("\N{NO-BREAK SPACE} "): row[1:] for row in rows(part)}
        assert set(table) == {"web", "web/high", "web/low", "code"}
        web = sum(weights[name] for name in names if paths[name].startswith("web"))
        high = sum(weights[name] for name in names if paths[name] == "web/high")
        natural = sum(findings.context["natural"][name] for name in names if paths[name] == "web/high")
        assert table["web"][0] == f"**{web:.1%}**"
        assert table["web"][-1] == "bounds 0.1 to 0.5"
        assert table["web/high"] == [f"**{high:.1%}**", f"{high / web:.1%}", f"{natural:.1%}", ""]
        assert table["code"][-1] == "split given: natural shares"


def test_mixtures_that_break_a_rule_are_said_not_to_be_recommended(findings: Findings) -> None:
    assert findings.verification is not None
    assert "Never recommended" not in answer_markdown(findings)
    outside = replace(findings, verification=replace(findings.verification, infeasible=("natural", "unimax")))
    assert "Never recommended, because outside the bounds, epoch caps or given splits: natural, UniMax." in answer_markdown(outside)


def test_it_says_which_token_counts_are_no_plain_numbers(findings: Findings) -> None:
    """An estimate must not pass for a count; the same count is no news where every number was given."""
    assert "stimated" not in section(answer_markdown(findings), "Mixture")
    first, second, *rest = findings.context["domains"]
    changed = [first | {"token_count_source": "estimated"}, second | {"token_count_source": "counted", "repeats": 3.0}, *rest]
    told = section(answer_markdown(replace(findings, context={**findings.context, "domains": changed})), "Mixture")
    assert f"epochs are estimates too: {first['name']}." in told
    assert f"in tokens of the proxies' tokenizer: {second['name']}." in told
    assert f"epochs count unique ones: {second['name']} 3 times." in told


def test_it_says_which_domains_are_pairs(findings: Findings) -> None:
    assert "Pairs" not in section(answer_markdown(findings), "Mixture")
    first, *rest = findings.context["domains"]
    changed = [first | {"kind": "completion"}, *(domain | {"kind": "text"} for domain in rest)]
    told = section(answer_markdown(replace(findings, context={**findings.context, "domains": changed})), "Mixture")
    assert f"only completions are trained on and scored: {first['name']}." in told
