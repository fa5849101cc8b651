"""From a good mixture to the floor of its basin, and a check that it is one.

SLSQP with batched finite differences toward the corners of the simplex, so that a surrogate is only ever asked about mixtures, in the space of
units, so that a group of given shares stays as it is. Its own word is not taken: whether an answer is feasible and whether any small feasible
move would still improve it is computed afresh, by a linear program over the first-order changes. A distance from a given mixture has edges, so it
enters both as one more variable per domain, the gap. The main trade-off: first order only. A saddle passes the check, which is why several starts are
tried. Where the number of domains is limited, search and check stay among the domains that a mixture has; `support_search` goes beyond.
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
        distance: by how much the mixture is too far from the one that it should stay near, in total variation.
        domains: how many domains with a weight above 0 are too many.
        first_order: how much the function would fall, to first order, if the best feasible move shifted one percentage point of the tokens; 0 at
            an optimum. None where the function has no slopes. Where the number of domains is limited, among moves that bring none in.
    """

    sum: float
    bounds: float
    groups: float
    floors: float
    first_order: float | None
    distance: float = 0.0
    domains: int = 0

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


def descend(function: BatchFunction, space: MixtureSpace, start: FloatArray, limits: Limits | None = None) -> tuple[FloatArray, str]:
    """Local minimum from a feasible `start` (domains,), feasible up to `limits`, and what the solver said.

    Where the number of domains is limited, the minimum among mixtures that have no others than `start`.
    """
    space = space.around(start)
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

    units, gaps = len(origin), _Gaps.of(space)

    def value_and_slopes(variables: FloatArray) -> tuple[float, FloatArray]:
        values, slopes = differences(lambda weights: function(weights)[:, None], space, variables[:units])
        return float(values[0] / spread), np.concatenate([slopes[0] / spread, np.zeros(len(gaps))])

    answer = scipy_minimize(
        value_and_slopes,
        np.concatenate([origin, gaps.at(origin)]),
        jac=True,
        method="SLSQP",
        bounds=[*zip(lower.tolist(), upper.tolist(), strict=True), *[(0.0, 1.0)] * len(gaps)],
        constraints=[*(_padded(constraint, units, len(gaps)) for constraint in _constraints(space, limits)), *gaps.constraints()],
        options={"maxiter": 50, "ftol": 1e-6},
    )
    if not np.isfinite(answer.x).all():
        return None, f"failed: {answer.message}"
    return answer.x[:units], f"{'converged' if answer.success else 'stopped'}: {answer.message}"


@dataclass(frozen=True, eq=False)
class _Gaps:
    """A distance as linear constraints: a gap per domain is at least the difference of its weight to the centre's, either way, and they sum up.

    Attributes:
        shares: shape (gaps, units): times weights of units, those of the domains that can move; no rows where no distance is limited.
        centre: of these domains, shape (gaps,).
        room: what the gaps may sum to.
    """

    shares: FloatArray
    centre: FloatArray
    room: float

    @classmethod
    def of(cls, space: MixtureSpace) -> _Gaps:
        if space.ball is None:
            return cls(np.zeros((0, len(space.units.names))), np.zeros(0), 0.0)
        moving = space.upper > space.lower
        fixed = float(np.abs(space.lower - space.ball.centre)[~moving].sum())
        return cls(space.units.expand(np.eye(len(space.units.names))).T[moving], space.ball.centre[moving], 2 * space.ball.distance - fixed)

    def __len__(self) -> int:
        return len(self.centre)

    def at(self, point: FloatArray) -> FloatArray:
        return np.asarray(np.abs(self.shares @ point - self.centre))

    @property
    def rows(self) -> tuple[FloatArray, FloatArray]:
        """Rows and limits of rows @ (weights of units, gaps) <= limits."""
        minus = -np.eye(len(self))
        total = np.concatenate([np.zeros(self.shares.shape[1]), np.ones(len(self))])[None]
        rows = np.vstack([np.hstack([self.shares, minus]), np.hstack([-self.shares, minus]), total])
        return rows, np.concatenate([self.centre, -self.centre, [self.room]])

    def constraints(self) -> list[dict[str, Any]]:
        """As SLSQP takes them."""
        if not len(self):
            return []
        rows, limits = self.rows
        return [{"type": "ineq", "fun": lambda variables: limits - rows @ variables, "jac": lambda variables: -rows}]


