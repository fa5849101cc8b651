"""Handing trials out and taking outcomes in: what `ask` and `tell` do between the file and the record.

Both hold a lock of the output folder while they look and write, so two of them at once neither hand out one trial twice nor judge by a record that the
other changes. A trial that is handed out is recorded first, as "running"; what is not told stays pending, whoever asks next, be it another search of the
folder. The main trade-off: mixopt cannot know whether a run elsewhere still goes on; only a told row ends it.
"""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from mixopt.config import Experiment
from mixopt.errors import ConfigError, RunError
from mixopt.history import History, SearchRecord, TrialRecord
from mixopt.own_trainer.told import Told, read_rows, settle
from mixopt.swarm import Swarm
from mixopt.trial import Trial, TrialState
from workers.checks import check_experiment
from workers.compose import Search, compose, record_location
from workers.own_trainer.pieces import own_manifest, trainer_of
from workers.search_context import context

LOCK_NAME = "exchange.lock"


@dataclass(frozen=True)
class Standing:
    """Where a search stands.

    Attributes:
        records: its trials, in ask order.
        swarm: those that are scored on every metric.
        pending: those that are not, and were not abandoned.
        abandoned: those that are never tried again.
        unasked: trials of the budget that were not asked for; 0 once the strategy is finished.
        waits: the strategy was asked for them, and wants outcomes of those pending first.
    """

    records: tuple[TrialRecord, ...]
    swarm: Swarm
    pending: tuple[TrialRecord, ...]
    abandoned: tuple[TrialRecord, ...]
    unasked: int
    waits: bool = False

    @property
    def is_complete(self) -> bool:
        return not self.pending and not self.unasked


@dataclass(frozen=True)
class Handed:
    """What `ask` gives: trials, and where the search stands with them.

    Attributes:
        again: whether they were handed out before.
        shared: pending trials of the search, without those handed out now unless again -> the other searches that wait for them too.
    """

    search: Search
    trials: tuple[Trial, ...]
    standing: Standing
    again: bool
    shared: Mapping[str, Sequence[SearchRecord]]


@dataclass(frozen=True)
class Taken:
    """What `tell` has recorded, and where the search stands after it."""

    search: Search
    told: Told
    standing: Standing


def ask(experiment: Experiment, count: int, again: bool, before: Callable[[Search, Sequence[Trial]], None]) -> Handed:
    """Asks for trials to run elsewhere, and records them.

    Args:
        count: most of them; the budget may leave fewer.
        again: those that are pending, instead of further ones; all of them.
        before: called with the trials before they are recorded, to find what would keep them from being written down.

    Raises:
        ConfigError: the file has no trainer, or as `check_experiment`.
        MixoptError: whatever `before` raises; no trial is then handed out.
    """
    trainer_of(experiment, "ask")
    check_experiment(experiment)
    search = compose(experiment, own_manifest(experiment))
    with _alone(experiment), History.open(record_location(search.store)) as history:
        history.add_search(search.search_id, experiment.name, experiment.to_yaml())
        history.save_document(search.search_id, "context", context(search))
        trials = [record.trial for record in standing_of(search, history).pending] if again else _untold(search, history, count)
        before(search, trials)
        if not again:
            history.add_trials(search.search_id, trials, "search")
        history.mark_running(trial.trial_id for trial in trials)
        standing = standing_of(search, history)
        waits = not again and not trials and bool(standing.pending and standing.unasked)
        handed = {trial.trial_id for trial in trials}
        left = [record for record in standing.pending if again or record.trial.trial_id not in handed]
        return Handed(search, tuple(trials), replace(standing, waits=waits), again, _waited_for_elsewhere(left, search, history))


def tell(experiment: Experiment, text: str, name: str, replaced: bool, give_up: bool) -> Taken:
    """Takes outcomes in: all rows of a table, or none.

    Args:
        text, name: of the table, CSV or JSON lines.
        replaced, give_up: as `settle`.

    Raises:
        ConfigError: the file has no trainer.
        DataError: the table is wrong; nothing is then recorded.
    """
    trainer = trainer_of(experiment, "tell")
    check_experiment(experiment)
    search = compose(experiment, own_manifest(experiment))
    rows = read_rows(text, name, experiment.metric_names, search.domains.names)
    evaluations = search.evaluations[search.factory.source.key]
    with _alone(experiment), History.open(record_location(search.store)) as history:
        history.add_search(search.search_id, experiment.name, experiment.to_yaml())
        records = history.trials(search.search_id, "search")
        told = settle(rows, records, evaluations, replaced, give_up, trainer.flops)
        history.tell(told.outcomes, told.failures, experiment.search.max_attempts, replaced)
        return Taken(search, told, standing_of(search, history))


def standing_of(search: Search, history: History) -> Standing:
    """Where the search stands in the record."""
    records, metrics = history.trials(search.search_id, "search"), search.metrics(search.factory.source)
    scored = {record.trial.trial_id for record in records if record.outcome is not None and set(metrics) <= _measured(record)}
    swarm = history.swarm(search.search_id, search.domains.names, metrics, "search", search.curve_metrics(search.factory.source))
    abandoned = tuple(record for record in records if record.state is TrialState.ABANDONED)
    pending = tuple(r for r in records if r.trial.trial_id not in scored and r.state is not TrialState.ABANDONED)
    left = max(0, search.experiment.search.trials - len(scored) - len(pending))
    found = Standing(tuple(records), swarm.select(sorted(scored)), pending, abandoned, left)
    # A strategy may end before its budget; asking it may cost a fit, and while some are pending the answer would change nothing.
    return replace(found, unasked=0) if left and not pending and not _asked(search, found, 1) else found


