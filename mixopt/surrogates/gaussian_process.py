"""An exact Gaussian process per metric on sqrt and log features: the most accurate single surrogate at every swarm size measured.

Written on LAPACK instead of BoTorch because the fit is the inner loop of a search: analytic gradients make it 25 to 350 times cheaper than
`fit_gpytorch_mll` at equal accuracy, free of global random state and of torch (numbers in docs/decisions.md).

Hyperparameters are the mode of their posterior, found by L-BFGS from the prior's mode: no random restarts, so a fit is a pure function of
the swarm. They are looked for on 512 trials at most. Beyond 1,024 trials the process is conditioned through inducing mixtures (`inducing`): the exact
one costs the cube of the trials, and memory their square, per metric. Repeats of a mixture stay separate rows; they are what tells noise from signal,
and with enough of them noise may depend on the mixture (`noise`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from mixopt.mixture import FloatArray
from mixopt.surrogates.cross_validation import OutOfFold, checked_folds, out_of_fold
from mixopt.surrogates.features import root_and_log, weights
from mixopt.surrogates.inducing import Inducing, condition
from mixopt.surrogates.kernel import JITTER, Hyperparameters, Prior, covariance, negative_log_posterior, variance
from mixopt.surrogates.misfit import factor_with_jitter
from mixopt.surrogates.noise import NoiseShape, fit_noise_shape
from mixopt.surrogates.observations import Observations, mixture_groups
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.surrogates.threads import over_metrics
from mixopt.swarm import Points, Swarm

# Logarithms of hyperparameters stay within so many prior standard deviations: far out the density is flat and L-BFGS can overshoot.
SEARCH_STDS = 6.0
MAX_ITERATIONS = 200
# With hundreds of lengthscales the first steps bring nearly all that many bring, and each costs more.
MANY_FEATURES, MAX_ITERATIONS_OF_MANY = 100, 40
# Stops when an iteration improves the log posterior by less than this, relative: 1e-6 and 1e-9 give the same ranking to 1e-4.
TOLERANCE = 1e-6
# A constant metric has no scale of its own; this one, relative to its value, keeps arithmetic finite and the std positive.
MINIMUM_RELATIVE_SCALE = 1e-8
# Least posterior variance in units of the output's variance: below it lies round-off.
MINIMUM_VARIANCE = 1e-10
# Rows per block of a cross-covariance, so that a block against a few hundred trials stays in the processor's cache.
BLOCK_ROWS = 512


# Trials on which hyperparameters are looked for, which are conditioned on exactly, and inducing mixtures where there are more: at most.
HYPERPARAMETER_TRIALS, EXACT_TRIALS, INDUCING_MIXTURES = 512, 1024, 1024
# With more trials than this the fit to four fifths of them has the hyperparameters of all, and predictions out of fold follow from one inverse.
REFIT_TRIALS = 200


@dataclass(frozen=True)
class MetricFit:
    """The process of one metric.

    Attributes:
        center, scale: bits per byte; outputs are standardised with them.
        shape: where the noise is large; None: the same everywhere.
        conditioned: on its outputs, standardised.
    """

    parameters: Hyperparameters
    center: float
    scale: float
    shape: NoiseShape | None
    conditioned: Exact | Inducing

    def noise_variance(self, x_MI: FloatArray) -> FloatArray:
        """Of standardised outputs at weights, shape (M,)."""
        return np.full(len(x_MI), self.parameters.noise) if self.shape is None else self.parameters.noise * self.shape.at(x_MI)


@dataclass(frozen=True)
class Exact:
    """Conditioned on the trials' outputs themselves: `features` (N, F), the factor of their covariance (N, N), its inverse times the outputs (N,)."""

    features: FloatArray
    factor: FloatArray
    alpha: FloatArray

    @classmethod
    def of(cls, features_NF: FloatArray, outputs_N: FloatArray, noise_N: FloatArray, parameters: Hyperparameters) -> Exact:
        k_NN = covariance(features_NF, features_NF, parameters)
        k_NN[np.diag_indices(len(k_NN))] += noise_N + JITTER
        factor_NN = cholesky(k_NN, lower=True)
        return cls(features_NF, factor_NN, cho_solve((factor_NN, True), outputs_N))

    def mean(self, k_MN: FloatArray) -> FloatArray:
        """Of points, from their covariance with `features`, shape (M,)."""
        return np.asarray(k_MN @ self.alpha)

    def removed_variance(self, k_MN: FloatArray) -> FloatArray:
        """What the outputs removed from the prior variance of points, shape (M,)."""
        explained_NM = solve_triangular(self.factor, k_MN.T, lower=True)
        return np.asarray(np.einsum("nm,nm->m", explained_NM, explained_NM))

    def removed_covariance(self, k_MN: FloatArray) -> FloatArray:
        """What the outputs removed from the prior covariance of points, shape (M, M)."""
        explained_NM = solve_triangular(self.factor, k_MN.T, lower=True)
        return np.asarray(explained_NM.T @ explained_NM)

    def left_out(
        self, features_NF: FloatArray, outputs_N: FloatArray, noise_N: FloatArray, parameters: Hyperparameters, numbers_N: NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray]:
        """Means and variances of the measurements of each fold given the others (Rasmussen & Williams 2006, equation 5.12, by blocks), (N,)."""
        inverse_NN = cho_solve((self.factor, True), np.eye(len(outputs_N)))
        means_N, variances_N = np.empty((2, len(outputs_N)))
        for fold in np.unique(numbers_N):
            rows = np.flatnonzero(numbers_N == fold)
            left_BB = np.linalg.inv(inverse_NN[np.ix_(rows, rows)])
            means_N[rows] = outputs_N[rows] - left_BB @ self.alpha[rows]
            variances_N[rows] = np.diag(left_BB)
        return means_N, variances_N


