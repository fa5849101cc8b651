"""DeMix (arXiv 2602.00747): rounds of merged proxies, 64, 32 and 16, each where trees predict the best rank over all metrics.

The first round is drawn around the natural mixture; from then on boosted trees, one per metric, are fitted to all proxies, and the next round are the best
predicted of many draws. The answer is the mean of the best predicted ones, 128 in the paper, which a wrong leaf of a tree does not move far. Mixtures are data
mixtures throughout, with the general share of the components un-mixed: what is proposed is what the target run is to be trained on, not the weights of
the merge. Where there are no averages of components it trains its proxies, in rounds of the same proportion.

What differs from the release and why: every round is fitted to all proxies (the release's 32 are chosen by the first round's alone), caps are those of the
target run, and draws are projected onto them. The main trade-off: ranks do not see how much is gained, so a metric of pure noise weighs as much as any;
and the evidence beside the answer, differences and intervals, is the search's surrogate's, of the proxies as they were evaluated, which for averages is
not where the answer is wanted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, field_validator

from mixopt.answer.local_search import KEPT_WITHIN
from mixopt.answer.problem import Problem
from mixopt.answer.ranked import evaluate
from mixopt.errors import DataError, InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.recommendation import Study
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.climb import round_ends
from mixopt.strategies.proxies import Proxies, apart, draws, endless_draws, fit_trees, macro_rank, predicted, refuse_stopping
from mixopt.strategies.standing import Standing
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial, content_digest

LABEL = "demix"
FIRST, LATER, LAST = 0xDE1, 0xDE2, 0xDE3
"""Kinds of draws."""


class DemixOptions(Options):
    rounds: tuple[int, ...] = Field(
        (64, 32, 16),
        min_length=2,
        max_length=16,
        description="Merged proxies, round by round; where the budget affords fewer, or proxies are trained, rounds of the same proportion.",
    )
    best: int = Field(128, ge=1, le=10_000, description="So many of the best predicted mixtures are averaged for the answer.")
    candidates: int = Field(20_000, ge=1000, le=1_000_000, description="Mixtures that are ranked before each round and for the answer.")

    @field_validator("rounds")
    @classmethod
    def _positive(cls, rounds: tuple[int, ...]) -> tuple[int, ...]:
        if not all(size > 0 for size in rounds):
            raise ValueError("every round has a proxy or more")
        return rounds


@dataclass(frozen=True)
class DemixStrategy:
    """Asks round by round; what is asked depends on the results of the rounds before, not on the order in which they came."""

    assignment: Assignment
    options: DemixOptions = field(default_factory=DemixOptions)
    learns: ClassVar[bool] = True
    several_sources: ClassVar[bool] = True
    takes_averages: ClassVar[bool] = True
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    _ranked: dict[tuple[str, int], FloatArray] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises ConfigError where the search may stop early and has averages."""
        refuse_stopping(self.assignment, "demix")

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """Trained trials that measure noise, then more of the round under way; nothing between its last proxy and the end of all of them."""
        proxies = Proxies.of(self.assignment, sum(self.options.rounds), completed, pending, abandoned)
        standing, first = proxies.standing, list(proxies.start[: max(count, 0)])
        return first + self._proxies(proxies, standing, count - len(first))

    def _proxies(self, proxies: Proxies, standing: Standing, count: int) -> list[Trial]:
        ends = round_ends(standing.assignment.trials, self.options.rounds)
        if standing.left == 0:
            return []
        if standing.alive < ends[0]:
            wanted = min(count, ends[0] - standing.alive)
            start = [] if proxies.apart else standing.fresh(standing.assignment.start(standing.abandoned_ids), wanted)
            return start + standing.numbered(self._first_round(proxies), wanted, LABEL, start)
        number = max(place for place, end in enumerate(ends) if end <= standing.alive)
        begun = standing.alive - ends[number]
        if begun == 0 and standing.pending:
            return []
        before = self._before(standing, begun)
        stops = begun == 0 and self.assignment.stop_early
        if stops and is_enough(self.assignment, standing.order(), standing.completed, self._judged):
            return []
        wanted = min(count, ends[number + 1] - standing.alive)
        return standing.numbered(self._best_first(proxies, before, number), wanted, LABEL)

    def propose(self, completed: Swarm) -> Proposal:
        """The mean of the best predicted mixtures with its evidence, in terms of the proxies. Raises as `Assignment.recommend_chosen`."""
        proxies = Proxies.of(self.assignment, sum(self.options.rounds), completed, [], [])
        runs = proxies.standing.completed

        def choose(study: Study, problem: Problem) -> tuple[FloatArray, dict[str, Any]]:
            return self._choose(proxies, runs, study, problem)

        proposal = self.assignment.recommend_chosen(completed, choose, proxies.offer)
        rounds = {
            "rounds": list(round_ends(proxies.standing.assignment.trials, self.options.rounds)),
            "proxies": {"source": proxies.offer.source.key, "count": len(runs)},
        }
        return replace(proposal, evidence={**proposal.evidence, **rounds})

    def _first_round(self, proxies: Proxies) -> Iterator[FloatArray]:
        one, space = self.assignment, proxies.space
        natural = one.domains.natural().array(space.domains)
        return chain(proxies.baselines() if proxies.apart else (), endless_draws(space, natural, [one.seed, FIRST]))

    def _before(self, standing: Standing, begun: int) -> Swarm:
        """What had been measured when the round began, of which `begun` proxies were asked for and not abandoned."""
        members = set(list(standing.numbers())[-begun:]) if begun else set()
        return standing.completed.select([key for key in standing.completed.trial_ids if key not in members])

    def _best_first(self, proxies: Proxies, before: Swarm, number: int) -> Iterator[FloatArray]:
        """Mixtures (domains,), the best predicted first and each apart from those before it; behind them all that are ranked."""
        key = (before.digest(), number)
        if key not in self._ranked:
            drawn = self._candidates(proxies, before, LATER + 16 * number)
            try:
                order = np.argsort(self._score(proxies, before, drawn, self.assignment.metrics), kind="stable")
            except DataError:  # everything of the first round was abandoned: a draw is as good as another
                order = np.arange(len(drawn))
            self._ranked[key] = drawn[order]
        return chain(apart(self._ranked[key]), self._ranked[key])

    def _candidates(self, proxies: Proxies, known: Swarm, kind: int) -> FloatArray:
        """Draws that depend on what is known by its ids alone, whatever the order of the domains is."""
        digest = content_digest(sorted(known.trial_ids))
        rng = np.random.default_rng([self.assignment.seed, kind, int(digest[:8], 16)])
        natural = self.assignment.domains.natural().array(proxies.space.domains)
        return draws(proxies.space, natural, rng, self.options.candidates)

    def _score(self, proxies: Proxies, known: Swarm, weights: FloatArray, metrics: Any) -> FloatArray:
        """The rank, averaged over `metrics` (metric -> weight), of predictions at mixtures (n, domains); lower is better, shape (n,)."""
        fitted = fit_trees(known, tuple(metrics))
        losses = predicted(fitted, proxies.space, weights, proxies.offer.source)
        return macro_rank(losses, tuple(metrics.values()), self.assignment.objective_kind == "worst_case")

    def _choose(self, proxies: Proxies, runs: Swarm, study: Study, problem: Problem) -> tuple[FloatArray, dict[str, Any]]:
        """The mean of the best predicted mixtures that keep the floors, as far as the search's surrogate predicts."""
        drawn = self._candidates(proxies, runs, LAST)
        if problem.limits is not None:
            drawn = drawn[evaluate(problem.excess, drawn) <= KEPT_WITHIN]
            if not len(drawn):
                raise InfeasibleError(
                    "None of the mixtures that demix ranks keeps every floor, as far as the surrogate predicts.",
                    "Loosen the floors, or take a strategy that optimizes within them, as bayes or regression.",
                )
        metrics = dict(zip(study.objective.metrics, study.objective.weights, strict=True))  # without those of pure noise
        ranked = drawn[np.argsort(self._score(proxies, runs, drawn, metrics), kind="stable")]
        best = ranked[: self.options.best]
        told = f"mean of the best {len(best)} of {len(drawn)} mixtures, by their mean rank over {len(metrics)} metrics"
        # Of a set that is not convex, only between mixtures of the same domains.
        part = proxies.space.around(best[0])
        mean = part.project(best[part.contains(best)].mean(axis=0, keepdims=True))
        if problem.limits is not None and problem.excess(mean)[0] > KEPT_WITHIN:
            return best[0], {"method": "candidates", "status": f"best candidate: the {told} misses a floor"}
        return mean[0], {"method": "mean of best", "status": told}
