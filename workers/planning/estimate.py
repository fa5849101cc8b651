"""The plan of an experiment: what it will cost and what it can tell, before anything is spent.

Trials, tokens and FLOPs are counted from the trials that the search would really ask for; packs and slots are those that would really run.
The record is read, nothing is written to it. Main trade-off: a verification is planned for as many arms as it can have, because which of
them are one mixture is known only when the search has ended.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mixopt.beginnings import base_json, base_sentence
from mixopt.components.config import EVALUATORS
from mixopt.config import Experiment
from mixopt.cost import DomainEpochs, Machine, NoiseKnown, Plan, Preparation, Shape, Speed, Stage, StageName
from mixopt.errors import RunError
from mixopt.factory import TrialFactory
from mixopt.mixture import Schedule
from mixopt.progress import Reporter, Silent
from mixopt.runner import Evaluation
from mixopt.strategies import knowing
from mixopt.strategies.base import learns
from mixopt.swarm import Swarm
from mixopt.trial import Trial
from mixopt.verification import plan_verification
from workers.compose import Search, compose, objective_weights
from workers.convert import CostModel, proxy_of, shape_of, trained_tokens
from workers.evaluations import EVALUATION_SHARE, evaluation_cost, evaluation_tokens
from workers.machine import look_at, this_machine
from workers.memory import host_memory_bytes, pack_memory_bytes
from workers.merged_gate import with_verdict
from workers.offers import GATE_REPEATS
from workers.packing import pack_size_of
from workers.planning import fits, footprint, known_noise
from workers.planning.advice import advise
from workers.planning.averages import averages_cost
from workers.planning.expected_corpus import UNKNOWN_TOKENS, Corpus, corpus_of, tokens_of
from workers.planning.known import Known, read_known
from workers.planning.makespan import Schedule as PackSchedule
from workers.planning.makespan import Seconds, schedule_search, schedule_together
from workers.planning.probe import probe_for
from workers.planning.speed import choose_speed, measured_speed
from workers.trial_folder import TrialFolder

# Rates of preparing the shared corpus (150 MB of Parquet, 14 domains) on one core: tokenizing 18.7 s, reading for the tokenizer 3.0 s, training it
# on 40 MB 5.7 s (2 cores, the tokenizer's own threads).
TOKENIZED_BYTES_PER_SECOND = 8.0e6
READ_BYTES_PER_SECOND = 47.0e6
TRAINED_BYTES_PER_SECOND = 7.0e6


def dearest(trials: Sequence[Trial]) -> Trial:
    """The first of those that cost most: what a stage whose trials are of several sources is named by, and its speed and memory are of."""
    return max(trials, key=CostModel(1.0).flops)


def make_plan(experiment: Experiment, reporter: Reporter | None = None, may_probe: bool = True) -> Plan:
    """The plan of an experiment that `check_experiment` has passed.

    Args:
        may_probe: whether some seconds may be spent on training, where the record says nothing about speed.

    Raises:
        MixoptError: the experiment cannot be run; as `compose`.
    """
    return Planner(experiment, reporter or Silent()).plan(may_probe)


class Planner:
    """Gathers what is known, once, and makes the parts of the plan from it."""

    def __init__(self, experiment: Experiment, reporter: Reporter) -> None:
        self._experiment, self._reporter = experiment, reporter
        self._notes: list[str] = []
        self._warnings: list[str] = []
        self._corpus: Corpus = corpus_of(experiment)
        self._search: Search = compose(experiment, self._corpus.manifest)
        self._machine = self._look_at_machine()
        self._known = read_known(self._search, self._corpus.prepared, anywhere=self._machine.where != "this machine")
        if self._known.gate is not None and self._search.averages:
            self._search = with_verdict(self._search, self._known.gate)
        self._search_trials = self._planned_search()
        self._verification_trials, self._at_most = self._planned_verification()

    def plan(self, may_probe: bool) -> Plan:
        experiment, corpus = self._experiment, self._corpus
        speeds = self._speeds(may_probe)
        stages = self._stages(speeds)
        domains = domain_epochs(self._search, corpus)
        memory = footprint.memory(stages, self._machine.slots, experiment.ray.address == "in-process")
        disk = footprint.disk(self._search, corpus, stages, self._machine.slots)
        noise = self._noise()
        first = next(stage for stage in stages if stage.name == "search")
        advice = advise(
            first.active_parameters,
            corpus.manifest.vocab_size,
            experiment.proxy.window,
            experiment.search.trials if experiment.search.sources else first.trials,
            first.speed.flops_per_second * self._machine.slots,
        )
        if corpus.unknown:
            self._notes.append(
                f"The size of {', '.join(corpus.unknown)} is not known before `mixopt prepare`; it is left out of disk and time."
            )
        if not corpus.prepared and experiment.tokenizer.hub is not None:
            self._notes.append(
                f"How many entries the tokenizer {experiment.tokenizer.hub} has is not known before `mixopt prepare`; {corpus.manifest.vocab_size:,} are "
                "assumed, and FLOPs, memory and disk grow with them."
            )
        if not corpus.prepared:
            why = f"Changed since it was prepared: {', '.join(corpus.changed)}" if corpus.changed else "Nothing is prepared yet"
            self._notes.append(
                f"{why}; so tokens at hand are estimated from bytes, and which trials are already in the record shows after `mixopt prepare`."
            )
        self._notes.append(
            "Time is training and measuring; starting Ray, fitting surrogates and drawing come on top, about a minute in all."
        )
        warnings = (*self._warnings, *fits.warnings(stages, domains))
        return Plan(
            name=experiment.name,
            search_id=self._search.search_id if corpus.prepared else None,
            strategy=experiment.search.strategy,
            seeds=experiment.proxy.seeds,
            budget_tokens=experiment.budget_tokens,
            machine=self._machine,
            preparation=preparation(experiment, corpus),
            stages=stages,
            memory=memory,
            disk=disk,
            domains=domains,
            noise=noise,
            advice=advice,
            problems=fits.problems(self._machine, memory, disk, stages),
            warnings=warnings,
            notes=tuple(self._notes),
            calibration=self._calibration(),
            averages=averages_cost(self._search),
        )

    # What is known

    def _look_at_machine(self) -> Machine:
        try:
            return look_at(self._experiment)
        except RunError as error:
            self._warnings.append(f"{error.message} The plan is for this machine instead. {error.hint}")
            return this_machine(self._experiment)

    def _planned_search(self) -> list[Trial]:
        """What the search would train: trials in its record, and those that its strategy asks for next."""
        known, names = self._known, self._search.domains.names
        swarm = known.swarm if known.swarm is not None else Swarm.empty(names)
        finished = set(swarm.trial_ids)
        pending = [trial for trial in known.trials if trial.trial_id not in finished]
        plain, offers = self._search.strategy, self._search.strategy.assignment.offers
        costs = {offer.source: offer.cost / offers[-1].cost for offer in offers}
        budget = self._experiment.search.trials - plain.assignment.before / offers[-1].cost
        # So many of the cheapest source that is trained: of averages there may be any number.
        count = math.ceil(budget / min(costs[offer.source] for offer in offers if offer.source.evaluator not in EVALUATORS))
        informed = plain if known.calibration_runs is None else knowing(plain, known.calibration_runs)
        asked = informed.ask(max(count, 1), swarm, pending, known.abandoned)
        if known.proposal is not None and asked and not plain.ask(count, swarm, pending, known.abandoned):
            return list(known.trials)  # it has ended without the calibration, and stays so
        found = [*known.trials, *asked]
        # Mixtures that depend on results are not known yet; what they cost is, up to the source.
        left = budget - math.fsum(costs.get(trial.source, 0.0) for trial in found)
        unknown = math.floor(left + 1e-9) if learns(plain) and known.proposal is None else 0
        first_learned = plain.assignment.first_learned_seed
        if learns(plain) and known.proposal is None and not unknown and all(trial.seed < first_learned for trial in found):
            self._warnings.append(
                f"All {len(found)} trials belong to the first design of the strategy {self._experiment.search.strategy}, which then learns from none of "
                "them: raise `search.trials`, lower `search.options.first`, or take `regression`."
            )
        make, natural = self._search.factory.make, Schedule.constant(self._search.domains.natural())
        return [*found, *(replace(make(natural, 0, ""), trial_id=f"learned-{place}") for place in range(unknown))]

    def _planned_verification(self) -> tuple[list[Trial], bool]:
        """The trials of the verification, and whether there may be fewer."""
        search, seeds = self._search, self._experiment.verification.seeds
        if not self._experiment.verification.enabled:
            return [], False
        baselines = (search.domains.natural(), search.domains.uniform(), search.domains.unimax())
        make = search.verification_factory.make
        if self._known.proposal is not None and all(self._is_trained(trial) for trial in self._search_trials):
            return plan_verification(self._known.proposal, *baselines, make, seeds), False
        distinct = {make(Schedule.constant(mixture), 0, "").trial_id: mixture for mixture in baselines}
        trials = [make(Schedule.constant(mixture), seed, "") for mixture in distinct.values() for seed in range(seeds)]
        # Proposal and best measured mixture: not known yet, and at the same cost.
        unknown = [replace(trial, trial_id=f"{arm}-{trial.seed}") for arm in ("proposal", "best measured") for trial in trials[:seeds]]
        return [*trials, *unknown], True

    def _is_trained(self, trial: Trial) -> bool:
        if not self._corpus.prepared:
            return False
        return trial.trial_id in self._known.finished or TrialFolder(self._search.store, trial.trial_id).read_outcome() is not None

    # Speed and time

    def _trials_of(self) -> dict[StageName, Sequence[Trial]]:
        """Stage -> its trials, in the order in which stages run; without those that have none."""
        search = self._search
        trials: dict[StageName, Sequence[Trial]] = {
            "base": [search.base] if search.base is not None else [],
            "components": self._search.family.trials if self._search.family is not None and self._search.averages else [],
            "search": [trial for trial in self._search_trials if trial.source.evaluator not in EVALUATORS],
            "verification base": [trial for trial in search.bases if trial != search.base],
            "verification": self._verification_trials,
        }
        return {stage: found for stage, found in trials.items() if found}

    def _speeds(self, may_probe: bool) -> dict[Shape, Speed]:
        """Speed of every shape that is left to train, or was."""
        machine = self._machine
        recorded = recorded_speeds(self._search, self._corpus, self._known)
        first = [dearest(trials) for trials in self._trials_of().values()]
        missing = {shape_of(trial): self._pack_size(trial) for trial in first if shape_of(trial) not in recorded}
        probed, notes = probe_for(machine, missing if may_probe else {}, self._reporter)
        self._notes += notes
        return {shape_of(trial): choose_speed(shape_of(trial), recorded, probed, machine.device, machine.where) for trial in first}

    def _stages(self, speeds: Mapping[Shape, Speed]) -> tuple[Stage, ...]:
        return tuple(
            self._stage(name, trials, self._at_most and name == "verification", speeds) for name, trials in self._trials_of().items()
        )

    def _stage(self, name: StageName, trials: Sequence[Trial], at_most: bool, speeds: Mapping[Shape, Speed]) -> Stage:
        one = dearest(trials)
        speed = speeds[shape_of(one)]
        cost = CostModel(speed.flops_per_second)
        share = share_of_measuring(self._search, self._corpus, factory_of(self._search, one))
        left = [trial for trial in trials if not self._is_trained(trial)]
        packs = self._packs(name, left, lambda trial: cost.seconds(trial) * (1 + share))
        # Where nothing is left, the memory of a pack is still worth knowing for the next search.
        size = packs.pack_size or min(len(trials), self._pack_size(one))
        config = proxy_of(one)
        parameters = config.parameters()
        shape, device = shape_of(one), self._machine.device
        return Stage(
            name=name,
            source=one.source.key,
            what=self._what(name, trials, at_most),
            trials=len(trials),
            at_most=at_most,
            reused=len(trials) - len(left),
            tokens=sum(map(trained_tokens, trials)),
            flops=sum(map(cost.flops, trials)),
            flops_left=sum(map(cost.flops, left)),
            total_parameters=parameters.total,
            active_parameters=parameters.active,
            embedding_parameters=parameters.embedding,
            flops_per_token=config.training_flops_per_token(int(one.recipe["window"])),
            measuring_share=share,
            packs=len(packs.packs),
            pack_size=size,
            seconds_per_trial=cost.seconds(one) * (1 + share),
            seconds=packs.seconds,
            pack_bytes=host_memory_bytes(config, shape.window, shape.tokens_per_step, size, device) + self._unforeseen_memory(one),
            speed=speed,
            device_bytes=pack_memory_bytes(config, shape.window, shape.tokens_per_step, size, device) if device == "cuda" else 0.0,
        )

    def _what(self, name: StageName, trials: Sequence[Trial], at_most: bool) -> str:
        experiment = self._experiment
        if name in ("base", "verification base"):
            begun = "verification runs" if name == "verification base" else "all trials"
            mixture = experiment.proxy.beginning.base.mixture if experiment.proxy.beginning.base.trial is None else None
            base = base_sentence(base_json(trials[0], mixture if isinstance(mixture, str) else None))
            return f"what {begun} begin with ({experiment.proxy.beginning.kind}), trial {base}"
        if name == "components":
            assert self._search.family is not None
            share = self._search.family.share
            return f"one component per domain, on that domain and {share:.0%} of general data, from the trials' own base"
        if name == "search" and self._search.averages:
            averages = " and ".join(one.evaluator for one in self._search.averages)
            gate = f"the first {self._experiment.components.gate + GATE_REPEATS} of them are compared with {averages} proxies"
            return f"what is left of the cost of {self._experiment.search.trials} trials, by the strategy {self._experiment.search.strategy}; {gate}"
        if name == "search":
            seeds = f"{experiment.proxy.seeds} seeds at the natural and the uniform mixture"
            if experiment.search.sources:
                source = self._search.factory.source.key
                return f"what {experiment.search.trials} trials of {source} cost, spent over {len(experiment.search.sources) + 1} sources by the strategy {experiment.search.strategy}"
            return f"{len(trials)} trials of the strategy {experiment.search.strategy}, with {seeds}"
        seeds_of_arm = experiment.verification.seeds
        arms = -(-len(trials) // seeds_of_arm)
        return f"{'at most ' if at_most else ''}{arms} different mixtures among proposal, best measured, natural, uniform and UniMax, with {seeds_of_arm} seeds each"

    def _pack_size(self, trial: Trial) -> int:
        return self._experiment.ray.pack_size or pack_size_of(shape_of(trial), self._machine.device)

    def _unforeseen_memory(self, trial: Trial) -> float:
        """What a pack of the calibration took beyond its estimate; 0 where none was measured. Of a CPU's packs only."""
        found = self._known.calibration
        resources = None if found is None or self._machine.device == "cuda" else found.resources_of(trial.source)
        return 0.0 if resources is None or resources.unforeseen_bytes is None else resources.unforeseen_bytes

    def _calibration(self) -> str:
        """What is calibrated, in a sentence or two."""
        if not self._corpus.prepared:
            return ""
        found, check = self._known.calibration, self._experiment.verification
        if found is None:
            return "none yet; the search takes what its first trials show. `mixopt calibrate FILE` also compares learning rates, and costs some trials."
        return f"{found.summary(check.seeds if check.enabled else self._experiment.proxy.seeds)}"

    def _packs(self, name: StageName, trials: Sequence[Trial], seconds_of: Seconds) -> PackSchedule:
        machine, pack_size = self._machine, self._experiment.ray.pack_size
        if name != "search":
            return schedule_together(trials, seconds_of, machine.slots, pack_size, machine.device)
        return schedule_search(trials, seconds_of, machine.slots, pack_size, machine.device, self._experiment.search.batch)

    # Noise

    def _noise(self) -> NoiseKnown:
        known, experiment = self._known, self._experiment
        if known.repeats is not None:
            more = len(known.repeats) - (0 if known.swarm is None else len(known.swarm))
            whose = "its calibration" if known.swarm is None else "this search and its calibration" if more else "this search"
            found = known_noise.from_swarm(known.repeats, list(objective_weights(experiment)), whose)
            if found is not None:
                return found
        if experiment.proxy.beginning.kind != "scratch":
            return known.noise or NoiseKnown("none", known_noise.UNKNOWN)  # the notes are of proxies from scratch
        return known.noise or known_noise.from_notes(experiment.proxy.size, experiment.proxy.tokens)


