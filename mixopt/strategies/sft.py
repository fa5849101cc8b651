"""The design for the law of supervised fine-tuning: around equal shares, every domain alone at a third, a half, twice and three times its share.

Li et al. 2025, "Data Mixing Optimization for Supervised Fine-Tuning" (arXiv 2508.11953): 4 m + 1 runs for m domains. Theirs change a domain's tokens and keep
the others', so that their runs differ in length; here all are of the source's tokens, so the others' shares give way in proportion. Made for
`search.surrogate: sft_law`, which takes each domain's own held-out loss (`valid/<domain>`) and is fitted to all runs, not to a domain's own five, which
would leave no degree of freedom. Multipliers come in turn, three times first, so that a search that ends early has seen every domain. With
more trials than that the common design follows; with fewer than 2 m + 5, `doe` is the better choice.

The main trade-off: nothing far from equal shares is run, so where an optimum leaves domains out, the law extrapolates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.standing import Standing
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial

LABEL = "sft"
MULTIPLIERS = (3.0, 1 / 3, 2.0, 1 / 2)


@dataclass(frozen=True)
class SftStrategy:
    """Asks for the baselines, the 4 m + 1 design, and then the common one; what is asked does not depend on results."""

    assignment: Assignment
    options: Options = field(default_factory=Options)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The next points; empty when the budget is met."""
        one = self.assignment
        standing = Standing.of(one, completed, pending, abandoned)
        if one.stop_early and is_enough(one, standing.order(), completed, self._judged):
            return []
        asked = standing.fresh(one.start(standing.abandoned_ids), count)
        asked += standing.numbered(self._design(), count, LABEL, asked)
        return asked + standing.fresh(one.planned(one.trials, standing.abandoned_ids), count, asked)

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence. Raises as `Assignment.recommend`."""
        return self.assignment.recommend(completed)

    def _design(self) -> Iterator[FloatArray]:
        """Mixtures (domains,) over units in the order of their names."""
        units = self.assignment.space.units
        order = np.argsort(units.names)
        for multiplier in (1.0, *MULTIPLIERS):
            for place in order[:1] if multiplier == 1.0 else order:
                tokens = np.where(np.arange(len(order)) == place, multiplier, 1.0)
                yield units.expand(tokens / tokens.sum())
