"""Trains a calibration: ordinary trials in the shared store, in as few packs as there are sources, and what follows from them.

The walk is that of a search: everything is recorded before it runs, an interrupted calibration goes on where it stopped, and what a search has trained
already, or will ask for first, is trained once. The rates of a sweep share packs, since each member has its own. The main trade-off: runs at the
search's own tokens, which cost as much as its trials, because a rate that ranks well at another length need not at this one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mixopt.calibration.analysis import Scoring, analyse
from mixopt.calibration.design import CalibrationPlan, Extent, calibration_identity, plan_calibration
from mixopt.calibration.result import Calibration
from mixopt.calibration.stored import finished_trials, keep_copy, load, save
from mixopt.config import Experiment
from mixopt.errors import ConfigError, DataError
from mixopt.history import History
from mixopt.progress import Reporter, Silent
from mixopt.runner import Runner
from mixopt.search import SearchInterrupted, SearchObserver, run_trials
from mixopt.trial import Source, Trial
from workers.beginnings import train_base
from workers.calibration_cost import Cost, Pricing, bases_of, resources_of
from workers.checks import check_experiment
from workers.compose import Search, compose, objective_weights, record_location
from workers.tokens.prepare import prepare

MakeRunner = Callable[[Search], Runner]

SWEEP = (1 / 100, 1 / 30, 1 / 10, 1 / 3, 1.0, 3.0)
"""From the regime of tiny rates, in which 125M proxies are reported to rank as a 1B model does (arXiv 2512.24503: 1e-5 to 1e-6, where GPT-3's table 2.1,
arXiv 2005.14165, gives 6e-4 to that size), to above the size's own."""


@dataclass(frozen=True)
class Level:
    """How much is calibrated: the source of the search, and that of its verification (None: not swept)."""

    title: str
    search: Extent
    verification: Extent | None


LEVELS = (
    Level("everything", Extent(SWEEP, 5, 3, 4, True), Extent((1 / 10, 1 / 3, 1.0, 3.0), 5, 2, 2, False)),
    Level("the size of the search", Extent(SWEEP, 5, 3, 4, True), None),
    Level("the size of the search, quickly", Extent((1 / 100, 1 / 10, 1.0, 3.0), 1, 3, 4, False), None),
    Level("noise, speed and memory, without a sweep of rates", Extent((1.0,), 1, 3, 0, False), None),
)
"""From most to least; `--quick` is the third. In simulations (60 each; docs/log.md, part 4) one rate of six that ranks clearly
better was found with 12 mixtures always, with 10 in .83 of all cases, with 8 in .55; where all ranked alike, another one was taken in .03 at most."""
QUICK = LEVELS[2]


@dataclass(frozen=True)
class Calibrated:
    """What `calibrate` leaves behind; `trained` and `reused` count trials of this run and those found trained."""

    calibrations: tuple[Calibration, ...]
    cost: Cost
    trained: int
    reused: int


def own_rates(experiment: Experiment) -> Experiment:
    """The experiment with every size at its own rate where the file asks for the calibrated one: what a calibration starts from."""
    if experiment.proxy.learning_rate != "calibrated":
        return experiment
    return experiment.model_copy(update={"proxy": experiment.proxy.model_copy(update={"learning_rate": None})})


def calibrate(
    experiment: Experiment,
    reporter: Reporter | None = None,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
    quick: bool = False,
    seeds: int | None = None,
    minutes: float | None = None,
    dry_run: bool = False,
    make_runner: MakeRunner | None = None,
) -> Calibrated:
    """Prepares, says what it will cost, trains and stores; goes on where an earlier run stopped.

    Args:
        seeds: at natural, uniform and the corners; None: as many as the search, at least 3.
        minutes: leaves out what would take longer, the verification's size first; None: nothing is left out.
        dry_run: only says what it would cost.
        make_runner: None: what the experiment file asks for.

    Raises:
        ConfigError: nothing fits into `minutes`.
        MixoptError: as `workers.run.run`; what was finished stays in the record.
    """
    reporter, base = reporter or Silent(), own_rates(experiment)
    check_experiment(base)
    manifest = prepare(base, reporter)
    search = compose(base, manifest)
    with History.open(record_location(search.store)) as history:
        pricing = Pricing.of(search, history)
        plans, cost = _affordable(search, pricing, quick, seeds, minutes)
        reporter.note(cost.sentence)
        if dry_run:
            return Calibrated((), cost, 0, cost.reused)
        before = history.completed_trials()
        _train(_with_longer(search, plans), history, plans, reporter, observers, stop, make_runner)
        calibrations = tuple(_conclude(search, history, plan, pricing) for plan in plans)
        trained = {trial.trial_id for plan in plans for trial in plan.trials} & history.completed_trials() - before
    return Calibrated(calibrations, cost, len(trained), cost.trials - len(trained))


