"""The benchmark of merging: components add up to the mixtures they stand for, no run predicts itself, and rows say what was compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from mixopt.domains import Domain, DomainSet
from mixopt.trial import Source
from proxy_models.config import ProxyConfig
from proxy_models.merging.components import members_of
from proxy_models.merging.contraction import merged_pack
from proxy_models.model import PackedProxy

RECIPE = {"window": 512, "tokens_per_step": 1024, "learning_rate": 3e-3, "schedule": "constant"}
SIZES = {"web": 400e9, "books": 80e9, "code": 20e9, "math": 3e9}
NAMES = tuple(SIZES)


@pytest.fixture
def domains() -> DomainSet:
    return DomainSet(tuple(Domain(name, f"hash-{name}", 2_000_000, tokens) for name, tokens in SIZES.items()), 300e9)


@pytest.fixture
def measured(benchmark_module: Any) -> Callable[..., Any]:
    def make(losses: Any, evaluator: str = "merged", general: float | None = 0.0, shared: float = 0.0, each: float = 1.0) -> Any:
        table = {"target/one": list(losses), "target/two": list(losses), "valid/web": list(losses)}
        measured = benchmark_module("merging_runs.measure").Measured
        return measured(evaluator, "linear", "exact", "nano", 1024, "constant", 1.0, general, table, shared, each)

    return make


# Trials


@pytest.mark.parametrize("general", [0.0, 0.25, 0.5])
def test_components_add_up_to_the_mixture(benchmark_module: Any, domains: DomainSet, general: float) -> None:
    arms, measure = benchmark_module("merging_runs.arms"), benchmark_module("merging_runs.measure")
    data_KK = np.stack([arms.component_mixture(domains, name, general).array(NAMES) for name in NAMES])
    natural = domains.natural().array(NAMES)
    asked = np.stack([one.mixture.array(NAMES) for one in arms.asked_mixtures(domains, 16, 8)])
    weights = measure.component_weights(asked, natural, general)
    assert weights.sum(axis=1) == pytest.approx(1.0)
    assert weights @ data_KK == pytest.approx(asked)
    reach = measure.within_reach(weights)
    assert reach[[0, *range(16, 24)]].all(), "natural and what is pulled halfway to it"
    assert reach.all() == (general == 0)


def test_no_run_is_the_beginning_of_one_that_it_predicts(benchmark_module: Any, domains: DomainSet) -> None:
    module = benchmark_module("merging_runs.arms")
    base = module.base_trial(domains, "nano", 8192, RECIPE, "tokenizer", "1")
    for arm in (*module.arms(quick=False), *module.arms(quick=True)):
        trials = module.trials_of(arm, domains, base, {**RECIPE, "beginning": {"kind": "continued"}})
        everything = list(trials.all())
        assert len({trial.trial_id for trial in everything}) == len(everything)
        assert {trial.inputs for trial in everything} == {(base.trial_id,)}
        assert all(trial.source.tokens // 1024 >= module.FEWEST_STEPS for trial in everything)
        truth = {trial.seed for trial in (*trials.trained, *trials.again)}
        cheap = {trial.seed for group in (*trials.components.values(), *trials.short.values()) for trial in group}
        assert not truth & cheap
        for group in trials.short.values():
            assert [trial.schedule for trial in group] == [trial.schedule for trial in trials.trained[: arm.wide]]
        assert [trial.schedule for trial in trials.again] == [trial.schedule for trial in trials.trained[: arm.twice]]
        assert trials.trained[0].source == Source("trained", arm.size, arm.horizon)


def test_tasks_wait_for_what_they_need_and_outlive_failures(benchmark_module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pool = benchmark_module("merging_runs.pool")
    tasks = [
        pool.Task("last", int, ("3",), frozenset({"first"})),
        pool.Task("lost", int, ("4",), frozenset({"failing"})),
        pool.Task("failing", int, ("no number",)),
        pool.Task("first", int, ("1",)),
    ]
    done = [(task.name, result) for task, result in pool.run_all(tasks, 1)]
    assert done == [("first", 1), ("last", 3)]
    said = capsys.readouterr().err
    assert "failing failed: invalid literal" in said
    assert "lost needs what failed: failing" in said


def test_base_routers_stay_in_place(benchmark_module: Any) -> None:
    tiny = ProxyConfig("test", 64, 32, 1, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=16)
    base, *parts = members_of(PackedProxy(tiny, [0, 1, 2]), ["base", "a", "b"])
    frozen = [benchmark_module("merging_runs.measure")._BaseRouter(one, base) for one in parts]
    weights = [[0.4, 0.6], [1.5, -0.5]]
    with_base, plain = merged_pack(tiny, frozen, weights), merged_pack(tiny, parts, weights)
    for m in range(2):
        one, other = with_base.member_state(m), plain.member_state(m)
        assert torch.equal(one["layers.0.moe.router"], base.rows("layers.0.moe.router", 0, tiny.d_model))
        differing = {name for name in one if not torch.equal(one[name], other[name])}
        assert differing == {name for name in one if name.endswith("moe.router")}


# Ranks


def truth(benchmark_module: Any, measured: Any, losses: Any, wide: int) -> Any:
    generator = np.random.default_rng(3)
    mixtures = generator.dirichlet(np.ones(4), size=len(losses))
    return benchmark_module("merging_runs.rank").truth_of(measured(losses, "trained", None), None, wide, mixtures, np.full(4, 0.25))


def test_rows_are_of_subsets_that_the_general_share_makes(benchmark_module: Any, measured: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    losses = np.random.default_rng(0).normal(size=24)
    real = truth(benchmark_module, measured, losses, 16)
    (only,) = rank.rows_of(measured(losses + 1, shared=100.0), real, per_target=False)
    assert (only.subset, only.mixtures, only.spearman, only.top_quartile_spearman) == ("wide", 16, 1.0, 1.0)
    assert only.search_flops == 116
    rows = list(rank.rows_of(measured(losses, general=0.2), real, per_target=True))
    sizes = {row.subset: row.mixtures for row in rows if row.metric == "mean of targets"}
    assert sizes["wide"] == 16
    assert sizes["reachable"] + sizes["extrapolated"] == 24
    assert {row.metric for row in rows if row.subset == "wide"} == {"mean of targets", "mean of domains", "target/one", "target/two"}


def test_arms_of_more_and_of_fewer_mixtures_are_compared_on_the_wide_ones(benchmark_module: Any, measured: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    losses = np.random.default_rng(0).normal(size=24)
    for ranked, evaluated in ((16, 24), (24, 16)):
        real = truth(benchmark_module, measured, losses[:ranked], 16)
        (row,) = rank.rows_of(measured(losses[:evaluated]), real, per_target=False)
        assert (row.mixtures, row.spearman) == (16, 1.0)


def test_what_is_out_of_reach_is_not_ranked(benchmark_module: Any, measured: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    losses = np.random.default_rng(0).normal(size=24)
    real = truth(benchmark_module, measured, losses, 16)
    reach = rank.subsets(measured(losses, general=0.1), real)["reachable"]
    assert 4 <= reach.sum() < 24
    some = [float(loss) if near else None for loss, near in zip(losses, reach, strict=True)]
    rows = list(rank.rows_of(measured(some, general=0.1), real, per_target=False))
    assert {row.subset: row.mixtures for row in rows} == {"reachable": int(reach.sum())}


def test_two_seeds_make_the_truth_and_its_ceiling(benchmark_module: Any, measured: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    first, second = np.arange(6.0), np.array([1.0, 0.0, 3.0, 2.0, 5.0, 4.0])
    again = measured(second, "trained", None).losses
    real = rank.truth_of(measured(first, "trained", None), again, 6, np.eye(6), np.full(6, 1 / 6))
    assert real.losses["mean of targets"] == pytest.approx((first + second) / 2)
    assert rank.ceiling(real, "mean of targets") == pytest.approx(1 - 6 * 6 / (6 * 35), abs=1e-4)
    few = rank.truth_of(
        measured(first, "trained", None), {key: values[:4] for key, values in again.items()}, 6, np.eye(6), np.full(6, 1 / 6)
    )
    assert few.losses["mean of targets"] == pytest.approx(first), "not the mean of two seeds for some and of one for others"
    assert rank.ceiling(few, "mean of targets") is not None


def test_regression_predicts_each_run_from_the_others(benchmark_module: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    generator = np.random.default_rng(1)
    mixtures, feature = generator.dirichlet(np.ones(4), size=24), generator.normal(size=24)
    real = 2 * mixtures[:, 0] + feature
    predicted = rank.regression(mixtures, feature[:, None], real)
    assert predicted == pytest.approx(real, abs=0.1)
    moved = real.copy()
    moved[5] += 10
    assert rank.regression(mixtures, feature[:, None], moved)[5] == pytest.approx(predicted[5])


def test_break_even_is_where_costs_meet(benchmark_module: Any, measured: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    losses = np.random.default_rng(0).normal(size=16)
    real = truth(benchmark_module, measured, losses, 16)
    merged, short = measured(losses, shared=80.0, each=1.0), measured(-losses, "trained", None, each=6.0)
    assert rank.break_even(merged, short) == 16
    assert rank.break_even(measured(losses, shared=80.0, each=7.0), short) is None
    found = rank.difference_of("equal cost", merged, short, real, 16)
    assert (found.cost, found.difference, found.spearman, found.trained_spearman) == (1.0, 2.0, 1.0, -1.0)
    assert rank.difference_of("equal cost", measured([None, *losses[1:]]), short, real, 16) is None


def test_the_best_quarter_is_that_of_the_truth(benchmark_module: Any) -> None:
    rank = benchmark_module("merging_runs.rank")
    real = np.arange(16.0)
    predicted = np.concatenate([[3.0, 2.0, 1.0, 0.0], 10 + np.arange(12.0)])
    assert rank.top_spearman(predicted, real) == -1.0
    assert math.isclose(rank.top_spearman(real, real), 1.0)
