"""What becomes of the trials of a pack that was lost: done is done, and a pack that needed too much memory is tried in smaller ones."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from mixopt.mixture import Mixture, Schedule
from mixopt.runner import Completed, Evaluation, Failed
from mixopt.trial import Failure, FailureKind, Measurement, Outcome, Source, Trial, TrialDomain
from workers.control import PackControl
from workers.pack_runner import PackRunner
from workers.train_pack import PackJob, TrialResult
from workers.trial_folder import TrialFolder

SOURCE = Source("trained", "nano", 4096)
EVALUATION = Evaluation("key", "valid/a", "text", Path("valid.tokens"), max_tokens=512)


class LosingRunner(PackRunner[str]):
    """Launches nothing; every pack ends at once, by raising `error`."""

    def __init__(self, store: Path, error: Exception, pack_size: int | None = None) -> None:
        super().__init__(store, {}, {SOURCE.key: [EVALUATION]}, pack_size, slots=1, device="cpu", checkpoint_seconds=60)
        self.error = error
        self.jobs: list[PackJob] = []

    def _launch(self, job: PackJob) -> str:
        self.jobs.append(job)
        return job.pack_id

    def _wait(self, handles: Sequence[str], seconds: float) -> Collection[str]:
        return handles

    def _collect(self, handle: str) -> list[TrialResult]:
        raise self.error

    def _withdraw(self, handle: str) -> None: ...

    def _shut_down(self) -> None: ...


class WorkerCrashedError(Exception):
    """As Ray's is called; failures are told apart by name."""


@pytest.fixture
def trials() -> list[Trial]:
    schedule = Schedule.constant(Mixture.of({"a": 0.5, "b": 0.5}))
    domains = tuple(TrialDomain(name, f"content-{name}", 2048) for name in "ab")
    return [
        Trial(
            f"trial-{seed}", schedule, SOURCE, seed, {"tokens_per_step": 1024, "window": 512, "vocab_size": 512}, domains, "tokenizer", "1"
        )
        for seed in range(4)
    ]


def outcome(trial: Trial, key: str = "key") -> Outcome:
    return Outcome(trial.trial_id, {"content-a": (0.5,), "content-b": (0.5,)}, (Measurement(key, 4096, 2.0, 3.0),), 4096, 1e9, 1.0)


def test_what_a_lost_pack_had_finished_counts(tmp_path: Path, trials: list[Trial]) -> None:
    """The process died after it wrote some results, and before it returned: those trials are complete, without another attempt."""
    runner = LosingRunner(tmp_path, WorkerCrashedError("gone"))
    runner.submit(trials)
    TrialFolder(tmp_path, trials[1].trial_id).write_outcome({"trial_id": trials[1].trial_id}, outcome(trials[1]))
    TrialFolder(tmp_path, trials[2].trial_id).write_outcome({"trial_id": trials[2].trial_id}, outcome(trials[2], "another set"))
    ends = {event.trial_id: event for event in runner.events()}
    assert ends[trials[1].trial_id] == Completed(trials[1].trial_id, outcome(trials[1]))
    for trial in (trials[0], trials[2], trials[3]):  # the third lacks a loss that was asked for
        end = ends[trial.trial_id]
        assert isinstance(end, Failed)
        assert end.failure.kind is FailureKind.WORKER_LOST
    runner.close()


def test_a_pack_out_of_memory_is_tried_again_with_half_its_places(tmp_path: Path, trials: list[Trial]) -> None:
    runner = LosingRunner(tmp_path, MemoryError(), pack_size=4)
    sizes = []
    for _ in range(4):
        runner.submit(trials)
        assert {event.failure.kind for event in runner.events() if isinstance(event, Failed)} == {FailureKind.OUT_OF_MEMORY}
        sizes.append([(len(job.trials), job.places) for job in runner.jobs])
        runner.jobs.clear()
    assert sizes == [[(4, 4)], [(4, 2)], [(4, 1)], [(4, 1)]], "one slot: one pack with fewer places"
    runner.close()


def test_a_lost_worker_leaves_packs_as_they_are(tmp_path: Path, trials: list[Trial]) -> None:
    runner = LosingRunner(tmp_path, WorkerCrashedError("gone"), pack_size=4)
    for _ in range(2):
        runner.submit(trials)
        assert len(list(runner.events())) == 4
    assert [len(job.trials) for job in runner.jobs] == [4, 4]
    runner.close()


def test_what_a_pack_told_before_it_was_lost_counts_once(tmp_path: Path, trials: list[Trial]) -> None:
    """One place: the first trial completed, the second diverged, the third was in training; the fourth had not begun."""
    runner = LosingRunner(tmp_path, WorkerCrashedError("gone"), pack_size=1)
    runner.submit(trials)
    (job,) = runner.jobs
    pack = PackControl(job.control, job.pack_id)
    TrialFolder(tmp_path, trials[0].trial_id).write_outcome({"trial_id": trials[0].trial_id}, outcome(trials[0]))
    pack.end(trials[0].trial_id, None)
    pack.end(trials[1].trial_id, Failure(FailureKind.DIVERGED, "Training loss became nan.", 1024))
    pack.report({trial.trial_id: 2048 for trial in trials[:3]}, at_once=True)
    events = runner.events()
    ends = [event for event in itertools.islice(events, 9) if isinstance(event, Completed | Failed)]
    assert ends[:2] == [
        Completed(trials[0].trial_id, outcome(trials[0])),
        Failed(trials[1].trial_id, Failure(FailureKind.DIVERGED, "Training loss became nan.", 1024)),
    ]
    (lost,) = ends[2:]
    assert isinstance(lost, Failed)
    assert (lost.trial_id, lost.failure.kind, lost.failure.tokens) == (trials[2].trial_id, FailureKind.WORKER_LOST, 2048)
    assert [trial.trial_id for trial in runner.jobs[1].trials] == [trials[3].trial_id], "it goes on without having failed"
    (last,) = [event for event in events if isinstance(event, Failed)]
    assert last.trial_id == trials[3].trial_id, "and fails if it is lost again before it began"
    runner.close()


def test_a_trial_cancelled_before_its_pack_was_lost_is_not_started_anew(tmp_path: Path, trials: list[Trial]) -> None:
    """The first was in training, the others waited; one of those was cancelled, and the pack died before it noticed."""
    runner = LosingRunner(tmp_path, WorkerCrashedError("gone"), pack_size=1)
    runner.submit(trials)
    (job,) = runner.jobs
    PackControl(job.control, job.pack_id).report({trials[0].trial_id: 2048}, at_once=True)
    runner.cancel([trials[2].trial_id])
    kinds = {event.trial_id: event.failure.kind for event in itertools.islice(runner.events(), 4) if isinstance(event, Failed)}
    assert kinds == {trials[0].trial_id: FailureKind.WORKER_LOST, trials[2].trial_id: FailureKind.CANCELLED}
    assert [trial.trial_id for trial in runner.jobs[1].trials] == [trials[1].trial_id, trials[3].trial_id]
    runner.submit([trials[2]])
    assert [trial.trial_id for trial in runner.jobs[2].trials] == [trials[2].trial_id], "submitted again it counts as any other"
    runner.close()
