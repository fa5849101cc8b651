"""Where a speed comes from: the record before a probe, a probe before another shape, an assumption last; and always said."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mixopt.cost import Shape
from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.history import TrialRecord
from mixopt.mixture import Mixture, Schedule
from mixopt.trial import Outcome, Source, TrialState
from workers.convert import CostModel, shape_of, trained_tokens
from workers.planning.speed import ASSUMED_FLOPS_PER_SECOND, GPU_PEAK_FLOPS, GPU_UTILISATION, choose_speed, measured_speed, trained_here

NANO, MICRO, SMALL = (Shape(size, 512, 64, 128) for size in ("nano", "micro", "small"))


def record(size: str, tokens: int, seed: int, seconds: float | None) -> TrialRecord:
    """A trial, finished in so many seconds or not at all."""
    domains = DomainSet(tuple(Domain(name, f"content-{name}", 10**6, 1e9) for name in "ab"), 1e9)
    recipe = {"window": 64, "tokens_per_step": 128, "vocab_size": 512}
    factory = TrialFactory(domains, Source("trained", size, tokens), recipe, "tokenizer", "1")
    trial = factory.make(Schedule.constant(Mixture.of({"a": 0.5, "b": 0.5})), seed, "design")
    outcome = None
    if seconds is not None:
        flops = CostModel(1.0).flops(trial)
        outcome = Outcome(trial.trial_id, {d.content_hash: (0.5,) for d in trial.domains}, (), trained_tokens(trial), flops, seconds)
    return TrialRecord(trial, "search", seed, TrialState.COMPLETED, 0, outcome, None, datetime.now(UTC))


def test_the_measured_speed_is_flops_over_seconds_without_those_of_measuring() -> None:
    records = [record("nano", 1280, 0, 2.0), record("nano", 1280, 1, 4.0), record("nano", 1280, 2, None), record("micro", 2560, 3, 5.0)]
    speeds = measured_speed([*records, records[0]], {"trained/nano/1280": 0.5}, default_share=0.25)
    assert set(speeds) == {NANO, MICRO}
    flops = [found.outcome.flops if found.outcome else 0.0 for found in records]
    assert speeds[NANO] == (pytest.approx((flops[0] + flops[1]) / (6.0 / 1.5)), 2)
    assert speeds[MICRO] == (pytest.approx(flops[3] / (5.0 / 1.25)), 1)


def test_flops_are_counted_over_whole_steps() -> None:
    one, other = record("nano", 1280, 0, None).trial, record("nano", 1300, 0, None).trial
    assert trained_tokens(one) == trained_tokens(other) == 1280
    assert CostModel(1.0).flops(one) == CostModel(1.0).flops(other)
    assert shape_of(one) == NANO


def test_the_best_that_is_known_is_taken_and_named() -> None:
    recorded, probed = {NANO: (3e9, 31)}, {NANO: (5e9, 6.0), MICRO: (4e9, 6.0)}
    first = choose_speed(NANO, recorded, probed, "cpu", "this machine")
    assert (first.flops_per_second, first.origin, first.sentence) == (3e9, "record", "measured from 31 nano trials in the record")
    second = choose_speed(MICRO, recorded, probed, "cpu", "this machine")
    assert (second.flops_per_second, second.origin) == (4e9, "probe")
    assert "6 s of training" in second.sentence
    third = choose_speed(SMALL, recorded, {}, "cpu", "this machine")
    assert (third.flops_per_second, third.origin) == (3e9, "scaled")
    assert "scaled by FLOPs" in third.sentence
    fourth = choose_speed(SMALL, {}, {}, "cpu", "this machine")
    assert (fourth.flops_per_second, fourth.origin) == (ASSUMED_FLOPS_PER_SECOND, "assumed")
    assert "not measured" in fourth.sentence
    assert choose_speed(SMALL, {}, {}, "cuda", "x").flops_per_second == GPU_PEAK_FLOPS * GPU_UTILISATION


def test_a_shape_of_the_same_size_is_nearer_than_any_other() -> None:
    other_window = replace(MICRO, window=32)
    speed = choose_speed(MICRO, {NANO: (1e9, 9), other_window: (2e9, 1)}, {}, "cpu", "this machine")
    assert speed.flops_per_second == 2e9
    assert "window 32" in speed.sentence


def test_of_other_sizes_the_one_that_costs_most_alike_is_nearest() -> None:
    """Larger products run nearer to the peak, so the speed of nano says little of large."""
    shapes = {size: Shape(size, 8192, 512, 1024) for size in ("nano", "micro", "medium", "large", "large-dense")}
    large = shapes.pop("large")
    assert "of large-dense (" in choose_speed(large, {}, dict.fromkeys(shapes.values(), (1e9, 6.0)), "cpu", "here").sentence
    shapes["large-dense"] = replace(shapes["micro"], vocab_size=4096)
    shapes["medium"] = replace(shapes["medium"], tokens_per_step=512)
    assert "of medium (" in choose_speed(large, {}, dict.fromkeys(shapes.values(), (1e9, 6.0)), "cpu", "here").sentence


def test_trials_of_another_machine_say_nothing_of_this_one(tmp_path: Path) -> None:
    records = [record("nano", 1280, seed, 1.0) for seed in range(3)]
    for found, host in zip(records, (socket.gethostname(), "elsewhere", None), strict=True):
        folder = tmp_path / "trials" / found.trial.trial_id
        folder.mkdir(parents=True)
        if host is not None:
            (folder / "lock").write_text(json.dumps({"pid": 1, "host": host}))
    assert trained_here(tmp_path, records) == [records[0], records[2]]
