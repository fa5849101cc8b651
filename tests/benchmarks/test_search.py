"""The benchmark of strategies: its problems, how it judges, and what it makes of scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mixopt.strategies import get_strategy
from mixopt.swarm import Swarm
from mixopt.trial import Source


@pytest.fixture
def problems(benchmark_module: Callable[[str], ModuleType]) -> Any:
    return benchmark_module("searching.problems")


@pytest.fixture
def playing(benchmark_module: Callable[[str], ModuleType]) -> Any:
    return benchmark_module("searching.play")


@pytest.fixture
def bench(benchmark_module: Callable[[str], ModuleType]) -> Any:
    return benchmark_module("search")


@pytest.mark.parametrize("seed", range(4))
def test_no_feasible_mixture_is_better_than_the_known_optimum(problems: Any, seed: int) -> None:
    problem = problems.Synthetic(5, seed)
    draws = problem.space.sample(20_000, np.random.default_rng(9))
    near = problem.space.project(draws[np.argsort(problem.objective(draws))[:200]] + np.random.default_rng(8).normal(0, 0.01, (200, 5)))
    best = min(problem.objective(draws).min(), problem.objective(near).min())
    assert problem.best <= best + 1e-6
    assert best - problem.best < 0.1, "and so many draws come near it"
    assert problem.regret(problem.domains.natural().array()) == pytest.approx(-problem.best)


def test_a_law_has_caps_noise_and_a_cheaper_source_that_ranks_a_little_differently(problems: Any, playing: Any) -> None:
    problem = problems.Synthetic(17, 0)
    assert (problem.space.upper < 1).sum() >= 5
    entrant = playing.Entrant("x", "regression", sources=2)
    assignment = playing.assignment_of(problem, entrant, 12, 0)
    trials = [offer.make(trial.schedule, trial.seed, "") for offer in assignment.offers for trial in assignment.planned(60)]
    swarm = problem.run(trials, 0)
    cheap, dear = (swarm.at_source(offer.source).values(problem.metrics) for offer in assignment.offers)
    truth = problem.objective(swarm.at_source(assignment.source).points().averages())
    for values, low, high in ((dear, 0.9, 0.9999), (cheap, 0.6, 0.995)):
        ranks = [np.argsort(np.argsort(column)) for column in ((values / problem.noise_std).mean(axis=1), truth)]
        assert low < np.corrcoef(ranks[0], ranks[1])[0, 1] < high
    again = problem.run(trials, 1)
    luck = (again.at_source(assignment.source).values(problem.metrics) - dear) / problem.noise_std / np.sqrt(2)
    assert luck.std() == pytest.approx(1.0, abs=0.15)
    assert problem.run(list(reversed(trials)), 0).values(problem.metrics)[::-1].tolist() == swarm.values(problem.metrics).tolist()


def test_the_answer_that_is_judged_is_the_one_that_is_recommended(problems: Any, playing: Any) -> None:
    problem = problems.Synthetic(5, 1)
    assignment = playing.assignment_of(problem, playing.Entrant("x", "regression"), 24, 0)
    strategy = get_strategy("regression", assignment)
    swarm = problem.run(strategy.ask(24, Swarm.empty(problem.domains.names), [], []), 0)
    assert playing.answer(assignment, swarm).tolist() == strategy.propose(swarm).mixture.array(problem.domains.names).tolist()


def test_a_game_has_a_score_at_every_cost_and_the_same_one_again(problems: Any, playing: Any) -> None:
    entrant = playing.Entrant("regression", "regression")
    scores = playing.play(problems.Synthetic(5, 0), entrant, (8, 12), 0)
    assert [(score.cost, score.spent) for score in scores] == [(8, 8), (12, 12)]
    again = playing.play(problems.Synthetic(5, 0), entrant, (8, 12), 0)
    assert [score.regret for score in again] == [score.regret for score in scores]
    assert all(score.regret > 0 for score in scores)
    planned = playing.Entrant("regression", "regression", replans=True)
    assert [score.regret for score in playing.play(problems.Synthetic(5, 0), planned, (8, 12), 0)] == [score.regret for score in scores]


def test_a_table_answers_with_every_row_once_and_judges_by_what_was_measured(problems: Any, playing: Any) -> None:
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(3), 30)
    losses = (weights @ np.array([[0.1, 0.5], [0.9, 0.2], [0.4, 0.4]]))[:, :]
    source = Source("trained", "1m", 10**6)
    tables = {
        name: Swarm.from_arrays(("a", "b", "c"), part[:, None, :], ("x", "y"), values, source)
        for name, part, values in (
            ("train_1m", weights[:20], losses[:20]),
            ("test_1m", weights[20:], losses[20:]),
            ("test_60m", weights[20:], losses[20:]),
        )
    }
    problem = problems.Replay(tables, 0)
    assignment = playing.assignment_of(problem, playing.Entrant("x", "regression"), 30, 0)
    swarm = problem.run(assignment.planned(40), 0)
    realized = swarm.points().averages()
    assert len({tuple(row) for row in realized.tolist()}) == len(swarm) == 30
    regret = playing.judge(problem, playing.Entrant("x", "regression"), assignment, get_strategy("regression", assignment), swarm)
    assert regret == pytest.approx(0, abs=1e-9), "a linear law is known after all its rows"
    assert sorted(problem.objective(problems.ANSWER))[0] == 0


def row(bench: Any, strategy: str, cost: float, regret: float) -> Any:
    return bench.Row(strategy, "p", 3, cost, regret, regret, regret, 3, 0.0, False)


def test_cost_for_a_regret_is_interpolated_in_logarithms(bench: Any) -> None:
    rows = [row(bench, "s", 10, 1.0), row(bench, "s", 40, 0.25)]
    assert bench.cost_for(rows, 0.5) == pytest.approx(20)
    assert bench.cost_for(rows, 1.0) == 10
    assert bench.cost_for(rows, 5.0) == 10
    assert bench.cost_for(rows, 0.1) == float("inf")
    assert bench.cost_for([row(bench, "s", 10, float("inf")), row(bench, "s", 40, 0.5)], 0.7) == 40


def test_shares_compare_the_seeds_that_both_have_played(bench: Any, playing: Any) -> None:
    def score(name: str, seed: int, cost: float, regret: float) -> Any:
        return playing.Score(name, "p", 3, seed, cost, regret, 0.0, cost)

    easy = [score("s", 0, 10, 1.0), score("s", 0, 40, 0.25), score("t", 0, 5, 1.0), score("t", 0, 20, 0.25)]
    hard = [score("s", seed, cost, 100.0) for seed in (1, 2) for cost in (10, 40)]
    assert bench.shares([*easy, *hard], "s")[("p", "t")] == pytest.approx(0.5)
    assert bench.shares(easy, "s") == {("p", "s"): 1.0, ("p", "t"): pytest.approx(0.5)}


def test_games_are_kept_and_a_torn_line_is_played_again(
    bench: Any, playing: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    games = [bench.Game(playing.Entrant("regression", "regression"), "law 5", seed, (8,)) for seed in (0, 1)]
    scores = bench.play_all(games, None, tmp_path, 1)
    path = tmp_path / "games.jsonl"
    lines = path.read_text().splitlines()
    assert len(lines) == len(scores) == 2
    path.write_text(lines[0] + "\n" + lines[1][:50])
    assert len(bench.played(tmp_path)) == 1
    again = bench.play_all(games, None, tmp_path, 1)
    assert sorted(score.regret for score in again) == sorted(score.regret for score in scores)
    assert "1 of 1:" in capsys.readouterr().err
    assert len(bench.played(tmp_path)) == 2, "and is kept this time"
    rows = bench.rows_of(again, ["regression"])
    assert json.loads(json.dumps([rows[0].seeds, rows[0].cost])) == [2, 8]
    bench.show(rows, again)


def test_a_row_says_that_its_strategy_loses_to_random_on_the_same_seeds(bench: Any, playing: Any) -> None:
    def scores(name: str, regrets: dict[int, float]) -> list[Any]:
        return [playing.Score(name, "p", 3, seed, 8.0, regret, 0.0, 8.0) for seed, regret in regrets.items()]

    played = [
        *scores("random", {0: 1.0, 1: 1.0, 2: 9.0, 3: 9.0, 4: 9.0}),
        *scores("sft", {0: 2.0, 1: 2.0}),
        *scores("doe", {2: 2.0, 3: 2.0}),
    ]
    assert {row.strategy: row.loses_to_random for row in bench.rows_of(played, ["random", "sft", "doe"])} == {
        "random": False,
        "sft": True,
        "doe": False,
    }
