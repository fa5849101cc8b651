"""The designs behind strategies, each against a slow reference or a count on paper."""

from __future__ import annotations

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy
from mixopt.strategies.base import Assignment, Offer
from mixopt.strategies.climb import round_ends
from mixopt.strategies.doe import Information, d_optimal
from mixopt.strategies.grid import finest_lattice, lattice, sobol_mixtures, spread_out
from mixopt.strategies.scaling import allocation
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source

NAMES = ("web", "code", "math")
DOMAINS = DomainSet(tuple(Domain(name, f"h-{name}", 10**7, tokens) for name, tokens in zip(NAMES, (60.0, 25.0, 15.0), strict=True)), 100.0)
WIDE = DomainSet(tuple(Domain(name, f"h-{name}", 10**7, 100.0) for name in NAMES), 100.0)
EMPTY = Swarm.empty(NAMES)


def offer(size: str, cost: float, domains: DomainSet = DOMAINS) -> Offer:
    factory = TrialFactory(domains, Source("trained", size, 10**6), {"window": 64}, "t", "1")
    return Offer(factory.source, factory.make, cost, 1e6)


def assignment(
    trials: int, offers: tuple[Offer, ...] | None = None, domains: DomainSet = DOMAINS, surrogate: str = "gaussian_process"
) -> Assignment:
    return Assignment(
        space=MixtureSpace.from_domains(domains),
        domains=domains,
        offers=offers or (offer("nano", 1.0, domains),),
        surrogate=get_surrogate(surrogate),
        metrics={"valid/web": 1.0},
        objective_kind="noise_scaled",
        trials=trials,
        seeds=3,
        pull=0.0,
        seed=0,
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_a_lattice_holds_every_feasible_mixture_of_its_steps(steps: int) -> None:
    free = lattice(MixtureSpace.from_domains(WIDE), steps, 5000)
    assert free is not None
    assert len(free) == comb(steps + 2, 2)
    space = MixtureSpace.from_domains(DOMAINS)  # math weighs at most .6
    capped = lattice(space, steps, 5000)
    assert capped is not None
    every = [np.array(row) / steps for row in product(range(steps + 1), repeat=3) if sum(row) == steps]
    assert sorted(map(tuple, capped.round(9).tolist())) == sorted(
        tuple(row.round(9).tolist()) for row in every if space.contains(row[None])[0]
    )


def test_the_finest_lattice_is_the_last_that_fits() -> None:
    space = MixtureSpace.from_domains(WIDE)
    points = finest_lattice(space, 30)
    assert points is not None
    assert len(points) == comb(6 + 2, 2) == 28
    assert comb(7 + 2, 2) > 30
    assert finest_lattice(space, 2) is None
    assert lattice(space, 60, 100) is None


def test_points_are_taken_farthest_first() -> None:
    points = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.4, 0.5, 0.1], [0.0, 0.0, 1.0]])
    spread = spread_out(points, np.array([[0.45, 0.5, 0.05]]), NAMES)
    assert spread[:2].tolist() == [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert sorted(map(tuple, spread.tolist())) == sorted(map(tuple, points.tolist()))


def test_sobol_mixtures_fill_the_simplex_more_evenly_than_chance() -> None:
    space = MixtureSpace.from_domains(WIDE)
    sequence = sobol_mixtures(space, 0)
    points = np.array([next(sequence) for _ in range(256)])
    assert space.contains(points, 1e-9).all()
    # A quarter of the simplex lies where a weight is above a half; of 256 random draws the standard deviation of that share is .027.
    assert [(points[:, place] > 0.5).mean() for place in range(3)] == pytest.approx([0.25] * 3, abs=0.02)


def test_a_lattice_too_fine_to_list_is_refused() -> None:
    domains = DomainSet(tuple(Domain(f"d{place}", f"h{place}", 10**7, 100.0) for place in range(12)), 100.0)
    with pytest.raises(ConfigError, match="steps` is 8"):
        get_strategy("grid", assignment(20, domains=domains), {"steps": 8})


def test_rounds_end_where_their_shares_do() -> None:
    assert round_ends(112, (4, 2, 1)) == (64, 96, 112)
    assert round_ends(8, (4, 2, 1)) == (8,)
    assert round_ends(3, (4, 2, 1)) == (3,)
    assert round_ends(10, (6, 1)) == (9, 10)


@given(trials=st.integers(1, 400), rounds=st.lists(st.floats(0.1, 10), min_size=2, max_size=6))
def test_rounds_end_at_the_budget(trials: int, rounds: list[float]) -> None:
    ends = round_ends(trials, rounds)
    assert ends[-1] == trials
    assert list(ends) == sorted(set(ends))


def test_gains_are_differences_of_log_determinants() -> None:
    rng = np.random.default_rng(0)
    worths = rng.normal(0, 2, (4, 3))
    points = rng.dirichlet(np.ones(3), 6)
    information = Information.prior(worths, 2.0).with_points(points[:2])
    gains = information.gains(information.slopes(points))
    slow = [information.with_points(points[row : row + 1]).value() - information.value() for row in range(6)]
    assert gains == pytest.approx(slow, rel=1e-6)


def test_slopes_are_the_law_s_derivatives() -> None:
    """Central differences of c + exp(t . p) in units of the noise."""
    worths, weights = np.array([[0.3, -1.2, 0.5]]), np.array([[0.2, 0.5, 0.3]])
    slopes = Information.prior(worths, 2.0).slopes(weights)[0, 0]
    step = 1e-6
    moved = [(np.exp((worths[0] + step * e) @ weights[0]) - np.exp((worths[0] - step * e) @ weights[0])) / (2 * step) for e in np.eye(3)]
    assert slopes * 0.1 == pytest.approx([1.0, *moved], rel=1e-6)


def test_a_small_design_is_as_good_as_the_best_of_all() -> None:
    rng = np.random.default_rng(1)
    candidates = rng.dirichlet(np.full(3, 0.5), 12)
    information = Information.prior(rng.normal(0, 2, (4, 3)), 2.0)
    chosen = d_optimal(information, candidates, 4)
    assert len(set(chosen)) == 4
    best = max(
        information.with_points(candidates[list(rows)]).value() for rows in product(range(12), repeat=4) if sorted(set(rows)) == list(rows)
    )
    assert information.with_points(candidates[chosen]).value() > best - 0.02


def test_a_design_tells_more_than_the_common_one() -> None:
    trials = get_strategy("doe", assignment(9)).ask(9, EMPTY, [], [])
    common = get_strategy("regression", assignment(9)).ask(9, EMPTY, [], [])
    worths = np.random.default_rng(7).normal(0, 2, (32, 3))
    values = [
        Information.prior(worths, 2.0).with_points(np.array([trial.schedule.average().array(NAMES) for trial in asked])).value()
        for asked in (trials, common)
    ]
    assert values[0] > values[1] + 0.1


def test_sft_moves_one_domain_at_a_time() -> None:
    trials = get_strategy("sft", assignment(17)).ask(17, EMPTY, [], [])
    assert len(trials) == 5 + 4 * 3
    weights = np.array([trial.schedule.average().array(NAMES) for trial in trials[5:]])
    assert {trial.label for trial in trials[5:]} == {"sft"}
    ratios = weights / np.median(weights, axis=1, keepdims=True)
    assert ((np.abs(ratios - 1) > 1e-6).sum(axis=1) == 1).all()
    assert sorted(ratios[np.abs(ratios - 1) > 1e-6].round(6).tolist()) == sorted([3.0] * 3 + [2.0] * 3 + [0.5] * 3 + [round(1 / 3, 6)] * 3)


@settings(max_examples=100, deadline=None)
@given(
    costs=st.lists(st.floats(0.001, 0.9), min_size=1, max_size=4),
    trials=st.integers(1, 200),
    more=st.integers(0, 100),
    share=st.floats(0.0, 0.9),
)
def test_an_allocation_keeps_the_budget_and_only_grows(costs: list[float], trials: int, more: int, share: float) -> None:
    offers = (*(offer(f"s{place}", cost) for place, cost in enumerate(sorted(costs))), offer("answer", 1.0))
    counts, raised = allocation(offers, trials, share, 40), allocation(offers, trials + more, share, 40)
    assert sum(count * one.cost for count, one in zip(counts, offers, strict=True)) <= trials + 1e-6
    assert all(new >= old for new, old in zip(raised, counts, strict=True))
    assert all(count <= 40 for count in counts[:-1])
    assert list(counts[:-1]) == sorted(counts[:-1], reverse=True)
    assert (counts[-1] == 0) is (share == 0 or share * trials < 1 - 1e-9) or counts[-1] > 0


def test_an_allocation_by_hand() -> None:
    """Costs 1/16, 1/4 and 1; half of 20 is 10, over roots 1/4 + 1/2: rate 13.3, so 53 and 26 (and 10 of the last)."""
    offers = (offer("a", 1 / 16), offer("b", 1 / 4), offer("c", 1.0))
    assert allocation(offers, 20, 0.5, 100) == [53, 26, 10]
    assert allocation(offers, 20, 0.0, 100)[-1] == 0
    assert allocation(offers[-1:], 20, 0.5, 100) == [20]


def test_sources_share_their_mixtures() -> None:
    offers = (offer("nano", 0.125), offer("micro", 1.0))
    one = assignment(16, offers, surrogate="multi_source_gp")
    trials = get_strategy("scaling", one, {"answer_share": 0.5}).ask(500, EMPTY, [], [])
    by_size = {size: [trial.schedule for trial in trials if trial.source.size == size] for size in ("nano", "micro")}
    assert len(by_size["micro"]) >= 8
    assert len(by_size["nano"]) > len(by_size["micro"])
    assert by_size["nano"][: len(by_size["micro"])] == by_size["micro"]
    assert sum(0.125 if trial.source.size == "nano" else 1.0 for trial in trials) <= 16
    assert not [
        trial for trial in get_strategy("scaling", one, {"answer_share": 0.0}).ask(500, EMPTY, [], []) if trial.source.size == "micro"
    ]


def test_a_lowered_budget_asks_for_nothing_more() -> None:
    long = get_strategy("doe", assignment(14))
    asked = long.ask(14, EMPTY, [], [])
    assert len(asked) == 14
    assert get_strategy("doe", assignment(8)).ask(4, EMPTY, asked, []) == []
