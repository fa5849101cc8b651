"""Where an acquisition function is largest: many feasible candidates, then projected gradient steps from the best of them, all at once.

Candidates are wide draws of the space and steps from mixtures that are good already; BoTorch's initial conditions, heuristically drawn from a
cube, hardly ever touch a simplex under caps. Steps follow the exact slopes and end on the feasible set through `MixtureSpace.project`, whatever its
constraints are. The main trade-off: first order, so a curved ridge is climbed slowly; an acquisition function is flat at its top.

Legend: R starts, M points, U units.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from mixopt.acquisition.beliefs import Sloped, UnitSpace
from mixopt.mixture import FloatArray

WIDE, AROUND, STARTS, STEPS = 256, 256, 4, 24
# Starts differ by at least this share of the tokens.
APART = 0.02
FIRST_STEP = 0.05
"""Length of the first step, in total weight moved."""
GROW, SHRINK, SHORTEST = 2.0, 0.25, 1e-6


def candidates(coordinates: UnitSpace, good_GU: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Feasible points: wide draws, and steps of all lengths from good ones toward such draws and along differences of good ones, shape (M, U)."""
    wide_MU = coordinates.sample(WIDE, rng)
    if not len(good_GU):
        return wide_MU
    good_GU = coordinates.project(good_GU)
    origin = good_GU[rng.integers(len(good_GU), size=AROUND)]
    toward_MU = wide_MU[rng.integers(len(wide_MU), size=AROUND)]
    share = np.exp(rng.uniform(np.log(0.01), 0.0, (AROUND, 1)))
    near_MU = origin + share * (toward_MU - origin)  # between two feasible points; of a set that is not convex, projected
    first, second = good_GU[rng.integers(len(good_GU), size=(2, AROUND))]
    along_MU = origin + rng.uniform(0.0, 1.0, (AROUND, 1)) * (first - second)
    return np.concatenate([good_GU, wide_MU, coordinates.project(np.concatenate([near_MU, along_MU]))])


def spread(points_MU: FloatArray, values_M: FloatArray, count: int, apart: float = APART) -> FloatArray:
    """The points of largest value that differ from each other by `apart` in total variation, at most `count`."""
    kept: list[FloatArray] = []
    for index in np.argsort(-values_M, kind="stable"):
        if all(0.5 * np.abs(points_MU[index] - other).sum() > apart for other in kept):
            kept.append(points_MU[index])
        if len(kept) == count:
            break
    return np.array(kept)


def climb(function: Sloped, coordinates: UnitSpace, starts_RU: FloatArray, steps: int = STEPS) -> tuple[FloatArray, FloatArray]:
    """Feasible points at which the function is at least as large as at `starts_RU` (feasible), shape (R, U), and its values (R,)."""
    points_RU, (values_R, slopes_RU) = starts_RU, function(starts_RU)
    step_R = FIRST_STEP / np.maximum(np.abs(slopes_RU - slopes_RU.mean(axis=1, keepdims=True)).sum(axis=1), 1e-300)
    for _ in range(steps):
        moved_RU = coordinates.project(points_RU + step_R[:, None] * slopes_RU)
        tried_R, tried_slopes_RU = function(moved_RU)
        better_R = tried_R > values_R
        # Barzilai & Borwein's step along an accepted move, a shorter one after a refused.
        move_RU = moved_RU - points_RU
        curvature_R = -(move_RU * (tried_slopes_RU - slopes_RU)).sum(axis=1)
        length_R = (move_RU**2).sum(axis=1)
        secant_R = np.where(curvature_R > 0, length_R / np.maximum(curvature_R, 1e-300), GROW * step_R)
        step_R = np.where(better_R, np.clip(secant_R, SHRINK * step_R, 10 * step_R), SHRINK * step_R)
        points_RU = np.where(better_R[:, None], moved_RU, points_RU)
        slopes_RU = np.where(better_R[:, None], tried_slopes_RU, slopes_RU)
        values_R = np.where(better_R, tried_R, values_R)
        if not (np.abs(move_RU).sum(axis=1) > SHORTEST).any():
            break
    return points_RU, values_R


def maximize(
    function: Sloped, values: Callable[[FloatArray], FloatArray], coordinates: UnitSpace, good_GU: FloatArray, rng: np.random.Generator
) -> tuple[FloatArray, FloatArray]:
    """Where the ascents ended, best first, and behind them all candidates, for whom may not run those; shape (M, U), and their values (M,).

    Args:
        values: as `function`, without slopes.
        good_GU: points worth starting at.
    """
    points_MU = candidates(coordinates, good_GU, rng)
    values_M = values(points_MU)
    climbed_RU, climbed_R = climb(function, coordinates, spread(points_MU, values_M, STARTS))
    ends, rest = np.argsort(-climbed_R, kind="stable"), np.argsort(-values_M, kind="stable")
    return np.concatenate([climbed_RU[ends], points_MU[rest]]), np.concatenate([climbed_R[ends], values_M[rest]])
