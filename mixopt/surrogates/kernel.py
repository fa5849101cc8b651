"""The covariance of the Gaussian process and its log posterior density, with analytic gradients.

k(a, b) = 1 + linear a.b / F + matern M(r),  r^2 = sum_f ((a_f - b_f) / lengthscale_f)^2,  M(r) = (1 + s + s^2 / 3) exp(-s), s = sqrt(5) r

over F features in [0, 1], for outputs standardised to mean 0 and variance 1. The leading 1 is a constant mean with a standard normal prior,
integrated out. M is Matern-5/2 (Rasmussen & Williams 2006, eq. 4.17). Gradients of all lengthscales together cost one matrix product,
because sum_ab W_ab (a_f - b_f)^2 = 2 (sum_a a_f^2 W_a. - a_f^T W a_f): no array of size n x n x F is ever made. That makes
one evaluation cost three n^3 operations and little else: about half a second for a whole fit of 512 trials and 34 features.

Legend: N, M points, F features, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import lapack

from mixopt.mixture import FloatArray

# Variance added to the noise, in units of the output's variance: keeps the covariance positive definite when mixtures repeat.
JITTER = 1e-8


@dataclass(frozen=True)
class Hyperparameters:
    """Of one metric: `lengthscales` of shape (F,), and variances in units of the variance of the outputs."""

    lengthscales: FloatArray
    matern: float
    linear: float
    noise: float

    @classmethod
    def from_logs(cls, logs_P: FloatArray) -> Hyperparameters:
        """From natural logarithms: lengthscales, then matern, linear and noise variance."""
        values_P = np.exp(logs_P)
        return cls(values_P[:-3], float(values_P[-3]), float(values_P[-2]), float(values_P[-1]))


@dataclass(frozen=True)
class Prior:
    """Independent normal densities over the logarithms of the hyperparameters: shape (P,) each."""

    mean: FloatArray
    std: FloatArray

    @classmethod
    def for_features(cls, count: int) -> Prior:
        """For `count` features in [0, 1].

        The median lengthscale grows with the root of the number of features, as distances do (Hvarfner et al. 2024, arXiv 2402.02229).
        Their constants (median exp(1.4), spread 1.7) are for cubes; mixtures lie closer together. Median exp(-1) and spread 1 were best or
        level at 16, 32 and 128 runs of the RegMix swarm, all 13 metrics, and gave intervals of 92 to 96% coverage (docs/log.md). The
        noise prior is centred at 2% of the variance, the linear part at 5%; both are wide and neither moved the ranking.
        """
        lengthscales = np.full(count, -1 + 0.5 * np.log(count))
        return cls(np.append(lengthscales, [0.0, -3.0, -4.0]), np.append(np.ones(count), [1.5, 1.5, 1.5]))


def matern_arguments(a_NF: FloatArray, b_MF: FloatArray) -> FloatArray:
    """s = sqrt(5) r between features already divided by their lengthscales, shape (N, M)."""
    squares_NM = np.asarray(a_NF @ b_MF.T)
    squares_NM *= -2
    squares_NM += np.einsum("nf,nf->n", a_NF, a_NF)[:, None]
    squares_NM += np.einsum("mf,mf->m", b_MF, b_MF)[None, :]
    squares_NM *= 5
    np.maximum(squares_NM, 0, out=squares_NM)  # cancellation can leave -1e-16 between equal points
    return np.asarray(np.sqrt(squares_NM, out=squares_NM))


def covariance(a_NF: FloatArray, b_MF: FloatArray, parameters: Hyperparameters) -> FloatArray:
    """Prior covariance of noise-free losses, shape (N, M)."""
    s_NM = matern_arguments(a_NF / parameters.lengthscales, b_MF / parameters.lengthscales)
    k_NM = s_NM / 3
    k_NM += 1
    k_NM *= s_NM
    k_NM += 1
    np.negative(s_NM, out=s_NM)
    k_NM *= np.exp(s_NM, out=s_NM)
    k_NM *= parameters.matern
    k_NM += 1 + (a_NF * (parameters.linear / a_NF.shape[1])) @ b_MF.T
    return k_NM


def variance(a_NF: FloatArray, parameters: Hyperparameters) -> FloatArray:
    """Prior variance of noise-free losses, shape (N,): the diagonal of `covariance`."""
    return np.asarray(1 + parameters.matern + parameters.linear / a_NF.shape[1] * np.einsum("nf,nf->n", a_NF, a_NF))


def negative_log_posterior(
    logs_P: FloatArray,
    features_NF: FloatArray,
    linear_NN: FloatArray,
    outputs_N: FloatArray,
    prior: Prior,
    shape_N: FloatArray | float = 1.0,
) -> tuple[float, FloatArray]:
    """Negative log marginal likelihood (Rasmussen & Williams, eq. 5.8 and 5.9) minus log prior, up to a constant, and its gradient (P,).

    Args:
        linear_NN: a.b / F of the features, which no hyperparameter changes.
        shape_N: noise variance of each point over the noise hyperparameter; 1: the same everywhere.
    """
    parameters = Hyperparameters.from_logs(logs_P)
    scaled_NF = features_NF / parameters.lengthscales
    s_NN = matern_arguments(scaled_NF, scaled_NF)
    decay_NN = np.exp(-s_NN)
    matern_NN = (1 + s_NN + s_NN * s_NN / 3) * decay_NN
    slope_NN = (5 / 3) * (1 + s_NN) * decay_NN  # d matern / d log(lengthscale_f) = slope * (scaled difference)_f^2
    k_NN = 1 + parameters.linear * linear_NN + parameters.matern * matern_NN
    k_NN[np.diag_indices(len(k_NN))] += parameters.noise * shape_N + JITTER

    factor_NN, failed = lapack.dpotrf(k_NN, lower=1)
    assert failed == 0, "a covariance with noise on its diagonal is positive definite"
    half_NN = lapack.dpotri(factor_NN, lower=1)[0]  # zeros above the diagonal, where dpotrf left them
    inverse_NN = half_NN + half_NN.T
    inverse_NN[np.diag_indices(len(inverse_NN))] *= 0.5
    alpha_N = inverse_NN @ outputs_N
    value = 0.5 * outputs_N @ alpha_N + np.log(np.diag(factor_NN)).sum()

    weight_NN = inverse_NN - np.outer(alpha_N, alpha_N)  # d value = 1/2 sum(weight * dK)
    pull_NN = weight_NN * slope_NN
    moments_F = np.einsum("nf,n,nf->f", scaled_NF, pull_NN.sum(axis=1), scaled_NF)
    gradient_P = np.concatenate(
        [
            parameters.matern * (moments_F - np.einsum("nf,nf->f", scaled_NF, pull_NN @ scaled_NF)),
            [
                0.5 * parameters.matern * np.vdot(weight_NN, matern_NN),
                0.5 * parameters.linear * np.vdot(weight_NN, linear_NN),
                0.5 * parameters.noise * (np.diag(weight_NN) * shape_N).sum(),
            ],
        ]
    )
    standard_P = (logs_P - prior.mean) / prior.std
    return float(value + 0.5 * standard_P @ standard_P), gradient_P + standard_P / prior.std
