"""Fits laws with a few parameters: many starts at once, robust to misfit, with a posterior from the curvature at the optimum.

A law predicts standardised losses y from a mixture's weights; parameters have normal priors, which also settle what the data leave open (a law's scale
may be put into several of its parameters). The fit minimizes

    sum_n huber((y_n - f(x_n; theta)) / sigma) + 1/2 sum_p ((theta_p - mean_p) / std_p)^2

by Levenberg-Marquardt with iteratively reweighted residuals, all starts as one batch of small matrices. sigma is the robust scale of the residuals, found in
rounds. Robust, because laws miss mixtures near the corners by much more than noise, and least squares would bend everywhere to meet them
(measured for the log-linear law: Spearman .964 against .873, methods/surrogates-measured.md).

Uncertainty is in two parts, as for trees: *spread*, the Laplace approximation of the parameters carried to the points (joint over them), and *misfit*, what
residuals show beyond seed noise: of the same size everywhere, and alike at neighbouring mixtures (`misfit`). The main trade-off: a law is rigid, so far from the
swarm it is more certain than it should be.

Inputs are the weights of all phases, side by side; laws over several sources have the source's size and tokens beside them (`scaling_law`).

Legend: N trials, M points, I inputs, P parameters, S starts.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixopt.mixture import FloatArray
from mixopt.surrogates.cross_validation import OutOfFold, checked_folds, out_of_fold_by
from mixopt.surrogates.features import weights
from mixopt.surrogates.misfit import misfit_factor
from mixopt.surrogates.observations import Observations, mixture_groups, repeat_variance
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.surrogates.threads import over_metrics
from mixopt.swarm import Points, Swarm

logger = logging.getLogger(__name__)

STARTS = 16
ITERATIONS = 200
# Rounds of sigma after the first; only the best starts of the first go on.
ROUNDS = 2
# From the solution on nearly the same trials one is enough.
WARM_ROUNDS = 1
SURVIVORS = 4
# Trials that the first round looks at, at most; with many parameters it takes fewer starts, one of them goes on, and every fit ends sooner.
FIRST_TRIALS, FIRST_TRIALS_PER_PARAMETER = 512, 4
MANY_PARAMETERS, ITERATIONS_OF_MANY = 64, 60
# Huber's constant: 95% efficient where residuals are normal.
HUBER = 1.345
# Of a normal distribution: standard deviation over median absolute deviation.
MAD_TO_STD = 1.4826
FIRST_SIGMA = 0.3
LEAST_SIGMA = 1e-3
# Least std relative to the metric's scale, and least scale relative to its value.
MINIMUM_RELATIVE_STD = 1e-6
# A step that lowers the negative log posterior by less, per parameter, ends a fit: draws from the posterior differ by a half, per parameter. Parameters may still
# drift then, along a flat valley and to no effect.
CONVERGED = 1e-4
LARGEST_EXPONENT = 30.0
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-9, 1e9


class Law(Protocol):
    """A law of standardised losses.

    One that has logarithms of quantities for parameters may say which, as an attribute `logarithms` (a slice): it is then fitted in fewer steps.
    """

    def prior(self, inputs: int) -> tuple[FloatArray, FloatArray]:
        """Mean and std of each parameter, shape (P,)."""
        ...

    def evaluate(self, theta_SP: FloatArray, x_NI: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Losses (S, N) and their derivatives by the parameters (S, N, P)."""
        ...


@dataclass(frozen=True)
class LawFit:
    """The law of one metric.

    Attributes:
        theta: parameters, shape (P,).
        factor: F of shape (P, P) with F F^T the posterior covariance of the parameters.
        center, scale: bits per byte; losses are standardised with them.
        misfit_std, noise_std: bits per byte.
        converged: whether the best start stopped moving.
    """

    theta: FloatArray
    factor: FloatArray
    center: float
    scale: float
    misfit_std: float
    noise_std: float
    converged: bool


