"""One Gaussian process per metric over mixtures and sources: cheap runs inform what an expensive source was hardly asked about.

    loss at source s = level_s + w_s u(p) + sqrt(v_s) d_s(p) + noise_s

u is shared by all sources, d_s is a source's own departure from it, both with the kernel of `gaussian_process` (Matern-5/2 over root and log features and a
small linear part); the intrinsic coregionalization model of rank one plus a diagonal (Alvarez, Rosasco & Lawrence 2012, section 4.2). Priors take sources
for alike: w around 1, v around a twentieth. A source that is not like the others gets a large v or a w near 0 where its runs show it. With one source it is
`gaussian_process`. Sources are names: nothing is said of one that was never run; scaling laws do that.

The main trade-off: cost grows with the cube of all runs, so that beyond a few thousand those of the cheapest sources are thinned.

Legend: N trials, M points, F features, S sources, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, lapack, solve_triangular
from scipy.optimize import minimize

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.features import root_and_log
from mixopt.surrogates.gaussian_process import (
    HYPERPARAMETER_TRIALS,
    MAX_ITERATIONS,
    MINIMUM_RELATIVE_SCALE,
    MINIMUM_VARIANCE,
    SEARCH_STDS,
    TOLERANCE,
    GaussianProcess,
)
from mixopt.surrogates.kernel import JITTER, matern_arguments
from mixopt.surrogates.misfit import factor_with_jitter
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.surrogates.scales import Sizes, sources_in
from mixopt.surrogates.sourced_observations import SourcedObservations
from mixopt.surrogates.threads import over_metrics
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

MOST_TRIALS = 2048
LEVEL_VARIANCE = 1.0
"""Prior variance of a source's level about its mean loss, in units of the losses' variance, as the single process has it."""
# Mean and std of the logarithms: lengthscales as `kernel.Prior`; linear part over Matern; w; v; noise over the variance.
LENGTHSCALE_STD, LINEAR_PRIOR = 1.0, (-3.0, 1.5)
LOADING_PRIOR, DEPARTURE_PRIOR, NOISE_PRIOR = (0.0, 0.5), (float(np.log(0.05)), 1.5), (-4.0, 1.5)


@dataclass(frozen=True)
class SourceKernel:
    """Hyperparameters of one metric: `lengthscales` (F,), `linear` over the Matern part, and per source `loadings`, `departures`, `noises`, each (S,)."""

    lengthscales: FloatArray
    linear: float
    loadings: FloatArray
    departures: FloatArray
    noises: FloatArray

    @classmethod
    def from_logs(cls, logs_P: FloatArray, sources: int) -> SourceKernel:
        """From natural logarithms: lengthscales, linear, then w, v and noise of each source."""
        values_P = np.exp(logs_P)
        rest = values_P[-3 * sources :]
        return cls(
            values_P[: -3 * sources - 1],
            float(values_P[-3 * sources - 1]),
            rest[:sources],
            rest[sources : 2 * sources],
            rest[2 * sources :],
        )

    @property
    def between(self) -> FloatArray:
        """Covariance of sources at one mixture, shape (S, S)."""
        return np.asarray(np.outer(self.loadings, self.loadings) + np.diag(self.departures))

    def covariance(self, a_NF: FloatArray, at_N: NDArray[np.int64], b_MF: FloatArray, at_M: NDArray[np.int64]) -> FloatArray:
        """Prior covariance of noise-free losses, shape (N, M)."""
        s_NM = matern_arguments(a_NF / self.lengthscales, b_MF / self.lengthscales)
        base_NM = (1 + s_NM + s_NM * s_NM / 3) * np.exp(-s_NM) + (a_NF * (self.linear / a_NF.shape[1])) @ b_MF.T
        return np.asarray(self.between[np.ix_(at_N, at_M)] * base_NM + LEVEL_VARIANCE * np.equal.outer(at_N, at_M))

    def variance(self, a_NF: FloatArray, at_N: NDArray[np.int64]) -> FloatArray:
        """The diagonal of `covariance`, shape (N,)."""
        base_N = 1 + self.linear / a_NF.shape[1] * np.einsum("nf,nf->n", a_NF, a_NF)
        return np.asarray(np.diag(self.between)[at_N] * base_N + LEVEL_VARIANCE)


def log_prior_moments(features: int, sources: int) -> tuple[FloatArray, FloatArray]:
    """Mean and std of the logarithms of the hyperparameters, both (P,)."""
    means = np.concatenate([np.full(features, -1 + 0.5 * np.log(features)), [LINEAR_PRIOR[0]]])
    stds = np.concatenate([np.full(features, LENGTHSCALE_STD), [LINEAR_PRIOR[1]]])
    for mean, std in (LOADING_PRIOR, DEPARTURE_PRIOR, NOISE_PRIOR):
        means, stds = np.append(means, np.full(sources, mean)), np.append(stds, np.full(sources, std))
    return means, stds


def negative_log_posterior(
    logs_P: FloatArray, features_NF: FloatArray, at_N: NDArray[np.int64], outputs_N: FloatArray, means_P: FloatArray, stds_P: FloatArray
) -> tuple[float, FloatArray]:
    """Negative log marginal likelihood minus log prior, up to a constant, and its gradient (P,); as `kernel.negative_log_posterior`."""
    count = (len(logs_P) - features_NF.shape[1] - 1) // 3
    kernel = SourceKernel.from_logs(logs_P, count)
    scaled_NF = features_NF / kernel.lengthscales
    s_NN = matern_arguments(scaled_NF, scaled_NF)
    decay_NN = np.exp(-s_NN)
    linear_NN = (features_NF * (kernel.linear / features_NF.shape[1])) @ features_NF.T
    base_NN = (1 + s_NN + s_NN * s_NN / 3) * decay_NN + linear_NN
    between_NN = kernel.between[np.ix_(at_N, at_N)]
    k_NN = between_NN * base_NN + LEVEL_VARIANCE * np.equal.outer(at_N, at_N)
    k_NN[np.diag_indices(len(k_NN))] += kernel.noises[at_N] + JITTER
    factor_NN, failed = lapack.dpotrf(k_NN, lower=1)
    assert failed == 0, "a covariance with noise on its diagonal is positive definite"
    half_NN = lapack.dpotri(factor_NN, lower=1)[0]
    inverse_NN = half_NN + half_NN.T
    inverse_NN[np.diag_indices(len(inverse_NN))] *= 0.5
    alpha_N = inverse_NN @ outputs_N
    value = 0.5 * outputs_N @ alpha_N + np.log(np.diag(factor_NN)).sum()
    weight_NN = inverse_NN - np.outer(alpha_N, alpha_N)  # d value = 1/2 sum(weight * dK)
    shared_NN = weight_NN * between_NN
    pull_NN = shared_NN * ((5 / 3) * (1 + s_NN) * decay_NN)
    lengthscales_F = np.einsum("nf,n,nf->f", scaled_NF, pull_NN.sum(axis=1), scaled_NF)
    lengthscales_F = lengthscales_F - np.einsum("nf,nf->f", scaled_NF, pull_NN @ scaled_NF)
    hot_NS = np.equal.outer(at_N, np.arange(count)).astype(np.float64)
    blocks_SS = hot_NS.T @ (weight_NN * base_NN) @ hot_NS
    gradient_P = np.concatenate(
        [
            lengthscales_F,
            [0.5 * np.vdot(shared_NN, linear_NN)],
            kernel.loadings * (blocks_SS @ kernel.loadings),
            0.5 * kernel.departures * np.diag(blocks_SS),
            0.5 * kernel.noises * (hot_NS.T @ np.diag(weight_NN)),
        ]
    )
    standard_P = (logs_P - means_P) / stds_P
    return float(value + 0.5 * standard_P @ standard_P), gradient_P + standard_P / stds_P


@dataclass(frozen=True)
class SourcesFit:
    """The process of one metric: `centers` (S,) and `scale` standardise its losses; `factor` (N, N) and `alpha` (N,) condition on them."""

    kernel: SourceKernel
    centers: FloatArray
    scale: float
    factor: FloatArray
    alpha: FloatArray


class MultiSourceGP:
    """Fits one process per metric over all sources; see the module's docstring.

    Args:
        sizes: name of a size -> parameters, for names that are no numbers; only the order of sources by cost needs them.
    """

    several_sources = True

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.sizes = sizes

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Fitted:
        """Fits on the realized mixtures of `swarm`; a swarm of one source gets the process of one.

        Raises:
            DataError: no metric, fewer than 4 trials, a metric that some trial was not scored on, or sources whose order is not known.
        """
        if len(swarm) == 0 or len(set(swarm.points().sources)) == 1:
            return GaussianProcess().fit(swarm, metrics)
        sources = sources_in(swarm, self.sizes)
        observations = SourcedObservations.of(_thinned(swarm, sources), metrics)
        order = {source: index for index, source in enumerate(sources)}
        at_N = np.array([order[source] for source in observations.sources])
        features_NF = root_and_log(observations.schedules)
        rows = np.arange(len(at_N))
        if len(rows) > HYPERPARAMETER_TRIALS:
            rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:HYPERPARAMETER_TRIALS])
        fits = over_metrics(lambda outputs_N: _fit_metric(features_NF, at_N, len(sources), outputs_N, rows), observations.values.T)
        return FittedSources(observations, sources, features_NF, at_N, fits)


def _thinned(swarm: Swarm, sources: Sequence[Source]) -> Swarm:
    """At most MOST_TRIALS trials: those of the costliest sources first, of the source that no longer fits a random part."""
    if len(swarm) <= MOST_TRIALS:
        return swarm
    at = np.array([sources.index(source) for source in swarm.points().sources])
    shuffled = np.random.default_rng(0).permutation(len(swarm))
    kept = shuffled[np.argsort(-at[shuffled], kind="stable")][:MOST_TRIALS]
    return swarm.select([swarm.trial_ids[row] for row in kept])


def _fit_metric(
    features_NF: FloatArray, at_N: NDArray[np.int64], sources: int, outputs_N: FloatArray, rows: NDArray[np.int64]
) -> SourcesFit:
    counts_S = np.maximum(np.bincount(at_N, minlength=sources), 1)
    centers_S = np.bincount(at_N, weights=outputs_N, minlength=sources) / counts_S
    residuals_N = outputs_N - centers_S[at_N]
    scale = max(float(np.sqrt(np.mean(residuals_N**2))), MINIMUM_RELATIVE_SCALE * max(float(np.abs(outputs_N).max()), 1.0))
    standard_N = residuals_N / scale
    means_P, stds_P = log_prior_moments(features_NF.shape[1], sources)
    found = minimize(
        negative_log_posterior,
        means_P,
        args=(features_NF[rows], at_N[rows], standard_N[rows], means_P, stds_P),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([means_P - SEARCH_STDS * stds_P, means_P + SEARCH_STDS * stds_P], axis=1),
        options={"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE},
    )
    kernel = SourceKernel.from_logs(found.x, sources)
    k_NN = kernel.covariance(features_NF, at_N, features_NF, at_N)
    k_NN[np.diag_indices(len(k_NN))] += kernel.noises[at_N] + JITTER
    factor_NN = cholesky(k_NN, lower=True)
    return SourcesFit(kernel, centers_S, scale, factor_NN, cho_solve((factor_NN, True), standard_N))


@dataclass(frozen=True)
class FittedSources:
    """Processes of several metrics over the same trials.

    Attributes:
        sources: that were run, cheapest first.
        features, at: of the trials, shapes (N, F) and (N,): `at` numbers the source of each.
    """

    observations: SourcedObservations
    sources: tuple[Source, ...]
    features: FloatArray
    at: NDArray[np.int64]
    fits: tuple[SourcesFit, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Learned noise of the costliest source, shape (metrics,), bits per byte."""
        return np.array([fit.scale * np.sqrt(fit.kernel.noises[-1]) for fit in self.fits])

    def noise_at(self, points: Points) -> FloatArray:
        """Learned noise of the source of every point, shape (n, metrics), bits per byte."""
        at_M = self._numbers(points)
        return np.stack([fit.scale * np.sqrt(fit.kernel.noises[at_M]) for fit in self.fits], axis=1)

    def mean(self, points: Points) -> FloatArray:
        """Posterior mean at each point's source, shape (n, metrics)."""
        return self._moments(points, with_std=False)[0]

    def posterior(self, points: Points) -> GaussianPosterior:
        """Mean and std at each point's source; joint over points of all sources.

        Raises:
            DataError: other domains or phases, or a source that was never run.
        """
        features_MF, at_M = root_and_log(self.observations.align(points)), self._numbers(points)
        means_MK, stds_MK = self._moments(points, with_std=True)

        def factor(metric: int) -> FloatArray:
            fit = self.fits[metric]
            k_NM = fit.kernel.covariance(self.features, self.at, features_MF, at_M)
            explained_NM = solve_triangular(fit.factor, k_NM, lower=True)
            left_MM = fit.kernel.covariance(features_MF, at_M, features_MF, at_M) - explained_NM.T @ explained_NM
            return fit.scale * factor_with_jitter(left_MM)

        return GaussianPosterior(means_MK, stds_MK, factor)

    def _numbers(self, points: Points) -> NDArray[np.int64]:
        known = {source: number for number, source in enumerate(self.sources)}
        unknown = sorted({source.key for source in points.sources if source not in known})
        if unknown:
            raise DataError(
                f"No run was at {', '.join(unknown)}, and this surrogate says nothing of sources without runs.",
                "Run a few mixtures there, or use a law over sizes, as scaling_effective.",
            )
        return np.array([known[source] for source in points.sources], dtype=np.int64)

    def _moments(self, points: Points, with_std: bool) -> tuple[FloatArray, FloatArray]:
        features_MF, at_M = root_and_log(self.observations.align(points)), self._numbers(points)
        means_MK, stds_MK = np.zeros((2, len(at_M), len(self.fits)))

        def fill(column: int) -> None:
            fit = self.fits[column]
            k_MN = fit.kernel.covariance(features_MF, at_M, self.features, self.at)
            means_MK[:, column] = fit.centers[at_M] + fit.scale * (k_MN @ fit.alpha)
            if with_std:
                explained_NM = solve_triangular(fit.factor, k_MN.T, lower=True)
                left_M = fit.kernel.variance(features_MF, at_M) - np.einsum("nm,nm->m", explained_NM, explained_NM)
                stds_MK[:, column] = fit.scale * np.sqrt(np.maximum(left_M, MINIMUM_VARIANCE))

        over_metrics(fill, range(len(self.fits)))
        return means_MK, stds_MK
