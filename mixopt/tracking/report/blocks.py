"""What a page of the report is made of: plain blocks, which the template turns into HTML and escapes.

Nothing here is markup, so nothing a user named can become any.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mixopt.tracking.findings import Findings

# Texts longer than this may wrap in their cell.
WRAPPED_LETTERS = 28


@dataclass(frozen=True)
class Prose:
    """A paragraph. `kind` "missing": what has not been measured."""

    text: str
    strong: str = ""
    kind: str = ""
    block: str = "prose"


@dataclass(frozen=True)
class Notes:
    lines: Sequence[str]
    block: str = "notes"


@dataclass(frozen=True)
class Heading:
    text: str
    block: str = "heading"


@dataclass(frozen=True)
class Fact:
    name: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Facts:
    facts: Sequence[Fact]
    block: str = "facts"


@dataclass(frozen=True)
class Table:
    """Rows of texts; the first column and `words` are texts, the others numbers. `folded`: the summary it hides behind, if any."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: Sequence[int] = ()
    folded: str = ""
    block: str = "table"

    def is_word(self, column: int) -> bool:
        return column == 0 or column in self.words

    def kind(self, column: int, cell: str) -> str:
        """Class of a cell: verdicts have colours."""
        verdict = cell if cell in ("better", "worse", "unclear") else "unclear" if cell == "undecided" else ""
        word = "" if not self.is_word(column) else "word long" if len(cell) > WRAPPED_LETTERS else "word"
        return " ".join(part for part in (word, verdict) if part)


@dataclass(frozen=True)
class Command:
    """A command line to copy, and what it is for."""

    text: str
    command: str
    block: str = "command"


@dataclass(frozen=True)
class LongText:
    """A file, folded."""

    title: str
    text: str
    block: str = "text"


@dataclass(frozen=True)
class Drawing:
    """A figure of `figures.FIGURES` with the words for those who do not see it; the page adds title, subtitle and both drawings."""

    name: str
    alt: str
    block: str = "drawing"


@dataclass(frozen=True)
class Section:
    anchor: str
    title: str
    blocks: Sequence[Any] = field(default_factory=tuple)


def missing(text: str) -> Prose:
    return Prose(text, kind="missing")


def percent(value: float) -> str:
    return f"{value:.1%}"


def waiting(findings: Findings, what: str) -> Prose:
    """Why there is no proposal to show `what` of."""
    state = findings.search.state
    done = sum(record.outcome is not None for record in findings.trials if record.stage == "search")
    asked = sum(record.stage == "search" for record in findings.trials)
    return missing(f"{what} comes with the proposal. The search is {state}: {done} of {asked} trials asked for so far are finished.")
