"""From a good mixture to the floor of its basin, and a check that it is one.

SLSQP with batched finite differences toward the corners of the simplex, so that a surrogate is only ever asked about mixtures, in the space of
units, so that a group of given shares stays as it is. Its own word is not taken: whether an answer is feasible and whether any small feasible
move would still improve it is computed afresh, by a linear program over the first-order changes. The main trade-off: first order only. A
saddle passes the check, which is why several starts are tried.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from mixopt.answer.projected_gradient import follow
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

# (n, domains) -> (n,), lower is better.
BatchFunction = Callable[[FloatArray], FloatArray]

# Step of the finite differences as a share of the way to a corner. At weight 0 sqrt features have an infinite slope; a step of 1e-4 is short
# against the 1e-3 on which log features bend and long enough for SLSQP not to chase that slope (1e-5: twice the calls, no better; docs/log.md).
STEP = 1e-4
# Weights this near to a bound are put on it: a five-hundredth of one window in a million tokens.
SNAP = 1e-6
# A constraint is kept if it is missed by no more than this, in its own unit.
KEPT_WITHIN = 1e-6
# SLSQP's own cost grows with the cube of the units: more of them follow the projected gradient, unless there are limits, which it knows nothing of.
MANY_UNITS = 64
# The check asks about moves of this share of the tokens, and reports what a percentage point would bring.
MOVE = 1e-3
PERCENTAGE_POINT = 0.01


class Limits(Protocol):
    """Constraints on a batch of mixtures; `scales` (limits,) make misses of different ones comparable."""

    @property
    def scales(self) -> FloatArray: ...
    def excess(self, weights: FloatArray) -> FloatArray:
        """By how much mixtures (n, domains) miss each, shape (n, limits); at most 0 where one is kept."""
        ...


@dataclass(frozen=True)
class Residuals:
    """How far an answer is from what an optimum must be.

    Attributes:
        sum: distance of the sum of weights from 1.
        bounds, groups: the largest miss of a bound on a weight, and on a group's weight.
        floors: the largest miss of a floor, in the unit of losses.
        first_order: how much the function would fall, to first order, if the best feasible move shifted one percentage point of the tokens; 0 at
            an optimum. None where the function has no slopes.
    """

    sum: float
    bounds: float
    groups: float
    floors: float
    first_order: float | None

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


def descend(function: BatchFunction, space: MixtureSpace, start: FloatArray, limits: Limits | None = None) -> tuple[FloatArray, str]:
    """Local minimum from `start` (domains,), feasible up to `limits`, and what the solver said."""
    lower, upper = space.unit_lower, space.unit_upper
    if len(lower) > MANY_UNITS and limits is None:

        def slopes(point: FloatArray) -> FloatArray:
            return np.asarray(differences(lambda weights: function(weights)[:, None], space, point)[1][0])

        found, message = follow(function, slopes, space, space.units.collapse(start))
        return space.project(space.units.expand(np.where(found < lower + SNAP, lower, found))[None])[0], message
    point, message = _slsqp(function, space, space.units.collapse(start), lower, upper, limits)
    if point is None:
        return start, message
    # The solver stops within rounding of a bound; a weight of 1e-9 would read as a domain that is wanted.
    low, high = point < lower + SNAP, point > upper - SNAP
    snapped = np.where(low, lower, np.where(high, upper, point))
    weights = space.project(space.units.expand(snapped)[None])
    if limits is not None and limits.excess(weights).max() > KEPT_WITHIN:
        # Near 0 a small step is a large one for log features: what is on its bound stays there, and the others find the limit again.
        held_lower, held_upper = np.where(high, upper, lower), np.where(low, lower, upper)
        again, _ = _slsqp(function, space, space.units.collapse(weights[0]), held_lower, held_upper, limits)
        tries = [space.units.expand(again)] if again is not None else []
        weights = space.project(np.stack([*tries, weights[0], space.units.expand(np.clip(point, lower, upper))]))
        missed = np.maximum(limits.excess(weights).max(axis=1), KEPT_WITHIN)
        weights = weights[[int(np.argmin(missed))]]
    return weights[0], message


def _slsqp(
    function: BatchFunction, space: MixtureSpace, origin: FloatArray, lower: FloatArray, upper: FloatArray, limits: Limits | None
) -> tuple[FloatArray | None, str]:
    """The solver's answer over units, None where it is not finite, and its message."""
    from scipy.optimize import minimize as scipy_minimize

    # Values of a surrogate may span 1e-3 or 1e3; SLSQP's tolerance is absolute.
    corners = np.eye(len(origin))
    spread = float(np.ptp(function(space.units.expand(origin + 0.01 * (corners - origin))))) or 1.0

    def value_and_slopes(point: FloatArray) -> tuple[float, FloatArray]:
        values, slopes = differences(lambda weights: function(weights)[:, None], space, point)
        return float(values[0] / spread), slopes[0] / spread

    answer = scipy_minimize(
        value_and_slopes,
        origin,
        jac=True,
        method="SLSQP",
        bounds=list(zip(lower.tolist(), upper.tolist(), strict=True)),
        constraints=_constraints(space, limits),
        options={"maxiter": 50, "ftol": 1e-6},
    )
    if not np.isfinite(answer.x).all():
        return None, f"failed: {answer.message}"
    return answer.x, f"{'converged' if answer.success else 'stopped'}: {answer.message}"


