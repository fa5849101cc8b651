"""Minimizes a batch function over the feasible mixtures.

Functions come from surrogates, which answer for thousands of points at once but give no derivatives. Candidates spread over the space find
the basin; a local search (`answer.local_search`) finds its floor, and checks that it did. Constraints beyond the space's own, floors on predicted
losses, order candidates: those that keep them by value, behind them the others by how much they miss. A piecewise constant function (boosted
trees) has no floor to find: there the mean of the best hundred candidates is taken, as RegMix does (arXiv 2407.01492), which also averages out the
luck of the single best. The main trade-off: the answer is a good local optimum, not a certified global one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixopt.answer.local_search import KEPT_WITHIN, MANY_UNITS, BatchFunction, Limits, Residuals, descend, residuals
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

CANDIDATES = 20_000
# RegMix averages the best 100 (paper) or 128 (code) of 100,000.
ELITES = 100
STARTS, STARTS_OF_MANY = 4, 2
# Asks for points in chunks, so that a Gaussian process on 500 trials stays below 100 MB.
CHUNK = 4096


@dataclass(frozen=True)
class Optimum:
    """Where the function is least.

    Attributes:
        weights: feasible, shape (domains,).
        value: of the function there.
        method: "slsqp", "candidates" (SLSQP found nothing better) or "mean of best" (piecewise constant function); "closest" where no mixture was
            found that keeps the limits.
        status: what the solver said.
        residuals: what the answer misses.
    """

    weights: FloatArray
    value: float
    method: str
    status: str
    residuals: Residuals


def minimize(
    function: BatchFunction,
    space: MixtureSpace,
    starts: FloatArray,
    seed: int,
    smooth: bool = True,
    candidates: int = CANDIDATES,
    limits: Limits | None = None,
    pieces: BatchFunction | None = None,
) -> Optimum:
    """The feasible mixture with the least value found.

    Args:
        function: must answer for any mixture, feasible or not.
        starts: mixtures worth trying, shape (n, domains); they are projected.
        seed: of the candidates.
        smooth: False for piecewise constant functions; see `is_piecewise_constant`.
        limits: further constraints; where nothing keeps them all, the mixture that misses them least is returned, with method "closest".
        pieces: (n, domains) -> (n, pieces) whose largest is the function, where it has edges: its slopes alone say nothing there.
    """
    rng = np.random.default_rng([seed, 0x0B7])
    points = np.concatenate([space.project(starts), space.sample(candidates, rng)])
    ranked = _Ranked.of(function, limits, points)
    ranked = _sharpen(ranked, function, space, limits, rng)
    weights, method, status = _best_of(ranked, function, space, limits, smooth)
    if limits is not None and limits.excess(weights[None]).max() > KEPT_WITHIN:
        weights, method, status = _toward_limits(ranked, function, space, limits, smooth)
    assert space.contains(weights[None])[0], "an optimum is feasible"
    return Optimum(
        weights, float(function(weights[None])[0]), method, status, residuals(pieces or function, space, weights, limits, smooth)
    )


@dataclass(frozen=True)
class _Ranked:
    """Points (n, domains), best first: those that keep the limits by value, then the others by how much they miss."""

    points: FloatArray
    values: FloatArray
    missed: FloatArray

    @classmethod
    def of(cls, function: BatchFunction, limits: Limits | None, points: FloatArray) -> _Ranked:
        return cls._sorted(points, evaluate(function, points), _missed(limits, points))

    @classmethod
    def _sorted(cls, points: FloatArray, values: FloatArray, missed: FloatArray) -> _Ranked:
        order = np.lexsort((values, missed))
        return cls(points[order], values[order], missed[order])

    def joined(self, other: _Ranked) -> _Ranked:
        pairs = zip((self.points, self.values, self.missed), (other.points, other.values, other.missed), strict=True)
        return self._sorted(*(np.concatenate(pair) for pair in pairs))

    def better_than(self, other: _Ranked) -> bool:
        """Whether the first point here is."""
        return bool((self.missed[0], self.values[0]) < (other.missed[0], other.values[0]))


def _missed(limits: Limits | None, points: FloatArray) -> FloatArray:
    """By how much points miss the limits together, in units of their scales, shape (n,); 0 where all are kept."""
    if limits is None:
        return np.zeros(len(points))
    excess = np.concatenate([limits.excess(points[at : at + CHUNK]) for at in range(0, len(points), CHUNK)])
    return np.asarray(np.where(excess > KEPT_WITHIN, excess / limits.scales, 0.0).sum(axis=1))


def _best_of(
    ranked: _Ranked, function: BatchFunction, space: MixtureSpace, limits: Limits | None, smooth: bool
) -> tuple[FloatArray, str, str]:
    """Weights, method and status from ranked candidates."""
    if not smooth:
        kept = min(ELITES, max(int((ranked.missed == 0).sum()), 1))
        weights = space.project(ranked.points[:kept].mean(axis=0, keepdims=True))
        if _missed(limits, weights)[0] > 0:
            return (
                ranked.points[0],
                "candidates",
                "the mean of the best candidates misses a floor, so it is the best candidate that keeps them",
            )
        return weights[0], "mean of best", f"mean of the best {kept} candidates"
    best, method, status = _Ranked(ranked.points[:1], ranked.values[:1], ranked.missed[:1]), "candidates", "not started"
    messages: list[str] = []
    starts = _spread(ranked.points, STARTS if len(space.unit_lower) <= MANY_UNITS else STARTS_OF_MANY)
    if limits is not None:
        starts.append(ranked.points[int(np.argmin(ranked.values))])
    for start in starts:
        weights, message = descend(function, space, start, limits)
        messages.append(message)
        found = _Ranked.of(function, limits, weights[None])
        if found.better_than(best):
            best, method, status = found, "slsqp", message
    if method == "candidates":
        status = f"no better than the best candidate: {'; '.join(sorted(set(messages)))}"
    return best.points[0], method, status


def _toward_limits(
    ranked: _Ranked, function: BatchFunction, space: MixtureSpace, limits: Limits, smooth: bool
) -> tuple[FloatArray, str, str]:
    """Where no candidate keeps the limits: the mixture that misses them least, and from there, if it keeps them, the best one."""

    def miss(weights: FloatArray) -> FloatArray:
        return np.asarray((np.maximum(limits.excess(weights) / limits.scales, 0.0) ** 2).sum(axis=1))

    nearest = ranked.points[np.argsort(ranked.missed, kind="stable")]
    points = [descend(miss, space, start)[0] for start in _spread(nearest, STARTS)] if smooth else []
    fresh = ranked.joined(_Ranked.of(function, limits, np.stack([*points, nearest[0]])))
    if fresh.missed[0] == 0:
        return _best_of(fresh, function, space, limits, smooth)
    tries = np.stack([*points, *fresh.points[: 4 * STARTS]])
    return tries[int(np.argmin(evaluate(miss, tries)))], "closest", "no mixture found keeps every floor"


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


def is_piecewise_constant(function: BatchFunction, points: FloatArray) -> bool:
    """Whether small moves of most `points` (n, domains) change nothing at all, as with trees.

    Hand in the surrogate's prediction alone, since a penalty on top always moves, and points without zeros, at which trees like to split.
    A constant function counts too.
    """
    # Toward the mixture's mirror image: stays on the simplex, and moves every weight that differs from its mirror's.
    moved = points + 1e-6 * (points[:, ::-1] - points)
    return bool(np.mean(evaluate(function, points) == evaluate(function, moved)) > 0.5)


def _sharpen(
    ranked: _Ranked, function: BatchFunction, space: MixtureSpace, limits: Limits | None, rng: np.random.Generator, rounds: int = 2
) -> _Ranked:
    """Adds points around the best: an elite plus a scaled difference of two others (differential evolution's step), projected."""
    for _ in range(rounds):
        elites, count = ranked.points[:ELITES], len(ranked.points) // 10
        picks = rng.integers(len(elites), size=(3, count))
        scale = rng.uniform(0.0, 1.0, (count, 1))
        fresh = space.project(elites[picks[0]] + scale * (elites[picks[1]] - elites[picks[2]]))
        ranked = ranked.joined(_Ranked.of(function, limits, fresh))
    return ranked


def _spread(points: FloatArray, count: int, distance: float = 0.05) -> list[FloatArray]:
    """The first of `points` (best first), and the next ones that differ from all taken by `distance` in total variation."""
    taken: list[FloatArray] = []
    for point in points[: 10 * ELITES]:
        if all(0.5 * np.abs(point - other).sum() > distance for other in taken):
            taken.append(point)
        if len(taken) == count:
            break
    return taken
