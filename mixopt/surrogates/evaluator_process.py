"""What an averaging evaluator says at mixtures that it was not run at: one Gaussian process per metric, of measurements without noise.

Merged weights and ensembled probabilities are linear in the mixture, so their losses are smooth functions of the weights themselves; logarithms, which trained
runs follow (`features`), help where an ensemble lacks the one component that knows a token. Errors relative to the spread of the losses, mean of 19 metrics, nano
components of 8 real domains, with weights and square roots, against the square roots and logarithms of `gaussian_process`: merged .142 and .268 (40 runs), .037
and .147 (105); ensemble .177 and .252 (40), .112 and .095 (80), .072 and .049 (165). Weights alone are good for merges only (.032; ensemble .133). The main
trade-off: exact, so that of more than `MOST_RUNS` runs a part is used.

Legend: N runs, M points, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from mixopt.mixture import FloatArray
from mixopt.surrogates.features import weights
from mixopt.surrogates.gaussian_process import MINIMUM_RELATIVE_SCALE, MINIMUM_VARIANCE, Exact, find_hyperparameters
from mixopt.surrogates.kernel import Hyperparameters, Prior, covariance, variance
from mixopt.surrogates.misfit import factor_with_jitter
from mixopt.surrogates.source_kernel import IntArray

MOST_RUNS, HYPERPARAMETER_RUNS = 1024, 256
LOG_NOISE_PRIOR = (-9.0, 2.0)
"""Of the noise variance, in units of the variance of the losses: an average of components has no seed; what is left is round-off."""


def weights_and_roots(schedules: FloatArray) -> FloatArray:
    """Weights and their square roots, phases side by side: (n, phases, domains) -> (n, 2 * phases * domains), in [0, 1]."""
    shares = weights(schedules)
    return np.concatenate([shares, np.sqrt(shares)], axis=1)


def some_runs(schedules_NPD: FloatArray, wanted_NPD: FloatArray) -> IntArray:
    """Rows of at most MOST_RUNS of an evaluator's runs, ascending: those at `wanted` mixtures first, of the others a random part."""
    if len(schedules_NPD) <= MOST_RUNS:
        return np.arange(len(schedules_NPD))
    wanted = {row.tobytes() for row in wanted_NPD}
    others_N = np.array([row.tobytes() not in wanted for row in schedules_NPD])
    shuffled = np.random.default_rng(0).permutation(len(schedules_NPD))
    return np.sort(shuffled[np.argsort(others_N[shuffled], kind="stable")][:MOST_RUNS])


@dataclass(frozen=True)
class EvaluatorProcess:
    """Of one evaluator and metric. `center` and `scale` are in bits per byte, everything else in units of `scale` around `center`."""

    parameters: Hyperparameters
    center: float
    scale: float
    conditioned: Exact

    @classmethod
    def of(cls, features_NF: FloatArray, outputs_N: FloatArray) -> EvaluatorProcess:
        """Conditioned on losses in bits per byte; hyperparameters are the mode of their posterior."""
        center = float(outputs_N.mean())
        scale = max(float(outputs_N.std()), MINIMUM_RELATIVE_SCALE * (abs(center) or 1.0))
        standard_N = (outputs_N - center) / scale
        rows = np.random.default_rng(0).permutation(len(standard_N))[:HYPERPARAMETER_RUNS]
        plain = Prior.for_features(features_NF.shape[1])
        prior = Prior(np.append(plain.mean[:-1], LOG_NOISE_PRIOR[0]), np.append(plain.std[:-1], LOG_NOISE_PRIOR[1]))
        parameters = find_hyperparameters(features_NF[rows], standard_N[rows], np.ones(len(rows)), prior)
        noise_N = np.full(len(standard_N), parameters.noise)
        return cls(parameters, center, scale, Exact.of(features_NF, standard_N, noise_N, parameters))

    def mean(self, features_MF: FloatArray) -> FloatArray:
        """Standardised, shape (M,)."""
        return self.conditioned.mean(covariance(features_MF, self.conditioned.features, self.parameters))

    def moments(self, features_MF: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and variances, standardised, both (M,)."""
        k_MN = covariance(features_MF, self.conditioned.features, self.parameters)
        left_M = variance(features_MF, self.parameters) - self.conditioned.removed_variance(k_MN)
        return self.conditioned.mean(k_MN), np.maximum(left_M, MINIMUM_VARIANCE)

    def joint_factor(self, features_MF: FloatArray) -> FloatArray:
        """Cholesky factor of the covariance of points, standardised, shape (M, M)."""
        k_MN = covariance(features_MF, self.conditioned.features, self.parameters)
        explained_NM = solve_triangular(self.conditioned.factor, k_MN.T, lower=True)
        return factor_with_jitter(covariance(features_MF, features_MF, self.parameters) - explained_NM.T @ explained_NM)
