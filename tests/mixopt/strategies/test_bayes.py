"""Bayesian optimization beyond the contract: what is under way, several sources and their budget, a source that misleads, a front and its point."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy
from mixopt.strategies.base import Assignment, Offer, asks_ahead, learns, objective_of
from mixopt.strategies.ledger import Ledger
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

NAMES = ("web", "code", "books", "math", "law")
TOKENS = (60.0, 20.0, 10.0, 6.0, 4.0)
DOMAINS = DomainSet(tuple(Domain(name, f"h-{name}", 10**7, count) for name, count in zip(NAMES, TOKENS, strict=True)), 100.0)
SPACE = MixtureSpace.from_domains(DOMAINS)
CHEAP, DEAR = Source("trained", "1M", 10**6), Source("trained", "8M", 10**6)
METRICS = ("a", "b")
Law = Callable[[FloatArray], FloatArray]


def law(weights: FloatArray) -> FloatArray:
    blends = np.array([[0.2, 1.0, 0.1, 0.7, 0.05], [0.5, 0.1, 1.0, 0.4, 0.05]])
    return np.asarray(1.0 + (weights @ blends.T + 0.03) ** -0.35)


def unrelated(weights: FloatArray) -> FloatArray:
    """Likes what the law does not."""
    return np.asarray(2.0 + np.stack([weights[:, 1] - weights[:, 4], weights[:, 2] - weights[:, 0]], axis=1))


def outcomes(trials: Sequence[Trial], cheap: Law = law) -> Swarm:
    parts = []
    for source, truth in ((CHEAP, cheap), (DEAR, law)):
        own = [trial for trial in trials if trial.source == source]
        if own:
            weights = np.array([trial.schedule.average().array(NAMES) for trial in own])
            luck = np.array([np.random.default_rng(int(trial.trial_id[:8], 16)).normal(0, 0.01, 2) for trial in own])
            ids = [trial.trial_id for trial in own]
            parts.append(Swarm.from_arrays(NAMES, weights[:, None], METRICS, truth(weights) + luck, source, trial_ids=ids))
    if not parts:
        return Swarm.empty(NAMES)
    runs, losses = parts[0].runs, parts[0].losses
    for part in parts[1:]:
        runs, losses = runs.vstack(part.runs), losses.vstack(part.losses)
    return Swarm.of_tables(NAMES, runs, losses)


def assignment(sources: int = 1, trials: int = 24, **changes: Any) -> Assignment:
    offers = [
        Offer(source, TrialFactory(DOMAINS, source, {"window": 512}, "t", "1").make, cost, size)
        for source, cost, size in ((CHEAP, 1.0, 1e6), (DEAR, 8.0, 8e6))
    ]
    surrogate = get_surrogate("gaussian_process" if sources == 1 else "multi_source_gp")
    given = {
        "space": SPACE, "domains": DOMAINS, "offers": tuple(offers[2 - sources :]), "surrogate": surrogate, "metrics": dict.fromkeys(METRICS, 1.0),
        "objective_kind": "noise_scaled", "trials": trials, "seeds": 3, "pull": 0.0, "seed": 0,
    }  # fmt: skip
    return Assignment(**{**given, **changes})


def finish(strategy: Any, cheap: Law = law, batch: int = 4) -> list[Trial]:
    done: list[Trial] = []
    while fresh := strategy.ask(batch, outcomes(done, cheap), [], []):
        done += fresh
        assert len(done) < 400
    return done


def regret(weights: FloatArray) -> float:
    many = SPACE.sample(20_000, np.random.default_rng(0))
    return float((law(weights[None]).mean(axis=1) - law(many).mean(axis=1).min())[0])


def test_it_says_that_it_learns_and_thinks() -> None:
    for name in ("bayes", "pareto"):
        strategy = get_strategy(name, assignment())
        assert learns(strategy)
        assert asks_ahead(strategy)


def test_the_first_design_holds_the_repeats_that_noise_is_measured_by() -> None:
    first = get_strategy("bayes", assignment()).ask(100, outcomes([]), [], [])
    mixtures = [trial.schedule.average().weights for trial in first]
    assert [mixtures.count(baseline.weights) for baseline in (DOMAINS.natural(), DOMAINS.uniform())] == [3, 3]


def test_waits_for_the_first_design_and_then_spreads_what_is_under_way() -> None:
    strategy = get_strategy("bayes", assignment(), {"first": 12})
    first = strategy.ask(100, outcomes([]), [], [])
    assert len(first) == 12
    assert strategy.ask(4, outcomes([]), first, []) == []
    assert strategy.ask(4, outcomes(first[:5]), first[5:], []) == []
    fresh = strategy.ask(6, outcomes(first[:8]), first[8:], [])
    weights = np.array([trial.schedule.average().array(NAMES) for trial in fresh])
    assert [trial.label for trial in fresh] == ["bayes"] * 6
    assert SPACE.contains(weights, 1e-9).all()
    apart = 0.5 * np.abs(weights[:, None] - weights[None]).sum(axis=2)[np.triu_indices(6, 1)]
    assert np.median(apart) > 0.02
    alone = strategy.ask(1, outcomes(first[:8]), [*first[8:], *fresh], [])
    assert alone[0].trial_id not in {trial.trial_id for trial in fresh}


def test_a_mixture_that_was_abandoned_is_not_tried_again_nearby() -> None:
    strategy = get_strategy("bayes", assignment())
    first = strategy.ask(100, outcomes([]), [], [])
    wished = strategy.ask(1, outcomes(first), [], [])
    again = strategy.ask(1, outcomes(first), [], wished)
    move = np.abs(again[0].schedule.average().array(NAMES) - wished[0].schedule.average().array(NAMES)).sum()
    assert 0.5 * move > 0.01


@pytest.mark.parametrize("measured_only", [True, False])
def test_runs_without_the_natural_mixture_and_repeats_are_learned_from_where_that_may_be(measured_only: bool) -> None:
    """As in a table of somebody's runs; a search of our own waits for what it asked for."""
    strategy = get_strategy("bayes", assignment(measured_only=measured_only), {"first": 20})
    first = strategy.ask(100, outcomes([]), [], [])
    drawn = [trial for trial in first if trial.label == "design"]
    assert len(drawn) >= 10, "half of the first design"
    wished = strategy.ask(1, outcomes(drawn), [trial for trial in first if trial not in drawn], [])
    assert [trial.label for trial in wished] == ([] if measured_only else ["bayes"])


