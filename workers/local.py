"""Trains trials in this process, one pack at a time, in a thread beside the caller; for tests and for machines without Ray.

Same contract as the Ray runner. The trade-off: one core, and memory that the process keeps.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from mixopt.runner import Evaluation
from workers.convert import CHECKPOINT_SECONDS
from workers.pack_runner import Job, PackRunner
from workers.packing import Device
from workers.train_pack import PackJob, TrialResult, run_pack


class LocalRunner(PackRunner["Future[list[TrialResult]]"]):
    """The Runner in process. Arguments as `PackRunner`; close it, or the process waits for its packs before it ends."""

    def __init__(
        self,
        store: Path,
        catalog: Mapping[str, Path],
        evaluations: Mapping[str, Sequence[Evaluation]],
        pack_size: int | None = None,
        device: Device = "cpu",
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        super().__init__(store, catalog, evaluations, pack_size, slots=1, device=device, checkpoint_seconds=checkpoint_seconds)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mixopt-pack")

    def _launch(self, job: Job) -> Future[list[TrialResult]]:
        assert isinstance(job, PackJob)
        return self._thread.submit(run_pack, job)

    def _wait(self, handles: Sequence[Future[list[TrialResult]]], seconds: float) -> Collection[Future[list[TrialResult]]]:
        return wait(handles, timeout=seconds, return_when=FIRST_COMPLETED).done

    def _collect(self, handle: Future[list[TrialResult]]) -> list[TrialResult]:
        return handle.result()

    def _withdraw(self, handle: Future[list[TrialResult]]) -> None:
        handle.cancel()

    def _shut_down(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
