"""Which domains to use where only so many may be: a search over supports, on top of the local search inside each.

From the optimum without the limit, units are taken out one after another, those first whose loss raises the function least, and what is left is
optimized again (backward elimination). Then units are swapped, and let in where there is room, as long as that helps. A few of the best sampled mixtures
give other starts. The main trade-off: swaps are of one unit for another; where two must change together to gain anything, the search stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mixopt.answer.local_search import BatchFunction, Limits, descend
from mixopt.answer.ranked import Ranked, evaluate, missed
from mixopt.constraints.programs import BoolArray
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

# Of what elimination has still to take out, this share goes before the rest is optimized again.
TAKEN_AT_ONCE = 1 / 3
# Units tried on either side of a swap, and swaps from which the local search starts.
MOST_LEAVING, MOST_ENTERING, DESCENTS = 8, 12, 4
PASSES = 8
# A swap must gain this share of the function's size, or it is rounding.
GAIN = 1e-9
# Sampled supports that are searched beside the eliminated one.
LOOKED_AT, SAMPLED = 1000, 3
# Of the leaving unit's weight the entering one gets this share, the others the rest.
HANDED_ON = (1.0, 0.4)
STEP = 1e-2


@dataclass(frozen=True)
class _Task:
    """Minimize a function over a space of few domains, within limits."""

    function: BatchFunction
    space: MixtureSpace
    limits: Limits | None
    smooth: bool

    def ranked(self, points: FloatArray) -> Ranked:
        return Ranked.of(self.function, self.limits, points)

    def settled(self, weights: FloatArray, space: MixtureSpace) -> Ranked:
        """The better of a mixture and the local minimum of a convex space that holds it."""
        if not self.smooth:
            return self.ranked(weights[None])
        return self.ranked(np.stack([weights, descend(self.function, space, weights, self.limits)[0]])).first(1)


def best_supports(
    function: BatchFunction, space: MixtureSpace, relaxed: FloatArray, points: FloatArray, limits: Limits | None, smooth: bool
) -> Ranked:
    """The best mixture found in each of a few supports, best first.

    Args:
        relaxed: the optimum without the limit on the number of domains, shape (domains,).
        points: feasible mixtures, shape (n, domains).
    """
    task = _Task(function, space, limits, smooth)
    sampled = different_supports(space, task.ranked(points).points[:LOOKED_AT])[:SAMPLED]
    starts = [_eliminate(task, relaxed), *sampled]
    found = task.ranked(np.concatenate([task.settled(start, space.around(start)).points for start in starts]))
    swapped = [swaps(function, space, start, limits, smooth) for start in different_supports(space, found.points)[:2]]
    return task.ranked(np.stack(different_supports(space, found.joined(task.ranked(np.stack(swapped))).points)))


def swaps(
    function: BatchFunction, space: MixtureSpace, start: FloatArray, limits: Limits | None, smooth: bool, passes: int = PASSES
) -> FloatArray:
    """The mixture (domains,) at which swapping units, from a feasible `start` on, brings no more, or after so many passes."""
    task = _Task(function, space, limits, smooth)
    best = task.settled(start, space.around(start))
    for _ in range(passes):
        tries = swapped_units(function, space, best.points[0])
        if not len(tries):
            break
        ranked = task.ranked(tries)
        found = [
            task.settled(point, space.around(point)) for point in different_supports(space, ranked.points)[: DESCENTS if smooth else 1]
        ]
        better = min(found, key=lambda entry: (entry.missed[0], entry.values[0]))
        least = GAIN * max(1e-3, abs(best.values[0]))
        if not better.better_than(Ranked(best.points, best.values - least, best.missed)):
            break
        best = better
    return np.asarray(best.points[0])


def different_supports(space: MixtureSpace, points: FloatArray) -> list[FloatArray]:
    """Feasible mixtures (n, domains), of each support the first."""
    found: dict[bytes, FloatArray] = {}
    for point in points:
        found.setdefault(_support(space, point).tobytes(), point)
    return list(found.values())


def _support(space: MixtureSpace, weights: FloatArray) -> BoolArray:
    """Of a mixture (domains,), with the units that must be there, shape (units,)."""
    return np.asarray((space.units.collapse(weights) > 0) | space.supports.forced)


def _eliminate(task: _Task, weights: FloatArray) -> FloatArray:
    """A feasible mixture from one (domains,) of too many domains."""
    space, supports = task.space, task.space.supports
    mask = _support(space, weights)
    if not supports.possible(mask):
        mask = mask | supports.anchors[int(np.argmax(supports.anchors @ space.units.collapse(weights)))]
    while supports.domains(mask) > supports.most:
        excess = int(supports.domains(mask)) - supports.most
        units = np.flatnonzero(mask & ~supports.forced)
        smaller = mask & ~np.eye(len(mask), dtype=bool)[units]
        feasible = supports.feasible(smaller)
        units, smaller = units[feasible], smaller[feasible]
        without = space.project_onto(smaller, np.repeat(space.units.collapse(weights)[None], len(smaller), axis=0))
        ranked = np.lexsort((evaluate(task.function, without), missed(task.limits, without)))
        taken = 0
        for unit in units[ranked]:
            left = mask & (np.arange(len(mask)) != unit)
            if supports.possible(left):
                mask, taken = left, taken + int(space.units.counts[unit])
            if taken >= max(1, int(TAKEN_AT_ONCE * excess)):
                break
        part = space.on_support(mask)
        weights = task.settled(part.project(weights[None])[0], part).points[0]
        # What the local search has put to zero need not be taken out one by one, as long as enough is left.
        if supports.possible(_support(space, weights)):
            mask = _support(space, weights)
    return np.asarray(space.on_support(mask).project(weights[None])[0])


def swapped_units(function: BatchFunction, space: MixtureSpace, weights: FloatArray) -> FloatArray:
    """Mixtures with another unit, instead of one of a feasible mixture (domains,) or beside them, each feasible, shape (n, domains)."""
    supports = space.supports
    mask, units = _support(space, weights), space.units.collapse(weights)
    moves, index = list(_moves(function, space, weights, mask)), np.arange(len(mask))
    if not moves:
        return np.zeros((0, len(space.domains)))
    masks = np.array([(mask | (index == entering)) & (index != leaving) for leaving, entering in moves])
    kept = (supports.domains(masks) <= supports.most) & supports.feasible(masks)
    found = []
    for (leaving, entering), part in zip([move for move, keep in zip(moves, kept, strict=True) if keep], masks[kept], strict=True):
        freed = units[leaving] if leaving >= 0 else STEP
        rest = np.where(part, units, 0.0)
        rest[entering] = 0.0
        tries = []
        for share in HANDED_ON:
            moved = rest * (1 - share * freed) / max(float(rest.sum()), 1e-300)
            moved[entering] = share * freed
            tries.append(moved)
        found.append(space.project_onto(np.repeat(part[None], len(tries), axis=0), np.array(tries)))
    return np.concatenate(found) if found else np.zeros((0, len(space.domains)))


def _moves(function: BatchFunction, space: MixtureSpace, weights: FloatArray, mask: BoolArray) -> Iterator[tuple[int, int]]:
    """Pairs of units, the leaving one (-1: none) and the entering one; the most promising of either side."""
    units = space.units.collapse(weights)
    entering = np.flatnonzero(~mask & (space.unit_upper > 0))
    leaving = np.flatnonzero(mask & ~space.supports.forced)
    corners = np.eye(len(mask))
    if len(entering) > MOST_ENTERING:
        toward = space.units.expand(units + STEP * (corners[entering] - units))
        entering = entering[np.argsort(evaluate(function, toward), kind="stable")[:MOST_ENTERING]]
    if len(leaving) > MOST_LEAVING:
        others = units * (1 - corners[leaving])
        away = space.units.expand(others / np.maximum(others.sum(axis=1, keepdims=True), 1e-300))
        leaving = leaving[np.argsort(evaluate(function, away), kind="stable")[:MOST_LEAVING]]
    for unit in entering.tolist():
        yield -1, unit
        yield from ((out, unit) for out in leaving.tolist())
