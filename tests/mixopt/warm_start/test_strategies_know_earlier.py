"""What earlier runs change for a strategy: what it is fitted to, and nothing of what it asks for, measures or recommends as measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy, strategy_names, with_earlier
from mixopt.strategies.base import Assignment, Offer
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

SOURCE, OTHER = Source("trained", "nano", 1000), Source("earlier-01234567", "nano", 1000)
NAMES = ("web", "code", "math")
DOMAINS = DomainSet(tuple(Domain(name, f"hash-{name}", 10**7, 60.0) for name in NAMES), 100.0)
WORTH = np.array([0.2, 1.0, 0.5])


def losses(weights: FloatArray) -> FloatArray:
    return np.asarray(1 + (weights @ WORTH + 0.05) ** -0.4)


def measured(trials: list[Trial], seed: int = 0) -> Swarm:
    rng = np.random.default_rng(seed)
    values = np.array([losses(trial.schedule.array())[:1] + 0.005 * rng.normal() for trial in trials]).reshape(len(trials), 1)
    return Swarm.of_trials(NAMES, trials, ["target/t"], values, [1e9] * len(trials))


def earlier(source: Source, count: int = 30, offset: float = 0.0) -> Swarm:
    """Runs over web and code only, as before math was added."""
    rng = np.random.default_rng(5)
    weights = np.zeros((count, 1, 3))
    weights[:, 0, :2] = rng.dirichlet(np.ones(2), count)
    values = losses(weights[:, 0]) + offset + 0.005 * rng.normal(size=count)
    swarm = Swarm.from_arrays(NAMES, weights, ["target/t"], values[:, None], source, trial_ids=[f"old-{row:02d}" for row in range(count)])
    return Swarm.of_tables(NAMES, swarm.runs, swarm.losses.with_columns(flops=pl.lit(1e9)))


def assignment(surrogate: str = "gaussian_process", trials: int = 12) -> Assignment:
    factory = TrialFactory(DOMAINS, SOURCE, {"window": 10}, "tokenizer", "engine")
    space = MixtureSpace.from_domains(DOMAINS)
    offers = (Offer(SOURCE, factory.make, 1.0),)
    return Assignment(space, DOMAINS, offers, get_surrogate(surrogate), {"target/t": 1.0}, "noise_scaled", trials, 3, 0.05, 0)


@pytest.mark.parametrize("name", sorted(set(strategy_names()) - {"pareto"}))  # a front has more than one metric
def test_earlier_runs_are_no_trials_of_the_budget(name: str) -> None:
    given = assignment(trials=6)
    plain = get_strategy(name, given)
    warm = with_earlier(plain, earlier(SOURCE))
    asked = warm.ask(6, Swarm.empty(NAMES), [], [])
    without = plain.ask(6, Swarm.empty(NAMES), [], [])
    assert len(asked) == len(without) > 0
    # A sampler may take earlier runs for what it has seen; the common start is the same.
    same = len(asked) if name != "optuna" else 3
    assert [trial.trial_id for trial in asked[:same]] == [trial.trial_id for trial in without[:same]]


def test_trials_like_its_own_are_measured_and_sharpen_the_answer() -> None:
    given = assignment()
    completed = measured(given.planned(12))
    strategy = get_strategy("regression", given)
    warm = with_earlier(strategy, earlier(SOURCE)).propose(completed)
    assert warm.evidence["earlier_runs"] == {"like_trials": 30, "other_sources": 0, "by_source": {SOURCE.key: 30}}
    assert warm.evidence["trials"] == 42
    assert len(warm.evidence["objective_over_trials"]) == 42
    assert "earlier_runs" not in strategy.propose(completed).evidence


def test_runs_of_another_source_are_never_measured_here() -> None:
    """Theirs are lower by 5 throughout: they would be the best measured, and the spread, of everything."""
    given = assignment("multi_source_gp")
    completed = measured(given.planned(12))
    plain = get_strategy("regression", given).propose(completed)
    warm = with_earlier(get_strategy("regression", given), earlier(OTHER, offset=-5.0)).propose(completed)
    assert warm.best_measured["trial_id"] == plain.best_measured["trial_id"]
    assert warm.evidence["earlier_runs"] == {"like_trials": 0, "other_sources": 30, "by_source": {OTHER.key: 30}}
    assert warm.evidence["objective_noise_std"] == pytest.approx(plain.evidence["objective_noise_std"])
    assert [row["trial_id"] for row in warm.evidence["objective_over_trials"]] == list(completed.trial_ids)
    objectives = [replace(given, earlier=runs).objective(completed) for runs in (None, earlier(OTHER, offset=-5.0))]
    assert objectives[0] == objectives[1]
    weights = warm.mixture.array(NAMES)
    assert losses(weights[None])[0] <= losses(plain.mixture.array(NAMES)[None])[0] + 0.05


def test_earlier_runs_that_the_search_has_itself_count_once() -> None:
    given = assignment()
    trials = given.planned(12)
    completed = measured(trials)
    again = replace(given, earlier=completed.select([trials[0].trial_id, trials[3].trial_id]))
    assert again.fitted(completed).trial_ids == completed.trial_ids
    assert len(again.fitted(completed).losses) == len(completed.losses)


def test_own_runs_are_own_whatever_their_source_and_earlier_ones_are_told_by_source() -> None:
    """Of two sources: runs that the search has itself at either, runs like its own at either that it did not ask for, and others."""
    given = assignment("multi_source_gp")
    cheap = Source("trained", "nano", 500)
    cheaper = TrialFactory(DOMAINS, cheap, {"window": 10}, "tokenizer", "engine")
    given = replace(given, offers=(Offer(cheap, cheaper.make, 0.5), *given.offers))
    own, small = given.planned(8), given.planned(16, offer=given.offers[0])
    completed = measured([*own, *small[:6]])
    before = measured([*own[:2], *small, *given.planned(11)[8:]]).with_others(earlier(OTHER, 5))
    expected = {"like_trials": 13, "other_sources": 5, "by_source": {cheap.key: 10, SOURCE.key: 3, OTHER.key: 5}}
    for name in ("bayes", "random"):
        proposal = with_earlier(get_strategy(name, given), before).propose(completed)
        assert proposal.evidence["earlier_runs"] == expected
    assert given.fitted(completed).trial_ids == completed.trial_ids


def test_bayes_asks_in_view_of_earlier_runs_like_its_own_and_keeps_no_beliefs_from_before_it_knew_them() -> None:
    plain = get_strategy("bayes", assignment(trials=16), {"first": 12})
    done = plain.ask(12, Swarm.empty(NAMES), [], [])
    swarm = measured(done)
    without = plain.ask(1, swarm, [], [])
    warm = with_earlier(plain, earlier(SOURCE))
    learned = warm.ask(1, swarm, [], [])
    assert [trial.label for trial in (*without, *learned)] == ["bayes", "bayes"]
    assert np.abs(learned[0].schedule.array() - without[0].schedule.array()).sum() > 1e-6
    assert learned == with_earlier(get_strategy("bayes", assignment(trials=16), {"first": 12}), earlier(SOURCE)).ask(1, swarm, [], [])
    assert plain.ask(1, swarm, [], []) == without
