"""Plays one strategy on one problem: asks, answers, and judges what it would propose at several costs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from searching.problems import ANSWER, CHEAP, Replay, Synthetic
from surrogates import load_regmix

from mixopt.answer.measured import best_measured
from mixopt.domains import DomainSet
from mixopt.errors import MixoptError
from mixopt.factory import TrialFactory
from mixopt.mixture import FloatArray
from mixopt.recommendation import Study, pose
from mixopt.strategies import get_strategy
from mixopt.strategies.base import Assignment, Offer, Strategy, learns
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source, Trial

PULL = 0.05
"""As searches have it; small against what is to be gained here."""
BATCH = 4
"""Trials asked for at once: two workers with packs of two. A learner knows the results of all before."""
SIZES = {"small": 1e6, "large": 8e6}


@dataclass(frozen=True)
class Entrant:
    """A strategy with its settings, under the name that the table shows.

    Attributes:
        replans: whether the trials that it asks for depend on the budget, so that every budget is a search of its own.
        measured: whether it proposes the best mixture that it has run, and no predicted one.
        dear: played with fewer seeds.
    """

    name: str
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: int = 1
    surrogate: str = ""
    replans: bool = False
    measured: bool = False
    dear: bool = False


@dataclass(frozen=True)
class Score:
    """What one search had reached at one cost."""

    entrant: str
    problem: str
    domains: int
    seed: int
    cost: float
    regret: float
    ask_seconds: float
    spent: float


Problem = Synthetic | Replay


def problem_of(name: str, seed: int, data: Path | None) -> Problem:
    """The problem that the table calls so: `law 17`, `regmix` or `regmix 60m`."""
    kind, _, rest = name.partition(" ")
    if kind == "law":
        return Synthetic(int(rest), seed)
    assert data is not None, "the tables of RegMix are not there"
    return Replay(load_regmix(data), seed, two_sources=rest == "60m")


def assignment_of(problem: Problem, entrant: Entrant, trials: int, seed: int) -> Assignment:
    sources = [CHEAP, ANSWER][2 - entrant.sources :]
    surrogate = entrant.surrogate or ("multi_source_gp" if len(sources) > 1 else "gaussian_process")
    return Assignment(
        space=problem.space,
        domains=problem.domains,
        offers=tuple(Offer(source, _maker(problem.domains, source), problem.cost(source), SIZES[source.size]) for source in sources),
        surrogate=get_surrogate(surrogate, sizes=SIZES) if len(sources) > 1 else get_surrogate(surrogate),
        metrics=dict.fromkeys(problem.metrics, 1.0),
        objective_kind="noise_scaled" if isinstance(problem, Synthetic) else "mean",
        trials=trials,
        seeds=3,
        pull=PULL,
        seed=seed,
        measured_only=isinstance(problem, Synthetic),
    )


def _maker(domains: DomainSet, source: Source) -> Any:
    return TrialFactory(domains, source, {"window": 512}, "tokenizer", "1").make


def play(problem: Problem, entrant: Entrant, costs: Sequence[int], seed: int) -> list[Score]:
    """Scores at every cost that the strategy reaches."""
    if entrant.replans:
        return [score for cost in costs for score in _one_search(problem, entrant, cost, [cost], seed)]
    return _one_search(problem, entrant, max(costs), costs, seed)


def _one_search(problem: Problem, entrant: Entrant, trials: int, costs: Sequence[int], seed: int) -> list[Score]:
    assignment = assignment_of(problem, entrant, trials, seed)
    strategy = get_strategy(entrant.strategy, assignment, entrant.options)
    asked: list[Trial] = []
    scores: list[Score] = []
    seconds: list[float] = []
    swarm, left = Swarm.empty(problem.domains.names), sorted(costs)
    while left:
        spent = sum(problem.cost(trial.source) for trial in asked)
        # A learner is asked a few at a time; what is known beforehand, up to the next judgement.
        room = max(1, round((left[0] - spent) / problem.cost(assignment.offers[0].source)))
        begun = time.perf_counter()
        fresh = strategy.ask(min(BATCH, room) if learns(strategy) else room, swarm, [], [])
        seconds.append((time.perf_counter() - begun) / max(len(fresh), 1))
        asked += fresh
        swarm = problem.run(asked, seed)
        spent = sum(problem.cost(trial.source) for trial in asked)
        while left and (spent >= left[0] - 1e-9 or not fresh):
            cost = left.pop(0)
            regret = judge(problem, entrant, assignment, strategy, swarm)
            scores.append(
                Score(entrant.name, problem.name, len(problem.domains.names), seed, cost, regret, float(np.median(seconds)), spent)
            )
    return scores


def judge(problem: Problem, entrant: Entrant, assignment: Assignment, strategy: Strategy, swarm: Swarm) -> float:
    """Regret of what the strategy would propose now; infinite where it cannot yet."""
    try:
        if isinstance(problem, Replay):
            return _judged_on_rows(problem, entrant, assignment, swarm)
        if entrant.measured:
            return problem.regret(strategy.propose(swarm).mixture.array(problem.domains.names))
        return problem.regret(answer(assignment, swarm))
    except MixoptError:
        return float("inf")


def answer(assignment: Assignment, swarm: Swarm) -> FloatArray:
    """The mixture (domains,) of `Assignment.recommend`, without the evidence that people want beside it."""
    study = Study.of(assignment.fitted(swarm), assignment.space, assignment.domains, assignment.surrogate, assignment.settings)
    best = best_measured(study.measured, assignment.space)
    assert assignment.pull is not None
    return pose(study, assignment.space, assignment.domains, best, assignment.settings, assignment.pull).solve().weights


def _judged_on_rows(problem: Replay, entrant: Entrant, assignment: Assignment, swarm: Swarm) -> float:
    truth = problem.objective(ANSWER)
    weights = problem.pools[ANSWER][0]
    metrics = list(problem.metrics)
    if entrant.measured:
        runs = swarm.at_source(ANSWER)
        best = int(runs.values(metrics).mean(axis=1).argmin())
        row = int(np.abs(weights - runs.points().averages()[best]).sum(axis=1).argmin())
        return float(truth[row])
    fitted = assignment.surrogate.fit(assignment.fitted(swarm), metrics)
    mean = fitted.mean(Points(problem.domains.names, weights[:, None, :], (ANSWER,) * len(weights)))
    return float(truth[int(mean.mean(axis=1).argmin())])
