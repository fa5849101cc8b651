"""The feasible mixtures: bounds per domain from the user and from epoch caps, each remembered with its reason; and what groups add to them.

Constraints belong here and in the optimizer, not in the swarm (Olmix, arXiv 2602.12237: caps in the optimizer alone gave .7647, in both
.7855): proxies are trained on infeasible mixtures too, because that is where a domain's effect shows. Groups add two kinds. A group of given
shares moves as one unit, so the optimizer works on units and everybody else sees domains; bounds on a group's weight are linear constraints
over nested sets of units.

Two limits are on the mixture as a whole (`mixopt.constraints`): a largest distance from a given mixture, which keeps the set convex, and a largest
number of domains, which makes it a union of convex sets, one per support. Each of those is a space of its own, which `on_support` gives, so that whoever
needs a convex set works in one after another.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np

from mixopt.constraints.ball import blended, project_into_ball, project_nested_into_ball
from mixopt.constraints.feasibility import check_constraints
from mixopt.constraints.placed import ball_of, most_domains_of
from mixopt.constraints.programs import Polytope, least_distance, least_value
from mixopt.constraints.rules import Ball
from mixopt.constraints.supports import Supports
from mixopt.domains import DomainSet
from mixopt.feasibility import FEASIBLE_WITHIN, check_domains
from mixopt.groups.limits import check_groups, sum_bounds, unit_limits
from mixopt.groups.nested import Node, SumBound, build_tree, project_nested, reach
from mixopt.groups.rules import Units
from mixopt.mixture import FloatArray
from mixopt.simplex import project, sample_dirichlet

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

# A weight this near to its bound is held by it: a thousandth of the smallest step a proxy can express.
BINDING_WITHIN = 1e-4
# Rows that miss the set by float error alone are in it.
ROUNDING = 1e-12
# Supports that one call of `sample` draws from: each is a set of its own, and with rules on groups each is projected onto alone.
SAMPLED_SUPPORTS, SAMPLED_SUPPORTS_OF_GROUPS = 1000, 200
# Units up to which the ends of weights are sought under a limit on the number of domains too; beyond, without it.
FEW_UNITS = 64


@dataclass(frozen=True)
class Held:
    """A constraint that holds a mixture: its sentence, what it bounds, and the number of the unit or of the bounded group; 0 for the whole."""

    sentence: str
    side: Literal["fixed", "most", "least", "group_most", "group_least", "count", "distance"]
    index: int


@dataclass(frozen=True, eq=False)
class MixtureSpace:
    """Mixtures with lower <= weights <= upper that keep the rules on groups and the limits on the whole. `from_domains` checks that there are any.

    Attributes:
        domains: names of the last axis of every array here that is not said to be over units.
        lower, upper: least and largest weight, shape (domains,). In a unit, those of the unit times the domain's share.
        units: the coordinates that can move; without rules, the domains themselves.
        unit_lower, unit_upper: least and largest weight, shape (units,).
        lower_reasons, upper_reasons: of the units, why, as clauses ("4 epochs allow at most 0.083").
        sums: bounds on groups of units.
        ball: mixtures near a given one; None: anywhere.
        most_domains: with weight above 0, fewer than there are; None: any number.
    """

    domains: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    units: Units
    unit_lower: FloatArray
    unit_upper: FloatArray
    lower_reasons: tuple[str, ...]
    upper_reasons: tuple[str, ...]
    sums: tuple[SumBound, ...] = ()
    ball: Ball | None = None
    most_domains: int | None = None

    @classmethod
    def from_domains(cls, domains: DomainSet) -> MixtureSpace:
        """The mixtures that the users' bounds, the rules on groups and the epoch caps at the target budget allow.

        Raises:
            InfeasibleError: there are none; says which domains or groups, by how much, and the smallest relaxation.
        """
        check_domains(domains)
        if domains.rules:
            check_groups(domains)
        limits = unit_limits(domains)
        unit_upper = np.array([limit.most.value for limit in limits])
        # Where a least weight exceeds its cap by float error alone, both are the cap.
        unit_lower = np.minimum([limit.least.value for limit in limits], unit_upper)
        units = domains.units
        lower, upper = units.expand(unit_lower), units.expand(unit_upper)
        lower_reasons, upper_reasons = tuple(limit.least.reason for limit in limits), tuple(limit.most.reason for limit in limits)
        for array in (lower, upper, unit_lower, unit_upper):
            array.setflags(write=False)
        sums = sum_bounds(domains)
        if domains.constraints:
            check_constraints(domains, Polytope(units, unit_lower, unit_upper, sums))
        whole = (ball_of(domains), most_domains_of(domains)) if domains.constraints else (None, None)
        return cls(domains.names, lower, upper, units, unit_lower, unit_upper, lower_reasons, upper_reasons, sums, *whole)

    @cached_property
    def unit_reach(self) -> tuple[FloatArray, FloatArray]:
        """Least and largest weight, each of shape (units,): those that a feasible mixture can have, where more than bounds on units limits them.

        Over more than 64 units a limit on the number of domains is left aside.
        """
        if self.ball is None and self.most_domains is None:
            return self._reach_of_bounds
        most = self.most_domains if len(self.unit_lower) <= FEW_UNITS else None
        ends = []
        for sign, bound in ((1.0, self._reach_of_bounds[0]), (-1.0, self._reach_of_bounds[1])):
            found = [least_value(self.polytope, row, self.ball, most) for row in sign * np.eye(len(bound))]
            values = [bound[index] if at is None else at.weights[index] for index, at in enumerate(found)]
            ends.append(np.clip(values, *self._reach_of_bounds))
        return ends[0], ends[1]

    @cached_property
    def _reach_of_bounds(self) -> tuple[FloatArray, FloatArray]:
        return reach(self.unit_lower, self.unit_upper, self._tree) if self.sums else (self.unit_lower, self.unit_upper)

    @property
    def is_convex(self) -> bool:
        """Whether everything between two feasible mixtures is feasible."""
        return self.most_domains is None

    @property
    def polytope(self) -> Polytope:
        """Bounds and rules on groups, without the limits on the whole."""
        return Polytope(self.units, self.unit_lower, self.unit_upper, self.sums)

    @cached_property
    def supports(self) -> Supports:
        """Which units mixtures may be made of; only where the number of domains is limited."""
        assert self.most_domains is not None
        return Supports(self.polytope, self.ball, self.most_domains)

    @cached_property
    def convex(self) -> MixtureSpace:
        """The same space without the limit on the number of domains."""
        return replace(self, most_domains=None)

    def on_support(self, mask: BoolArray) -> MixtureSpace:
        """The convex part of the space whose mixtures have no units but those of `mask` (units,); it must not be empty."""
        return self._between(self.unit_lower, np.where(mask, self.unit_upper, 0.0))

    def around(self, weights: FloatArray) -> MixtureSpace:
        """The convex part of the space that holds a feasible mixture (domains,): everything, or what has its units."""
        return self if self.is_convex else self.on_support((self.units.collapse(weights) > 0) | self.supports.forced)

    def _between(self, lower: FloatArray, upper: FloatArray) -> MixtureSpace:
        ends = self.units.expand(lower), self.units.expand(upper)
        return replace(self, lower=ends[0], upper=ends[1], unit_lower=lower, unit_upper=upper, most_domains=None)

    def contains(self, weights: FloatArray, tolerance: float = FEASIBLE_WITHIN) -> BoolArray:
        """Which rows of `weights` (n, domains) are feasible within `tolerance` per weight and per group, shape (n,)."""
        bounded = np.all((weights >= self.lower - tolerance) & (weights <= self.upper + tolerance), axis=-1)
        inside = bounded & (np.abs(weights.sum(axis=-1) - 1) <= tolerance)
        if not self.units.are_domains:
            inside &= np.all(np.abs(weights - self.units.expand(self.units.collapse(weights))) <= tolerance, axis=-1)
        sums = self.group_sums(self.units.collapse(weights))
        least, largest = self.sum_limits
        inside &= np.all((sums >= least - tolerance) & (sums <= largest + tolerance), axis=-1)
        if self.ball is not None:
            inside &= self.ball.distances(weights) <= self.ball.distance + tolerance
        if self.most_domains is not None:
            inside &= (weights > tolerance).sum(axis=-1) <= self.most_domains
        return np.asarray(inside)

    def project(self, weights: FloatArray) -> FloatArray:
        """The nearest feasible mixture to each row of `weights` (n, domains), in Euclidean distance; where units are groups, in the weights of units.

        With a limit on the number of domains a near one: the nearest within a support that `Supports.choose` takes for the row, which is the
        nearest of all where only that limit and the sum are at work; with rules on groups and a distance besides, as `project_onto` says. Without that
        limit the nearest but where groups are ruled and the distance is within rounding of the least possible.
        """
        if self.most_domains is None:
            return self._project_convex(weights)
        nearest = self.convex._project_convex(weights)
        points = self.units.collapse(nearest)
        many = np.flatnonzero((points > 0) @ self.units.counts > self.most_domains)
        if len(many):
            nearest[many] = self.project_onto(self.supports.choose(points[many]), self.units.collapse(weights[many]))
        return nearest

    def _project_convex(self, weights: FloatArray) -> FloatArray:
        lower, upper = self.unit_lower, self.unit_upper
        if self.units.are_domains and not self.sums:
            return project(weights, lower, upper) if self.ball is None else project_into_ball(weights, lower, upper, self.ball)
        points = self.units.collapse(weights)
        if self.ball is not None:
            nearest = project_nested_into_ball(points, lower, upper, self._tree, self.units, self.ball, self._nearest_to_centre)
        elif self.sums:
            nearest = project_nested(points, lower, upper, self._tree)
        else:
            nearest = project(points, lower, upper)
        # A weight of -1e-17 is within rounding of the set, but no mixture.
        exact = np.all((weights >= self.lower) & (weights <= self.upper), axis=1)
        return np.where((exact & self.contains(weights, ROUNDING))[:, None], weights, self.units.expand(nearest))

    def project_onto(self, masks: BoolArray, points: FloatArray) -> FloatArray:
        """Each row of `points` (n, units) projected onto its own feasible support of `masks`, as mixtures (n, domains).

        With rules on groups and a distance together each support would take a search for a price: a row goes to the nearest point without the
        distance, and from there straight toward the support's nearest to the centre until it is near enough.
        """
        if self.units.are_domains and not self.sums:
            upper = np.where(masks, self.unit_upper, 0.0)
            lower = np.broadcast_to(self.unit_lower, upper.shape)
            return project(points, lower, upper) if self.ball is None else project_into_ball(points, lower, upper, self.ball)
        found = np.empty((len(points), len(self.domains)))
        kinds, which = np.unique(masks, axis=0, return_inverse=True)
        for number, mask in enumerate(kinds):
            rows = which == number
            part = self.on_support(mask)
            found[rows] = part.project(self.units.expand(points[rows])) if self.ball is None else part._toward_centre(points[rows])
        return found

    def _toward_centre(self, points: FloatArray) -> FloatArray:
        """Feasible mixtures (n, domains) between the projections of `points` (n, units) without the distance and the mixture nearest to the centre."""
        assert self.ball is not None
        nearest = project_nested(points, self.unit_lower, self.unit_upper, self._tree)
        excess = self.ball.distances(self.units.expand(nearest)) - self.ball.distance
        if not np.any(excess > 0):
            return self.units.expand(nearest)
        return self.units.expand(blended(nearest, excess, self.units, self.ball, self._nearest_to_centre))

    @cached_property
    def _nearest_to_centre(self) -> FloatArray:
        """The weights of units (units,) of the mixture nearest to the ball's centre."""
        assert self.ball is not None
        found = least_distance(self.polytope, self.ball)
        assert found is not None, "MixtureSpace checks that there is a mixture"
        return np.asarray(project_nested(found.weights[None], self.unit_lower, self.unit_upper, self._tree)[0])

    def project_with(self, weights: FloatArray, unit: int, value: float) -> FloatArray:
        """The feasible mixture nearest to `weights` (domains,), as `project`, in which one unit weighs `value`, which must lie in `unit_reach`."""
        lower, upper = self.unit_lower.copy(), self.unit_upper.copy()
        lower[unit] = upper[unit] = value
        if self.ball is not None or self.most_domains is not None:
            return np.asarray(replace(self._between(lower, upper), most_domains=self.most_domains).project(weights[None])[0])
        tree = build_tree(lower, upper, self.sums)
        nearest = project_nested(self.units.collapse(weights)[None], lower, upper, tree)
        return self.units.expand(nearest[0])

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Feasible mixtures spread over interior, faces and corners, shape (count, domains).

        Wide Dirichlet draws, projected: not uniform, but dense where optima lie, on the boundary. Columns are drawn in the order of the
        names, so that listing the domains in another order permutes the draws and changes nothing else. Where a distance is limited, draws spread
        around the mixture nearest to the centre of it; where the number of domains is, over up to a thousand supports.
        """
        dimension = len(self.units.names)
        strengths = np.geomspace(0.3, 3.0, 15) * dimension
        draws = sample_dirichlet(rng, np.full(dimension, 1 / dimension), count, strengths.tolist(), zero_below=0.0)
        draws = draws[:, np.argsort(np.argsort(self.units.names))]
        stretch = rng.uniform(0.0, 1.5, (count, 1))
        if self.most_domains is not None:
            return self._sample_supports(draws, stretch)
        # The centre of the box, so that draws reach both ends of every domain also when caps are tight.
        lower, upper = self._reach_of_bounds
        centre = self.project(self.units.expand(np.asarray((lower + upper)[None] / 2)))
        if self.ball is not None:
            # Draws differ in total variation by up to 1: most shall end inside, and the others on the surface.
            centre, stretch = self.project(self.ball.centre[None]), stretch * min(1.0, 2 * self.ball.distance)
        return self.project(centre + self.units.expand((draws - 1 / dimension) * stretch))

    def _sample_supports(self, draws: FloatArray, stretch: FloatArray) -> FloatArray:
        """Mixtures of few domains from draws (n, units) of all: the supports of the first, and on each the other draws' parts there."""
        supports = self.supports.choose(
            draws[: SAMPLED_SUPPORTS if self.units.are_domains and not self.sums else SAMPLED_SUPPORTS_OF_GROUPS]
        )
        masks = supports[np.arange(len(draws)) % len(supports)] if len(supports) else np.zeros(draws.shape, dtype=bool)
        inside = np.where(masks, np.maximum(draws, np.finfo(float).tiny), 0.0)
        even = masks / np.maximum(masks.sum(axis=1, keepdims=True), 1)
        inside = inside / np.maximum(inside.sum(axis=1, keepdims=True), np.finfo(float).tiny)
        centre = even
        if self.ball is not None:
            centre = self.units.collapse(self.project_onto(masks, np.broadcast_to(self.units.collapse(self.ball.centre), draws.shape)))
            stretch = stretch * min(1.0, 2 * self.ball.distance)
        return self.project_onto(masks, centre + (inside - even) * stretch)

    def group_sums(self, unit_weights: FloatArray) -> FloatArray:
        """Weights of the bounded groups of weights over units (..., units), shape (..., sums)."""
        return np.asarray(unit_weights @ self.sum_matrix.T)

    @cached_property
    def sum_matrix(self) -> FloatArray:
        """Which units each bounded group holds, 0 or 1, shape (sums, units)."""
        matrix = np.zeros((len(self.sums), len(self.units.names)))
        for row, bound in enumerate(self.sums):
            matrix[row, list(bound.members)] = 1.0
        return matrix

    @cached_property
    def sum_limits(self) -> tuple[FloatArray, FloatArray]:
        """Least and largest weight of the bounded groups, each of shape (sums,)."""
        return np.array([bound.least for bound in self.sums]), np.array([bound.largest for bound in self.sums])

    @cached_property
    def _tree(self) -> Node:
        return build_tree(self.unit_lower, self.unit_upper, self.sums)

    def binding(self, weights: FloatArray, tolerance: float = BINDING_WITHIN) -> tuple[str, ...]:
        """The constraints that hold `weights` (domains,), as sentences. A least weight of 0 is no constraint of the user's."""
        return tuple(held.sentence for held in self.held(weights, tolerance))

    def held(self, weights: FloatArray, tolerance: float = BINDING_WITHIN) -> tuple[Held, ...]:
        """The same, and what each of them bounds."""
        found: list[Held] = []
        unit_weights = self.units.collapse(weights)
        for index, name in enumerate(self.units.titles):
            least, most, weight = self.unit_lower[index], self.unit_upper[index], unit_weights[index]
            if least == most > 0:
                sentence = f"{name}: fixed at {most:.3g}, since {self.upper_reasons[index]} and {self.lower_reasons[index]}"
                found.append(Held(sentence, "fixed", index))
                continue
            if weight >= most - tolerance and most < 1:
                found.append(Held(f"{name}: {self.upper_reasons[index]}", "most", index))
            if weight <= least + tolerance and least > 0:
                found.append(Held(f"{name}: {self.lower_reasons[index]}", "least", index))
        for row, (bound, total) in enumerate(zip(self.sums, self.group_sums(unit_weights).tolist(), strict=True)):
            if total >= bound.largest - tolerance and bound.largest < 1:
                found.append(Held(f"{bound.path}: bounds allow the group at most {bound.largest:.3g}", "group_most", row))
            if total <= bound.least + tolerance and bound.least > 0:
                found.append(Held(f"{bound.path}: bounds ask for at least {bound.least:.3g} of the group", "group_least", row))
        return (*found, *self._held_as_whole(weights, tolerance))

    def _held_as_whole(self, weights: FloatArray, tolerance: float) -> list[Held]:
        found = []
        if self.most_domains is not None:
            absent = (self.units.collapse(weights) <= 0) & (self.unit_upper > 0)
            if absent.any() and (weights > 0).sum() + self.units.counts[absent].min() > self.most_domains:
                found.append(Held(f"domains: at most {self.most_domains} may have weight", "count", 0))
        if self.ball is not None and self.ball.distances(weights) >= self.ball.distance - tolerance:
            moved = f"distance: at most {self.ball.distance:.3g} of the tokens may be moved from {self.ball.title}"
            found.append(Held(moved, "distance", 0))
        return found