class GaussianProcess:
    """Fits one process per metric; see the module's docstring."""

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedGaussianProcess:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`).
        """
        observations = Observations.of(swarm, metrics)
        features_NF = root_and_log(observations.schedules)
        fits = over_metrics(lambda outputs_N: fit_metric(features_NF, observations, outputs_N), observations.values.T)
        return FittedGaussianProcess(observations, fits)

    def fit_with_out_of_fold(self, swarm: Swarm, metrics: Sequence[str], folds: int, seed: int) -> tuple[FittedGaussianProcess, OutOfFold]:
        """As `fit`, and predictions out of fold; of many trials with the hyperparameters of all.

        Raises:
            TooFewToCheck: see `cross_validation.checked_folds`.
        """
        numbers_N = checked_folds(mixture_groups(swarm), folds, seed)
        fitted = self.fit(swarm, metrics)
        if len(numbers_N) <= REFIT_TRIALS:
            return fitted, out_of_fold(self, swarm, metrics, folds, seed)
        # The fit has the trials in the order of their ids.
        rows = np.argsort(np.array(swarm.trial_ids), kind="stable")
        means, stds = np.empty((2, len(rows), len(metrics)))
        for column, found in enumerate(over_metrics(lambda column: fitted.left_out(column, numbers_N[rows]), range(len(metrics)))):
            means[rows, column], stds[rows, column] = found
        return fitted, OutOfFold(means, stds, swarm.values(metrics))


def fit_metric(features_NF: FloatArray, observations: Observations, outputs_N: FloatArray) -> MetricFit:
    """The posterior mode of one metric's hyperparameters, and the process conditioned on its outputs (bits per byte, shape (N,))."""
    center = float(outputs_N.mean())
    scale = max(float(outputs_N.std()), MINIMUM_RELATIVE_SCALE * (abs(center) or 1.0))
    standard_N = (outputs_N - center) / scale
    x_NI = weights(observations.schedules)
    shape = fit_noise_shape(x_NI, standard_N, observations.groups)
    shape_N = np.ones(len(x_NI)) if shape is None else shape.at(x_NI)
    rows = some_trials(observations, HYPERPARAMETER_TRIALS)
    parameters = find_hyperparameters(features_NF[rows], standard_N[rows], shape_N[rows])
    noise_N = parameters.noise * shape_N
    conditioned: Exact | Inducing
    if len(x_NI) <= EXACT_TRIALS:
        conditioned = Exact.of(features_NF, standard_N, noise_N, parameters)
    else:
        inducing_UF = features_NF[some_trials(observations, INDUCING_MIXTURES)]
        conditioned = condition(features_NF, standard_N, noise_N, inducing_UF, parameters)
    return MetricFit(parameters, center, scale, shape, conditioned)


def some_trials(observations: Observations, count: int) -> NDArray[np.int64]:
    """Rows of so many trials at most, ascending: those of repeated mixtures first, for they tell the noise; of the others a random part."""
    total = len(observations.groups)
    if total <= count:
        return np.arange(total)
    single_N = np.bincount(observations.groups)[observations.groups] == 1
    shuffled = np.random.default_rng(0).permutation(total)
    # Repeats fill half the places at most: the rest of the simplex is to be seen, too.
    repeats, singles = shuffled[~single_N[shuffled]], shuffled[single_N[shuffled]]
    kept = repeats[: max(count // 2, count - len(singles))]
    return np.sort(np.concatenate([kept, singles[: count - len(kept)]]))


def find_hyperparameters(
    features_NF: FloatArray, standard_N: FloatArray, shape_N: FloatArray, prior: Prior | None = None
) -> Hyperparameters:
    """The mode of their posterior; `prior` defaults to that of trained runs."""
    prior = prior or Prior.for_features(features_NF.shape[1])
    reach_P = SEARCH_STDS * prior.std
    result = minimize(
        negative_log_posterior,
        prior.mean,
        args=(features_NF, features_NF @ features_NF.T / features_NF.shape[1], standard_N, prior, shape_N),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([prior.mean - reach_P, prior.mean + reach_P], axis=1),
        options={"maxiter": MAX_ITERATIONS if features_NF.shape[1] <= MANY_FEATURES else MAX_ITERATIONS_OF_MANY, "ftol": TOLERANCE},
    )
    return Hyperparameters.from_logs(result.x)


@dataclass(frozen=True)
class FittedGaussianProcess:
    """Processes of several metrics over the same trials."""

    observations: Observations
    fits: tuple[MetricFit, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Learned noise, shape (metrics,), bits per byte; where it depends on the mixture, its geometric mean over the trials."""
        return np.array([fit.scale * np.sqrt(fit.parameters.noise) for fit in self.fits])

    def noise_at(self, points: Points) -> FloatArray:
        """Learned noise at every point, shape (n, metrics), bits per byte."""
        x_MI = weights(self.observations.align(points))
        return np.stack([fit.scale * np.sqrt(fit.noise_variance(x_MI)) for fit in self.fits], axis=1)

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
        means_MK, stds_MK = np.zeros((2, len(features_MF), len(self.fits)))

        def fill(column: int) -> None:
            fit = self.fits[column]
            for start in range(0, len(features_MF), BLOCK_ROWS):
                rows = slice(start, start + BLOCK_ROWS)
                k_MN = covariance(features_MF[rows], fit.conditioned.features, fit.parameters)
                means_MK[rows, column] = fit.center + fit.scale * fit.conditioned.mean(k_MN)
                if with_std:
                    left_M = variance(features_MF[rows], fit.parameters) - fit.conditioned.removed_variance(k_MN)
                    stds_MK[rows, column] = fit.scale * np.sqrt(np.maximum(left_M, MINIMUM_VARIANCE))

        over_metrics(fill, range(len(self.fits)))
        return means_MK, stds_MK

    def _joint_factor(self, features_MF: FloatArray, fit: MetricFit) -> FloatArray:
        """Cholesky factor of the posterior covariance over points, shape (M, M), bits per byte."""
        k_MN = covariance(features_MF, fit.conditioned.features, fit.parameters)
        left_MM = covariance(features_MF, features_MF, fit.parameters) - fit.conditioned.removed_covariance(k_MN)
        return fit.scale * factor_with_jitter(left_MM)

    def left_out(self, metric: int, numbers_N: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
        """Means and stds of the measurements of each fold given the others, hyperparameters held, both (N,), bits per byte."""
        fit = self.fits[metric]
        x_NI = weights(self.observations.schedules)
        standard_N = (self.observations.values[:, metric] - fit.center) / fit.scale
        features_NF = root_and_log(self.observations.schedules)
        means_N, variances_N = fit.conditioned.left_out(features_NF, standard_N, fit.noise_variance(x_NI), fit.parameters, numbers_N)
        return fit.center + fit.scale * means_N, fit.scale * np.sqrt(np.maximum(variances_N, MINIMUM_VARIANCE))
