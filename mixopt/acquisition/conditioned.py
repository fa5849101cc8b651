"""One metric's process as an acquisition function needs it: many paths at once, further points taken in, and slopes by every weight.

The numbers are those of the surrogate (`surrogates.gaussian_process`, `surrogates.multi_source_gp`): same kernel, same hyperparameters, same
trials. What is added: values drawn at further mixtures, the runs under way and the best measured ones, join the trials as observations without
noise, a column per draw, so that everything asked afterwards is conditioned on each of the draws (Letham et al. 2019, arXiv 1706.07094, section
4). The main trade-off: one factorization of trials and further points together, the cube of their number, instead of a small update.

Legend: N trials and further points, M points asked about, F features, S draws (paths).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import cho_solve, solve_triangular

from mixopt.mixture import FloatArray
from mixopt.surrogates.features import ZERO_RESOLUTION, root_and_log
from mixopt.surrogates.gaussian_process import EXACT_TRIALS, FittedGaussianProcess, some_trials
from mixopt.surrogates.kernel import JITTER, matern_arguments
from mixopt.surrogates.misfit import factor_with_jitter
from mixopt.surrogates.multi_source_gp import FittedSources, SourcesFit
from mixopt.surrogates.source_kernel import IntArray, SourceHyperparameters, source_covariance, source_variance
from mixopt.trial import Source

# Below this weight the slope of the square root is that at this weight: at 0 it is infinite, and every domain without weight would be worth any price.
ROOT_SLOPE_FROM = 1e-4
# Of a further point, in units of the outputs' variance: it may coincide with a trial.
FURTHER_JITTER = 1e-6
LEAST_VARIANCE = 1e-10


@dataclass(frozen=True)
class Conditioned:
    """The process of one metric given its trials, and given values drawn at further points.

    Attributes:
        features, at: of trials and further points, shapes (N, F) and (N,); `at` numbers the sources.
        noise: variance of each, shape (N,), standardised.
        outputs: standardised, shape (N, S).
        factor: lower Cholesky factor of their covariance, shape (N, N).
        alpha: its inverse times the outputs, shape (N, S).
        centers: mean loss per source, shape (sources,); `scale`: the unit of standardised outputs. Bits per byte.
    """

    parameters: SourceHyperparameters
    centers: FloatArray
    scale: float
    features: FloatArray
    at: IntArray
    noise: FloatArray
    outputs: FloatArray
    factor: FloatArray
    alpha: FloatArray

    @classmethod
    def of(
        cls,
        parameters: SourceHyperparameters,
        centers: FloatArray,
        scale: float,
        features_NF: FloatArray,
        at_N: IntArray,
        noise_N: FloatArray,
        outputs_NS: FloatArray,
    ) -> Conditioned:
        k_NN = source_covariance(features_NF, at_N, features_NF, at_N, parameters)
        k_NN[np.diag_indices(len(k_NN))] += noise_N
        factor_NN = factor_with_jitter(k_NN)
        alpha_NS = cho_solve((factor_NN, True), outputs_NS)
        return cls(parameters, centers, scale, features_NF, at_N, noise_N, outputs_NS, factor_NN, alpha_NS)

    @property
    def paths(self) -> int:
        return int(self.outputs.shape[1])

    def cross(self, features_MF: FloatArray, at_M: IntArray) -> FloatArray:
        """Prior covariance of points with trials and further points, shape (M, N), standardised."""
        return source_covariance(features_MF, at_M, self.features, self.at, self.parameters)

    def moments(self, features_MF: FloatArray, at_M: IntArray) -> tuple[FloatArray, FloatArray]:
        """Mean on every path (M, S) and variance (M,) of noise-free losses, bits per byte and their square."""
        k_MN = self.cross(features_MF, at_M)
        explained_NM = solve_triangular(self.factor, k_MN.T, lower=True)
        left_M = source_variance(features_MF, at_M, self.parameters) - np.einsum("nm,nm->m", explained_NM, explained_NM)
        means_MS = self.centers[at_M][:, None] + self.scale * (k_MN @ self.alpha)
        return means_MS, self.scale**2 * np.maximum(left_M, LEAST_VARIANCE)

    def slopes(self, features_MF: FloatArray, at_M: IntArray, by_mean_MS: FloatArray, by_variance_M: FloatArray) -> FloatArray:
        """Derivative by the features, shape (M, F), of a function of the moments whose derivatives by them are given."""
        k_MN = self.cross(features_MF, at_M)
        inverse_MN = cho_solve((self.factor, True), k_MN.T).T
        if self.paths == 1:
            by_mean_MS = by_mean_MS.sum(axis=1, keepdims=True)
        by_cross_MN = self.scale * (by_mean_MS @ self.alpha.T) - 2 * self.scale**2 * by_variance_M[:, None] * inverse_MN
        slopes_MF = self.prior_slopes(features_MF, at_M, self.features, self.at, by_cross_MN)
        own_M = 2 * self.scale**2 * by_variance_M * self.parameters.rho[at_M] ** 2 * self.parameters.linear / features_MF.shape[1]
        return np.asarray(slopes_MF + own_M[:, None] * features_MF)

    def prior_slopes(
        self, features_MF: FloatArray, at_M: IntArray, others_OF: FloatArray, others_at_O: IntArray, by_covariance_MO: FloatArray
    ) -> FloatArray:
        """Derivative by the features, shape (M, F), of a function whose derivatives by the prior covariances with other points are given."""
        lengths_F = self.parameters.lengthscales
        s_MO = matern_arguments(features_MF / lengths_F, others_OF / lengths_F)
        both_MO = self.parameters.rho[at_M][:, None] * self.parameters.rho[others_at_O]
        own_MO = np.equal.outer(at_M, others_at_O) * self.parameters.delta[at_M][:, None]
        # d M / d a_f = -5/3 (1 + s) exp(-s) (a_f - b_f) / length_f^2
        pull_MO = by_covariance_MO * (both_MO * self.parameters.matern + own_MO) * (5 / 3) * (1 + s_MO) * np.exp(-s_MO)
        by_matern_MF = (pull_MO @ others_OF - pull_MO.sum(axis=1)[:, None] * features_MF) / lengths_F**2
        by_linear_MF = (self.parameters.linear / features_MF.shape[1]) * ((by_covariance_MO * both_MO) @ others_OF)
        return np.asarray(by_matern_MF + by_linear_MF)

    def draw(self, features_MF: FloatArray, at_M: IntArray, normal_MS: FloatArray) -> FloatArray:
        """Noise-free losses at points, one joint draw per path (M, S), bits per byte; a process of one path gives as many as `normal_MS` has columns."""
        k_MN = self.cross(features_MF, at_M)
        explained_NM = solve_triangular(self.factor, k_MN.T, lower=True)
        left_MM = source_covariance(features_MF, at_M, features_MF, at_M, self.parameters) - explained_NM.T @ explained_NM
        means_MS = self.centers[at_M][:, None] + self.scale * (k_MN @ self.alpha)
        return np.asarray(means_MS + self.scale * (factor_with_jitter(left_MM) @ normal_MS))

    def given(self, features_MF: FloatArray, at_M: IntArray, losses_MS: FloatArray, noise: float = FURTHER_JITTER) -> Conditioned:
        """The process given losses at further points as well, a column per path; `noise` is their variance, standardised."""
        paths = losses_MS.shape[1]
        outputs_NS = np.concatenate(
            [np.broadcast_to(self.outputs, (len(self.outputs), paths)), (losses_MS - self.centers[at_M][:, None]) / self.scale]
        )
        return Conditioned.of(
            self.parameters,
            self.centers,
            self.scale,
            np.concatenate([self.features, features_MF]),
            np.concatenate([self.at, at_M]),
            np.concatenate([self.noise, np.full(len(features_MF), noise)]),
            outputs_NS,
        )


def features_of(weights_MD: FloatArray) -> FloatArray:
    """Features of mixtures (M, domains), shape (M, F)."""
    return root_and_log(weights_MD[:, None, :])


def by_weights(weights_MD: FloatArray, by_features_MF: FloatArray) -> FloatArray:
    """Derivatives by weights, from those by features; below a weight of `ROOT_SLOPE_FROM` the root's slope is held."""
    domains = weights_MD.shape[1]
    by_root = 0.5 / np.sqrt(np.maximum(weights_MD, ROOT_SLOPE_FROM))
    by_log = 1 / ((np.maximum(weights_MD, 0.0) + ZERO_RESOLUTION) * np.log1p(1 / ZERO_RESOLUTION))
    return np.asarray(by_features_MF[:, :domains] * by_root + by_features_MF[:, domains:] * by_log)


