"""Fronts: boxes against brute force, expected improvement against draws, slopes against differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.acquisition.hypervolume import FrontImprovement, Objectives, boxes_below, hypervolume, thinned, undominated

DIMENSIONS = pytest.mark.parametrize("objectives", [2, 3, 4])


def points(count: int, objectives: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 1.2, (count, objectives))


def dominated(where: np.ndarray, front: np.ndarray) -> np.ndarray:
    return np.asarray((where[:, None] >= front[None]).all(axis=2).any(axis=1))


@given(st.integers(0, 10_000), st.integers(2, 4), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_boxes_are_disjoint_and_cover_what_nothing_dominates(seed: int, objectives: int, count: int) -> None:
    front, reference = points(count, objectives, seed), np.ones(objectives)
    lower, upper = boxes_below(front[undominated(front)], reference)
    where = np.random.default_rng(seed + 1).uniform(-0.2, 1.0, (400, objectives))
    held = ((where[:, None] > lower[None]) & (where[:, None] < upper[None])).all(axis=2).sum(axis=1)
    assert held.max() <= 1
    assert np.array_equal(held == 1, ~dominated(where, front))


@DIMENSIONS
def test_hypervolume_is_what_darts_say(objectives: int) -> None:
    """Shares of 400,000 darts: five standard errors."""
    front = points(9, objectives, 3)
    darts = np.random.default_rng(0).uniform(0, 1, (400_000, objectives))
    share = dominated(darts, front[np.all(front < 1, axis=1)]).mean()
    assert abs(hypervolume(front, np.ones(objectives)) - share) < 5 * np.sqrt(share * (1 - share) / len(darts)) + 1e-12


def test_hypervolume_of_known_fronts() -> None:
    assert hypervolume(np.array([[0.0, 0.5], [0.5, 0.0]]), np.ones(2)) == pytest.approx(0.75)
    assert hypervolume(np.array([[0.5, 0.5, 0.5]]), np.ones(3)) == pytest.approx(0.125)
    assert hypervolume(np.array([[1.5, 0.0]]), np.ones(2)) == 0.0


def test_undominated_keeps_one_of_equals() -> None:
    assert undominated(np.array([[1.0, 2.0], [2.0, 1.0], [1.0, 2.0], [2.0, 2.0]])).tolist() == [0, 1]
    assert len(thinned(np.column_stack([np.arange(50.0), -np.arange(50.0)]), 10)) == 10


def objectives_of(beliefs: Any, count: int) -> Objectives:
    noise = np.array(beliefs.objective.noise_std)
    factors = np.eye(3)[:count] / noise
    return Objectives(tuple("abc"[:count]), factors, np.array(beliefs.objective.natural_losses))


@pytest.mark.parametrize("count", [2, 3])
def test_expected_improvement_is_what_draws_say(known: Any, count: int) -> None:
    """20,000 joint draws of measured and new mixtures; five standard errors of both sides."""
    beliefs = known().beliefs
    objectives, rng = objectives_of(beliefs, count), np.random.default_rng(1)
    weights = beliefs.coordinates.weights(beliefs.coordinates.sample(4, rng))
    reference = objectives.values(beliefs.moments(weights)[0][:, 0]).max(axis=0) + 1.0
    drawn = objectives.values(beliefs.draw(weights, 4000, np.random.default_rng(4)))
    gains = np.array([hypervolume(drawn[:, path], reference) - hypervolume(drawn[:3, path], reference) for path in range(drawn.shape[1])])
    paths = [
        FrontImprovement.over(beliefs, objectives, reference, weights[:3], np.ones(3, dtype=bool), 400, np.random.default_rng(seed))
        for seed in range(4)
    ]
    values = np.exp([one.values(beliefs.coordinates.points(weights[3:]))[0] for one in paths])
    error = np.hypot(gains.std() / np.sqrt(len(gains)), values.std(ddof=1) / np.sqrt(len(values)))
    assert abs(values.mean() - gains.mean()) < 5 * error


def test_slopes_are_those_of_differences_and_a_run_under_way_lowers_its_own_worth(known: Any) -> None:
    beliefs = known().beliefs
    objectives, rng = objectives_of(beliefs, 2), np.random.default_rng(2)
    coordinates = beliefs.coordinates
    some = coordinates.weights(coordinates.sample(5, rng))
    reference = objectives.values(beliefs.moments(some)[0][:, 0]).max(axis=0)
    gain = FrontImprovement.over(beliefs, objectives, reference, some, np.ones(5, dtype=bool), 8, rng)
    where = 0.8 * coordinates.sample(3, rng) + 0.2 / 6
    expected = np.empty_like(where)
    for unit in range(where.shape[1]):
        move = np.zeros(where.shape[1])
        move[unit] = 1e-6
        expected[:, unit] = (gain(where + move)[0] - gain(where - move)[0]) / 2e-6
    assert np.allclose(gain(where)[1], expected, atol=1e-5 * np.abs(expected).max())
    assert gain.with_point(coordinates.weights(where[:1])[0], True, rng).values(where[:1])[0] < gain.values(where[:1])[0]
