"""Nearest points within a total variation of a given mixture, beside bounds and bounds on groups.

Where every domain is searched on its own and no group is bounded, the answer has a closed form. What lies above the centre sums to the distance and so
does what lies below, and neither depends on the other: two projections onto boxes with a fixed sum, by sorting. With groups, the distance is paid for
instead: a price on it makes each unit's weight that of a piecewise linear trade-off, which the tree of `groups.nested` takes in place of bounds, and
the price is found by bisection. The main trade-off: where the distance is within rounding of the least that there is, no price is high enough, and the
answer is blended with the mixture nearest to the centre: feasible, and near, but not the nearest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.constraints.rules import Ball
from mixopt.groups.nested import Node, project_nested
from mixopt.groups.rules import Units
from mixopt.mixture import FloatArray
from mixopt.simplex import project

# Prices double up to this one. Moves of a whole mixture are worth less than 2 in squared distance, so that only slopes near 0 ask for more.
HIGHEST_PRICE = 2.0**20
# The distance of an answer is met from below to within this.
MET_WITHIN = 1e-13
MOST_STEPS = 100


def project_into_ball(points: FloatArray, lower: FloatArray, upper: FloatArray, ball: Ball) -> FloatArray:
    """The nearest point to each row of `points` (n, domains) with lower <= x <= upper, sum 1 and within the ball; exact.

    Args:
        lower, upper: shape (domains,), or (n, domains) where every row has its own; `least_distances` of them is at most the ball's.
    """
    nearest = project(points, lower, upper)
    far = ball.distances(nearest) > ball.distance
    if not far.any():
        return nearest
    low, high = (np.broadcast_to(bound, points.shape)[far] - ball.centre for bound in (lower, upper))
    away = points[far] - ball.centre
    above = project(away, np.maximum(low, 0.0), np.maximum(high, 0.0), ball.distance)
    below = project(-away, np.maximum(-high, 0.0), np.maximum(-low, 0.0), ball.distance)
    # Subtracting the centre from a bound and adding it again may miss the bound by rounding.
    nearest[far] = np.clip(ball.centre + above - below, low + ball.centre, high + ball.centre)
    bounds = [np.broadcast_to(bound, points.shape) for bound in (lower, upper)]
    return np.clip(nearest, *bounds)


def least_distances(lower: FloatArray, upper: FloatArray, ball: Ball) -> FloatArray:
    """The least distance of a mixture within `lower` and `upper` (..., domains) from the centre, shape (...), where there is a mixture.

    What bounds push out of domains has to go to others, and what they ask for has to come from others; the larger of the two is moved.
    """
    out = np.maximum(ball.centre - upper, 0.0).sum(axis=-1)
    into = np.maximum(lower - ball.centre, 0.0).sum(axis=-1)
    return np.asarray(np.maximum(out, into))


@dataclass(frozen=True, eq=False)
class _Priced:
    """Units within bounds that pay for their distance: u minimizes (u - w)^2 / 2 + price * half the sum of |share * u - centre| over the unit's domains.

    Attributes:
        kinks: of each unit, the weights at which one of its domains has its centre's weight, ascending, shape (units, most domains); infinite behind them.
        slopes: of the half sum, before and between and behind the kinks, shape (units, most domains + 1).
        price: shape (n, 1).
    """

    lower: FloatArray
    upper: FloatArray
    kinks: FloatArray
    slopes: FloatArray
    price: FloatArray

    @property
    def reserve(self) -> FloatArray:
        return np.asarray(0.5 * self.price[:, 0])

    def respond(self, columns: Sequence[int], shifted: FloatArray) -> tuple[FloatArray, FloatArray]:
        own = list(columns)
        kinks, slopes = self.kinks[own], self.slopes[own]
        values = shifted - self.price * slopes[:, 0]
        moving = np.ones_like(values)
        for step in range(kinks.shape[1]):
            # Past a kink the slope is higher: either it holds the weight back, or the weight is at most at the kink.
            beyond = values > kinks[:, step]
            behind = shifted - self.price * slopes[:, step + 1]
            stuck = beyond & (behind <= kinks[:, step])
            moving = np.where(beyond, np.where(stuck, 0.0, 1.0), moving)
            values = np.where(beyond, np.where(stuck, kinks[:, step], behind), values)
        lower, upper = self.lower[own], self.upper[own]
        return np.clip(values, lower, upper), moving * ((values > lower) & (values < upper))


def kinks_and_slopes(units: Units, ball: Ball) -> tuple[FloatArray, FloatArray]:
    """As in `_Priced`."""
    owned = [np.flatnonzero((units.owner == unit) & (units.share > 0)) for unit in range(len(units.names))]
    most = max(len(members) for members in owned)
    kinks, slopes = np.full((len(owned), most), np.inf), np.full((len(owned), most + 1), 0.5)
    for unit, members in enumerate(owned):
        at = ball.centre[members] / units.share[members]
        order = np.argsort(at, kind="stable")
        kinks[unit, : len(members)] = at[order]
        slopes[unit, : len(members) + 1] = np.concatenate([[0.0], np.cumsum(units.share[members][order])]) - 0.5
    return kinks, slopes


def project_nested_into_ball(
    points: FloatArray, lower: FloatArray, upper: FloatArray, root: Node, units: Units, ball: Ball, anchor: FloatArray
) -> FloatArray:
    """The nearest point to each row of `points` (n, units) in the set of `project_nested`, within the ball in weights of domains.

    Args:
        anchor: the point of the set nearest to the centre, shape (units,).
    """
    nearest = project_nested(points, lower, upper, root)
    rows = np.flatnonzero(ball.distances(units.expand(nearest)) > ball.distance)
    if not len(rows):
        return nearest
    kinks, slopes = kinks_and_slopes(units, ball)

    def at(price: FloatArray, which: FloatArray) -> tuple[FloatArray, FloatArray]:
        found = project_nested(which, lower, upper, root, _Priced(lower, upper, kinks, slopes, price[:, None]))
        return found, ball.distances(units.expand(found)) - ball.distance

    far = points[rows]
    low, high = np.zeros(len(rows)), np.ones(len(rows))
    found, excess = at(high, far)
    while np.any(excess > 0) and high.max() < HIGHEST_PRICE:
        low, high = np.where(excess > 0, high, low), np.where(excess > 0, 4 * high, high)
        found, excess = at(high, far)
    below = ball.distances(units.expand(nearest[rows])) - ball.distance
    for step in range(MOST_STEPS):
        open_ = (excess < -MET_WITHIN) & (high - low > MET_WITHIN * high)
        if not open_.any():
            break
        # The excess falls piecewise linearly with the price: a chord ends on the right piece, halving on every third step gets there.
        chord = low + (high - low) * below / np.maximum(below - excess, 1e-300)
        middle = np.where((step % 3 < 2) & (chord > low) & (chord < high), chord, (low + high) / 2)
        tried, missed = at(middle[open_], far[open_])
        too_far, index = missed > 0, np.flatnonzero(open_)
        low[index[too_far]], below[index[too_far]] = middle[index[too_far]], missed[too_far]
        kept = index[~too_far]
        high[kept], excess[kept], found[kept] = middle[kept], missed[~too_far], tried[~too_far]
    nearest[rows] = blended(found, excess, units, ball, anchor)
    return nearest


def blended(found: FloatArray, excess: FloatArray, units: Units, ball: Ball, anchor: FloatArray) -> FloatArray:
    """Points that are too far, moved toward the anchor until they are not: distances are convex, so a chord is enough."""
    room = float(ball.distance - ball.distances(units.expand(anchor)))
    share = np.where(excess > 0, np.clip(excess / np.maximum(excess + max(room, 0.0), 1e-300), 0.0, 1.0), 0.0)
    return np.asarray(found + share[:, None] * (anchor - found))
