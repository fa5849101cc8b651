"""CLIMB (arXiv 2504.13161): rounds of shrinking size, each trained where the last ones let one expect the best.

The first round is the common wide design. Before every later one the surrogate is fitted to all that was measured, ranks many feasible candidates, and the
round trains some of the best of them at random, without replacement, so that a surrogate that is wrong in one place does not spend the whole round there
(Curator's release: M of the best max(M^2, 128)). From the third round on the space is pruned: candidates lie between one of the last round's best
and any feasible mixture, half as far out each round. The paper's best split of a budget was 4:2:1, before 6:1 and 2:2:1:1.

A round waits for the one before it, so the same search gives the same trials whatever the order they end in; that is the main trade-off: free workers wait
at the end of each round. The answer is not the paper's, the argmax of the last predictor, which suffers from the winner's curse, but the recommendation
of every search here: pulled, and compared with the best measured mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from pydantic import Field, field_validator

from mixopt.answer.local_search import KEPT_WITHIN, BatchFunction
from mixopt.answer.measured import best_measured
from mixopt.answer.pull import DEFAULT_PULL
from mixopt.answer.ranked import evaluate
from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.recommendation import Study, pose
from mixopt.strategies.base import START, Assignment, Options
from mixopt.strategies.standing import Standing
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial, content_digest

LABEL = "climb"
FEWEST_FIRST = START + 3
"""Trials of the first round, of searches that have so many."""
ELITES = 128
"""At least so many of the candidates may be trained (Curator: max(M^2, 128))."""
MOST_ELITES = 0.05
"""But no larger share of the candidates: the square of a large round would be all of them."""


class ClimbOptions(Options):
    rounds: tuple[float, ...] = Field((4.0, 2.0, 1.0), min_length=2, max_length=16, description="Shares of the budget, round by round.")
    candidates: int = Field(20_000, ge=1000, le=1_000_000, description="Feasible mixtures that are ranked before each round.")

    @field_validator("rounds")
    @classmethod
    def _positive(cls, rounds: tuple[float, ...]) -> tuple[float, ...]:
        if not all(share > 0 for share in rounds):
            raise ValueError("every round has a share above 0")
        return rounds


@dataclass(frozen=True)
class ClimbStrategy:
    """Asks round by round; what is asked depends on the results of the rounds before, not on the order in which they came."""

    assignment: Assignment
    options: ClimbOptions = field(default_factory=ClimbOptions)
    learns: ClassVar[bool] = True
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    _ranked: dict[tuple[str, int], FloatArray] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """More of the round that is under way; nothing between its last trial and the end of all of them, and when the budget is met."""
        standing = Standing.of(self.assignment, completed, pending, abandoned)
        ends = round_ends(self.assignment.trials, self.options.rounds)
        if standing.alive < ends[0]:
            wanted = min(count, ends[0] - standing.alive)
            return standing.fresh(self.assignment.planned(ends[0], standing.abandoned_ids), wanted)
        number = max((place for place, end in enumerate(ends) if end <= standing.alive), default=0)
        begun = standing.alive - ends[number]
        if standing.left == 0 or (begun == 0 and standing.pending):
            return []
        before = self._before(standing, begun)
        if begun == 0 and self.assignment.stop_early and is_enough(self.assignment, standing.order(), completed, self._judged):
            return []
        wanted = min(count, ends[number + 1] - standing.alive)
        return standing.numbered(self._picks(before, number, ends), wanted, LABEL)

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence. Raises as `Assignment.recommend`."""
        proposal = self.assignment.recommend(completed)
        return replace(proposal, evidence={**proposal.evidence, "rounds": list(round_ends(self.assignment.trials, self.options.rounds))})

    def _before(self, standing: Standing, begun: int) -> Swarm:
        """What had been measured when the round began, of which `begun` trials were asked for and not abandoned."""
        members = set(list(standing.numbers())[-begun:]) if begun else set()
        return standing.completed.select([key for key in standing.completed.trial_ids if key not in members])

    def _picks(self, before: Swarm, number: int, ends: Sequence[int]) -> FloatArray:
        """Mixtures worth training after round `number`, in the order of training, shape (n, domains): more than the round needs."""
        known = self.assignment.fitted(before)
        key = (known.digest(), number)
        if key not in self._ranked:
            size = ends[number + 1] - ends[number]
            elites = min(max(size**2, ELITES), max(int(MOST_ELITES * self.options.candidates), size))
            # By ids and not by the digest, which knows the order of domains.
            digest = content_digest(sorted(before.trial_ids))
            rng = np.random.default_rng([self.assignment.seed, 0xC11B, number, int(digest[:8], 16)])
            ranked = self._best_first(known, number, elites, rng)
            self._ranked[key] = np.concatenate([rng.permutation(ranked[:elites]), ranked[elites : elites + self.assignment.trials]])
        return self._ranked[key]

    def _best_first(self, known: Swarm, number: int, elites: int, rng: np.random.Generator) -> FloatArray:
        """Feasible candidates after round `number`, the best predicted first, shape (candidates, domains)."""
        space = self.assignment.space
        drawn = space.sample(self.options.candidates, rng)
        try:
            value = self._value_of(known)
        except DataError:  # the baselines were abandoned: nothing can be predicted, and a draw is as good as another
            return drawn
        ranked = drawn[np.argsort(value(drawn), kind="stable")]
        for _ in range(number):  # 0 after the first round: then nothing is pruned
            centres = ranked[:elites][rng.integers(elites, size=len(drawn))]
            drawn = space.project(centres + 0.5 * (ranked[rng.permutation(len(ranked))] - centres))
            ranked = drawn[np.argsort(value(drawn), kind="stable")]
        return ranked

    def _value_of(self, swarm: Swarm) -> BatchFunction:
        """What candidates are ranked by: as the recommendation, with the default pull where it is to be found by cross-validation.

        Raises:
            DataError: too little was measured.
        """
        one = self.assignment
        settings = replace(one.settings, measured_only=False)
        study = Study.of(swarm, one.space, one.domains, one.surrogate, settings)
        pull = DEFAULT_PULL if one.pull is None else one.pull
        problem = pose(study, one.space, one.domains, best_measured(study.measured, one.space), settings, pull)

        def value(weights: FloatArray) -> FloatArray:
            values = evaluate(problem.value, weights)
            excess = evaluate(problem.excess, weights) if problem.limits is not None else np.zeros(len(weights))
            # Candidates that miss a floor come behind all that keep it, by how much they miss it.
            return np.where(excess > KEPT_WITHIN, values.max() + excess, values)

        return value


def round_ends(trials: int, rounds: Sequence[float]) -> tuple[int, ...]:
    """How many trials a search has at the end of each round, ascending; rounds without a trial are left out.

    The first round has at least 8 trials, or all there are: the baselines, and something to learn from.
    """
    shares = np.cumsum(rounds) / np.sum(rounds)
    ends = [max(min(FEWEST_FIRST, trials), round(share * trials)) for share in shares.tolist()]
    return tuple(sorted(set(ends)))
