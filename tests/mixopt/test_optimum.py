"""Minimization over the feasible mixtures: known optima inside, on faces and at corners; never an infeasible answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.answer.near_optimal import find_near_optimal
from mixopt.domains import Domain, DomainSet
from mixopt.optimum import ELITES, evaluate, is_piecewise_constant, minimize
from mixopt.simplex import kl_divergence
from mixopt.space import MixtureSpace


def space_of(uppers: list[float], lowers: list[float] | None = None) -> MixtureSpace:
    lowers = lowers or [0.0] * len(uppers)
    domains = tuple(
        Domain(f"d{index}", f"hash-{index}", 1000, 1e6, bounds=(low, high))
        for index, (low, high) in enumerate(zip(lowers, uppers, strict=True))
    )
    return MixtureSpace.from_domains(DomainSet(domains, 1e6))


OPEN = space_of([1.0] * 5)
CAPPED = space_of([0.3, 1.0, 0.25, 1.0, 1.0], [0.0, 0.0, 0.0, 0.1, 0.0])


def starts(space: MixtureSpace) -> np.ndarray:
    return np.full((1, len(space.domains)), 1 / len(space.domains))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([OPEN, CAPPED]))
def test_nearest_mixture_is_the_projection(seed: int, space: MixtureSpace) -> None:
    # The optimum of a distance is known exactly: the projection, inside, on a face or in a corner.
    centre = np.random.default_rng(seed).normal(0.2, 0.4, 5)
    best = minimize(lambda p: ((p - centre) ** 2).sum(axis=1), space, starts(space), seed=0, candidates=2000)
    assert space.contains(best.weights[None])[0]
    assert np.allclose(best.weights, space.project(centre[None])[0], atol=1e-3)
    assert best.value == pytest.approx(((best.weights - centre) ** 2).sum())


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_linear_functions_end_in_the_greedy_corner(seed: int) -> None:
    slopes = np.random.default_rng(seed).normal(size=5)
    expected, left = CAPPED.lower.copy(), 1 - CAPPED.lower.sum()
    for index in np.argsort(slopes):
        step = min(left, CAPPED.upper[index] - expected[index])
        expected[index] += step
        left -= step
    best = minimize(lambda p: p @ slopes, CAPPED, starts(CAPPED), seed=0, candidates=2000)
    assert best.value == pytest.approx(float(expected @ slopes), abs=1e-6)


def test_divergence_alone_returns_the_prior_and_the_pull_moves_toward_it() -> None:
    prior = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    assert np.allclose(minimize(lambda p: kl_divergence(p, prior), OPEN, starts(OPEN), 0).weights, prior, atol=2e-3)
    slopes = np.array([0.0, 0.0, -1.0, 0.0, 0.0])
    reached = [
        minimize(lambda p, s=s: p @ slopes + s * kl_divergence(p, prior), OPEN, starts(OPEN), 0).weights[2] for s in (10.0, 1.0, 0.1)
    ]
    # Tilting a prior by a linear function has a closed form: p is proportional to prior * exp(-slope / strength).
    expected = [0.15 * np.exp(1 / s) / (0.85 + 0.15 * np.exp(1 / s)) for s in (10.0, 1.0, 0.1)]
    assert np.allclose(reached, expected, atol=2e-3)


def test_a_far_basin_is_found_though_the_start_lies_in_another() -> None:
    deep, shallow = np.array([0.05, 0.05, 0.05, 0.05, 0.8]), np.full(5, 0.2)

    def two_wells(p: np.ndarray) -> np.ndarray:
        near, far = ((p - shallow) ** 2).sum(axis=1), ((p - deep) ** 2).sum(axis=1)
        return -np.exp(-20 * near) - 1.5 * np.exp(-60 * far)

    assert np.allclose(minimize(two_wells, OPEN, starts(OPEN), 0).weights, deep, atol=5e-3)


def test_square_roots_at_zero_do_not_derail_it() -> None:
    # -sum w sqrt(p) has infinite slope at every face and its optimum at p proportional to w squared.
    weights = np.array([1.0, 0.6, 0.3, 0.1, 0.05])
    best = minimize(lambda p: -(np.sqrt(np.maximum(p, 0)) @ weights), OPEN, np.eye(5), 0)
    assert np.allclose(best.weights, weights**2 / (weights**2).sum(), atol=2e-3)


def test_trees_get_the_mean_of_the_best_candidates() -> None:
    centre = CAPPED.project(np.array([[0.2, 0.3, 0.2, 0.2, 0.1]]))[0]

    def steps(p: np.ndarray) -> np.ndarray:
        return np.round(np.abs(p - centre).sum(axis=1) * 20)

    points = CAPPED.sample(300, np.random.default_rng(0))
    assert is_piecewise_constant(steps, points)
    assert not is_piecewise_constant(lambda p: ((p - centre) ** 2).sum(axis=1), points)
    best = minimize(steps, CAPPED, starts(CAPPED), 0, smooth=False, candidates=4000)
    assert best.method == "mean of best"
    assert str(ELITES) in best.status
    assert CAPPED.contains(best.weights[None])[0]
    assert np.abs(best.weights - centre).sum() < 0.06


def test_a_space_of_one_point_gives_that_point() -> None:
    space = space_of([0.2, 0.3, 0.5])
    best = minimize(lambda p: p @ np.array([1.0, 2.0, 3.0]), space, starts(space), 0, candidates=100)
    assert np.allclose(best.weights, [0.2, 0.3, 0.5], atol=1e-9)


def test_the_function_is_only_asked_about_mixtures() -> None:
    def strict(p: np.ndarray) -> np.ndarray:
        assert np.all(p >= 0)
        assert np.allclose(p.sum(axis=1), 1, atol=1e-9)
        return p @ np.array([1.0, -2.0, 3.0, 0.5, 0.0]) + (p**2).sum(axis=1)

    minimize(strict, CAPPED, starts(CAPPED), 0, candidates=1000)


def test_a_function_that_is_not_finite_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match="not finite at"):
        evaluate(lambda p: np.full(len(p), np.nan), starts(OPEN))


def test_same_seed_same_answer() -> None:
    def wavy(p: np.ndarray) -> np.ndarray:
        return np.sin(9 * p[:, 0]) + np.cos(7 * p[:, 1]) + p[:, 2] ** 2

    first, second = (minimize(wavy, OPEN, starts(OPEN), 5, candidates=1000) for _ in range(2))
    assert np.array_equal(first.weights, second.weights)
    assert first.status == second.status


def test_near_optimal_range_of_a_ball() -> None:
    # Within a ball of radius r around an inner point, one weight of d moves by r sqrt((d - 1) / d) on the simplex.
    centre, radius = np.array([0.3, 0.25, 0.2, 0.15, 0.1]), 0.05
    found = find_near_optimal(lambda p: ((p - centre) ** 2).sum(axis=1), OPEN, centre, radius**2, seed=0)
    low, high = found.low, found.high
    reach = radius * np.sqrt(4 / 5)
    # From inside: never beyond the truth, and at least 80% of it.
    for found in (high - centre, centre - low):
        assert np.all(found <= reach + 1e-9)
        assert np.all(found >= 0.8 * reach)


def test_near_optimal_range_of_a_flat_function_is_the_whole_space() -> None:
    found = find_near_optimal(lambda p: np.zeros(len(p)), CAPPED, CAPPED.project(starts(CAPPED))[0], 0.0, seed=0)
    low, high = found.low, found.high
    assert np.allclose(high, CAPPED.project(np.eye(5) * 2).max(axis=0), atol=0.02)
    assert np.allclose(low, CAPPED.lower, atol=0.02)
