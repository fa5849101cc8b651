"""Runs an experiment from documents to answer: prepare, search, propose, verify, draw, mirror.

Every stage reads what the record already holds, so running a finished experiment again does nothing and running an interrupted one goes on.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mixopt.calibration.design import calibration_identity
from mixopt.calibration.stored import calibration_runs, with_repeats
from mixopt.components.config import EVALUATORS
from mixopt.config import Experiment
from mixopt.history import History, StageName, TrialRecord
from mixopt.objective import Objective
from mixopt.progress import Reporter, Silent
from mixopt.proposal import Proposal
from mixopt.runner import Runner, Started, TrialEvent
from mixopt.search import SearchInterrupted, SearchObserver, run_search, run_trials
from mixopt.strategies import knowing
from mixopt.strategies.base import objective_of
from mixopt.swarm import Swarm
from mixopt.tracking.first_contact import first_contact
from mixopt.trial import Trial, TrialState
from mixopt.verification import Verification, plan_verification, summarize
from workers import warm_start
from workers.beginnings import train_base
from workers.calibrate import calibrated_by_search, sentence_of
from workers.checks import check_experiment
from workers.compose import Search, compose, record_location, tracking_uri
from workers.evaluations import EVALUATION_SHARE, evaluation_cost
from workers.merged_gate import judged, known_verdict
from workers.own_trainer.exchange import refuse_untold
from workers.own_trainer.pieces import own_manifest
from workers.search_context import context
from workers.tokens.prepare import prepare


@dataclass(frozen=True)
class Finished:
    """What `run` leaves behind.

    Attributes:
        verification: None when switched off.
        trained: trials of all stages that this process trained; `averaged`: merged and ensembled ones that it scored.
        reused: those found trained: by an earlier run, by another search with this output, or meanwhile by another process.
    """

    search: Search
    proposal: Proposal
    verification: Verification | None
    trained: int
    reused: int
    averaged: int = 0


def make_runner(search: Search) -> Runner:
    """The runner that the experiment file asks for."""
    ray = search.experiment.ray
    if search.experiment.trainer is not None:
        from workers.own_trainer.runner import make_own_runner

        return make_own_runner(search)
    if ray.address == "in-process":
        from workers.local import LocalRunner

        return LocalRunner(search.store, search.catalog(), search.evaluations, pack_size=ray.pack_size)
    from workers.ray_runner import RayRunner

    return RayRunner(search.store, search.catalog(), search.evaluations, pack_size=ray.pack_size, address=ray.address, cpus=ray.cpus)


def run(
    experiment: Experiment,
    reporter: Reporter | None = None,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
) -> Finished:
    """Prepares, searches, proposes, verifies, draws and mirrors; goes on where an earlier run of the same experiment stopped.

    Raises:
        MixoptError: with exit code and remedy; what was finished before stays in the record. Of trials that run elsewhere, while some are untold.
    """
    reporter = reporter or Silent()
    check_experiment(experiment)
    _greet_tracking(experiment, reporter)
    _greet_cluster(experiment)
    manifest = prepare(experiment, reporter) if experiment.trainer is None else own_manifest(experiment)
    search = compose(experiment, manifest)
    search.folder.mkdir(parents=True, exist_ok=True)
    (search.folder / "experiment.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    with History.open(record_location(search.store)) as history:
        history.add_search(search.search_id, experiment.name, experiment.to_yaml())
        history.save_document(search.search_id, "context", context(search))
        refuse_untold(search, history)
        with mirroring(search, history, reporter):
            try:
                return _walk(search, history, reporter, observers, stop)
            except SearchInterrupted:
                raise  # the loop has recorded it
            except KeyboardInterrupt:
                # Outside the loop: while the runner starts or ends, while surrogates are fitted or figures drawn.
                history.set_search_state(search.search_id, "interrupted")
                raise SearchInterrupted("Search stopped.", "The same command goes on from here; nothing is trained twice.") from None
            except Exception:
                history.set_search_state(search.search_id, "failed")
                raise


def _greet_tracking(experiment: Experiment, reporter: Reporter) -> None:
    """Tells before anything is spent that MLflow is away; raises where it will never take the runs."""
    if experiment.tracking.enabled:
        away = first_contact(tracking_uri(experiment), experiment.tracking.experiment)
        if away is not None:
            reporter.note(away)


def _greet_cluster(experiment: Experiment) -> None:
    """Finds before a document is read that no cluster answers at `ray.address`, or that it refuses the token.

    A search that the record holds as finished needs no cluster, and a job is in its own.
    """
    from workers.ray_runner import JOB_VARIABLE, probe

    address = experiment.ray.address
    if address is None or address == "in-process" or JOB_VARIABLE in os.environ:
        return
    with History.open(record_location(experiment.output_dir)) as history:
        known = [search for search in history.searches() if search.experiment_yaml == experiment.to_yaml()]
    if not any(search.state == "finished" for search in known):
        probe(address)


def _walk(
    search: Search, history: History, reporter: Reporter, observers: Sequence[SearchObserver], stop: threading.Event | None
) -> Finished:
    if history.search(search.search_id).state == "running":
        # Its driver died without a word. What made it give up trials, a full disk say, may be mended, as when a search failed.
        history.retry_abandoned(search.search_id)
    before, work = history.completed_trials(), _TakenUp()
    observers = (*observers, work)
    search = known_verdict(search, history)
    informed = _knowing_calibration(warm_start.informed(search), history)
    # What is measured after a search has ended early is no reason to begin anew.
    answer = _recorded_answer(informed, history) or _recorded_answer(search, history)
    search = informed
    if answer is None:
        runner = make_runner(search)
        try:
            train_base(search, search.base, search.search_id, history, runner, reporter, observers, stop)
            search = warm_start.score_earlier(search, history, runner, reporter, stop)
            gated = judged(search, history, runner, reporter, observers, stop)
            if gated is not search:  # a remedy has sources of its own
                search = gated
                history.save_document(search.search_id, "context", context(search))
            _train_search(search, history, runner, reporter, observers, stop)
            calibration = calibrated_by_search(search, history)
            if calibration is not None:
                reporter.note(sentence_of(calibration, search.experiment.verification.seeds))
            with reporter.stage("Fitting surrogates", None, ""):
                proposal, objective = _propose(search, history)
            verification = _verify(search, history, proposal, objective, runner, reporter, observers, stop)
        except KeyboardInterrupt:
            # Here already, as in the loop of a search: closing the runner may take longer than a cluster waits before it kills a job.
            history.set_search_state(search.search_id, "interrupted")
            raise
        finally:
            runner.close()
    else:
        proposal, verification = answer
        reporter.note(f"Search {search.search_id[:8]} is finished; nothing is left to train.")
    history.set_search_state(search.search_id, "finished")
    write_results(search.folder, history, search.search_id, reporter)  # after the state, which it shows
    finished = {record.trial.trial_id for record in history.trials(search.search_id) if record.outcome is not None}
    averages = {record.trial.trial_id for record in history.trials(search.search_id) if record.trial.source.evaluator in EVALUATORS}
    new = finished & work.trial_ids - before
    return Finished(search, proposal, verification, len(new - averages), len(finished) - len(new), len(new & averages))


def _knowing_calibration(search: Search, history: History) -> Search:
    """The search, whose rule of stopping early knows the runs of its calibration."""
    factory = search.factory
    runs = calibration_runs(history, factory, search.metrics(factory.source), calibration_identity(factory))
    return replace(search, strategy=knowing(search.strategy, runs))


class _TakenUp:
    """Observer that remembers which trials began to be trained, or to be scored anew, in this process."""

    def __init__(self) -> None:
        self.trial_ids: set[str] = set()

    def asked(self, trials: Sequence[Trial]) -> None:
        pass

    def event(self, event: TrialEvent) -> None:
        if isinstance(event, Started):
            self.trial_ids.add(event.trial_id)

    def finished(self, record: TrialRecord) -> None:
        pass


def _search_swarm(search: Search, history: History) -> Swarm:
    every = history.swarm(search.search_id, search.domains.names, search.search_metrics, "search", search.search_curve_metrics)
    return every.without(search.left_out)


def _with_calibration(search: Search, history: History) -> Swarm:
    """The swarm of the search, and the repeats of its calibration that it has not asked for itself."""
    swarm, metrics = _search_swarm(search, history), search.metrics(search.factory.source)
    return with_repeats(history, swarm, search.factory, metrics, calibration_identity(search.factory))


def _recorded_answer(search: Search, history: History) -> tuple[Proposal, Verification | None] | None:
    """The stored answer, if nothing is left to train: saves starting a cluster to find that out."""
    if history.search(search.search_id).state != "finished":
        return None
    body, verdict = history.document(search.search_id, "proposal"), history.document(search.search_id, "verification")
    check = search.experiment.verification
    if body is None or (check.enabled and verdict is None):
        return None
    proposal = Proposal.from_json(body)
    records = history.trials(search.search_id, "search")
    abandoned = [record.trial for record in records if record.state is TrialState.ABANDONED]
    asked = [record.trial for record in records if record.state is not TrialState.ABANDONED]
    if search.strategy.ask(1, _search_swarm(search, history), [], abandoned):
        return None
    if not _all_scored(search, history, "search", asked):
        return None
    if check.enabled and not _all_scored(search, history, "verification", _verification_plan(search, proposal)):
        return None
    if not _all_scored(search, history, "base", search.bases):
        return None
    return proposal, Verification.from_json(verdict) if check.enabled and verdict is not None else None


def _all_scored(search: Search, history: History, stage: StageName, trials: Sequence[Trial]) -> bool:
    """Whether every trial has ended: completed and scored on every metric, or abandoned."""
    ended = set()
    for record in history.trials(search.search_id, stage):
        measured = {m.evaluation_key for m in record.outcome.measurements} if record.outcome else set()
        if record.state is TrialState.ABANDONED or (record.outcome and measured >= set(search.metrics(record.trial.source))):
            ended.add(record.trial.trial_id)
    return all(trial.trial_id in ended for trial in trials)


def _train_search(
    search: Search,
    history: History,
    runner: Runner,
    reporter: Reporter,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
) -> None:
    settings = search.experiment.search
    source = search.factory.source
    beside = f", or what they cost, also of {', '.join(one.key for one in search.sources[:-1])}" if len(search.sources) > 1 else ""
    reporter.note(f"Search {search.search_id[:8]}: {settings.trials} trials of {source.key}{beside}.")
    cost = evaluation_cost(search.evaluations[source.key], source.tokens)
    if cost > EVALUATION_SHARE:
        reporter.note(
            f"Measuring {len(search.evaluations[source.key])} held-out sets costs {cost:.0%} of the training of {source.tokens:,} tokens; "
            "raise `proxy.tokens` or lower `proxy.window`."
        )
    run_search(
        history,
        search.search_id,
        search.strategy,
        runner,
        domains=search.domains.names,
        metrics=search.search_metrics,
        curve_metrics=search.search_curve_metrics,
        scored_on=lambda trial: search.metrics(trial.source),
        left_out=search.left_out,
        batch=settings.batch,
        max_attempts=settings.max_attempts,
        observers=observers,
        stop=stop,
    )


def _propose(search: Search, history: History) -> tuple[Proposal, Objective]:
    """Proposal of the strategy, and the objective it was made for; the proposal is recorded."""
    swarm = _with_calibration(search, history)
    proposal = search.strategy.propose(swarm)
    more = len(swarm) - len(_search_swarm(search, history))
    if more:
        proposal = replace(proposal, evidence={**proposal.evidence, "calibration_trials": more})
    objective = objective_of(search.strategy, swarm)
    # A verdict on an earlier proposal says nothing about this one; it must not stand beside it if verification does not come to its end.
    history.save_document(search.search_id, "proposal", proposal.to_json(), outdates=["verification"])
    return proposal, objective


def _verification_plan(search: Search, proposal: Proposal) -> list[Trial]:
    domains, make = search.domains, search.verification_factory.make
    return plan_verification(proposal, domains.natural(), domains.uniform(), domains.unimax(), make, search.experiment.verification.seeds)


def _verify(
    search: Search,
    history: History,
    proposal: Proposal,
    objective: Objective,
    runner: Runner,
    reporter: Reporter,
    observers: Sequence[SearchObserver],
    stop: threading.Event | None,
) -> Verification | None:
    """Proposal, best measured mixture and baselines at the larger source, several seeds each."""
    if not search.experiment.verification.enabled:
        return None
    source, names = search.verification_factory.source, search.domains.names
    trials = _verification_plan(search, proposal)
    train_base(search, search.verification_base, search.search_id, history, runner, reporter, observers, stop)
    reporter.note(f"Verification: {len(trials)} runs of {source.key}.")
    run_trials(
        history,
        search.search_id,
        "verification",
        runner,
        trials,
        metrics=search.metrics(source),
        max_attempts=search.experiment.search.max_attempts,
        observers=observers,
        stop=stop,
    )
    swarm = history.swarm(search.search_id, names, search.metrics(source), "verification", search.curve_metrics(source))
    verification = summarize(swarm, trials, objective, lambda mixture: bool(search.space.contains(mixture.array(names)[None, :])[0]))
    history.save_document(search.search_id, "verification", verification.to_json())
    return verification


def write_results(folder: Path, history: History, search_id: str, reporter: Reporter) -> None:
    """`answer.md`, figures and report of a search, from the record alone. What cannot be drawn is said; it fails no search."""
    from mixopt.tracking.note import write_answer
    from mixopt.tracking.report.write import REPORT_NAME, write_report

    write_answer(folder / "answer.md", history, search_id)
    try:
        write_report(folder / REPORT_NAME, history, search_id, folder / "figures")
    except Exception as error:  # noqa: BLE001 - the search is done and recorded; whatever a drawing trips over must not undo that
        reporter.note(f"The report could not be written ({type(error).__name__}: {error}); `mixopt report DIR` tries again.")


@contextmanager
def mirroring(search: Search, history: History, reporter: Reporter) -> Iterator[None]:
    """Keeps the MLflow mirror up while the body runs, and completes it afterwards; MLflow's absence stops nothing."""
    if not search.experiment.tracking.enabled:
        yield
        return
    from mixopt.tracking.mlflow_mirror import MirrorThread, MlflowMirror

    mirror = MlflowMirror(history, search.search_id, tracking_uri(search.experiment), search.experiment.tracking.experiment, search.folder)
    thread = MirrorThread(mirror, interval_seconds=5.0, reporter=reporter)
    patience_seconds = 60.0
    try:
        yield
    except BaseException:
        patience_seconds = 10.0  # who stops a search, or mends what ended it, should not wait for a slow server
        raise
    finally:
        if not thread.stop(patience_seconds):
            reporter.note(f"MLflow at {mirror.shown_uri} is not complete; `mixopt mirror {search.store}` completes it.")
