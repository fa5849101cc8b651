"""Floors: what a user states, the limits it becomes, and answers that keep them, against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.answer.constraints import FloorSet, place_floors
from mixopt.answer.floors import Floor, full_name, resolve_floors
from mixopt.answer.problem import Problem
from mixopt.answer.relaxation import binding_floors
from mixopt.domains import DomainSet
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace
from tests.mixopt.answer.conftest import NOISE, Law, domain_set, grid

METRICS = ("target/math", "valid/math", "valid/web")


def problem(law: Law, domains: DomainSet, *floors: Floor, confidence: float = 0.0, weights: dict[str, float] | None = None) -> Problem:
    """Without a pull; baselines are natural and uniform."""
    prediction, space = law.prediction(domains, weights=weights), MixtureSpace.from_domains(domains)
    baselines = {"natural": domains.natural().array(), "uniform": domains.uniform().array()}
    limits = place_floors(prediction, floors, baselines, prediction.noise(), confidence)
    return Problem.of(prediction, space, 0.0, limits, np.stack(list(baselines.values())))


def limits_of(posed: Problem) -> FloorSet:
    assert posed.limits is not None
    return posed.limits


def test_names_without_a_prefix_are_targets_first() -> None:
    assert full_name("valid/math", METRICS) == "valid/math"
    assert full_name("math", METRICS) == "target/math"
    assert full_name("web", METRICS) == "valid/web"
    with pytest.raises(ConfigError, match="'wib', which is not known") as raised:
        full_name("wib", METRICS)
    assert "valid/web" in raised.value.hint


def test_all_is_every_metric_of_the_objective_once() -> None:
    floors = resolve_floors((Floor("all", "uniform", 0.1), Floor("math", "uniform", 0.1), Floor("web")), METRICS, METRICS[:2])
    assert floors == (Floor("target/math", "uniform", 0.1), Floor("valid/math", "uniform", 0.1), Floor("valid/web"))
    assert resolve_floors((Floor("all"),), ("all", "b"), ("b",)) == (Floor("all"),), "a metric may be called so"


@pytest.mark.parametrize(("baseline", "by"), [("natural", np.nan), ("natural", np.inf), (np.nan, 0.0), (np.inf, 0.0)])
def test_floors_are_finite(baseline: str | float, by: float) -> None:
    with pytest.raises(ConfigError, match="Floor on 'x'"):
        Floor("x", baseline, by)  # type: ignore[arg-type]


def test_an_unknown_baseline_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="'naturl'") as raised:
        Floor("x", "naturl")  # type: ignore[arg-type]
    assert "Did you mean 'natural'?" in raised.value.hint


# One falls with the share of a, two rises with it, three is below 0 as logs of probabilities are when somebody negates them.
SLIDE = Law(("a", "b"), ("one", "two", "three"), lambda p: np.stack([2 - p[:, 0], 1 + p[:, 0] ** 2, -2 - p[:, 0]], axis=1))
TWO = domain_set({"a": 1.0, "b": 3.0})


def test_limits_are_the_baseline_and_the_margin() -> None:
    floors = (
        Floor("two", "natural", 0.1),
        Floor("two", "uniform", 10, percent=True),
        Floor("three", "natural", 10, percent=True),
        Floor("one", 1.5, -0.1),
    )
    limits = limits_of(problem(SLIDE, TWO, *floors))
    np.testing.assert_allclose(limits.baseline_losses, [1.0625, 1.25, -2.25, 1.5])
    np.testing.assert_allclose(limits.limits, [1.1625, 1.375, -2.025, 1.4], err_msg="a percentage of a loss below 0 allows more, too")
    np.testing.assert_allclose(limits.excess(np.array([[1.0, 0.0]])), [[0.8375, 0.625, -0.975, -0.4]])
    np.testing.assert_allclose(limits.scales, NOISE)
    assert limits.sentences()[1] == "two: the floor allows at most 1.375 bits per byte (uniform's predicted 1.25 and 10%)"
    assert limits.sentences()[3].endswith("(1.5 and -0.1)")


def test_confidence_asks_for_posterior_standard_deviations_to_spare() -> None:
    doubtful = Law(SLIDE.domains, SLIDE.metrics, SLIDE.losses, doubt=0.02)
    sure, unsure = (limits_of(problem(doubtful, TWO, Floor("two", "natural"), confidence=k)) for k in (0.0, 2.0))
    point = np.array([[0.3, 0.7]])
    np.testing.assert_allclose(unsure.excess(point) - sure.excess(point), 0.04)
    assert unsure.sentences()[0].endswith("with 2 posterior standard deviations to spare")
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="confidence of the floors"):
            problem(SLIDE, TWO, Floor("two"), confidence=bad)


@settings(max_examples=12, deadline=None)
@given(st.floats(0.02, 0.95))
def test_an_active_floor_is_kept_to_a_millionth_at_the_closed_form(share: float) -> None:
    """Two domains: metric one wants all of a, the floor on metric two allows `share` of it and no more."""
    posed = problem(SLIDE, TWO, Floor("two", 1 + share**2), weights={"one": 1.0})
    best = posed.solve()
    assert best.weights[0] == pytest.approx(share, abs=1e-6 / share)
    assert SLIDE.losses(best.weights[None])[0, 1] <= 1 + share**2 + 1e-6
    assert best.residuals.floors <= 1e-6
    assert best.residuals.first_order == pytest.approx(0, abs=1e-4)
    assert binding_floors(posed.limits, best.weights) == [0]


# Log-linear (arXiv 2403.16952): losses fall exponentially in the shares that help.
RATES = np.array([[-2.0, 0.4, 0.0], [0.3, -1.5, 0.2], [0.1, 0.1, -1.0]])
LOG_LINEAR = Law(("a", "b", "c"), ("one", "two", "three"), lambda p: 1 + np.exp(p @ RATES.T))
THREE = domain_set({"a": 1.0, "b": 1.0, "c": 1.0})


@pytest.mark.parametrize(
    ("floors", "bounds"),
    [
        ((Floor("two", "uniform", 0.02), Floor("three", "uniform", 1, percent=True)), {}),
        ((Floor("two", "uniform"),), {"b": (0.0, 0.4)}),
        ((Floor("three", "uniform", -0.2),), {"a": (0.1, 0.5)}),
    ],
)
def test_answers_of_log_linear_laws_agree_with_a_grid(floors: tuple[Floor, ...], bounds: dict[str, tuple[float, float]]) -> None:
    domains = domain_set(dict.fromkeys("abc", 1.0), bounds=bounds)
    posed = problem(LOG_LINEAR, domains, *floors, weights={"one": 1.0})
    best, limits = posed.solve(2000), limits_of(posed)
    assert limits.excess(best.weights[None]).max() <= 1e-6
    assert limits.excess(best.weights[None]).max() >= -1e-4, "the floors of this test bind"
    cells = grid(300)
    cells = cells[posed.space.contains(cells, 1e-9) & (limits.excess(cells).max(axis=1) <= 0)]
    values = posed.value(cells)
    assert best.value <= values.min() + 1e-9, "no cell of the grid is better"
    assert best.value >= values.min() - 0.01, "and it is as good as its neighbours"
    np.testing.assert_allclose(best.weights, cells[np.argmin(values)], atol=0.03)


def test_floors_that_do_not_bind_change_nothing() -> None:
    free = problem(LOG_LINEAR, THREE).solve(2000)
    posed = problem(LOG_LINEAR, THREE, Floor("two", 10.0))
    loose = posed.solve(2000)
    np.testing.assert_allclose(loose.weights, free.weights, atol=2e-3)
    assert binding_floors(posed.limits, loose.weights) == []


def test_a_group_of_given_shares_moves_as_one_up_to_the_floor() -> None:
    """b and c go 1:2, so the floor on a domain's share of c is reached with half as much of b."""
    law = Law(("a", "b", "c"), ("one", "two"), lambda p: np.stack([1 + p[:, 0], 1 + p[:, 2]], axis=1))
    tokens = {"a": 3.0, "b": 1.0, "c": 2.0}
    domains = domain_set(tokens, groups={"b": "g", "c": "g"}, rules=(GroupRule("g", "natural"),))
    best = problem(law, domains, Floor("two", 1.4), weights={"one": 1.0}).solve(2000)
    np.testing.assert_allclose(best.weights, [0.4, 0.2, 0.4], atol=1e-5)


