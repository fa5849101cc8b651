"""What all runners share: planning packs, following them, and turning their results into events.

A subclass only starts packs and collects what they return (`local.py` in a thread, `ray_runner.py` as Ray tasks), so one contract holds for
both by construction. Everything lasting is in the trials' folders; this object can be lost at any moment.
"""

from __future__ import annotations

import abc
import uuid
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from mixopt.errors import ConfigError
from mixopt.runner import Capacity, Completed, Evaluation, Failed, Progress, Started, TrialEvent
from mixopt.trial import Failure, FailureKind, Trial
from workers.control import LOOK_SECONDS, DriverControl
from workers.convert import CHECKPOINT_SECONDS, proxy_of
from workers.failures import failure_of
from workers.packing import Device, PlannedPack, default_pack_size, plan_packs
from workers.train_pack import PackJob, TrialResult
from workers.trial_folder import TrialFolder, measured_at_end

STOP_SECONDS = 15.0
"""How long `close` waits for packs to write their checkpoints: some steps of the largest proxy on a slow core."""

Handle = TypeVar("Handle")


class Job(Protocol):
    """What a runner follows: trials that one process brings to their end."""

    @property
    def pack_id(self) -> str: ...
    @property
    def trials(self) -> tuple[Trial, ...]: ...
    @property
    def evaluations(self) -> tuple[Evaluation, ...]: ...
    @property
    def places(self) -> int | None: ...


