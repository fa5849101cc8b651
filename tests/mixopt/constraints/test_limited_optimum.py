"""Optima under limits on the whole: against every choice of domains, against a grid, and what is said around them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.answer.local_search import BatchFunction, residuals
from mixopt.answer.near_optimal import find_near_optimal
from mixopt.answer.problem import Problem
from mixopt.answer.relaxation import relaxations
from mixopt.constraints.rules import Constraints, Near
from mixopt.domains import Domain, DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.optimum import Optimum, minimize
from mixopt.recommendation import Settings, recommend
from mixopt.space import MixtureSpace
from tests.mixopt.answer.conftest import Law, grid
from tests.mixopt.constraints.conftest import plain

SEEDS = st.integers(0, 2**32 - 1)


def power_laws(rng: np.random.Generator, count: int, metrics: int = 4, peaked: float = 3.0) -> BatchFunction:
    """A mean of power laws in own blends of the domains: convex, with optima on faces; the more peaked, the fewer domains serve a metric."""
    blends = rng.uniform(0, 1, (metrics, count)) ** peaked
    return lambda weights: np.asarray(((weights @ blends.T + 0.03) ** -0.35).mean(axis=1))


def solved(function: BatchFunction, space: MixtureSpace, candidates: int = 1500, smooth: bool = True) -> Optimum:
    return minimize(function, space, np.full((1, len(space.domains)), 1 / len(space.domains)), 0, smooth, candidates)


def keeps_everything(found: Optimum, space: MixtureSpace) -> None:
    assert space.contains(found.weights[None], 1e-9)[0]
    missed = found.residuals
    assert max(missed.sum, missed.bounds, missed.groups, missed.distance, missed.floors) < 1e-9
    assert missed.domains == 0


@settings(deadline=None, max_examples=12)
@given(SEEDS, st.sampled_from([5, 6, 7]), st.booleans())
def test_of_few_domains_no_other_choice_is_better(seed: int, count: int, near: bool) -> None:
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(0, 0.7, count)
    most = int(rng.integers(2, count - 1))
    caps = {0: (0.0, 0.35), count - 1: (0.05, 1.0)}
    largest = np.sort(tokens / tokens.sum())[::-1][:most].sum()
    distance = Near("natural", float(min(0.98, 1 - largest + 0.25)))
    space = MixtureSpace.from_domains(plain(tokens.tolist(), Constraints(most, distance if near else None), bounds=caps))
    function = power_laws(rng, count)
    found = solved(function, space)
    keeps_everything(found, space)
    supports = (np.isin(np.arange(count), chosen) for chosen in itertools.combinations(range(count), most))
    values = [
        solved(function, space.on_support(chosen), 200).value
        for chosen in supports
        if (chosen | ~space.supports.forced).all() and space.supports.feasible(chosen[None])[0]
    ]
    assert found.value <= min(values) + 1e-6


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_within_a_distance_no_point_of_a_grid_is_better(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space = MixtureSpace.from_domains(
        plain(rng.lognormal(0, 0.7, 3).tolist(), Constraints(None, Near("natural", float(rng.uniform(0.05, 0.4)))))
    )
    function = power_laws(rng, 3)
    found = solved(function, space)
    keeps_everything(found, space)
    assert found.residuals.first_order == pytest.approx(0, abs=1e-5)
    assert space.ball is not None
    points = grid(400)
    inside = 0.5 * np.abs(points - space.ball.centre).sum(axis=1) <= space.ball.distance
    values = function(points[inside])
    assert found.value <= values.min() + 1e-9
    assert found.value >= values.min() - 0.02


def test_of_many_domains_the_search_beats_a_thousand_random_choices() -> None:
    rng = np.random.default_rng(3)
    space = MixtureSpace.from_domains(plain(rng.lognormal(0, 1, 24).tolist(), Constraints(5, Near("natural", 0.75))))
    function = power_laws(rng, 24, 6, peaked=12.0)
    found = solved(function, space, 800)
    keeps_everything(found, space)
    assert found.value < function(space.sample(20_000, rng)).min() - 0.005


def test_a_group_of_given_shares_counts_all_of_its_domains() -> None:
    made = tuple(Domain(f"d{i}", f"h{i}", 1000, 1.0, "g" if i < 3 else "", max_epochs=1e9) for i in range(6))
    domains = DomainSet(made, 6.0, (GroupRule("g", "natural"),), Constraints(3))
    space = MixtureSpace.from_domains(domains)
    best = solved(lambda p: -p[:, :3].sum(axis=1) - 0.5 * p[:, 3], space)
    assert np.flatnonzero(best.weights).tolist() == [0, 1, 2]
    worse = solved(lambda p: -0.3 * p[:, :3].sum(axis=1) + ((p[:, 3:] - np.array([0.5, 0.3, 0.2])) ** 2).sum(axis=1), space)
    assert np.flatnonzero(worse.weights).tolist() == [3, 4, 5]
    for found in (best, worse):
        keeps_everything(found, space)


class AtLeast:
    """Some domains weigh at least so much, as a limit that only the optimizer knows."""

    scales = np.ones(1)

    def __init__(self, least: FloatArray) -> None:
        self.least = least

    def excess(self, weights: FloatArray) -> FloatArray:
        return np.asarray((self.least - weights).max(axis=1, keepdims=True))


def test_floors_decide_which_domains_there_are() -> None:
    space = MixtureSpace.from_domains(plain([1.0] * 5, Constraints(2)))

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(((weights - np.array([0.5, 0.3, 0.1, 0.1, 0.0])) ** 2).sum(axis=1))

    def within(least: list[float]) -> Optimum:
        return minimize(function, space, np.full((1, 5), 0.2), 0, candidates=800, limits=AtLeast(np.array(least)))

    found = within([0.0, 0.0, 0.3, 0.0, 0.0])
    keeps_everything(found, space)
    assert found.weights == pytest.approx([0.7, 0.0, 0.3, 0.0, 0.0], abs=1e-5)
    # Three domains would have to be there, and two may: what is closest misses one of them whole.
    closest = within([0.2, 0.2, 0.2, 0.0, 0.0])
    assert closest.method == "closest"
    assert space.contains(closest.weights[None])[0]
    assert closest.residuals.floors == pytest.approx(0.2)


def test_trees_find_the_domains_too() -> None:
    space = MixtureSpace.from_domains(plain([1.0] * 5, Constraints(2)))
    steps = np.array([5.0, 4.0, 3.0, 0.0, 0.0])
    found = solved(lambda p: -(np.floor(np.minimum(p, 0.5) * 8) * steps).sum(axis=1), space, 3000, smooth=False)
    keeps_everything(found, space)
    assert np.flatnonzero(found.weights).tolist() == [0, 1]


def test_misses_of_a_mixture_are_those_worked_out_by_hand() -> None:
    space = MixtureSpace.from_domains(plain([5.0, 3.0, 1.0, 1.0], Constraints(2, Near("natural", 0.3))))
    missed = residuals(lambda p: p[:, 0], space, np.array([0.1, 0.2, 0.7, 0.0]))
    assert missed.domains == 1
    assert missed.distance == pytest.approx(0.3)
    # Within the choice of d0 and d1, and 0.1 of the distance left, a percentage point can still leave d0.
    at = np.array([0.55, 0.45, 0.0, 0.0])
    assert residuals(lambda p: p[:, 0], space, at).first_order == pytest.approx(0.01, abs=1e-6)
    # At the distance allowed nothing can: d1 would have to grow further.
    assert residuals(lambda p: p[:, 0], space, np.array([0.4, 0.6, 0.0, 0.0])).first_order == pytest.approx(0, abs=1e-9)


def test_near_optimal_ranges_go_beyond_the_domains_of_the_optimum() -> None:
    """Two domains alike: either may be used, so that neither is needed."""
    space = MixtureSpace.from_domains(plain([1.0] * 4, Constraints(2)))

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray((weights[:, 0] - 0.6) ** 2 + 0.2 * weights[:, 3])

    optimum = np.array([0.6, 0.4, 0.0, 0.0])
    found = find_near_optimal(function, space, optimum, 0.01, seed=0)
    assert space.contains(found.mixtures, 1e-9).all()
    assert np.all(function(found.mixtures) <= 0.01)
    assert found.low == pytest.approx([0.5, 0.0, 0.0, 0.0], abs=1e-3)
    assert found.high == pytest.approx([0.7, 0.5, 0.5, 0.0], abs=1e-3)


def test_near_optimal_ranges_end_at_the_distance() -> None:
    space = MixtureSpace.from_domains(plain([6.0, 3.0, 1.0], Constraints(None, Near("natural", 0.15))))
    found = find_near_optimal(lambda p: np.zeros(len(p)), space, np.array([0.6, 0.3, 0.1]), 0.0, seed=0)
    assert found.low == pytest.approx([0.45, 0.15, 0.0], abs=1e-6)
    assert found.high == pytest.approx([0.75, 0.45, 0.25], abs=1e-6)


NAMES = ("d0", "d1", "d2", "d3")
# Toward .4, .3, .2, .1, each domain counting alike.
LAW = Law(NAMES, ("loss",), lambda weights: ((weights - np.array([0.4, 0.3, 0.2, 0.1])) ** 2).sum(axis=1, keepdims=True))


def test_one_domain_more_and_a_point_of_distance_are_worth_what_they_are() -> None:
    domains = plain([1.0, 1.0, 1.0, 7.0], Constraints(2, Near("natural", 0.5)))
    space, prediction = MixtureSpace.from_domains(domains), LAW.prediction(domains)
    problem = Problem.of(prediction, space, 0.0, None, np.full((1, 4), 0.25))
    found = problem.solve(2000)
    assert space.contains(found.weights[None])[0]
    told = {relaxation.change: relaxation for relaxation in relaxations(problem, domains, found.weights)}
    assert set(told) == {
        "the number of domains raised from 2 to 3",
        "the distance from the natural mixture raised from 0.5 to 0.51",
    }
    for change, constraints in (("number", Constraints(3, Near("natural", 0.5))), ("distance", Constraints(2, Near("natural", 0.51)))):
        (entry,) = (relaxation for text, relaxation in told.items() if change in text)
        wider = MixtureSpace.from_domains(plain([1.0, 1.0, 1.0, 7.0], constraints))
        best = problem.within(wider, None).solve(2000)
        assert entry.gain.mean == pytest.approx(best.value - found.value, abs=1e-4)
        assert entry.gain.mean < 0


def test_a_proposal_under_limits_is_whole() -> None:
    domains = plain([1.0, 1.0, 1.0, 7.0], Constraints(3, Near("natural", 0.55)))
    space = MixtureSpace.from_domains(domains)
    rng = np.random.default_rng(0)
    swarm = LAW.swarm(np.concatenate([rng.dirichlet(np.ones(4), 12), np.repeat(domains.natural().array()[None], 3, axis=0)]), 1e-3)
    proposal = recommend(swarm, space, domains, LAW, Settings({"loss": 1.0}, "mean", 1, 0.0, 0))
    weights = proposal.mixture.array()
    assert space.contains(weights[None], 1e-9)[0]
    assert "domains: at most 3 may have weight" in proposal.binding
    assert proposal.evidence["baselines"]["natural"]["feasible"] is False
    assert proposal.evidence["optimizer"]["residuals"]["domains"] == 0
    assert {relaxation.constraint for relaxation in proposal.relaxations} <= set(proposal.binding)
    for alternative in proposal.alternatives:
        assert space.contains(np.array([[alternative.weights[name] for name in NAMES]]), 1e-9)[0]