@pytest.mark.parametrize("trials", ["feasible", "anywhere"])
def test_infeasible_trials_are_run_only_where_that_is_wanted(trials: str) -> None:
    one = assignment(trials=20)
    strategy = get_strategy("bayes", one, {"trials": trials, "acquisition": "knowledge", "first": 12})
    learned = [trial for trial in finish(strategy) if trial.label == "bayes"]
    inside = SPACE.contains(np.array([trial.schedule.average().array(NAMES) for trial in learned]), 1e-9)
    assert inside.all() == (trials == "feasible")


def test_several_sources_keep_to_the_budget_and_the_dear_one_gets_its_share() -> None:
    one = assignment(2, trials=10)
    done = finish(get_strategy("bayes", one))
    dear = sum(trial.source == DEAR for trial in done)
    cost = sum(8.0 if trial.source == DEAR else 1.0 for trial in done)
    assert 79 <= cost <= 80
    assert dear >= 5
    assert 8 * dear >= 0.25 * cost
    assert sum(trial.source == CHEAP for trial in done) > 12, "more than the first design, where it tells something"
    assert {trial.trial_id for trial in done[:12] if trial.source == CHEAP} | set() != set()


def test_what_a_cheap_source_tells_is_used_and_what_misleads_is_left() -> None:
    one = assignment(2, trials=12)
    helped = finish(get_strategy("bayes", one))
    misled = finish(get_strategy("bayes", one), unrelated)
    natural = regret(DOMAINS.natural().array(NAMES))
    for done, cheap in ((helped, law), (misled, unrelated)):
        proposal = get_strategy("bayes", one).propose(outcomes(done, cheap))
        assert regret(proposal.mixture.array(NAMES)) < 0.35 * natural
    learned = [trial.source for trial in misled if trial.label == "bayes"]
    assert learned.count(DEAR) * 8 > learned.count(CHEAP), "most of what is spent afterwards goes to the source that tells something"


