"""Geometry of mixtures: properties, and the projection against a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import brentq
from scipy.special import rel_entr

from mixopt.errors import ConfigError
from mixopt.simplex import (
    kl_divergence,
    project,
    round_counts,
    sample_dirichlet,
    sample_uniform,
    temper,
)

SEEDS = st.integers(0, 2**32 - 1)


@st.composite
def boxes(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (n, d) and bounds around a mixture, some of them tight, equal or absent."""
    rng = np.random.default_rng(draw(SEEDS))
    dimension = draw(st.integers(1, 8))
    centre = rng.dirichlet(np.full(dimension, 0.7))
    slack = draw(st.sampled_from([0.0, 1e-3, 0.1, 1.0]))
    lower = np.maximum(centre - slack * rng.random(dimension), 0.0) * (rng.random(dimension) < 0.7)
    upper = np.where(rng.random(dimension) < 0.7, np.minimum(centre + slack * rng.random(dimension), 1.0), 1.0)
    points = draw(arrays(np.float64, (draw(st.integers(1, 6)), dimension), elements=st.floats(-3, 3, width=32)))
    return points, lower, upper


def reference_projection(point: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Root finding on the shift, the slow way."""

    def excess(shift: float) -> float:
        return float(np.clip(point - shift, lower, upper).sum() - 1)

    low, high = float((point - upper).min()) - 1, float((point - lower).max()) + 1
    if excess(low) <= 0:
        return upper
    if excess(high) >= 0:
        return lower
    return np.clip(point - brentq(excess, low, high, xtol=1e-14), lower, upper)


@settings(deadline=None)
@given(boxes())
def test_projection_equals_the_slow_reference(box: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    points, lower, upper = box
    projected = project(points, lower, upper)
    expected = np.array([reference_projection(point, lower, upper) for point in points])
    assert np.allclose(projected, expected, atol=1e-9)


@settings(deadline=None)
@given(boxes())
def test_projection_is_feasible_and_exactly_idempotent(box: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    points, lower, upper = box
    projected = project(points, lower, upper)
    assert np.all(projected >= lower)
    assert np.all(projected <= upper)
    assert np.allclose(projected.sum(axis=1), 1, atol=1e-12)
    assert np.array_equal(project(projected, lower, upper), projected)


@settings(deadline=None)
@given(boxes(), SEEDS)
def test_projection_permutes_with_the_domains(box: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    points, lower, upper = box
    order = np.random.default_rng(seed).permutation(points.shape[1])
    assert np.allclose(project(points[:, order], lower[order], upper[order]), project(points, lower, upper)[:, order], atol=1e-12)


@settings(deadline=None)
@given(boxes(), SEEDS)
def test_projection_is_no_farther_than_any_feasible_point(box: tuple[np.ndarray, np.ndarray, np.ndarray], seed: int) -> None:
    points, lower, upper = box
    others = project(np.random.default_rng(seed).normal(size=(20, points.shape[1])), lower, upper)
    distance = np.linalg.norm(points - project(points, lower, upper), axis=1)
    for other in others:
        assert np.all(distance <= np.linalg.norm(points - other, axis=1) + 1e-9)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 40))
def test_draws_lie_on_the_simplex(seed: int, dimension: int) -> None:
    rng = np.random.default_rng(seed)
    uniform = sample_uniform(rng, 30, dimension)
    prior = rng.dirichlet(np.ones(dimension))
    wide = sample_dirichlet(rng, prior, 30, zero_below=min(2e-4, 0.5 / dimension))
    for draws in (uniform, wide):
        assert np.isfinite(draws).all()
        assert np.all(draws >= 0)
        assert np.allclose(draws.sum(axis=1), 1, atol=1e-12)
    assert np.all((wide == 0) | (wide >= min(2e-4, 0.5 / dimension)))


def test_tiny_strengths_neither_underflow_nor_leave_the_support() -> None:
    prior = np.array([0.5, 0.0, 0.3, 0.2])
    draws = sample_dirichlet(np.random.default_rng(0), prior, 2000, strengths=(1e-4,), temperature=1.0)
    assert np.isfinite(draws).all()
    assert np.all(draws[:, 1] == 0)
    # With strength near 0 a draw is a corner, chosen with the prior's probability: binomial sd is .011 here, 4 sigma allowed.
    assert np.allclose((draws > 0.5).mean(axis=0), prior, atol=4 * 0.0112)


def test_dirichlet_moments() -> None:
    # Mean q and variance q (1 - q) / (s + 1), known for Dirichlet(s q); 4 standard errors of 40,000 draws.
    prior, strength = np.array([0.6, 0.3, 0.1]), 2.0
    draws = sample_dirichlet(np.random.default_rng(1), prior, 40_000, strengths=(strength,), temperature=1.0, zero_below=0.0)
    sd = np.sqrt(prior * (1 - prior) / (strength + 1))
    assert np.all(np.abs(draws.mean(axis=0) - prior) < 4 * sd / 200)
    assert np.allclose(draws.std(axis=0), sd, rtol=0.03)


def test_uniform_moments() -> None:
    draws = sample_uniform(np.random.default_rng(2), 40_000, 4)
    sd = np.sqrt(0.25 * 0.75 / 5)
    assert np.all(np.abs(draws.mean(axis=0) - 0.25) < 4 * sd / 200)
    assert np.allclose(draws.std(axis=0), sd, rtol=0.03)


def test_tempering_keeps_at_one_and_flattens_at_zero() -> None:
    prior = np.array([0.7, 0.3, 0.0])
    assert np.allclose(temper(prior, 1.0), prior)
    assert np.allclose(temper(prior, 0.0), [0.5, 0.5, 0.0])


@pytest.mark.parametrize("strengths", [(), (0.0, 1.0)])
def test_strengths_must_be_positive(strengths: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="positive"):
        sample_dirichlet(np.random.default_rng(0), np.array([0.5, 0.5]), 1, strengths)


@settings(deadline=None)
@given(SEEDS, st.integers(1, 12))
def test_divergence_equals_scipy_and_is_zero_at_the_prior_only(seed: int, dimension: int) -> None:
    rng = np.random.default_rng(seed)
    prior = rng.dirichlet(np.ones(dimension)) + 1e-3
    prior /= prior.sum()
    weights = sample_dirichlet(rng, prior, 10, zero_below=0.5 / dimension * 0.01)
    divergence = kl_divergence(weights, prior)
    assert np.allclose(divergence, rel_entr(weights, prior).sum(axis=1), atol=1e-12)
    assert np.all(divergence >= -1e-12)
    assert abs(kl_divergence(prior, prior)) < 1e-12


def test_divergence_is_infinite_outside_the_prior_and_zero_weights_cost_nothing() -> None:
    assert kl_divergence(np.array([0.5, 0.5]), np.array([1.0, 0.0])) == np.inf
    assert kl_divergence(np.array([1.0, 0.0]), np.array([1.0, 0.0])) == 0.0


@settings(deadline=None)
@given(SEEDS, st.integers(1, 12), st.integers(0, 10_000))
def test_counts_are_whole_sum_exactly_and_lie_within_one(seed: int, dimension: int, total: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(dimension, 0.5), size=5)
    weights[weights < 0.05] = 0.0
    weights[weights.sum(axis=1) == 0] = 1.0
    weights /= weights.sum(axis=1, keepdims=True)
    counts = round_counts(weights, total)
    assert counts.dtype == np.int64
    assert np.array_equal(counts.sum(axis=1), np.full(5, total))
    assert np.all(np.abs(counts - weights * total) < 1 + 1e-9)
    assert np.all(counts[weights == 0] == 0)
    order = rng.permutation(dimension)
    if len(np.unique((weights[0] * total) % 1)) == dimension:
        assert np.array_equal(round_counts(weights[0, order], total), counts[0, order])


def test_counts_of_whole_shares_are_those() -> None:
    assert round_counts(np.array([0.25, 0.75]), 4).tolist() == [1, 3]
    assert round_counts(np.array([1 / 3, 1 / 3, 1 / 3]), 4).tolist() == [2, 1, 1]
    with pytest.raises(ConfigError):
        round_counts(np.array([1.0]), -1)
