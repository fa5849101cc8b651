"""The power law c + s (w.p)^-beta with w > 0: the parametric law that transfers best to larger models and to mixtures unlike the swarm's.

A generalization of the log-linear mixing law by one parameter, which it becomes as beta grows (methods/surrogates-measured.md, headline 5). All domains
are worth something, in proportion to w, and more of what is worth much brings less and less. On the RegMix swarm it ranked the shifted 1B table best
of all models tried (.988 to .990 from 64 runs on), and needs more runs than domains. Loss falls in every w.p, so it cannot say that a domain hurts
other than by taking room.
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import ParametricSurrogate, bounded_exp

LEAST_WORTH = 1e-12
"""Keeps the logarithm of w.p finite where a wild step makes every w tiny."""


class PowerLaw:
    """Parameters: log w per input, then c, log s and log beta; of standardised losses."""

    logarithms = slice(0, -3)

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """Worths within a factor of e^2 of each other, exponents around .5: wide, and there only to settle what the data leave open."""
        return np.append(np.zeros(inputs), [-1.0, 0.0, np.log(0.5)]), np.append(np.full(inputs, 2.0), [2.0, 1.5, 1.0])

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `parametric.Law`."""
        worth_SI, beta_S1 = bounded_exp(theta_SP[:, :-3]), bounded_exp(theta_SP[:, -1:])
        sum_SN = np.maximum(worth_SI @ x_NI.T, LEAST_WORTH)
        log_SN = np.log(sum_SN)
        term_SN = bounded_exp(theta_SP[:, -2:-1] - beta_S1 * log_SN)
        jacobian_SNP = np.empty((*term_SN.shape, theta_SP.shape[1]))
        slope_SN = -beta_S1 * term_SN / sum_SN
        np.multiply(slope_SN[:, :, None] * x_NI, worth_SI[:, None, :], out=jacobian_SNP[:, :, :-3])
        jacobian_SNP[:, :, -3] = 1.0
        jacobian_SNP[:, :, -2] = term_SN
        jacobian_SNP[:, :, -1] = -beta_S1 * log_SN * term_SN
        return theta_SP[:, -3:-2] + term_SN, jacobian_SNP


class PowerLawSurrogate(ParametricSurrogate):
    """`PowerLaw`, fitted per metric."""

    def __init__(self) -> None:
        super().__init__(PowerLaw())