class PackRunner(abc.ABC, Generic[Handle]):
    """The Runner protocol over packs.

    `Started` is given when a trial begins to train or to be scored; a trial that only has to be read back has none. A trial is reported when it
    ends, whatever the others of its pack do; what a pack returns counts only for those of which nothing was heard.

    Args:
        store: folder of all trials, shared by driver and workers.
        catalog: content hash of a domain -> its token file.
        evaluations: source key -> what trials of that source are scored on.
        pack_size: most trials that train together; None: by tokens per step and device.
        slots: packs at once.
    """

    def __init__(
        self,
        store: Path,
        catalog: Mapping[str, Path],
        evaluations: Mapping[str, Sequence[Evaluation]],
        pack_size: int | None,
        slots: int,
        device: Device,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self._store = Path(store).resolve()
        self._catalog = {key: Path(path).resolve() for key, path in catalog.items()}
        self._evaluations = {
            key: tuple(replace(evaluation, path=Path(evaluation.path).resolve()) for evaluation in entries)
            for key, entries in evaluations.items()
        }
        self._pack_size = pack_size
        self._slots = slots
        self._device: Device = device
        self._checkpoint_seconds = checkpoint_seconds
        self._control = DriverControl(self._store / "control" / uuid.uuid4().hex[:12])
        self._running: dict[Handle, Job] = {}
        self._open: dict[Handle, set[str]] = {}  # trials of a running pack that have not ended
        self._under_way: set[str] = set()
        self._tokens: dict[str, int] = {}
        self._events: deque[TrialEvent] = deque()
        self._closed = False

    # What a subclass provides

    @abc.abstractmethod
    def _launch(self, job: Job) -> Handle:
        """Starts a pack, or queues it behind those that run."""

    @abc.abstractmethod
    def _wait(self, handles: Sequence[Handle], seconds: float) -> Collection[Handle]:
        """The packs that have ended; waits at most so long for the first."""

    @abc.abstractmethod
    def _collect(self, handle: Handle) -> list[TrialResult]:
        """What an ended pack returned, or raises why it did not."""

    @abc.abstractmethod
    def _withdraw(self, handle: Handle) -> None:
        """Takes a pack out of the queue if it has not begun; it then ends by raising a cancellation."""

    @abc.abstractmethod
    def _shut_down(self) -> None:
        """Ends what this runner started."""

    # The protocol

    def capacity(self) -> Capacity:
        """Packs at once and trials per pack; the latter for 1,024 tokens per step where nothing else was said."""
        return Capacity(self._slots, self._pack_size or default_pack_size(1024, self._device))

    def submit(self, trials: Sequence[Trial]) -> None:
        """Starts these trials; those already under way are left alone, those already finished are reported at once.

        Raises:
            ConfigError: a trial is of a source that this runner has no evaluations for, or not of those that it trains.
        """
        assert not self._closed, "submit after close"
        for trial in trials:
            if trial.source.key not in self._evaluations:
                raise ConfigError(f"There are no evaluations for trials of {trial.source.key}.", "Give the runner one list per source.")
            self._check(trial)
        new = [trial for trial in {t.trial_id: t for t in trials}.values() if trial.trial_id not in self._under_way]
        waiting: list[Trial] = []
        for trial in new:
            outcome = TrialFolder(self._store, trial.trial_id).read_outcome()
            wanted = {evaluation.key for evaluation in self._evaluations[trial.source.key]}
            if outcome is not None and wanted <= measured_at_end(outcome):
                self._events.append(Completed(trial.trial_id, outcome))
            else:
                waiting.append(trial)
        self._start(waiting)

    def events(self) -> Iterator[TrialEvent]:
        """What happened since; blocks until something has, ends when nothing is under way. Nothing is lost when a caller leaves early."""
        while True:
            while self._events:
                yield self._events.popleft()
            if not self._running:
                return
            self._look(LOOK_SECONDS)

    def cancel(self, trial_ids: Collection[str]) -> None:
        """Asks these trials to stop; each ends in an event, `Completed` if it was done before it noticed."""
        wanted = self._under_way & set(trial_ids)
        self._control.cancel(wanted)
        for handle, job in self._running.items():
            if self._open[handle] and self._open[handle] <= wanted and not self._control.progress(job.pack_id):
                self._withdraw(handle)

    def close(self) -> None:
        """Stops what is under way after a checkpoint, and ends what this runner started. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        self.cancel(tuple(self._under_way))
        try:
            self._drain(STOP_SECONDS)
        finally:
            self._shut_down()
            self._control.close()

    # Bookkeeping

    def _check(self, trial: Trial) -> None:
        """Raises ConfigError where this runner cannot train the trial."""
        proxy_of(trial)

    def _start(self, trials: Sequence[Trial]) -> None:
        """Starts these trials in packs that fill the free slots."""
        free = max(1, self._slots - sum(map(bool, self._open.values())))
        for pack in plan_packs(trials, free, self._pack_size, self._device, busy=max(0, self._slots - free)):
            self._start_pack(pack)

    def _start_pack(self, pack: PlannedPack) -> None:
        used = {domain.content_hash for trial in pack.trials for domain in trial.domains}
        job = PackJob(
            pack_id=uuid.uuid4().hex[:12],
            store=self._store,
            control=self._control.folder,
            trials=pack.trials,
            files={key: path for key, path in self._catalog.items() if key in used},
            evaluations=self._evaluations[pack.trials[0].source.key],
            device=self._device,
            checkpoint_seconds=self._checkpoint_seconds,
            places=pack.places,
        )
        self._begin(job)

    def _begin(self, job: Job) -> None:
        for trial in job.trials:
            self._control.allow(trial.trial_id)
            self._tokens.pop(trial.trial_id, None)
        ids = {trial.trial_id for trial in job.trials}
        self._under_way |= ids
        handle = self._launch(job)
        self._running[handle], self._open[handle] = job, ids

    def _look(self, seconds: float) -> None:
        """Takes in what running packs report and ended packs returned."""
        ended = self._wait(list(self._running), seconds)
        for handle, job in self._running.items():
            self._follow(handle, job)
        for handle in ended:
            job = self._running[handle]
            for result in self._results(job, handle):
                self._close(handle, result)
            for trial in job.trials:
                if trial.trial_id in self._open[handle] and self._control.is_cancelled(trial.trial_id):
                    self._close(handle, TrialResult(trial.trial_id, failure=Failure(FailureKind.CANCELLED, "Cancelled before it began.")))
            never_begun = self._open.pop(handle)
            del self._running[handle]
            self._control.forget(job.pack_id)
            self._start([trial for trial in job.trials if trial.trial_id in never_begun])

    def _follow(self, handle: Handle, job: Job) -> None:
        """Takes in what a pack reports: how far its trials are, and which have ended."""
        for trial_id, tokens in self._control.progress(job.pack_id).items():
            if trial_id not in self._open[handle]:
                continue
            if trial_id not in self._tokens:
                self._events.append(Started(trial_id))
            if self._tokens.get(trial_id) != tokens:
                self._events.append(Progress(trial_id, tokens))
            self._tokens[trial_id] = tokens
        for trial_id, failure in self._control.ended(job.pack_id).items():
            outcome = TrialFolder(self._store, trial_id).read_outcome() if failure is None and trial_id in self._open[handle] else None
            if failure is not None or outcome is not None:  # else its file is not seen here yet; the pack will return it
                self._close(handle, TrialResult(trial_id, outcome, failure))

    def _close(self, handle: Handle, result: TrialResult) -> None:
        """Reports the end of a trial, once."""
        if result.trial_id in self._open[handle]:
            self._open[handle].remove(result.trial_id)
            self._under_way.discard(result.trial_id)
            self._events.append(_final_event(result))

    def _results(self, job: Job, handle: Handle) -> list[TrialResult]:
        """Results of the trials of an ended pack. Where the pack was lost, what its trials wrote before still counts, and those that it never
        began have none: the loss is not theirs."""
        try:
            return self._collect(handle)
        except Exception as error:  # noqa: BLE001 - whatever ended the pack becomes the typed failure of its trials
            failure = failure_of(error)
            if failure.kind is FailureKind.OUT_OF_MEMORY and (job.places or 0) > 1:
                self._pack_size = (job.places or 0) // 2  # for these trials when they are tried again, and all later ones
            lost = job.trials
            if failure.kind in (FailureKind.OUT_OF_MEMORY, FailureKind.WORKER_LOST) and not self._closed:
                # All of them if none began: what cannot even start a pack would never end.
                lost = tuple(trial for trial in job.trials if trial.trial_id in self._tokens) or job.trials
            return [self._after_loss(trial, job, failure) for trial in lost]

    def _after_loss(self, trial: Trial, job: Job, failure: Failure) -> TrialResult:
        outcome = TrialFolder(self._store, trial.trial_id).read_outcome()
        if outcome is not None and {evaluation.key for evaluation in job.evaluations} <= measured_at_end(outcome):
            return TrialResult(trial.trial_id, outcome=outcome)
        return TrialResult(trial.trial_id, failure=Failure(failure.kind, failure.message, self._tokens.get(trial.trial_id, 0)))

    def _drain(self, seconds: float) -> None:
        """Waits for cancelled packs to end."""
        waits = int(seconds / LOOK_SECONDS)
        for _ in range(waits):
            if not self._running:
                return
            self._look(LOOK_SECONDS)


def _final_event(result: TrialResult) -> TrialEvent:
    if result.outcome is not None:
        return Completed(result.trial_id, result.outcome)
    assert result.failure is not None
    return Failed(result.trial_id, result.failure)
