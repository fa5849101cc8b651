"""The additive scaling law over size, tokens and mixture: E + 1 / sum_i C_i h_i^g_i + A / N^a + B / D^b.

Shukor et al. 2025, "Scaling Laws for Optimal Data Mixtures" (arXiv 2507.09404), the additive law: 5 + 2k parameters for k domains. The mixture's part
does not depend on size and tokens, so the best mixture does not either. Its first term diverges where every domain that is worth something has no weight;
the published fits saw no weight below .1. From few runs it extrapolates at least as well as the joint law.
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import bounded_exp
from mixopt.surrogates.scales import Sizes
from mixopt.surrogates.scaling_law import E_PRIOR, EXPONENT_PRIOR, FACTOR_PRIOR, ScalingSurrogate, scale_term

LEAST_WEIGHT = 1e-9
LEAST_SUM = 1e-6
WORTH_PRIOR = (0.0, 2.0)
"""Mean and std of log C_i: the mixture's term is of the size of the losses' spread."""
POWER_PRIOR = (float(np.log(0.5)), 0.7)
"""Of log g_i."""


class ScalingAdditive:
    """Parameters: log C and log g per weight, then E, log A, log a, log B, log b; of standardised losses."""

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`; the last two inputs are log parameters and log tokens."""
        weights = inputs - 2
        terms = [WORTH_PRIOR] * weights + [POWER_PRIOR] * weights + [E_PRIOR] + [FACTOR_PRIOR, EXPONENT_PRIOR] * 2
        means, stds = zip(*terms, strict=True)
        return np.array(means), np.array(stds)

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`."""
        weights = x_NI.shape[1] - 2
        value_SN, worth_SNP = worth_term(theta_SP[:, : 2 * weights], x_NI[:, :-2])
        jacobian_SNP = np.empty((*value_SN.shape, theta_SP.shape[1]))
        jacobian_SNP[:, :, : 2 * weights] = worth_SNP
        jacobian_SNP[:, :, 2 * weights] = 1.0
        value_SN = value_SN + theta_SP[:, 2 * weights, None]
        for place, scale_N in ((2 * weights + 1, x_NI[:, -2]), (2 * weights + 3, x_NI[:, -1])):
            term_SN, *slopes = scale_term(theta_SP[:, place, None], theta_SP[:, place + 1, None], scale_N)
            value_SN = value_SN + term_SN
            jacobian_SNP[:, :, place : place + 2] = np.stack(slopes, axis=2)
        return value_SN, jacobian_SNP


def worth_term(theta_SP: FloatArray, h_NK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """1 / sum_i C_i h_i^g_i, shape (S, N), and its derivatives by log C, then log g, shape (S, N, 2 K)."""
    count = h_NK.shape[1]
    log_h_NK = np.log(np.maximum(h_NK, LEAST_WEIGHT))
    power_S1K = bounded_exp(theta_SP[:, count:])[:, None, :]
    parts_SNK = bounded_exp(theta_SP[:, None, :count] + power_S1K * log_h_NK) * (h_NK > 0)
    term_SN = 1 / np.maximum(parts_SNK.sum(axis=2), LEAST_SUM)
    by_worth_SNK = -(term_SN**2)[:, :, None] * parts_SNK
    return term_SN, np.concatenate([by_worth_SNK, by_worth_SNK * power_S1K * log_h_NK], axis=2)


class ScalingAdditiveSurrogate(ScalingSurrogate):
    """`ScalingAdditive`, fitted per metric."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__(lambda _observations, _metric: ScalingAdditive(), sizes)
