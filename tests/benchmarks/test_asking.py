"""benchmarks/asking.py plays whole searches over a real record, and what it calls idle is time between trials of a worker."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from mixopt.strategies import get_strategy
from mixopt.swarm import Swarm


@pytest.fixture
def asking(benchmark_module: Callable[[str], ModuleType]) -> Any:
    return benchmark_module("asking")


@pytest.mark.parametrize("beside", [True, False])
def test_a_search_is_played_to_its_end(asking: Any, beside: bool) -> None:
    row = asking.measure(asking.ENTRANTS[0], beside, asking.Synthetic(5, 0), observations=30, trial_seconds=0.1, learned=3)
    assert (row.strategy, row.beside, row.domains, row.observations) == ("bayes", beside, 5, 30)
    assert row.learned >= 2
    assert row.ask_seconds > 0
    assert 0 <= row.idle_percent < 100


def test_a_worker_waits_from_the_end_of_a_trial_to_the_start_of_the_next(asking: Any) -> None:
    problem = asking.Synthetic(5, 0)
    strategy = get_strategy("random", asking.assignment_of(problem, asking.Entrant("random", "random"), 4, 0))
    first, second, third = strategy.ask(3, Swarm.empty(problem.domains.names), [], [])
    runner = asking.Busy(problem, {metric: metric for metric in problem.metrics}, 0.05)
    runner.submit([first, second])
    assert {event.trial_id for event in runner.events()} == {first.trial_id, second.trial_id}
    time.sleep(0.3)
    runner.submit([third])
    ((free, began),) = runner.waits
    assert began - free >= 0.3
    runner.close()
