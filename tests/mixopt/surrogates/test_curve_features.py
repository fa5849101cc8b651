"""Curves: what points before the end add to a process of the end, on losses whose luck at the end the points before it partly know."""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.curve_features import CurveFeatures, FittedCurves
from mixopt.surrogates.gaussian_process import FittedGaussianProcess, GaussianProcess
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

DOMAINS = ("a", "b", "c", "d")
SOURCE = Source("trained", "nano", 1000)
GRID = (250, 500, 1000)
NOISE = 0.06


def truth(weights: FloatArray) -> FloatArray:
    return np.asarray(1 + (0.1 + weights @ np.array([1.0, 0.6, 0.3, 0.1])) ** -0.5)


def swarm(count: int, seed: int, early_signal: float) -> Swarm:
    """Losses at three points. The luck of a run is the same at all of them; before the end the mixture shows `early_signal` of its effect."""
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 0.8), count)
    luck = rng.normal(0, NOISE, (count, 1))
    signal = (truth(weights) - truth(weights).mean())[:, None]
    own = 0.01 * rng.normal(size=(count, 3))
    losses = 3 + signal * np.array([early_signal, early_signal, 1.0]) + luck + own
    return Swarm.from_arrays(DOMAINS, weights[:, None], ("loss",), losses[:, :, None], SOURCE, tokens=GRID)


def error(fitted: FittedGaussianProcess | FittedCurves, seed: int) -> float:
    weights = np.random.default_rng(seed).dirichlet(np.full(4, 0.8), 200)
    found = fitted.mean(Points(DOMAINS, weights[:, None], (SOURCE,) * 200))[:, 0]
    expected = truth(weights)
    return float(np.std((found - found.mean()) - (expected - expected.mean())))


def test_luck_that_early_points_show_is_taken_out_of_the_end() -> None:
    """48 runs; before the end a tenth of the mixture's effect and all of the luck: errors fall by a third at least, mean of four swarms."""
    ratios = []
    for seed in range(4):
        runs = swarm(48, seed, early_signal=0.1)
        curves = CurveFeatures().fit(runs, ["loss"])
        assert isinstance(curves, FittedCurves)
        plain = GaussianProcess().fit(runs, ["loss"])
        ratios.append(error(curves, 100 + seed) / error(plain, 100 + seed))
    assert np.mean(ratios) < 0.67, ratios


def test_points_that_show_the_same_as_the_end_change_little() -> None:
    """All of the effect and all of the luck at every point: nothing to gain, and at most a tenth is lost, mean of four swarms."""
    ratios = []
    for seed in range(4):
        runs = swarm(48, seed, early_signal=1.0)
        ratios.append(error(CurveFeatures().fit(runs, ["loss"]), 100 + seed) / error(GaussianProcess().fit(runs, ["loss"]), 100 + seed))
    assert np.mean(ratios) < 1.1, ratios


def test_the_posterior_has_the_moments_of_its_draws() -> None:
    fitted = CurveFeatures().fit(swarm(40, 3, 0.3), ["loss"])
    weights = np.random.default_rng(5).dirichlet(np.ones(4), 5)
    posterior = fitted.posterior(Points(DOMAINS, weights[:, None], (SOURCE,) * 5))
    draws = posterior.sample(4000, seed=0)
    assert (np.abs(draws.mean(axis=0) - posterior.mean) < 5 * posterior.std / np.sqrt(4000)).all()
    assert (np.abs(draws.var(axis=0) / posterior.std**2 - 1) < 6 * np.sqrt(2 / 4000)).all()


def test_without_points_before_the_end_it_is_the_process() -> None:
    runs = swarm(24, 1, 0.5)
    ends = Swarm.from_arrays(DOMAINS, runs.points().schedules, ("loss",), runs.values(["loss"]), SOURCE)
    assert isinstance(CurveFeatures().fit(ends, ["loss"]), FittedGaussianProcess)
