"""Ridge regression on features of a mixture, its penalty the one of largest evidence, with the posterior that goes with it.

Written on one eigendecomposition of the kernel of the trials: every penalty on the grid then costs a sum, and features may be far more than
trials. Features are centred, so that the constant is not penalized, and not scaled: their own sizes say how much a domain can matter. Measured on RegMix's Pile-CC,
32 runs, Spearman of `ridge`: .960; with scaled features .939; with the penalty chosen by leave-one-out error .75.

Uncertainty as for laws (`parametric`): the spread of the coefficients given the penalty (Bayesian linear regression, Rasmussen & Williams 2006, section
2.1), and a misfit, the same everywhere, for what errors on mixtures left out show beyond it.

Legend: N trials, M points, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.mixture import FloatArray
from mixopt.surrogates.observations import Observations, repeat_variance
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm

PENALTIES = np.geomspace(1e-6, 1e3, 46)
"""Noise variance over the mean variance that the features give to a trial."""
MINIMUM_RELATIVE_STD = 1e-6

Features = Callable[[FloatArray], FloatArray]
"""Schedules (n, phases, domains) -> features (n, F)."""


@dataclass(frozen=True)
class LinearFit:
    """Of one metric: the dual coefficients (N,), the inverse of kernel plus penalty (N, N), all of standardised losses."""

    dual: FloatArray
    inverse: FloatArray
    center: float
    scale: float
    signal: float
    misfit_std: float
    noise_std: float


@dataclass(frozen=True)
class LinearSurrogate:
    """Ridge regression of every metric on `features`."""

    features: Features

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedLinear:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`).
        """
        observations = Observations.of(swarm, metrics)
        x_NF = self.features(observations.schedules)
        center_F = x_NF.mean(axis=0)
        unit = max(float(np.sqrt((x_NF - center_F).var(axis=0).sum())), MINIMUM_RELATIVE_STD)
        z_NF = (x_NF - center_F) / unit
        kernel_NN = z_NF @ z_NF.T
        fits = tuple(_fit_metric(kernel_NN, outputs_N, observations.groups) for outputs_N in observations.values.T)
        return FittedLinear(observations, self.features, center_F, unit, z_NF, fits)


def _fit_metric(kernel_NN: FloatArray, outputs_N: FloatArray, groups: NDArray[np.int64]) -> LinearFit:
    center = float(outputs_N.mean())
    scale = max(float(outputs_N.std()), MINIMUM_RELATIVE_STD * max(abs(center), 1.0))
    y_N = (outputs_N - center) / scale
    eigenvalues_N, vectors_NN = np.linalg.eigh(kernel_NN)
    repeated = [np.flatnonzero(groups == group) for group in np.flatnonzero(np.bincount(groups) > 1)]

    def inverse(penalty: float) -> FloatArray:
        return np.asarray((vectors_NN / (np.maximum(eigenvalues_N, 0.0) + penalty)) @ vectors_NN.T)

    def errors(penalty: float) -> FloatArray:
        """Errors on mixtures left out one by one, all from one inverse (Rasmussen & Williams 2006, equation 5.12; by blocks where one repeats)."""
        inverse_NN = inverse(penalty)
        dual_N = inverse_NN @ y_N
        errors_N = dual_N / np.diag(inverse_NN)
        for rows in repeated:
            errors_N[rows] = np.linalg.solve(inverse_NN[np.ix_(rows, rows)], dual_N[rows])
        return np.asarray(errors_N)

    projected_N = (vectors_NN.T @ y_N) ** 2

    def negative_log_evidence(penalty: float) -> float:
        """Rasmussen & Williams 2006, equation 5.8, at the best signal variance."""
        spread_N = np.maximum(eigenvalues_N, 0.0) + penalty
        return float(0.5 * len(y_N) * np.log(max((projected_N / spread_N).sum(), 1e-300)) + 0.5 * np.log(spread_N).sum())

    penalty = float(PENALTIES[int(np.argmin([negative_log_evidence(penalty) for penalty in PENALTIES]))])
    inverse_NN = inverse(penalty)
    dual_N = inverse_NN @ y_N
    # The mode of the noise given the penalty; the signal's variance follows from it.
    noise = max(float(y_N @ dual_N) / len(y_N) * penalty, MINIMUM_RELATIVE_STD**2)
    signal = noise / penalty
    unexplained = float(np.mean(errors(penalty) ** 2))
    repeats = repeat_variance(y_N, groups)
    seed_noise = min(noise, unexplained) if repeats is None else repeats
    leave_out_N = 1.0 / np.diag(inverse_NN) * signal  # variance of a held-out measurement under the model
    misfit = max(unexplained - float(np.mean(leave_out_N)), 0.0) + max(noise - seed_noise, 0.0)
    stds = scale * np.maximum(np.sqrt([misfit, seed_noise]), MINIMUM_RELATIVE_STD)
    return LinearFit(dual_N, inverse_NN, center, scale, signal, float(stds[0]), float(stds[1]))


@dataclass(frozen=True)
class FittedLinear:
    """Ridge regressions of several metrics over the same trials.

    Attributes:
        center, unit: of the features, (F,) and a number: `standard`, (N, F), has mean 0 and a mean squared length of 1.
    """

    observations: Observations
    features: Features
    center: FloatArray
    unit: float
    standard: FloatArray
    fits: tuple[LinearFit, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Seed noise, from repeats where there are enough, shape (metrics,), bits per byte."""
        return np.array([fit.noise_std for fit in self.fits])

    def _standardised(self, points: Points) -> FloatArray:
        return np.asarray((self.features(self.observations.align(points)) - self.center) / self.unit)

    def mean(self, points: Points) -> FloatArray:
        """Prediction, shape (n, metrics)."""
        kernel_MN = self._standardised(points) @ self.standard.T
        return np.stack([fit.center + fit.scale * (kernel_MN @ fit.dual) for fit in self.fits], axis=1)

    def posterior(self, points: Points) -> GaussianPosterior:
        """Prediction, spread and misfit at `points`."""
        z_MF = self._standardised(points)
        kernel_MN = z_MF @ self.standard.T
        own_M = np.einsum("mf,mf->m", z_MF, z_MF)
        variances = []
        for fit in self.fits:
            left_M = own_M - np.einsum("mn,nk,mk->m", kernel_MN, fit.inverse, kernel_MN, optimize=True)
            variances.append(fit.scale**2 * fit.signal * np.maximum(left_M, 0.0) + fit.misfit_std**2)
        same = np.unique(z_MF, axis=0, return_inverse=True)[1].reshape(-1)

        def factor(metric: int) -> FloatArray:
            fit = self.fits[metric]
            left_MM = z_MF @ z_MF.T - kernel_MN @ fit.inverse @ kernel_MN.T
            eigenvalues_M, vectors_MM = np.linalg.eigh(left_MM)
            spread_MM = fit.scale * np.sqrt(fit.signal) * vectors_MM * np.sqrt(np.maximum(eigenvalues_M, 0.0))
            return np.concatenate([spread_MM, fit.misfit_std * np.equal.outer(same, np.unique(same))], axis=1)

        return GaussianPosterior(self.mean(points), np.sqrt(np.stack(variances, axis=1)), factor)
