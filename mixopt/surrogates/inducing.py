"""A Gaussian process conditioned on thousands of trials through a few hundred inducing mixtures (FITC).

Fully independent training conditional (Snelson & Ghahramani 2006; Quinonero-Candela & Rasmussen 2005, equation 24): given the losses at the inducing
mixtures, which are some of the trials', the trials are independent. Cost is linear in the trials and memory does not grow with them. The main
trade-off: structure finer than the inducing mixtures resolve counts as noise.

Legend: N trials, U inducing mixtures, M points, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

from mixopt.mixture import FloatArray
from mixopt.surrogates.kernel import Hyperparameters, covariance, variance

# Added to the covariance of the inducing mixtures, in units of the outputs' variance: some may be repeats.
INDUCING_JITTER = 1e-6
# Trials per block of a cross-covariance.
BLOCK = 1024


@dataclass(frozen=True)
class Inducing:
    """Conditioned on the trials' outputs through inducing mixtures.

    Attributes:
        features: of the inducing mixtures, shape (U, F).
        factor: of their covariance, lower, shape (U, U).
        information: factor, lower, of I + A A^T, shape (U, U), where A is the covariance with the trials, whitened by both.
        projected: shape (U,).
    """

    features: FloatArray
    factor: FloatArray
    information: FloatArray
    projected: FloatArray

    def mean(self, k_MU: FloatArray) -> FloatArray:
        """Of points, from their covariance with `features`, shape (M,)."""
        weights_U = solve_triangular(self.information, self.projected, lower=True, trans=1)
        return np.asarray(k_MU @ solve_triangular(self.factor, weights_U, lower=True, trans=1))

    def removed_variance(self, k_MU: FloatArray) -> FloatArray:
        """What the outputs removed from the prior variance of points, shape (M,)."""
        prior_UM = solve_triangular(self.factor, k_MU.T, lower=True)
        left_UM = solve_triangular(self.information, prior_UM, lower=True)
        return np.asarray((prior_UM**2).sum(axis=0) - (left_UM**2).sum(axis=0))

    def removed_covariance(self, k_MU: FloatArray) -> FloatArray:
        """What the outputs removed from the prior covariance of points, shape (M, M)."""
        prior_UM = solve_triangular(self.factor, k_MU.T, lower=True)
        left_UM = solve_triangular(self.information, prior_UM, lower=True)
        return np.asarray(prior_UM.T @ prior_UM - left_UM.T @ left_UM)

    def left_out(
        self, features_NF: FloatArray, outputs_N: FloatArray, noise_N: FloatArray, parameters: Hyperparameters, numbers_N: NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray]:
        """Means and variances of the measurements of each fold given the others, both (N,)."""
        white_UN, spread_N = whiten(features_NF, noise_N, self.features, self.factor, parameters)
        scaled_UN, scaled_N = white_UN / np.sqrt(spread_N), outputs_N / np.sqrt(spread_N)
        total_UU, total_U = scaled_UN @ scaled_UN.T, scaled_UN @ scaled_N
        prior_N = variance(features_NF, parameters)
        means_N, variances_N = np.empty((2, len(outputs_N)))
        for fold in np.unique(numbers_N):
            rows = np.flatnonzero(numbers_N == fold)
            information_UU = np.eye(len(total_U)) + total_UU - scaled_UN[:, rows] @ scaled_UN[:, rows].T
            factor_UU = cholesky(information_UU, lower=True)
            projected_U = solve_triangular(factor_UU, total_U - scaled_UN[:, rows] @ scaled_N[rows], lower=True)
            left_UB = solve_triangular(factor_UU, white_UN[:, rows], lower=True)
            means_N[rows] = left_UB.T @ projected_U
            variances_N[rows] = prior_N[rows] - (white_UN[:, rows] ** 2).sum(axis=0) + (left_UB**2).sum(axis=0) + noise_N[rows]
        return means_N, variances_N


def condition(
    features_NF: FloatArray, outputs_N: FloatArray, noise_N: FloatArray, inducing_UF: FloatArray, parameters: Hyperparameters
) -> Inducing:
    """The process given outputs (N,) with noise variances (N,)."""
    k_UU = covariance(inducing_UF, inducing_UF, parameters)
    k_UU[np.diag_indices(len(k_UU))] += INDUCING_JITTER
    factor_UU = cholesky(k_UU, lower=True)
    white_UN, spread_N = whiten(features_NF, noise_N, inducing_UF, factor_UU, parameters)
    scaled_UN = white_UN / np.sqrt(spread_N)
    information_UU = cholesky(np.eye(len(k_UU)) + scaled_UN @ scaled_UN.T, lower=True)
    projected_U = solve_triangular(information_UU, scaled_UN @ (outputs_N / np.sqrt(spread_N)), lower=True)
    return Inducing(inducing_UF, factor_UU, information_UU, projected_U)


def whiten(
    features_NF: FloatArray, noise_N: FloatArray, inducing_UF: FloatArray, factor_UU: FloatArray, parameters: Hyperparameters
) -> tuple[FloatArray, FloatArray]:
    """Covariance of inducing mixtures and trials in units of the former, (U, N), and the variance of each trial that they leave open, noise included (N,)."""
    white_UN = np.empty((len(inducing_UF), len(features_NF)))
    for start in range(0, len(features_NF), BLOCK):
        rows = slice(start, start + BLOCK)
        white_UN[:, rows] = solve_triangular(factor_UU, covariance(inducing_UF, features_NF[rows], parameters), lower=True)
    open_N = np.maximum(variance(features_NF, parameters) - (white_UN**2).sum(axis=0), 0.0)
    return white_UN, open_N + noise_N + INDUCING_JITTER
