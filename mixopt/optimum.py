"""Minimizes a batch function over the feasible mixtures.

Functions come from surrogates, which answer for thousands of points at once but give no derivatives. Candidates spread over the space find
the basin; a local search (`answer.local_search`) finds its floor, and checks that it did. Constraints beyond the space's own, floors on predicted
losses, order candidates: those that keep them by value, behind them the others by how much they miss. A piecewise constant function (boosted
trees) has no floor to find: there the mean of the best hundred candidates is taken, as RegMix does (arXiv 2407.01492), which also averages out the
luck of the single best. The main trade-off: the answer is a good local optimum, not a certified global one.

A limit on the number of domains makes the set a union of convex ones. The optimum without it is found first; if it has too many domains, the supports
that `answer.support_search` finds from there are searched in the same way, one by one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mixopt.answer.local_search import KEPT_WITHIN, MANY_UNITS, SNAP, BatchFunction, Limits, Residuals, descend, residuals
from mixopt.answer.ranked import Ranked, evaluate, missed
from mixopt.answer.support_search import best_supports
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace

CANDIDATES = 20_000
# RegMix averages the best 100 (paper) or 128 (code) of 100,000.
ELITES = 100
STARTS, STARTS_OF_MANY = 4, 2
# Where the number of domains is limited, each support is searched with so much of the candidates, and so many supports are searched to the end.
SUPPORT_SHARE, SUPPORTS_SOLVED = 4, 2


@dataclass(frozen=True)
class Optimum:
    """Where the function is least.

    Attributes:
        weights: feasible, shape (domains,).
        value: of the function there.
        method: "slsqp", "candidates" (SLSQP found nothing better) or "mean of best" (piecewise constant function); "closest" where no mixture was
            found that keeps the limits.
        status: what the solver said.
        residuals: what the answer misses.
    """

    weights: FloatArray
    value: float
    method: str
    status: str
    residuals: Residuals


def minimize(
    function: BatchFunction,
    space: MixtureSpace,
    starts: FloatArray,
    seed: int,
    smooth: bool = True,
    candidates: int = CANDIDATES,
    limits: Limits | None = None,
    pieces: BatchFunction | None = None,
) -> Optimum:
    """The feasible mixture with the least value found.

    Args:
        function: must answer for any mixture, feasible or not.
        starts: mixtures worth trying, shape (n, domains); they are projected.
        seed: of the candidates.
        smooth: False for piecewise constant functions; see `is_piecewise_constant`.
        limits: further constraints; where nothing keeps them all, the mixture that misses them least is returned, with method "closest".
        pieces: (n, domains) -> (n, pieces) whose largest is the function, where it has edges: its slopes alone say nothing there.
    """
    if not space.is_convex:
        return _minimize_of_few(function, space, starts, seed, smooth, candidates, limits, pieces)
    rng = np.random.default_rng([seed, 0x0B7])
    points = np.concatenate([space.project(starts), space.sample(candidates, rng)])
    ranked = Ranked.of(function, limits, points)
    ranked = _sharpen(ranked, function, space, limits, rng)
    weights, method, status = _best_of(ranked, function, space, limits, smooth)
    if limits is not None and limits.excess(weights[None]).max() > KEPT_WITHIN:
        weights, method, status = _toward_limits(ranked, function, space, limits, smooth)
    assert space.contains(weights[None])[0], "an optimum is feasible"
    return Optimum(
        weights, float(function(weights[None])[0]), method, status, residuals(pieces or function, space, weights, limits, smooth)
    )


def _minimize_of_few(
    function: BatchFunction,
    space: MixtureSpace,
    starts: FloatArray,
    seed: int,
    smooth: bool,
    candidates: int,
    limits: Limits | None,
    pieces: BatchFunction | None,
) -> Optimum:
    """As `minimize`, where the number of domains is limited."""
    relaxed = minimize(function, space.convex, starts, seed, smooth, candidates, limits, pieces)
    weights = _without_dust(space, relaxed.weights)
    if space.contains(weights[None])[0]:
        kept = residuals(pieces or function, space, weights, limits, smooth)
        return replace(relaxed, weights=weights, value=float(function(weights[None])[0]), residuals=kept)
    rng = np.random.default_rng([seed, 0x5B7])
    points = np.concatenate([space.project(np.concatenate([relaxed.weights[None], starts])), space.sample(candidates, rng)])
    found = best_supports(function, space, relaxed.weights, points, limits, smooth)
    answers = [
        minimize(function, space.around(point), point[None], seed, smooth, candidates // SUPPORT_SHARE, limits, pieces)
        for point in found.points[:SUPPORTS_SOLVED]
    ]
    cleaned = np.stack([_without_dust(space, answer.weights) for answer in answers])
    order = np.lexsort((evaluate(function, cleaned), missed(limits, cleaned)))
    best: Optimum = answers[order[0]]
    weights = cleaned[order[0]]
    return replace(
        best,
        weights=weights,
        value=float(function(weights[None])[0]),
        status=f"{best.status}; at most {space.most_domains} domains, {len(found.points)} choices of them searched",
        residuals=residuals(pieces or function, space, weights, limits, smooth),
    )


def _without_dust(space: MixtureSpace, weights: FloatArray) -> FloatArray:
    """A mixture (domains,) whose weights within rounding of 0 are 0, where that can be: each would count as a domain."""
    mask = (space.units.collapse(weights) > SNAP) | space.supports.forced
    return np.asarray(space.on_support(mask).project(weights[None])[0]) if space.supports.feasible(mask[None])[0] else weights


def _best_of(
    ranked: Ranked, function: BatchFunction, space: MixtureSpace, limits: Limits | None, smooth: bool
) -> tuple[FloatArray, str, str]:
    """Weights, method and status from ranked candidates."""
    if not smooth:
        kept = min(ELITES, max(int((ranked.missed == 0).sum()), 1))
        weights = space.project(ranked.points[:kept].mean(axis=0, keepdims=True))
        if missed(limits, weights)[0] > 0:
            return (
                ranked.points[0],
                "candidates",
                "the mean of the best candidates misses a floor, so it is the best candidate that keeps them",
            )
        return weights[0], "mean of best", f"mean of the best {kept} candidates"
    best, method, status = ranked.first(1), "candidates", "not started"
    messages: list[str] = []
    starts = _spread(ranked.points, STARTS if len(space.unit_lower) <= MANY_UNITS else STARTS_OF_MANY)
    if limits is not None:
        starts.append(ranked.points[int(np.argmin(ranked.values))])
    for start in starts:
        weights, message = descend(function, space, start, limits)
        messages.append(message)
        found = Ranked.of(function, limits, weights[None])
        if found.better_than(best):
            best, method, status = found, "slsqp", message
    if method == "candidates":
        status = f"no better than the best candidate: {'; '.join(sorted(set(messages)))}"
    return best.points[0], method, status


def _toward_limits(
    ranked: Ranked, function: BatchFunction, space: MixtureSpace, limits: Limits, smooth: bool
) -> tuple[FloatArray, str, str]:
    """Where no candidate keeps the limits: the mixture that misses them least, and from there, if it keeps them, the best one."""

    def miss(weights: FloatArray) -> FloatArray:
        return np.asarray((np.maximum(limits.excess(weights) / limits.scales, 0.0) ** 2).sum(axis=1))

    nearest = ranked.points[np.argsort(ranked.missed, kind="stable")]
    points = [descend(miss, space, start)[0] for start in _spread(nearest, STARTS)] if smooth else []
    fresh = ranked.joined(Ranked.of(function, limits, np.stack([*points, nearest[0]])))
    if fresh.missed[0] == 0:
        return _best_of(fresh, function, space, limits, smooth)
    tries = np.stack([*points, *fresh.points[: 4 * STARTS]])
    return tries[int(np.argmin(evaluate(miss, tries)))], "closest", "no mixture found keeps every floor"


def is_piecewise_constant(function: BatchFunction, points: FloatArray) -> bool:
    """Whether small moves of most `points` (n, domains) change nothing at all, as with trees.

    Hand in the surrogate's prediction alone, since a penalty on top always moves, and points without zeros, at which trees like to split.
    A constant function counts too.
    """
    # Toward the mixture's mirror image: stays on the simplex, and moves every weight that differs from its mirror's.
    moved = points + 1e-6 * (points[:, ::-1] - points)
    return bool(np.mean(evaluate(function, points) == evaluate(function, moved)) > 0.5)


def _sharpen(
    ranked: Ranked, function: BatchFunction, space: MixtureSpace, limits: Limits | None, rng: np.random.Generator, rounds: int = 2
) -> Ranked:
    """Adds points around the best: an elite plus a scaled difference of two others (differential evolution's step), projected."""
    for _ in range(rounds):
        elites, count = ranked.points[:ELITES], len(ranked.points) // 10
        picks = rng.integers(len(elites), size=(3, count))
        scale = rng.uniform(0.0, 1.0, (count, 1))
        fresh = space.project(elites[picks[0]] + scale * (elites[picks[1]] - elites[picks[2]]))
        ranked = ranked.joined(Ranked.of(function, limits, fresh))
    return ranked


def _spread(points: FloatArray, count: int, distance: float = 0.05) -> list[FloatArray]:
    """The first of `points` (best first), and the next ones that differ from all taken by `distance` in total variation."""
    taken: list[FloatArray] = []
    for point in points[: 10 * ELITES]:
        if all(0.5 * np.abs(point - other).sum() > distance for other in taken):
            taken.append(point)
        if len(taken) == count:
            break
    return taken
