"""A search that may stop early: when nothing more can be gained, at the same trial whatever the order they end in, and never unasked."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.objective import fit_objective
from mixopt.prediction import predict
from mixopt.recommendation import expected_gain
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy, knowing
from mixopt.strategies.base import Assignment, Offer
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

DOMAINS = DomainSet(tuple(Domain(n, f"h-{n}", 10**7, t) for n, t in (("web", 60.0), ("code", 25.0), ("math", 15.0))), 100.0)
SPACE = MixtureSpace.from_domains(DOMAINS)
FACTORY = TrialFactory(DOMAINS, Source("trained", "nano", 10**6), {"window": 64}, "t", "1")
TRIALS = 32


def strategy(**changes: Any) -> Any:
    settings = {
        "space": SPACE, "domains": DOMAINS, "offers": (Offer(FACTORY.source, FACTORY.make, 1.0),), "surrogate": get_surrogate("gaussian_process"),
        "metrics": {"x": 1.0}, "objective_kind": "noise_scaled", "trials": TRIALS, "seeds": 3, "pull": 0.0, "seed": 0,
    }  # fmt: skip
    return get_strategy("regression", Assignment(**{**settings, **changes}))


def run(trials: list[Trial], bumpy: float) -> Swarm:
    """Losses of a bowl; `bumpy` adds waves that a few dozen trials cannot follow."""
    weights = np.array([trial.schedule.array()[0] for trial in trials])
    noise = np.array([np.random.default_rng(int(trial.trial_id[:8], 16)).normal(0, 0.01) for trial in trials])
    losses = 1.0 + ((weights - np.array([0.3, 0.4, 0.3])) ** 2).sum(axis=1) + bumpy * np.sin(40 * weights).sum(axis=1) + noise
    return Swarm.of_trials(DOMAINS.names, trials, ["x"], losses[:, None], [1.0] * len(trials))


def gain_after(count: int, bumpy: float) -> float:
    swarm = run(strategy().assignment.planned(TRIALS)[:count], bumpy)
    objective = fit_objective("noise_scaled", {"x": 1.0}, swarm, DOMAINS.natural())
    natural = DOMAINS.natural().array(SPACE.domains)
    prediction = predict(get_surrogate("gaussian_process"), swarm, objective, SPACE.domains, natural, 0)
    return expected_gain(prediction, SPACE, natural, 0)


def test_what_is_left_to_gain_shrinks_with_trials_and_is_more_where_little_can_be_predicted() -> None:
    assert 0 <= gain_after(32, 0.0) < gain_after(10, 0.0)
    assert gain_after(32, 0.1) > 3 * gain_after(32, 0.0)


def test_a_smooth_search_stops_at_half_and_a_bumpy_one_goes_on() -> None:
    searching = strategy(stop_early=True)
    plan = searching.assignment.planned(TRIALS)
    for bumpy, stops in ((0.0, True), (0.1, False)):
        assert (searching.ask(4, run(plan[:16], bumpy), [], []) == []) is stops
    assert searching.ask(4, run(plan[:15], 0.0), [], []) == plan[15:19], "it looks only once all of the first half are there"


def test_nothing_stops_unasked() -> None:
    plan = strategy().assignment.planned(TRIALS)
    assert strategy().ask(4, run(plan[:16], 0.0), [], []) == plan[16:20]


def test_repeats_of_the_calibration_count_and_are_not_taken_for_trials_of_the_search() -> None:
    """Seeds of one mixture that agree exactly say that noise is small: then there is more to gain than noise."""
    searching = strategy(stop_early=True)
    plan = searching.assignment.planned(TRIALS)
    done = run(plan[:16], 0.0)
    assert searching.ask(4, done, [], []) == []
    again = [FACTORY.make(plan[20].schedule, 900 + seed, "corner") for seed in range(400)]
    quiet = run(again, 0.0)
    first = quiet.table["bits_per_byte"][0]
    exact = Swarm(DOMAINS.names, quiet.table.with_columns(bits_per_byte=pl.lit(first), loss_nats=pl.lit(first)))
    assert knowing(searching, exact).ask(4, done, [], []) == plan[16:20]
    ahead = knowing(searching, run(plan[:20], 0.0))
    assert ahead.ask(1, run(plan[:3], 0.0), [], []) == [plan[3]], "what the calibration has trained is asked for nevertheless"
    assert knowing(searching, Swarm.empty(DOMAINS.names)) is searching


@pytest.mark.parametrize("more", [0, 3, 9])
def test_the_decision_does_not_hang_on_what_else_has_ended(more: int) -> None:
    """Slots train ahead of the first half; what they bring must not unmake the decision, or a finished search would begin anew."""
    searching = strategy(stop_early=True)
    plan = searching.assignment.planned(TRIALS)
    done = [*plan[:16], *plan[20 : 20 + more]]
    assert searching.ask(8, run(list(reversed(done)), 0.0), [], []) == []
    assert searching.ask(8, run(done, 0.0), [], []) == []


def test_small_searches_are_not_cut_short() -> None:
    searching = strategy(stop_early=True, trials=20)
    plan = searching.assignment.planned(TRIALS)
    assert searching.ask(4, run(plan[:10], 0.0), [], []) != []


def test_the_proposal_says_what_is_left_to_gain() -> None:
    searching = strategy()
    evidence = searching.propose(run(searching.assignment.planned(TRIALS), 0.0)).evidence
    assert evidence["expected_gain"] >= 0
    assert evidence["resolvable"]["seeds"] == 3
    assert evidence["resolvable"]["objective"] > evidence["objective_noise_std"]
