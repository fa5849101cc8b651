"""Regression over a swarm: RegMix (arXiv 2407.01492) done right.

A wide nested design is trained, one surrogate per metric is fitted on the realized mixtures, and the objective over their predictions is
minimized where the caps allow, pulled toward the natural mixture. What differs from the paper and why: noise is measured by repeats, caps
are in the optimizer and not in the swarm, metrics are modelled one by one, the pull replaces trust in an argmax. The main trade-off: the
design does not react to results, so all trials can run at once, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial


@dataclass(frozen=True)
class RegressionStrategy:
    """Asks for a fixed design, then proposes its predicted optimum."""

    assignment: Assignment
    options: Options = field(default_factory=Options)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The first `count` points of the design that are neither completed, pending nor abandoned; empty when the budget is met."""
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        planned = self.assignment.planned(self.assignment.trials, {trial.trial_id for trial in abandoned})
        if self.assignment.stop_early and is_enough(self.assignment, [trial.trial_id for trial in planned], completed, self._judged):
            return []
        return [trial for trial in planned if trial.trial_id not in known][: max(count, 0)]

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence, from the finished trials of the search's source. Raises as `Assignment.recommend`."""
        return self.assignment.recommend(completed)
