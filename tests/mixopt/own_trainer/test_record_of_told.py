"""Told outcomes enter the record together or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mixopt.errors import DataError
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Source, Trial, TrialDomain, TrialState, trial_identity

FAILED = Failure(FailureKind.PROGRAM, "Told to have failed: no reason given")


def make_trial(seed: int) -> Trial:
    schedule, source = Schedule.constant(Mixture.of({"a": 0.5, "b": 0.5})), Source("command", "toy", 1000)
    domains = (TrialDomain("a", "content-a", 1), TrialDomain("b", "content-b", 1))
    return Trial(trial_identity(schedule, source, seed, {}, domains, "", "1"), schedule, source, seed, {}, domains, "", "1")


def outcome(trial: Trial, value: float, key: str = "loss") -> Outcome:
    return Outcome(trial.trial_id, {"content-a": (0.5,), "content-b": (0.5,)}, (Measurement(key, 1000, value, value),), 1000, 0.0, 0.0)


TRIALS = [make_trial(seed) for seed in range(3)]


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    with History.open(tmp_path / "record.sqlite") as record:
        record.add_search("s1", "first", "name: first\n")
        record.add_trials("s1", TRIALS, "search")
        yield record


def test_all_or_nothing(history: History) -> None:
    before, counter = history.trials("s1"), history.change_counter()
    broken = replace(outcome(TRIALS[2], 1.0), realized={})
    with pytest.raises(DataError):
        history.tell([outcome(TRIALS[0], 1.0), broken], {TRIALS[1].trial_id: FAILED}, 3)
    assert history.trials("s1") == before
    assert history.change_counter() == counter
    history.tell([outcome(TRIALS[0], 1.0), outcome(TRIALS[2], 1.0)], {TRIALS[1].trial_id: FAILED}, 3)
    assert [record.state for record in history.trials("s1")] == [TrialState.COMPLETED, TrialState.FAILED, TrialState.COMPLETED]


def test_the_first_value_stands_unless_it_is_replaced(history: History) -> None:
    trial = TRIALS[0]
    history.tell([outcome(trial, 1.0), outcome(TRIALS[1], 5.0)], {}, 3)
    history.tell([outcome(trial, 2.0)], {}, 3)
    assert values(history, trial) == {"loss": 1.0}
    history.tell([outcome(trial, 3.0, "other")], {}, 3)
    history.tell([outcome(trial, 2.0)], {}, 3, replaced=True)
    assert values(history, trial) == {"loss": 2.0, "other": 3.0}
    assert values(history, TRIALS[1]) == {"loss": 5.0}


def values(history: History, trial: Trial) -> dict[str, float]:
    record = history.trial("s1", "search", trial.trial_id)
    assert record.outcome is not None
    return {m.evaluation_key: m.bits_per_byte for m in record.outcome.measurements}