def _padded(constraint: dict[str, Any], units: int, gaps: int) -> dict[str, Any]:
    """A constraint on the weights of units as one on these and the gaps behind them."""
    if not gaps:
        return constraint
    fun, jac = constraint["fun"], constraint["jac"]

    def slopes(variables: FloatArray) -> FloatArray:
        found = np.atleast_2d(jac(variables[:units]))
        return np.hstack([found, np.zeros((len(found), gaps))])

    return {**constraint, "fun": lambda variables: fun(variables[:units]), "jac": slopes}


def differences(function: BatchFunction, space: MixtureSpace, point: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Values (k,) at a point (units,) of a function (n, domains) -> (n, k), and slopes toward the corners, shape (k, units).

    Slopes toward the corners are the gradient minus the same number everywhere, which moves that keep the sum cannot see.
    """
    # Where limits leave nothing, the solver may ask about no mixture at all; its answer is not taken then.
    positive = np.maximum(np.nan_to_num(point), 0.0)
    centre = positive / positive.sum() if positive.any() else np.full(len(point), 1 / len(point))
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
        first_order=_best_move(function, space.around(weights), point, limits) if smooth else None,
        distance=max(0.0, float(space.ball.distances(weights)) - space.ball.distance) if space.ball is not None else 0.0,
        domains=max(0, int((weights > 0).sum()) - space.most_domains) if space.most_domains is not None else 0,
    )


def _best_move(function: BatchFunction, space: MixtureSpace, point: FloatArray, limits: Limits | None) -> float:
    """The fall of the function per percentage point that the best feasible move brings, to first order: a linear program.

    A move is what units gain and what others give, at most MOVE of the tokens; bounds, groups, distance and limits are kept to first order.
    """
    from scipy.optimize import linprog

    pieces, slopes = differences(lambda weights: function(weights).reshape(len(weights), -1), space, point)
    # Everything in moves of MOVE and changes of `scale`, so that the solver's absolute tolerances mean the same for every function.
    scale = float(np.abs(slopes).max()) * MOVE or 1.0
    units = len(point)
    # Variables: gains (units), losses (units), the change of the largest piece, and gaps to the mixture to stay near.
    gaps = _Gaps.of(space)
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
    rows = [np.hstack([row, np.zeros((len(row), len(gaps)))]) for row in rows]
    if len(gaps):
        shares, at = gaps.rows
        on_units, on_gaps = shares[:, :units], shares[:, units:]
        rows.append(np.hstack([on_units, -on_units, np.zeros((len(at), 1)), on_gaps]))
        at = np.append(at[:-1], max(gaps.room, gaps.at(point).sum()))
        bounds.append((at - on_units @ point) / MOVE)
    rooms = np.concatenate([space.unit_upper - point, point - space.unit_lower]) / MOVE
    cost = np.concatenate([np.zeros(2 * units), [1.0], np.zeros(len(gaps))])
    balance = np.concatenate([np.ones(units), -np.ones(units), np.zeros(1 + len(gaps))])[None]
    limited = [*((0.0, max(float(room), 0.0)) for room in rooms), (None, None), *[(0.0, None)] * len(gaps)]
    answer = linprog(cost, np.vstack(rows), np.concatenate(bounds), balance, [0.0], limited)
    return max(0.0, -float(answer.fun) * scale) / MOVE * PERCENTAGE_POINT if answer.success else float("nan")