def test_a_piecewise_constant_prediction_keeps_its_floors() -> None:
    """Steps of a twentieth: the mean of the best candidates may miss a floor that each of them keeps."""

    def steps(p: FloatArray) -> FloatArray:
        return np.stack([2 - np.floor(20 * p[:, 0] + 1e-9) / 20, 1 + np.ceil(20 * p[:, 0] - 1e-9) / 20], axis=1)

    posed = problem(Law(("a", "b", "c"), ("one", "two"), steps), THREE, Floor("two", 1.5), weights={"one": 1.0})
    assert not posed.smooth
    best = posed.solve(4000)
    assert limits_of(posed).excess(best.weights[None]).max() <= 1e-6
    assert best.residuals.first_order is None
    assert 0.45 <= best.weights[0] <= 0.5


@pytest.mark.parametrize(("noise", "share"), [((0.01, 0.01), 0.4), ((0.01, 0.02), 0.28)])
def test_floors_out_of_reach_are_named_with_their_misses_in_units_of_noise(noise: tuple[float, float], share: float) -> None:
    """One asks for at most .2 of a, two for at least .6; between them the misses are balanced, each by its noise."""
    law = Law(("a", "b"), ("one", "two", "three"), lambda p: np.stack([1 + p[:, 0], 2 - p[:, 0], 1 + 0 * p[:, 0]], axis=1), (*noise, 0.01))
    with pytest.raises(InfeasibleError, match="No mixture keeps every floor") as raised:
        problem(law, TWO, Floor("one", 1.2), Floor("two", 1.4), Floor("three", 1.5), weights={"one": 1.0}).solve(1000)
    said = raised.value.message
    assert f"The closest (b {1 - share:.3g}, a {share:.3g})" in said
    assert f"one: the floor allows at most 1.2 bits per byte (1.2), missed by {share - 0.2:.3g}" in said
    assert f"two: the floor allows at most 1.4 bits per byte (1.4), missed by {0.6 - share:.3g}" in said
    assert "three" not in said, "this one is kept"
    assert "Loosen these floors by that much (bits per byte)" in raised.value.hint


def test_a_narrow_corner_that_keeps_the_floors_is_found() -> None:
    """One mixture in ten thousand keeps them: no candidate may, the search toward the limits does."""
    centre = np.array([0.62, 0.27, 0.11])
    law = Law(("a", "b", "c"), ("one", "two"), lambda p: np.stack([p[:, 0], ((p - centre) ** 2).sum(axis=1)], axis=1))
    best = problem(law, THREE, Floor("two", 1e-5), weights={"one": 1.0}).solve(200)
    # Least p_a on a disc of radius r: from its centre along (-2, 1, 1) / sqrt 6.
    np.testing.assert_allclose(best.weights, centre + np.sqrt(1e-5 / 6) * np.array([-2, 1, 1]), atol=3e-4)
    assert best.residuals.floors <= 1e-6
