"""How long work reports itself, without knowing about terminals: stages with a total, and notes.

The command line implements this with progress bars that show rate and time left; tests and libraries use `Silent`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Stage(Protocol):
    def advance(self, amount: float) -> None:
        """`amount` more units are done."""
        ...


class Reporter(Protocol):
    def stage(self, title: str, total: float | None, unit: str) -> AbstractContextManager[Stage]:
        """A piece of work of `total` units (None: unknown), such as bytes, tokens or trials."""
        ...

    def note(self, text: str) -> None:
        """One line for the user that outlives the progress bars."""
        ...


class _SilentStage:
    def advance(self, amount: float) -> None:
        return None


class Silent:
    """Reports nothing."""

    @contextmanager
    def stage(self, title: str, total: float | None, unit: str) -> Iterator[Stage]:
        yield _SilentStage()

    def note(self, text: str) -> None:
        return None
