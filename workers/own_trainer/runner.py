"""Runners of the user's own program: one program per trial, in threads of this process or as Ray tasks.

What a runner is (following, cancelling, reading back) is `PackRunner`'s; here is only that a trial is a job of its own. In process each program waits in
a thread; on Ray each is a task that asks for its cores and GPUs.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.errors import ConfigError, RunError
from mixopt.own_trainer.config import TrainerConfig
from mixopt.runner import Capacity, Evaluation, Runner, TrialEvent
from mixopt.trial import Trial
from workers.local import LocalRunner
from workers.own_trainer.command import CommandJob, run_command
from workers.pack_runner import Job, PackRunner
from workers.packing import Device
from workers.ray_runner import MAX_RETRIES, RayRunner
from workers.train_pack import TrialResult

if TYPE_CHECKING:
    from workers.compose import Search

EVALUATOR = "command"


class _Commands(PackRunner[Any]):
    """What both share. A subclass sets `_trainer` before anything else."""

    _trainer: TrainerConfig

    def capacity(self) -> Capacity:
        return Capacity(self._slots, 1)

    def _check(self, trial: Trial) -> None:
        if trial.source.evaluator != EVALUATOR:
            raise ConfigError(f"Trial {trial.trial_id} asks for the evaluator '{trial.source.evaluator}'.", "This runner runs a command.")

    def _start(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            self._begin(self._job(trial))

    def _job(self, trial: Trial) -> CommandJob:
        trainer = self._trainer
        assert trainer.command is not None
        return CommandJob(
            pack_id=uuid.uuid4().hex[:12],
            store=self._store,
            control=self._control.folder,
            trials=(trial,),
            evaluations=self._evaluations[trial.source.key],
            command=trainer.command,
            folder=Path(trainer.folder or "."),
            time_limit=trainer.time_limit,
            cpus=trainer.cpus,
            flops=trainer.flops,
        )


class LocalCommandRunner(_Commands, LocalRunner):
    """Programs beside each other on this machine, as many as there are cores for them; one that wants a GPU has the machine for itself.

    Args:
        store, evaluations: as `PackRunner`.
        cpus: cores to use; None: all.
    """

    def __init__(
        self, store: Path, evaluations: Mapping[str, Sequence[Evaluation]], trainer: TrainerConfig, cpus: int | None = None
    ) -> None:
        self._trainer = trainer
        super().__init__(store, {}, evaluations)
        self._thread.shutdown()
        self._slots = 1 if trainer.gpus else max(1, (cpus or os.cpu_count() or 1) // trainer.cpus)
        self._thread = ThreadPoolExecutor(max_workers=self._slots, thread_name_prefix="mixopt-program")

    def _launch(self, job: Job) -> Future[list[TrialResult]]:
        assert isinstance(job, CommandJob)
        return self._thread.submit(run_command, job)


class RayCommandRunner(_Commands, RayRunner):
    """Programs as tasks of a Ray cluster.

    Args:
        store, evaluations: as `PackRunner`.
        address, cpus: as `RayRunner`.

    Raises:
        RunError: the cluster does not answer, or has fewer cores or GPUs than one trial takes.
    """

    def __init__(
        self,
        store: Path,
        evaluations: Mapping[str, Sequence[Evaluation]],
        trainer: TrainerConfig,
        address: str | None = None,
        cpus: int | None = None,
    ) -> None:
        self._trainer = trainer
        super().__init__(store, {}, evaluations, address=address, cpus=cpus)
        self._task = self._ray.remote(
            num_cpus=trainer.cpus,
            num_gpus=trainer.gpus,
            max_retries=MAX_RETRIES,
            retry_exceptions=False,
        )(run_command)

    def _resources(self) -> tuple[Device, int]:
        resources, trainer = self._ray.cluster_resources(), self._trainer
        cores, gpus = int(resources.get("CPU", 0)), float(resources.get("GPU", 0))
        slots = min(cores // trainer.cpus, int(gpus / trainer.gpus) if trainer.gpus else cores)
        if slots < 1:
            raise RunError(
                f"A trial takes {trainer.cpus} cores and {trainer.gpus:g} GPUs; the Ray cluster has {cores} and {gpus:g}.",
                "Lower `trainer.cpus` or `trainer.gpus`, or start more nodes.",
            )
        return "cpu", slots


class NobodyRunner:
    """Of trials that run elsewhere, once all of them are told: there is nothing to run."""

    def capacity(self) -> Capacity:
        return Capacity(1, 1)

    def submit(self, trials: Sequence[Trial]) -> None:
        raise RunError(
            f"{len(trials)} trials run elsewhere and are not told.",
            "`mixopt ask FILE --again` writes them down, `mixopt tell FILE` takes them.",
        )

    def events(self) -> Iterator[TrialEvent]:
        return iter(())

    def cancel(self, trial_ids: Collection[str]) -> None:
        return None

    def close(self) -> None:
        return None


def make_own_runner(search: Search) -> Runner:
    """The runner of an experiment with a trainer."""
    trainer, ray = search.experiment.trainer, search.experiment.ray
    assert trainer is not None
    if trainer.kind == "elsewhere":
        return NobodyRunner()
    if ray.address == "in-process":
        return LocalCommandRunner(search.store, search.evaluations, trainer, cpus=ray.cpus)
    return RayCommandRunner(search.store, search.evaluations, trainer, address=ray.address, cpus=ray.cpus)
