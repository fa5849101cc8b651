"""Candidates in order: those that keep the limits by value, behind them the others by how much they miss.

Functions are asked in chunks, so that a Gaussian process on 500 trials stays below 100 MB. The main trade-off: an order, not a penalty: a mixture that
misses a limit by little is behind every one that keeps it, however good it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixopt.answer.local_search import KEPT_WITHIN, BatchFunction, Limits
from mixopt.mixture import FloatArray

CHUNK = 4096


def evaluate(function: BatchFunction, points: FloatArray) -> FloatArray:
    """`function` over many points in chunks, shape (n,).

    Raises:
        ValueError: the function returned something not finite.
    """
    if not len(points):
        return np.zeros(0)
    values = np.concatenate([function(points[at : at + CHUNK]) for at in range(0, len(points), CHUNK)])
    if not np.isfinite(values).all():
        raise ValueError(f"the function is not finite at {points[~np.isfinite(values)][0].round(4).tolist()}")
    return np.asarray(values)


def missed(limits: Limits | None, points: FloatArray) -> FloatArray:
    """By how much points miss the limits together, in units of their scales, shape (n,); 0 where all are kept."""
    if limits is None:
        return np.zeros(len(points))
    excess = np.concatenate([limits.excess(points[at : at + CHUNK]) for at in range(0, len(points), CHUNK)])
    return np.asarray(np.where(excess > KEPT_WITHIN, excess / limits.scales, 0.0).sum(axis=1))


@dataclass(frozen=True)
class Ranked:
    """Points (n, domains), best first, with their values and misses, each of shape (n,)."""

    points: FloatArray
    values: FloatArray
    missed: FloatArray

    @classmethod
    def of(cls, function: BatchFunction, limits: Limits | None, points: FloatArray) -> Ranked:
        return cls._sorted(points, evaluate(function, points), missed(limits, points))

    @classmethod
    def _sorted(cls, points: FloatArray, values: FloatArray, missed: FloatArray) -> Ranked:
        order = np.lexsort((values, missed))
        return cls(points[order], values[order], missed[order])

    def joined(self, other: Ranked) -> Ranked:
        pairs = zip((self.points, self.values, self.missed), (other.points, other.values, other.missed), strict=True)
        return self._sorted(*(np.concatenate(pair) for pair in pairs))

    def first(self, count: int) -> Ranked:
        return Ranked(self.points[:count], self.values[:count], self.missed[:count])

    def better_than(self, other: Ranked) -> bool:
        """Whether the first point here is."""
        return bool((self.missed[0], self.values[0]) < (other.missed[0], other.values[0]))
