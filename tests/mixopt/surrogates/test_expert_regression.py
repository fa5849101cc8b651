"""The regression on what evaluators say: its algebra against slow references, and what stands in for it without enough evaluator runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.mixture import FloatArray
from mixopt.surrogates import evaluator_process
from mixopt.surrogates.evaluator_process import some_runs
from mixopt.surrogates.expert_ensemble import ExpertEnsemble, FittedExperts
from mixopt.surrogates.expert_regression import (
    JITTER,
    LINEAR,
    PAIRS,
    PRIOR,
    SMOOTH,
    TERMS,
    Inputs,
    Regression,
    draw_hyperparameters,
    negative_log_posterior,
)
from mixopt.surrogates.multi_source_gp import MultiSourceGP, SourcesFit
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

RUNS, ASKED = 10, 6
MERGED, TRAINED = Source("merged", "nano", 1000), Source("trained", "nano", 1000)


def inputs(count: int, seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.ones(4), count)
    return Inputs(rng.normal(size=(count, 2)), shares, np.sqrt(shares) / 0.7, np.log1p(shares / 0.01) / 3)


def losses(seed: int = 0) -> FloatArray:
    """Of the runs of `inputs(RUNS, 1)`, shape (RUNS,)."""
    given_runs = inputs(RUNS, 1)
    return np.asarray(2 + 0.3 * given_runs.said[:, 0] + given_runs.linear[:, 1] ** 2 + 0.02 * np.random.default_rng(seed).normal(size=RUNS))


REGRESSION = Regression.of(inputs(RUNS, 1), losses(), 0.3)


def slow_covariance(mine: Inputs, theirs: Inputs, variances_T: FloatArray, lengths: FloatArray) -> FloatArray:
    """Pair by pair, term by term."""
    found = np.empty((len(mine.said), len(theirs.said)))
    for i in range(len(mine.said)):
        for j in range(len(theirs.said)):
            total = 1 + variances_T[0] * mine.said[i] @ theirs.said[j] + variances_T[1] * mine.linear[i] @ theirs.linear[j]
            pairs = ((mine.near, theirs.near), (mine.far, theirs.far), (mine.said, theirs.said))
            for term, (one, other) in enumerate(pairs):
                s = np.sqrt(5) * np.linalg.norm(one[i] - other[j]) / lengths[term]
                total += variances_T[LINEAR + term] * (1 + s + s**2 / 3) * np.exp(-s)
            found[i, j] = total
    return found


def slow_moments(regression: Regression, asked: Inputs) -> tuple[FloatArray, FloatArray]:
    """Mean (M,) and covariance (M, M) of the mixture of draws, bits per byte, by the textbook's formulas."""
    standard_N = (losses() - regression.center) / regression.scale
    means, covariances = [], []
    for variances_T, noise in zip(regression.variances, regression.noise, strict=True):
        k_NN = slow_covariance(regression.inputs, regression.inputs, variances_T, regression.lengths) + (noise + JITTER) * np.eye(RUNS)
        k_MN = slow_covariance(asked, regression.inputs, variances_T, regression.lengths)
        means.append(k_MN @ np.linalg.solve(k_NN, standard_N))
        covariances.append(slow_covariance(asked, asked, variances_T, regression.lengths) - k_MN @ np.linalg.solve(k_NN, k_MN.T))
    mean_M = regression.counts @ np.array(means)
    around = [
        count * (cov + np.outer(mean - mean_M, mean - mean_M))
        for count, cov, mean in zip(regression.counts, covariances, means, strict=True)
    ]
    return regression.center + regression.scale * mean_M, regression.scale**2 * np.sum(around, axis=0)


def test_moments_are_those_of_the_textbook() -> None:
    asked = inputs(ASKED, 2)
    mean_M, covariance_MM = slow_moments(REGRESSION, asked)
    found_M, variance_M = REGRESSION.moments(asked)
    factor_MM = REGRESSION.joint_factor(asked)
    np.testing.assert_allclose(found_M, mean_M, rtol=1e-9)
    np.testing.assert_allclose(REGRESSION.mean(asked), mean_M, rtol=1e-9)
    np.testing.assert_allclose(variance_M, np.diag(covariance_MM), rtol=1e-6)
    np.testing.assert_allclose(factor_MM @ factor_MM.T, covariance_MM, rtol=1e-5, atol=1e-8 * REGRESSION.scale**2)


def test_draws_of_hyperparameters_differ_in_variances_and_count_to_one() -> None:
    given_runs = inputs(RUNS, 1)
    standard_N = (losses() - losses().mean()) / losses().std()
    draws_SP, counts_S = draw_hyperparameters(*given_runs.terms(given_runs), standard_N)
    assert draws_SP.shape == (2 * PAIRS, len(PRIOR.mean))
    assert counts_S.sum() == pytest.approx(1)
    assert (counts_S > 0).all()
    lengths = slice(TERMS, TERMS + SMOOTH)
    assert (np.ptp(draws_SP[:, lengths], axis=0) == 0).all()
    assert (np.ptp(np.delete(draws_SP, np.arange(TERMS, TERMS + SMOOTH), axis=1), axis=0) > 0.1).all()


@settings(deadline=None, max_examples=25)
@given(st.lists(st.floats(-2, 2), min_size=len(PRIOR.mean), max_size=len(PRIOR.mean)))
def test_gradients_are_those_of_differences(steps: list[float]) -> None:
    theta = PRIOR.mean + np.array(steps) * PRIOR.std / 2
    given_runs = inputs(RUNS, 1)
    args = (*given_runs.terms(given_runs), (losses() - losses().mean()) / losses().std())
    _, gradient = negative_log_posterior(theta, *args)
    for index, step in enumerate(1e-5 * np.eye(len(theta))):
        difference = (negative_log_posterior(theta + step, *args)[0] - negative_log_posterior(theta - step, *args)[0]) / 2e-5
        assert gradient[index] == pytest.approx(difference, rel=1e-4, abs=1e-5)


