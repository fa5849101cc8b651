"""The gate: how often it errs, by simulation; what it is made of, against plain computations; and what it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from mixopt.errors import DataError
from mixopt.merging.gate import judge
from mixopt.merging.odds import simulated, top_count
from mixopt.merging.paired import Paired, pair
from mixopt.merging.verdict import Verdict
from mixopt.objective import Objective
from mixopt.ranking import noise_ceiling

World = Callable[..., Paired]
WORLDS = 150


def an_objective(metrics: int) -> Objective:
    return Objective(
        "mean", tuple(f"target/{m}" for m in range(metrics)), (1 / metrics,) * metrics, (0.1,) * metrics, (0.0,) * metrics, 3, {}
    )


def accepted(world: World, true_spearman: float, noise: float, mixtures: int = 12) -> float:
    verdicts = [judge(world(true_spearman, mixtures, noise, seed=seed), "merged", draws=100, seed=seed) for seed in range(WORLDS)]
    return float(np.mean([verdict.trusted for verdict in verdicts]))


def test_twelve_mixtures_let_good_evaluators_pass_and_few_bad_ones(world: World) -> None:
    """Measured at 400 worlds: .96 of those of .9, .04 of those of .3; sigma of 150 worlds is .016 for both. Prints what the thresholds rest on."""
    rates = {true: accepted(world, true, noise=1 / 3) for true in (0.3, 0.5, 0.7, 0.9)}
    print("accepted by true Spearman, noise a third of the signal:", rates)
    assert rates[0.9] >= 0.9
    assert rates[0.3] <= 0.1
    assert rates[0.3] < rates[0.5] < rates[0.7] < rates[0.9]


def test_displacement_asks_for_more(world: World) -> None:
    paired = world(0.7, noise=0.3)
    near, far = (judge(paired, "merged", {"web": moved, "code": 0.01}, draws=500) for moved in (0.1, 0.11))
    assert (near.needed, far.needed, near.score) == (0.65, 0.75, far.score)
    assert far.bad_accepted < near.bad_accepted
    assert far.good_rejected > near.good_rejected
    between = [judge(world(0.7, seed=seed), "merged", {"web": 0.3}, draws=50) for seed in range(20)]
    assert any(0.65 <= verdict.score < 0.75 and not verdict.trusted for verdict in between)


def test_the_odds_it_states_are_those_that_happen(world: World) -> None:
    """Sigma of 150 worlds is .02; stated ones vary between worlds as the spread of a dozen mixtures does."""
    stated = [judge(world(0.9, noise=0.5, seed=seed), "merged", draws=200) for seed in range(30)]
    assert np.mean([verdict.good_rejected for verdict in stated]) == pytest.approx(1 - accepted(world, 0.9, noise=0.5), abs=0.06)
    assert np.mean([verdict.bad_accepted for verdict in stated]) == pytest.approx(accepted(world, 0.3, noise=0.5), abs=0.06)


def test_correlations_are_scipys(world: World) -> None:
    paired = world(0.7, noise=0.3)
    verdict = judge(paired, "merged")
    trained, proxy = paired.trained_GM.mean(axis=1), paired.proxy_GM.mean(axis=1)
    assert verdict.objective.spearman == pytest.approx(spearmanr(trained, proxy).statistic)
    for m, row in enumerate(verdict.metrics):
        assert row.spearman == pytest.approx(spearmanr(paired.trained_GM[:, m], paired.proxy_GM[:, m]).statistic)
    best = np.argsort(trained)[:6]
    assert verdict.top is not None
    assert (verdict.top.of, verdict.top.mixtures) == ("top half", 6)
    assert verdict.top.spearman == pytest.approx(spearmanr(trained[best], proxy[best]).statistic)
    assert verdict.mean.spearman == pytest.approx(np.mean([row.spearman for row in verdict.metrics]))
    for row in (verdict.objective, verdict.mean, verdict.top, *verdict.metrics):
        assert row.low <= row.spearman <= row.high
    expected = 0.5 * min(1, verdict.objective.spearman / verdict.objective.ceiling) + 0.5 * min(
        1, verdict.mean.spearman / verdict.mean.ceiling
    )
    assert verdict.score == pytest.approx(expected)


@pytest.mark.parametrize("noise", [0.2, 0.5, 0.8])
def test_the_ceiling_is_that_of_rankings_elsewhere(world: World, noise: float) -> None:
    """That of `ranking.noise_ceiling` keeps the mixtures that were measured, ours draws new ones; mean over worlds."""
    ours, theirs = [], []
    for seed in range(20):
        paired = world(0.9, mixtures=40, noise=noise, seed=seed)
        ours.append(judge(paired, "merged", draws=100).objective.ceiling)
        trained = paired.trained_GM.mean(axis=1)
        theirs.append(noise_ceiling(trained, trained, (0.0, paired.objective_noise), np.random.default_rng(0), 100)[0])
    assert np.mean(ours) == pytest.approx(np.mean(theirs), abs=0.04)


@pytest.mark.parametrize("true_spearman", [0.0, 0.3, 0.9, 1.0])
def test_simulated_evaluators_have_the_correlation_they_are_said_to_have(world: World, true_spearman: float) -> None:
    """Without noise; of 200 mixtures, so that the bias of few is gone. Sigma of the mean of 100 draws is .007 at most."""
    found = simulated(world(0.9, mixtures=200), true_spearman, np.random.default_rng(0), 100)
    assert found.objective_N.mean() == pytest.approx(true_spearman, abs=0.03)
    assert found.metrics_NM.mean() == pytest.approx(true_spearman, abs=0.03)


@given(st.integers(0, 200))
def test_the_best_are_a_quarter_or_where_that_is_few_half(mixtures: int) -> None:
    count = top_count(mixtures)
    assert count == 0 or count >= 4
    assert count == mixtures // 4 if mixtures >= 16 else count in (0, (mixtures + 1) // 2)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-3, 3))
def test_an_evaluator_is_judged_by_order_alone(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    trained, proxy = rng.standard_normal((8, 3)), rng.standard_normal((8, 3))
    names = [str(g) for g in range(8)]
    runs = list(zip(names, trained, strict=True))
    one, other = (
        judge(pair(an_objective(3), runs, dict(zip(names, values, strict=True)), 0.1), "merged", draws=30)
        for values in (proxy, shift + scale * proxy)
    )
    assert (one.score, one.trusted) == (pytest.approx(other.score), other.trusted)


def test_a_perfect_evaluator_is_trusted_and_a_reversed_one_is_not(world: World) -> None:
    paired = world(1.0)
    good = judge(paired, "merged", {"web": 0.04, "code": 0.06}, 0.9)
    assert (good.trusted, good.cause, good.score) == (True, "none", pytest.approx(1.0))
    bad = judge(replace(paired, proxy_GM=-paired.proxy_GM), "merged", {"web": 0.04}, 0.9)
    assert (bad.trusted, bad.cause) == (False, "ranking")
    assert bad.score == pytest.approx(-1.0)


def test_good_on_the_whole_and_reversed_among_the_best_is_not_trusted(world: World) -> None:
    paired = world(1.0, mixtures=24)
    order = np.argsort(paired.trained_GM.mean(axis=1))[:6]
    proxy = paired.proxy_GM.copy()
    proxy[order] = proxy[order[::-1]]
    verdict = judge(replace(paired, proxy_GM=proxy), "ensemble")
    assert verdict.score >= verdict.needed
    assert not verdict.trusted
    assert "the best" in verdict.headline


@pytest.mark.parametrize(
    ("moved", "agreement", "cause"), [(0.3, 0.5, "displacement"), (0.05, 0.5, "routers"), (0.05, 0.9, "ranking"), (None, None, "ranking")]
)
def test_the_cause_is_displacement_then_routers_then_ranking(
    world: World, moved: float | None, agreement: float | None, cause: str
) -> None:
    paired = world(1.0)
    verdict = judge(replace(paired, proxy_GM=-paired.proxy_GM), "merged", None if moved is None else {"web": moved}, agreement)
    assert verdict.cause == cause


def test_where_noise_hides_the_ranking_nobody_is_trusted(world: World) -> None:
    paired = world(1.0, noise=3.0)
    verdict = judge(replace(paired, proxy_GM=paired.trained_GM), "merged")
    assert (verdict.trusted, verdict.cause) == (False, "noise")
    assert "seed noise hides" in verdict.headline


def test_metrics_that_noise_hides_do_not_count(world: World) -> None:
    paired = world(1.0)
    noise = np.where(np.arange(8) == 2, 5.0, paired.noise_M)
    proxy = paired.proxy_GM.copy()
    proxy[:, 2] = -proxy[:, 2]
    verdict = judge(replace(paired, noise_M=noise, proxy_GM=proxy), "merged")
    assert [row.counted for row in verdict.metrics] == [m != 2 for m in range(8)]
    assert verdict.mean.spearman == pytest.approx(1.0)
    assert any("target/2" in sentence for sentence in verdict.reasons)


def test_repeats_count_once_and_lower_the_noise() -> None:
    rng = np.random.default_rng(0)
    losses = rng.standard_normal((8, 2))
    names = [str(g) for g in range(8)]
    runs = [*zip(names, losses, strict=True), ("0", losses[0] + 0.2), ("0", losses[0] + 0.4), ("9", losses[1])]
    paired = pair(an_objective(2), runs, {**dict(zip(names, losses, strict=True)), "10": losses[0]})
    assert paired.mixtures == tuple(names)
    assert paired.trained_GM[0] == pytest.approx(losses[0] + 0.2)
    share = np.sqrt((7 + 1 / 3) / 8)
    assert paired.noise_M == pytest.approx(share * 0.1)
    assert paired.objective_noise == pytest.approx(share * 0.2), "the standard deviation of the three runs' objective"
    alone = pair(an_objective(2), runs[:8], dict(zip(names, losses, strict=True)))
    assert alone.objective_noise == pytest.approx(0.1), "without repeats: as if all metrics' errors were one"


def test_what_cannot_be_judged_is_named() -> None:
    rows = [(str(g), np.zeros(2)) for g in range(8)]
    with pytest.raises(DataError, match="Only 5 distinct"):
        pair(an_objective(2), [*rows[:5], rows[0]], dict(rows))
    with pytest.raises(DataError, match="'3' have shape"):
        pair(an_objective(2), rows, {**dict(rows), "3": np.zeros(3)})
    with pytest.raises(DataError, match="'3' have shape"):
        pair(an_objective(2), [*rows[:3], ("3", np.array([0.0, np.nan]))], dict(rows))


def test_the_verdict_comes_back_from_json_and_is_the_same_again(world: World) -> None:
    paired = world(0.7, mixtures=9, noise=0.3)
    verdict = judge(paired, "merged", {"web": 0.2, "code": 0.1}, 0.8)
    assert Verdict.from_json(json.loads(json.dumps(verdict.to_json()))) == verdict
    assert judge(paired, "merged", {"web": 0.2, "code": 0.1}, 0.8) == verdict
    few = judge(world(0.7, mixtures=6), "ensemble")
    assert (few.top, few.top_needed) == (None, None)
    assert Verdict.from_json(json.loads(json.dumps(few.to_json()))) == few


def test_people_read_numbers_with_what_they_rest_on(world: World) -> None:
    text = " ".join(judge(world(0.9, noise=0.3), "merged", {"web": 0.2, "code": 0.1}, 0.6).reasons)
    for part in (
        "Merged proxies are",
        "top half",
        "a perfect evaluator",
        "web has moved by 0.200",
        "0.75 is asked",
        "agree in 60%",
        "would be rejected",
    ):
        assert part in text, part