@dataclass(frozen=True)
class ParametricSurrogate:
    """Fits `law` per metric; see the module's docstring."""

    law: Law

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedLaw:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`).
        """
        return self._fit(swarm, metrics, None)

    def fit_with_out_of_fold(self, swarm: Swarm, metrics: Sequence[str], folds: int, seed: int) -> tuple[FittedLaw, OutOfFold]:
        """As `fit`, and predictions out of fold: each fold's fit starts where the one on all trials ended, and settles anew.

        Raises:
            TooFewToCheck: see `cross_validation.checked_folds`.
        """
        checked_folds(mixture_groups(swarm), folds, seed)
        fitted = self._fit(swarm, metrics, None)
        starts = [fit.theta[None] for fit in fitted.fits]
        return fitted, out_of_fold_by(lambda part: self._fit(part, metrics, starts), swarm, metrics, folds, seed)

    def _fit(self, swarm: Swarm, metrics: Sequence[str], starts: Sequence[FloatArray] | None) -> FittedLaw:
        observations = Observations.of(swarm, metrics)
        laws = (self.law,) * len(metrics)
        return fit_laws(observations, weights(observations.schedules), laws, starts)


def fit_laws(observations: Observations, x_NI: FloatArray, laws: Sequence[Law], starts: Sequence[FloatArray] | None = None) -> FittedLaw:
    """One law per metric, fitted on inputs `x_NI`; says in the log which did not settle.

    Args:
        starts: parameters to start from, per metric (S, P); None: many, drawn.
    """
    fits = over_metrics(
        lambda column: fit_law(
            laws[column], x_NI, observations.values[:, column], observations.groups, None if starts is None else starts[column]
        ),
        range(len(laws)),
    )
    stuck = [metric for metric, fit in zip(observations.metrics, fits, strict=True) if not fit.converged]
    if stuck:
        logger.warning("%s did not settle on %s.", type(laws[0]).__name__, ", ".join(stuck))
    return FittedLaw(observations, tuple(laws), fits)


def fit_law(law: Law, x_NI: FloatArray, outputs_N: FloatArray, groups: NDArray[np.int64], starts_SP: FloatArray | None = None) -> LawFit:
    """The posterior mode over all starts and the curvature there. Pure: starts are drawn with a fixed seed, unless they are given."""
    center = float(outputs_N.mean())
    scale = max(float(outputs_N.std()), MINIMUM_RELATIVE_STD * (abs(center) or 1.0))
    y_N = (outputs_N - center) / scale
    mean_P, std_P = law.prior(x_NI.shape[1])
    rounds = WARM_ROUNDS
    if starts_SP is None:
        rounds = ROUNDS
        rows = _some_rows(len(y_N), len(mean_P))
        starts_SP = _first_round(law, x_NI[rows], y_N[rows], mean_P, std_P)
        if len(rows) < len(y_N):
            starts_SP = _settle(law, starts_SP, x_NI[rows], y_N[rows], mean_P, std_P, rounds)[0]
    theta_SP, gained_S, sigma = _settle(law, starts_SP, x_NI, y_N, mean_P, std_P, rounds)
    theta_P = theta_SP[0]
    residuals_N, jacobian_NP = (part[0] for part in law.evaluate(theta_P[None], x_NI))
    residuals_N = y_N - residuals_N
    information_PP = (jacobian_NP.T * _robust_weights(residuals_N / sigma)) @ jacobian_NP / sigma**2
    covariance_PP = np.linalg.inv(information_PP + np.diag(std_P**-2))
    used = float(np.trace(covariance_PP @ information_PP))
    unexplained = float(residuals_N @ residuals_N) / max(len(y_N) - used, 1.0)
    repeats = repeat_variance(y_N, groups)
    noise = unexplained / 2 if repeats is None else repeats
    misfit = unexplained / 2 if repeats is None else max(unexplained - repeats, 0.0)
    stds = scale * np.maximum(np.sqrt([misfit, noise]), MINIMUM_RELATIVE_STD)
    eigenvalues_P, vectors_PP = np.linalg.eigh(covariance_PP)
    factor_PP = vectors_PP * np.sqrt(np.maximum(eigenvalues_P, 0.0))
    return LawFit(theta_P, factor_PP, center, scale, float(stds[0]), float(stds[1]), bool(gained_S[0] < CONVERGED * len(mean_P)))


def _some_rows(trials: int, parameters: int) -> NDArray[np.int64]:
    """Of many trials, a part: finding the basin takes a few trials per parameter, its floor takes all of them."""
    count = max(FIRST_TRIALS, FIRST_TRIALS_PER_PARAMETER * parameters)
    return np.random.default_rng(1).permutation(trials)[:count] if trials > count else np.arange(trials)


def _first_round(law: Law, x_NI: FloatArray, y_N: FloatArray, mean_P: FloatArray, std_P: FloatArray) -> FloatArray:
    """Where the best of many starts end with the first sigma, shape (SURVIVORS, P), best first."""
    starts, kept = (STARTS, SURVIVORS) if len(mean_P) <= MANY_PARAMETERS else (SURVIVORS, 1)
    spread_SP = np.random.default_rng(0).standard_normal((starts, len(mean_P)))
    spread_SP[0] = 0.0
    theta_SP, values_S, _ = _minimize(law, mean_P + 0.5 * std_P * spread_SP, x_NI, y_N, FIRST_SIGMA, mean_P, std_P)
    return np.asarray(theta_SP[np.argsort(values_S, kind="stable")[:kept]])


def _settle(
    law: Law, theta_SP: FloatArray, x_NI: FloatArray, y_N: FloatArray, mean_P: FloatArray, std_P: FloatArray, rounds: int
) -> tuple[FloatArray, FloatArray, float]:
    """Rounds of sigma: parameters, best first, how much the last step of each gained (S,), and the last sigma."""
    sigma, gained_S = LEAST_SIGMA, np.full(len(theta_SP), np.inf)
    for _ in range(rounds):
        residuals_N = y_N - law.evaluate(theta_SP[:1], x_NI)[0][0]
        sigma = max(MAD_TO_STD * float(np.median(np.abs(residuals_N))), LEAST_SIGMA)
        theta_SP, values_S, gained_S = _minimize(law, theta_SP, x_NI, y_N, sigma, mean_P, std_P)
        order = np.argsort(values_S, kind="stable")
        theta_SP, gained_S = theta_SP[order], gained_S[order]
    return theta_SP, gained_S, sigma


def _minimize(
    law: Law, theta_SP: FloatArray, x_NI: FloatArray, y_N: FloatArray, sigma: float, mean_P: FloatArray, std_P: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Levenberg-Marquardt from every start: parameters, objective, and how much the last step lowered it (S,)."""

    def objective(theta_SP: FloatArray, values_SN: FloatArray) -> FloatArray:
        size_SN = np.abs(y_N - values_SN) / sigma
        loss_SN = np.where(size_SN <= HUBER, 0.5 * size_SN**2, HUBER * (size_SN - 0.5 * HUBER))
        return np.asarray(loss_SN.sum(axis=1) + 0.5 * (((theta_SP - mean_P) / std_P) ** 2).sum(axis=1))

    values_SN, jacobian_SNP = law.evaluate(theta_SP, x_NI)
    best_S = objective(theta_SP, values_SN)
    damping_S, gained_S = np.full(len(theta_SP), FIRST_DAMPING), np.full(len(theta_SP), np.inf)
    diagonal = np.arange(theta_SP.shape[1])
    logarithms = diagonal[getattr(law, "logarithms", slice(0))]
    for _ in range(ITERATIONS if len(mean_P) <= MANY_PARAMETERS else ITERATIONS_OF_MANY):
        residuals_SN = (y_N - values_SN) / sigma
        weighted_SNP = jacobian_SNP * (_robust_weights(residuals_SN) / sigma)[:, :, None]
        curvature_SPP = weighted_SNP.transpose(0, 2, 1) @ (jacobian_SNP / sigma)
        curvature_SPP[:, diagonal, diagonal] += std_P**-2
        slope_SP = np.einsum("snp,sn->sp", weighted_SNP, residuals_SN)
        # The second derivative of an exponential is its first, which Gauss and Newton leave out; without it steps overshoot where a worth goes to nothing.
        curvature_SPP[:, logarithms, logarithms] += np.abs(slope_SP[:, logarithms])
        slope_SP += (mean_P - theta_SP) / std_P**2
        curvature_SPP[:, diagonal, diagonal] *= 1 + damping_S[:, None]
        step_SP = np.linalg.solve(curvature_SPP, slope_SP[:, :, None])[:, :, 0]
        tried_SP = theta_SP + step_SP
        tried_values_SN, tried_jacobian_SNP = law.evaluate(tried_SP, x_NI)
        tried_S = objective(tried_SP, tried_values_SN)
        better_S = tried_S < best_S
        # A step that does not help says nothing while it is long.
        gained_S = np.where(better_S, best_S - tried_S, np.where(damping_S > 1, 0.0, gained_S))
        theta_SP = np.where(better_S[:, None], tried_SP, theta_SP)
        values_SN = np.where(better_S[:, None], tried_values_SN, values_SN)
        jacobian_SNP = np.where(better_S[:, None, None], tried_jacobian_SNP, jacobian_SNP)
        best_S = np.where(better_S, tried_S, best_S)
        damping_S = np.clip(np.where(better_S, damping_S / 4, damping_S * 6), LEAST_DAMPING, MOST_DAMPING)
        if (gained_S < CONVERGED * len(mean_P)).all():
            break
    return theta_SP, best_S, gained_S


def _robust_weights(residuals: FloatArray) -> FloatArray:
    """Huber's, of residuals in units of sigma."""
    return np.asarray(np.minimum(1.0, HUBER / np.maximum(np.abs(residuals), 1e-12)))


def bounded_exp(exponents: FloatArray) -> FloatArray:
    """exp, of exponents that a wild step may make huge."""
    return np.asarray(np.exp(np.clip(exponents, -LARGEST_EXPONENT, LARGEST_EXPONENT)))


@dataclass(frozen=True)
class FittedLaw:
    """Laws of several metrics over the same trials, one each."""

    observations: Observations
    laws: tuple[Law, ...]
    fits: tuple[LawFit, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Seed noise from repeats, or half the unexplained variance without them; shape (metrics,), bits per byte."""
        return np.array([fit.noise_std for fit in self.fits])

    def mean(self, points: Points) -> FloatArray:
        """The laws at their best parameters, shape (n, metrics)."""
        return self.values_at(self.observations.inputs(points))

    def values_at(self, x_MI: FloatArray) -> FloatArray:
        """As `mean`, of inputs."""
        pairs = zip(self.laws, self.fits, strict=True)
        return np.stack([fit.center + fit.scale * law.evaluate(fit.theta[None], x_MI)[0][0] for law, fit in pairs], axis=1)

    def drift(self, x_MI: FloatArray) -> FloatArray:
        """An error that all points share, times its standard deviation, (M, metrics), bits per byte; laws of mixtures alone have none."""
        return np.zeros((len(x_MI), len(self.fits)))

    def posterior(self, points: Points) -> GaussianPosterior:
        """The laws, their spread, their misfit and their drift at `points`."""
        x_MI = self.observations.inputs(points)
        pairs = zip(self.laws, self.fits, strict=True)
        spreads = [fit.scale * law.evaluate(fit.theta[None], x_MI)[1][0] @ fit.factor for law, fit in pairs]
        variances = [(spread**2).sum(axis=1) + fit.misfit_std**2 for spread, fit in zip(spreads, self.fits, strict=True)]
        drift_MK = self.drift(x_MI)
        schedules_MPD = self.observations.align(points)
        beside_MO = x_MI[:, schedules_MPD[0].size :] if len(schedules_MPD) else x_MI

        def factor(metric: int) -> FloatArray:
            misfit_MM = self.fits[metric].misfit_std * misfit_factor(schedules_MPD, beside_MO)
            return np.concatenate([spreads[metric], misfit_MM, drift_MK[:, metric : metric + 1]], axis=1)

        return GaussianPosterior(self.values_at(x_MI), np.sqrt(np.stack(variances, axis=1) + drift_MK**2), factor)
