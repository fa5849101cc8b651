"""A design over sizes and token counts: cheap sources widely, dear ones rarely, and the answer from a law of scale where the answer is wanted.

Every source runs the first points of the common design, the cheaper the more of them, so that a mixture that was run somewhere was run at all cheaper sources,
too: what scale does is then seen on the same mixtures, and laws (`scaling_additive`, `scaling_joint`, `scaling_effective`) and `auto`, which has one of them,
carry it on. How many: the number at a source is in proportion to the root of one over its cost, the split that leaves least variance where each source
adds the same (multilevel Monte Carlo, Giles 2008), up to ten for each parameter of a plain law. The budget is the cost of so many trials
of the last source; `answer_share` of it is spent there. With 0 it is never run, and the answer is an extrapolation, whose intervals say so.

With one source this is the common design, as in `regression`. The main trade-off: a law of scale from two sizes, or two token counts, is hardly
one: errors at the next size are 3 to 5%, from three about 1% (methods/surrogates-measured.md, B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pydantic import Field

from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Offer, Options
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial

MOST_PER_UNIT = 10
"""Runs of a source per domain or group, and one: beyond, a law of so many parameters gains nothing that a dearer source would not teach better."""


class ScalingOptions(Options):
    answer_share: float = Field(
        0.25, ge=0.0, lt=1.0, description="Share of the budget spent at the source where the answer is wanted; 0: it is never run."
    )


@dataclass(frozen=True)
class ScalingStrategy:
    """Asks for a fixed design over all sources; what is asked does not depend on results."""

    assignment: Assignment
    options: ScalingOptions = field(default_factory=ScalingOptions)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    several_sources = True

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The next trials, point after point of the design, each from the cheapest source on; empty when the budget is met."""
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        plan = self._plan({trial.trial_id for trial in abandoned})
        asked = [trial.trial_id for trial in plan]
        if self.assignment.stop_early and is_enough(self.assignment, asked, completed, self._judged, total=len(plan)):
            return []
        return [trial for trial in plan if trial.trial_id not in known][: max(count, 0)]

    def propose(self, completed: Swarm) -> Proposal:
        """The optimum predicted where the answer is wanted, with its evidence. Raises as `Assignment.recommend`."""
        proposal = self.assignment.recommend(completed)
        runs = {offer.source.key: len(completed.at_source(offer.source)) for offer in self.assignment.offers}
        return replace(proposal, evidence={**proposal.evidence, "runs_by_source": runs})

    def _plan(self, abandoned: set[str]) -> list[Trial]:
        one = self.assignment
        counts = allocation(one.offers, one.trials, self.options.answer_share, MOST_PER_UNIT * (len(one.space.units.names) + 1))
        columns = [one.planned(count, abandoned, offer) for offer, count in zip(one.offers, counts, strict=True)]
        longest = max(len(column) for column in columns)
        return [column[place] for place in range(longest) for column in columns if place < len(column)]


def allocation(offers: Sequence[Offer], trials: int, answer_share: float, most: int) -> list[int]:
    """How many trials each offer gets, for the cost of `trials` of the last one.

    The last gets `answer_share` of it; the others share the rest with numbers in proportion to cost^-1/2, at most `most` each, and what a source
    cannot take goes to the others and in the end to the last one, if it is run at all. Raising `trials` lowers no number.
    """
    if len(offers) == 1:
        return [trials]
    costs = [offer.cost / offers[-1].cost for offer in offers]
    left = (1 - answer_share) * trials
    counts = [0] * len(offers)
    for place in range(len(offers) - 1):  # the cheapest first: it is the first to be full
        rate = left / sum(math.sqrt(cost) for cost in costs[place:-1])
        counts[place] = min(math.floor(rate / math.sqrt(costs[place]) + 1e-9), most)
        left -= min(rate / math.sqrt(costs[place]), most) * costs[place]
    if answer_share > 0:
        counts[-1] = math.floor(answer_share * trials + max(left, 0.0) + 1e-9)
    return counts
