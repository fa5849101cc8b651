"""The feasible mixtures: bounds per domain from the user and from epoch caps, each remembered with its reason; and what groups add to them.

Constraints belong here and in the optimizer, not in the swarm (Olmix, arXiv 2602.12237: caps in the optimizer alone gave .7647, in both
.7855): proxies are trained on infeasible mixtures too, because that is where a domain's effect shows. Groups add two kinds. A group of given
shares moves as one unit, so the optimizer works on units and everybody else sees domains; bounds on a group's weight are linear constraints
over nested sets of units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

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


@dataclass(frozen=True)
class Held:
    """A constraint that holds a mixture: its sentence, what it bounds, and the number of the unit or of the bounded group."""

    sentence: str
    side: Literal["fixed", "most", "least", "group_most", "group_least"]
    index: int


@dataclass(frozen=True, eq=False)
class MixtureSpace:
    """Mixtures with lower <= weights <= upper that keep the rules on groups. Build it with `from_domains`, which checks that there are any.

    Attributes:
        domains: names of the last axis of every array here that is not said to be over units.
        lower, upper: least and largest weight, shape (domains,). In a unit, those of the unit times the domain's share.
        units: the coordinates that can move; without rules, the domains themselves.
        unit_lower, unit_upper: least and largest weight, shape (units,).
        lower_reasons, upper_reasons: of the units, why, as clauses ("4 epochs allow at most 0.083").
        sums: bounds on groups of units.
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
        return cls(domains.names, lower, upper, units, unit_lower, unit_upper, lower_reasons, upper_reasons, sum_bounds(domains))

    @cached_property
    def unit_reach(self) -> tuple[FloatArray, FloatArray]:
        """Least and largest weight, each of shape (units,): where groups are bounded, those that a feasible mixture can have."""
        return reach(self.unit_lower, self.unit_upper, self._tree) if self.sums else (self.unit_lower, self.unit_upper)

    def contains(self, weights: FloatArray, tolerance: float = FEASIBLE_WITHIN) -> BoolArray:
        """Which rows of `weights` (n, domains) are feasible within `tolerance` per weight and per group, shape (n,)."""
        bounded = np.all((weights >= self.lower - tolerance) & (weights <= self.upper + tolerance), axis=-1)
        inside = bounded & (np.abs(weights.sum(axis=-1) - 1) <= tolerance)
        if not self.units.are_domains:
            inside &= np.all(np.abs(weights - self.units.expand(self.units.collapse(weights))) <= tolerance, axis=-1)
        sums = self.group_sums(self.units.collapse(weights))
        least, largest = self.sum_limits
        return np.asarray(inside & np.all((sums >= least - tolerance) & (sums <= largest + tolerance), axis=-1))

    def project(self, weights: FloatArray) -> FloatArray:
        """The nearest feasible mixture to each row of `weights` (n, domains). Where units are groups, nearest in the weights of units."""
        if self.units.are_domains and not self.sums:
            return project(weights, self.lower, self.upper)
        points = self.units.collapse(weights)
        if self.sums:
            nearest = project_nested(points, self.unit_lower, self.unit_upper, self._tree)
        else:
            nearest = project(points, self.unit_lower, self.unit_upper)
        # A weight of -1e-17 is within rounding of the set, but no mixture.
        exact = np.all((weights >= self.lower) & (weights <= self.upper), axis=1)
        return np.where((exact & self.contains(weights, ROUNDING))[:, None], weights, self.units.expand(nearest))

    def project_with(self, weights: FloatArray, unit: int, value: float) -> FloatArray:
        """The feasible mixture nearest to `weights` (domains,) in which one unit weighs `value`, which must lie in `unit_reach`."""
        lower, upper = self.unit_lower.copy(), self.unit_upper.copy()
        lower[unit] = upper[unit] = value
        tree = build_tree(lower, upper, self.sums)
        nearest = project_nested(self.units.collapse(weights)[None], lower, upper, tree)
        return self.units.expand(nearest[0])

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Feasible mixtures spread over interior, faces and corners, shape (count, domains).

        Wide Dirichlet draws, projected: not uniform, but dense where optima lie, on the boundary. Columns are drawn in the order of the
        names, so that listing the domains in another order permutes the draws and changes nothing else.
        """
        dimension = len(self.units.names)
        strengths = np.geomspace(0.3, 3.0, 15) * dimension
        draws = sample_dirichlet(rng, np.full(dimension, 1 / dimension), count, strengths.tolist(), zero_below=0.0)
        columns = np.argsort(np.argsort(self.units.names))
        # The centre of the box, so that draws reach both ends of every domain also when caps are tight.
        lower, upper = self.unit_reach
        centre = self.project(self.units.expand(np.asarray((lower + upper)[None] / 2)))
        stretched = centre + self.units.expand((draws[:, columns] - 1 / dimension) * rng.uniform(0.0, 1.5, (count, 1)))
        return self.project(stretched)

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
        return tuple(found)
