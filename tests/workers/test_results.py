"""What a search leaves for people: a report that cannot be written is said, and fails nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.history import History
from mixopt.progress import Silent
from workers.run import write_results


class Heard(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_report_that_fails_does_not_fail_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no font at all")

    answers: list[Path] = []
    monkeypatch.setattr("mixopt.tracking.note.write_answer", lambda path, *_: answers.append(path))
    monkeypatch.setattr("mixopt.tracking.report.write.write_report", fail)
    reporter = Heard()
    with History.open(tmp_path / "record.sqlite") as history:
        write_results(tmp_path, history, "0" * 20, reporter)
    assert answers == [tmp_path / "answer.md"]
    assert len(reporter.notes) == 1
    assert "no font at all" in reporter.notes[0]
    assert "mixopt report" in reporter.notes[0]


def test_an_interruption_while_drawing_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mixopt.tracking.note.write_answer", lambda *_: None)
    monkeypatch.setattr("mixopt.tracking.report.write.write_report", interrupt)
    with History.open(tmp_path / "record.sqlite") as history, pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, history, "0" * 20, Heard())