def recorded_speeds(search: Search, corpus: Corpus, known: Known) -> dict[Shape, tuple[float, int]]:
    """Speed and number of trials per shape that the record holds, without the time that measuring losses took."""
    factories = (search.factory, search.verification_factory, *(factory_of(search, base) for base in search.bases))
    shares = {factory.source.key: share_of_measuring(search, corpus, factory) for factory in factories}
    return measured_speed(known.here, shares, EVALUATION_SHARE)


def factory_of(search: Search, trial: Trial) -> TrialFactory:
    """A factory of trials like this one."""
    return replace(search.factory, source=trial.source, recipe=trial.recipe, inputs=trial.inputs)


def share_of_measuring(search: Search, corpus: Corpus, factory: TrialFactory) -> float:
    """Cost of measuring a trial of `factory` as a share of its training, with sets no larger than they are."""
    step = int(factory.recipe["tokens_per_step"])
    trained = factory.source.tokens // step * step
    return measuring_share(search.evaluations[factory.source.key], tokens_of(corpus.manifest), trained, factory)


def measuring_share(evaluations: Sequence[Evaluation], sizes: Mapping[Path, int], trained: int, factory: TrialFactory) -> float:
    """Cost of measuring a trial as a share of its training, with every set no larger than it is.

    A set of unknown size is taken to be as large as a tenth of the training would pay for.
    """
    default, early = evaluation_tokens(trained, len(evaluations), int(factory.recipe["window"]))
    clipped = []
    for evaluation in evaluations:
        known = sizes.get(evaluation.path, UNKNOWN_TOKENS)
        limit, curve = (known, known) if known < UNKNOWN_TOKENS else (default, early)
        end = min(evaluation.max_tokens or limit, limit)
        clipped.append(replace(evaluation, max_tokens=end, curve_tokens=min(evaluation.curve_tokens or end, curve, end)))
    return evaluation_cost(clipped, trained)