def test_log_density_left_out_is_that_of_fits_to_the_other_runs() -> None:
    standard_N = (losses() - REGRESSION.center) / REGRESSION.scale
    expected = 0.0
    for left in range(RUNS):
        rest = np.delete(np.arange(RUNS), left)
        densities = []
        for variances_T, noise in zip(REGRESSION.variances, REGRESSION.noise, strict=True):
            k_NN = slow_covariance(REGRESSION.inputs, REGRESSION.inputs, variances_T, REGRESSION.lengths) + (noise + JITTER) * np.eye(RUNS)
            weights_R = np.linalg.solve(k_NN[np.ix_(rest, rest)], k_NN[rest, left])
            mean, variance = weights_R @ standard_N[rest], k_NN[left, left] - weights_R @ k_NN[rest, left]
            densities.append(np.exp(-0.5 * (standard_N[left] - mean) ** 2 / variance) / np.sqrt(variance) / REGRESSION.scale)
        expected += np.log(REGRESSION.counts @ np.array(densities))
    assert REGRESSION.log_density_left_out() == pytest.approx(expected, rel=1e-6)


def test_slopes_are_those_of_differences() -> None:
    asked = inputs(ASKED, 2)
    slopes_ME = REGRESSION.slopes(asked)
    for evaluator, step in enumerate(1e-5 * np.eye(2)):
        up, down = (Inputs(asked.said + sign * step, asked.linear, asked.near, asked.far) for sign in (1, -1))
        np.testing.assert_allclose(slopes_ME[:, evaluator], (REGRESSION.mean(up) - REGRESSION.mean(down)) / 2e-5, rtol=1e-5, atol=1e-8)


def test_losses_that_are_an_evaluators_are_followed_beyond_the_runs() -> None:
    given_runs = inputs(24, 3)
    regression = Regression.of(given_runs, 1 + 0.4 * given_runs.said[:, 1], 0.4)
    asked = inputs(50, 4)
    assert np.abs(regression.mean(asked) - (1 + 0.4 * asked.said[:, 1])).mean() < 0.02


def runs_of(source: Source, count: int, seed: int) -> Swarm:
    schedules = np.random.default_rng(seed).dirichlet(np.ones(3), count)[:, None]
    return Swarm.from_arrays(
        "abc", schedules, ("m",), schedules[:, 0, :1] ** 2 + 1, source, trial_ids=[f"{source.key}-{i}" for i in range(count)]
    )


def both(evaluator_runs: int, trained: int) -> Swarm:
    return Swarm(("a", "b", "c"), runs_of(MERGED, evaluator_runs, 0).table.vstack(runs_of(TRAINED, trained, 1).table))


@pytest.mark.parametrize(("evaluator_runs", "trained"), [(0, 8), (7, 8), (12, 0)])
def test_one_process_stands_in_where_evaluators_or_trained_runs_are_lacking(evaluator_runs: int, trained: int) -> None:
    swarm = both(evaluator_runs, trained)
    asked = Points(("a", "b", "c"), np.full((1, 1, 3), 1 / 3), (TRAINED if trained else MERGED,))
    found, expected = ExpertEnsemble().fit(swarm, ["m"]), MultiSourceGP().fit(swarm, ["m"])
    assert type(found) is type(expected)
    np.testing.assert_array_equal(found.mean(asked), expected.mean(asked))


def test_eight_evaluator_runs_are_enough() -> None:
    assert isinstance(ExpertEnsemble().fit(both(8, 4), ["m"]), FittedExperts)


def test_an_evaluator_of_something_else_is_not_listened_to() -> None:
    """48 trained runs of a smooth law, an evaluator whose losses are drawn at random: the process of the trained runs alone answers, and draws agree with it."""
    noise = np.random.default_rng(5).normal(size=(40, 1))
    merged = runs_of(MERGED, 40, 0)
    merged = Swarm.from_arrays("abc", merged.points().schedules, ("m",), noise, MERGED, trial_ids=merged.trial_ids)
    trained = runs_of(TRAINED, 48, 1)
    fitted = ExpertEnsemble().fit(Swarm(("a", "b", "c"), merged.table.vstack(trained.table)), ["m"])
    assert isinstance(fitted, FittedExperts)
    assert isinstance(fitted.fits[0].regressions[0], SourcesFit)
    schedules = np.random.default_rng(6).dirichlet(np.ones(3), 5)[:, None]
    posterior = fitted.posterior(Points(("a", "b", "c"), np.concatenate([schedules] * 2), (TRAINED,) * 5 + (MERGED,) * 5))
    alone = MultiSourceGP().fit(trained, ["m"]).mean(Points(("a", "b", "c"), schedules, (TRAINED,) * 5))
    np.testing.assert_allclose(posterior.mean[:5], alone, atol=1e-3)
    factor = posterior.factor(0)
    np.testing.assert_allclose((factor**2).sum(axis=1), posterior.std[:, 0] ** 2, rtol=1e-3)
    assert np.abs(factor[:5] @ factor[5:].T).max() == 0, "what the evaluator leaves open says nothing of trained runs"


def test_of_many_runs_those_at_wanted_mixtures_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluator_process, "MOST_RUNS", 10)
    schedules = np.random.default_rng(0).dirichlet(np.ones(3), 50)[:, None]
    wanted = [3, 17, 41]
    rows = some_runs(schedules, schedules[wanted])
    assert len(rows) == 10
    assert {*wanted} <= {*rows.tolist()}
    assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(some_runs(schedules[:9], schedules[wanted]), np.arange(9))