def plans_at(search: Search, level: Level, seeds: int | None = None) -> list[CalibrationPlan]:
    """The calibrations of a level: of the search's source, and of the verification's where there is one to sweep."""
    experiment = search.experiment
    check, seed = experiment.verification, experiment.search.seed
    wanted = seeds or max(experiment.proxy.seeds, level.search.seeds)
    larger = search.verification_factory if check.enabled else None
    plans = [plan_calibration(search.factory, replace(level.search, seeds=wanted), seed, larger)]
    if check.enabled and level.verification is not None:
        extent = replace(level.verification, seeds=seeds or level.verification.seeds)
        plans.append(plan_calibration(search.verification_factory, extent, seed, first_seed=0))
    return plans


def _affordable(
    search: Search, pricing: Pricing, quick: bool, seeds: int | None, minutes: float | None
) -> tuple[list[CalibrationPlan], Cost]:
    """The largest calibration that is wanted and takes no longer than it may.

    Raises:
        ConfigError: none does.
    """
    levels = LEVELS[LEVELS.index(QUICK) :] if quick else LEVELS
    offers = []
    for level in levels:
        plans = plans_at(search, level, seeds)
        cost = pricing.cost(level.title, plans)
        if minutes is None or cost.seconds <= 60 * minutes:
            return plans, cost
        offers.append(cost)
    raise ConfigError(
        f"--minutes {minutes:g} is too short: the least calibration would take about {offers[-1].seconds / 60:.0f} minutes.",
        "Allow more, or lower `proxy.tokens`.",
    )


def _with_longer(search: Search, plans: Sequence[CalibrationPlan]) -> Search:
    """The search with held-out sets for every source of the plans: a longer run is scored on what the shorter one is, token for token."""
    evaluations = dict(search.evaluations)
    for plan in plans:
        for trial in plan.trials:
            evaluations.setdefault(trial.source.key, search.evaluations[plan.factory.source.key])
    return replace(search, evaluations=evaluations)


def _train(
    search: Search,
    history: History,
    plans: Sequence[CalibrationPlan],
    reporter: Reporter,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
    make_runner: MakeRunner | None,
) -> None:
    """Records every trial of the plans, then brings it to its end; starts no runner where nothing is left."""
    for plan in plans:
        history.add_search(plan.calibration_id, search.experiment.name, search.experiment.to_yaml())
        if history.search(plan.calibration_id).state == "running":
            history.retry_abandoned(plan.calibration_id)  # its driver died without a word
        history.add_trials(plan.calibration_id, plan.trials, "calibration")
    left = [plan for plan in plans if _left(search, history, plan)]
    if left:
        _run(search, history, left, reporter, observers, stop, make_runner)
    for plan in plans:
        history.set_search_state(plan.calibration_id, "finished")


def _run(
    search: Search,
    history: History,
    left: Sequence[CalibrationPlan],
    reporter: Reporter,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
    make_runner: MakeRunner | None,
) -> None:
    from workers.run import make_runner as usual

    runner = (make_runner or usual)(search)
    try:
        for plan in left:
            for base in bases_of(search, plan.trials):
                train_base(search, base, plan.calibration_id, history, runner, reporter, observers, stop)
            for trials in _by_evaluations(search, plan):
                run_trials(
                    history,
                    plan.calibration_id,
                    "calibration",
                    runner,
                    trials,
                    metrics=search.metrics(trials[0].source),
                    max_attempts=search.experiment.search.max_attempts,
                    observers=observers,
                    stop=stop,
                )
    except KeyboardInterrupt:
        # Outside the loop, which records an interruption itself: while the runner starts or ends.
        for plan in left:
            history.set_search_state(plan.calibration_id, "interrupted")
        raise SearchInterrupted("Calibration stopped.", "The same command goes on from here; nothing is trained twice.") from None
    finally:
        runner.close()


