"""The loop of a search: ask, record, run, record.

Trials are recorded before they are submitted, and events before anything follows from them, so a driver that dies anywhere leaves a record
from which the same command goes on: finished trials are reused, the others submitted again (the runner resumes them from their
checkpoints). Strategies are pure functions of the record, so nothing else has to be saved.

The loop is asynchronous: it asks whenever the runner has a free slot, with what has finished so far; a strategy that says so is asked while the
runner is still full, so that no slot waits for it (`ask_ahead`). Main trade-off: a strategy that learns
as it goes then depends on the order in which trials end. One that wants the same result always answers [] while trials are pending, and
is asked again when they have ended.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Protocol, TypeVar

from mixopt.ask_ahead import AskAhead, Question
from mixopt.components.config import EVALUATORS
from mixopt.errors import DataError, MixoptError, RunError
from mixopt.history import History, StageName, TrialRecord
from mixopt.runner import Completed, Failed, Runner, Started, TrialEvent
from mixopt.strategies.base import Strategy, asks_ahead
from mixopt.swarm import Swarm
from mixopt.trial import Failure, FailureKind, Outcome, Trial, TrialState

logger = logging.getLogger(__name__)
T = TypeVar("T")

AVERAGES_PER_SLOT = 32
"""Trials that only average components are asked for so many at a time: they take moments, and a process reads the components once for all of them."""

# A few failures are bad luck; from this many on, more than half of all means that the experiment is at fault.
FEWEST_ABANDONED_TO_STOP = 4


def _is_average(trial: Trial) -> bool:
    return trial.source.evaluator in EVALUATORS


class SearchInterrupted(MixoptError):
    """The user stopped the search; the record is consistent."""

    exit_code = 130


class SearchObserver(Protocol):
    """Follows a search: progress bars, the mirror. An exception in an observer is logged and stops nothing.

    Called from the thread of the loop, so it should return at once.
    """

    def asked(self, trials: Sequence[Trial]) -> None:
        """These trials belong to the stage: found in the record at the start, or just recorded."""
        ...

    def event(self, event: TrialEvent) -> None:
        """The runner reported this, and what counts of it has been recorded."""
        ...

    def finished(self, record: TrialRecord) -> None:
        """A trial needs no more work: completed or abandoned, now or in an earlier run. Once per trial."""
        ...


@dataclass(frozen=True)
class SearchResult:
    """What a search has once it ends.

    Attributes:
        swarm: completed trials that are scored on every metric.
        records: all trials of the stage, in ask order.
        ended: ids of the trials that completed in this run, rather than being found completed in the record.
    """

    search_id: str
    swarm: Swarm
    records: tuple[TrialRecord, ...]
    ended: tuple[str, ...]


def run_search(
    history: History,
    search_id: str,
    strategy: Strategy,
    runner: Runner,
    domains: Sequence[str],
    metrics: Mapping[str, str],
    trials: int | None = None,
    batch: int | None = None,
    max_attempts: int = 3,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
    curve_metrics: Mapping[str, str] | None = None,
    scored_on: Callable[[Trial], Collection[str]] | None = None,
    left_out: Collection[str] = (),
) -> SearchResult:
    """Runs a recorded search to its end, going on from wherever the record stands.

    The state of the search becomes "running", and "interrupted" or "failed" when it ends that way. The caller sets "finished", because
    verification may follow.

    Args:
        domains: names of the search's domains, in the order strategies shall see.
        metrics: evaluation key -> name of each metric that strategies see.
        scored_on: the evaluation keys that a trial has to be scored on, where sources of trials differ in them; None: all of `metrics`.
        trials: most trials of the search, abandoned ones included; None: until the strategy is finished.
        batch: trials asked for at once; None: whatever fills the free slots of the runner.
        max_attempts: failures after which a trial is abandoned.
        stop: ends the search as Ctrl-C does when set; looked at whenever the runner reports something.
        left_out: ids of trials that the strategy does not see.
        curve_metrics: as for `History.swarm`: what strategies see beside, of the trials that have it.

    Raises:
        SearchInterrupted: stopped by the user.
        RunError: more than half of the trials, and at least 4, were abandoned.
        DataError: the runner reported an outcome that does not fit its trial.
    """
    every, hidden = frozenset(metrics), frozenset(left_out)
    loop = _Loop(history, search_id, "search", runner, scored_on or (lambda trial: every), max_attempts, observers, stop)

    def completed() -> Swarm:
        return history.swarm(search_id, domains, metrics, curve_metrics=curve_metrics).select(
            [key for key in loop.done if key not in hidden]
        )

    def still_allowed(count: int) -> int:
        return count if trials is None else min(count, trials - len(loop.records))

    def question(count: int) -> Question:
        """What is asked for, with what is known now: the record is read here, in the loop's own thread."""
        known = (completed(), loop.pending(), loop.abandoned())
        many = AVERAGES_PER_SLOT * runner.capacity().slots

        def ask() -> Sequence[Trial]:
            asked = strategy.ask(count, *known)
            if batch is not None or trials is not None or many <= count or not (len(asked) == count and all(map(_is_average, asked))):
                return asked
            return list(takewhile(_is_average, strategy.ask(many, *known)))

        return ask

    ahead = AskAhead()

    def propose() -> list[Trial]:
        room = loop.room()
        if room <= 0:
            next_count = still_allowed(batch or runner.capacity().pack_size)
            if asks_ahead(strategy) and not ahead.under_way and next_count > 0:
                ahead.begin(question(next_count))
            return []
        count = still_allowed(room if batch is None else batch)
        if count <= 0:
            return []
        asked = ahead.take() or list(question(count)())
        repeated = sorted(trial.trial_id for trial in asked if trial.trial_id in loop.records)
        assert not repeated, f"the strategy asked again for {repeated}"
        return asked

    try:
        loop.run(propose)
    finally:
        ahead.leave()
    return SearchResult(search_id, completed(), tuple(history.trials(search_id, "search")), tuple(loop.ended))


