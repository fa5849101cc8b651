"""The process over sources: its gradient, that cheap runs help and unrelated ones do not hurt, and which source is the reference."""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.multi_source_gp import FittedSources, MultiSourceGP
from mixopt.surrogates.source_kernel import (
    SourceHyperparameters,
    negative_log_posterior,
    source_covariance,
    source_prior,
    source_variance,
)
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

DOMAINS = ("a", "b", "c", "d", "e")
METRICS = ("one", "two")
CHEAP, COSTLY = Source("trained", "1M", 10**7), Source("trained", "60M", 10**8)


def mixtures(count: int, seed: int) -> FloatArray:
    weights = np.random.default_rng(seed).dirichlet(np.full(5, 0.7), count)
    weights[weights < 0.02] = 0
    return (weights / weights.sum(axis=1, keepdims=True))[:, None, :]


def truth(schedules: FloatArray, seed: int) -> FloatArray:
    worth = np.exp(np.random.default_rng(seed).normal(0, 1, (2, 5)))
    return np.asarray(1 + (0.05 + schedules[:, 0] @ (worth / worth.max(axis=1, keepdims=True)).T) ** -0.3)


def part(source: Source, count: int, seed: int, law: int, level: float = 0.0) -> Swarm:
    schedules = mixtures(count, seed)
    losses = truth(schedules, law)
    losses = losses + level + 0.05 * losses.std(axis=0) * np.random.default_rng(seed + 500).normal(size=losses.shape)
    return Swarm.from_arrays(DOMAINS, schedules, METRICS, losses, source, trial_ids=[f"{source.size}-{row:03d}" for row in range(count)])


def error(swarm: Swarm, name: str, law: int) -> float:
    asked = Points(DOMAINS, mixtures(300, 900), (COSTLY,) * 300)
    found = get_surrogate(name).fit(swarm, METRICS).mean(asked)
    return float(np.sqrt(np.mean((found - truth(asked.schedules, law)) ** 2)))


def both(cheap: Swarm, costly: Swarm) -> Swarm:
    return Swarm(DOMAINS, cheap.table.vstack(costly.table))


def test_gradient_is_that_of_the_density() -> None:
    rng = np.random.default_rng(0)
    features, at, outputs = rng.uniform(0, 1, (14, 3)), np.array([0] * 8 + [1] * 4 + [2] * 2), rng.normal(size=14)
    prior = source_prior(3, 3)
    theta, linear = prior.mean + 0.3 * rng.standard_normal(len(prior.mean)), features @ features.T / 3
    _, gradient = negative_log_posterior(theta, features, at, linear, outputs, prior)
    for place, found in enumerate(gradient):
        step = np.zeros(len(theta))
        step[place] = 1e-6
        above, below = (negative_log_posterior(theta + sign * step, features, at, linear, outputs, prior)[0] for sign in (1, -1))
        np.testing.assert_allclose(found, (above - below) / 2e-6, rtol=1e-5, atol=1e-6)


def test_covariance_is_what_the_sum_of_processes_has() -> None:
    """Entry by entry: rho_i rho_j (1 + linear a.b / F + matern M) + [same source] (level + delta M)."""
    rng = np.random.default_rng(1)
    features, at = rng.uniform(0, 1, (6, 2)), np.array([0, 0, 1, 1, 2, 2])
    own = SourceHyperparameters(np.array([0.5, 0.8]), 1.3, 0.2, np.full(3, 0.01), np.array([1.0, 0.7, -0.2]), np.array([0.0, 0.1, 0.4]))
    found = source_covariance(features, at, features, at, own)
    for i in range(6):
        for j in range(6):
            s = np.sqrt(5 * (((features[i] - features[j]) / own.lengthscales) ** 2).sum())
            matern = (1 + s + s * s / 3) * np.exp(-s)
            expected = own.rho[at[i]] * own.rho[at[j]] * (1 + 0.2 * features[i] @ features[j] / 2 + 1.3 * matern)
            if at[i] == at[j]:
                expected += (4.0 if at[i] else 0.0) + own.delta[at[i]] * matern
            np.testing.assert_allclose(found[i, j], expected, atol=1e-12)
    np.testing.assert_allclose(np.diag(found), source_variance(features, at, own), atol=1e-12)


def test_cheap_runs_help_the_costly_source() -> None:
    """12 runs and 128 cheap ones of the same law at another level: less than a third of the error of the 12 alone (measured: a sixth)."""
    costly = part(COSTLY, 12, 100, law=99)
    assert error(both(part(CHEAP, 128, 200, law=99, level=1.0), costly), "multi_source_gp", 99) < error(costly, "gaussian_process", 99) / 3


def test_unrelated_cheap_runs_do_not_hurt() -> None:
    """Six proxies that follow other laws, 12 runs of the target: on average within 5% of the error without them."""
    ratios = []
    for seed in range(6):
        costly = part(COSTLY, 12, 100 + seed, law=99)
        ratios.append(
            error(both(part(CHEAP, 128, 200 + seed, law=5 + seed, level=1.0), costly), "multi_source_gp", 99)
            / error(costly, "gaussian_process", 99)
        )
    assert np.mean(ratios) < 1.05


def test_the_reference_is_the_source_of_most_mixtures() -> None:
    fitted = MultiSourceGP().fit(both(part(CHEAP, 6, 1, law=1), part(COSTLY, 20, 2, law=1)), METRICS)
    assert isinstance(fitted, FittedSources)
    assert fitted.sources == (COSTLY, CHEAP)
    assert fitted.costliest == COSTLY
    np.testing.assert_array_equal(fitted.noise_std, fitted.noise_at(Points(DOMAINS, mixtures(1, 0), (COSTLY,)))[0])
