"""Asking beside the loop: the loop goes on while a strategy thinks, and nothing is asked twice, lost or hidden."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from mixopt.ask_ahead import AskAhead
from mixopt.history import History
from mixopt.search import run_search
from mixopt.swarm import Swarm
from mixopt.trial import Trial

PATIENCE_SECONDS = 30.0


@dataclasses.dataclass
class Thinker:
    """Asks a fixed list; from its second question on it thinks until the loop has told of something that ended meanwhile."""

    trials: list[Trial]
    asks_ahead: bool = True
    heard: threading.Event = dataclasses.field(default_factory=threading.Event)
    in_time: list[bool] = dataclasses.field(default_factory=list)
    seen: list[int] = dataclasses.field(default_factory=list)
    threads: set[str] = dataclasses.field(default_factory=set)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        self.threads.add(threading.current_thread().name)
        self.seen.append(len(completed))
        if pending and self.asks_ahead:
            self.in_time.append(self.heard.wait(PATIENCE_SECONDS))
            self.heard.clear()
        known = {*completed.trial_ids, *(trial.trial_id for trial in (*pending, *abandoned))}
        return [trial for trial in self.trials if trial.trial_id not in known][:count]

    def propose(self, completed: Swarm) -> Any:
        raise NotImplementedError

    # An observer, too.
    def asked(self, trials: Sequence[Trial]) -> None: ...
    def event(self, event: Any) -> None:
        self.heard.set()

    def finished(self, record: Any) -> None: ...


def run(history: History, lab: Any, strategy: Any, **options: Any) -> Any:
    runner = lab.runner()
    return run_search(history, "s1", strategy, runner, lab.names, lab.metrics, observers=[strategy], **options), runner


def test_events_are_handled_while_the_strategy_thinks_and_the_same_trials_are_trained(history: History, lab: Any) -> None:
    trials = lab.grid(11)
    strategy = Thinker(trials)
    result, runner = run(history, lab, strategy)
    assert sorted(runner.trained) == sorted(trial.trial_id for trial in trials)
    assert len(result.swarm) == 11
    assert strategy.in_time
    assert all(strategy.in_time), "no event came while the strategy thought: the loop waited for it"
    assert "ask-ahead" in strategy.threads
    assert [len(batch) for batch in runner.submissions] == [4, 2, 2, 2, 1]


def test_a_strategy_that_does_not_say_so_is_asked_in_the_loop_with_all_that_has_ended(history: History, lab: Any) -> None:
    strategy = Thinker(lab.grid(11), asks_ahead=False)
    run(history, lab, strategy)
    assert strategy.threads == {threading.main_thread().name}


def test_no_more_trials_are_asked_for_than_allowed(history: History, lab: Any) -> None:
    result, runner = run(history, lab, Thinker(lab.grid(11)), trials=7)
    assert len(runner.trained) == len(result.swarm) == 7


@dataclasses.dataclass
class Synchronous(Thinker):
    """Waits for every round, although it says that it thinks ahead."""

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        if pending:
            return []
        known = {*completed.trial_ids}
        return [trial for trial in self.trials if trial.trial_id not in known][: min(count, 3)]


def test_an_empty_answer_of_before_is_asked_for_again(history: History, lab: Any) -> None:
    result, _ = run(history, lab, Synchronous(lab.grid(8)))
    assert len(result.swarm) == 8


@dataclasses.dataclass
class Faulty(Thinker):
    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        if pending:
            raise ValueError("cannot think")
        return self.trials[:count]


def test_what_goes_wrong_in_thought_is_raised_in_the_loop(history: History, lab: Any) -> None:
    with pytest.raises(ValueError, match="cannot think"):
        run(history, lab, Faulty(lab.grid(8)))
    assert history.search("s1").state == "failed"


def test_one_question_at_a_time_and_its_answer_once() -> None:
    ahead = AskAhead()
    assert ahead.take() == []
    ahead.begin(list)
    with pytest.raises(AssertionError):
        ahead.begin(list)
    assert ahead.under_way
    assert ahead.take() == []
    assert not ahead.under_way
