"""BiMix: c + (sum_j F_j (p_j + eps)^-a_j) (1 + B / s^b) over mixtures p and training tokens s.

The paper (Ge et al. 2024, arXiv 2405.14908) gives each domain's own loss as A / p^a (B / s^b + C) with five parameters, of that domain's share alone. That
form needs to know which domain a metric is of and says nothing of others. Here is its sum over domains, as others use it for any metric (arXiv 2602.12237),
with a constant c and the paper's factor of tokens; with one domain in the sum and c = 0 it is the paper's. Runs of one token count leave the
factor at its prior, which is the single-source form. It has no term for the size, so runs are of one.

`eps` keeps zeros finite, and a fitted one is what makes the law useful on sparse mixtures. Each term depends on one share only, so domains cannot stand in for each other: on RegMix
at 128 runs it ranks Pile-CC by .975 and the mean of 13 metrics by .956 (the power law: .961 and .981), and picks worse mixtures (benchmarks/surrogates.py).
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import bounded_exp
from mixopt.surrogates.scaling_law import EXPONENT_PRIOR, FACTOR_PRIOR, ScalingSurrogate, scale_term

SHARE_FACTOR_PRIOR = (-2.0, 2.0)
"""Mean and std of log F_j."""
SHARE_EXPONENT_PRIOR = (float(np.log(0.15)), 0.7)
"""Of log a_j."""
CONSTANT_PRIOR = (-2.0, 2.0)
EPS_PRIOR = (float(np.log(0.03)), 1.0)
"""Of log eps, in shares."""


class BiMix:
    """Parameters: log F and log a per weight, then c, log B, log b, log eps; of standardised losses."""

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`; the last two inputs are log parameters, which it ignores, and log tokens."""
        weights = inputs - 2
        terms = (
            [SHARE_FACTOR_PRIOR] * weights + [SHARE_EXPONENT_PRIOR] * weights + [CONSTANT_PRIOR, FACTOR_PRIOR, EXPONENT_PRIOR, EPS_PRIOR]
        )
        means, stds = zip(*terms, strict=True)
        return np.array(means), np.array(stds)

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`."""
        count = x_NI.shape[1] - 2
        eps_S11 = bounded_exp(theta_SP[:, None, -1:])
        shifted_SNK = x_NI[:, :count] + eps_S11
        log_p_SNK = np.log(shifted_SNK)
        exponent_S1K = bounded_exp(theta_SP[:, None, count : 2 * count])
        parts_SNK = bounded_exp(theta_SP[:, None, :count] - exponent_S1K * log_p_SNK)
        mixed_SN = parts_SNK.sum(axis=2)
        excess_SN, by_factor_SN, by_exponent_SN = scale_term(theta_SP[:, -3, None], theta_SP[:, -2, None], x_NI[:, -1])
        jacobian_SNP = np.empty((*mixed_SN.shape, theta_SP.shape[1]))
        jacobian_SNP[:, :, :count] = parts_SNK * (1 + excess_SN)[:, :, None]
        jacobian_SNP[:, :, count : 2 * count] = -exponent_S1K * log_p_SNK * jacobian_SNP[:, :, :count]
        jacobian_SNP[:, :, -4] = 1.0
        jacobian_SNP[:, :, -3] = mixed_SN * by_factor_SN
        jacobian_SNP[:, :, -2] = mixed_SN * by_exponent_SN
        jacobian_SNP[:, :, -1] = -(exponent_S1K * jacobian_SNP[:, :, :count] * eps_S11 / shifted_SNK).sum(axis=2)
        return theta_SP[:, -4, None] + mixed_SN * (1 + excess_SN), jacobian_SNP


class BiMixSurrogate(ScalingSurrogate):
    """`BiMix`, fitted per metric."""

    def __init__(self) -> None:
        super().__init__(lambda _observations, _metric: BiMix(), one_size=True)
