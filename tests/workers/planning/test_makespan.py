"""The planned packs are those that the real loop and the real runner would start, and their times add up."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.proposal import Proposal
from mixopt.runner import Evaluation
from mixopt.search import run_search, run_trials
from mixopt.swarm import Swarm
from mixopt.trial import Measurement, Outcome, Source, Trial
from workers.pack_runner import PackRunner
from workers.planning.makespan import schedule_search, schedule_together
from workers.train_pack import PackJob, TrialResult

SECONDS = 3.0
SOURCE = Source("trained", "nano", 4096)
METRICS = {"key": "valid/a"}


def trials_of(count: int, tokens_per_step: int = 1024) -> list[Trial]:
    domains = DomainSet(tuple(Domain(name, f"content-{name}", 10**6, 1e9) for name in "ab"), 1e9)
    recipe = {"window": 64, "tokens_per_step": tokens_per_step, "vocab_size": 512}
    factory = TrialFactory(domains, SOURCE, recipe, "tokenizer", "1")
    return [factory.make(Schedule.constant(Mixture.of({"a": (i + 1) / 1000, "b": 1 - (i + 1) / 1000})), i, "design") for i in range(count)]


class TimedRunner(PackRunner[int]):
    """Packs take time on a clock of its own; only `slots` of them run at once, in the order they came."""

    def __init__(self, store: Path, slots: int, pack_size: int | None) -> None:
        super().__init__(store, {}, {SOURCE.key: [Evaluation("key", "valid/a", "text", Path("x"), 512)]}, pack_size, slots, "cpu", 60)
        self.clock = 0.0
        self.jobs: list[PackJob] = []
        self._queue: list[int] = []
        self._busy: list[tuple[float, int]] = []

    def _launch(self, job: PackJob) -> int:
        self.jobs.append(job)
        self._queue.append(len(self.jobs) - 1)
        self._begin()
        return len(self.jobs) - 1

    def _begin(self) -> None:
        while self._queue and len(self._busy) < self._slots:
            number = self._queue.pop(0)
            heapq.heappush(self._busy, (self.clock + SECONDS * len(self.jobs[number].trials), number))

    def _wait(self, handles: Sequence[int], seconds: float) -> Collection[int]:
        self.clock, number = heapq.heappop(self._busy)
        self._begin()
        return [number]

    def _collect(self, handle: int) -> list[TrialResult]:
        measured = (Measurement("key", 4096, 2.0, 3.0),)
        return [
            TrialResult(t.trial_id, Outcome(t.trial_id, {d.content_hash: (0.5,) for d in t.domains}, measured, 4096, 1e9, 1.0))
            for t in self.jobs[handle].trials
        ]

    def _withdraw(self, handle: int) -> None: ...

    def _shut_down(self) -> None: ...


class Listed:
    """A strategy that asks for these trials, in order."""

    def __init__(self, trials: Sequence[Trial]) -> None:
        self._trials = trials

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        return [trial for trial in self._trials if trial.trial_id not in known][:count]

    def propose(self, completed: Swarm) -> Proposal:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("count", "slots", "pack_size", "batch", "tokens_per_step"),
    [
        (48, 2, None, None, 1024),
        (11, 2, 4, None, 1024),
        (11, 3, 4, None, 1024),
        (10, 4, 3, 1, 1024),
        (13, 2, 4, 6, 1024),
        (20, 2, None, None, 256),
        (5, 8, None, None, 1024),
        (9, 1, 2, None, 1024),
    ],
)
def test_a_search_runs_in_the_planned_packs(
    tmp_path: Path, count: int, slots: int, pack_size: int | None, batch: int | None, tokens_per_step: int
) -> None:
    trials = trials_of(count, tokens_per_step)
    planned = schedule_search(trials, lambda _: SECONDS, slots, pack_size, "cpu", batch)
    runner = TimedRunner(tmp_path, slots, pack_size)
    with History.open(tmp_path / "record.db") as history:
        history.add_search("s", "name", "")
        run_search(history, "s", Listed(trials), runner, domains=("a", "b"), metrics=METRICS, batch=batch)
    assert [[t.trial_id for t in pack] for pack in planned.packs] == [[t.trial_id for t in job.trials] for job in runner.jobs]
    assert planned.seconds == pytest.approx(runner.clock)
    assert planned.pack_size == max(len(job.trials) for job in runner.jobs)


@pytest.mark.parametrize(("count", "slots", "pack_size"), [(15, 2, None), (15, 16, None), (7, 2, 2), (1, 4, None)])
def test_a_verification_runs_in_the_planned_packs(tmp_path: Path, count: int, slots: int, pack_size: int | None) -> None:
    trials = trials_of(count)
    planned = schedule_together(trials, lambda _: SECONDS, slots, pack_size, "cpu")
    runner = TimedRunner(tmp_path, slots, pack_size)
    with History.open(tmp_path / "record.db") as history:
        history.add_search("s", "name", "")
        run_trials(history, "s", "verification", runner, trials, metrics=METRICS)
    assert [[t.trial_id for t in pack] for pack in planned.packs] == [[t.trial_id for t in job.trials] for job in runner.jobs]
    assert planned.seconds == pytest.approx(runner.clock)


def test_nothing_left_takes_no_time() -> None:
    for empty in (schedule_search([], lambda _: SECONDS, 2, None, "cpu"), schedule_together([], lambda _: SECONDS, 2, None, "cpu")):
        assert (empty.packs, empty.seconds, empty.pack_size) == ((), 0.0, 0)


def test_the_time_of_full_slots_by_hand() -> None:
    """48 trials in packs of 4 on 2 slots: six rounds of four trials."""
    assert schedule_search(trials_of(48), lambda _: SECONDS, 2, None, "cpu").seconds == pytest.approx(6 * 4 * SECONDS)
    # 15 at once: packs of 4, 4, 4 and 3.
    assert schedule_together(trials_of(15), lambda _: SECONDS, 2, None, "cpu").seconds == pytest.approx(8 * SECONDS)
