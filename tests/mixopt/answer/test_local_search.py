"""Local search: closed forms, agreement of the projected gradient with SLSQP, and residuals that are worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mixopt.answer.local_search import MANY_UNITS, BatchFunction, descend, differences, residuals
from mixopt.answer.projected_gradient import follow
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.simplex import kl_divergence
from mixopt.space import MixtureSpace
from tests.mixopt.answer.conftest import domain_set


def space_of(dimension: int, bounds: tuple[float, float] = (0.0, 1.0), first: tuple[float, float] | None = None) -> MixtureSpace:
    names = [f"d{index:03d}" for index in range(dimension)]
    return MixtureSpace.from_domains(
        domain_set(dict.fromkeys(names, 1.0), bounds=dict.fromkeys(names, bounds) | ({names[0]: first} if first else {}))
    )


def slopes_of(function: BatchFunction, space: MixtureSpace) -> BatchFunction:
    return lambda point: differences(lambda weights: function(weights)[:, None], space, point)[1][0]


@dataclass(frozen=True)
class Linear:
    """Limits: rows @ weights <= most."""

    rows: FloatArray
    most: FloatArray
    scales: FloatArray

    def excess(self, weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ self.rows.T - self.most)


@settings(max_examples=15, deadline=None)
@example(5, 0.5, 59)
@example(6, 0.75, 384567)
@example(5, 0.375, 42)
@given(st.integers(2, 6), st.floats(0.3, 3.0), st.integers(0, 2**32 - 1))
def test_a_linear_law_with_a_pull_ends_at_the_tilted_prior(dimension: int, strength: float, seed: int) -> None:
    """slopes @ p + strength KL(p, prior) is least at p proportional to prior exp(-slopes / strength), by Lagrange."""
    rng = np.random.default_rng(seed)
    slopes, prior = rng.normal(size=dimension), rng.dirichlet(np.full(dimension, 5.0))

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ slopes + strength * kl_divergence(weights, prior))

    space = space_of(dimension)
    expected = prior * np.exp(-slopes / strength)
    expected /= expected.sum()
    least = function(expected[None])[0]
    scale = np.ptp(slopes) + strength
    start = space.sample(1, rng)[0]
    for found in (descend(function, space, start)[0], follow(function, slopes_of(function, space), space, start)[0]):
        assert space.contains(found[None])[0]
        assert function(found[None])[0] == pytest.approx(least, abs=1e-3 * scale)
        np.testing.assert_allclose(found, expected, atol=0.03)


def grouped() -> MixtureSpace:
    """Six domains; of the first three at most .4 together, the last two move as one."""
    names = [f"d{index}" for index in range(6)]
    groups = {"d0": "g", "d1": "g", "d2": "g", "d4": "h", "d5": "h"}
    rules = (GroupRule("g", bounds=(0.1, 0.4)), GroupRule("h", "natural"))
    return MixtureSpace.from_domains(domain_set({**dict.fromkeys(names, 1.0), "d5": 2.0}, groups=groups, rules=rules))


CASES = {"open": space_of(5), "capped": space_of(20, (0.0, 0.12)), "floored": space_of(40, (0.005, 0.2)), "grouped": grouped()}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_the_projected_gradient_agrees_with_slsqp(name: str, seed: int) -> None:
    """A curved law with a pull, its bottom inside, on faces and in corners; what the check would still gain is said to be next to nothing."""
    space, rng = CASES[name], np.random.default_rng(seed)
    dimension = len(space.domains)
    centre, scales = rng.dirichlet(np.full(dimension, 0.3)), rng.uniform(0.5, 4.0, dimension)

    def function(weights: FloatArray) -> FloatArray:
        curved = (scales * (weights - centre) ** 2).sum(axis=1)
        return np.asarray(curved + 0.02 * kl_divergence(weights, np.full(dimension, 1 / dimension)))

    start = space.sample(1, rng)[0]
    solved, said = descend(function, space, start)
    followed, ended = follow(function, slopes_of(function, space), space, space.units.collapse(start))
    assert said.startswith(("converged", "stopped"))
    assert ended.startswith(("converged", "stopped"))
    reached = space.project(space.units.expand(followed[None]))[0]
    assert space.contains(np.stack([solved, reached])).all()
    span = float(np.ptp(function(space.sample(200, rng))))
    assert function(reached[None])[0] == pytest.approx(function(solved[None])[0], abs=2e-3 * span)
    for point in (solved, reached):
        assert residuals(function, space, point).first_order < 5e-3 * span  # type: ignore[operator]


def test_the_projected_gradient_stays_where_nothing_improves() -> None:
    space = space_of(4)

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(weights @ np.array([0.0, 1.0, 2.0, 3.0]))

    corner = np.array([1.0, 0.0, 0.0, 0.0])
    found, said = follow(function, slopes_of(function, space), space, corner)
    np.testing.assert_array_equal(found, corner)
    assert "no step along the projected gradient improves" in said


def test_many_units_end_at_the_nearest_mixture_with_limits_and_without() -> None:
    """A parabola's constrained bottom is a projection; limits that say what a cap says lead to the same."""
    dimension = MANY_UNITS + 6
    centre = np.random.default_rng(1).dirichlet(np.full(dimension, 0.5))
    capped, free = space_of(dimension, first=(0.0, 0.001)), space_of(dimension)
    expected = capped.project(centre[None])[0]

    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(((weights - centre) ** 2).sum(axis=1))

    start = capped.sample(1, np.random.default_rng(2))[0]
    followed, _ = descend(function, capped, start)
    limits = Linear(np.eye(dimension)[:1], np.array([0.001]), np.array([0.1]))
    solved, _ = descend(function, free, start, limits)
    np.testing.assert_allclose(followed, expected, atol=0.01)
    np.testing.assert_allclose(solved, expected, atol=0.01)
    assert limits.excess(solved[None])[0, 0] <= 1e-6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_limits_are_kept_to_a_millionth_where_some_mixture_keeps_them(seed: int) -> None:
    rng = np.random.default_rng(seed)
    space, slopes, rows = CASES["open"], rng.normal(size=5), rng.normal(size=(2, 5))
    inside = rng.dirichlet(np.ones(5))
    limits = Linear(rows, rows @ inside + 0.02, np.array([0.1, 0.1]))
    found, _ = descend(lambda weights: weights @ slopes, space, inside, limits)
    assert space.contains(found[None])[0]
    assert limits.excess(found[None]).max() <= 1e-6
    assert found @ slopes <= inside @ slopes + 1e-9
    assert residuals(lambda weights: weights @ slopes, space, found, limits).first_order == pytest.approx(0, abs=1e-3)


