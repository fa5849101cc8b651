"""Fits laws with a few parameters: many starts at once, robust to misfit, with a posterior from the curvature at the optimum.

A law predicts standardised losses y from a mixture's weights; parameters have normal priors, which also settle what the data leave open (a law's scale
may be put into several of its parameters). The fit minimizes

    sum_n huber((y_n - f(x_n; theta)) / sigma) + 1/2 sum_p ((theta_p - mean_p) / std_p)^2

by Levenberg-Marquardt with iteratively reweighted residuals, all starts as one batch of small matrices. sigma is the robust scale of the residuals, found in
rounds. Robust, because laws miss mixtures near the corners by much more than noise, and least squares would bend everywhere to meet them
(measured for the log-linear law: Spearman .964 against .873, methods/surrogates-measured.md).

Uncertainty is in two parts, as for trees: *spread*, the Laplace approximation of the parameters carried to the points (joint over them), and *misfit*, what
residuals show beyond seed noise: the same everywhere, independent between mixtures. The main trade-off: a law is rigid, so far from the
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
from mixopt.surrogates.features import weights
from mixopt.surrogates.observations import Observations, repeat_variance
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm

logger = logging.getLogger(__name__)

STARTS = 16
ITERATIONS = 200
# Rounds of sigma; only the best starts of the first round go on.
ROUNDS = 3
SURVIVORS = 4
# Huber's constant: 95% efficient where residuals are normal.
HUBER = 1.345
# Of a normal distribution: standard deviation over median absolute deviation.
MAD_TO_STD = 1.4826
FIRST_SIGMA = 0.3
LEAST_SIGMA = 1e-3
# Least std relative to the metric's scale, and least scale relative to its value.
MINIMUM_RELATIVE_STD = 1e-6
# A step that moves no parameter by more than this share of its prior's std ends a fit.
CONVERGED = 1e-4
LARGEST_EXPONENT = 30.0
FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 1e-2, 1e-9, 1e9


class Law(Protocol):
    """A law of standardised losses."""

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
        observations = Observations.of(swarm, metrics)
        return fit_laws(observations, weights(observations.schedules), (self.law,) * len(metrics))


def fit_laws(observations: Observations, x_NI: FloatArray, laws: Sequence[Law]) -> FittedLaw:
    """One law per metric, fitted on inputs `x_NI`; says in the log which did not settle."""
    columns = zip(laws, observations.values.T, strict=True)
    fits = tuple(fit_law(law, x_NI, outputs_N, observations.groups) for law, outputs_N in columns)
    stuck = [metric for metric, fit in zip(observations.metrics, fits, strict=True) if not fit.converged]
    if stuck:
        logger.warning("%s did not settle on %s in %d steps.", type(laws[0]).__name__, ", ".join(stuck), ITERATIONS)
    return FittedLaw(observations, tuple(laws), fits)


def fit_law(law: Law, x_NI: FloatArray, outputs_N: FloatArray, groups: NDArray[np.int64]) -> LawFit:
    """The posterior mode over all starts and the curvature there. Pure: starts are drawn with a fixed seed."""
    center = float(outputs_N.mean())
    scale = max(float(outputs_N.std()), MINIMUM_RELATIVE_STD * max(abs(center), 1.0))
    y_N = (outputs_N - center) / scale
    mean_P, std_P = law.prior(x_NI.shape[1])
    spread_SP = np.random.default_rng(0).standard_normal((STARTS, len(mean_P)))
    spread_SP[0] = 0.0
    theta_SP, sigma = mean_P + 0.5 * std_P * spread_SP, FIRST_SIGMA
    for _ in range(ROUNDS):
        theta_SP, values_S, moved_S = _minimize(law, theta_SP, x_NI, y_N, sigma, mean_P, std_P)
        order = np.argsort(values_S, kind="stable")[:SURVIVORS]
        theta_SP, moved_S = theta_SP[order], moved_S[order]
        residuals_N = y_N - law.evaluate(theta_SP[:1], x_NI)[0][0]
        sigma = max(MAD_TO_STD * float(np.median(np.abs(residuals_N))), LEAST_SIGMA)
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
    return LawFit(theta_P, factor_PP, center, scale, float(stds[0]), float(stds[1]), bool(moved_S[0] < CONVERGED))


def _minimize(
    law: Law, theta_SP: FloatArray, x_NI: FloatArray, y_N: FloatArray, sigma: float, mean_P: FloatArray, std_P: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Levenberg-Marquardt from every start: parameters, objective, and how far the last step moved in stds of the prior (S,)."""

    def objective(theta_SP: FloatArray, values_SN: FloatArray) -> FloatArray:
        size_SN = np.abs(y_N - values_SN) / sigma
        loss_SN = np.where(size_SN <= HUBER, 0.5 * size_SN**2, HUBER * (size_SN - 0.5 * HUBER))
        return np.asarray(loss_SN.sum(axis=1) + 0.5 * (((theta_SP - mean_P) / std_P) ** 2).sum(axis=1))

    values_SN, jacobian_SNP = law.evaluate(theta_SP, x_NI)
    best_S = objective(theta_SP, values_SN)
    damping_S, moved_S = np.full(len(theta_SP), FIRST_DAMPING), np.full(len(theta_SP), np.inf)
    diagonal = np.arange(theta_SP.shape[1])
    for _ in range(ITERATIONS):
        residuals_SN = (y_N - values_SN) / sigma
        weighted_SNP = jacobian_SNP * (_robust_weights(residuals_SN) / sigma)[:, :, None]
        curvature_SPP = weighted_SNP.transpose(0, 2, 1) @ (jacobian_SNP / sigma)
        curvature_SPP[:, diagonal, diagonal] += std_P**-2
        slope_SP = np.einsum("snp,sn->sp", weighted_SNP, residuals_SN) + (mean_P - theta_SP) / std_P**2
        curvature_SPP[:, diagonal, diagonal] *= 1 + damping_S[:, None]
        step_SP = np.linalg.solve(curvature_SPP, slope_SP[:, :, None])[:, :, 0]
        tried_SP = theta_SP + step_SP
        tried_values_SN, tried_jacobian_SNP = law.evaluate(tried_SP, x_NI)
        tried_S = objective(tried_SP, tried_values_SN)
        better_S = tried_S < best_S
        moved_S = np.where(better_S | (damping_S > 1), np.abs(step_SP / std_P).max(axis=1), moved_S)
        theta_SP = np.where(better_S[:, None], tried_SP, theta_SP)
        values_SN = np.where(better_S[:, None], tried_values_SN, values_SN)
        jacobian_SNP = np.where(better_S[:, None, None], tried_jacobian_SNP, jacobian_SNP)
        best_S = np.where(better_S, tried_S, best_S)
        damping_S = np.clip(np.where(better_S, damping_S / 4, damping_S * 6), LEAST_DAMPING, MOST_DAMPING)
        if (moved_S < CONVERGED).all():
            break
    return theta_SP, best_S, moved_S


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
        return self._mean(self.observations.inputs(points))

    def _mean(self, x_MI: FloatArray) -> FloatArray:
        pairs = zip(self.laws, self.fits, strict=True)
        return np.stack([fit.center + fit.scale * law.evaluate(fit.theta[None], x_MI)[0][0] for law, fit in pairs], axis=1)

    def posterior(self, points: Points) -> GaussianPosterior:
        """The laws, their spread and their misfit at `points`."""
        x_MI = self.observations.inputs(points)
        pairs = zip(self.laws, self.fits, strict=True)
        spreads = [fit.scale * law.evaluate(fit.theta[None], x_MI)[1][0] @ fit.factor for law, fit in pairs]
        variances = [(spread**2).sum(axis=1) + fit.misfit_std**2 for spread, fit in zip(spreads, self.fits, strict=True)]
        # Points at the same mixture share their misfit, so that a mixture never differs from itself.
        same = np.unique(x_MI, axis=0, return_inverse=True)[1].reshape(-1)

        def factor(metric: int) -> FloatArray:
            misfit = self.fits[metric].misfit_std * np.equal.outer(same, np.unique(same))
            return np.concatenate([spreads[metric], misfit], axis=1)

        return GaussianPosterior(self._mean(x_MI), np.sqrt(np.stack(variances, axis=1)), factor)