def domain_epochs(search: Search, corpus: Corpus) -> tuple[DomainEpochs, ...]:
    """How often target run and proxies of the search see each domain, in the order of the experiment file."""
    domains, tokens = search.domains, search.factory.source.tokens
    unique = domains.unique_tokens(tokens, int(search.factory.recipe["window"]))
    mixtures = {"natural": domains.natural(), "unimax": domains.unimax()}
    epochs = {name: domains.epochs(mixture) for name, mixture in mixtures.items()}
    shares = {name: mixture.as_dict() for name, mixture in mixtures.items()}
    upper = dict(zip(search.space.domains, search.space.upper.tolist(), strict=True))
    return tuple(
        DomainEpochs(
            name=domain.name,
            target_tokens=domain.target_tokens,
            max_epochs=domain.max_epochs,
            largest_weight=upper[domain.name],
            natural_epochs=epochs["natural"][domain.name],
            unimax_epochs=epochs["unimax"][domain.name],
            prepared_tokens=domain.prepared_tokens if domain.prepared_tokens < UNKNOWN_TOKENS else None,
            unique_tokens=unique[domain.name].tokens,
            note=unique[domain.name].note,
            proxy_natural_epochs=shares["natural"][domain.name] * tokens / unique[domain.name].tokens,
            proxy_unimax_epochs=shares["unimax"][domain.name] * tokens / unique[domain.name].tokens,
            token_count_source=domain.token_count_source,
        )
        for domain in domains.domains
    )


def preparation(experiment: Experiment, corpus: Corpus) -> Preparation:
    """Documents to tokens: how much text, how long."""
    if corpus.prepared:
        return Preparation(True, corpus.text_bytes, 0.0, "done; what has changed since is prepared again")
    rate = f"at {TOKENIZED_BYTES_PER_SECOND / 1e6:.0f} MB/s, measured once on two cores of another machine"
    if corpus.text_bytes is None:
        return Preparation(False, None, None, f"unknown: text that is not on this machine is not counted in advance; {rate}")
    seconds = corpus.text_bytes / TOKENIZED_BYTES_PER_SECOND
    if experiment.tokenizer.path is None and experiment.tokenizer.hub is None:
        sample = min(corpus.text_bytes, float(experiment.tokenizer.sample_bytes))
        seconds += corpus.text_bytes / READ_BYTES_PER_SECOND + sample / TRAINED_BYTES_PER_SECOND
    return Preparation(False, corpus.text_bytes, seconds, rate)
