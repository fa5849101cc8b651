"""The best weight of one domain, found in losses at a few weights: with the surrogate that a search uses, so that it is what a search would propose.

Losses of the scarce domain and of the rest are two metrics, each with a Gaussian process of its own, and the objective is their weighted sum. Intervals
are those of the best weight, or of the regret, in joint draws of the posterior. Trade-off: draws of the two metrics are independent, although a lucky
seed is lucky on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

POINTS = 241
"""Weights at which a curve is read, evenly spaced in their logarithm: neighbours differ by 1.6% from .02 to .8."""
DRAWS = 2000
INTERVAL = (0.05, 0.95)


@dataclass(frozen=True)
class Curve:
    """Objective against the weight of the scarce domain.

    Attributes:
        weights: shape (POINTS,).
        mean: posterior mean, shape (POINTS,), bits per byte.
        draws: of the posterior, shape (DRAWS, POINTS).
    """

    weights: FloatArray
    mean: FloatArray
    draws: FloatArray

    @property
    def best(self) -> float:
        """The weight of the least mean."""
        return float(self.weights[self.mean.argmin()])

    @property
    def best_interval(self) -> tuple[float, float]:
        """90% of the draws have their least value in it."""
        low, high = np.quantile(self.weights[self.draws.argmin(axis=1)], INTERVAL)
        return float(low), float(high)

    def at(self, weight: float) -> float:
        """Mean at a weight."""
        return float(np.interp(np.log(weight), np.log(self.weights), self.mean))

    def regret(self, weight: float) -> tuple[float, float, float]:
        """How much worse `weight` is than the best: of the mean, and the 90% interval over draws."""
        index = int(np.abs(np.log(self.weights / weight)).argmin())
        low, high = np.quantile(self.draws[:, index] - self.draws.min(axis=1), INTERVAL)
        return float(self.mean[index] - self.mean.min()), float(low), float(high)


def fit_curve(weights: Sequence[float], losses: FloatArray, importance: Sequence[float], seed: int = 0) -> Curve:
    """The objective `losses @ importance` as a smooth function of the weight.

    Args:
        weights: of the scarce domain, shape (n,); repeats are seeds.
        losses: of scarce domain and rest, shape (n, 2), bits per byte.
        importance: of the two in the objective.
    """
    shares = np.array(weights, dtype=np.float64)
    metrics = ("scarce", "rest")
    source = Source("trained", "nano", 1)
    swarm = Swarm.from_arrays(metrics, _schedules(shares), metrics, losses, source)
    fitted = get_surrogate("gaussian_process").fit(swarm, metrics)
    read = np.geomspace(shares.min(), shares.max(), POINTS)
    posterior = fitted.posterior(Points(metrics, _schedules(read), (source,) * POINTS))
    mixed = np.array(importance, dtype=np.float64)
    return Curve(read, posterior.mean @ mixed, posterior.sample(DRAWS, seed) @ mixed)


def _schedules(shares: FloatArray) -> FloatArray:
    """One phase of two domains, shape (n, 1, 2)."""
    return np.stack([shares, 1 - shares], axis=1)[:, None, :]
