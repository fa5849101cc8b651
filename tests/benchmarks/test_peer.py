"""The comparison with the closest peer: one protocol for both tools, the same tables, and scores that are what they say. The peer itself is not needed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

Module = Callable[[str], ModuleType]
DOMAINS, METRICS, RUNS = ("pile_cc", "arxiv", "github"), ("pile_cc", "github"), 24


@pytest.fixture
def table(benchmark_module: Module) -> Any:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(len(DOMAINS)), RUNS)
    losses = 2 + np.exp(weights @ rng.normal(0, 1, (len(DOMAINS), len(METRICS)))) + rng.normal(0, 0.005, (RUNS, len(METRICS)))
    return benchmark_module("peers.regmix").Table(DOMAINS, METRICS, tuple(f"1m-{row}" for row in range(RUNS)), weights, losses)


@pytest.fixture
def ours(benchmark_module: Module, tmp_path: Path) -> Iterator[Any]:
    module = benchmark_module("peers.tool")
    with module.Tool("mixopt", sys.executable, "run_mixopt.py", [module.ROOT], tmp_path / "log") as tool:
        yield tool


def test_a_job_is_answered_with_predictions_and_a_proposal(table: Any, ours: Any, tmp_path: Path) -> None:
    mixtures, metrics = table.write(tmp_path, "train", range(16))
    points, _ = table.write(tmp_path, "test", range(16, RUNS))
    job = {"mixtures": mixtures, "metrics": metrics, "points": [points], "starts": 10, "prior": dict.fromkeys(DOMAINS, 1 / 3)}
    reply = ours.ask(model="power_law", answers=[{"target": {"pile_cc": 1.0}, "pull": 0.1}], **job)
    assert np.shape(reply["predictions"]) == (1, RUNS - 16, len(METRICS))
    assert reply["cpu_seconds"] > 0
    assert sum(reply["answers"][0]["weights"].values()) == pytest.approx(1)
    # What a tool cannot do is an answer, and the next job is answered as before.
    assert "nothing_such" in ours.ask(model="nothing_such", answers=[], **job)["error"]
    again = ours.ask(model="power_law", answers=[], **job)
    assert again["predictions"] == reply["predictions"]


def test_a_tool_that_cannot_start_says_why(benchmark_module: Module, tmp_path: Path) -> None:
    """Here: Olmix's driver in an interpreter without Olmix."""
    module = benchmark_module("peers.tool")
    with (
        module.Tool("Olmix", sys.executable, "run_olmix.py", [tmp_path], tmp_path / "log") as tool,
        pytest.raises(RuntimeError, match="No module named 'olmix'"),
    ):
        tool.ask(model="gp")


def test_tables_are_written_as_they_are(table: Any, benchmark_module: Module, tmp_path: Path) -> None:
    read_table = benchmark_module("peers.serve").read_table
    mixtures, metrics = table.write(tmp_path, "some", [5, 2])
    names, runs, weights = read_table(mixtures)
    assert (tuple(names), runs) == (DOMAINS, ["1m-5", "1m-2"])
    np.testing.assert_array_equal(weights, table.weights[[5, 2]])
    np.testing.assert_array_equal(read_table(metrics)[2], table.losses[[5, 2]])


def test_rankings_are_scored_by_target(table: Any, benchmark_module: Module) -> None:
    scores = benchmark_module("peers.scores")
    rows = list(scores.ranking_rows("mixopt", "truth", 8, "test_1m", table, table.losses, 1.0, ""))
    assert [(row.target, row.spearman, row.regret_percent) for row in rows] == [
        (target, pytest.approx(1), 0.0) for target in ("pile_cc", "mean13")
    ]
    worst = next(scores.ranking_rows("mixopt", "worst", 8, "test_1m", table, -table.losses, 1.0, ""))
    assert (worst.spearman, worst.regret_percent) == (pytest.approx(-1), 100.0)


def test_a_proposal_is_scored_against_the_best_run(table: Any, benchmark_module: Module) -> None:
    judge = benchmark_module("peers.scores").Judge([table])
    prior = dict.fromkeys(DOMAINS, 1 / 3)
    best, worst = (int(pick(table.losses[:, 0])) for pick in (np.argmin, np.argmax))
    rows = [
        judge.row("none", "run", RUNS, "pile_cc", dict(zip(DOMAINS, table.weights[run].tolist(), strict=True)), prior, None, "")
        for run in (best, worst)
    ]
    assert rows[0].regret_percent == pytest.approx(0, abs=5)
    assert rows[1].regret_percent == pytest.approx(100, abs=5)
    assert rows[0].loss_nats == pytest.approx(table.losses[best, 0], abs=0.03)


def test_a_swarm_made_up_for_scale_is_sparse_and_no_law_of_ours(benchmark_module: Module, tmp_path: Path) -> None:
    scale = benchmark_module("scale")
    swarm = scale.make_swarm(60, 40, 2)
    assert swarm.weights.shape == (60 + scale.UNSEEN, 40)
    np.testing.assert_allclose(swarm.weights.sum(axis=1), 1)
    present = (swarm.weights > 0).sum(axis=1)
    assert present.min() >= scale.FEWEST - 1  # a weight may underflow to 0
    assert present.max() <= scale.MOST
    scale.write_tables(swarm, tmp_path)
    assert len((tmp_path / "unseen.csv").read_text().splitlines()) == 1 + scale.UNSEEN
    assert scale.tree_bytes(os.getpid()) > 2**20