def refuse_untold(search: Search, history: History) -> None:
    """Of trials that run elsewhere, `mixopt search` can only propose; and not before all are told.

    Raises:
        RunError: some are not.
    """
    trainer = search.experiment.trainer
    if trainer is None or trainer.kind != "elsewhere":
        return
    standing = standing_of(search, history)
    if not standing.is_complete:
        raise RunError(f"No proposal yet: {progress(search, standing)}.", next_step(standing))
    if history.search(search.search_id).state in ("failed", "running"):
        # Whatever kept it from proposing is no reason to hand out again what was given up.
        history.set_search_state(search.search_id, "interrupted")


def progress(search: Search, standing: Standing) -> str:
    """How far the search is, as a clause."""
    trials = search.experiment.search.trials
    parts = [f"{len(standing.swarm)} of {trials} trials are told"]
    parts += [f"{len(standing.pending)} are handed out"] if standing.pending else []
    metrics, partly = search.metrics(search.factory.source), [record for record in standing.pending if record.outcome is not None]
    lacking = sorted({metrics[key] for record in partly for key in set(metrics) - _measured(record)})
    parts += [f"{len(partly)} of them told without {', '.join(lacking)}"] if partly else []
    parts += [f"{len(standing.abandoned)} were given up"] if standing.abandoned else []
    parts += [f"{standing.unasked} {'follow once these are' if standing.waits else 'can be asked for'}"] if standing.unasked else []
    return ", ".join(parts)


def next_step(standing: Standing) -> str:
    """What to do now, as a sentence."""
    if standing.pending:
        more = " and `mixopt ask FILE` gives more, unless the strategy waits for these" if standing.unasked and not standing.waits else ""
        return f"`mixopt tell FILE results.csv` takes the outcomes, `mixopt ask FILE --again` writes those handed out again{more}."
    return "`mixopt ask FILE -n 16` hands out more." if standing.unasked else "`mixopt search FILE` proposes."


def _asked(search: Search, standing: Standing, count: int) -> list[Trial]:
    pending, abandoned = ([record.trial for record in records] for records in (standing.pending, standing.abandoned))
    return search.strategy.ask(count, standing.swarm, pending, abandoned)


def sharing(handed: Handed) -> str:
    """Which trials other searches of the output folder wait for too, as a sentence; empty where there are none."""
    if not handed.shared:
        return ""
    count, searches = len(handed.shared), {record.search_id: record.name for records in handed.shared.values() for record in records}
    names = " and ".join(f"'{name}' ({search_id[:8]})" for search_id, name in searches.items())
    others, waits = (f"searches {names}", "wait") if len(searches) > 1 else (f"search {names}", "waits")
    trials, them = ("1 trial is", "it") if count == 1 else (f"{count} trials are", "them")
    if handed.again:
        return f"{others[0].upper()}{others[1:]} {waits} for {count} of these too; what is told to one counts for all."
    return f"{trials} not handed out again, since {others} {waits} for {them} too; what is told to one counts for all."


def _untold(search: Search, history: History, count: int) -> list[Trial]:
    """The next trials to run.

    Those that another search of this output folder has become this search's, and are not run again: told ones count, those that are handed out are
    waited for, those given up are replaced. Where the other was told all that it measures and this one measures more, they are run again.
    """
    partly: list[Trial] = []
    while True:
        trials = [*partly, *_asked(search, standing_of(search, history), count - len(partly))]
        new = trials[len(partly) :]
        states = history.states([trial.trial_id for trial in new])
        found = [trial for trial in new if states.get(trial.trial_id) in (TrialState.COMPLETED, TrialState.RUNNING, TrialState.ABANDONED)]
        if not found:
            return trials
        history.add_trials(search.search_id, found, "search")
        pending = {record.trial.trial_id: record for record in standing_of(search, history).pending}
        lacking = [trial for trial in found if trial.trial_id in pending and states[trial.trial_id] is TrialState.COMPLETED]
        partly += [trial for trial in lacking if not _comes_from_another(pending[trial.trial_id], search, history)]


def _waited_for_elsewhere(records: Sequence[TrialRecord], search: Search, history: History) -> dict[str, list[SearchRecord]]:
    """Trial id -> other searches that lack one of their metrics of it; without trials of which there are none."""
    others = history.others_of(search.search_id, [record.trial.trial_id for record in records])
    found = {}
    for record in records:
        trial_id = record.trial.trial_id
        found[trial_id] = [one for one in others.get(trial_id, ()) if _metrics_of(one, history) - _measured(record)]
    return {trial_id: waiting for trial_id, waiting in found.items() if waiting}


def _comes_from_another(record: TrialRecord, search: Search, history: History) -> bool:
    """Whether one other search measures all that this one lacks of a trial."""
    lacks = set(search.metrics(search.factory.source)) - _measured(record)
    waiting = _waited_for_elsewhere([record], search, history).get(record.trial.trial_id, ())
    return any(lacks <= _metrics_of(one, history) for one in waiting)


def _metrics_of(record: SearchRecord, history: History) -> set[str]:
    return set((history.document(record.search_id, "context") or {}).get("metrics", ()))


def _measured(record: TrialRecord) -> set[str]:
    outcome, end = record.outcome, record.trial.source.tokens
    return {m.evaluation_key for m in outcome.measurements if m.tokens == end} if outcome is not None else set()


@contextmanager
def _alone(experiment: Experiment) -> Iterator[None]:
    """While no other process hands out or takes in trials of this output folder.

    Raises:
        ConfigError: the folder cannot be locked.
    """
    with (experiment.output_dir / LOCK_NAME).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise ConfigError(
                f"'output' is {experiment.output_dir}, which cannot be locked ({error.strerror}).", "Name another."
            ) from error
        yield
