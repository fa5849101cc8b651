"""Brings the trials of one pack to their end; the function that every runner runs, in process or as a Ray task.

Idempotent: whatever an earlier attempt left in the trials' folders is used. A finished trial is read back, one that lacks only some scores is
scored on its kept weights, an interrupted one goes on from its checkpoint. So a runner may run the same job again after any loss. Each
result is on disk, and told to the driver, as soon as its trial ends.

A trial is held only while it trains, so that those who wait for a place can be taken by another process. One trial's trouble stays its own:
missing data are found before any training, what only one member runs into ends that member, and when training itself fails, those that trained
together are split in halves until the one at fault stands alone. With too little memory, fewer train together from then on. The trade-off:
a trial that another process holds is looked at again only when this pack has nothing else to do.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mixopt.components.config import EVALUATORS
from mixopt.errors import DataError
from mixopt.runner import Evaluation
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Trial
from workers.averages import PLACES, score_averages, with_earlier
from workers.beginnings import lost_parent
from workers.control import LOOK_SECONDS, PackControl
from workers.convert import (
    CHECKPOINT_SECONDS,
    evaluation_of,
    failure_of_member,
    member_of,
    outcome_of,
    proxy_of,
    settings_of,
)
from workers.failures import failure_of
from workers.packing import Device
from workers.peak_memory import PeakMemory
from workers.trial_folder import TrialFolder, measured_at_end

if TYPE_CHECKING:
    from proxy_models.token_store import TokenFileInfo
    from proxy_models.train import MemberOutcome, MemberResult

LOCK_PATIENCE_SECONDS = 300.0
"""A process that holds a trial and has written nothing for so long (many checkpoints) is taken for hung, and the trial for lost."""


@dataclass(frozen=True)
class PackJob:
    """All that a process needs to run a pack; plain data, so that it can cross to any machine that shares the store.

    Attributes:
        trials: of one source and recipe, but for the learning rate.
        places: most of them that train together; None: all.
        files: content hash of a domain -> its token file.
        evaluations: what every trial is scored on.
        control: folder in which the driver follows and cancels the pack.
    """

    pack_id: str
    store: Path
    control: Path
    trials: tuple[Trial, ...]
    files: Mapping[str, Path]
    evaluations: tuple[Evaluation, ...]
    device: Device = "cpu"
    checkpoint_seconds: float = CHECKPOINT_SECONDS
    places: int | None = None


@dataclass(frozen=True)
class TrialResult:
    """How one trial ended: exactly one of the two is set."""

    trial_id: str
    outcome: Outcome | None = None
    failure: Failure | None = None

    def __post_init__(self) -> None:
        assert (self.outcome is None) != (self.failure is None), self.trial_id


def run_pack(job: PackJob) -> list[TrialResult]:
    """Brings every trial of `job` to its end, whatever an earlier attempt left behind; one result per trial.

    Trials that another process holds are taken up when it lets go of them. Problems come back as failures; only an interruption is raised.
    """
    with _one_thread():
        return _Pack(job).run()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Torch on one thread: a process per core is 1.2 to 1.5 times faster than threads, and Ray reuses workers with whatever count they had."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Pack:
    """One run of a job.

    Attributes of its own: `_remaining`, trials without a result, by id; `_held`, locks of the trials in training.
    """

    def __init__(self, job: PackJob) -> None:
        self._job = job
        self._control = PackControl(job.control, job.pack_id)
        self._folders = {trial.trial_id: TrialFolder(job.store, trial.trial_id) for trial in job.trials}
        self._places = job.places or len(job.trials)
        self._remaining = {trial.trial_id: trial for trial in job.trials}
        self._held: dict[str, ExitStack] = {}
        self._results: list[TrialResult] = []
        self._memory: PeakMemory | None = None  # of those that train together
        self._begun: set[str] = set()  # of these, the trials that have taken a step here

    def run(self) -> list[TrialResult]:
        for trial_id, failure in self._control.failed().items():
            if self._remaining.pop(trial_id, None) is not None:  # told by an earlier process; its driver may have submitted it anew
                self._results.append(TrialResult(trial_id, failure=failure))
        try:
            while self._remaining:
                before = len(self._results)
                self._train(self._untrained())
                if len(self._results) == before:
                    self._give_up()
                if len(self._results) == before:
                    time.sleep(LOOK_SECONDS)
        finally:
            self._release(list(self._held))
        return self._results

    def _end(self, result: TrialResult) -> None:
        """Lets go of a trial and tells how it ended; what lasts of it is on disk."""
        del self._remaining[result.trial_id]
        self._results.append(result)
        self._release([result.trial_id])
        self._control.end(result.trial_id, result.failure)

    def _release(self, trial_ids: Collection[str]) -> None:
        for trial_id in trial_ids:
            if trial_id in self._held:
                self._held.pop(trial_id).close()

    def _give_up(self) -> None:
        """Ends trials that are held elsewhere by somebody who seems to hang."""
        for trial in list(self._remaining.values()):
            folder = self._folders[trial.trial_id]
            if time.time() - folder.last_change() > LOCK_PATIENCE_SECONDS:
                message = f"{folder.holder()} holds this trial and has written nothing for {LOCK_PATIENCE_SECONDS:.0f} seconds."
                self._end(TrialResult(trial.trial_id, failure=Failure(FailureKind.WORKER_LOST, message)))

    def _untrained(self) -> list[Trial]:
        """The trials that have to be trained and that nobody else holds; those that are cancelled, finished or cannot be trained are ended."""
        untrained = []
        for trial in list(self._remaining.values()):
            if self._control.cancelled([trial.trial_id]):
                self._end(_cancelled(trial.trial_id, self._control.tokens(trial.trial_id)))
            elif self._take(trial):
                untrained.append(trial)
                self._release([trial.trial_id])
        return untrained

    def _take(self, trial: Trial) -> bool:
        """Holds a trial that has to be trained; False: another process does, or it has ended without training."""
        held = ExitStack()
        try:
            free = held.enter_context(self._folders[trial.trial_id].lock())
        except OSError as error:
            self._end(TrialResult(trial.trial_id, failure=failure_of(error)))
            return False
        if not free:
            held.close()
            return False
        self._held[trial.trial_id] = held
        result = self._without_training(trial)
        if result is not None:
            self._end(result)
        return result is None

    def _without_training(self, trial: Trial) -> TrialResult | None:
        """The result of a trial that is finished, finished but for some scores, or cannot be trained; None: it is to be trained."""
        try:
            outcome = self._scored(trial)
            if outcome is not None:
                return TrialResult(trial.trial_id, outcome=outcome)
            if trial.source.evaluator not in EVALUATORS:
                for stream in member_of(trial, self._job.files, self._parents(trial)).domains:
                    _check_tokens(stream.path, trial.tokenizer_hash, stream.key)
            for parent, path in self._parents(trial).items():
                _check_parent(parent, path)
            for evaluation in self._job.evaluations:
                _check_tokens(evaluation.path, trial.tokenizer_hash)
        except Exception as error:  # noqa: BLE001 - the boundary at which every problem of a trial becomes its typed failure
            return self._failed(trial, error)
        return None

    def _parents(self, trial: Trial) -> dict[str, Path]:
        """Weights of the trials that this one begins with."""
        return {parent: TrialFolder(self._job.store, parent).weights_path for parent in trial.inputs}

    def _scored(self, trial: Trial) -> Outcome | None:
        """The outcome of a trial trained earlier, with all evaluations of this job: what it lacks is measured on the kept weights.

        None if it was not trained, or its weights are gone and needed.
        """
        from proxy_models.checkpoint import DamagedCheckpoint
        from proxy_models.evaluate import score_weights, with_curve_rows

        folder = self._folders[trial.trial_id]
        outcome = folder.read_outcome()
        if outcome is None:
            return None
        missing = [e for e in self._job.evaluations if e.key not in measured_at_end(outcome)]
        if not missing:
            return outcome
        if not folder.weights_path.exists() or trial.source.evaluator in EVALUATORS:  # averages are had from their components
            return None
        for evaluation in missing:
            _check_tokens(evaluation.path, trial.tokenizer_hash)
        self._control.report({trial.trial_id: outcome.tokens}, at_once=True)
        folder.log("scoring", evaluations=len(missing))
        specs, window = [evaluation_of(evaluation) for evaluation in missing], int(trial.recipe["window"])
        try:
            scores = score_weights(proxy_of(trial), folder.weights_path, specs, window, self._job.device)
        except DamagedCheckpoint:
            return None
        measurements = tuple(
            Measurement(score.key, outcome.tokens, score.loss_nats, score.bits_per_byte) for score in with_curve_rows(scores)
        )
        complete = replace(outcome, measurements=outcome.measurements + measurements)
        folder.write_outcome(trial.spec(), complete)
        return complete

    def _train(self, trials: Sequence[Trial]) -> None:
        """Trains these trials; when training itself fails, it goes on with fewer together, until it is known which trial is at fault."""
        parts = [list(trials)]
        while parts:
            part = [trial for trial in parts.pop(0) if trial.trial_id in self._remaining]
            try:
                if part:
                    self._train_together(part)
            except Exception as error:  # noqa: BLE001 - the boundary at which every problem of a trial becomes its typed failure
                traceback.clear_frames(error.__traceback__)  # they hold the pack, whose memory is needed for what follows
                parts[:0] = self._narrowed(part, error)

    def _narrowed(self, trials: Sequence[Trial], error: Exception) -> list[list[Trial]]:
        """How to go on with these trials, whose training failed with `error`: what to train one after the other."""
        trials = [trial for trial in trials if trial.trial_id in self._remaining]
        if not trials:
            return []  # all had ended before
        together = [trial for trial in trials if trial.trial_id in self._held] or trials  # all: it did not come to training
        rest = [trial for trial in trials if trial not in together]
        self._release([trial.trial_id for trial in together])
        memory = failure_of(error).kind is FailureKind.OUT_OF_MEMORY
        if len(together) == 1 or (memory and self._places == 1):
            self._end(self._failed(together[0], error))
            return [[*together[1:], *rest]]
        if memory:
            self._places = min(self._places, len(together)) // 2
            return [[*together, *rest]]
        half = len(together) // 2
        return [together[:half], together[half:], rest]

    def _train_together(self, trials: Sequence[Trial]) -> None:
        from proxy_models.train import train_pack

        self._memory, self._begun = PeakMemory(self._job.device), set()
        if trials[0].source.evaluator in EVALUATORS:
            self._average(trials)
            return
        train_pack(
            proxy_of(trials[0]),
            settings_of(trials[0], self._job.checkpoint_seconds),
            [member_of(trial, self._job.files, self._parents(trial)) for trial in trials],
            [evaluation_of(evaluation) for evaluation in self._job.evaluations],
            {trial.trial_id: self._folders[trial.trial_id].path for trial in trials},
            device=self._job.device,
            on_progress=self._progress,
            should_stop=self._control.cancelled,
            places=self._places,
            admit=self._admit,
            on_outcome=self._hear,
        )

    def _average(self, trials: Sequence[Trial]) -> None:
        """Scores merged or ensembled trials, as many at a time as there are places; who is cancelled meanwhile is left to the next look."""
        places = min(self._places, PLACES)
        for first in range(0, len(trials), places):
            if self._control.cancelled([trial.trial_id for trial in trials]):
                return
            admitted = [trial for trial in trials[first : first + places] if self._admit(trial.trial_id)]
            if not admitted:
                continue
            scored = score_averages(admitted, self._job.store, self._job.evaluations, self._job.device)
            for trial, (outcome, folds) in zip(admitted, scored, strict=True):
                folder = self._folders[trial.trial_id]
                folder.add_folds(folds)
                self._end(self._written(trial, with_earlier(outcome, folder.read_outcome())))

    def _admit(self, trial_id: str) -> bool:
        """Whether a trial whose turn has come is to be trained: meanwhile another process may have done so, or its data may be gone."""
        if not self._take(self._remaining[trial_id]):
            return False
        self._control.report({trial_id: self._control.tokens(trial_id)}, at_once=True)
        return True

    def _hear(self, outcome: MemberOutcome) -> None:
        """Takes in how a member ended."""
        from proxy_models.train import MemberFailure, MemberStopped

        trial = self._remaining[outcome.member_id]
        folder = self._folders[trial.trial_id]
        tokens = max(outcome.tokens, self._control.tokens(trial.trial_id)) if isinstance(outcome, MemberStopped) else outcome.tokens
        if isinstance(outcome, MemberStopped):
            if trial.trial_id in self._held:
                folder.log("stopped", tokens=tokens)
            self._end(_cancelled(trial.trial_id, tokens))
        elif isinstance(outcome, MemberFailure) and outcome.error is not None:
            self._end(self._failed(trial, outcome.error, tokens))
        elif isinstance(outcome, MemberFailure):
            folder.log("failed", kind=outcome.kind, tokens=tokens)
            self._end(TrialResult(trial.trial_id, failure=failure_of_member(outcome)))
        else:
            self._end(self._stored(trial, outcome))

    def _stored(self, trial: Trial, result: MemberResult) -> TrialResult:
        """Writes the outcome of a trained trial to its folder."""
        outcome = outcome_of(result)
        if self._memory is not None and trial.trial_id in self._begun:  # else an earlier process trained it, and did not come to store it
            outcome = replace(outcome, diagnostics={**outcome.diagnostics, "memory": self._memory.to_json()})
        return self._written(trial, outcome)

    def _written(self, trial: Trial, outcome: Outcome) -> TrialResult:
        """With the outcome in the trial's folder."""
        from proxy_models.train import finish

        folder = self._folders[trial.trial_id]
        try:
            folder.write_outcome(trial.spec(), outcome)
            folder.log("finished", tokens=outcome.tokens)
            finish(folder.path)
        except OSError as error:
            return self._failed(trial, error, outcome.tokens)
        return TrialResult(trial.trial_id, outcome=outcome)

    def _progress(self, tokens: Mapping[str, int]) -> None:
        """Reports progress, and logs at how many tokens each member took up training."""
        for trial_id in tokens.keys() - self._begun:
            self._begun.add(trial_id)
            self._folders[trial_id].log("training", tokens=tokens[trial_id])
        if self._memory is not None:
            self._memory.trained_together(len(tokens))
        self._control.report(tokens)

    def _failed(self, trial: Trial, error: Exception, tokens: int | None = None) -> TrialResult:
        folder = self._folders[trial.trial_id]
        failure = failure_of(error, self._control.tokens(trial.trial_id) if tokens is None else tokens)
        folder.save_traceback("".join(traceback.format_exception(error)))
        folder.log("failed", kind=failure.kind.value, tokens=failure.tokens)
        return TrialResult(trial.trial_id, failure=failure)


