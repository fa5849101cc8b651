"""Local search over hundreds of domains: spectral projected gradient (Birgin, Martinez & Raydan 2000, algorithm 2.2).

SLSQP solves a dense least-squares problem per step, whose cost grows with the cube of the domains: at 200 domains hours for what takes seconds here. Steps go along
the projected gradient, as long as the last two slopes say (Barzilai & Borwein 1988), or multiply weights by what their slopes say (exponentiated gradient, Kivinen & Warmuth
1997), whichever gains more: a divergence is steep at weights near 0, where additive steps stall. The projection onto the feasible set is exact. The main trade-off: first
order, so the floor of a curved valley is found less exactly than by SLSQP; the check of residuals says how exactly.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

ITERATIONS = 30
# Shares of a step that are tried together: the function answers for many points at the price of few.
SHARES = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.01])
# A step that gains less than this share of the gain so far ends the search.
CONVERGED = 1e-5
FIRST_STEP = 0.1
"""Length of the first step, in total weight moved."""
FACTORS = np.array([3.0, 1.0, 0.3, 0.1, 0.03])
"""Logarithms of the largest change of a weight, of the multiplicative steps that are tried."""
SEEN = 1e-6
"""A weight of 0 could never grow by a factor."""
SHORTEST, LONGEST = 1e-10, 1e10


def follow(
    function: Callable[[FloatArray], FloatArray],
    slopes: Callable[[FloatArray], FloatArray],
    space: MixtureSpace,
    start: FloatArray,
) -> tuple[FloatArray, str]:
    """Local minimum from `start` over units, feasible, and what ended the search.

    Args:
        function: of mixtures (n, domains), shape (n,).
        slopes: at a point (units,), toward the corners, shape (units,).
    """
    units = space.units

    def project(points: FloatArray) -> FloatArray:
        return units.collapse(space.project(units.expand(points)))

    point = project(start[None])[0]
    value = first = float(function(units.expand(point[None]))[0])
    slope = slopes(point)
    step = FIRST_STEP / max(float(np.abs(slope - slope.mean()).sum()), 1e-300)
    for _ in range(ITERATIONS):
        direction = project((point - step * slope)[None])[0] - point
        tries = np.concatenate([point + SHARES[:, None] * direction, project(_multiplied(point, slope))])
        values = function(units.expand(tries))
        best = int(np.argmin(values))
        if values[best] >= value:
            return point, "converged: no step along the projected gradient improves"
        gained, moved = value - float(values[best]), tries[best] - point
        point, value = tries[best], float(values[best])
        if gained < CONVERGED * (first - value):
            return point, "converged: steps gain less than a hundred thousandth of what was gained"
        fresh = slopes(point)
        curvature = float(moved @ (fresh - slope))
        step = min(max(float(moved @ moved) / curvature, SHORTEST), LONGEST) if curvature > 0 else LONGEST
        # A step may not leave the simplex by far: its projection would be a corner.
        step = min(step, 1.0 / max(float(np.abs(fresh - fresh.mean()).max()), 1e-300))
        slope = fresh
    return point, f"stopped: {ITERATIONS} steps"


def _multiplied(point: FloatArray, slope: FloatArray) -> FloatArray:
    """Multiplicative steps from a point (units,), shape (factors, units)."""
    centred = slope - slope @ point
    scaled = np.maximum(point, SEEN) * np.exp(-FACTORS[:, None] * centred / max(float(np.abs(centred).max()), 1e-300))
    return np.asarray(scaled / scaled.sum(axis=1, keepdims=True))
