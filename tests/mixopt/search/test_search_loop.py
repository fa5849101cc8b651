"""The loop: what is trained, what is reused, and that a driver may die anywhere without changing the answer."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixopt.errors import DataError, RunError
from mixopt.history import History, TrialRecord
from mixopt.runner import Completed, TrialEvent
from mixopt.search import SearchInterrupted, run_search, run_trials
from mixopt.search_identity import search_identity
from mixopt.swarm import Swarm
from mixopt.trial import Failure, FailureKind, Trial, TrialState

CRASH = Failure(FailureKind.WORKER_LOST, "worker died")
DIVERGED = Failure(FailureKind.DIVERGED, "loss is nan")


class Killed(BaseException):
    """Ends a driver as kill -9 does: nothing in the loop catches it."""


@dataclasses.dataclass
class Listed:
    """Asks a fixed list of trials, however many are pending."""

    trials: list[Trial]
    counts: list[int] = dataclasses.field(default_factory=list)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        known = {*completed.trial_ids, *(t.trial_id for t in (*pending, *abandoned))}
        self.counts.append(count)
        return [trial for trial in self.trials if trial.trial_id not in known][:count]

    def propose(self, completed: Swarm) -> Any:
        raise NotImplementedError


@dataclasses.dataclass
class Rounds:
    """Synchronous: each round is drawn around the best of the finished ones, from the whole swarm."""

    lab: Any
    size: int = 3

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        if pending:
            return []
        number = len(completed) + len(abandoned)
        best = 0.5
        if len(completed):
            values = completed.values(("target/a",))[:, 0]
            best = float(completed.points().schedules[int(values.argmin()), 0, 0]) + 0.01 * float(values.sum() % 1)
        weights = [min(0.9, 0.1 + (best * (i + 1) + 0.07 * number) % 0.8) for i in range(min(self.size, count))]
        return [self.lab.trial((w, (1 - w) / 2, (1 - w) / 2), label=f"round-{number}") for w in weights]

    def propose(self, completed: Swarm) -> Any:
        raise NotImplementedError


@dataclasses.dataclass
class Watcher:
    asked_ids: list[str] = dataclasses.field(default_factory=list)
    events: list[TrialEvent] = dataclasses.field(default_factory=list)
    records: list[TrialRecord] = dataclasses.field(default_factory=list)

    def asked(self, trials: Sequence[Trial]) -> None:
        self.asked_ids.extend(trial.trial_id for trial in trials)

    def event(self, event: TrialEvent) -> None:
        self.events.append(event)

    def finished(self, record: TrialRecord) -> None:
        self.records.append(record)


class Broken:
    def asked(self, trials: Sequence[Trial]) -> None:
        raise OSError("no terminal")

    event = finished = asked


def ids(trials: Sequence[Trial]) -> list[str]:
    return [trial.trial_id for trial in trials]


def search(history: History, lab: Any, strategy: Any, runner: Any, **options: Any) -> Any:
    return run_search(history, options.pop("search_id", "s1"), strategy, runner, lab.names, lab.metrics, **options)


def test_every_trial_is_trained_once_and_the_runner_is_kept_full(history: History, lab: Any) -> None:
    trials, runner, watcher = lab.grid(11), lab.runner(), Watcher()
    strategy = Listed(trials)
    result = search(history, lab, strategy, runner, observers=[watcher])
    assert sorted(runner.trained) == sorted(ids(trials))
    assert list(result.swarm.trial_ids) == ids(trials)
    assert sorted(result.ended) == sorted(ids(trials))
    assert strategy.counts[0] == 4
    # Whole packs of two go out, and only when a slot is free; the rest at the end.
    assert [len(batch) for batch in runner.submissions] == [4, 2, 2, 2, 1]
    assert watcher.asked_ids == ids(trials)
    assert sorted(record.trial.trial_id for record in watcher.records) == sorted(ids(trials))
    assert sum(isinstance(event, Completed) for event in watcher.events) == 11
    assert history.search("s1").state == "running"


def test_a_finished_search_run_again_does_nothing(history: History, lab: Any) -> None:
    strategy, watcher = Listed(lab.grid(6)), Watcher()
    first = search(history, lab, strategy, lab.runner())
    runner = lab.runner()
    again = search(history, lab, strategy, runner, observers=[watcher])
    assert runner.submissions == []
    assert again.swarm.table.equals(first.swarm.table)
    assert (again.ended, len(watcher.records)) == ((), 6)


def test_raising_the_number_of_trials_continues(history: History, lab: Any) -> None:
    strategy, runner = Listed(lab.grid(9)), lab.runner()
    assert len(search(history, lab, strategy, runner, trials=4).swarm) == 4
    assert len(search(history, lab, strategy, runner, trials=7).swarm) == 7
    assert len(runner.trained) == 7


def test_batch_sets_how_many_are_asked_for(history: History, lab: Any) -> None:
    strategy, runner = Listed(lab.grid(10)), lab.runner()
    search(history, lab, strategy, runner, batch=5, trials=8)
    assert set(strategy.counts) == {5, 3}
    assert [len(batch) for batch in runner.submissions] == [5, 3]


def test_trials_of_another_search_are_reused(history: History, lab: Any) -> None:
    trials = lab.grid(8)
    search(history, lab, Listed(trials[:6]), lab.runner())
    history.add_search("s2", "second", "")
    runner, watcher = lab.runner(), Watcher()
    result = search(history, lab, Listed(trials), runner, search_id="s2", observers=[watcher])
    assert sorted(runner.trained) == sorted(ids(trials[6:]))
    assert list(result.swarm.trial_ids) == ids(trials)
    assert len(watcher.records) == 8


def test_a_metric_added_later_is_scored_on_kept_weights(history: History, lab: Any) -> None:
    trials, runner = lab.grid(5), lab.runner(keys=("key-a",))
    run_search(history, "s1", Listed(trials), runner, lab.names, {"key-a": "target/a"})
    history.add_search("s2", "second", "")
    runner.keys = ("key-a", "key-b")
    result = search(history, lab, Listed(trials), runner, search_id="s2")
    assert sorted(runner.scored) == sorted(ids(trials)) == sorted(runner.trained)
    assert not np.isnan(result.swarm.values(("target/a", "target/b"))).any()
    assert {record.state for record in result.records} == {TrialState.COMPLETED}


def test_strategies_never_see_a_trial_that_lacks_a_metric(history: History, lab: Any) -> None:
    class Watching(Listed):
        def ask(self, count: int, completed: Swarm, *others: Any) -> list[Trial]:
            assert not np.isnan(completed.values(("target/a", "target/b"))).any()
            return super().ask(count, completed, *others)

    trials, runner = lab.grid(7), lab.runner(keys=("key-a",))
    run_search(history, "s1", Listed(trials[:4]), runner, lab.names, {"key-a": "target/a"})
    runner.keys = ("key-a", "key-b")
    runner.failures = {trials[0].trial_id: [Failure(FailureKind.DATA, "weights are gone")]}
    result = search(history, lab, Watching(trials), runner)
    assert list(result.swarm.trial_ids) == ids(trials[1:])
    assert result.records[0].state is TrialState.COMPLETED


def test_an_outcome_without_a_metric_asked_for_is_refused(history: History, lab: Any) -> None:
    with pytest.raises(DataError, match="without some of the losses"):
        search(history, lab, Listed(lab.grid(2)), lab.runner(keys=("key-a",)))
    assert history.search("s1").state == "failed"


def test_failed_trials_are_retried_and_diverged_ones_are_not(history: History, lab: Any) -> None:
    trials = lab.grid(8)
    runner, watcher = lab.runner(), Watcher()
    runner.failures = {ids(trials)[0]: [CRASH, CRASH], ids(trials)[1]: [DIVERGED, CRASH], ids(trials)[2]: [CRASH] * 9}
    result = search(history, lab, Listed(trials), runner, max_attempts=3, observers=[watcher])
    states = [record.state for record in result.records]
    assert states == [TrialState.COMPLETED, TrialState.ABANDONED, TrialState.ABANDONED] + [TrialState.COMPLETED] * 5
    assert [record.attempts for record in result.records[:3]] == [2, 1, 3]
    assert list(result.swarm.trial_ids) == [ids(trials)[0], *ids(trials)[3:]]
    assert len(watcher.records) == 8


def test_a_pack_that_is_lost_goes_out_again_as_one_pack(history: History, lab: Any) -> None:
    trials = lab.grid(4)
    runner = lab.runner(slots=1, pack_size=4, failures={key: [CRASH] for key in ids(trials)})
    search(history, lab, Listed(trials), runner)
    assert [sorted(batch) for batch in runner.submissions] == [sorted(ids(trials))] * 2


def test_a_cancellation_nobody_here_asked_for_counts(history: History, lab: Any) -> None:
    (trial,) = lab.grid(1)
    runner = lab.runner(cancelled={trial.trial_id})
    result = search(history, lab, Listed([trial]), runner, max_attempts=3)
    assert result.records[0].state is TrialState.ABANDONED
    assert len(runner.submissions) == 3


def test_too_many_abandoned_trials_stop_the_search(history: History, lab: Any) -> None:
    trials = lab.grid(8)
    full = Failure(FailureKind.ERROR, "disk full")
    runner = lab.runner(slots=4, failures={key: [full] for key in ids(trials)[:4]} | {ids(trials)[4]: [DIVERGED]})
    with pytest.raises(RunError, match="5 of 8 trials were abandoned, 4 of them with: disk full"):
        search(history, lab, Listed(trials), runner)
    assert history.search("s1").state == "failed"
    # The disk has room again: what did not diverge is tried once more.
    runner = lab.runner(kept=runner.kept)
    result = search(history, lab, Listed(trials), runner)
    assert [r.state is TrialState.COMPLETED for r in result.records] == [i != 4 for i in range(8)]


def test_half_abandoned_does_not_stop(history: History, lab: Any) -> None:
    trials = lab.grid(8)
    runner = lab.runner(slots=4, failures={key: [DIVERGED] for key in ids(trials)[:4]})
    assert len(search(history, lab, Listed(trials), runner).swarm) == 4


def test_a_broken_observer_stops_nothing_and_is_logged(history: History, lab: Any, caplog: pytest.LogCaptureFixture) -> None:
    watcher = Watcher()
    result = search(history, lab, Listed(lab.grid(4)), lab.runner(), observers=[Broken(), watcher])
    assert (len(result.swarm), len(watcher.records)) == (4, 4)
    assert "no terminal" in caplog.text


def test_a_strategy_that_repeats_itself_is_caught(history: History, lab: Any) -> None:
    class Stuck(Listed):
        def ask(self, *_: Any) -> list[Trial]:
            return self.trials

    with pytest.raises(AssertionError, match="asked again"):
        search(history, lab, Stuck(lab.grid(1)), lab.runner())


@pytest.mark.parametrize("how", ["ctrl-c", "stop"])
def test_an_interrupted_search_cancels_records_and_goes_on(history: History, lab: Any, how: str) -> None:
    trials, stop = lab.grid(10), threading.Event()
    runner = lab.runner()

    def interrupt(event: TrialEvent) -> None:
        if isinstance(event, Completed) and len(runner.kept) == 3:
            runner.on_event = lambda event: None
            if how == "ctrl-c":
                raise KeyboardInterrupt
            stop.set()

    runner.on_event = interrupt
    with pytest.raises(SearchInterrupted, match="same command goes on") as raised:
        search(history, lab, Listed(trials), runner, stop=stop)
    assert raised.value.exit_code == 130
    assert history.search("s1").state == "interrupted"
    states = [record.state for record in history.trials("s1")]
    assert states.count(TrialState.COMPLETED) in (2, 3)  # the third event was lost with Ctrl-C in the runner, its result is kept
    assert all(record.attempts == 0 for record in history.trials("s1"))
    resumed = lab.runner(kept=runner.kept)
    assert list(search(history, lab, Listed(trials), resumed).swarm.trial_ids) == ids(trials)
    assert sorted(runner.trained + resumed.trained) == sorted(ids(trials))


def test_a_stop_that_comes_before_the_start_submits_nothing(history: History, lab: Any) -> None:
    stop, runner = threading.Event(), lab.runner()
    stop.set()
    with pytest.raises(SearchInterrupted):
        search(history, lab, Listed(lab.grid(3)), runner, stop=stop)
    assert runner.submissions == []


def test_ctrl_c_twice_leaves_at_once(history: History, lab: Any) -> None:
    runner = lab.runner()

    def interrupt(event: TrialEvent) -> None:
        raise KeyboardInterrupt

    runner.on_event = interrupt
    with pytest.raises(SearchInterrupted):
        search(history, lab, Listed(lab.grid(4)), runner)
    assert history.search("s1").state == "interrupted"


class Saboteur:
    """Kills the driver at its n-th step: before or after any write of the record, and around submitting."""

    METHODS = ("add_trials", "mark_running", "complete", "fail")

    def __init__(self, step: int) -> None:
        self.left = step

    def tick(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def wrap(self, target: Any, names: Sequence[str]) -> None:
        for name in names:
            setattr(target, name, self._around(getattr(target, name)))

    def _around(self, call: Any) -> Any:
        def around(*args: Any) -> Any:
            self.tick()
            value = call(*args)
            self.tick()
            return value

        return around


def run_with_kills(
    path: Path, lab: Any, kill_steps: Sequence[int], failures: dict[str, list[Failure]]
) -> tuple[Swarm, list[str], list[Any]]:
    """One search, its driver killed at each of `kill_steps` in turn and started again."""
    kept: dict[str, Any] = {}
    trained: list[str] = []
    for attempt, step in enumerate([*kill_steps, 0]):
        runner = lab.runner(seed=attempt + sum(kill_steps), kept=kept, failures=failures, trained=trained)
        with History.open(path) as history:
            history.add_search("s1", "first", "")
            saboteur = Saboteur(step)
            saboteur.wrap(history, Saboteur.METHODS)
            saboteur.wrap(runner, ("submit",))
            try:
                result = search(history, lab, Rounds(lab), runner, trials=9, batch=3)
                return result.swarm, trained, [(r.trial.label, r.state) for r in result.records]
            except Killed:
                continue
    raise AssertionError("the last driver was not to be killed")


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_any_step_a_search_ends_with_the_same_answer(tmp_path: Path, lab: Any, stride: int) -> None:
    undisturbed, trained, labels = run_with_kills(tmp_path / "undisturbed.db", lab, [], {})
    assert len(undisturbed) == 9
    assert len({label for label, _ in labels}) == 3
    diverging = undisturbed.trial_ids[4]
    expected = [run_with_kills(tmp_path / f"whole-{bad}.db", lab, [], bad_trial(diverging, bad))[0] for bad in (False, True)]
    for number, step in enumerate(range(1, 49, stride)):
        bad = number % 3 == 0
        swarm, trained, _ = run_with_kills(tmp_path / f"{step}.db", lab, [step, step // 2 + 1], bad_trial(diverging, bad))
        assert swarm.table.equals(expected[bad].table), f"killed at step {step}"
        assert len(trained) == len(set(trained)), f"trained twice when killed at step {step}"


def bad_trial(trial_id: str, bad: bool) -> dict[str, list[Failure]]:
    return {trial_id: [DIVERGED] * 9} if bad else {}


def test_the_order_in_which_trials_end_does_not_matter(tmp_path: Path, lab: Any) -> None:
    swarms = []
    for seed in range(4):
        with History.open(tmp_path / f"{seed}.db") as history:
            history.add_search("s1", "first", "")
            swarms.append(search(history, lab, Rounds(lab), lab.runner(seed=seed, slots=1 + seed, pack_size=3), trials=9, batch=3).swarm)
    assert all(swarm.table.equals(swarms[0].table) for swarm in swarms)


def test_trials_of_a_stage_run_together_and_leave_the_search_alone(history: History, lab: Any) -> None:
    search(history, lab, Listed(lab.grid(4)), lab.runner())
    extra = [lab.trial((0.1, 0.4, 0.5), seed, "verify:proposal") for seed in range(3)]
    runner = lab.runner(slots=1, pack_size=1, failures={extra[1].trial_id: [CRASH]})
    history.add_trials("s1", [lab.trial((0.3, 0.3, 0.4), 0, "verify:proposal")], "verification")  # of an earlier proposal
    records = run_trials(history, "s1", "verification", runner, extra, lab.metrics)
    assert [record.trial for record in records] == extra
    assert {record.state for record in records} == {TrialState.COMPLETED}
    assert len(runner.submissions[0]) == 3
    assert len(history.trials("s1", "search")) == 4
    again = lab.runner()
    assert run_trials(history, "s1", "verification", again, extra, lab.metrics) == records
    assert again.submissions == []
    assert run_trials(history, "s1", "verification", again, [], lab.metrics) == []


def test_search_identity_covers_what_decides_and_nothing_else(lab: Any) -> None:
    objective, options = {"kind": "mean", "targets": [["hash", 1.0]]}, {"surrogate": "lightgbm"}

    def identity(
        factory: Any = None, objective: Any = objective, strategy: str = "regression", options: Any = options, seed: int = 0
    ) -> str:
        return search_identity(factory or lab.factory(), objective, strategy, options, seed)

    base = identity()
    factory = lab.factory()
    reversed_domains = dataclasses.replace(factory.domains, domains=factory.domains.domains[::-1])
    assert identity(dataclasses.replace(factory, domains=reversed_domains)) == base
    tighter = dataclasses.replace(factory.domains.domains[0], max_epochs=2.0)
    others = [
        identity(lab.factory(("web", "code", "proofs"))),
        identity(lab.factory(tokens=200_000)),
        identity(dataclasses.replace(factory, recipe={"window": 128})),
        identity(dataclasses.replace(factory, engine_version="engine-2")),
        identity(dataclasses.replace(factory, domains=dataclasses.replace(factory.domains, budget_tokens=2e9))),
        identity(
            dataclasses.replace(factory, domains=dataclasses.replace(factory.domains, domains=(tighter, *factory.domains.domains[1:])))
        ),
        identity(objective={**objective, "kind": "worst_case"}),
        identity(strategy="bayes"),
        identity(options={}),
        identity(seed=1),
    ]
    assert len({base, *others}) == len(others) + 1
