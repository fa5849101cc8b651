"""Sensitivities and relaxations of linear laws, which can be worked out by hand; and that relaxing never predicts a loss."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.answer.constraints import place_floors
from mixopt.answer.floors import Floor
from mixopt.answer.problem import Problem
from mixopt.answer.relaxation import MOST_TRIED, relaxations, sensitivities
from mixopt.domains import DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.proposal import Relaxation
from mixopt.space import MixtureSpace
from tests.mixopt.answer.conftest import NOISE, Law, domain_set

NAMES = ("a", "b", "c")
# More of a is better, of c worse; metric two is what more of a costs.
SLOPES = np.array([-3.0, 0.0, 2.0])
LINEAR = Law(NAMES, ("one", "two"), lambda p: np.stack([5 + p @ SLOPES, 1 + p[:, 0]], axis=1))
EVEN = dict.fromkeys(NAMES, 1.0)


def posed(law: Law, domains: DomainSet, pull: float = 0.0, floors: tuple[Floor, ...] = ()) -> Problem:
    prediction = law.prediction(domains, weights={"one": 1.0})
    natural = domains.natural().array()
    limits = place_floors(prediction, floors, {"natural": natural}, prediction.noise(), 0.0)
    return Problem.of(prediction, MixtureSpace.from_domains(domains), pull, limits, natural[None])


def relaxed(domains: DomainSet, *floors: Floor, law: Law = LINEAR) -> tuple[FloatArray, dict[str, Relaxation]]:
    """The answer, and what relaxing each constraint would bring by what was changed."""
    problem = posed(law, domains, floors=floors)
    weights = problem.solve(1000).weights
    return weights, {relaxation.change: relaxation for relaxation in relaxations(problem, domains, weights)}


def test_sensitivities_are_the_change_for_a_point_that_the_others_give_in_proportion() -> None:
    domains = domain_set(EVEN)
    problem = posed(LINEAR, domains)
    weights = np.array([0.5, 0.2, 0.3])
    found = sensitivities(problem.prediction, problem.space, weights)
    for index, name in enumerate(NAMES):
        corner = np.eye(3)[index]
        expected = (corner - weights) @ SLOPES * 0.01 / (1 - weights[index])
        assert found[name].mean == pytest.approx(expected, abs=1e-7)
        assert found[name].low <= found[name].mean <= found[name].high


def test_a_domain_without_room_for_a_point_has_no_sensitivity() -> None:
    problem = posed(LINEAR, domain_set(EVEN))
    assert set(sensitivities(problem.prediction, problem.space, np.array([0.995, 0.005, 0.0]))) == {"b", "c"}


def test_a_group_of_given_shares_is_one_sensitivity() -> None:
    domains = domain_set(EVEN, groups={"b": "g", "c": "g"}, rules=(GroupRule("g", "natural"),))
    problem = posed(LINEAR, domains)
    found = sensitivities(problem.prediction, problem.space, np.array([0.5, 0.25, 0.25]))
    assert len(found) == 2
    assert found["a"].mean == pytest.approx(-found[next(name for name in found if name != "a")].mean, abs=1e-7)


def test_inside_all_constraints_there_is_nothing_to_relax() -> None:
    law = Law(NAMES, ("one",), lambda p: ((p - np.array([0.4, 0.3, 0.3])) ** 2).sum(axis=1, keepdims=True))
    assert relaxed(domain_set(EVEN, bounds={"a": (0.1, 0.9)}), law=law)[1] == {}


def test_bounds_are_moved_by_a_point_and_gain_the_difference_of_the_slopes() -> None:
    """a at most .2 and c at least .1: b takes the rest. A point of a instead of b gains .03, a point less of c .02."""
    weights, found = relaxed(domain_set(EVEN, bounds={"a": (0.0, 0.2), "c": (0.1, 1.0)}))
    np.testing.assert_allclose(weights, [0.2, 0.7, 0.1], atol=1e-6)
    assert list(found) == ["the largest weight of a raised from 0.2 to 0.21", "the least weight of c lowered from 0.1 to 0.09"]
    assert [relaxation.gain.mean for relaxation in found.values()] == pytest.approx([-0.03, -0.02], abs=1e-6)
    np.testing.assert_allclose(list(found[next(iter(found))].weights.values()), [0.21, 0.69, 0.1], atol=1e-5)
    assert [relaxation.constraint for relaxation in found.values()] == ["a: bounds allow at most 0.2", "c: bounds ask for at least 0.1"]


def test_epoch_caps_are_raised_by_a_tenth() -> None:
    """One token of a, a budget of 16, four epochs: a quarter; with 4.4 epochs .275."""
    weights, found = relaxed(domain_set({"a": 1.0, "b": 10.0, "c": 10.0}, budget=16.0))
    np.testing.assert_allclose(weights, [0.25, 0.75, 0.0], atol=1e-6)
    (raised,) = found.values()
    assert raised.change == "`max_epochs` of a raised from 4 to 4.4"
    assert raised.gain.mean == pytest.approx(-0.025 * 3, abs=1e-6)


def test_a_fixed_weight_is_relaxed_both_ways_and_only_one_of_them_gains() -> None:
    _, found = relaxed(domain_set(EVEN, bounds={"a": (0.3, 0.3)}))
    gains = {change: relaxation.gain.mean for change, relaxation in found.items()}
    assert gains == {
        "the largest weight of a raised from 0.3 to 0.31": pytest.approx(-0.03, abs=1e-6),
        "the least weight of a lowered from 0.3 to 0.29": pytest.approx(0, abs=1e-9),
    }
    stays = found["the least weight of a lowered from 0.3 to 0.29"]
    np.testing.assert_allclose(list(stays.weights.values()), [0.3, 0.7, 0.0], atol=1e-6)


def test_bounds_of_groups_are_moved_by_a_point() -> None:
    """a and b are a group of at most .6, a may have .5: a point for the group is a point from c to b."""
    rules = (GroupRule("g", bounds=(0.0, 0.6)),)
    weights, found = relaxed(domain_set(EVEN, bounds={"a": (0.0, 0.5)}, groups={"a": "g", "b": "g"}, rules=rules))
    np.testing.assert_allclose(weights, [0.5, 0.1, 0.4], atol=1e-6)
    gains = {change: relaxation.gain.mean for change, relaxation in found.items()}
    assert gains == {
        "the largest weight of a raised from 0.5 to 0.51": pytest.approx(-0.03, abs=1e-6),
        "the largest weight of group g raised from 0.6 to 0.61": pytest.approx(-0.02, abs=1e-6),
    }


def test_a_floor_is_loosened_by_one_noise() -> None:
    """Metric two allows .3 of a; a noise of .01 more is a point of a, from b."""
    weights, found = relaxed(domain_set(EVEN), Floor("two", 1.3))
    np.testing.assert_allclose(weights, [0.3, 0.7, 0.0], atol=1e-5)
    (loosened,) = found.values()
    assert loosened.change == f"the floor on two loosened by one noise, {NOISE:g} bits per byte"
    assert loosened.gain.mean == pytest.approx(-0.03, abs=1e-5)


def test_two_constraints_in_one_anothers_way_bring_nothing_alone() -> None:
    _, found = relaxed(domain_set(EVEN, bounds={"a": (0.0, 0.3)}), Floor("two", 1.3))
    assert len(found) == 2
    assert [relaxation.gain.mean for relaxation in found.values()] == pytest.approx([0, 0], abs=1e-5)


def test_of_many_constraints_those_are_tried_that_are_pressed_against_most() -> None:
    """Twenty capped domains, all full but the last: the steepest twelve are told, the most wanted first."""
    names = tuple(f"d{index:02d}" for index in range(20))
    slopes = np.linspace(-2, 0, 20)
    law = Law(names, ("one",), lambda p: (5 + p @ slopes)[:, None])
    _, found = relaxed(domain_set(dict.fromkeys(names, 1.0), bounds=dict.fromkeys(names, (0.0, 0.0525))), law=law)
    assert len(found) == MOST_TRIED
    assert [relaxation.constraint.split(":")[0] for relaxation in found.values()] == list(names[:MOST_TRIED])
    gains = [relaxation.gain.mean for relaxation in found.values()]
    assert gains == sorted(gains)


def test_a_constraint_of_a_piecewise_constant_prediction_is_relaxed_by_search() -> None:
    law = Law(NAMES, ("one",), lambda p: 1 - np.floor(100 * p[:, :1] + 1e-9) / 100)
    problem = posed(law, domain_set(EVEN, bounds={"a": (0.0, 0.2)}))
    assert not problem.smooth
    weights = np.array([0.2, 0.4, 0.4])
    (found,) = relaxations(problem, domain_set(EVEN, bounds={"a": (0.0, 0.2)}), weights)
    assert found.gain.mean == pytest.approx(-0.01, abs=1e-6)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 2), st.booleans())
def test_relaxing_never_predicts_a_loss(seed: int, pull: float, floored: bool) -> None:
    """Random curved laws, caps, a pull and perhaps a floor: gains are at most 0, and the mixtures differ only where something was relaxed."""
    rng = np.random.default_rng(seed)
    rates, most = rng.normal(size=(2, 3)), rng.uniform(0.34, 0.8, 3)
    law = Law(NAMES, ("one", "two"), lambda p: 1 + np.exp(p @ rates.T), doubt=0.001)
    domains = domain_set(
        dict(zip(NAMES, rng.uniform(1, 2, 3), strict=True)), bounds={n: (0.0, m) for n, m in zip(NAMES, most, strict=True)}
    )
    problem = posed(law, domains, pull, (Floor("two", "natural"),) if floored else ())
    weights = problem.solve(300).weights
    for found in relaxations(problem, domains, weights):
        moved = np.array(list(found.weights.values()))
        assert found.gain.mean <= 0
        assert found.gain.low <= found.gain.mean <= found.gain.high
        assert moved.sum() == pytest.approx(1)
        assert (moved >= -1e-9).all()
        over = np.maximum(moved - most, 0)
        assert over.max() <= 0.01 + 1e-6
        assert (over > 1e-6).sum() <= 1, "one constraint at a time"
        if floored:
            limit = law.losses(domains.natural().array()[None])[0, 1]
            assert law.losses(moved[None])[0, 1] <= limit + NOISE + 2e-6
