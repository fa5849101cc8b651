"""What holds an answer: how the objective reacts to each domain, and what relaxing each binding constraint would bring.

A constraint is relaxed by a stated amount and the best mixture sought again, from the proposal on; the gain is a difference of joint posterior
draws, so its interval holds what is known of the difference and not of each alone. The main trade-off: one constraint at a time. Two that only
help together show no gain here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from mixopt.answer.constraints import FloorSet
from mixopt.answer.local_search import descend
from mixopt.answer.problem import FEW_CANDIDATES, Problem
from mixopt.answer.support_search import swaps
from mixopt.domains import DomainSet
from mixopt.effects import STEP, raised
from mixopt.errors import InfeasibleError
from mixopt.groups.limits import unit_limits, with_bounds, with_epochs, with_rule
from mixopt.mixture import FloatArray
from mixopt.prediction import Prediction
from mixopt.proposal import Effect, Relaxation
from mixopt.space import Held, MixtureSpace

# An epoch cap is raised by a tenth, a bound moved by a point of share, a floor loosened by one noise of its metric.
MORE_EPOCHS = 1.1
BOUND_STEP = 0.01
# A floor holds the answer if it is kept by less than this share of its metric's noise.
FLOOR_BINDS_WITHIN = 1e-3
# Rounds of swaps where the number of domains is limited: the proposal is a good start.
SWAPS_TRIED = 2
# So many are tried, those first whose domain the objective asks for most.
MOST_TRIED = 12


@dataclass(frozen=True)
class _Change:
    """A relaxed problem: which constraint, what was done, and where to look first."""

    constraint: str
    text: str
    problem: Problem
    start: FloatArray


def sensitivities(prediction: Prediction, space: MixtureSpace, weights: FloatArray, step: float = STEP) -> dict[str, Effect]:
    """Predicted change of the objective for `step` more of each domain, or of each group of a given split, the others giving in proportion."""
    moving = space.units.collapse(weights)
    rows = [index for index in range(len(moving)) if moving[index] + step <= 1]
    if not rows:
        return {}
    points = space.units.expand(np.stack([raised(moving, index, step) for index in rows]))
    effects = prediction.objective_effects(points, weights)
    return {space.units.titles[index]: effect for index, effect in zip(rows, effects, strict=True)}


def binding_floors(limits: FloorSet | None, weights: FloatArray) -> list[int]:
    """Numbers of the floors that hold a mixture (domains,)."""
    if limits is None:
        return []
    return [int(index) for index in np.flatnonzero(limits.excess(weights[None])[0] >= -FLOOR_BINDS_WITHIN * limits.scales)]


def relaxations(problem: Problem, domains: DomainSet, weights: FloatArray) -> tuple[Relaxation, ...]:
    """What relaxing each constraint that holds `weights` (domains,), the solution of `problem`, would bring; the most wanted first."""
    changes = [*_space_changes(problem, domains, weights), *_floor_changes(problem, weights)]
    found = [_relaxed(change, problem, weights) for change in changes[:MOST_TRIED]]
    return tuple(sorted(found, key=lambda relaxation: relaxation.gain.mean))


def _relaxed(change: _Change, problem: Problem, weights: FloatArray) -> Relaxation:
    """The best mixture under the change. Where it predicts nothing better, the proposal stays and the gain is 0."""
    prediction, relaxed = problem.prediction, change.problem
    if relaxed.smooth:
        tries = np.stack([_settled(relaxed, start) for start in (weights, change.start)])
    else:
        tries = replace(relaxed, starts=np.stack([weights, change.start])).solve(FEW_CANDIDATES).weights[None]
    tries = tries[relaxed.excess(tries) <= np.maximum(relaxed.excess(weights[None]), 0.0) + 1e-6]
    tries = np.concatenate([weights[None], tries])
    best = tries[int(np.argmin(relaxed.value(tries)))]
    gain = prediction.objective_effects(best[None], weights)[0]
    # The pull may prefer a mixture that is only nearer to the natural one.
    if gain.mean >= 0:
        best, gain = weights, Effect(0.0, 0.0, 0.0)
    return Relaxation(change.constraint, change.text, gain, dict(zip(problem.space.domains, best.tolist(), strict=True)))


def _settled(problem: Problem, start: FloatArray) -> FloatArray:
    """The local minimum from a feasible start on; where the number of domains is limited, swaps of domains are tried too."""
    if problem.space.is_convex:
        return descend(problem.value, problem.space, start, problem.limits)[0]
    return swaps(problem.value, problem.space, start, problem.limits, problem.smooth, SWAPS_TRIED)


def _space_changes(problem: Problem, domains: DomainSet, weights: FloatArray) -> list[_Change]:
    """Bounds and caps that hold the mixture, relaxed one by one."""
    space = problem.space
    units = space.units.collapse(weights)
    toward = units + STEP * (np.eye(len(units)) - units)
    slopes = problem.value(space.units.expand(toward)) - problem.value(weights[None])
    ranked: list[tuple[float, _Change]] = []
    for held in space.held(weights):
        # How much the constraint is pressed against: a cap on what lowers the objective, a least weight of what raises it.
        press = _press(space, held, slopes, units)
        for changed, text in _relaxed_domains(domains, space, held):
            try:
                wider = MixtureSpace.from_domains(changed)
            except InfeasibleError:
                continue
            # As far as the constraint gave way, in the direction in which it held.
            shifted = units + (wider.unit_upper - space.unit_upper) + (wider.unit_lower - space.unit_lower)
            start = wider.project(space.units.expand(shifted)[None])[0]
            ranked.append(
                (press if "least" not in held.side else -press, _Change(held.sentence, text, problem.within(wider, problem.limits), start))
            )
    return [change for _, change in sorted(ranked, key=lambda item: item[0])]


def _press(space: MixtureSpace, held: Held, slopes: FloatArray, units: FloatArray) -> float:
    """Slope of the objective toward what a constraint keeps out: the unit, the group, the best absent unit, or whatever is best."""
    if held.side.startswith("group"):
        return float(slopes[list(space.sums[held.index].members)].mean())
    if held.side == "count":
        return float(slopes[(units <= 0) & (space.unit_upper > 0)].min())
    return float(slopes.min() if held.side == "distance" else slopes[held.index])


def _relaxed_domains(domains: DomainSet, space: MixtureSpace, held: Held) -> Iterator[tuple[DomainSet, str]]:
    """The domains with one constraint relaxed, and what was done; both ends of a weight that is fixed."""
    if held.side.startswith("group"):
        path = space.sums[held.index].path
        yield _moved_rule(domains, path, up=held.side == "group_most")
        return
    if held.side in ("count", "distance"):
        yield _moved_whole(domains, space, held.side)
        return
    limits = unit_limits(domains)[held.index]
    if held.side in ("most", "fixed"):
        owner = limits.most.owner
        if limits.most.epochs:
            epochs = next(domain.max_epochs for domain in domains.domains if domain.name == owner)
            yield (
                with_epochs(domains, {owner: MORE_EPOCHS * epochs}),
                f"`max_epochs` of {owner} raised from {epochs:g} to {MORE_EPOCHS * epochs:g}",
            )
        else:
            yield _moved(domains, owner, up=True)
    if held.side in ("least", "fixed"):
        yield _moved(domains, limits.least.owner, up=False)


def _moved_whole(domains: DomainSet, space: MixtureSpace, side: Literal["count", "distance"]) -> tuple[DomainSet, str]:
    """A limit on the mixture as a whole: so many domains more that another unit can come in, or a point more of distance."""
    said = domains.constraints
    if side == "count":
        assert said.most_domains is not None
        more = said.most_domains + int(space.units.counts.min())
        changed, text = replace(said, most_domains=more), f"the number of domains raised from {said.most_domains} to {more}"
    else:
        assert said.near is not None
        more_distance = min(said.near.distance + BOUND_STEP, 1.0)
        changed = replace(said, near=replace(said.near, distance=more_distance))
        text = f"the distance from {said.near.title} raised from {said.near.distance:.3g} to {more_distance:.3g}"
    return replace(domains, constraints=changed), text


def _moved(domains: DomainSet, owner: str, up: bool) -> tuple[DomainSet, str]:
    """A bound of a domain or of a group inside a unit, moved by a point."""
    domain = next((domain for domain in domains.domains if domain.name == owner), None)
    if domain is None:
        return _moved_rule(domains, owner, up)
    bounds, text = _moved_bounds(domain.bounds, up)
    return with_bounds(domains, owner, bounds), f"the {text.format(owner)}"


def _moved_rule(domains: DomainSet, path: str, up: bool) -> tuple[DomainSet, str]:
    rule = next(rule for rule in domains.rules if rule.path == path)
    bounds, text = _moved_bounds(rule.bounds, up)
    return with_rule(domains, rule, bounds), f"the {text.format(f'group {path}')}"


def _moved_bounds(bounds: tuple[float, float], up: bool) -> tuple[tuple[float, float], str]:
    """Bounds with their upper end a point higher or their lower end a point lower, and what that is called."""
    least, most = bounds
    if up:
        higher = min(most + BOUND_STEP, 1.0)
        return (least, higher), f"largest weight of {{}} raised from {most:.3g} to {higher:.3g}"
    lower = max(least - BOUND_STEP, 0.0)
    return (lower, most), f"least weight of {{}} lowered from {least:.3g} to {lower:.3g}"


def _floor_changes(problem: Problem, weights: FloatArray) -> list[_Change]:
    """Floors that hold the mixture, each loosened by one noise of its metric."""
    limits = problem.limits
    if limits is None:
        return []
    changes = []
    for index in binding_floors(limits, weights):
        looser = limits.limits.copy()
        looser[index] += limits.scales[index]
        text = f"the floor on {limits.floors[index].metric} loosened by one noise, {limits.scales[index]:.3g} {limits.unit}"
        relaxed = problem.within(problem.space, replace(limits, limits=looser))
        changes.append(_Change(limits.sentences()[index], text, relaxed, weights))
    return changes
