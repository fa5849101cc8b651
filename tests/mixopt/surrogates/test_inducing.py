"""The process through inducing mixtures against the exact one, which it becomes when every trial is an inducing mixture."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.mixture import FloatArray
from mixopt.surrogates import gaussian_process
from mixopt.surrogates.features import root_and_log
from mixopt.surrogates.gaussian_process import Exact, GaussianProcess
from mixopt.surrogates.inducing import condition
from mixopt.surrogates.kernel import Hyperparameters, covariance, variance
from mixopt.swarm import Swarm
from mixopt.trial import Source

DOMAINS = ("a", "b", "c", "d", "e")


def mixtures(count: int, seed: int) -> FloatArray:
    weights = np.random.default_rng(seed).dirichlet(np.full(5, 0.7), count)
    weights[weights < 0.02] = 0.0
    return np.asarray((weights / weights.sum(axis=1, keepdims=True))[:, None, :])


def losses(schedules: FloatArray) -> FloatArray:
    return np.asarray(1 + (0.1 + schedules[:, 0] @ np.array([1.0, 0.6, 0.3, 0.2, 0.1])) ** -0.4)


PARAMETERS = Hyperparameters(np.full(10, 1.2), matern=1.0, linear=0.05, noise=0.01)


def standard(count: int, seed: int) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Features, outputs and noise variances of so many trials."""
    outputs = losses(mixtures(count, seed))
    noise = PARAMETERS.noise * np.exp(np.random.default_rng(seed).normal(0, 0.5, count))
    return root_and_log(mixtures(count, seed)), (outputs - outputs.mean()) / outputs.std(), noise


def test_with_every_trial_inducing_it_is_the_exact_process() -> None:
    features, outputs, noise = standard(60, 1)
    asked = root_and_log(mixtures(40, 2))
    k = covariance(asked, features, PARAMETERS)
    exact = Exact.of(features, outputs, noise, PARAMETERS)
    through = condition(features, outputs, noise, features, PARAMETERS)
    np.testing.assert_allclose(through.mean(k), exact.mean(k), atol=2e-4)
    np.testing.assert_allclose(through.removed_variance(k), exact.removed_variance(k), atol=2e-4)
    np.testing.assert_allclose(through.removed_covariance(k), exact.removed_covariance(k), atol=2e-4)
    np.testing.assert_allclose(np.diag(through.removed_covariance(k)), through.removed_variance(k), atol=1e-9)


@pytest.mark.parametrize("kind", ["exact", "inducing"])
def test_left_out_is_what_a_fit_without_the_fold_predicts(kind: str) -> None:
    features, outputs, noise = standard(60, 3)
    numbers = np.arange(60) % 4
    inducing = features[:30]

    def conditioned(rows: FloatArray) -> object:
        if kind == "exact":
            return Exact.of(features[rows], outputs[rows], noise[rows], PARAMETERS)
        return condition(features[rows], outputs[rows], noise[rows], inducing, PARAMETERS)

    means, variances = conditioned(np.arange(60)).left_out(features, outputs, noise, PARAMETERS, numbers)  # type: ignore[attr-defined]
    for fold in range(4):
        rest, rows = np.flatnonzero(numbers != fold), np.flatnonzero(numbers == fold)
        one = conditioned(rest)
        k = covariance(features[rows], one.features, PARAMETERS)  # type: ignore[attr-defined]
        np.testing.assert_allclose(means[rows], one.mean(k), atol=1e-6)  # type: ignore[attr-defined]
        expected = variance(features[rows], PARAMETERS) - one.removed_variance(k) + noise[rows]  # type: ignore[attr-defined]
        np.testing.assert_allclose(variances[rows], expected, atol=1e-6)


def swarm(count: int, seed: int) -> Swarm:
    noisy = losses(mixtures(count, seed)) + 0.01 * np.random.default_rng(seed + 1).normal(size=count)
    return Swarm.from_arrays(DOMAINS, mixtures(count, seed), ("loss",), noisy[:, None], Source("trained", "nano", 10))


def test_many_trials_through_few_inducing_mixtures_predict_as_well_as_the_exact_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """240 trials, 80 inducing: error against the noise-free truth within 1.3 times the exact one's, intervals wider, by a factor of 2 at most."""
    trials, asked = swarm(240, 5), swarm(200, 6).points()
    truth = losses(asked.schedules)
    exact = GaussianProcess().fit(trials, ["loss"]).posterior(asked)
    monkeypatch.setattr(gaussian_process, "EXACT_TRIALS", 100)
    monkeypatch.setattr(gaussian_process, "HYPERPARAMETER_TRIALS", 80)
    through = GaussianProcess().fit(trials, ["loss"]).posterior(asked)
    errors = [float(np.sqrt(np.mean((posterior.mean[:, 0] - truth) ** 2))) for posterior in (through, exact)]
    assert errors[0] < 1.3 * errors[1] + 1e-3
    assert 0.9 < through.std.mean() / exact.std.mean() < 2
    draws = through.sample(2000, seed=0)[:, :, 0]
    assert np.abs(draws.std(axis=0) / through.std[:, 0] - 1).max() < 5 / np.sqrt(2 * 2000)  # five sigma


def test_out_of_fold_of_many_trials_is_close_to_refitting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyperparameters of all trials in place of each fold's: predictions differ by less than a third of their own std, 240 trials."""
    trials = swarm(240, 8)
    _, quick = GaussianProcess().fit_with_out_of_fold(trials, ["loss"], 5, 0)
    monkeypatch.setattr(gaussian_process, "REFIT_TRIALS", 1000)
    _, slow = GaussianProcess().fit_with_out_of_fold(trials, ["loss"], 5, 0)
    assert not np.array_equal(quick.mean, slow.mean)
    assert (np.abs(quick.mean - slow.mean) < slow.std / 3).all()
    np.testing.assert_array_equal(quick.measured, slow.measured)
