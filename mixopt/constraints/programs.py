"""What can be reached at all: the least distance, the fewest domains, the ends of every weight, as exact (mixed-integer) linear programs.

Distances are split variables, a number of domains is a sum of zeros and ones; both are what HiGHS, which scipy brings along, solves to the end. Only
yes, no and how much is asked here, once per set; nearest points are `ball`'s and `supports`'. The main trade-off: the solver keeps constraints within
1e-7, so that what is reported as just within reach is checked again with sums that are exact to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.constraints.rules import Ball
from mixopt.groups.nested import SumBound
from mixopt.groups.rules import Units
from mixopt.mixture import FloatArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Polytope:
    """Weights of units within bounds that sum to 1, and within bounds on groups.

    Attributes:
        lower, upper: shape (units,).
    """

    units: Units
    lower: FloatArray
    upper: FloatArray
    sums: tuple[SumBound, ...] = ()


@dataclass(frozen=True, eq=False)
class Reached:
    """A solution: the value of what was minimized, the weights of units and which units have any, each of shape (units,)."""

    value: float
    weights: FloatArray
    support: BoolArray


def least_distance(polytope: Polytope, ball: Ball, most_domains: int | None = None) -> Reached | None:
    """The mixture nearest to the ball's centre (the ball's own distance is no limit), of at most so many domains; None where there is none."""
    program = _Program.of(polytope, ball, counted=most_domains is not None)
    return program.solve(program.distance, most_domains=most_domains)


def fewest_domains(polytope: Polytope, ball: Ball | None = None) -> Reached | None:
    """The mixture of the fewest domains, within the ball; None where there is none."""
    program = _Program.of(polytope, ball, counted=True)
    return program.solve(program.count, distance=None if ball is None else ball.distance)


def least_value(polytope: Polytope, slopes: FloatArray, ball: Ball | None = None, most_domains: int | None = None) -> Reached | None:
    """The mixture with the least sum of slopes (units,) times weights; None where there is no mixture."""
    program = _Program.of(polytope, ball, counted=most_domains is not None)
    cost = np.zeros(len(program.count))
    cost[: len(slopes)] = slopes
    return program.solve(cost, most_domains=most_domains, distance=None if ball is None else ball.distance)


@dataclass(frozen=True, eq=False)
class _Program:
    """Variables: weights (units,); with a ball, distances per domain (domains,); with a count, whether a unit has weight (units,).

    Attributes:
        rows, least, largest: linear constraints, least <= rows @ variables <= largest.
        lower, upper, whole: of the variables; `whole` is 1 for those that are 0 or 1.
        distance, count: the rows that sum up the distance and the number of domains, zeros where there are no such variables.
    """

    rows: FloatArray
    least: FloatArray
    largest: FloatArray
    lower: FloatArray
    upper: FloatArray
    whole: FloatArray
    distance: FloatArray
    count: FloatArray
    units: int

    @classmethod
    def of(cls, polytope: Polytope, ball: Ball | None, counted: bool) -> _Program:
        units = polytope.units
        number, domains = len(units.names), len(units.domains) if ball is not None else 0
        width = number + domains + (number if counted else 0)
        rows: list[FloatArray] = []
        least: list[float] = []
        largest: list[float] = []

        def add(row: FloatArray, low: float, high: float) -> None:
            rows.append(row)
            least.append(low)
            largest.append(high)

        def row(**entries: Any) -> FloatArray:
            made = np.zeros(width)
            for at, value in entries.values():
                made[at] = value
            return made

        add(row(sum=(slice(0, number), 1.0)), 1.0, 1.0)
        for bound in polytope.sums:
            add(row(sum=(list(bound.members), 1.0)), bound.least, bound.largest)
        for domain in range(domains):
            assert ball is not None
            owner, share, centre = int(units.owner[domain]), float(units.share[domain]), float(ball.centre[domain])
            add(row(unit=(owner, share), gap=(number + domain, -1.0)), -np.inf, centre)
            add(row(unit=(owner, share), gap=(number + domain, 1.0)), centre, np.inf)
        if counted:
            for unit in range(number):
                add(row(unit=(unit, 1.0), used=(number + domains + unit, -float(polytope.upper[unit]))), -np.inf, 0.0)
        distance = row(gaps=(slice(number, number + domains), 0.5))
        count = row(used=(slice(number + domains, width), units.counts if counted else 0.0))
        whole = row(used=(slice(number + domains, width), 1.0))
        used = (polytope.lower > 0).astype(np.float64) if counted else np.zeros(0)
        lower = np.concatenate([polytope.lower, np.zeros(domains), used])
        upper = np.concatenate([polytope.upper, np.full(domains, 2.0), np.ones(len(used))])
        return cls(np.array(rows), np.array(least), np.array(largest), lower, upper, whole, distance, count, number)

    def solve(self, cost: FloatArray, most_domains: int | None = None, distance: float | None = None) -> Reached | None:
        from scipy.optimize import Bounds, LinearConstraint, milp

        constraints = [LinearConstraint(self.rows, self.least, self.largest)]
        if most_domains is not None:
            constraints.append(LinearConstraint(self.count[None], -np.inf, most_domains))
        if distance is not None:
            constraints.append(LinearConstraint(self.distance[None], -np.inf, distance))
        bounds = Bounds(self.lower, self.upper)
        answer = milp(cost, integrality=self.whole, bounds=bounds, constraints=constraints, options={"mip_rel_gap": 0.0})
        if answer.x is None:
            return None
        weights = np.clip(answer.x[: self.units], self.lower[: self.units], self.upper[: self.units])
        used = answer.x[-self.units :] > 0.5 if self.whole.any() else weights > 0
        return Reached(float(answer.fun), weights, np.asarray(used))
