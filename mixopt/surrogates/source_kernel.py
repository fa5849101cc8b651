"""The covariance of a process over mixtures and sources, and its log posterior density with analytic gradients.

Losses at source s: f_s(p) = level_s + rho_s g(p) + d_s(p), linear co-kriging (Kennedy & O'Hagan 2000) with one reference source, whose rho is 1 and whose level
and d are none. g has the covariance of the single-source process (`kernel`); d_s is a process of its own per source, of variance delta_s, with g's lengthscales;
level_s is normal with variance `LEVEL_VARIANCE`. So, with C = 1 + linear a.b / F + matern M(a, b),

    K_ij = rho_i rho_j C_ij + [s_i = s_j] (level_i + delta_i M_ij) + [i = j] noise_i

Few numbers are learned per source, three, because a target source has few runs. With rho = 0 a source stands alone but for the lengthscales.

Legend: N, M points, F features, P parameters, S sources (the reference is 0), T = S - 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from mixopt.mixture import FloatArray
from mixopt.surrogates.kernel import JITTER, Prior, matern_arguments

IntArray = NDArray[np.int64]
LEVEL_VARIANCE = 4.0
"""Of a source's level about its own mean, in units of the reference's variance: its few runs may lie on one side of g."""
RHO_PRIOR = (1.0, 0.5)
"""Mean and std: sources mostly agree, and nothing forces them to."""
LOG_DELTA_PRIOR = (-3.0, 1.5)
LOG_DELTA_OF_AVERAGES = (-1.0, 1.0)
"""Averages of components err more than smaller proxies do: a rank correlation of .8 with trained proxies leaves a third of the variance."""
LOG_NOISE_OF_AVERAGES, LOG_NOISE_BESIDE = (-9.0, 1.5), (-2.5, 1.0)
"""Averages have none of their own, and a few trained runs beside them little to show it by: a noise taken for small would be a bias of the averages."""


@dataclass(frozen=True)
class SourceHyperparameters:
    """Of one metric; variances in units of the variance of the reference source's losses.

    Attributes:
        lengthscales: shape (F,).
        matern, linear: of g.
        noise: per source, shape (S,).
        rho: shape (S,), 1 for the reference.
        delta: shape (S,), 0 for the reference.
    """

    lengthscales: FloatArray
    matern: float
    linear: float
    noise: FloatArray
    rho: FloatArray
    delta: FloatArray

    @classmethod
    def from_vector(cls, theta_P: FloatArray, features: int) -> SourceHyperparameters:
        """From logarithms of lengthscales, matern, linear and noises, then rho, then log delta."""
        others = (len(theta_P) - features - 3) // 3
        positive_P = np.exp(theta_P)
        start = features + 3 + others
        rho_S = np.append(1.0, theta_P[start : start + others])
        delta_S = np.append(0.0, positive_P[start + others :])
        shared = positive_P[:features], float(positive_P[features]), float(positive_P[features + 1])
        return cls(*shared, positive_P[features + 2 : start], rho_S, delta_S)


@dataclass(frozen=True)
class Averages:
    """Where averages of components are among the sources: what is expected of each source.

    Attributes:
        are: which sources are averages, shape (S,).
        units: how far each source's losses spread, shape (S,), in the reference's spread: averages compress or stretch what trained proxies show, so what is
            expected of a source is relative to its own.
    """

    are: NDArray[np.bool_]
    units: FloatArray


def source_prior(features: int, sources: int, averages: Averages | None = None) -> Prior:
    """Of the vector of `SourceHyperparameters.from_vector`: the single-source prior, and what sources add."""
    base, others = Prior.for_features(features), sources - 1
    own = np.ones(others) if averages is None else averages.units[1:]
    delta = LOG_DELTA_PRIOR if averages is None else LOG_DELTA_OF_AVERAGES
    noise = [(float(base.mean[-1]), float(base.std[-1]))] * sources
    if averages is not None:
        noise = [LOG_NOISE_OF_AVERAGES if is_average else LOG_NOISE_BESIDE for is_average in averages.are]
    noise_S = np.array(noise) + np.stack([np.append(0.0, 2 * np.log(own)), np.zeros(sources)], axis=1)
    means = [*(RHO_PRIOR[0] * own), *(delta[0] + 2 * np.log(own))]
    stds = [*(RHO_PRIOR[1] * own), *([delta[1]] * others)]
    return Prior(np.concatenate([base.mean[:-1], noise_S[:, 0], means]), np.concatenate([base.std[:-1], noise_S[:, 1], stds]))


def source_covariance(a_NF: FloatArray, at_N: IntArray, b_MF: FloatArray, at_M: IntArray, parameters: SourceHyperparameters) -> FloatArray:
    """Prior covariance of noise-free losses, shape (N, M); `at` are numbers of sources."""
    s_NM = matern_arguments(a_NF / parameters.lengthscales, b_MF / parameters.lengthscales)
    matern_NM = (1 + s_NM + s_NM * s_NM / 3) * np.exp(-s_NM)
    shared_NM = 1 + parameters.matern * matern_NM + (a_NF * (parameters.linear / a_NF.shape[1])) @ b_MF.T
    own_S, level_S = parameters.delta, _levels(len(parameters.rho))
    same_NM = np.equal.outer(at_N, at_M)
    own_NM = np.where(same_NM, level_S[at_N][:, None] + own_S[at_N][:, None] * matern_NM, 0.0)
    return np.asarray(parameters.rho[at_N][:, None] * parameters.rho[at_M] * shared_NM + own_NM)


def source_variance(a_NF: FloatArray, at_N: IntArray, parameters: SourceHyperparameters) -> FloatArray:
    """The diagonal of `source_covariance`, shape (N,)."""
    shared_N = 1 + parameters.matern + parameters.linear / a_NF.shape[1] * np.einsum("nf,nf->n", a_NF, a_NF)
    return np.asarray(parameters.rho[at_N] ** 2 * shared_N + _levels(len(parameters.rho))[at_N] + parameters.delta[at_N])


def _levels(sources: int) -> FloatArray:
    return np.append(0.0, np.full(sources - 1, LEVEL_VARIANCE))


def negative_log_posterior(
    theta_P: FloatArray, features_NF: FloatArray, at_N: IntArray, linear_NN: FloatArray, outputs_N: FloatArray, prior: Prior
) -> tuple[float, FloatArray]:
    """Negative log marginal likelihood minus log prior, up to a constant, and its gradient (P,); as `kernel.negative_log_posterior`.

    Args:
        linear_NN: a.b / F of the features.
    """
    parameters = SourceHyperparameters.from_vector(theta_P, features_NF.shape[1])
    sources = len(parameters.rho)
    scaled_NF = features_NF / parameters.lengthscales
    s_NN = matern_arguments(scaled_NF, scaled_NF)
    decay_NN = np.exp(-s_NN)
    matern_NN = (1 + s_NN + s_NN * s_NN / 3) * decay_NN
    shared_NN = 1 + parameters.linear * linear_NN + parameters.matern * matern_NN
    same_NN, rho_N = np.equal.outer(at_N, at_N), parameters.rho[at_N]
    both_NN = np.outer(rho_N, rho_N)
    k_NN = both_NN * shared_NN + same_NN * (_levels(sources)[at_N][:, None] + parameters.delta[at_N][:, None] * matern_NN)
    k_NN[np.diag_indices(len(k_NN))] += parameters.noise[at_N] + JITTER

    factor_NN, failed = lapack.dpotrf(k_NN, lower=1)
    if failed:  # rounding at an extreme step of the search: a value that no step is taken to
        return 1e25, np.zeros_like(theta_P)
    inverse_NN = lapack.dpotri(factor_NN, lower=1)[0]
    inverse_NN = np.tril(inverse_NN) + np.tril(inverse_NN, -1).T
    alpha_N = inverse_NN @ outputs_N
    value = 0.5 * outputs_N @ alpha_N + np.log(np.diag(factor_NN)).sum()

    weight_NN = inverse_NN - np.outer(alpha_N, alpha_N)  # d value = 1/2 sum(weight * dK)
    amplitude_NN = both_NN * parameters.matern + same_NN * parameters.delta[at_N][:, None]
    pull_NN = weight_NN * amplitude_NN * (5 / 3) * (1 + s_NN) * decay_NN
    moments_F = np.einsum("nf,n,nf->f", scaled_NF, pull_NN.sum(axis=1), scaled_NF)
    by_length_F = moments_F - np.einsum("nf,nf->f", scaled_NF, pull_NN @ scaled_NF)
    by_shared = [
        0.5 * scale * np.vdot(weight_NN * both_NN, part) for scale, part in ((parameters.matern, matern_NN), (parameters.linear, linear_NN))
    ]
    by_noise_S = 0.5 * parameters.noise * np.bincount(at_N, np.diag(weight_NN), sources)
    by_rho_S = np.bincount(at_N, (weight_NN * shared_NN) @ rho_N, sources)
    by_delta_S = 0.5 * parameters.delta * np.bincount(at_N, (weight_NN * matern_NN * same_NN).sum(axis=1), sources)
    gradient_P = np.concatenate([by_length_F, by_shared, by_noise_S, by_rho_S[1:], by_delta_S[1:]])
    standard_P = (theta_P - prior.mean) / prior.std
    return float(value + 0.5 * standard_P @ standard_P), gradient_P + standard_P / prior.std
