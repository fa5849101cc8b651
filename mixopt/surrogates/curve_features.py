"""A Gaussian process that learns from the points along training, not from the end alone.

Points before the end are measurements of the same mixture with errors of their own: early ones noisy in another way, and partly the same luck as at the end. The
curve of each metric is turned into canonical variates: combinations of its points whose errors are uncorrelated, ordered by how much of them the mixture
explains (generalized eigenvectors of signal and noise covariance; maximum noise fractions, Green et al. 1988). One process per variate; the end is
put together from their predictions. If errors of all points are of one kind, nothing is gained over the end alone (Bonilla et al. 2008 on processes with
several outputs); what is gained comes from variates in which the luck of the end cancels. Without points along the way it is `gaussian_process`.

The noise covariance is that within repeated mixtures where there are enough, otherwise that of errors out of fold. The main trade-off: a process per point.

Legend: N trials, T points along training, M points of the simplex.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.cross_validation import fit_with_out_of_fold
from mixopt.surrogates.gaussian_process import GaussianProcess
from mixopt.surrogates.observations import mixture_groups
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

MOST_POINTS = 6
"""Of a curve: the last so many. Earlier ones say little of the end, and each costs a process."""
LEAST_DEGREES_PER_POINT = 4
"""Repeats with fewer degrees of freedom give no covariance of so many points."""
RIDGE = 1e-3
"""Share of the mean noise variance added to each point's: covariances are estimated from few errors."""


class CurveFeatures:
    """Fits processes to canonical variates of each metric's curve; see the module's docstring."""

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Fitted:
        """Fits on the realized mixtures of `swarm`, a swarm of one source.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`).
        """
        plain = GaussianProcess().fit(swarm, metrics)
        parts = [_Curve.of(swarm, metric) for metric in metrics]
        if all(part is None for part in parts):
            return plain
        return FittedCurves(plain, tuple(parts))


@dataclass(frozen=True)
class _Curve:
    """Processes of one metric's variates, and what each adds to the end (T,)."""

    fitted: Fitted
    back: FloatArray

    @classmethod
    def of(cls, swarm: Swarm, metric: str) -> _Curve | None:
        """None where the metric has no points along the way that every trial has."""
        swarm = swarm.by_trial_id()
        ends_N = swarm.values([metric])[:, 0]
        curves_NT = swarm.curves([metric], end="all").values[:, :, 0]
        curves_NT = curves_NT[:, np.isfinite(curves_NT).all(axis=0)][:, -MOST_POINTS:]
        if curves_NT.shape[1] < 2 or not np.isfinite(ends_N).all():
            return None
        groups = mixture_groups(swarm)
        noise_TT = _noise_within(curves_NT, groups)
        if noise_TT is None:
            _, errors, _ = fit_with_out_of_fold(GaussianProcess(), _swarm_of(swarm, curves_NT), _names(curves_NT.shape[1]))
            if errors is None:
                return None
            residuals_NT = errors.measured - errors.mean
            noise_TT = residuals_NT.T @ residuals_NT / len(residuals_NT)
        scale = float(np.trace(noise_TT)) / len(noise_TT)
        if scale <= 0:
            return None
        noise_TT = noise_TT + RIDGE * scale * np.eye(len(noise_TT))
        _, vectors_TT = eigh(np.cov(curves_NT.T), noise_TT)
        variates_NT = curves_NT @ vectors_TT
        fitted = GaussianProcess().fit(_swarm_of(swarm, variates_NT), _names(variates_NT.shape[1]))
        return cls(fitted, np.asarray(np.linalg.inv(vectors_TT)[:, -1]))


def _noise_within(curves_NT: FloatArray, groups: NDArray[np.int64]) -> FloatArray | None:
    """Covariance of points within repeats of a mixture, (T, T); None where there are too few."""
    counts = np.bincount(groups)
    degrees = len(groups) - len(counts)
    if degrees < LEAST_DEGREES_PER_POINT * curves_NT.shape[1]:
        return None
    means_GT = np.stack([np.bincount(groups, weights=column) / counts for column in curves_NT.T], axis=1)
    left_NT = curves_NT - means_GT[groups]
    return np.asarray(left_NT.T @ left_NT / degrees)


def _names(count: int) -> tuple[str, ...]:
    return tuple(f"variate-{number}" for number in range(count))


def _swarm_of(swarm: Swarm, values_NT: FloatArray) -> Swarm:
    """The trials with other losses."""
    points = swarm.points()
    source: Source = points.sources[0]
    named = Swarm.from_arrays(
        swarm.domains, points.schedules, _names(values_NT.shape[1]), values_NT, source, points.fractions, swarm.trial_ids
    )
    # Repeats go by the requested mixture.
    return Swarm.of_tables(swarm.domains, swarm.runs, named.losses)


@dataclass(frozen=True)
class FittedCurves:
    """The process of the end alone for metrics without curves, and of variates for the others."""

    plain: Fitted
    parts: tuple[_Curve | None, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.plain.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Seed noise of the end, shape (metrics,), bits per byte."""
        found = [
            self.plain.noise_std[column] if part is None else np.sqrt(((part.back * part.fitted.noise_std) ** 2).sum())
            for column, part in enumerate(self.parts)
        ]
        return np.array(found)

    def mean(self, points: Points) -> FloatArray:
        """Posterior mean of the end, shape (n, metrics)."""
        mean_MK = self.plain.mean(points)
        for column, part in enumerate(self.parts):
            if part is not None:
                mean_MK[:, column] = part.fitted.mean(points) @ part.back
        return mean_MK

    def posterior(self, points: Points) -> GaussianPosterior:
        """Of the end at `points`."""
        plain = self.plain.posterior(points)
        if not isinstance(plain, GaussianPosterior):
            raise DataError("The process of the end has no Gaussian posterior.")
        mean_MK, std_MK = plain.mean.copy(), plain.std.copy()
        posteriors: list[GaussianPosterior | None] = []
        for column, part in enumerate(self.parts):
            one = None if part is None else part.fitted.posterior(points)
            posteriors.append(one if isinstance(one, GaussianPosterior) else None)
            if part is not None and one is not None:
                mean_MK[:, column] = one.mean @ part.back
                std_MK[:, column] = np.sqrt((one.std**2) @ part.back**2)

        def factor(metric: int) -> FloatArray:
            part, one = self.parts[metric], posteriors[metric]
            if part is None or one is None:
                return plain.factor(metric)
            return np.concatenate([weight * one.factor(variate) for variate, weight in enumerate(part.back)], axis=1)

        return GaussianPosterior(mean_MK, std_MK, factor)