def test_weights_on_a_bound_are_exactly_there() -> None:
    space = space_of(5, (0.0, 0.4))
    found, _ = descend(lambda weights: weights @ np.array([0.0, 1.0, 2.0, 3.0, 4.0]), space, np.full(5, 0.2))
    np.testing.assert_allclose(found, [0.4, 0.4, 0.2, 0.0, 0.0], atol=1e-12)
    assert found[3] == found[4] == 0.0


def test_a_solver_that_fails_says_so_and_moves_nothing() -> None:
    """A function that answers nothing but NaN."""
    start = np.full(5, 0.2)
    found, said = descend(lambda weights: np.full(len(weights), np.nan), space_of(5), start)
    np.testing.assert_allclose(found, start)
    assert said.split(":")[0] in {"failed", "stopped", "converged"}


def test_a_descent_is_repeatable() -> None:
    def function(weights: FloatArray) -> FloatArray:
        return np.asarray(np.exp(weights @ np.linspace(-1, 1, 20)))

    pairs = [descend(function, CASES["capped"], np.full(20, 0.05)) for _ in range(2)]
    np.testing.assert_array_equal(pairs[0][0], pairs[1][0])
    assert pairs[0][1] == pairs[1][1]


def test_differences_are_slopes_toward_the_corners() -> None:
    space, point = space_of(3), np.array([0.5, 0.3, 0.2])
    values, slopes = differences(lambda weights: weights @ np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]]), space, point)
    np.testing.assert_allclose(values, [1.9, 0.2])
    np.testing.assert_allclose(slopes, [[1 - 1.9, 2 - 1.9, 4 - 1.9], [-0.2, -0.2, 0.8]], atol=1e-9)


