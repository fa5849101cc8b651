"""Where a search stands, told by its trials alone: how many there are, how many may follow, and in which order they were asked for.

Strategies remember nothing, so what they asked for is read off the trials: those of the common design are known by their ids, all others by their
training seeds, which count what a search has asked for. The main trade-off: abandoned trials count too, so seeds have gaps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.components.config import EVALUATORS
from mixopt.mixture import FloatArray, Mixture
from mixopt.strategies.base import Assignment
from mixopt.strategies.design import MOST_SKIPPED, SEEDS_PER_SEARCH
from mixopt.swarm import Swarm
from mixopt.trial import Trial

SAME_WITHIN = 1e-8
"""Sum of absolute differences below which two mixtures are one."""


@dataclass(frozen=True)
class Standing:
    """A search at the source where its answer is wanted.

    Attributes:
        completed: runs of that source.
    """

    assignment: Assignment
    completed: Swarm
    pending: tuple[Trial, ...]
    abandoned: tuple[Trial, ...]

    @classmethod
    def of(cls, assignment: Assignment, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> Standing:
        return cls(assignment, completed.at_source(assignment.source), tuple(pending), tuple(abandoned))

    @property
    def alive(self) -> int:
        """Trials that count: completed, or to be."""
        return len(self.completed) + len(self.pending)

    @property
    def asked(self) -> int:
        """Trials ever asked for."""
        return self.alive + len(self.abandoned)

    @property
    def left(self) -> int:
        """How many may still be asked for; none once more were abandoned than the search has trials: more of the same will not help."""
        return 0 if len(self.abandoned) > self.assignment.trials else max(self.assignment.trials - self.alive, 0)

    @property
    def abandoned_ids(self) -> frozenset[str]:
        return frozenset(trial.trial_id for trial in self.abandoned)

    def room(self, count: int, before: Sequence[Trial] = ()) -> int:
        """How many of `count` trials may still follow `before`, in one answer."""
        return max(min(count, self.left) - len(before), 0)

    def fresh(self, sequence: Iterable[Trial], count: int, before: Sequence[Trial] = ()) -> list[Trial]:
        """The first trials of `sequence` that were never asked for.

        Args:
            count: of the whole answer, which `before` is the beginning of; at most what is left of the budget.
        """
        seen = {*self.completed.trial_ids, *(trial.trial_id for trial in (*self.pending, *self.abandoned, *before))}
        wanted = self.room(count, before)
        found: list[Trial] = []
        for trial in sequence if wanted else ():
            if trial.trial_id not in seen:
                seen.add(trial.trial_id)
                found.append(trial)
            if len(found) >= wanted:
                break
        return found

    def numbered(self, mixtures: Iterable[FloatArray], count: int, label: str, before: Sequence[Trial] = ()) -> list[Trial]:
        """New trials of the first of `mixtures`, each (domains,) of the space, that were never asked for, numbered on from what was.

        Where all of them were asked for, as in a set of few mixtures, they are asked for again with seeds of their own; averages of components, which have no
        seeds, are not.

        Args:
            count, before: as for `fresh`.
        """
        names = self.assignment.space.domains
        seen = [*self.mixtures(), *mixtures_of(before, names)]
        wanted, skipped, most = self.room(count, before), 0, len(seen) + MOST_SKIPPED
        found: list[Trial] = []
        once = self.assignment.source.evaluator in EVALUATORS
        for weights in mixtures if wanted else ():
            if once and skipped >= most:
                break
            known = (once or skipped < most) and len(seen) > 0 and bool((np.abs(np.stack(seen) - weights).sum(axis=1) < SAME_WITHIN).any())
            skipped = skipped + 1 if known else 0
            if not known:
                seen.append(weights)
                number = self.asked + len(before) + len(found)
                found.append(self.assignment.learned(Mixture.from_array(names, weights), number, label))
            if len(found) >= wanted:
                break
        return found

    def numbers(self) -> dict[str, int]:
        """Trial id -> its number in the search, of living trials outside the common design; ascending."""
        seeds = dict(zip(self.completed.trial_ids, self.completed.runs["seed"].to_list(), strict=True))
        seeds |= {trial.trial_id: trial.seed for trial in self.pending}
        first = self.assignment.first_learned_seed
        most = SEEDS_PER_SEARCH * (self.assignment.seed + 1)
        return {key: seed - first for key, seed in sorted(seeds.items(), key=lambda item: (item[1], item[0])) if first <= seed < most}

    def order(self) -> list[str]:
        """Ids of the living trials in the order of asking: the common design's first."""
        numbers = self.numbers()
        living = {*self.completed.trial_ids, *(trial.trial_id for trial in self.pending)} - set(numbers)
        planned = [trial.trial_id for trial in self.assignment.planned(self.alive, self.abandoned_ids)]
        others = living - set(planned)
        return [*(key for key in planned if key in living), *sorted(others), *numbers]

    def mixtures(self) -> list[FloatArray]:
        """What was ever asked for, each of shape (domains,), in the order of the space's domains."""
        names = self.assignment.space.domains
        order = [self.completed.domains.index(name) for name in names]
        found = list(self.completed.points(realized=False).averages()[:, order])
        return [*found, *mixtures_of((*self.pending, *self.abandoned), names)]


def mixtures_of(trials: Sequence[Trial], names: Sequence[str]) -> FloatArray:
    """Of trials, shape (trials, domains)."""
    return np.array([trial.schedule.average().array(names) for trial in trials]).reshape(-1, len(names))
