"""Minimizes a batch function over the feasible mixtures.

Functions come from surrogates, which answer for thousands of points at once but give no derivatives. Candidates spread over the space find
the basin; SLSQP with batched finite differences finds its floor. Differences are taken toward the corners of the simplex, so that a surrogate
is only ever asked about mixtures, and in the space of units, so that a group of given shares stays as it is. A piecewise constant function (boosted trees) has no floor to find: there the mean of the best hundred
candidates is taken, as RegMix does (arXiv 2407.01492), which also averages out the luck of the single best. The main trade-off: the answer is a
good local optimum, not a certified global one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

# (n, domains) -> (n,), lower is better.
BatchFunction = Callable[[FloatArray], FloatArray]

CANDIDATES = 20_000
# RegMix averages the best 100 (paper) or 128 (code) of 100,000.
ELITES = 100
STARTS = 4
# Step of the finite differences as a share of the way to a corner. At weight 0 sqrt features have an infinite slope; a step of 1e-4 is short
# against the 1e-3 on which log features bend and long enough for SLSQP not to chase that slope (1e-5: twice the calls, no better; docs/log.md).
STEP = 1e-4
# Weights this near to a bound are put on it: a five-hundredth of one window in a million tokens.
SNAP = 1e-6
# Asks for points in chunks, so that a Gaussian process on 500 trials stays below 100 MB.
CHUNK = 4096


@dataclass(frozen=True)
class Optimum:
    """Where the function is least.

    Attributes:
        weights: feasible, shape (domains,).
        value: of the function there.
        method: "slsqp", "candidates" (SLSQP found nothing better) or "mean of best" (piecewise constant function).
        status: what the solver said.
    """

    weights: FloatArray
    value: float
    method: str
    status: str


def minimize(
    function: BatchFunction,
    space: MixtureSpace,
    starts: FloatArray,
    seed: int,
    smooth: bool = True,
    candidates: int = CANDIDATES,
) -> Optimum:
    """The feasible mixture with the least value found.

    Args:
        function: must answer for any mixture, feasible or not.
        starts: mixtures worth trying, shape (n, domains); they are projected.
        seed: of the candidates.
        smooth: False for piecewise constant functions; see `is_piecewise_constant`.
    """
    rng = np.random.default_rng([seed, 0x0B7])
    points = np.concatenate([space.project(starts), space.sample(candidates, rng)])
    values = evaluate(function, points)
    points, values = _sharpen(function, space, points, values, rng)
    order = np.argsort(values, kind="stable")
    if not smooth:
        weights = space.project(points[order[:ELITES]].mean(axis=0, keepdims=True))
        return Optimum(weights[0], float(function(weights)[0]), "mean of best", f"mean of the best {min(ELITES, len(order))} candidates")
    best = Optimum(points[order[0]], float(values[order[0]]), "candidates", "not started")
    messages: list[str] = []
    for start in _spread(points[order], STARTS):
        weights, message = _slsqp(function, space, start)
        value = float(function(weights[None])[0])
        messages.append(message)
        if value < best.value:
            best = Optimum(weights, value, "slsqp", message)
    if best.method == "candidates":
        best = Optimum(best.weights, best.value, best.method, f"no better than the best candidate: {'; '.join(sorted(set(messages)))}")
    assert space.contains(best.weights[None])[0], "an optimum is feasible"
    return best


def evaluate(function: BatchFunction, points: FloatArray) -> FloatArray:
    """`function` over many points in chunks, shape (n,).

    Raises:
        ValueError: the function returned something not finite.
    """
    if not len(points):
        return np.zeros(0)
    values = np.concatenate([function(points[at : at + CHUNK]) for at in range(0, len(points), CHUNK)])
    if not np.isfinite(values).all():
        raise ValueError(f"the function is not finite at {points[~np.isfinite(values)][0].round(4).tolist()}")
    return np.asarray(values)


def is_piecewise_constant(function: BatchFunction, points: FloatArray) -> bool:
    """Whether small moves of most `points` (n, domains) change nothing at all, as with trees.

    Hand in the surrogate's prediction alone, since a penalty on top always moves, and points without zeros, at which trees like to split.
    A constant function counts too.
    """
    # Toward the mixture's mirror image: stays on the simplex, and moves every weight that differs from its mirror's.
    moved = points + 1e-6 * (points[:, ::-1] - points)
    return bool(np.mean(evaluate(function, points) == evaluate(function, moved)) > 0.5)


def near_optimal_range(
    function: BatchFunction, space: MixtureSpace, optimum: FloatArray, threshold: float, seed: int, candidates: int = 1000
) -> tuple[FloatArray, FloatArray]:
    """Least and largest weight per domain among feasible mixtures with function <= threshold, each of shape (domains,).

    Found from inside: a cloud around the optimum, then the last good mixture on straight lines toward both ends of every domain, from the
    optimum and from the farthest of the cloud. The true range is at least as wide.
    """
    rng = np.random.default_rng([seed, 0x4A6])
    scale = rng.uniform(0.0, 1.0, (candidates, 1)) ** 2
    cloud = optimum + scale * (space.sample(candidates, rng) - optimum)
    good = np.concatenate([optimum[None], cloud[evaluate(function, cloud) <= threshold]])
    moving = space.units.collapse(good)
    extremes = np.concatenate([good[moving.argmin(axis=0)], good[moving.argmax(axis=0)]])
    for origins in (np.repeat(optimum[None], len(extremes), axis=0), extremes):
        good = np.concatenate([good, _last_good(function, origins, _toward_ends(space, origins), threshold)])
    return good.min(axis=0), good.max(axis=0)


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
    if not space.sums:
        return space.project(ends)
    # Where groups are bounded, projecting could take the weight away from its end.
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


def _sharpen(
    function: BatchFunction, space: MixtureSpace, points: FloatArray, values: FloatArray, rng: np.random.Generator, rounds: int = 2
) -> tuple[FloatArray, FloatArray]:
    """Adds points around the best: an elite plus a scaled difference of two others (differential evolution's step), projected."""
    for _ in range(rounds):
        elites = points[np.argsort(values, kind="stable")[:ELITES]]
        picks = rng.integers(len(elites), size=(3, len(points) // 10))
        scale = rng.uniform(0.0, 1.0, (len(points) // 10, 1))
        fresh = space.project(elites[picks[0]] + scale * (elites[picks[1]] - elites[picks[2]]))
        points, values = np.concatenate([points, fresh]), np.concatenate([values, evaluate(function, fresh)])
    return points, values


def _spread(points: FloatArray, count: int, distance: float = 0.05) -> list[FloatArray]:
    """The first of `points` (best first), and the next ones that differ from all taken by `distance` in total variation."""
    taken: list[FloatArray] = []
    for point in points[: 10 * ELITES]:
        if all(0.5 * np.abs(point - other).sum() > distance for other in taken):
            taken.append(point)
        if len(taken) == count:
            break
    return taken


def _slsqp(function: BatchFunction, space: MixtureSpace, start: FloatArray) -> tuple[FloatArray, str]:
    """Local minimum from `start`, projected, and the solver's message."""
    from scipy.optimize import minimize as scipy_minimize

    units = space.units
    dimension = len(units.names)
    corners = np.eye(dimension)
    origin = units.collapse(start)

    def over_units(points: FloatArray) -> FloatArray:
        return function(units.expand(points))

    # Values of a surrogate may span 1e-3 or 1e3; SLSQP's tolerance is absolute.
    spread = np.ptp(over_units(origin + 0.01 * (corners - origin))) or 1.0

    def on_simplex(point: FloatArray) -> FloatArray:
        positive = np.maximum(point, 0.0)
        return np.asarray(positive / positive.sum())

    def value_and_slopes(point: FloatArray) -> tuple[float, FloatArray]:
        centre = on_simplex(point)
        values = over_units(np.concatenate([centre[None], centre + STEP * (corners - centre)]))
        # Slopes toward the corners are the gradient minus the same number everywhere, which the sum constraint cannot see.
        return float(values[0] / spread), np.asarray((values[1:] - values[0]) / STEP / spread)

    answer = scipy_minimize(
        value_and_slopes,
        origin,
        jac=True,
        method="SLSQP",
        bounds=list(zip(space.unit_lower.tolist(), space.unit_upper.tolist(), strict=True)),
        constraints=_constraints(space),
        options={"maxiter": 50, "ftol": 1e-6},
    )
    if not np.isfinite(answer.x).all():
        return start, f"failed: {answer.message}"
    # The solver stops within rounding of a bound; a weight of 1e-9 would read as a domain that is wanted.
    lower, upper = space.unit_lower, space.unit_upper
    snapped = np.where(answer.x < lower + SNAP, lower, np.where(answer.x > upper - SNAP, upper, answer.x))
    return space.project(units.expand(snapped)[None])[0], f"{'converged' if answer.success else 'stopped'}: {answer.message}"


def _constraints(space: MixtureSpace) -> list[dict[str, Any]]:
    """Sum 1, and where groups are bounded their sums, as SLSQP takes them: functions of the weights of units with their derivatives."""
    ones = np.ones(len(space.units.names))
    constraints: list[dict[str, Any]] = [{"type": "eq", "fun": lambda point: point.sum() - 1, "jac": lambda point: ones}]
    if space.sums:
        least, largest = space.sum_limits
        matrix = space.sum_matrix
        constraints.append({"type": "ineq", "fun": lambda point: matrix @ point - least, "jac": lambda point: matrix})
        constraints.append({"type": "ineq", "fun": lambda point: largest - matrix @ point, "jac": lambda point: -matrix})
    return constraints