def _left(search: Search, history: History, plan: CalibrationPlan) -> bool:
    """Whether some trial is not finished, or not scored on every held-out set of today; and after a failure, whose cause may be mended."""
    if history.search(plan.calibration_id).state == "failed":
        return True
    finished = finished_trials(history, plan.calibration_id)
    given_up = {record.trial.trial_id for record in history.trials(plan.calibration_id) if record.state.value == "abandoned"}

    def scored(trial: Trial) -> bool:
        outcome = finished.get(trial.trial_id)
        return outcome is not None and set(search.metrics(trial.source)) <= {m.evaluation_key for m in outcome.measurements}

    return not all(trial.trial_id in given_up or scored(trial) for trial in plan.trials)


def _by_evaluations(search: Search, plan: CalibrationPlan) -> list[list[Trial]]:
    """Trials that are scored alike, and so can be run together: those of the source and its longer run, then those of the larger one."""
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in plan.trials:
        groups.setdefault(tuple(sorted(search.metrics(trial.source))), []).append(trial)
    return list(groups.values())


def scoring_of(search: Search, sources: Sequence[Source]) -> Scoring:
    """How a search's losses are read, at its own sources and at those of its calibration."""
    return Scoring(
        search.experiment.objective.kind, objective_weights(search.experiment), {s.key: search.metrics(s) for s in dict.fromkeys(sources)}
    )


def _conclude(search: Search, history: History, plan: CalibrationPlan, pricing: Pricing) -> Calibration:
    """What the trials of a plan show; stored, and copied to the search if it is recorded."""
    scored, finished = _with_longer(search, [plan]), finished_trials(history, plan.calibration_id)
    sources = [trial.source for trial in plan.trials]
    resources = resources_of(plan.trials, finished, search.experiment.ray.address == "in-process", pricing)
    found = analyse(plan, finished, scoring_of(scored, sources), resources)
    save(history, found)
    if plan.factory.source == search.factory.source and any(known.search_id == search.search_id for known in history.searches()):
        keep_copy(history, search.search_id, found)
    return found


# What a search knows of itself


def calibrated_by_search(search: Search, history: History) -> Calibration | None:
    """The calibration that a search uses: the stored one, or what its own first trials show, which is then stored in the same way.

    Costs nothing but a moment. None while the search has too few trials to know its noise, and of a trainer of the user's own, which is not ours to
    calibrate.
    """
    if search.experiment.trainer is not None:
        return None
    calibration_id = calibration_identity(search.factory)
    found = load(history, calibration_id)
    if found is None or found.origin == "search":
        found = _from_own_trials(search, history) or found
        if found is not None:
            if calibration_id not in {known.search_id for known in history.calibrations()}:
                history.add_search(calibration_id, search.experiment.name, search.experiment.to_yaml())
                history.set_search_state(calibration_id, "finished")
            save(history, found)
    if found is not None:
        keep_copy(history, search.search_id, found)
    return found


def _from_own_trials(search: Search, history: History) -> Calibration | None:
    experiment = search.experiment
    outcomes = {r.trial.trial_id: r.outcome for r in history.trials(search.search_id, "search") if r.outcome is not None}
    extent = Extent((1.0,), experiment.search.trials, experiment.proxy.seeds, 0, False)
    planned = plan_calibration(search.factory, extent, experiment.search.seed)
    plan = replace(
        planned,
        rates=tuple((rate, tuple(trial for trial in trials if trial.trial_id in outcomes)) for rate, trials in planned.rates),
        repeats=tuple(trial for trial in planned.repeats if trial.trial_id in outcomes),
    )
    resources = resources_of(plan.trials, outcomes, experiment.ray.address == "in-process")
    try:
        return analyse(plan, outcomes, scoring_of(search, [search.factory.source]), resources, origin="search")
    except DataError:
        return None


def sentence_of(calibration: Calibration, seeds: int) -> str:
    """What a search says of its calibration, in one line."""
    return f"Calibrated {calibration.summary(seeds)}"
