"""Losses of few trained runs regressed on what averaging evaluators say of their mixtures, with uncertainty that few runs leave honest.

Of one metric, all in units of the spread of its losses,

    y(p) = level + slope . z(p) + linear w(p) + near(p) + far(p) + bend(z(p)) + noise

z: what each evaluator says of this metric, standardised; w: weights and their square roots; near, far and bend: Matern-5/2 processes, of w with the
lengthscales of the evaluators' own processes (what matters to the evaluator matters to what it misses), of `root_and_log`, and of z, for relations that are not
straight. A normal prior on every term, whose variances are hyperparameters.

Few runs do not tell those variances, and their mode is overconfident: at 8 runs of made-up laws 90% intervals held 67% to 76% of truths, and 79% to 88% averaged
over variances. So the posterior is a mean over variances drawn from Laplace's approximation of theirs, by importance, put together as one normal distribution
(law of total covariance); lengths stay at their mode, so that a mean costs one kernel, however many draws. What evaluators say of *other* metrics (X-MDE,
arXiv 2502.15950, takes all) is left out: with them errors were .95 to 1.07 times as large, and a metric's answer would hang on which others are asked for.

Legend: N runs, M points, E evaluators, F and G features, P hyperparameters, T terms, S draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, lapack, solve_triangular
from scipy.optimize import minimize
from scipy.special import logsumexp

from mixopt.mixture import FloatArray
from mixopt.surrogates.gaussian_process import MINIMUM_RELATIVE_SCALE, MINIMUM_VARIANCE, SEARCH_STDS
from mixopt.surrogates.kernel import JITTER, Prior, matern_arguments
from mixopt.surrogates.misfit import factor_with_jitter
from mixopt.surrogates.source_kernel import IntArray

PRIOR = Prior(
    np.array([0.0, -3.0, -1.5, -3.0, -3.0, 0.0, 0.0, 0.7, -4.0]),
    np.array([1.0, 1.5, 1.5, 1.5, 1.5, 0.5, 0.5, 0.5, 1.5]),
)
"""Of logarithms: variances of slope, linear, near, far and bend; lengths of the last three; noise variance. The evaluator is believed before what it misses."""
LINEAR, SMOOTH = 2, 3
TERMS = LINEAR + SMOOTH
VARIANCES = np.array([0, 1, 2, 3, 4, 8])
"""Which hyperparameters are averaged over."""
PAIRS = 8
"""Of draws of them, antithetic: coverage was the same with 8, 32 and 128."""
STEP = 1e-3
"""Of the differences of gradients that give the curvature at the mode."""
SCALE_RUNS = 2.0
"""The spread of the runs' losses is taken together with the evaluator's, as so many runs of it: one run has none."""


@dataclass(frozen=True)
class Inputs:
    """Of runs or points: `said` (n, E) by evaluators, standardised; `linear` and `near` (n, F); `far` (n, G). Features are divided by their lengths."""

    said: FloatArray
    linear: FloatArray
    near: FloatArray
    far: FloatArray

    def terms(self, other: Inputs) -> tuple[FloatArray, FloatArray]:
        """Products (LINEAR, M, N) of linear terms, and Matern arguments (SMOOTH, M, N) of smooth ones at length 1."""
        products = np.stack([self.said @ other.said.T, self.linear @ other.linear.T])
        pairs = ((self.near, other.near), (self.far, other.far), (self.said, other.said))
        return products, np.stack([matern_arguments(mine, theirs) for mine, theirs in pairs])

    def rows(self, rows: IntArray) -> Inputs:
        """Some of the points."""
        return Inputs(self.said[rows], self.linear[rows], self.near[rows], self.far[rows])


def matern(arguments: FloatArray) -> FloatArray:
    """Matern-5/2 of arguments s = sqrt(5) r (Rasmussen & Williams 2006, equation 4.17)."""
    return np.asarray((1 + arguments + arguments**2 / 3) * np.exp(-arguments))


def negative_log_posterior(
    logs_P: FloatArray, products_TNN: FloatArray, arguments_TNN: FloatArray, outputs_N: FloatArray
) -> tuple[float, FloatArray]:
    """Negative log marginal likelihood (Rasmussen & Williams 2006, equations 5.8 and 5.9) minus log prior, up to a constant, and its gradient (P,)."""
    values_P = np.exp(logs_P)
    scaled_TNN = arguments_TNN / values_P[TERMS : TERMS + SMOOTH, None, None]
    parts_TNN = np.concatenate([products_TNN, matern(scaled_TNN)])
    k_NN = 1 + np.tensordot(values_P[:TERMS], parts_TNN, 1)
    k_NN[np.diag_indices(len(k_NN))] += values_P[-1] + JITTER
    factor_NN, failed = lapack.dpotrf(k_NN, lower=1)
    if failed:  # rounding at an extreme step of the search: a value that no step is taken to
        return 1e25, np.zeros_like(logs_P)
    inverse_NN = cho_solve((factor_NN, True), np.eye(len(k_NN)))
    alpha_N = inverse_NN @ outputs_N
    value = 0.5 * outputs_N @ alpha_N + np.log(np.diag(factor_NN)).sum()
    weight_NN = inverse_NN - np.outer(alpha_N, alpha_N)  # d value = 1/2 sum(weight * dK)
    by_length_TNN = scaled_TNN**2 * (1 + scaled_TNN) * np.exp(-scaled_TNN) / 3  # d matern / d log length
    gradient_P = 0.5 * np.concatenate(
        [
            values_P[:TERMS] * np.tensordot(parts_TNN, weight_NN, 2),
            values_P[LINEAR:TERMS] * np.tensordot(by_length_TNN, weight_NN, 2),
            [values_P[-1] * np.trace(weight_NN)],
        ]
    )
    standard_P = (logs_P - PRIOR.mean) / PRIOR.std
    return float(value + 0.5 * standard_P @ standard_P), gradient_P + standard_P / PRIOR.std


def draw_hyperparameters(products_TNN: FloatArray, arguments_TNN: FloatArray, outputs_N: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Draws of their logarithms (S, P), lengths at the mode, and what each counts (S,), summing to 1."""
    reach_P = SEARCH_STDS * PRIOR.std
    low_P, high_P = PRIOR.mean - reach_P, PRIOR.mean + reach_P
    args = (products_TNN, arguments_TNN, outputs_N)
    bounds = np.stack([low_P, high_P], axis=1)
    mode_P = minimize(negative_log_posterior, PRIOR.mean, args=args, jac=True, method="L-BFGS-B", bounds=bounds).x
    steps_VP = STEP * np.eye(len(mode_P))[VARIANCES]
    change = [negative_log_posterior(mode_P + step, *args)[1] - negative_log_posterior(mode_P - step, *args)[1] for step in steps_VP]
    curvature_VV = np.stack(change)[:, VARIANCES] / (2 * STEP)
    eigenvalues_V, vectors_VV = np.linalg.eigh((curvature_VV + curvature_VV.T) / 2)
    # No direction is drawn wider than the widest prior is.
    eigenvalues_V = np.maximum(eigenvalues_V, 0.5 / PRIOR.std.max() ** 2)
    normal_SV = np.random.default_rng(0).standard_normal((PAIRS, len(VARIANCES)))
    normal_SV = np.concatenate([normal_SV, -normal_SV])
    draws_SP = np.tile(mode_P, (len(normal_SV), 1))
    draws_SP[:, VARIANCES] += (normal_SV / np.sqrt(eigenvalues_V)) @ vectors_VV.T
    draws_SP = np.clip(draws_SP, low_P, high_P)
    log_S = 0.5 * (normal_SV**2).sum(axis=1) - np.array([negative_log_posterior(draw, *args)[0] for draw in draws_SP])
    counts_S = np.exp(log_S - log_S.max())
    return draws_SP, counts_S / counts_S.sum()