def test_misses_are_those_worked_out_by_hand() -> None:
    space = grouped()
    weights = np.array([0.3, 0.2, 0.1, 0.5, -0.1, -0.2])  # in groups: .6 of g, which may have .4; h at -.3
    limits = Linear(np.array([[1.0, 0, 0, 0, 0, 0], [0, 0, 0, 1.0, 0, 0]]), np.array([0.25, 1.0]), np.ones(2))
    missed = residuals(lambda p: p[:, 0], space, weights + np.array([0, 0, 0, 0.25, 0, 0]), limits, smooth=False)
    assert missed.sum == pytest.approx(0.05)
    assert missed.bounds == pytest.approx(0.2)
    assert missed.groups == pytest.approx(0.2)
    assert missed.floors == pytest.approx(0.05)
    assert missed.first_order is None
    assert set(missed.to_json()) == {"sum", "bounds", "groups", "floors", "first_order", "distance", "domains"}


SLOPES = np.array([0.0, 1.0, 3.0, 7.0])


@pytest.mark.parametrize(
    ("weights", "first", "gain"),
    [
        ((0.25, 0.25, 0.25, 0.25), (0.0, 1.0), 7.0),  # the worst gives to the best
        ((0.25, 0.25, 0.5, 0.0), (0.0, 1.0), 3.0),  # the worst has nothing to give
        ((0.25, 0.25, 0.25, 0.25), (0.0, 0.25), 6.0),  # the best may have no more
        ((1.0, 0.0, 0.0, 0.0), (0.0, 1.0), 0.0),  # the optimum
        ((0.3, 0.7, 0.0, 0.0), (0.0, 0.3), 0.0),  # the optimum under a cap
    ],
)
def test_the_best_small_move_of_a_linear_function(weights: tuple[float, ...], first: tuple[float, float], gain: float) -> None:
    """Slopes 0, 1, 3, 7: moving a percentage point between two domains changes the function by a hundredth of their difference."""
    found = residuals(lambda p: p @ SLOPES, space_of(4, first=first), np.array(weights))
    assert found.first_order == pytest.approx(0.01 * gain, abs=1e-6)


def test_limits_and_groups_stop_the_best_small_move() -> None:
    uniform = np.full(4, 0.25)
    limits = Linear(np.eye(4)[:1], np.array([0.25]), np.array([0.01]))
    assert residuals(lambda p: p @ SLOPES, space_of(4), uniform, limits).first_order == pytest.approx(0.06)
    names = ("a", "b", "c", "d")
    rules = (GroupRule("g", bounds=(0.0, 0.5)),)
    space = MixtureSpace.from_domains(domain_set(dict.fromkeys(names, 1.0), groups={"a": "g", "b": "g"}, rules=rules))
    # The group of a and b is full: either a from b, or c from d.
    assert residuals(lambda p: p @ SLOPES, space, uniform).first_order == pytest.approx(0.04)


def test_an_edge_between_two_pieces_is_an_optimum_although_either_slopes() -> None:
    """The larger of p_a and p_b is least where they are equal; one piece alone would ask for more."""

    def pieces(weights: FloatArray) -> FloatArray:
        return weights[:, :2]

    space = space_of(2)
    assert residuals(pieces, space, np.array([0.5, 0.5])).first_order == pytest.approx(0, abs=1e-6)
    assert residuals(pieces, space, np.array([0.6, 0.4])).first_order == pytest.approx(0.01, abs=1e-6)
    assert residuals(lambda p: p[:, :1], space, np.array([0.5, 0.5])).first_order == pytest.approx(0.01, abs=1e-6)
