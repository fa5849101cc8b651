"""Before a search believes merged or ensembled proxies: components are trained, some mixtures are trained for real, and both rankings are compared.

The mixtures are the search's own baselines and draws that it could propose, so that what is trained for the gate is the search's first trials and costs nothing extra. Where
the evaluators are not trusted, the remedies of the file are tried, by training other components, as long as these cost no more than they may; after that the
search trains its proxies. Everything tried is in the document "gate". The main trade-off: the gate decides once, before the search; what the search trains
later corrects an evaluator (the surrogate learns its bias), but does not depose it.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any, cast

import numpy as np

from mixopt.components.family import BEYOND_REACH, Family, MergedFactory
from mixopt.errors import ConfigError, DataError, RunError
from mixopt.history import History, TrialRecord
from mixopt.merging.gate import judge
from mixopt.merging.paired import FEWEST_MIXTURES, pair
from mixopt.merging.remedies import Limits, Making, next_attempt
from mixopt.merging.verdict import Verdict
from mixopt.mixture import FloatArray, Mixture
from mixopt.objective import Objective, fit_objective
from mixopt.progress import Reporter
from mixopt.runner import Runner
from mixopt.search import SearchObserver, run_trials
from mixopt.space import MixtureSpace
from mixopt.strategies.base import START
from mixopt.strategies.design import draws
from mixopt.trial import Trial
from workers.components import Components, displacements, train_components
from workers.compose import Search
from workers.convert import proxy_of
from workers.offers import LEFT_TO_USE

KIND = "gate"
LABEL = "gate"
MOST_DRAWS = 500
"""Of the design, in search of mixtures that differ: a small feasible set holds few."""


@dataclass(frozen=True)
class Attempt:
    """One set of components and what the gate said of it.

    Attributes:
        remedy: what was changed against the attempt before; None: the file's own settings.
        flops: of its components.
        verdicts: one per evaluator; `refused`: evaluator -> why it could not be judged.
        averages: evaluator -> ids of the trials that it was judged by.
    """

    making: Making
    remedy: str | None
    flops: float
    verdicts: tuple[Verdict, ...]
    refused: Mapping[str, str]
    averages: Mapping[str, tuple[str, ...]]

    @property
    def trusted(self) -> tuple[str, ...]:
        return tuple(verdict.evaluator for verdict in self.verdicts if verdict.trusted)

    def to_json(self) -> dict[str, Any]:
        return {
            "making": asdict(self.making),
            "remedy": self.remedy,
            "flops": self.flops,
            "verdicts": [verdict.to_json() for verdict in self.verdicts],
            "sentences": {verdict.evaluator: list(verdict.reasons) for verdict in self.verdicts},
            "refused": dict(self.refused),
        }


def judged(
    search: Search,
    history: History,
    runner: Runner,
    reporter: Reporter,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
) -> Search:
    """The search, with those of its evaluators that are trusted; components are trained for them, and judged where they have not been.

    Raises:
        RunError: a component failed, or too many of the trials that the gate compares with.
    """
    components = search.components
    if components is None or not search.averages:
        return search
    known = history.document(search.search_id, KIND)
    gate = _Gate(search, components, history, runner, reporter, observers, stop)
    if known is None:
        known = gate.decide()
        history.save_document(search.search_id, KIND, known)
    search = with_verdict(search, known)
    if search.averages and search.family is not None:
        gate.train(search.family)
    return search


def known_verdict(search: Search, history: History) -> Search:
    """The search as its recorded verdict leaves it; as it is, where there is none yet."""
    body = history.document(search.search_id, KIND) if search.averages else None
    return search if body is None else with_verdict(search, body)


def with_verdict(search: Search, body: Mapping[str, Any]) -> Search:
    """The search whose strategy is offered the evaluators that a verdict trusts, and counts what the components of all attempts cost."""
    components = search.components
    assert components is not None
    family = search.family
    if body["trusted"] or family is None:
        family = components.family(Making(**body["making"]))
    averages, changed = components.assigned(search.strategy.assignment, family, body["trusted"], float(body["flops"]))
    strategy = cast("Any", search.strategy)
    left_out = frozenset(body.get("left_out", ()))
    return replace(search, strategy=replace(strategy, assignment=changed), family=family, averages=averages, left_out=left_out)


def gate_mixtures(search: Search) -> list[Mixture]:
    """What is trained and averaged beside the first points of the design: draws of it where all evaluators and the target run can have them."""
    assert search.family is not None
    space: MixtureSpace = search.space
    if not all(one.extrapolates for one in search.averages):
        space = search.family.reach(space)
    names = space.domains
    known = {_name(trial.schedule.average().array(names)) for trial in search.strategy.assignment.planned(START)}
    baselines, found = len(known), list[Mixture]()
    for point in islice(draws(search.domains, search.experiment.search.seed), MOST_DRAWS):
        if baselines + len(found) >= search.experiment.components.gate:
            break
        weights = space.project(point.mixture.array(names)[None, :])[0]
        if _name(weights) not in known:  # several draws may have one nearest feasible mixture
            known.add(_name(weights))
            found.append(Mixture.from_array(names, weights))
    return found


@dataclass(frozen=True)
class _Gate:
    """One search at its gate, with all that a trial needs to be run."""

    search: Search
    components: Components
    history: History
    runner: Runner
    reporter: Reporter
    observers: Sequence[SearchObserver]
    stop: threading.Event | None

    def decide(self) -> dict[str, Any]:
        """Judges the file's own components, then those of one remedy after the other."""
        trained = self._trained()
        making: Making | None = self.components.making
        remedy: str | None = None
        attempts: list[Attempt] = []
        why: tuple[str, ...] = ()
        whys: list[tuple[str, ...]] = []
        while making is not None:
            whys.append(why)
            family = self.components.family(making)
            self.train(family)
            attempt = self._attempt(family, making, remedy, trained)
            attempts.append(attempt)
            for verdict in attempt.verdicts:
                self.reporter.note(verdict.headline)
            for evaluator, reason in attempt.refused.items():
                self.reporter.note(f"{evaluator.capitalize()} proxies are not trusted: {reason}")
            if attempt.trusted:
                break
            making, remedy, why = self._next(attempts, trained)
            self.reporter.note(why[0])
        last = attempts[-1]
        return {
            # Why each was tried, which the attempt before it has shown.
            "attempts": [one.to_json() | {"why": list(reasons)} for one, reasons in zip(attempts, whys, strict=True)],
            "trusted": list(last.trusted),
            "making": asdict(last.making),
            "ended": [] if last.trusted else list(why),
            "left_out": _left_out(attempts),
            "flops": sum(one.flops for one in attempts),
            "trials": [trial.trial_id for trial in trained],
        }

    def _next(self, attempts: Sequence[Attempt], trained: Sequence[Trial]) -> tuple[Making | None, str, tuple[str, ...]]:
        """What to try after the last attempt, and why; None: trained proxies alone. Merged proxies decide where they were judged: more can be mended in them."""
        assignment, given, last = self.search.strategy.assignment, self.search.experiment.components, attempts[-1]
        if not last.verdicts:
            return None, "trained proxies", ("No average could be judged; trained proxies are used.", *last.refused.values())
        judged_by = next((verdict for verdict in last.verdicts if verdict.evaluator == "merged"), last.verdicts[0])
        limits = Limits(
            least_tokens=self.components.least_tokens,
            search_cost=assignment.trials * assignment.offers[-1].cost,
            spent=sum(one.flops for one in attempts),
            has_router=bool(proxy_of(self.components.base).n_experts),
            # What the gate has trained and what is to be left for the search cannot go into components.
            share=min(given.most_share, 1 - (len(trained) + LEFT_TO_USE) / assignment.trials),
        )
        tried = [one.remedy for one in attempts if one.remedy is not None]
        allowed: list[str] = list(given.remedies)
        wider = replace(last.making, general=(1 + last.making.general) / 2)
        if "larger general share" in allowed and not _reaches_enough(self.components, self.components.family(wider), trained):
            allowed.remove("larger general share")  # nothing could be compared with it
        found = next_attempt(judged_by, last.making, tried, self.components.flops, limits, allowed=allowed)
        return found.making, found.remedy, found.reasons

    def train(self, family: Family) -> None:
        """What is missing of it."""
        metrics = self.search.metrics(family.source)
        train_components(
            self.components, family, self.search.search_id, metrics, self.history, self.runner, self.reporter, self.observers, self.stop
        )

    def _trained(self) -> list[Trial]:
        """Trains the mixtures that the gate compares with: the search's first trials. Those that were abandoned are left out."""
        assignment = self.search.strategy.assignment
        trials = assignment.planned(START)
        trials += [assignment.learned(mixture, number, LABEL) for number, mixture in enumerate(gate_mixtures(self.search))]
        records = self._run(trials)
        done = [record.trial for record in records if record.outcome is not None]
        if len(done) < len(records) / 2:
            raise RunError(
                f"{len(records) - len(done)} of the {len(records)} trials that merged proxies are compared with were abandoned.",
                "`mixopt show` has the reasons; mend them and run the same command again.",
            )
        return done

    def _run(self, trials: Sequence[Trial]) -> list[TrialRecord]:
        return run_trials(
            self.history,
            self.search.search_id,
            "search",
            self.runner,
            trials,
            metrics=self.search.metrics(trials[0].source),
            max_attempts=self.search.experiment.search.max_attempts,
            observers=self.observers,
            stop=self.stop,
        )

    def _attempt(self, family: Family, making: Making, remedy: str | None, trained: Sequence[Trial]) -> Attempt:
        """What the gate says of a trained family: its averages at the mixtures that were trained, scored and compared."""
        asked: dict[str, tuple[str, ...]] = {}
        try:
            objective, losses = self._trained_losses(trained)
        except DataError as error:
            return Attempt(
                making, remedy, self.components.flops(making), (), {one.evaluator: error.message for one in self.search.averages}, asked
            )
        verdicts: list[Verdict] = []
        refused: dict[str, str] = {}
        for maker in self.components.makers(family):
            by_mixture = _averages_at(trained, maker)
            averages = list({one.trial_id: one for one in by_mixture.values()}.values())
            asked[maker.evaluator] = tuple(one.trial_id for one in averages)
            try:
                ran = self._run(averages) if averages else []
            except RunError as error:  # most of them were abandoned; the other evaluator may do
                refused[maker.evaluator] = error.message
                continue
            found = _losses_of(self.search, ran, objective.metrics)
            proxies = {name: found[one.trial_id] for name, one in by_mixture.items() if one.trial_id in found}
            try:
                paired = pair(objective, losses, proxies)
            except DataError as error:
                refused[maker.evaluator] = error.message
                continue
            if maker.evaluator == "merged":
                moved = {name: row["total"] for name, row in displacements(family, self.search.store).items()}
                verdicts.append(judge(paired, maker.evaluator, moved, _agreement(ran)))
            else:
                verdicts.append(judge(paired, maker.evaluator))
        return Attempt(making, remedy, self.components.flops(making), tuple(verdicts), refused, asked)

    def _trained_losses(self, trained: Sequence[Trial]) -> tuple[Objective, list[tuple[str, FloatArray]]]:
        """The objective in the scale of the trained runs, and their losses by the names of their mixtures."""
        assignment = self.search.strategy.assignment
        source = assignment.source
        swarm = self.history.swarm(self.search.search_id, self.search.domains.names, self.search.metrics(source)).at_source(source)
        own = swarm.select([trial.trial_id for trial in trained])
        objective = fit_objective(assignment.objective_kind, assignment.metrics, own, self.search.domains.natural(), assignment.loss_unit)
        values = dict(zip(own.trial_ids, own.values(objective.metrics), strict=True))
        return objective, [(_name(trial.schedule.average().array()), values[trial.trial_id]) for trial in trained]


