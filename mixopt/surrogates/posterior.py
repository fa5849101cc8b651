"""A posterior that is Gaussian per metric: means, standard deviations, and a factor of each covariance for joint draws.

Metrics are fitted one by one, so draws of different metrics are independent; over points they are joint. The factor, which costs
(points)^2 memory or more, is asked for only when somebody samples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray


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