def differences(function: BatchFunction, space: MixtureSpace, point: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values (k,) at a point (units,) of a function (n, domains) -> (n, k), and slopes toward the corners, shape (k, units).

    Slopes toward the corners are the gradient minus the same number everywhere, which moves that keep the sum cannot see.
    """
    positive = np.maximum(point, 0.0)
    centre = positive / positive.sum()
    corners = np.eye(len(centre))
    values = function(space.units.expand(np.concatenate([centre[None], centre + STEP * (corners - centre)])))
    return values[0], np.asarray((values[1:] - values[0]).T / STEP)


def _constraints(space: MixtureSpace, limits: Limits | None) -> list[dict[str, Any]]:
    """Sum 1, the sums of bounded groups, and limits, as SLSQP takes them: functions of the weights of units with their derivatives."""
    ones = np.ones(len(space.units.names))
    constraints: list[dict[str, Any]] = [{"type": "eq", "fun": lambda point: point.sum() - 1, "jac": lambda point: ones}]
    if space.sums:
        least, largest = space.sum_limits
        matrix = space.sum_matrix
        constraints.append({"type": "ineq", "fun": lambda point: matrix @ point - least, "jac": lambda point: matrix})
        constraints.append({"type": "ineq", "fun": lambda point: largest - matrix @ point, "jac": lambda point: -matrix})
    if limits is not None:
        known: dict[bytes, tuple[FloatArray, FloatArray]] = {}

        def kept(point: FloatArray) -> tuple[FloatArray, FloatArray]:
            key = point.tobytes()
            if key not in known:
                known.clear()
                known[key] = differences(lambda weights: -limits.excess(weights) / limits.scales, space, point)
            return known[key]

        constraints.append({"type": "ineq", "fun": lambda point: kept(point)[0], "jac": lambda point: kept(point)[1]})
    return constraints


def residuals(
    function: BatchFunction, space: MixtureSpace, weights: FloatArray, limits: Limits | None = None, smooth: bool = True
) -> Residuals:
    """What an answer (domains,) misses.

    Args:
        function: (n, domains) -> (n,), or (n, pieces) where the largest piece counts.
        smooth: False: no slopes are asked for.
    """
    point = space.units.collapse(weights)
    least, largest = space.sum_limits
    sums = space.group_sums(point)
    excess = limits.excess(weights[None])[0] if limits is not None else np.zeros(1)
    return Residuals(
        sum=float(abs(weights.sum() - 1)),
        bounds=float(max(0.0, (space.lower - weights).max(), (weights - space.upper).max())),
        groups=float(max(0.0, *(least - sums), *(sums - largest))) if len(sums) else 0.0,
        floors=float(max(0.0, excess.max())),
        first_order=_best_move(function, space, point, limits) if smooth else None,
    )


def _best_move(function: BatchFunction, space: MixtureSpace, point: FloatArray, limits: Limits | None) -> float:
    """The fall of the function per percentage point that the best feasible move brings, to first order: a linear program.

    A move is what units gain and what others give, at most MOVE of the tokens; bounds, groups and limits are kept to first order.
    """
    from scipy.optimize import linprog

    pieces, slopes = differences(lambda weights: function(weights).reshape(len(weights), -1), space, point)
    # Everything in moves of MOVE and changes of `scale`, so that the solver's absolute tolerances mean the same for every function.
    scale = float(np.abs(slopes).max()) * MOVE or 1.0
    units = len(point)
    # Variables: gains (units), losses (units), and the change of the largest piece.
    steps = slopes * MOVE / scale
    rows = [np.hstack([steps, -steps, -np.ones((len(pieces), 1))]), np.concatenate([np.ones(units), np.zeros(units + 1)])[None]]
    bounds = [(pieces.max() - pieces) / scale, np.ones(1)]
    if space.sums:
        least, largest = space.sum_limits
        sums, matrix, zero = space.group_sums(point), space.sum_matrix, np.zeros((len(space.sums), 1))
        rows += [np.hstack([matrix, -matrix, zero]), np.hstack([-matrix, matrix, zero])]
        bounds += [np.maximum(largest - sums, 0.0) / MOVE, np.maximum(sums - least, 0.0) / MOVE]
    if limits is not None:
        excess, slopes = differences(lambda weights: limits.excess(weights) / limits.scales, space, point)
        rows.append(np.hstack([slopes * MOVE, -slopes * MOVE, np.zeros((len(excess), 1))]))
        bounds.append(np.maximum(-excess, 0.0))
    rooms = np.concatenate([space.unit_upper - point, point - space.unit_lower]) / MOVE
    cost = np.concatenate([np.zeros(2 * units), [1.0]])
    balance = np.concatenate([np.ones(units), -np.ones(units), [0.0]])[None]
    limited = [(0.0, max(float(room), 0.0)) for room in rooms]
    answer = linprog(cost, np.vstack(rows), np.concatenate(bounds), balance, [0.0], [*limited, (None, None)])
    return max(0.0, -float(answer.fun) * scale) / MOVE * PERCENTAGE_POINT if answer.success else float("nan")
