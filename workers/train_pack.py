"""Brings the trials of one pack to their end; the function that every runner runs, in process or as a Ray task.

Idempotent: whatever an earlier attempt left in the trials' folders is used. A finished trial is read back, one that lacks only some scores is
scored on its kept weights, an interrupted one goes on from its checkpoint. So a runner may run the same job again after any loss. Each
result is on disk before it is returned.

One member's trouble stays its own: missing data are found before training starts, and when training itself fails, the pack is split in
halves until the member that fails stands alone (which also is the remedy when a pack needs more memory than there is). The trade-off is
that a pack returns when its last member has ended.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from mixopt.errors import DataError
from mixopt.runner import Evaluation
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Trial
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
from workers.trial_folder import TrialFolder, measured_at_end

if TYPE_CHECKING:
    from proxy_models.token_store import TokenFileInfo

LOCK_PATIENCE_SECONDS = 300.0
"""A process that holds a trial and has written nothing for so long (many checkpoints) is taken for hung, and the trial for lost."""


@dataclass(frozen=True)
class PackJob:
    """All that a process needs to run a pack; plain data, so that it can cross to any machine that shares the store.

    Attributes:
        trials: of one source and recipe.
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
    """One run of a job."""

    def __init__(self, job: PackJob) -> None:
        self._job = job
        self._control = PackControl(job.control, job.pack_id)
        self._folders = {trial.trial_id: TrialFolder(job.store, trial.trial_id) for trial in job.trials}

    def run(self) -> list[TrialResult]:
        remaining = {trial.trial_id: trial for trial in self._job.trials}
        results: list[TrialResult] = []
        while remaining:
            with ExitStack() as locks:
                held = [t for t in remaining.values() if locks.enter_context(self._folders[t.trial_id].lock())]
                ended = self._bring_to_end(held) if held else self._give_up(list(remaining.values()))
            for result in ended:
                del remaining[result.trial_id]
            results += ended
            if not ended:
                time.sleep(LOOK_SECONDS)
        return results

    def _give_up(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Failures of those trials, held elsewhere, that were cancelled or whose holder seems to hang."""
        cancelled = self._control.cancelled([trial.trial_id for trial in trials])
        results = [_cancelled(trial_id) for trial_id in sorted(cancelled)]
        for trial in trials:
            folder = self._folders[trial.trial_id]
            if trial.trial_id not in cancelled and time.time() - folder.last_change() > LOCK_PATIENCE_SECONDS:
                message = f"{folder.holder()} holds this trial and has written nothing for {LOCK_PATIENCE_SECONDS:.0f} seconds."
                results.append(TrialResult(trial.trial_id, failure=Failure(FailureKind.WORKER_LOST, message)))
        return results

    def _bring_to_end(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """One result for each of these trials, whose locks are held."""
        results: list[TrialResult] = []
        untrained: list[Trial] = []
        for trial in trials:
            result = self._without_training(trial)
            if result is None:
                untrained.append(trial)
            else:
                results.append(result)
        return results + (self._train(untrained) if untrained else [])

    def _without_training(self, trial: Trial) -> TrialResult | None:
        """The result of a trial that is finished, finished but for some scores, or cannot be trained; None: it is to be trained."""
        try:
            outcome = self._scored(trial)
            if outcome is not None:
                return TrialResult(trial.trial_id, outcome=outcome)
            for stream in member_of(trial, self._job.files).domains:
                _check_tokens(stream.path, trial.tokenizer_hash, stream.key)
            for evaluation in self._job.evaluations:
                _check_tokens(evaluation.path, trial.tokenizer_hash)
        except Exception as error:  # noqa: BLE001 - the boundary at which every problem of a trial becomes its typed failure
            return self._failed(trial, error)
        return None

    def _scored(self, trial: Trial) -> Outcome | None:
        """The outcome of a trial trained earlier, with all evaluations of this job: what it lacks is measured on the kept weights.

        None if it was not trained, or its weights are gone and needed.
        """
        from proxy_models.checkpoint import DamagedCheckpoint
        from proxy_models.evaluate import score_weights

        folder = self._folders[trial.trial_id]
        outcome = folder.read_outcome()
        if outcome is None:
            return None
        missing = [e for e in self._job.evaluations if e.key not in measured_at_end(outcome)]
        if not missing:
            return outcome
        if not folder.weights_path.exists():
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
        measurements = tuple(Measurement(score.key, outcome.tokens, score.loss_nats, score.bits_per_byte) for score in scores)
        complete = replace(outcome, measurements=outcome.measurements + measurements)
        folder.write_outcome(trial.spec(), complete)
        return complete

    def _train(self, trials: Sequence[Trial]) -> list[TrialResult]:
        """Trains these trials together; without those that are cancelled meanwhile, and in halves if it cannot be done together."""
        from proxy_models.train import TrainingStopped

        cancelled = self._control.cancelled([trial.trial_id for trial in trials])
        results = [_cancelled(trial_id, self._control.tokens(trial_id)) for trial_id in sorted(cancelled)]
        trials = [trial for trial in trials if trial.trial_id not in cancelled]
        if not trials:
            return results
        try:
            return results + self._train_together(trials)
        except TrainingStopped:
            for trial in trials:
                self._folders[trial.trial_id].log("stopped", tokens=self._control.tokens(trial.trial_id))
            return results + self._train(trials)
        except Exception as error:  # noqa: BLE001 - the boundary at which every problem of a trial becomes its typed failure
            if len(trials) == 1:
                return [*results, self._failed(trials[0], error)]
            half = len(trials) // 2
            return results + self._train(trials[:half]) + self._train(trials[half:])

    def _train_together(self, trials: Sequence[Trial]) -> list[TrialResult]:
        from proxy_models.train import MemberFailure, finish, train_pack

        ids = [trial.trial_id for trial in trials]
        self._control.report({trial_id: self._control.tokens(trial_id) for trial_id in ids}, at_once=True)
        results = []
        for result in train_pack(
            proxy_of(trials[0]),
            settings_of(trials[0], self._job.checkpoint_seconds),
            [member_of(trial, self._job.files) for trial in trials],
            [evaluation_of(evaluation) for evaluation in self._job.evaluations],
            {trial_id: self._folders[trial_id].path for trial_id in ids},
            device=self._job.device,
            on_progress=self._progress_logger(),
            should_stop=lambda: bool(self._control.cancelled(ids)),
        ):
            folder = self._folders[result.member_id]
            if isinstance(result, MemberFailure):
                folder.log("failed", kind=result.kind, tokens=result.tokens)
                results.append(TrialResult(result.member_id, failure=failure_of_member(result)))
                continue
            outcome = outcome_of(result)
            folder.write_outcome(next(t for t in trials if t.trial_id == result.member_id).spec(), outcome)
            folder.log("finished", tokens=outcome.tokens)
            finish(folder.path)
            results.append(TrialResult(result.member_id, outcome=outcome))
        return results

    def _progress_logger(self) -> Callable[[Mapping[str, int]], None]:
        """Reports progress, and logs at how many tokens each member took up training."""
        begun: set[str] = set()

        def report(tokens: Mapping[str, int]) -> None:
            for trial_id in tokens.keys() - begun:
                begun.add(trial_id)
                self._folders[trial_id].log("training", tokens=tokens[trial_id])
            self._control.report(tokens)

        return report

    def _failed(self, trial: Trial, error: Exception) -> TrialResult:
        folder = self._folders[trial.trial_id]
        failure = failure_of(error, self._control.tokens(trial.trial_id))
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
