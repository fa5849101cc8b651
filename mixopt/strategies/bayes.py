"""Bayesian optimization: after a small first design, every trial is chosen for what it is expected to bring.

At one source: for how much better than the best it may be, noisy expected improvement over our own Gaussian processes, one per metric, with the
objective on top (`acquisition.improvement`). With several sources: for how far it is expected to improve the predicted answer where the answer is
wanted, per cost (`acquisition.knowledge`, over `multi_source_gp`; the question is ADMIRE's, arXiv 2508.11551, whose max-value entropy did worse
at one source, docs/log.md). The costly source gets a least share of what is spent, so that a cheap one that misleads cannot use the search up.
Trials under way count as draws of what they will say, so trials may be asked for one at a time or many at once, whenever a worker is free. The
answer is that of all strategies (`recommend`, with the search's own surrogate). The main trade-off: it learns as it goes, so its course depends on the
order in which trials end, and a search that trains all its trials at once gains nothing over `regression`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from pydantic import Field

from mixopt.acquisition.beliefs import Beliefs, beliefs_of
from mixopt.acquisition.choose import Chooser, Improving, Informing
from mixopt.components.config import EVALUATORS
from mixopt.errors import ConfigError, DataError
from mixopt.proposal import Proposal
from mixopt.strategies.averages import BLOCK, Block, averages_of
from mixopt.strategies.averages import LABEL as AVERAGES_LABEL
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.known import first_count, measured_feasible, not_near, random_state
from mixopt.strategies.ledger import Ledger
from mixopt.strategies.standing import Standing, mixtures_of
from mixopt.strategies.stopping import is_enough
from mixopt.surrogates.threads import one_blas_thread
from mixopt.swarm import Swarm
from mixopt.trial import Trial

FIRST_AT_ANSWER = 5
"""Of several sources: natural, uniform, UniMax and the first two again, where the answer is wanted; the first design is run at the cheapest."""
FIRST_BESIDE_AVERAGES = 8
"""Trained trials before one is chosen beside averages of components; so many can show that these do not help (`multi_source_gp`)."""
GATE = 12
"""Trained trials from which on every few bring further averages: those of a gate."""


class BayesOptions(Options):
    first: int | None = Field(
        None,
        ge=6,
        description="Trials of the first design, baselines and repeats included; default: 8 and .7 per domain, at least 17.",
    )
    trials: Literal["feasible", "anywhere"] = Field(
        "feasible",
        description="Whether trials keep the caps and bounds. Anywhere: infeasible ones are run where they tell more of the feasible.",
    )
    acquisition: Literal["improvement", "knowledge"] = Field(
        "improvement",
        description="What a trial of the only source is chosen for: to be better than the best, or to change the answer; several sources: the latter.",
    )
    least_share: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Of several sources: the least share of what is spent that goes to the one where the answer is wanted.",
    )


@dataclass(frozen=True)
class BayesStrategy:
    """Asks for a first design, then for one learned trial after the other."""

    assignment: Assignment
    options: BayesOptions = field(default_factory=BayesOptions)
    _known: dict[str, Beliefs] = field(default_factory=dict, compare=False, repr=False)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    learns = True
    asks_ahead = True
    several_sources = True
    takes_averages = True

    def __post_init__(self) -> None:
        """Raises ConfigError where the search may stop early and has several sources: what further cheap trials would bring is not known here."""
        if self.assignment.stop_early and len(self.assignment.offers) > 1:
            raise ConfigError("`search.stop_early` is set, and the strategy 'bayes' has `search.sources`.", "Leave one of them out.")

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """Trials of the first design that are not known, then learned ones as soon as half of the first design has finished; at most the budget."""
        one = self.assignment
        learnable = self._learnable
        refused = [trial for trial in abandoned if trial.source.evaluator not in EVALUATORS]
        if len(refused) > one.trials * one.offers[-1].cost / one.offers[learnable[0]].cost:
            return []
        ledger = Ledger.of(one, completed, pending)
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        asked: list[Trial] = []
        for trial in self._first_design(completed, pending, {trial.trial_id for trial in abandoned}):
            if trial.trial_id not in known and len(asked) < count and ledger.affords(trial.source):
                asked.append(trial)
                ledger = ledger.after(trial.source)
        first = self._averages(count - len(asked), completed, pending, abandoned, ledger)
        asked, ledger = asked + first, ledger.after(*(trial.source for trial in first))
        under_way = any(
            trial.source.evaluator in EVALUATORS for trial in [*pending, *first]
        )  # for moments: what follows is to know of them
        if len(asked) >= count or under_way or not self._has_begun(completed) or not set(ledger.affordable()) & set(learnable):
            return asked
        if self._is_enough(completed, pending, abandoned):
            return []
        beliefs = self._beliefs(completed)
        if beliefs is None:
            return asked
        more = self._averages(count - len(asked), completed, pending, abandoned, ledger, beliefs)
        asked, ledger = asked + more, ledger.after(*(trial.source for trial in more))
        if more:
            return asked
        number = len(completed) + len(pending) + len(abandoned) + len(asked)
        with one_blas_thread():
            return asked + self._learned(
                beliefs, completed, [*pending, *asked], abandoned, ledger, range(number, number + count - len(asked))
            )

    @property
    def first(self) -> int:
        """Trials of the first design."""
        return first_count(self.assignment, self.options.first)

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence. Raises as `Assignment.recommend`."""
        return self.assignment.recommend(completed)

    def _is_enough(self, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> bool:
        """Whether one may stop early, and no more trials would bring a gain that stands out of noise."""
        one = self.assignment
        if not one.stop_early:
            return False
        return is_enough(one, Standing.of(one, completed, pending, abandoned).order(), completed, self._judged)

    @property
    def _learnable(self) -> list[int]:
        """Numbers of the offers whose trials are chosen one by one: all but averages of components."""
        averages = averages_of(self.assignment)
        return [number for number in range(len(self.assignment.offers)) if number not in averages]

    def _has_begun(self, completed: Swarm) -> bool:
        """Whether half of the first design has finished: beside averages, of the trials where the answer is wanted."""
        if averages_of(self.assignment):
            return 2 * len(completed.at_source(self.assignment.source)) >= FIRST_BESIDE_AVERAGES
        return 2 * len(completed) >= self.first

    def _first_design(self, completed: Swarm, pending: Sequence[Trial], abandoned: set[str]) -> list[Trial]:
        """At the cheapest source; of several, first the baselines at the others, the dearest first, so that a small budget has some where it matters.

        Beside averages, of whose first block `_averages` sees to, where the answer is wanted alone. Trials of the source that are none of the design, as
        those of a gate, count as some of it.
        """
        one = self.assignment
        if len(one.offers) == 1:
            return self._or_others(min(self.first, one.trials), completed, pending, abandoned)
        if averages_of(one):
            return self._or_others(FIRST_BESIDE_AVERAGES, completed, pending, abandoned)
        found: list[Trial] = []
        for offer in reversed(one.offers[1:]):
            found += one.planned(FIRST_AT_ANSWER, abandoned, offer)
        return found + one.planned(self.first, abandoned, one.offers[0])

    def _or_others(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: set[str]) -> list[Trial]:
        """So many points of the design where the answer is wanted, less those for which there are other trials; at least the baselines and repeats."""
        one = self.assignment
        planned = one.planned(count, abandoned)
        here = {*completed.at_source(one.source).trial_ids, *(trial.trial_id for trial in pending if trial.source == one.source)}
        others = len(here - {trial.trial_id for trial in planned})
        return planned[: max(count - others, FIRST_AT_ANSWER)]

    def _averages(
        self,
        count: int,
        completed: Swarm,
        pending: Sequence[Trial],
        abandoned: Sequence[Trial],
        ledger: Ledger,
        beliefs: Beliefs | None = None,
    ) -> list[Trial]:
        """What is missing of the first blocks of averages, or, with beliefs, of those that follow from trained trials; at most `count`."""
        one = self.assignment
        alive = len(completed.at_source(one.source)) + sum(trial.source == one.source for trial in pending)
        found: list[Trial] = []
        for number in averages_of(one):
            offer = one.offers[number]
            block = Block(one, offer, ledger.budget)
            most = block.spread if beliefs is None else block.near(max(alive - GATE, 0))
            alone = replace(one, offers=(offer,), trials=most, before=0.0)
            here = ([trial for trial in trials if trial.source == offer.source] for trials in (pending, abandoned))
            standing = Standing.of(alone, completed, *here)
            wanted = min(count - len(found), standing.left, standing.left if beliefs is None else BLOCK)
            if wanted < 1:
                continue
            if beliefs is None:
                mixtures = block.first()
            else:
                mixtures = block.later(beliefs, measured_feasible(completed, beliefs.coordinates), random_state(one, completed, pending))
            for trial in standing.numbered(mixtures, wanted, AVERAGES_LABEL):
                if ledger.affords(trial.source):
                    found.append(trial)
                    ledger = ledger.after(trial.source)
        return found

    def _beliefs(self, completed: Swarm) -> Beliefs | None:
        """From what has finished; None while that does not say what the objective is."""
        digest = self.assignment.fitted(completed).digest()
        if digest not in self._known:
            try:
                found = beliefs_of(self.assignment, completed)
            except DataError:
                return None
            self._known.clear()
            self._known[digest] = found
        return self._known[digest]

    def _learned(
        self,
        beliefs: Beliefs,
        completed: Swarm,
        pending: Sequence[Trial],
        abandoned: Sequence[Trial],
        ledger: Ledger,
        numbers: range,
    ) -> list[Trial]:
        """Trials numbered so, each the best given those before it, as long as the budget affords one."""
        one, coordinates = self.assignment, beliefs.coordinates
        rng = random_state(one, completed, pending)
        measured_MD = measured_feasible(completed, coordinates)
        waiting = [
            (number, mixtures_of([trial for trial in pending if trial.source == offer.source], coordinates.names))
            for number, offer in enumerate(one.offers)
        ]
        learnable = self._learnable
        improving = len(learnable) == 1 and self.options.acquisition == "improvement"
        costs = [offer.cost for offer in one.offers]
        given = (beliefs, measured_MD, waiting)
        chooser: Chooser = Improving.start(*given, rng) if improving else Informing.start(*given, costs, rng)
        where = coordinates if self.options.trials == "feasible" else coordinates.uncapped
        refused_MU = coordinates.points(mixtures_of(abandoned, coordinates.names))
        asked: list[Trial] = []
        for number in numbers:
            sources = ledger.choices(self.options.least_share, learnable)
            if not sources:
                break
            source, points_MU = chooser.best(sources, where)
            mixture = where.mixture(not_near(points_MU, refused_MU))
            trial = one.learned(mixture, number, "bayes", one.offers[source])
            chooser = chooser.given(source, mixtures_of([trial], coordinates.names))
            ledger = ledger.after(one.offers[source].source)
            asked.append(trial)
        return asked
