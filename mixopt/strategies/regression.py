"""Regression over a swarm: RegMix (arXiv 2407.01492) done right.

A wide nested design is trained, one surrogate per metric is fitted on the realized mixtures, and the objective over their predictions is
minimized where the caps allow, pulled toward the natural mixture. What differs from the paper and why: noise is measured by repeats, caps
are in the optimizer and not in the swarm, metrics are modelled one by one, the pull replaces trust in an argmax. The main trade-off: the
design does not react to results, so all trials can run at once, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import polars as pl

from mixopt.proposal import Proposal
from mixopt.recommendation import nothing_to_gain
from mixopt.strategies.base import Assignment, Options
from mixopt.swarm import Swarm
from mixopt.trial import Trial

STOP_AT = (1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares of the trials after which a search that may stop early looks whether it should."""
FEWEST_TO_STOP = 16
"""Below, a surrogate does not know how little it knows."""


@dataclass(frozen=True)
class RegressionStrategy:
    """Asks for a fixed design, then proposes its predicted optimum.

    Whether to stop early is looked at with the first half, five eighths, three quarters and seven eighths of the trials, each time with exactly
    these, so that the answer does not hang on their order of ending.
    """

    assignment: Assignment
    options: Options = field(default_factory=Options)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The first `count` points of the design that are neither completed, pending nor abandoned; empty when the budget is met."""
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        planned = self.assignment.planned(self.assignment.trials, {trial.trial_id for trial in abandoned})
        if self.assignment.stop_early and self._is_enough(planned, completed):
            return []
        return [trial for trial in planned if trial.trial_id not in known][: max(count, 0)]

    def _is_enough(self, planned: Sequence[Trial], completed: Swarm) -> bool:
        """Whether at some point of looking, with all trials up to it completed, no more of them could bring a gain that stands out of noise."""
        one = self.assignment
        finished = set(completed.trial_ids)
        for share in STOP_AT:
            first = [trial.trial_id for trial in planned[: math.ceil(share * one.trials)]]
            if len(first) < FEWEST_TO_STOP or not finished.issuperset(first):
                continue
            part = one.fitted(self._with_calibration(completed.select(first)))
            digest = part.digest()
            if digest not in self._judged:
                self._judged[digest] = nothing_to_gain(part, one.space, one.domains, one.surrogate, one.settings)
            if self._judged[digest]:
                return True
        return False

    def _with_calibration(self, part: Swarm) -> Swarm:
        """The trials looked at, and the calibration's that are none of the search."""
        calibration = self.assignment.calibration
        if calibration is None:
            return part
        known = set(part.trial_ids)
        more = calibration.select([trial_id for trial_id in calibration.trial_ids if trial_id not in known])
        return Swarm(part.domains, pl.concat([part.table, more.table]))

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence, from the finished trials of the search's source. Raises as `Assignment.recommend`."""
        return self.assignment.recommend(completed)