def test_ledger_counts_by_source_and_holds_the_least_share() -> None:
    ledger = Ledger.of(assignment(2, trials=2), outcomes([]), [])
    assert ledger.affordable() == [0, 1]
    for _ in range(9):
        ledger = ledger.after(CHEAP)
    assert ledger.affordable() == [0]
    ledger = Ledger.of(assignment(2, trials=3), outcomes([]), []).after(CHEAP).after(CHEAP)
    assert ledger.choices(0.25) == [1]
    assert ledger.choices(0.0) == [0, 1]


@pytest.fixture(scope="module")
def front_search() -> tuple[Assignment, Swarm]:
    one = assignment(trials=20)
    return one, outcomes(finish(get_strategy("pareto", one)))


def test_what_a_front_proposes_is_verified_by_what_it_was_proposed_for(front_search: tuple[Assignment, Swarm]) -> None:
    one, swarm = front_search
    for preferences, heavy in (({"a": 1.0, "b": 0.0}, "a"), ({"a": 0.0, "b": 1.0}, "b")):
        strategy = get_strategy("pareto", one, {"preferences": preferences})
        objective = objective_of(strategy, swarm)
        assert objective.metrics == (heavy,)
        proposal = strategy.propose(swarm)
        assert proposal.evidence["objective"]["metrics"] == (heavy,)
    assert objective_of(get_strategy("bayes", one), swarm).metrics == METRICS
    with pytest.raises(ConfigError, match="is mean, and the strategy"):
        get_strategy("pareto", replace(one, objective_kind="mean"))


def test_a_front_lies_in_the_evidence_and_no_point_of_it_beats_another(front_search: tuple[Assignment, Swarm]) -> None:
    one, swarm = front_search
    proposal = get_strategy("pareto", one).propose(swarm)
    front = json.loads(json.dumps(proposal.to_json(), allow_nan=False))["evidence"]["front"]
    values = np.array([point["mean"] for point in front["predicted"]])
    assert front["objectives"] == ["a", "b"]
    assert len(values) >= 3
    assert np.all(np.diff(values[:, 0]) > 0)
    assert np.all(np.diff(values[:, 1]) < 0)
    assert front["hypervolume"] > 0
    assert len(front["measured"]) == 20
    best = [point["values"] for point in front["measured"] if point["undominated"]]
    assert best
    # The proposal is on the predicted front, up to the optimizer: no point of it is better in both by more than a tenth of the noise.
    assert not np.any(np.all(values < np.array(front["proposal"]) - 0.1, axis=1))


def test_preferences_move_the_proposal_along_the_front(front_search: tuple[Assignment, Swarm]) -> None:
    one, swarm = front_search
    found = []
    for wished in ({"code": 8.0, "prose": 1.0}, {"code": 1.0, "prose": 8.0}):
        options = {"objectives": {"code": {"a": 1.0}, "prose": {"b": 1.0}}, "preferences": wished}
        found.append(get_strategy("pareto", one, options).propose(swarm).evidence["front"]["proposal"])
    assert found[0][0] < found[1][0]
    assert found[0][1] > found[1][1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"objectives": {"only": {"a": 1.0}}}, "two to four"),
        ({"objectives": {}}, "are 0; a front has two to four"),
        ({"objectives": {"x": {"a": 1.0}, "y": {"c": 1.0}}}, "objectives.y"),
        ({"objectives": {"x": {"a": 1.0}, "y": {"b": 0.0}}}, "objectives.y"),
        ({"preferences": {"a": 1.0}}, "preferences"),
        ({"preferences": {"a": 0.0, "b": 0.0}}, "preferences"),
    ],
)
def test_a_front_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        get_strategy("pareto", assignment(), options)


def test_a_front_over_several_sources_is_refused() -> None:
    with pytest.raises(ConfigError, match="one source"):
        get_strategy("pareto", replace(assignment(2)))
