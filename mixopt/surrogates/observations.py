"""What every surrogate is fitted on: realized schedules and end-point losses of one source, checked and in a canonical order.

Rows are sorted by trial id and domains by name, so that a fit is bit-identical whatever order trials finished in or domains are listed in.
Points are matched to the fit by domain *name*.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.features import weights
from mixopt.swarm import Points, Swarm
from mixopt.trial import WEIGHT_DECIMALS

MINIMUM_TRIALS = 4
# Fewer repeats than this many degrees of freedom give a noise level with a relative error above 40%.
MINIMUM_REPEAT_DEGREES = 3


def mixture_groups(swarm: Swarm) -> NDArray[np.int64]:
    """Number of each trial's requested schedule, shape (trials,), in the order of `trial_ids`: repeats of one mixture share a number.

    Numbered by the least trial id of each, so that folds and the like depend neither on the order of trials or domains nor on the weights.
    """
    by_name = np.argsort(np.array(swarm.domains), kind="stable")  # numbers must not depend on the order of domains
    requested = weights(np.round(swarm.points(realized=False).schedules[:, :, by_name], WEIGHT_DECIMALS))
    groups = np.unique(requested, axis=0, return_inverse=True)[1].reshape(-1)
    by_id = groups[np.argsort(np.array(swarm.trial_ids), kind="stable")]
    rank = np.empty(int(groups.max(initial=-1)) + 1, dtype=np.int64)
    rank[by_id[np.sort(np.unique(by_id, return_index=True)[1])]] = np.arange(len(rank))
    return rank[groups]


def repeat_variance(outputs: FloatArray, groups: NDArray[np.int64]) -> float | None:
    """Pooled variance within repeats of one mixture; None when there are too few."""
    counts = np.bincount(groups)
    means = np.bincount(groups, weights=outputs) / counts
    degrees = len(outputs) - len(counts)
    if degrees < MINIMUM_REPEAT_DEGREES:
        return None
    return float(((outputs - means[groups]) ** 2).sum() / degrees)


def checked_values(swarm: Swarm, metrics: Sequence[str]) -> FloatArray:
    """End-point losses, shape (trials, metrics), in the order of `trial_ids`, finite.

    Raises:
        DataError: no metric, fewer than 4 trials, or a metric that some trial was not scored on.
    """
    if not metrics:
        raise DataError("A surrogate was asked to predict no metric.")
    if len(swarm) < MINIMUM_TRIALS:
        raise DataError(f"A surrogate needs at least {MINIMUM_TRIALS} finished trials, got {len(swarm)}.", "Run more trials.")
    values = swarm.values(metrics)
    for column, metric in enumerate(metrics):
        missing = int((~np.isfinite(values[:, column])).sum())
        if missing:
            raise DataError(
                f"Metric '{metric}' is missing in {missing} of {len(swarm)} trials.",
                "Score those trials on it, or leave the metric out.",
            )
    return values


@dataclass(frozen=True)
class Observations:
    """Arrays of a swarm in canonical order.

    Attributes:
        domains: sorted names, the last axis of `schedules`.
        metrics: as asked for.
        schedules: realized weights, shape (n, phases, domains).
        values: bits per byte, shape (n, metrics), finite.
        groups: which trials repeat the same requested mixture, shape (n,).
    """

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    schedules: FloatArray
    values: FloatArray
    groups: NDArray[np.int64]

    @classmethod
    def of(cls, swarm: Swarm, metrics: Sequence[str]) -> Observations:
        """The observations of `swarm`.

        Raises:
            DataError: no metric, fewer than 4 trials, several sources, or a metric that some trial was not scored on.
        """
        values = checked_values(swarm, metrics)
        points = swarm.points()
        sources = sorted({source.key for source in points.sources})
        if len(sources) > 1:
            raise DataError(f"A surrogate fits trials of one source, got {', '.join(sources)}.", "Select one with `Swarm.at_source`.")
        rows = np.argsort(np.array(swarm.trial_ids), kind="stable")
        columns = np.argsort(np.array(swarm.domains), kind="stable")
        domains = tuple(swarm.domains[column] for column in columns)
        return cls(domains, tuple(metrics), points.schedules[rows][:, :, columns], values[rows], mixture_groups(swarm)[rows])

    def inputs(self, points: Points) -> FloatArray:
        """What laws are evaluated at: the weights of `points`, phases side by side, shape (n, phases * domains)."""
        return weights(self.align(points))

    def align(self, points: Points) -> FloatArray:
        """Weights of `points` with domains in this order, shape (n, phases, domains).

        Raises:
            DataError: other domains, or another number of phases.
        """
        if set(points.domains) != set(self.domains) or len(points.domains) != len(self.domains):
            raise DataError(f"The surrogate was fitted on the domains {list(self.domains)}, and was asked about {sorted(points.domains)}.")
        phases = self.schedules.shape[1]
        if points.schedules.ndim != 3 or points.schedules.shape[1] != phases:
            raise DataError(
                f"The surrogate was fitted on schedules of {phases} phases, and was asked about shape {points.schedules.shape}."
            )
        position = {name: index for index, name in enumerate(points.domains)}
        # Copied, so that sums over domains run over contiguous memory in one order: bit-identical whatever the caller's order was.
        return np.ascontiguousarray(points.schedules[:, :, [position[name] for name in self.domains]])
