"""Grid search: a lattice of feasible mixtures, the best measured one proposed. A control, and what one does by hand with three domains.

The lattice holds the mixtures whose weights are multiples of 1/steps, with as many steps as the feasible ones of them fit the budget; they are trained
in an order in which each lies as far as can be from those before it, so that what a stopped search has seen is spread out. What the lattice leaves of the
budget goes to a scrambled Sobol' sequence, mapped to the simplex by exponentials and projected into the feasible set. With many domains, or tight
caps, no lattice fits, and all of it does: a low-discrepancy design. The main trade-off: a lattice of five domains and four steps has 70 mixtures, of
ten domains 715.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
from pydantic import Field

from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.space import MixtureSpace
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.standing import Standing, mixtures_of
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial

LABEL = "grid"
MOST_STEPS = 64
MOST_POINTS = 5000
"""Of a lattice: with more it is not listed, and does not fit any budget."""
SOBOL_BLOCK = 64
ROUNDING = 1e-9


class GridOptions(Options):
    steps: int | None = Field(
        None,
        ge=1,
        le=MOST_STEPS,
        description="Weights are multiples of 1/steps; left out: as many steps as the feasible mixtures fit the budget.",
    )


@dataclass(frozen=True)
class GridStrategy:
    """Asks for the baselines, then for the lattice, then for a Sobol' sequence; what is asked does not depend on results."""

    assignment: Assignment
    options: GridOptions = field(default_factory=GridOptions)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    _laid: list[FloatArray] = field(default_factory=list, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises ConfigError where the lattice asked for is too fine to be listed."""
        steps, space = self.options.steps, self.assignment.space
        if steps is not None and lattice(space, steps, MOST_POINTS) is None:
            raise ConfigError(
                f"`search.options.steps` is {steps}: a lattice of so many steps over {len(space.units.names)} domains or groups has more than {MOST_POINTS} mixtures.",
                "Give fewer steps, or leave it out: then the budget says how many.",
            )

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The next mixtures that were never asked for; empty when the budget is met."""
        standing = Standing.of(self.assignment, completed, pending, abandoned)
        if self.assignment.stop_early and is_enough(self.assignment, standing.order(), completed, self._judged):
            return []
        start = standing.fresh(self.assignment.start(standing.abandoned_ids), count)
        return start + standing.numbered(self._mixtures(), count, LABEL, start)

    def propose(self, completed: Swarm) -> Proposal:
        """The best measured feasible mixture. Raises as `Assignment.recommend_measured`."""
        return self.assignment.recommend_measured(completed)

    def _mixtures(self) -> Iterator[FloatArray]:
        """Endless, each of shape (domains,)."""
        one = self.assignment
        if not self._laid:
            baselines = mixtures_of(one.start(), one.space.domains)
            room = one.trials - len(baselines)
            points = finest_lattice(one.space, room) if self.options.steps is None else lattice(one.space, self.options.steps, MOST_POINTS)
            self._laid.append(
                spread_out(points if points is not None else np.zeros((0, len(one.space.domains))), baselines, one.space.domains)
            )
        return chain(iter(self._laid[0]), sobol_mixtures(one.space, one.seed))


def finest_lattice(space: MixtureSpace, room: int) -> FloatArray | None:
    """Feasible mixtures (n, domains) of the lattice with the most steps that has at most `room` of them; None where none has any."""
    best: FloatArray | None = None
    for steps in range(1, MOST_STEPS + 1):
        points = lattice(space, steps, MOST_POINTS)
        if points is None:
            break
        if 0 < len(points) <= room:
            best = points
    return best


def lattice(space: MixtureSpace, steps: int, most: int) -> FloatArray | None:
    """Feasible mixtures (n, domains) whose units weigh multiples of 1/steps; None where bounds alone leave more than `most`.

    Listed in an order that depends on the names of units only.
    """
    order = np.argsort(space.units.names)
    least = np.ceil(space.unit_lower[order] * steps - ROUNDING).astype(int)
    largest = np.floor(np.minimum(space.unit_upper[order], 1.0) * steps + ROUNDING).astype(int)
    rows: list[tuple[int, ...]] = []
    for row in _compositions(least.tolist(), largest.tolist(), steps):
        rows.append(row)
        if len(rows) > most:
            return None
    weights = np.zeros((len(rows), len(order)))
    weights[:, order] = np.array(rows, dtype=np.float64).reshape(len(rows), len(order)) / steps
    mixtures = space.units.expand(weights)
    return np.asarray(mixtures[space.contains(mixtures)])


def _compositions(least: list[int], largest: list[int], total: int) -> Iterator[tuple[int, ...]]:
    """Whole numbers between `least` and `largest` that sum to `total`."""
    if not least:
        if total == 0:
            yield ()
        return
    rest_least, rest_largest = sum(least[1:]), sum(largest[1:])
    for value in range(max(least[0], total - rest_largest), min(largest[0], total - rest_least) + 1):
        for rest in _compositions(least[1:], largest[1:], total - value):
            yield (value, *rest)


def spread_out(points: FloatArray, before: FloatArray, domains: Sequence[str]) -> FloatArray:
    """`points` (n, domains) reordered: each the one farthest, in total variation, from those before it and from all of `before`."""
    columns = np.argsort(np.array(domains))  # sums in one order, whatever the order of the domains is
    named, taken = points[:, columns], before[:, columns]
    nearest = np.abs(named[:, None] - taken[None]).sum(axis=2).min(axis=1) if len(points) else np.zeros(0)
    order: list[int] = []
    for _ in range(len(points)):
        chosen = int(np.argmax(np.round(nearest, 9)))
        order.append(chosen)
        nearest = np.minimum(nearest, np.abs(named - named[chosen]).sum(axis=1))
        nearest[chosen] = -1.0
    return points[order]


def sobol_mixtures(space: MixtureSpace, seed: int) -> Iterator[FloatArray]:
    """An endless scrambled Sobol' sequence over the simplex of units, projected into the feasible set; each of shape (domains,)."""
    from scipy.stats import qmc

    order = np.argsort(space.units.names)
    engine = qmc.Sobol(len(order), scramble=True, rng=np.random.default_rng([seed, 0x50B]))
    while True:
        spacings = -np.log(np.clip(engine.random(SOBOL_BLOCK), 1e-12, 1 - 1e-12))
        weights = np.zeros_like(spacings)
        weights[:, order] = spacings / spacings.sum(axis=1, keepdims=True)
        yield from space.project(space.units.expand(weights))
