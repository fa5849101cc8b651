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
from workers.control import PackControl
from workers.pack_runner import PackRunner
from workers.packing import PlannedPack
from workers.planning.makespan import ends, schedule_search, schedule_together
from workers.train_pack import PackJob, TrialResult
from workers.trial_folder import TrialFolder

SECONDS = 3.0
SOURCE = Source("trained", "nano", 4096)
METRICS = {"key": "valid/a"}


def trials_of(count: int, tokens_per_step: int = 1024) -> list[Trial]:
    domains = DomainSet(tuple(Domain(name, f"content-{name}", 10**6, 1e9) for name in "ab"), 1e9)
    recipe = {"window": 64, "tokens_per_step": tokens_per_step, "vocab_size": 512}
    factory = TrialFactory(domains, SOURCE, recipe, "tokenizer", "1")
    return [factory.make(Schedule.constant(Mixture.of({"a": (i + 1) / 1000, "b": 1 - (i + 1) / 1000})), i, "design") for i in range(count)]


class TimedRunner(PackRunner[int]):
    """Packs take time on a clock of its own; only `slots` of them run at once, in the order they came.

    A pack trains in rounds of as many trials as it has places, and tells at the end of each, through the control folder, what ended.
    """

    def __init__(self, store: Path, slots: int, pack_size: int | None) -> None:
        super().__init__(store, {}, {SOURCE.key: [Evaluation("key", "valid/a", "text", Path("x"), 512)]}, pack_size, slots, "cpu", 60)
        self.clock = 0.0
        self.jobs: list[PackJob] = []
        self._queue: list[int] = []
        self._busy: list[tuple[float, int, int]] = []  # end of a round, pack, trials that have ended then

    def _launch(self, job: PackJob) -> int:
        self.jobs.append(job)
        self._queue.append(len(self.jobs) - 1)
        self._start_queued()
        return len(self.jobs) - 1

    def _start_queued(self) -> None:
        while self._queue and len({number for _, number, _ in self._busy}) < self._slots:
            number = self._queue.pop(0)
            self._round(number, 0)

    def _round(self, number: int, ended: int) -> None:
        job = self.jobs[number]
        together = min(job.places or 0, len(job.trials) - ended)
        heapq.heappush(self._busy, (self.clock + SECONDS * together, number, ended + together))

    def _wait(self, handles: Sequence[int], seconds: float) -> Collection[int]:
        self.clock, number, ended = heapq.heappop(self._busy)
        job = self.jobs[number]
        if ended == len(job.trials):
            self._start_queued()
            return [number]
        pack = PackControl(job.control, job.pack_id)
        for trial in job.trials[:ended]:
            TrialFolder(job.store, trial.trial_id).write_outcome(trial.spec(), outcome_of(trial))
            pack.end(trial.trial_id, None)
        self._round(number, ended)
        return []

    def _collect(self, handle: int) -> list[TrialResult]:
        return [TrialResult(trial.trial_id, outcome_of(trial)) for trial in self.jobs[handle].trials]

    def _withdraw(self, handle: int) -> None: ...

    def _shut_down(self) -> None: ...


def outcome_of(trial: Trial) -> Outcome:
    measured = (Measurement("key", 4096, 2.0, 3.0),)
    return Outcome(trial.trial_id, {domain.content_hash: (0.5,) for domain in trial.domains}, measured, 4096, 1e9, 1.0)


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
        (23, 1, 4, 10, 1024),  # more asked for than places
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
    assert [(pack.trials, pack.places) for pack in planned.packs] == [(job.trials, job.places) for job in runner.jobs]
    assert planned.seconds == pytest.approx(runner.clock)
    assert planned.pack_size == max(job.places or 0 for job in runner.jobs)


@pytest.mark.parametrize(
    ("count", "slots", "pack_size"), [(15, 2, None), (15, 16, None), (7, 2, 2), (1, 4, None), (15, 1, None), (10, 1, 3)]
)
def test_a_verification_runs_in_the_planned_packs(tmp_path: Path, count: int, slots: int, pack_size: int | None) -> None:
    trials = trials_of(count)
    planned = schedule_together(trials, lambda _: SECONDS, slots, pack_size, "cpu")
    runner = TimedRunner(tmp_path, slots, pack_size)
    with History.open(tmp_path / "record.db") as history:
        history.add_search("s", "name", "")
        run_trials(history, "s", "verification", runner, trials, metrics=METRICS)
    assert [(pack.trials, pack.places) for pack in planned.packs] == [(job.trials, job.places) for job in runner.jobs]
    assert planned.seconds == pytest.approx(runner.clock)


def test_nothing_left_takes_no_time() -> None:
    for empty in (schedule_search([], lambda _: SECONDS, 2, None, "cpu"), schedule_together([], lambda _: SECONDS, 2, None, "cpu")):
        assert (empty.packs, empty.seconds, empty.pack_size) == ((), 0.0, 0)


def test_the_time_of_full_slots_by_hand() -> None:
    """48 trials in packs of 4 on 2 slots: six rounds of four trials."""
    assert schedule_search(trials_of(48), lambda _: SECONDS, 2, None, "cpu").seconds == pytest.approx(6 * 4 * SECONDS)
    # 15 at once: packs of 4, 4, 4 and 3.
    assert schedule_together(trials_of(15), lambda _: SECONDS, 2, None, "cpu").seconds == pytest.approx(8 * SECONDS)


def test_a_place_is_given_on_when_its_trial_ends() -> None:
    """Two places share one processor: after 2 s both first trials have had one; the next has the place of the one that ended."""
    trials = trials_of(4)
    seconds = (1.0, 3.0, 1.0, 2.0)
    pack = PlannedPack(tuple(trials), 2)
    assert [(at, trial.seed) for at, trial in ends(pack, lambda trial: seconds[trial.seed])] == [(2, 0), (4, 2), (6, 1), (7, 3)]
