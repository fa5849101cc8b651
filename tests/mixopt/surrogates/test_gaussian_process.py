"""The Gaussian process against slow references: the kernel by loops, its gradient by differences, the posterior by the textbook formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.mixture import FloatArray
from mixopt.surrogates.features import root_and_log
from mixopt.surrogates.gaussian_process import GaussianProcess, factor_with_jitter
from mixopt.surrogates.kernel import JITTER, Hyperparameters, Prior, covariance, negative_log_posterior, variance
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)
DOMAINS = ("a", "b", "c", "d")


def slow_kernel(a: FloatArray, b: FloatArray, parameters: Hyperparameters) -> float:
    distance = math.sqrt(sum(((x - y) / scale) ** 2 for x, y, scale in zip(a, b, parameters.lengthscales, strict=True)))
    s = math.sqrt(5) * distance
    product = sum(x * y for x, y in zip(a, b, strict=True)) / len(a)
    return 1 + parameters.linear * product + parameters.matern * (1 + s + s * s / 3) * math.exp(-s)


def mixtures(count: int, seed: int) -> FloatArray:
    return np.random.default_rng(seed).dirichlet(np.full(len(DOMAINS), 0.8), count)[:, None, :]


def loss(schedules: FloatArray) -> FloatArray:
    return 1 + (0.05 + schedules[:, 0] @ np.array([1.0, 0.4, 0.1, 0.02])) ** -0.3


def swarm_of(schedules: FloatArray, values: FloatArray) -> Swarm:
    return Swarm.from_arrays(DOMAINS, schedules, ["m"], values[:, None], SOURCE)


def points_of(schedules: FloatArray) -> Points:
    return Points(DOMAINS, schedules, (SOURCE,) * len(schedules))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7))
def test_covariance_is_the_formula_and_positive_semidefinite(seed: int, features: int) -> None:
    random = np.random.default_rng(seed)
    parameters = Hyperparameters.from_logs(random.normal(size=features + 3))
    a, b = random.random((6, features)), random.random((4, features))
    slow = np.array([[slow_kernel(x, y, parameters) for y in b] for x in a])
    np.testing.assert_allclose(covariance(a, b, parameters), slow, rtol=1e-7)
    own = covariance(a, a, parameters)
    # Equal points come out of a difference of squares: r is off by the root of round-off, and Matern-5/2 is flat there.
    np.testing.assert_allclose(np.diag(own), variance(a, parameters), rtol=1e-9)
    np.testing.assert_allclose(own, own.T, rtol=1e-9)
    assert np.linalg.eigvalsh(own).min() > -1e-9 * own.max()


def test_gradient_agrees_with_differences() -> None:
    random = np.random.default_rng(0)
    features = random.random((25, 5))
    outputs = random.normal(size=25)
    prior = Prior.for_features(5)
    linear = features @ features.T / 5
    logs = prior.mean + 0.3 * random.normal(size=8)
    gradient = negative_log_posterior(logs, features, linear, outputs, prior)[1]
    step = 1e-5
    for index in range(8):
        shift = step * np.eye(8)[index]
        up = negative_log_posterior(logs + shift, features, linear, outputs, prior)[0]
        down = negative_log_posterior(logs - shift, features, linear, outputs, prior)[0]
        assert gradient[index] == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-6)


def test_value_is_the_log_density_of_outputs_and_hyperparameters() -> None:
    """Differences between two hyperparameter settings, because the value is defined up to a constant."""
    from scipy.stats import multivariate_normal, norm

    random = np.random.default_rng(1)
    features, outputs = random.random((9, 3)), random.normal(size=9)
    prior = Prior.for_features(3)
    fast, slow = [], []
    for _ in range(2):
        logs = prior.mean + random.normal(size=6)
        parameters = Hyperparameters.from_logs(logs)
        k = np.array([[slow_kernel(x, y, parameters) for y in features] for x in features])
        k += (parameters.noise + JITTER) * np.eye(9)
        slow.append(-multivariate_normal(cov=k).logpdf(outputs) - norm(prior.mean, prior.std).logpdf(logs).sum())
        fast.append(negative_log_posterior(logs, features, features @ features.T / 3, outputs, prior)[0])
    assert fast[0] - fast[1] == pytest.approx(slow[0] - slow[1], rel=1e-9)


def test_posterior_is_the_textbook_formula() -> None:
    schedules = mixtures(15, 0)
    asked = mixtures(6, 1)
    fitted = GaussianProcess().fit(swarm_of(schedules, loss(schedules)), ["m"])
    fit = fitted.fits[0]
    outputs = (loss(schedules) - loss(schedules).mean()) / loss(schedules).std()
    x, z = root_and_log(schedules), root_and_log(asked)
    k_xx = np.array([[slow_kernel(p, q, fit.parameters) for q in x] for p in x]) + (fit.parameters.noise + JITTER) * np.eye(15)
    k_zx = np.array([[slow_kernel(p, q, fit.parameters) for q in x] for p in z])
    k_zz = np.array([[slow_kernel(p, q, fit.parameters) for q in z] for p in z])
    mean = loss(schedules).mean() + loss(schedules).std() * (k_zx @ np.linalg.solve(k_xx, outputs))
    joint = loss(schedules).var() * (k_zz - k_zx @ np.linalg.solve(k_xx, k_zx.T))

    posterior = fitted.posterior(points_of(asked))
    factor = posterior.factor(0)
    np.testing.assert_allclose(posterior.mean[:, 0], mean, rtol=1e-6)
    np.testing.assert_allclose(posterior.std[:, 0] ** 2, np.diag(joint), rtol=1e-3)
    np.testing.assert_allclose(factor @ factor.T, joint, atol=1e-4 * np.diag(joint).max())
    assert fitted.noise_std[0] == pytest.approx(loss(schedules).std() * math.sqrt(fit.parameters.noise))


def test_hyperparameters_are_a_mode() -> None:
    """No step of 0.05 along any axis improves the posterior by more than the optimizer's tolerance allows."""
    schedules = mixtures(40, 2)
    outputs = loss(schedules) + 0.01 * np.random.default_rng(3).normal(size=40)
    fitted = GaussianProcess().fit(swarm_of(schedules, outputs), ["m"])
    parameters = fitted.fits[0].parameters
    logs = np.log(np.append(parameters.lengthscales, [parameters.matern, parameters.linear, parameters.noise]))
    x = root_and_log(schedules)
    prior, linear = Prior.for_features(x.shape[1]), x @ x.T / x.shape[1]
    standard = (outputs - outputs.mean()) / outputs.std()
    best = negative_log_posterior(logs, x, linear, standard, prior)[0]
    for step in 0.05 * np.concatenate([np.eye(len(logs)), -np.eye(len(logs))]):
        assert negative_log_posterior(logs + step, x, linear, standard, prior)[0] > best - 1e-3


