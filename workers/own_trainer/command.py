"""Brings one trial of a user's program to its end; the function that both runners run, in process or as a Ray task.

Idempotent, as `train_pack` is: an outcome that is there is read back, a result that the program wrote before its driver died is taken, and a program that
still runs is waited for. The program may keep checkpoints in `files` of its trial's folder, which a later attempt finds. Whatever is wrong with
it becomes a typed failure that says so; only an interruption is raised.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mixopt.own_trainer.outcome import BadResultError, outcome_of, read_result, request_of
from mixopt.runner import Evaluation
from mixopt.trial import Failure, FailureKind, Outcome, Trial
from workers.control import LOOK_SECONDS, PackControl
from workers.failures import MESSAGE_CHARACTERS, failure_of
from workers.own_trainer.program import End, ProgramFolder, StillRunningError, run_program, wait_for_program
from workers.train_pack import TrialResult
from workers.trial_folder import TrialFolder, measured_at_end

CANCELLED = Failure(FailureKind.CANCELLED, "Cancelled; it begins again from what the program kept.")


@dataclass(frozen=True)
class CommandJob:
    """All that a process needs to run a program for one trial; plain data, so that it can cross to any machine that shares the store.

    Attributes:
        trials: one.
        command: program and arguments, with their placeholders.
        folder: where the program runs.
        time_limit: in seconds; None: as long as it takes.
        flops: of a trial, where its result does not say.
    """

    pack_id: str
    store: Path
    control: Path
    trials: tuple[Trial, ...]
    evaluations: tuple[Evaluation, ...]
    command: tuple[str, ...]
    folder: Path
    time_limit: float | None = None
    cpus: int = 1
    flops: float | None = None
    places: int | None = 1


def run_command(job: CommandJob) -> list[TrialResult]:
    """Brings the trial of `job` to its end, whatever an earlier attempt left behind."""
    (trial,) = job.trials
    try:
        found = _Command(job, trial).run()
    except Exception as error:  # noqa: BLE001 - whatever is wrong with this trial is its own failure, and others go on
        TrialFolder(job.store, trial.trial_id).save_traceback(traceback.format_exc())
        found = failure_of(error)
    if isinstance(found, Failure):
        return [TrialResult(trial.trial_id, failure=found)]
    return [TrialResult(trial.trial_id, outcome=found)]


class _Command:
    """One attempt at one trial."""

    def __init__(self, job: CommandJob, trial: Trial) -> None:
        self._job, self._trial = job, trial
        self._control = PackControl(job.control, job.pack_id)
        self._folder = TrialFolder(job.store, trial.trial_id)
        self._program = ProgramFolder(self._folder.path / "program")
        self._metrics = [evaluation.metric for evaluation in job.evaluations]

    def run(self) -> Outcome | Failure:
        while not self._cancelled():
            with self._folder.lock() as free:
                if free:
                    return self._done() or self._held()
            time.sleep(LOOK_SECONDS)  # another process has it
        return CANCELLED

    def _cancelled(self) -> bool:
        return bool(self._control.cancelled([self._trial.trial_id]))

    def _done(self) -> Outcome | None:
        outcome = self._folder.read_outcome()
        wanted = {evaluation.key for evaluation in self._job.evaluations}
        return outcome if outcome is not None and wanted <= measured_at_end(outcome) else None

    def _held(self) -> Outcome | Failure:
        """With nobody else at the trial but, maybe, a program whose driver is gone."""
        self._control.report({self._trial.trial_id: 0}, at_once=True)
        try:
            lock, before = wait_for_program(self._program, self._job.time_limit, self._cancelled)
        except StillRunningError as error:
            return CANCELLED if self._cancelled() else Failure(FailureKind.WORKER_LOST, str(error))
        with lock:
            if before is not None and before.how != "exited":
                return self._ended_early(before)
            earlier = self._earlier_result(before)
            return earlier if earlier is not None else self._attempt(lock)

    def _earlier_result(self, before: End | None) -> Outcome | None:
        """The result of a program whose process did not live to read it, if there is one and it can be used."""
        if not self._program.result.exists():
            return None
        try:
            return self._finish(0.0 if before is None else before.seconds)
        except BadResultError:
            self._program.put_aside("unusable")
            return None

    def _attempt(self, lock: IO[str]) -> Outcome | Failure:
        program, start = self._program, 0
        program.files.mkdir(parents=True, exist_ok=True)
        program.request.write_text(json.dumps(request_of(self._trial, program.files), indent=1) + "\n", encoding="utf-8")
        if program.stderr.exists():
            start = program.stderr.stat().st_size
        arguments = [_filled(argument, program) for argument in self._job.command]
        self._folder.log("program", command=list(self._job.command), host=socket.gethostname())
        try:
            end = run_program(program, lock, arguments, self._job.folder, self._environment(), self._job.time_limit, self._cancelled)
        except OSError as error:
            what = f"'{arguments[0]}' cannot be run in {self._job.folder} on {socket.gethostname()}: {error.strerror}."
            return Failure(FailureKind.ERROR, what[:MESSAGE_CHARACTERS])
        if end.how != "exited":
            return self._ended_early(end)
        if end.code != 0:
            program.put_aside("failed")
            self._folder.log("failed", code=end.code, seconds=round(end.seconds, 3))
            return Failure(FailureKind.PROGRAM, _with_words(_spoken_code(end.code), program.last_lines(start)))
        try:
            return self._finish(end.seconds)
        except BadResultError as error:
            program.put_aside("unusable")
            self._folder.log("unusable", reason=error.failure.message)
            return error.failure

    def _ended_early(self, end: End) -> Failure:
        """Of a program that was ended: what it had written is not used."""
        self._program.put_aside("ended")
        self._folder.log(end.how, seconds=round(end.seconds, 3))
        if end.how == "cancelled":
            return CANCELLED
        return Failure(FailureKind.TIME_LIMIT, f"The program took longer than its time limit of {self._job.time_limit:g} s and was ended.")

    def _finish(self, seconds: float) -> Outcome:
        measured = read_result(self._program.result, self._trial, self._metrics)
        outcome = outcome_of(self._trial, measured, self._job.evaluations, self._job.flops, seconds)
        self._folder.write_outcome(self._trial.spec(), outcome)
        self._folder.log("finished", seconds=round(outcome.seconds, 3))
        return outcome

    def _environment(self) -> dict[str, str]:
        paths = {"MIXOPT_REQUEST": str(self._program.request), "MIXOPT_RESULT": str(self._program.result)}
        return {**os.environ, "OMP_NUM_THREADS": str(self._job.cpus), **paths}


def _filled(argument: str, program: ProgramFolder) -> str:
    """An argument with its placeholders replaced, each once: what replaces one is not looked at again."""
    values = {
        "python": sys.executable,
        "request": str(program.request),
        "result": str(program.result),
        "folder": str(program.files),
    }
    return re.sub(r"\{([a-z]+)\}", lambda match: values.get(match[1], match[0]), argument)


def _spoken_code(code: int | None) -> str:
    if code is not None and code < 0:
        try:
            return f"The program was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"The program was killed by signal {-code}"
    return f"The program ended with code {code}"


def _with_words(what: str, words: str) -> str:
    """Cut in front, for the last words say most."""
    room = MESSAGE_CHARACTERS - len(what) - 3
    return f"{what}: {words if len(words) <= room else '...' + words[3 - room :]}" if words else f"{what} and said nothing."
