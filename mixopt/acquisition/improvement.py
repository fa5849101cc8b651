"""Noisy expected improvement over what is best, on draws of what is best: what one more run is expected to lower the least objective by.

Losses at the best measured mixtures and at those under way are drawn from the posterior, since no measurement says what they are; on each draw
improvement over the least of them is an ordinary expected improvement (Letham et al. 2019, arXiv 1706.07094; Balandat et al. 2020, arXiv
1910.06403, section 4 for runs under way). Its logarithm is what is maximized, because far from anything good the value itself is 0 with all its
slopes (Ament et al. 2023, arXiv 2310.20708). For objectives that are sums of losses a draw's improvement is a formula; for the worst case it is
one further draw per path. The main trade-off: noise of the new run does not enter, so a mixture is worth as much where noise is large.

Legend: M points, U units, K metrics, S paths.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx, log_ndtr, logsumexp, softmax

from mixopt.acquisition.beliefs import Beliefs
from mixopt.mixture import FloatArray
from mixopt.space import BoolArray

HALF_LOG_TWO_PI = 0.5 * np.log(2 * np.pi)
# Improvements of a worst case are smoothed over this share of the spread of the bests, so that slopes exist on every draw.
SMOOTH_OVER = 0.05


@dataclass(frozen=True)
class Improvement:
    """Log noisy expected improvement; build it with `over`.

    Attributes:
        beliefs: conditioned on a draw per path of the best measured mixtures and those under way.
        best: least drawn objective of each path, shape (S,).
        normal: of a worst case, one standard normal draw per path and metric, shape (S, K).
    """

    beliefs: Beliefs
    best: FloatArray
    normal: FloatArray

    @classmethod
    def over(cls, beliefs: Beliefs, weights_MD: FloatArray, eligible_M: BoolArray, paths: int, rng: np.random.Generator) -> Improvement:
        """Over the mixtures given; those that are not eligible are drawn and known, but none of them can be the best."""
        losses_MSK = beliefs.draw(weights_MD, paths, rng)
        values_MS = np.where(eligible_M[:, None], beliefs.objective.value(losses_MSK), np.inf)
        normal_SK = rng.standard_normal((paths, len(beliefs.processes)))
        return cls(beliefs.given(weights_MD, losses_MSK), values_MS.min(axis=0), normal_SK)

    def with_point(self, weights_D: FloatArray, eligible: bool, rng: np.random.Generator) -> Improvement:
        """After one more mixture is under way: its loss is drawn on every path."""
        means_MSK, variances_MK = self.beliefs.moments(weights_D[None])
        losses_MSK = means_MSK + np.sqrt(variances_MK)[:, None, :] * rng.standard_normal((1, *self.normal.shape))
        best = np.minimum(self.best, self.beliefs.objective.value(losses_MSK)[0]) if eligible else self.best
        return Improvement(self.beliefs.given(weights_D[None], losses_MSK), best, self.normal)

    def __call__(self, points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Logarithm of the expected improvement (M,) and its derivatives by the units' weights (M, U)."""
        weights_MD = self.beliefs.coordinates.weights(points_MU)
        means_MSK, variances_MK = self.beliefs.moments(weights_MD)
        found = self._of_sum if self.beliefs.linear else self._of_worst
        log_MS, by_mean_MSK, by_variance_MSK = found(means_MSK, variances_MK)
        share_MS = softmax(log_MS, axis=1)[:, :, None]
        by_variance_MK = (share_MS * by_variance_MSK).sum(axis=1)
        values_M = logsumexp(log_MS, axis=1) - np.log(log_MS.shape[1])
        return np.asarray(values_M), self.beliefs.slopes(weights_MD, share_MS * by_mean_MSK, by_variance_MK)

    def values(self, points_MU: FloatArray) -> FloatArray:
        """Values alone, shape (M,)."""
        means_MSK, variances_MK = self.beliefs.moments(self.beliefs.coordinates.weights(points_MU))
        log_MS = (self._of_sum if self.beliefs.linear else self._of_worst)(means_MSK, variances_MK)[0]
        return np.asarray(logsumexp(log_MS, axis=1) - np.log(log_MS.shape[1]))

    def _of_sum(self, means_MSK: FloatArray, variances_MK: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        factors_K = self.beliefs.factors()
        std_M = np.sqrt(variances_MK @ factors_K**2)
        z_MS = (self.best - self.beliefs.objective.value(means_MSK)) / std_M[:, None]
        log_h_MS = log_improvement(z_MS)
        # d log EI / d mean = -Phi(z) / EI, d log EI / d std = phi(z) / EI
        by_mean_MS = -np.exp(log_ndtr(z_MS) - log_h_MS) / std_M[:, None]
        by_std_MS = np.exp(-0.5 * z_MS**2 - HALF_LOG_TWO_PI - log_h_MS) / std_M[:, None]
        by_variance_MSK = by_std_MS[:, :, None] * (0.5 * factors_K**2 / std_M[:, None])[:, None, :]
        return log_h_MS + np.log(std_M)[:, None], by_mean_MS[:, :, None] * factors_K, by_variance_MSK

    def _of_worst(self, means_MSK: FloatArray, variances_MK: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        objective = self.beliefs.objective
        std_MK = np.sqrt(variances_MK)
        losses_MSK = means_MSK + std_MK[:, None, :] * self.normal
        width = SMOOTH_OVER * max(float(np.std(self.best)), 0.1)
        t_MS = (self.best - objective.value(losses_MSK)) / width
        soft_MS = np.logaddexp(0.0, t_MS)
        # Far below the best the softplus is exp(t), whose logarithm is t.
        log_MS = np.log(width) + np.where(t_MS < -30, t_MS, np.log(np.maximum(soft_MS, 1e-300)))
        by_t_MS = np.where(t_MS < -30, 1.0, np.exp(-np.logaddexp(0.0, -t_MS)) / np.maximum(soft_MS, 1e-300))
        by_mean_MSK = (-by_t_MS / width)[:, :, None] * objective.sensitivities(losses_MSK)
        return log_MS, by_mean_MSK, by_mean_MSK * self.normal / (2 * std_MK[:, None, :])


def log_improvement(z: FloatArray) -> FloatArray:
    """log(phi(z) + z Phi(z)), the logarithm of a standard normal's expected improvement, without cancellation (arXiv 2310.20708, appendix A)."""
    low = np.minimum(z, -1.0)
    ratio = np.sqrt(np.pi / 2) * -low * erfcx(-low / np.sqrt(2))
    tail = np.where(low < -1e4, -2 * np.log(-low), np.log(np.maximum(1 - ratio, 1e-300)))
    high = np.maximum(z, -1.0)
    direct = np.log(np.exp(-0.5 * high**2 - HALF_LOG_TWO_PI) + high * np.exp(log_ndtr(high)))
    return np.asarray(np.where(z < -1, -0.5 * low**2 - HALF_LOG_TWO_PI + tail, direct))