def _check_tokens(path: Path, tokenizer_hash: str, content_hash: str | None = None) -> None:
    """Compares a token file with its checksum and with what the trial's identity says it trains on.

    Another search that shares the folder may have prepared the same name anew, with other documents or another tokenizer.

    Raises:
        DataError: it holds other documents, or tokens of another tokenizer.
        DamagedTokenFile, FileNotFoundError
    """
    info = _verified(path, path.stat().st_mtime_ns)
    if info.tokenizer_hash != tokenizer_hash or content_hash not in (None, info.content_hash):
        what = "tokens of another tokenizer" if info.tokenizer_hash != tokenizer_hash else "other documents"
        raise DataError(
            f"{path} now holds {what} than this trial was asked for.",
            "Run the search again: it prepares the file anew; give experiments with other documents or tokenizers an `output` of their own.",
        )


def _check_parent(trial_id: str, path: Path) -> None:
    """Reads the weights that a trial begins with, once per process and version of the file.

    Raises:
        DataError: they are missing or damaged.
    """
    try:
        damaged = _damage(path, path.stat().st_mtime_ns)
    except FileNotFoundError:
        raise lost_parent(trial_id, "missing") from None
    if damaged:
        raise lost_parent(trial_id, "damaged")


@lru_cache(maxsize=64)
def _damage(path: Path, mtime_ns: int) -> bool:
    from proxy_models.checkpoint import DamagedCheckpoint, load_checkpoint

    try:
        load_checkpoint(path)
    except DamagedCheckpoint:
        return True
    return False


@lru_cache(maxsize=1024)
def _verified(path: Path, mtime_ns: int) -> TokenFileInfo:
    """What a token file holds; its checksum is compared once per process and version of the file.

    Raises:
        DamagedTokenFile, FileNotFoundError
    """
    from proxy_models.token_store import TokenStore

    store = TokenStore.open(path)
    store.verify()
    return store.info


def _cancelled(trial_id: str, tokens: int = 0) -> TrialResult:
    return TrialResult(trial_id, failure=Failure(FailureKind.CANCELLED, "Cancelled; it goes on from its checkpoint.", tokens))