def run_trials(
    history: History,
    search_id: str,
    stage: StageName,
    runner: Runner,
    trials: Sequence[Trial],
    metrics: Mapping[str, str],
    max_attempts: int = 3,
    observers: Sequence[SearchObserver] = (),
    stop: threading.Event | None = None,
    anew: Collection[str] = (),
) -> list[TrialRecord]:
    """Runs these trials as part of a recorded search, such as those of its verification; returns their records, in the order given.

    Completed ones that are scored on every metric are not run, but for those in `anew`, of which something was lost. Other arguments and errors
    are those of `run_search`.
    """
    wanted = frozenset(trial.trial_id for trial in trials)
    every = frozenset(metrics)
    loop = _Loop(history, search_id, stage, runner, lambda trial: every, max_attempts, observers, stop, wanted, frozenset(anew))
    unasked = [list(trials)]
    loop.run(lambda: unasked.pop() if unasked else [])
    records = {record.trial.trial_id: record for record in history.trials(search_id, stage)}
    return [records[trial.trial_id] for trial in trials]


@dataclass
class _Loop:
    """Brings each trial of one stage of one search to an end.

    A trial is *waiting* (recorded, to be submitted), *under way* (submitted), *done* (completed and scored on every metric) or *given up*.

    Attributes:
        scored_on: evaluations that a trial has to be scored on.
        only: of the trials in the record, those to bring to an end; None: all.
        anew: trials that are run although the record holds what they measured.
        records: every trial of the stage in ask order, each as it was when the loop first saw it.
        given_up: trial id -> why.
        ended: trials that became done in this run.
    """

    history: History
    search_id: str
    stage: StageName
    runner: Runner
    scored_on: Callable[[Trial], Collection[str]]
    max_attempts: int
    observers: Sequence[SearchObserver]
    stop: threading.Event | None
    only: frozenset[str] | None = None
    anew: frozenset[str] = frozenset()
    records: dict[str, TrialRecord] = field(default_factory=dict)
    waiting: dict[str, Trial] = field(default_factory=dict)
    under_way: dict[str, Trial] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    given_up: dict[str, str] = field(default_factory=dict)
    ended: list[str] = field(default_factory=list)
    stopping: bool = False

    def pending(self) -> list[Trial]:
        return [record.trial for key, record in self.records.items() if key not in self.done and key not in self.given_up]

    def abandoned(self) -> list[Trial]:
        return [record.trial for key, record in self.records.items() if key in self.given_up]

    def room(self) -> int:
        """How many more trials fill the free slots of the runner. 0 until a whole slot is free, so that packs stay full."""
        if not self.waiting and not self.under_way:
            return max(1, self.runner.capacity().trials)
        return max(0, self._free_slots() * self.runner.capacity().pack_size - len(self.waiting))

    def run(self, propose: Callable[[], Sequence[Trial]]) -> None:
        """Until nothing is under way and `propose` has nothing to add.

        Raises:
            SearchInterrupted, RunError, DataError: as `run_search` says.
        """
        try:
            self._begin()
            self._fill(propose)
            while self.under_way:
                self._follow(propose)
        except KeyboardInterrupt:
            self._interrupt()
            raise SearchInterrupted(
                f"{self.stage.capitalize()} stopped: {len(self.done)} of the {len(self.records)} trials asked for so far are finished.",
                "The same command goes on from here; nothing is trained twice.",
            ) from None
        except Exception:
            try:
                self.runner.cancel(list(self.under_way))
            finally:
                self.history.set_search_state(self.search_id, "failed")
            raise

    def _begin(self) -> None:
        if self.history.search(self.search_id).state == "failed":
            self.history.retry_abandoned(self.search_id)
        self.history.set_search_state(self.search_id, "running")
        self._take_in()
        self._look_for_stop()

    def _follow(self, propose: Callable[[], Sequence[Trial]]) -> None:
        """Handles events until the runner has none left, submitting more as slots come free."""
        heard = False
        for event in self.runner.events():
            heard = True
            self._handle(event)
            self._look_for_stop()
            if isinstance(event, Completed | Failed):
                self._fill(propose)
        assert heard, f"the runner reports nothing of {sorted(self.under_way)}"

    def _take_in(self) -> None:
        """Learns what the record holds that this loop does not know: everything at the start, new trials later."""
        new = [r for r in self.history.trials(self.search_id, self.stage) if r.trial.trial_id not in self.records]
        if self.only is not None:
            new = [record for record in new if record.trial.trial_id in self.only]
        for observer in self.observers if new else ():
            self._guard(observer.asked, [record.trial for record in new])
        for record in new:
            trial_id = record.trial.trial_id
            self.records[trial_id] = record
            if self._is_scored(record) and trial_id not in self.anew:
                self.done.add(trial_id)
            elif record.state is TrialState.ABANDONED:
                self.given_up[trial_id] = record.failure.message if record.failure else ""
            else:
                self.waiting[trial_id] = record.trial
            self._tell_if_finished(record)

    def _fill(self, propose: Callable[[], Sequence[Trial]]) -> None:
        """Asks, records and submits until the runner is full or there is nothing to ask for."""
        while asked := propose():
            self.history.add_trials(self.search_id, asked, self.stage)
            self._take_in()
            self._submit()
        self._submit()

    def _submit(self) -> None:
        """Submits what waits once a slot is free: trials that failed one by one go out again as one pack."""
        if self.waiting and (not self.under_way or self._free_slots() > 0):
            trials = list(self.waiting.values())
            self.under_way.update(self.waiting)
            self.waiting.clear()
            self.runner.submit(trials)

    def _free_slots(self) -> int:
        capacity = self.runner.capacity()
        return (capacity.trials - len(self.under_way)) // max(1, capacity.pack_size)

    def _handle(self, event: TrialEvent) -> None:
        """Records an event, then tells the observers."""
        if isinstance(event, Started):
            self.history.mark_running([event.trial_id])
        elif isinstance(event, Completed):
            self._complete(event.outcome)
        elif isinstance(event, Failed):
            self._fail(event.trial_id, event.failure)
        for observer in self.observers:
            self._guard(observer.event, event)
        if isinstance(event, Completed | Failed):
            self._tell_if_finished(self.history.trial(self.search_id, self.stage, event.trial_id))
        if isinstance(event, Failed) and not self.stopping:
            self._stop_if_hopeless()

    def _complete(self, outcome: Outcome) -> None:
        self.history.complete(outcome)
        self.under_way.pop(outcome.trial_id, None)
        if not self._is_scored(self.history.trial(self.search_id, self.stage, outcome.trial_id)):
            raise DataError(f"Trial {outcome.trial_id} came back without some of the losses asked for.", "This is a fault of the runner.")
        self.done.add(outcome.trial_id)
        self.ended.append(outcome.trial_id)

    def _fail(self, trial_id: str, failure: Failure) -> None:
        trial = self.under_way.pop(trial_id)
        if failure.kind is FailureKind.CANCELLED and not self.stopping:
            # Somebody else ended it, from the dashboard say. Counted as an attempt, so that it cannot go on for ever.
            failure = replace(failure, kind=FailureKind.WORKER_LOST)
        if self.history.fail(trial_id, failure, self.max_attempts) is TrialState.ABANDONED:
            self.given_up[trial_id] = failure.message
        else:
            self.waiting[trial_id] = trial

    def _stop_if_hopeless(self) -> None:
        if len(self.given_up) < FEWEST_ABANDONED_TO_STOP or 2 * len(self.given_up) <= len(self.records):
            return
        message, times = Counter(self.given_up.values()).most_common(1)[0]
        raise RunError(
            f"{len(self.given_up)} of {len(self.records)} trials were abandoned, {times} of them with: {message}",
            "Mend the cause and run the same command again; what finished is kept.",
        )

    def _look_for_stop(self) -> None:
        if self.stop is not None and self.stop.is_set():
            raise KeyboardInterrupt

    def _interrupt(self) -> None:
        """Cancels what is under way and records how it ended, for some of it may have completed meanwhile.

        The state comes first: a cluster kills a job some seconds after it told it to stop, and the mirror goes by the state.
        """
        self.stopping = True
        try:
            self.history.set_search_state(self.search_id, "interrupted")
            self.runner.cancel(list(self.under_way))
            if self.under_way:
                for event in self.runner.events():
                    self._handle(event)
        except KeyboardInterrupt:
            logger.info("Interrupted again: %d trials stay recorded as running until the search goes on.", len(self.under_way))
            self.history.set_search_state(self.search_id, "interrupted")  # the second may have come before the first was recorded

    def _is_scored(self, record: TrialRecord) -> bool:
        """Whether the end point was measured on every evaluation asked for."""
        measurements = record.outcome.measurements if record.outcome else ()
        end = max((m.tokens for m in measurements), default=0)
        return bool(measurements) and set(self.scored_on(record.trial)) <= {m.evaluation_key for m in measurements if m.tokens == end}

    def _tell_if_finished(self, record: TrialRecord) -> None:
        if record.trial.trial_id in self.done or record.trial.trial_id in self.given_up:
            for observer in self.observers:
                self._guard(observer.finished, record)

    def _guard(self, tell: Callable[[T], None], what: T) -> None:
        try:
            tell(what)
        except Exception:
            logger.exception("An observer of search %s failed; the search goes on.", self.search_id)
