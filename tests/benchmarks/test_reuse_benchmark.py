"""The benchmark of reuse: its laws and updates are what it says, and every plan is carried out and scored above the true optimum."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from mixopt.reuse import plans

Load = Callable[[str], ModuleType]


@pytest.fixture(autouse=True)
def few_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plans, "LAWS", 4)


def test_every_plan_is_carried_out(benchmark_module: Load) -> None:
    results = {result.plan: result for result in benchmark_module("reuse").one_seed("add 1", 5, 0)}
    assert {"full reuse", "full reuse, warm", "warm start", "full recompute"} <= set(results)
    assert all(result.regret >= -1e-3 for result in results.values())
    assert results["full reuse"].proxies == 9
    assert results["full recompute"].proxies == 21


def test_a_removal_trains_nothing(benchmark_module: Load) -> None:
    results = {result.plan: result for result in benchmark_module("reuse").one_seed("remove 1", 5, 1)}
    assert results["full reuse"].proxies == 0


@pytest.mark.parametrize(("kind", "fresh", "removed"), [("add 3", 3, 0), ("split 1", 2, 1), ("revise 1", 1, 1), ("revise most", 6, 6)])
def test_updates_are_what_their_names_say(benchmark_module: Load, kind: str, fresh: int, removed: int) -> None:
    update = benchmark_module("reuse").make_update(kind, 8, 3)
    assert (len(update.changes.fresh), len(update.changes.removed)) == (fresh, removed)


def test_runs_that_weigh_what_is_gone_are_left_out(benchmark_module: Load) -> None:
    module = benchmark_module("reuse")
    update = module.make_update("remove 1", 4, 0)
    q_ND = np.array([[0.5, 0.0, 0.5, 0.0], [0.2, 0.3, 0.5, 0.0]])
    kept = module.still_valid(update, module.Runs(q_ND, np.zeros((2, 5))))
    assert kept.q_ND.tolist() == [[0.5, 0.5, 0.0]]
