"""The scaling law of effective data: E + A N^-a + (w.h)^-g D^-b, and with repetition, where unique tokens are known.

Every domain's tokens are worth w_i for a metric; their sum is the effective data, and it and the tokens have exponents of their own (from measuring laws
on public tables, methods/surrogates-measured.md, B: there the best of three from three sizes). With `unique_tokens`, the tokens of domain i count as
Muennighoff et al. 2023 (arXiv 2305.16264, equation 5) found for whole corpora, each domain on its own: seen for e > 1 epochs, U unique tokens are worth

    D'_i = U_i (1 + R (1 - exp(-(e_i - 1) / R)))

in place of e_i U_i. R is fitted, with their 15.39 as its prior (all domains share it); runs that repeat nothing leave it there. An assumption: the same R for
all domains and sizes. Reports differ (2 to 20 useful epochs), and harm from extreme repetition is not modelled.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import bounded_exp
from mixopt.surrogates.power_law import LEAST_WORTH
from mixopt.surrogates.scales import Sizes
from mixopt.surrogates.scaling_law import E_PRIOR, EXPONENT_PRIOR, FACTOR_PRIOR, ScalingSurrogate, scale_term

WORTH_PRIOR = (0.0, 2.0)
"""Mean and std of log w_i."""
POWER_PRIOR = (float(np.log(0.3)), 0.7)
"""Of log g."""
HALF_LIFE_PRIOR = (float(np.log(15.387756)), 0.5)
"""Of log R (arXiv 2305.16264)."""


class ScalingEffective:
    """Parameters: log w per weight, then E, log A, log a, log g, log b, and log R with repetition; of standardised losses.

    Args:
        repeats: inputs hold the epochs of each weight's domain after the weights.
    """

    def __init__(self, repeats: bool = False) -> None:
        self.repeats = repeats

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`; the last two inputs are log parameters and log tokens."""
        weights = (inputs - 2) // 2 if self.repeats else inputs - 2
        terms = [WORTH_PRIOR] * weights + [E_PRIOR, FACTOR_PRIOR, EXPONENT_PRIOR, POWER_PRIOR, EXPONENT_PRIOR]
        terms += [HALF_LIFE_PRIOR] if self.repeats else []
        means, stds = zip(*terms, strict=True)
        return np.array(means), np.array(stds)

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`."""
        count = (x_NI.shape[1] - 2) // 2 if self.repeats else x_NI.shape[1] - 2
        worth_S1K = bounded_exp(theta_SP[:, None, :count])
        parts_SNK = worth_S1K * x_NI[:, :count]
        if self.repeats:
            share_SNK, slope_SNK = share_kept(theta_SP[:, -1], x_NI[:, count : 2 * count])
            by_half_life_SN = (parts_SNK * slope_SNK).sum(axis=2)
            parts_SNK = parts_SNK * share_SNK
        sum_SN = np.maximum(parts_SNK.sum(axis=2), LEAST_WORTH)
        log_SN, power_S1 = np.log(sum_SN), bounded_exp(theta_SP[:, count + 3, None])
        size_SN, *size_slopes = scale_term(theta_SP[:, count + 1, None], theta_SP[:, count + 2, None], x_NI[:, -2])
        data_SN, _, by_exponent_SN = scale_term(-power_S1 * log_SN, theta_SP[:, count + 4, None], x_NI[:, -1])
        jacobian_SNP = np.empty((*sum_SN.shape, theta_SP.shape[1]))
        jacobian_SNP[:, :, :count] = (-power_S1 * data_SN / sum_SN)[:, :, None] * parts_SNK
        jacobian_SNP[:, :, count] = 1.0
        jacobian_SNP[:, :, count + 1 : count + 3] = np.stack(size_slopes, axis=2)
        jacobian_SNP[:, :, count + 3] = -power_S1 * log_SN * data_SN
        jacobian_SNP[:, :, count + 4] = by_exponent_SN
        if self.repeats:
            jacobian_SNP[:, :, count + 5] = -power_S1 * data_SN / sum_SN * by_half_life_SN
        return theta_SP[:, count, None] + size_SN + data_SN, jacobian_SNP


def share_kept(log_half_life_S: FloatArray, epochs_NK: FloatArray) -> tuple[FloatArray, FloatArray]:
    """What repeated tokens are worth, as a share of as many new ones, shape (S, N, K), and its derivative by log R; 1 and 0 up to one epoch."""
    half_life_S11 = bounded_exp(log_half_life_S)[:, None, None]
    seen_NK = np.maximum(epochs_NK, 1.0)
    decay_SNK = (seen_NK - 1) / half_life_S11
    rest_SNK = np.exp(-decay_SNK)
    share_SNK = (1 + half_life_S11 * (1 - rest_SNK)) / seen_NK
    return share_SNK, half_life_S11 * (1 - rest_SNK - decay_SNK * rest_SNK) / seen_NK


class ScalingEffectiveSurrogate(ScalingSurrogate):
    """`ScalingEffective`, fitted per metric."""

    def __init__(self, sizes: Sizes | None = None, unique_tokens: Mapping[str, float] | None = None) -> None:
        super().__init__(lambda _observations, _metric: ScalingEffective(unique_tokens is not None), sizes, unique_tokens)
