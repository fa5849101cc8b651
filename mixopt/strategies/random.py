"""Random search: feasible mixtures drawn blindly, the best measured one proposed. A control that every other strategy should beat.

Draws are those that the space gives everybody, spread over interior, faces and corners. The main trade-off: nothing is learned, so the answer is as
good as the luckiest draw, and a lucky seed is taken for a good mixture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from itertools import count as counted

import numpy as np

from mixopt.mixture import Mixture
from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.standing import Standing
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial

LABEL = "random"


@dataclass(frozen=True)
class RandomStrategy:
    """Asks for the baselines, then for random feasible mixtures; what is asked does not depend on results."""

    assignment: Assignment
    options: Options = field(default_factory=Options)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    _drawn: list[Trial] = field(default_factory=list, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The next draws; empty when the budget is met."""
        standing = Standing.of(self.assignment, completed, pending, abandoned)
        if self.assignment.stop_early and is_enough(self.assignment, standing.order(), completed, self._judged):
            return []
        return standing.fresh(chain(self.assignment.start(standing.abandoned_ids), self._draws()), count)

    def propose(self, completed: Swarm) -> Proposal:
        """The best measured feasible mixture. Raises as `Assignment.recommend_measured`."""
        return self.assignment.recommend_measured(completed)

    def _draws(self) -> Iterator[Trial]:
        """Endless; a draw depends on its number and the search's seed only."""
        one = self.assignment
        for number in counted():
            if number == len(self._drawn):
                weights = one.space.sample(1, np.random.default_rng([one.seed, 0x3A4D, number]))[0]
                self._drawn.append(one.learned(Mixture.from_array(one.space.domains, weights), number, LABEL))
            yield self._drawn[number]