def test_spread_is_smaller_at_the_data_than_far_away() -> None:
    schedules = mixtures(30, 4)
    schedules[:, :, 3] *= 0.05
    schedules /= schedules.sum(axis=2, keepdims=True)
    fitted = GaussianProcess().fit(swarm_of(schedules, loss(schedules)), ["m"])
    corner = np.array([[[0.0, 0.0, 0.0, 1.0]]])
    assert fitted.posterior(points_of(corner)).std[0, 0] > 3 * fitted.posterior(points_of(schedules)).std.max()


def test_more_trials_narrow_the_posterior() -> None:
    asked = points_of(mixtures(50, 6))
    spreads = []
    for count in (10, 40, 160):
        schedules = mixtures(count, 5)
        spreads.append(GaussianProcess().fit(swarm_of(schedules, loss(schedules)), ["m"]).posterior(asked).std.mean())
    assert spreads[0] > 2 * spreads[1] > 4 * spreads[2]


def test_swarm_with_one_mixture_only_still_measures_noise() -> None:
    schedules = np.repeat(mixtures(1, 7), 40, axis=0)
    outputs = 2 + 0.1 * np.random.default_rng(8).normal(size=40)
    fitted = GaussianProcess().fit(swarm_of(schedules, outputs), ["m"])
    assert fitted.noise_std[0] == pytest.approx(outputs.std(), rel=0.1)
    assert fitted.mean(points_of(schedules[:1]))[0, 0] == pytest.approx(outputs.mean(), abs=0.01)


def test_factor_of_a_singular_covariance() -> None:
    singular = np.ones((5, 5))
    factor = factor_with_jitter(singular)
    np.testing.assert_allclose(factor @ factor.T, singular, atol=1e-8)
    assert (singular == 1).all(), "the argument is left as it was"