@dataclass(frozen=True)
class Regression:
    """Of one metric, conditioned on its runs' losses.

    Attributes:
        center, scale: bits per byte; outputs are standardised with them.
        inputs: of the runs.
        lengths: of the smooth terms, (SMOOTH,).
        variances: of the terms, draw by draw, (S, TERMS); `noise` and `counts` of the draws, both (S,).
        factors: of the covariances of the runs, (S, N, N); `alphas`: their inverses times the outputs, (S, N).
        pull: alphas times variances, averaged over draws, (TERMS, N); `level`: mean of the constant term.
    """

    center: float
    scale: float
    inputs: Inputs
    lengths: FloatArray
    variances: FloatArray
    noise: FloatArray
    counts: FloatArray
    factors: FloatArray
    alphas: FloatArray
    pull: FloatArray
    level: float

    @classmethod
    def of(cls, inputs: Inputs, outputs_N: FloatArray, evaluator_std: float) -> Regression:
        """Of losses in bits per byte; `evaluator_std` is the spread of the evaluator's losses, bits per byte."""
        center = float(outputs_N.mean())
        squares = float(((outputs_N - center) ** 2).sum()) + SCALE_RUNS * evaluator_std**2
        scale = max(float(np.sqrt(squares / (len(outputs_N) + SCALE_RUNS))), MINIMUM_RELATIVE_SCALE * (abs(center) or 1.0))
        standard_N = (outputs_N - center) / scale
        products_TNN, arguments_TNN = inputs.terms(inputs)
        draws_SP, counts_S = draw_hyperparameters(products_TNN, arguments_TNN, standard_N)
        values_SP = np.exp(draws_SP)
        lengths, variances_ST, noise_S = values_SP[0, TERMS : TERMS + SMOOTH], values_SP[:, :TERMS], values_SP[:, -1]
        parts_TNN = np.concatenate([products_TNN, matern(arguments_TNN / lengths[:, None, None])])
        k_SNN = 1 + np.tensordot(variances_ST, parts_TNN, 1) + (noise_S[:, None, None] + JITTER) * np.eye(len(standard_N))
        factors_SNN = np.stack([cholesky(k_NN, lower=True) for k_NN in k_SNN])
        alphas_SN = np.stack([cho_solve((factor_NN, True), standard_N) for factor_NN in factors_SNN])
        pull_TN = (counts_S[:, None] * variances_ST).T @ alphas_SN
        level = float(counts_S @ alphas_SN.sum(axis=1))
        return cls(center, scale, inputs, lengths, variances_ST, noise_S, counts_S, factors_SNN, alphas_SN, pull_TN, level)

    @property
    def noise_std(self) -> float:
        """Seed noise of a run, bits per byte."""
        return float(self.scale * np.sqrt(self.counts @ self.noise))

    def log_density_left_out(self) -> float:
        """Sum of log densities of the runs, each left out (Rasmussen & Williams 2006, equations 5.10 to 5.12), up to a constant; bits per byte."""
        identity_NN = np.eye(self.alphas.shape[1])
        precision_SN = np.stack([np.diag(cho_solve((factor_NN, True), identity_NN)) for factor_NN in self.factors])
        log_SN = 0.5 * (np.log(precision_SN) - self.alphas**2 / precision_SN)
        return float(logsumexp(log_SN, axis=0, b=self.counts[:, None]).sum() - self.alphas.shape[1] * np.log(self.scale))

    def _parts(self, points: Inputs, others: Inputs) -> FloatArray:
        """Shape (TERMS, M, N): every term's covariance at variance 1."""
        products, arguments = points.terms(others)
        return np.concatenate([products, matern(arguments / self.lengths[:, None, None])])

    def mean(self, points: Inputs) -> FloatArray:
        """Shape (M,), bits per byte."""
        return self._mean(self._parts(points, self.inputs))

    def _mean(self, parts_TMN: FloatArray) -> FloatArray:
        return np.asarray(self.center + self.scale * (self.level + np.einsum("tmn,tn->m", parts_TMN, self.pull)))

    def slopes(self, points: Inputs) -> FloatArray:
        """Of the mean by what evaluators say there, shape (M, E), bits per byte per unit."""
        straight_E = self.pull[0] @ self.inputs.said
        s_MN = matern_arguments(points.said, self.inputs.said) / self.lengths[-1]
        pull_MN = self.pull[-1] * (-5 / 3) * (1 + s_MN) * np.exp(-s_MN) / self.lengths[-1] ** 2
        bend_ME = points.said * pull_MN.sum(axis=1)[:, None] - pull_MN @ self.inputs.said
        return np.asarray(self.scale * (straight_E + bend_ME))

    def moments(self, points: Inputs) -> tuple[FloatArray, FloatArray]:
        """Means and variances of noise-free losses given what evaluators say, both (M,), (squared) bits per byte."""
        parts_TMN = self._parts(points, self.inputs)
        mean_M, shift_SM = self._mean(parts_TMN), self._shifts(parts_TMN)
        own_TM = np.stack([(points.said**2).sum(axis=1), (points.linear**2).sum(axis=1), *np.ones((SMOOTH, len(mean_M)))])
        left_M = np.zeros(len(mean_M))
        for draw, count in enumerate(self.counts):
            explained_NM = solve_triangular(self.factors[draw], 1 + np.tensordot(self.variances[draw], parts_TMN, 1).T, lower=True)
            left_M += count * (1 + self.variances[draw] @ own_TM - np.einsum("nm,nm->m", explained_NM, explained_NM))
        variance_M = np.maximum(left_M, MINIMUM_VARIANCE) + self.counts @ shift_SM**2
        return mean_M, self.scale**2 * variance_M

    def _shifts(self, parts_TMN: FloatArray) -> FloatArray:
        """By how much each draw's mean differs from the mean of all, (S, M), standardised."""
        means_SM = np.stack(
            [
                alpha_N.sum() + np.einsum("t,tmn,n->m", row_T, parts_TMN, alpha_N)
                for row_T, alpha_N in zip(self.variances, self.alphas, strict=True)
            ]
        )
        return np.asarray(means_SM - self.counts @ means_SM)

    def joint_factor(self, points: Inputs) -> FloatArray:
        """Cholesky factor of the covariance of points given what evaluators say, shape (M, M), bits per byte."""
        parts_TMN, own_TMM = self._parts(points, self.inputs), self._parts(points, points)
        shift_SM = self._shifts(parts_TMN)
        left_MM = 1 + np.tensordot(self.counts @ self.variances, own_TMM, 1) + (self.counts[:, None] * shift_SM).T @ shift_SM
        for draw, count in enumerate(self.counts):
            explained_NM = solve_triangular(self.factors[draw], 1 + np.tensordot(self.variances[draw], parts_TMN, 1).T, lower=True)
            left_MM -= count * explained_NM.T @ explained_NM
        return self.scale * factor_with_jitter(left_MM)
