"""The joint scaling law: as the additive one, and the factors of size and tokens depend on the mixture.

E + 1 / sum_i C_i h_i^g_i + A_h / N^a + B_h / D^b with A_h = (sum_i CA_i h_i)^gA and B_h = (sum_i CB_i h_i)^gB: Shukor et al. 2025 (arXiv 2507.09404), the joint
law, 5 + 4k parameters for k domains. The best mixture may move with scale. It fits best where it was fitted, and from two sizes extrapolates worst of
all laws measured (methods/surrogates-measured.md, B: 4.8% at 410M where the additive law has 3.1%): wants three sizes.
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import bounded_exp
from mixopt.surrogates.scales import Sizes
from mixopt.surrogates.scaling_additive import POWER_PRIOR, WORTH_PRIOR, worth_term
from mixopt.surrogates.scaling_law import E_PRIOR, EXPONENT_PRIOR, FACTOR_PRIOR, ScalingSurrogate

MIXED_POWER_PRIOR = (1.0, 0.5)
"""Mean and std of gA and gB: near 1 each domain has a factor of its own and a mixture their mean."""
LEAST_FACTOR = 1e-9


class ScalingJoint:
    """Parameters: log C, log g, log CA, log CB per weight, then E, gA, log a, gB, log b; of standardised losses."""

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`; the last two inputs are log parameters and log tokens."""
        weights = inputs - 2
        terms = [WORTH_PRIOR] * weights + [POWER_PRIOR] * weights + [FACTOR_PRIOR] * 2 * weights
        terms += [E_PRIOR] + [MIXED_POWER_PRIOR, EXPONENT_PRIOR] * 2
        means, stds = zip(*terms, strict=True)
        return np.array(means), np.array(stds)

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`."""
        h_NK = x_NI[:, :-2]
        count = h_NK.shape[1]
        value_SN, worth_SNP = worth_term(theta_SP[:, : 2 * count], h_NK)
        jacobian_SNP = np.empty((*value_SN.shape, theta_SP.shape[1]))
        jacobian_SNP[:, :, : 2 * count] = worth_SNP
        jacobian_SNP[:, :, 4 * count] = 1.0
        value_SN = value_SN + theta_SP[:, 4 * count, None]
        for scale in (0, 1):
            factors, power = slice((2 + scale) * count, (3 + scale) * count), 4 * count + 1 + 2 * scale
            parts_SNK = bounded_exp(theta_SP[:, None, factors]) * h_NK
            sum_SN = np.maximum(parts_SNK.sum(axis=2), LEAST_FACTOR)
            exponent_S1, scale_N = bounded_exp(theta_SP[:, power + 1, None]), x_NI[:, scale - 2]
            power_S1 = theta_SP[:, power, None]
            term_SN = bounded_exp(power_S1 * np.log(sum_SN) - exponent_S1 * scale_N)
            value_SN = value_SN + term_SN
            jacobian_SNP[:, :, factors] = (term_SN * power_S1 / sum_SN)[:, :, None] * parts_SNK
            jacobian_SNP[:, :, power] = np.log(sum_SN) * term_SN
            jacobian_SNP[:, :, power + 1] = -exponent_S1 * scale_N * term_SN
        return value_SN, jacobian_SNP


class ScalingJointSurrogate(ScalingSurrogate):
    """`ScalingJoint`, fitted per metric."""

    def __init__(self, sizes: Sizes | None = None) -> None:
        super().__init__(lambda _observations, _metric: ScalingJoint(), sizes)