def _left_out(attempts: Sequence[Attempt]) -> list[str]:
    """Averages that are not trusted: of other components at the same horizon they would pass for runs of the source that is."""
    every = {trial_id for one in attempts for ids in one.averages.values() for trial_id in ids}
    kept = {trial_id for evaluator in attempts[-1].trusted for trial_id in attempts[-1].averages[evaluator]}
    return sorted(every - kept)


def _reaches_enough(components: Components, family: Family, trained: Sequence[Trial]) -> bool:
    """Whether some average of a family reaches mixtures enough of those that were trained."""
    mixtures = {_name(trial.schedule.average().array()): trial.schedule.average() for trial in trained}
    reached = sum(float(family.weights(mixture).min()) >= -BEYOND_REACH for mixture in mixtures.values())
    return any(one.extrapolates for one in components.makers(family)) or reached >= FEWEST_MIXTURES


def _averages_at(trained: Sequence[Trial], maker: MergedFactory) -> dict[str, Trial]:
    """Mixture -> the average that stands for it, of mixtures that were trained and that these averages reach."""
    found: dict[str, Trial] = {}
    for trial in trained:
        try:
            found[_name(trial.schedule.average().array())] = maker.make(trial.schedule, 0, LABEL)
        except ConfigError:
            continue
    return found


def _name(weights: FloatArray) -> str:
    """Names a mixture, whatever its seed."""
    return ",".join(f"{weight:.6f}" for weight in weights.tolist())


def _losses_of(search: Search, records: Sequence[TrialRecord], metrics: Sequence[str]) -> dict[str, FloatArray]:
    """Trial id -> losses in the order of `metrics`, of finished trials, bits per byte."""
    found = {}
    for record in records:
        if record.outcome is not None:
            names = search.metrics(record.trial.source)
            losses = {names[m.evaluation_key]: m.bits_per_byte for m in record.outcome.measurements if m.evaluation_key in names}
            found[record.trial.trial_id] = np.array([losses[metric] for metric in metrics])
    return found


def _agreement(records: Sequence[TrialRecord]) -> float | None:
    """Mean over merges of the share of choices of experts that they have in common with the base."""
    shares = [
        share
        for record in records
        if record.outcome is not None and (share := record.outcome.diagnostics.get("merge", {}).get("agreement_with_base")) is not None
    ]
    return float(np.mean(shares)) if shares else None
