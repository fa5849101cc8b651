"""Which units a mixture of few domains may be made of.

A support is a set of units; it is feasible if bounds, groups and distance leave a mixture of these alone. For a point that has too many domains those
with most weight are kept (without caps that is the nearest such mixture: Kyrillidis, Becker, Cevher & Koch 2013, proposition 1), and where that support
is not feasible, units of a known feasible one are let in one by one. The main trade-off: with caps the support found is a good one, not always the nearest.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from mixopt.constraints.ball import least_distances
from mixopt.constraints.programs import BoolArray, Polytope, fewest_domains, least_distance, least_value
from mixopt.constraints.rules import Ball
from mixopt.feasibility import FEASIBLE_WITHIN
from mixopt.groups.nested import build_tree
from mixopt.mixture import FloatArray

# Known feasible supports to fall back on, found by minimizing random linear functions; programs with a distance take longer.
ANCHORS, ANCHORS_IN_BALL = 8, 2
# Less weight than this is rounding of the solver.
LEAST = 1e-7


@dataclass(frozen=True, eq=False)
class Supports:
    """The supports of at most `most` domains within a polytope and, if there is one, a ball."""

    polytope: Polytope
    ball: Ball | None
    most: int
    _known: dict[bytes, bool] = field(default_factory=dict, repr=False)

    @cached_property
    def forced(self) -> BoolArray:
        """Units that every mixture has, by their least weight, shape (units,)."""
        return np.asarray(self.polytope.lower > 0)

    def domains(self, masks: BoolArray) -> FloatArray:
        """How many domains supports (..., units) bring in, shape (...)."""
        return np.asarray(masks @ self.polytope.units.counts, dtype=np.float64)

    def feasible(self, masks: BoolArray) -> BoolArray:
        """Whether supports (n, units), of however many domains, leave a mixture, shape (n,)."""
        return feasible_supports(self.polytope, self.ball, masks, self._known)

    @cached_property
    def anchors(self) -> BoolArray:
        """Some feasible supports of at most so many domains, shape (n, units): at least one, and the same in whatever order domains are listed."""
        rng = np.random.default_rng(0xA2C)
        by_name = np.argsort(self.polytope.units.names)
        back = np.argsort(by_name)
        number = ANCHORS if self.ball is None else ANCHORS_IN_BALL
        tries = [least_value(self.polytope, -rng.random(len(back))[back], self.ball, self.most) for _ in range(number)]
        found = np.unique(np.array([self._of(reached.weights > LEAST) for reached in tries if reached is not None])[:, by_name], axis=0)[
            :, back
        ]
        kept = found[self.feasible(found) & (self.domains(found) <= self.most)]
        if not len(kept):
            # Where hardly a mixture is left, a random goal may end within the solver's tolerance of the set and not in it.
            extreme = fewest_domains(self.polytope) if self.ball is None else least_distance(self.polytope, self.ball, self.most)
            kept = self._of(extreme.support)[None] if extreme is not None else kept
        assert len(kept), "MixtureSpace checks that there is a mixture"
        return np.asarray(kept)

    def _of(self, support: BoolArray) -> BoolArray:
        return np.asarray((support & (self.polytope.upper > 0)) | self.forced)

    def possible(self, mask: BoolArray) -> bool:
        """Whether some feasible mixture of at most so many domains is made of units of `mask` (units,) alone."""
        if not mask[self.forced].all():
            return False
        if np.any(np.all(mask | ~self.anchors, axis=1)):
            return True
        upper = np.where(mask, self.polytope.upper, 0.0)
        within = replace(self.polytope, upper=upper)
        if self.ball is not None:
            reached = least_distance(within, self.ball, self.most)
            return reached is not None and reached.value <= self.ball.distance and bool(self.feasible(self._of(reached.support)[None])[0])
        reached = least_value(within, -upper, None, self.most)
        return reached is not None and bool(self.feasible(self._of(reached.support)[None])[0])

    def choose(self, weights: FloatArray) -> BoolArray:
        """A feasible support of at most so many domains for each row of `weights` (n, units): those with most weight, as far as that can be."""
        chosen = self._heaviest(weights)
        bad = np.flatnonzero(~self.feasible(chosen))
        if len(bad):
            chosen[bad] = self._repaired(chosen[bad], weights[bad])
        return chosen

    def _heaviest(self, weights: FloatArray) -> BoolArray:
        """Units by falling weight, those first that must be there, while the domains suffice."""
        rank = np.argsort(-(weights + 2.0 * self.forced), axis=1, kind="stable")
        chosen, used, rows = np.zeros(weights.shape, dtype=bool), np.zeros(len(weights)), np.arange(len(weights))
        for column in rank.T:
            count = self.polytope.units.counts[column]
            taken = (used + count <= self.most) & ((weights[rows, column] > 0) | self.forced[column]) & (self.polytope.upper[column] > 0)
            chosen[rows, column] = taken
            used += np.where(taken, count, 0)
        return chosen

    def _repaired(self, masks: BoolArray, weights: FloatArray) -> BoolArray:
        """Lets in the units of the anchor with most of a row's weight, its heaviest first, for the lightest others, until the support is feasible."""
        goals = self.anchors[np.argmax(weights @ self.anchors.T, axis=1)]
        masks, rows = masks.copy(), np.arange(len(masks))
        for _ in range(masks.shape[1]):
            bad = ~self.feasible(masks) & np.any(goals & ~masks, axis=1)
            if not bad.any():
                break
            entering = np.argmax(np.where(goals & ~masks, weights, -np.inf), axis=1)
            masks[rows[bad], entering[bad]] = True
            over = bad & (self.domains(masks) > self.most)
            while over.any():
                leaving = np.argmin(np.where(masks & ~goals, weights, np.inf), axis=1)
                masks[rows[over], leaving[over]] = False
                over = over & (self.domains(masks) > self.most)
        # All units of the goal are in, and what is still there besides may be dropped.
        return np.where(self.feasible(masks)[:, None], masks, goals)


def feasible_supports(polytope: Polytope, ball: Ball | None, masks: BoolArray, known: dict[bytes, bool]) -> BoolArray:
    """Whether units of each row of `masks` (n, units) alone leave a mixture, shape (n,); `known` keeps answers that took long."""
    lower, upper = polytope.lower, np.where(masks, polytope.upper, 0.0)
    possible = np.all(masks | (lower <= 0), axis=1) & (lower.sum() <= 1 + FEASIBLE_WITHIN) & (upper.sum(axis=1) >= 1 - FEASIBLE_WITHIN)
    if polytope.units.are_domains and not polytope.sums:
        return np.asarray(possible if ball is None else possible & (least_distances(lower, upper, ball) <= ball.distance + FEASIBLE_WITHIN))
    if ball is None and not polytope.sums:
        return np.asarray(possible)
    for row in np.flatnonzero(possible):
        key = masks[row].tobytes()
        if key not in known:
            known[key] = _feasible(Polytope(polytope.units, lower, upper[row], polytope.sums), ball)
        possible[row] = known[key]
    return np.asarray(possible)


def _feasible(polytope: Polytope, ball: Ball | None) -> bool:
    root = build_tree(polytope.lower, polytope.upper, polytope.sums)
    if any(node.least > node.largest + FEASIBLE_WITHIN for node in root.inner_first()):
        return False
    if root.least > 1 + FEASIBLE_WITHIN or root.largest < 1 - FEASIBLE_WITHIN:
        return False
    if ball is None:
        return True
    reached = least_distance(polytope, ball)
    return reached is not None and reached.value <= ball.distance + FEASIBLE_WITHIN
