"""Progress of a search on a terminal and in a log."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from mixopt.history import TrialRecord
from mixopt.mixture import Mixture, Schedule
from mixopt.runner import Failed, Progress
from mixopt.terminal import RichReporter, SearchProgress
from mixopt.trial import Failure, FailureKind, Source, Trial, TrialState

TOKENS = 100_000


def trial(number: int) -> Trial:
    schedule = Schedule.constant(Mixture(("a", "b"), (0.5, 0.5)))
    return Trial(f"{number:08d}abcdef", schedule, Source("trained", "nano", TOKENS), number, {}, (), "tokenizer", "1")


def record(of: Trial) -> TrialRecord:
    return TrialRecord(of, "search", 0, TrialState.COMPLETED, 0, None, None, datetime.now(UTC))


def console(terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100)


def text(of: Console) -> str:
    assert isinstance(of.file, io.StringIO)
    return of.file.getvalue()


def bar(progress: SearchProgress) -> Any:
    (task,) = progress._progress.tasks
    return task


def test_what_earlier_runs_trained_is_done_but_not_a_rate() -> None:
    with SearchProgress(console(terminal=True)) as progress:
        trials = [trial(number) for number in range(4)]
        progress.asked(trials)
        progress.finished(record(trials[0]))
        progress.event(Progress(trials[1].trial_id, 90_000))
        assert bar(progress).completed == 190_000
        assert not bar(progress).speed, "190,000 tokens in no time"
        progress.event(Progress(trials[2].trial_id, 1_000))
        progress.event(Progress(trials[2].trial_id, 2_000))
        assert bar(progress).completed == 192_000
        assert bar(progress).total == 4 * TOKENS


def test_cancelled_trials_are_not_reported_as_failures() -> None:
    out = console(terminal=True)
    progress = SearchProgress(out)
    progress.asked([trial(0)])
    progress.event(Failed(trial(0).trial_id, Failure(FailureKind.CANCELLED, "Cancelled")))
    assert text(out) == ""
    progress.event(Failed(trial(0).trial_id, Failure(FailureKind.DATA, "file is missing")))
    assert "Trial 00000000 failed (data): file is missing" in text(out)


def test_a_log_has_one_line_per_trial_and_nothing_of_bars() -> None:
    out = console(terminal=False)
    with SearchProgress(out) as progress:
        trials = [trial(number) for number in range(3)]
        progress.asked(trials)
        progress.finished(record(trials[0]))
        for done in trials[1:]:
            progress.event(Progress(done.trial_id, 50_000))
            progress.finished(record(done))
    assert text(out).splitlines() == ["Trial 00000001 is completed: 2 of 3 asked for.", "Trial 00000002 is completed: 3 of 3 asked for."]


def test_a_log_breaks_no_line() -> None:
    out = console(terminal=False)
    long = f"Review: mlflow ui --backend-store-uri sqlite:////{'folder/' * 20}mlflow.db --port 5000"
    reporter = RichReporter(out, out)
    reporter.note(long)
    with reporter.stage("Reading", 10, "bytes") as stage:
        stage.advance(10)
    lines = text(out).splitlines()
    assert lines[0] == long
    assert len(lines) == 2
    assert lines[1].startswith("Reading: ")
