"""The strategy protocol: pure functions of the history; and what every strategy is given.

A strategy is made of an `Assignment`, which is the same for all of them, and of its own `Options`, which `search.options` of the experiment
file holds. The main trade-off: nothing is remembered between calls, so an answer costs a fit each time; fits are cached by the digest of the
swarm that they were made from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from mixopt.answer.floors import Floor
from mixopt.domains import DomainSet
from mixopt.factory import MakeTrial
from mixopt.mixture import Mixture, Schedule
from mixopt.objective import BITS_PER_BYTE, Objective, ObjectiveKind, fit_objective
from mixopt.proposal import Proposal
from mixopt.recommendation import Choose, Settings, Study, recommend, recommend_chosen, recommend_measured
from mixopt.space import MixtureSpace
from mixopt.strategies.design import SEEDS_PER_SEARCH, design_sequence
from mixopt.surrogates.base import Surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

FIRST_LEARNED_SEED = 50_000
"""Seeds of one search: repeats from 0, draws of the design from 1,000, trials that were asked for in view of results from here on."""
START = 5
"""Points of the design that every search begins with: natural, uniform and UniMax, and the first two again, so that noise can be measured."""


class Options(BaseModel):
    """What a strategy lets one choose beyond the assignment, with defaults; `search.options` in the experiment file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Strategy(Protocol):
    """Proposes trials and, in the end, a mixture. The same history gives the same answer; nothing is remembered between calls.

    `ask` returns at most `count` trials that are neither completed, pending nor abandoned. An empty list means finished where nothing is
    pending, and that it waits for results where something is. `propose` raises DataError when too few trials have finished.
    """

    @property
    def assignment(self) -> Assignment: ...
    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]: ...
    def propose(self, completed: Swarm) -> Proposal: ...


def asks_ahead(strategy: Strategy) -> bool:
    """Whether a strategy wants to be asked while trials before still run, since it thinks for long: its attribute `asks_ahead`."""
    return bool(getattr(strategy, "asks_ahead", False))


def learns(strategy: Strategy) -> bool:
    """Whether what a strategy asks for depends on results, so that it cannot be told beforehand: its attribute `learns`."""
    return bool(getattr(strategy, "learns", False))


def objective_of(strategy: Strategy, completed: Swarm) -> Objective:
    """What a strategy's proposal is best in, and is verified by: its own `objective` where it has one, else the assignment's.

    Raises:
        DataError, InfeasibleError: as `Assignment.recommend`.
    """
    own = getattr(strategy, "objective", None)
    found: Objective = strategy.assignment.objective(completed) if own is None else own(completed)
    return found


@dataclass(frozen=True)
class Offer:
    """A source that trials may run at.

    Attributes:
        cost: of one trial, scoring included, in FLOPs; only ratios count.
        parameters: that a token meets, from which laws of scale go; 0 where there is one source only.
        reach: mixtures that can be asked for there, where those are fewer than the search's: an average of components holds the general share of
            each. None: all.
    """

    source: Source
    make: MakeTrial
    cost: float
    parameters: float = 0.0
    reach: MixtureSpace | None = None


