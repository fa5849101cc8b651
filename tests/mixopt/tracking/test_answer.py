"""The answer in words: it says what the record holds, and nothing in a name can break its tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import DataError
from mixopt.history import History
from mixopt.proposal import Effect
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


def test_the_first_sentence_is_the_answer(findings: Findings) -> None:
    assert findings.proposal is not None
    (name, weight), *_ = sorted(findings.proposal.mixture.as_dict().items(), key=lambda item: -item[1])
    sentence = answer_sentence(findings)
    assert sentence.startswith(f"**Train on {weight:.1%} {name}, ")
    assert "in 2 other domains.**" in sentence
    assert "Predicted better than the natural mixture" in sentence


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
    table = {row[0]: row for row in rows(section(answer_markdown(findings), "Mixture"))}
    assert set(table) == set(weights)
    for name, weight in weights.items():
        low, high = findings.proposal.near_optimal[name]
        natural = findings.context["natural"][name]
        expected = [f"**{weight:.1%}**", f"{low:.1%} to {high:.1%}", f"{natural:.1%}", f"{findings.proposal.epochs[name]:.2f} of 4"]
        assert table[name][1:] == expected


def test_effects_caps_and_verification_are_there(findings: Findings) -> None:
    assert findings.proposal is not None
    assert findings.verification is not None
    text = answer_markdown(findings)
    effects = {row[0]: row for row in rows(section(text, "Predicted effects"))}
    assert set(effects) == set(findings.proposal.effects)
    assert effects["valid/web"][-1] == "screened out: its spread over mixtures is within seed noise"
    assert "- markdown: 4 epochs allow at most 0.043" in section(text, "What holds it back")
    verification = section(text, "Verification\n")
    assert findings.verification.sentence in verification
    objective = [row for row in findings.verification.comparisons if row.metric == "objective"]
    assert len(rows(verification)) == len(objective)
    assert len(rows(section(text, "Verification by metric"))) == len(findings.verification.comparisons) - len(objective)


def test_before_the_proposal_it_says_how_far_the_search_is(findings: Findings) -> None:
    text = answer_markdown(replace(findings, proposal=None, verification=None))
    assert "No proposal yet: search finished; search trials 1 abandoned, 11 completed" in text
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
