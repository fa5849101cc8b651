"""The benchmark of fidelity: its arms train the same mixtures, share trials with a search, and are compared mixture by mixture."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Schedule
from mixopt.strategies.design import design_sequence
from mixopt.trial import Measurement, Outcome, Source

RECIPE = {"window": 512, "tokens_per_step": 1024, "learning_rate": 3e-3, "schedule": "wsd"}
METRICS = {"a": "target/one", "b": "target/two", "c": "valid/text"}


@pytest.fixture
def domains() -> DomainSet:
    sizes = {"web": 400e9, "books": 80e9, "code": 20e9, "math": 3e9}
    return DomainSet(tuple(Domain(name, f"hash-{name}", 2_000_000, tokens) for name, tokens in sizes.items()), 300e9)


@pytest.fixture
def trials_of(benchmark_module: Any, domains: DomainSet) -> Any:
    module = benchmark_module("transfer.arms")
    return lambda arm: module.trials_of(arm, domains, RECIPE, "tokenizer", "1")


def outcome(trial: Any, loss: float) -> Outcome:
    measurements = [
        Measurement(key, tokens, 1.0, loss + shift) for key, shift in (("a", 0.0), ("b", 0.2), ("c", 1.0)) for tokens in (500, 1000)
    ]
    return Outcome(trial.trial_id, {}, tuple(measurements), 1000, 1.0, 2.0)


def test_arms_train_the_same_mixtures_and_fewer_are_the_first(benchmark_module: Any, trials_of: Any) -> None:
    arms = benchmark_module("transfer.arms").arms(quick=False, gpu=False)
    weights = {arm.name: [trial.schedule for trial in trials_of(arm)[: arm.mixtures]] for arm in arms}
    for arm in arms:
        assert len({schedule.array().tobytes() for schedule in weights[arm.name]}) == arm.mixtures
        assert weights[arm.name] == weights["nano"][: arm.mixtures]
        labels = [trial.label for trial in trials_of(arm)[arm.mixtures :]]
        assert sorted(labels) == ["corner", "corner", "natural", "uniform"]
    assert len({trial.trial_id for arm in arms for trial in trials_of(arm)}) == sum(arm.mixtures + 4 for arm in arms)


def test_nano_shares_its_trials_with_a_search(benchmark_module: Any, trials_of: Any, domains: DomainSet) -> None:
    arm = benchmark_module("transfer.arms").Arm("nano", "nano", 1_000_000, 12)
    make = TrialFactory(domains, Source("trained", "nano", 1_000_000), RECIPE, "tokenizer", "1").make
    points = [point for point, _ in zip(design_sequence(domains, seeds=3, seed=0), range(48), strict=False)]
    searched = {make(Schedule.constant(point.mixture), point.seed, point.label).trial_id for point in points}
    assert {trial.trial_id for trial in trials_of(arm)} <= searched


def test_without_matching_every_prepared_window_may_be_seen(benchmark_module: Any, trials_of: Any) -> None:
    arm = benchmark_module("transfer.arms").Arm
    matched, free = (trials_of(arm("nano", "nano", 1_000_000, 4, matched=matched))[0] for matched in (True, False))
    assert {domain.name: domain.unique_tokens for domain in matched.domains}["math"] == 64 * 512  # 10,000 tokens, floored
    assert {domain.unique_tokens for domain in free.domains} == {(2_000_000 - 1) // 512 * 512}


def test_comparison_is_by_mixture_first_seed_against_first_seed(benchmark_module: Any, trials_of: Any) -> None:
    table, arm = benchmark_module("transfer.table"), benchmark_module("transfer.arms").Arm
    large, small = arm("small", "small", 1000, 6), arm("nano", "nano", 1000, 8)
    losses = [3.0, 2.0, 2.5, 1.0, 4.0, 3.5, 9.0, 9.0]
    measured = {}
    for one in (small, large):
        trials = trials_of(one)
        outcomes = {trial.trial_id: outcome(trial, loss) for trial, loss in zip(trials, losses[: one.mixtures], strict=False)}
        # Repeats differ from the first seeds by .2: two values each, so a standard deviation of .1 * sqrt(2).
        seeds = {trial.schedule: outcomes[trial.trial_id].measurements[0].bits_per_byte for trial in trials[: one.mixtures]}
        outcomes |= {trial.trial_id: outcome(trial, seeds[trial.schedule] + 0.2) for trial in trials[one.mixtures :]}
        measured[one.name] = table.measured_of(one, trials, outcomes, METRICS)
    end, earlier = measured["nano"]
    assert (end.name, earlier.name) == ("nano", "nano, after 0K of 1K")
    assert end.losses["mean of targets"] == pytest.approx(np.array(losses) + 0.1)
    assert end.noise["target/one"] == pytest.approx(0.1 * math.sqrt(2))
    rows = list(table.compare(end, measured["small"][0]))
    assert [row.metric for row in rows] == ["mean of domains", "mean of targets", "target/one", "target/two", "valid/text"]
    assert {(row.mixtures, row.spearman, row.accuracy) for row in rows} == {(6, 1.0, 1.0)}
    assert all(0 < row.ceiling_spearman < 1 for row in rows)


def test_too_few_common_mixtures_are_not_compared(benchmark_module: Any, trials_of: Any) -> None:
    table, arm = benchmark_module("transfer.table"), benchmark_module("transfer.arms").Arm
    one = arm("nano", "nano", 1000, 6)
    trials = trials_of(one)[:3]
    (end, _) = table.measured_of(one, trials, {trial.trial_id: outcome(trial, 2.0) for trial in trials}, METRICS)
    assert list(table.compare(end, end)) == []
    assert table.measured_of(one, trials, {}, METRICS) == []


def test_an_unknown_arm_and_a_missing_corpus_are_told(benchmark_module: Any, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fidelity = benchmark_module("fidelity")
    monkeypatch.delenv("MIXOPT_SHARED", raising=False)
    assert fidelity.main([]) == 2
    assert "MIXOPT_SHARED" in capsys.readouterr().err
    monkeypatch.setenv("MIXOPT_SHARED", "/nowhere")
    assert fidelity.main(["--arms", "macro"]) == 2
    assert "Unknown arms macro" in capsys.readouterr().err
