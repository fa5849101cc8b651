"""Mixtures that cannot be told from the optimum: how far each weight can move, and a few that differ most.

An optimum of losses is often flat, and one mixture says nothing of that. The main trade-off: everything is found from inside, by sampling and
along straight lines, so the true set is at least as wide as what is reported. Where the number of domains is limited, straight lines leave the set, so
each of a few choices of domains is looked at alone: the optimum's, and those that swapping one domain gives.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixopt.answer.local_search import BatchFunction
from mixopt.answer.ranked import evaluate
from mixopt.answer.support_search import different_supports, swapped_units
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

# Alternatives differ from the optimum and from each other in at least this share of the tokens; nearer ones are no alternative.
LEAST_DISTANCE = 0.05
# Choices of domains looked at beside the optimum's.
SUPPORTS = 8


@dataclass(frozen=True)
class NearOptimal:
    """What was found near an optimum.

    Attributes:
        low, high: least and largest weight per domain, shape (domains,).
        mixtures: those found, shape (n, domains), the optimum first.
    """

    low: FloatArray
    high: FloatArray
    mixtures: FloatArray

    def alternatives(self, count: int) -> FloatArray:
        """Up to `count` mixtures, each the farthest in total variation from the optimum and those before it, shape (found, domains)."""
        chosen: list[FloatArray] = [self.mixtures[0]]
        nearest = np.full(len(self.mixtures), np.inf)
        for _ in range(count):
            nearest = np.minimum(nearest, 0.5 * np.abs(self.mixtures - chosen[-1]).sum(axis=1))
            farthest = int(np.argmax(nearest))
            if nearest[farthest] < LEAST_DISTANCE:
                break
            chosen.append(self.mixtures[farthest])
        return np.array(chosen[1:]).reshape(-1, self.mixtures.shape[1])


def find_near_optimal(
    function: BatchFunction, space: MixtureSpace, optimum: FloatArray, threshold: float, seed: int, candidates: int = 1000
) -> NearOptimal:
    """Feasible mixtures with function <= threshold.

    Found from inside: a cloud around the optimum, then the last good mixture on straight lines toward both ends of every domain, from the
    optimum and from the farthest of the cloud. The true range is at least as wide.
    """
    if not space.is_convex:
        return _of_few(function, space, optimum, threshold, seed, candidates)
    rng = np.random.default_rng([seed, 0x4A6])
    scale = rng.uniform(0.0, 1.0, (candidates, 1)) ** 2
    cloud = optimum + scale * (space.sample(candidates, rng) - optimum)
    good = np.concatenate([optimum[None], cloud[evaluate(function, cloud) <= threshold]])
    moving = space.units.collapse(good)
    extremes = np.concatenate([good[moving.argmin(axis=0)], good[moving.argmax(axis=0)]])
    for origins in (np.repeat(optimum[None], len(extremes), axis=0), extremes):
        good = np.concatenate([good, _last_good(function, origins, _toward_ends(space, origins), threshold)])
    return NearOptimal(good.min(axis=0), good.max(axis=0), good)


def _of_few(function: BatchFunction, space: MixtureSpace, optimum: FloatArray, threshold: float, seed: int, candidates: int) -> NearOptimal:
    """As `find_near_optimal`, where the number of domains is limited."""
    found = [find_near_optimal(function, space.around(optimum), optimum, threshold, seed, candidates).mixtures]
    swapped = swapped_units(function, space, optimum)
    values = evaluate(function, swapped)
    near = swapped[values <= threshold]
    others = different_supports(space, near[np.argsort(values[values <= threshold], kind="stable")])[:SUPPORTS]
    found += [find_near_optimal(function, space.around(point), point, threshold, seed, candidates // SUPPORTS).mixtures for point in others]
    good = np.concatenate([*found, near])
    return NearOptimal(good.min(axis=0), good.max(axis=0), good)


def _toward_ends(space: MixtureSpace, origins: FloatArray) -> FloatArray:
    """Row i of `origins` (2 * units, domains) with least, in the second half with most, of unit i; the others in proportion."""
    dimension = len(space.units.names)
    least, most = space.unit_reach
    ends = space.units.collapse(origins).copy()
    for row in range(2 * dimension):
        index = row % dimension
        ends[row, index] = least[index] if row < dimension else most[index]
        others = np.arange(dimension) != index
        total = ends[row, others].sum()
        ends[row, others] *= (1 - ends[row, index]) / total if total > 0 else 0.0
    ends = space.units.expand(ends)
    if not space.sums and space.ball is None:
        return space.project(ends)
    # Where groups or a distance are bounded, projecting could take the weight away from its end.
    values = [(least if row < dimension else most)[row % dimension] for row in range(2 * dimension)]
    return np.stack([space.project_with(end, row % dimension, value) for row, (end, value) in enumerate(zip(ends, values, strict=True))])


def _last_good(function: BatchFunction, origins: FloatArray, ends: FloatArray, threshold: float, halvings: int = 12) -> FloatArray:
    """The last point with function <= threshold on each segment from a good origin, by bisection: exact where goodness ends once."""
    reached = np.zeros((len(origins), 1))
    step = np.ones((len(origins), 1))
    for _ in range(halvings):
        tried = reached + step
        good = (evaluate(function, origins + tried * (ends - origins)) <= threshold)[:, None]
        reached = np.where(good, tried, reached)
        # The first step goes to the very end; what succeeds there is done.
        step = np.where(reached >= 1, 0.0, step / 2)
    return np.asarray(origins + reached * (ends - origins))
