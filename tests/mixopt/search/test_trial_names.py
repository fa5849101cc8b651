"""Which trial a user means by an id, the first digits of one, or the name of a mixture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from mixopt.errors import ConfigError, DataError
from mixopt.history import StageName, TrialRecord
from mixopt.trial import TrialState
from mixopt.trial_names import arm_names, find_trial

NATURAL, EVEN, SKEWED = (0.2, 0.3, 0.5), (0.4, 0.3, 0.3), (0.8, 0.1, 0.1)


@pytest.fixture
def record(lab: Any) -> Any:
    def make(
        label: str, weights: Sequence[float], seed: int = 0, stage: StageName = "search", done: bool = True, flops: float = 1e9
    ) -> TrialRecord:
        trial = lab.trial(weights, seed + (10 if stage == "verification" else 0), label)
        outcome = replace(lab.outcome(trial), flops=flops) if done else None
        state = TrialState.COMPLETED if done else TrialState.RUNNING
        return TrialRecord(trial, stage, 0, state, 0, outcome, None, datetime.now(UTC))

    return make


@pytest.fixture
def records(record: Any) -> list[TrialRecord]:
    return [
        record("natural", NATURAL, seed=1),
        record("natural", NATURAL, seed=0),
        record("design", EVEN),
        record("design", SKEWED),
        record("verify:natural", NATURAL, seed=1, stage="verification", flops=9e9),
        record("verify:natural", NATURAL, seed=0, stage="verification", flops=9e9, done=False),
        record("verify:proposal+best_measured", EVEN, stage="verification", flops=9e9),
    ]


def test_a_name_means_the_largest_that_is_trained_then_the_first_seed(records: list[TrialRecord]) -> None:
    assert find_trial("natural", records) is records[4]
    assert find_trial("natural", records[:4]) is records[1]
    assert find_trial("proposal", records) is find_trial("best", records) is records[6]


def test_the_best_of_the_search_has_that_name_too(records: list[TrialRecord]) -> None:
    best = records[2].trial.trial_id
    assert arm_names(records[2], best) == ("design", "best_measured")
    assert arm_names(records[3], best) == ("design",)
    assert find_trial("best", records[:4], best) is records[2]


def test_ids_and_their_first_digits_mean_themselves(records: list[TrialRecord], record: Any) -> None:
    for one in records[:5]:
        assert find_trial(one.trial.trial_id, records) is one
        assert find_trial(one.trial.trial_id[:12], records) is one
    other = record("natural", (0.1, 0.1, 0.8))
    assert find_trial(other.trial.trial_id[:12], records, others=[other]) is other
    assert find_trial("natural", records, others=[other]) is records[4]


def test_what_cannot_be_meant_is_told(records: list[TrialRecord]) -> None:
    with pytest.raises(DataError, match=r"No trial is called 'naturl'.*'natural'"):
        find_trial("naturl", records)
    digits = records[0].trial.trial_id
    with pytest.raises(DataError, match="at least 4 digits"):
        find_trial(digits[:3], records)
    wrong = digits[:7] + ("0" if digits[7] != "0" else "1")
    with pytest.raises(DataError, match=f"Did you mean '{digits[:8]}'"):
        find_trial(wrong, records[:1])
    with pytest.raises(ConfigError, match=r"2 trials of several mixtures.*by its id"):
        find_trial("design", records)
    with pytest.raises(DataError, match=r"not trained \(running\)"):
        find_trial(records[5].trial.trial_id, records)
    twins = [replace(one, trial=replace(one.trial, trial_id="abcd" + one.trial.trial_id)) for one in records[:2]]
    with pytest.raises(ConfigError, match="2 trials begin with 'abcd'"):
        find_trial("abcd", twins)
    with pytest.raises(DataError, match="mixopt show"):
        find_trial("natural", [])
