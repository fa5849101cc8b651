"""An exact Gaussian process per metric on sqrt and log features: the default surrogate, the most accurate at every swarm size measured.

Written on LAPACK instead of BoTorch because the fit is the inner loop of a search: analytic gradients make it 25 to 350 times cheaper than
`fit_gpytorch_mll` at equal accuracy, free of global random state and of torch (numbers in docs/decisions.md). The trade-off: cost grows
with the cube of the number of trials, about half a CPU-second per metric at 512; beyond a few thousand trials another surrogate is wanted.

Hyperparameters are the mode of their posterior, found by L-BFGS from the prior's mode: no random restarts, so a fit is a pure function of
the swarm. BLAS is held to one thread while fitting: threads slow matrices this small several times over (many times when cores are busy),
and their number would change the last digits. Repeats of a mixture stay separate rows; they are what tells noise from signal.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

from mixopt.mixture import FloatArray
from mixopt.surrogates.features import root_and_log
from mixopt.surrogates.kernel import JITTER, Hyperparameters, Prior, covariance, negative_log_posterior, variance
from mixopt.surrogates.observations import Observations
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm

# Logarithms of hyperparameters stay within so many prior standard deviations: far out the density is flat and L-BFGS can overshoot.
SEARCH_STDS = 6.0
MAX_ITERATIONS = 200
# Stops when an iteration improves the log posterior by less than this, relative: 1e-6 and 1e-9 give the same ranking to 1e-4.
TOLERANCE = 1e-6
# A constant metric has no scale of its own; this one, relative to its value, keeps arithmetic finite and the std positive.
MINIMUM_RELATIVE_SCALE = 1e-8
# Least posterior variance in units of the output's variance: below it lies round-off.
MINIMUM_VARIANCE = 1e-10
# Rows per block of a cross-covariance, so that a block against a few hundred trials stays in the processor's cache.
BLOCK_ROWS = 512


@functools.cache
def _blas() -> ThreadpoolController:
    """Finds the loaded libraries once: looking takes about 2 ms, and an optimizer asks for predictions hundreds of times."""
    return ThreadpoolController()


def _one_blas_thread() -> AbstractContextManager[object]:
    limited: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return limited


@dataclass(frozen=True)
class MetricFit:
    """The process of one metric, conditioned on its outputs.

    Attributes:
        center, scale: bits per byte; outputs are standardised with them.
        factor: lower Cholesky factor of the covariance of the observations, shape (N, N).
        alpha: inverse of that covariance times the standardised outputs, shape (N,).
    """

    parameters: Hyperparameters
    center: float
    scale: float
    factor: FloatArray
    alpha: FloatArray


class GaussianProcess:
    """Fits one process per metric; see the module's docstring."""

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedGaussianProcess:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`).
        """
        observations = Observations.of(swarm, metrics)
        features_NF = root_and_log(observations.schedules)
        with _one_blas_thread():
            linear_NN = features_NF @ features_NF.T / features_NF.shape[1]
            fits = tuple(fit_metric(features_NF, linear_NN, outputs_N) for outputs_N in observations.values.T)
        return FittedGaussianProcess(observations, features_NF, fits)


def fit_metric(features_NF: FloatArray, linear_NN: FloatArray, outputs_N: FloatArray) -> MetricFit:
    """The posterior mode of one metric's hyperparameters, and the process conditioned on its outputs (bits per byte, shape (N,))."""
    center = float(outputs_N.mean())
    scale = max(float(outputs_N.std()), MINIMUM_RELATIVE_SCALE * max(abs(center), 1.0))
    standard_N = (outputs_N - center) / scale
    prior = Prior.for_features(features_NF.shape[1])
    reach_P = SEARCH_STDS * prior.std
    result = minimize(
        negative_log_posterior,
        prior.mean,
        args=(features_NF, linear_NN, standard_N, prior),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([prior.mean - reach_P, prior.mean + reach_P], axis=1),
        options={"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE},
    )
    parameters = Hyperparameters.from_logs(result.x)
    k_NN = covariance(features_NF, features_NF, parameters)
    k_NN[np.diag_indices(len(k_NN))] += parameters.noise + JITTER
    factor_NN = cholesky(k_NN, lower=True)
    return MetricFit(parameters, center, scale, factor_NN, cho_solve((factor_NN, True), standard_N))


@dataclass(frozen=True)
class FittedGaussianProcess:
    """Processes of several metrics over the same trials; `features` has shape (N trials, F features)."""

    observations: Observations
    features: FloatArray
    fits: tuple[MetricFit, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Learned noise, shape (metrics,), bits per byte."""
        return np.array([fit.scale * np.sqrt(fit.parameters.noise) for fit in self.fits])

    def mean(self, points: Points) -> FloatArray:
        """Posterior mean, shape (n, metrics); 100,000 points against 128 trials take a tenth of a second per metric."""
        return self._moments(root_and_log(self.observations.align(points)), with_std=False)[0]

    def posterior(self, points: Points) -> GaussianPosterior:
        """Mean and std at `points`; the joint covariance is computed when the posterior is sampled."""
        features_MF = root_and_log(self.observations.align(points))
        means_MK, stds_MK = self._moments(features_MF, with_std=True)
        return GaussianPosterior(means_MK, stds_MK, lambda metric: self._joint_factor(features_MF, self.fits[metric]))

    def _moments(self, features_MF: FloatArray, with_std: bool) -> tuple[FloatArray, FloatArray]:
        """Means and stds of shape (M, metrics), bits per byte; stds stay zero when not wanted: each block costs a triangular solve."""
        means_MK = np.empty((len(features_MF), len(self.fits)))
        stds_MK = np.zeros_like(means_MK)
        with _one_blas_thread():
            for start in range(0, len(features_MF), BLOCK_ROWS):
                rows = slice(start, start + BLOCK_ROWS)
                for column, fit in enumerate(self.fits):
                    k_MN = covariance(features_MF[rows], self.features, fit.parameters)
                    means_MK[rows, column] = fit.center + fit.scale * (k_MN @ fit.alpha)
                    if with_std:
                        explained_NM = solve_triangular(fit.factor, k_MN.T, lower=True)
                        left_M = variance(features_MF[rows], fit.parameters) - np.einsum("nm,nm->m", explained_NM, explained_NM)
                        stds_MK[rows, column] = fit.scale * np.sqrt(np.maximum(left_M, MINIMUM_VARIANCE))
        return means_MK, stds_MK

    def _joint_factor(self, features_MF: FloatArray, fit: MetricFit) -> FloatArray:
        """Cholesky factor of the posterior covariance over points, shape (M, M), bits per byte."""
        k_NM = covariance(self.features, features_MF, fit.parameters)
        explained_NM = solve_triangular(fit.factor, k_NM, lower=True)
        left_MM = covariance(features_MF, features_MF, fit.parameters) - explained_NM.T @ explained_NM
        return fit.scale * factor_with_jitter(left_MM)


def factor_with_jitter(covariance_MM: FloatArray) -> FloatArray:
    """Lower Cholesky factor of a covariance that may be singular (repeated points), after the least of a few additions to its diagonal.

    Additions grow tenfold from 1e-10 (a std of 1e-5 of the output's) until the factorisation succeeds.
    """
    diagonal = np.diag_indices(len(covariance_MM))
    jitter = MINIMUM_VARIANCE
    while True:
        attempt_MM = covariance_MM.copy()
        attempt_MM[diagonal] += jitter
        try:
            return np.asarray(cholesky(attempt_MM, lower=True, overwrite_a=True))
        except np.linalg.LinAlgError:
            jitter *= 10
            assert jitter < 1, "a posterior covariance is positive semidefinite up to round-off"
