"""A posterior that is Gaussian per metric: means, standard deviations, and a factor of each covariance for joint draws.

Metrics are fitted one by one, so draws of different metrics are independent; over points they are joint. The factor, which costs
(points)^2 memory or more, is asked for only when somebody samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Posterior

# Where a posterior can only be sampled: the standard deviation is then known within 1.6%.
DRAWS = 2000


def difference_variance(posterior: Posterior, reference: int) -> FloatArray:
    """Variance of the noise-free loss at each point minus that at the point number `reference`, shape (n, metrics).

    Exact where the posterior has a method of this name, so that a point's does not depend on which others are asked about; else from draws.
    """
    known: Callable[[int], FloatArray] | None = getattr(posterior, "difference_variance", None)
    if known is not None:
        return known(reference)
    draws = posterior.sample(DRAWS, 0)
    return np.asarray((draws - draws[:, [reference]]).var(axis=0))


@dataclass(frozen=True)
class GaussianPosterior:
    """Predicted losses in bits per byte.

    Attributes:
        mean: shape (n, metrics).
        std: of the noise-free loss, shape (n, metrics), positive.
        factor: number of a metric -> F of shape (n, rank) with F F^T the covariance of its noise-free losses.
    """

    mean: FloatArray
    std: FloatArray
    factor: Callable[[int], FloatArray]

    def sample(self, count: int, seed: int) -> FloatArray:
        """Draws of shape (count, n, metrics), joint over points; meant for up to a few thousand points."""
        draws = np.empty((count, *self.mean.shape))
        for metric in range(self.mean.shape[1]):
            factor = self.factor(metric)
            normal = np.random.default_rng([seed, metric]).standard_normal((count, factor.shape[1]))
            draws[:, :, metric] = self.mean[:, metric] + normal @ factor.T
        return draws

    def difference_variance(self, reference: int) -> FloatArray:
        """See the function of this name."""
        factors = (self.factor(metric) for metric in range(self.mean.shape[1]))
        return np.stack([((factor - factor[reference]) ** 2).sum(axis=1) for factor in factors], axis=1)