def of_gaussian_process(fitted: FittedGaussianProcess, metric: int) -> Conditioned:
    """The process of one metric of a fit at one source; of more than 1,024 trials some."""
    fit, observed = fitted.fits[metric], fitted.observations
    rows = some_trials(observed, EXACT_TRIALS)
    parameters = SourceHyperparameters(
        fit.parameters.lengthscales, fit.parameters.matern, fit.parameters.linear, np.array([fit.parameters.noise]), np.ones(1), np.zeros(1)
    )
    schedules = observed.schedules[rows]
    noise_N = fit.noise_variance(schedules.reshape(len(rows), -1)) + JITTER
    outputs_N = (observed.values[rows, metric] - fit.center) / fit.scale
    at_N = np.zeros(len(rows), dtype=np.int64)
    return Conditioned.of(parameters, np.array([fit.center]), fit.scale, root_and_log(schedules), at_N, noise_N, outputs_N[:, None])


def of_sources(fitted: FittedSources, metric: int, sources: Sequence[Source]) -> tuple[Conditioned, tuple[int, ...]]:
    """The process of one metric over several sources, and the number that each of `sources` has in it; the answer is wanted at the last.

    Where the last one's runs answer alone, as `multi_source_gp` found, the others are kept apart from it: they say nothing of it.
    """
    together, alone = fitted.fits[metric]
    place = {source: number for number, source in enumerate(fitted.sources)}
    observed, answer = fitted.observations, place[sources[-1]]
    if answer not in alone:
        return _of_fit(together, observed.values[:, metric], together.at), tuple(place[source] for source in sources)
    fit = alone[answer]
    old = fit.parameters
    noise = together.parameters.noise[[answer, *(number for number in range(len(place)) if number != answer)]]
    noise[0] = old.noise[0]
    apart = np.zeros(len(place))
    parameters = SourceHyperparameters(old.lengthscales, old.matern, old.linear, noise, np.append(1.0, apart[1:]), apart)
    kept = replace(fit, parameters=parameters, centers=np.append(fit.centers, apart[1:]))
    outputs_N = observed.values[together.at == answer, metric]
    others = iter(range(1, len(place)))
    numbers = {source: 0 if number == answer else next(others) for source, number in place.items()}
    return _of_fit(kept, outputs_N, np.zeros(len(outputs_N), dtype=np.int64)), tuple(numbers[source] for source in sources)


def _of_fit(fit: SourcesFit, losses_N: FloatArray, at_N: IntArray) -> Conditioned:
    outputs_N = (losses_N - fit.centers[at_N]) / fit.scale
    noise_N = fit.parameters.noise[at_N] + JITTER
    return Conditioned.of(fit.parameters, fit.centers, fit.scale, fit.features, at_N, noise_N, outputs_N[:, None])