@dataclass(frozen=True)
class Assignment:
    """What a search is for, as every strategy is given it.

    Attributes:
        offers: the sources, the cheapest first; the answer is wanted at the last one.
        metrics: metric -> weight in the objective; other metrics measured are predicted and reported too.
        trials: of the whole search, baselines and repeats included. With several sources the budget is the cost of so many trials of the last.
        seeds: repeats at the natural and the uniform mixture.
        pull: weight of KL(mixture || natural), in standard deviations of the objective over the swarm; None: chosen by cross-validation.
        seed: of everything random.
        stop_early: ask for no more once even perfect knowledge would gain less than noise.
        calibration: finished runs of the search's calibration, whose repeats sharpen the noise that is looked at; None: there are none.
        earlier: runs of earlier searches that count as evidence and not as trials (`search.warm_start`); None: there are none.
        floors, confidence: no metric worse than a baseline by more than so much, predicted with so many standard deviations to spare.
        measured_only: refuse to answer without a run of the natural mixture and without repeats, where there is one source; else, and with several
            sources always, the surrogate says what was not measured.
        loss_unit: of the losses.
        negated: metrics of which more is better, stored as their negatives; only sentences need them.
        before: FLOPs that count as spent before the first trial, as those of components; in the unit of the offers' costs.
    """

    space: MixtureSpace
    domains: DomainSet
    offers: tuple[Offer, ...]
    surrogate: Surrogate
    metrics: Mapping[str, float]
    objective_kind: ObjectiveKind
    trials: int
    seeds: int
    pull: float | None
    seed: int
    stop_early: bool = False
    calibration: Swarm | None = None
    floors: tuple[Floor, ...] = ()
    confidence: float = 0.0
    measured_only: bool = True
    earlier: Swarm | None = None
    loss_unit: str = BITS_PER_BYTE
    negated: frozenset[str] = frozenset()
    before: float = 0.0

    @property
    def source(self) -> Source:
        """Where the answer is wanted."""
        return self.offers[-1].source

    @property
    def make(self) -> MakeTrial:
        """Makes trials where the answer is wanted."""
        return self.offers[-1].make

    @property
    def settings(self) -> Settings:
        several = len(self.offers) > 1
        return Settings(
            self.metrics,
            self.objective_kind,
            self.seeds,
            self.pull,
            self.seed,
            floors=self.floors,
            confidence=self.confidence,
            source=self.source if several or self._has_other_sources else None,
            # Of several sources the one where the answer is wanted may hold few runs, or none.
            measured_only=self.measured_only and not several,
            sizes={offer.source.size: offer.parameters for offer in self.offers} if several else None,
            loss_unit=self.loss_unit,
            negated=self.negated,
        )

    def planned(self, count: int, abandoned: Collection[str] = (), offer: Offer | None = None) -> list[Trial]:
        """The first `count` distinct points of the design that were not abandoned, as trials of an offer: default, where the answer is wanted.

        At most as many points are replaced as the search has trials; where everything fails, more of the same will not help.
        """
        planned: dict[str, Trial] = {}
        replaced: set[str] = set()
        for point in design_sequence(self.domains, self.seeds, self.seed):
            if len(planned) >= count or len(replaced) > self.trials:
                break
            trial = (offer or self.offers[-1]).make(Schedule.constant(point.mixture), point.seed, point.label)
            if trial.trial_id in abandoned:
                replaced.add(trial.trial_id)
            else:
                planned.setdefault(trial.trial_id, trial)
        return list(planned.values())

    def start(self, abandoned: Collection[str] = ()) -> list[Trial]:
        """What strategies of another design than the common one begin with."""
        return self.planned(min(START, self.trials), abandoned)

    def learned(self, mixture: Mixture, number: int, label: str, offer: Offer | None = None) -> Trial:
        """A trial outside the common design, number `number` of the search, with a training seed of its own."""
        return (offer or self.offers[-1]).make(Schedule.constant(mixture), self.first_learned_seed + number, label)

    @property
    def first_learned_seed(self) -> int:
        return SEEDS_PER_SEARCH * self.seed + FIRST_LEARNED_SEED

    def fitted(self, completed: Swarm) -> Swarm:
        """The runs that answers are fitted to: all of them if there are several sources, else those of the one; and behind them the earlier runs."""
        own = completed if len(self.offers) > 1 else completed.at_source(self.source)
        return own if self.earlier is None else own.with_others(self.earlier)

    @property
    def _has_other_sources(self) -> bool:
        return self.earlier is not None and len(self.earlier.at_source(self.source)) < len(self.earlier)

    def recommend(self, completed: Swarm) -> Proposal:
        """The predicted optimum where the answer is wanted, with its evidence.

        Raises:
            DataError: fewer than 4 trials, a metric of the objective was not measured, or, with one source, none at the natural mixture or no repeats.
            InfeasibleError: no mixture keeps the floors.
        """
        proposal = recommend(self.fitted(completed), self.space, self.domains, self.surrogate, self.settings)
        return self._with_earlier_counted(proposal, completed)

    def objective(self, completed: Swarm) -> Objective:
        """The objective in its scale, as the proposal has it. Raises as `recommend`."""
        if len(self.offers) == 1:
            own = self.fitted(completed).at_source(self.source)
            return fit_objective(self.objective_kind, self.metrics, own, self.domains.natural(), self.loss_unit)
        return Study.of(self.fitted(completed), self.space, self.domains, self.surrogate, self.settings).objective

    def recommend_measured(self, completed: Swarm, offer: Offer | None = None) -> Proposal:
        """The best measured feasible mixture as the proposal: the answer of a search that does not predict.

        Args:
            offer: where mixtures are compared; default: where the answer is wanted, whose repeats tell the noise in any case.

        Raises:
            DataError: as `recommend`, or no feasible mixture was measured.
            InfeasibleError: no mixture that was measured keeps the floors.
        """
        proposal = recommend_measured(self.fitted(completed), self.space, self.domains, self.surrogate, self._settings_at(offer))
        return self._with_earlier_counted(proposal, completed)

    def recommend_chosen(self, completed: Swarm, choose: Choose, offer: Offer | None = None) -> Proposal:
        """The mixture that `choose` takes as the proposal: the answer of a search that optimizes something of its own.

        Args:
            offer: as for `recommend_measured`.

        Raises:
            DataError, InfeasibleError: as `recommend`, or as `choose` does.
        """
        settings = self._settings_at(offer)
        proposal = recommend_chosen(self.fitted(completed), self.space, self.domains, self.surrogate, settings, choose)
        return self._with_earlier_counted(proposal, completed)

    def _settings_at(self, offer: Offer | None) -> Settings:
        """Those of answers in terms of an offer's runs."""
        if offer is None or offer.source == self.source:
            return self.settings
        return replace(self.settings, source=offer.source, noise_source=self.source)

    def _with_earlier_counted(self, proposal: Proposal, completed: Swarm) -> Proposal:
        """With how many earlier runs of what source are in its evidence; what this search has itself is its own, at whatever source."""
        if self.earlier is None:
            return proposal
        known, own = set(completed.trial_ids), {offer.source for offer in self.offers}
        runs = zip(self.earlier.trial_ids, self.earlier.points().sources, strict=True)
        counted = Counter(source for trial_id, source in runs if trial_id not in known)
        like = sum(count for source, count in counted.items() if source in own)
        by_source = {source.key: count for source, count in sorted(counted.items(), key=lambda item: item[0].key)}
        counts = {"like_trials": like, "other_sources": counted.total() - like, "by_source": by_source}
        return replace(proposal, evidence={**proposal.evidence, "earlier_runs": counts})

    def with_calibration(self, calibration: Swarm) -> Assignment:
        return replace(self, calibration=calibration)
