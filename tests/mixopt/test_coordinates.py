"""Coordinates of a cube: bijections where they should be, onto the simplex everywhere, uniform to uniform."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.coordinates import Coordinates, dimensions, from_cube, to_cube
from mixopt.simplex import sample_uniform

KINDS: tuple[Coordinates, ...] = ("stick_breaking", "exponential")
kinds = pytest.mark.parametrize("kind", KINDS)
inner = st.floats(0.01, 0.99)


@kinds
@settings(max_examples=80, deadline=None)
@given(raw=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=40).filter(lambda raw: sum(raw) > 1e-3))
def test_a_mixture_comes_back(kind: Coordinates, raw: list[float]) -> None:
    """Faces and corners, too."""
    weights = np.array([raw]) / sum(raw)
    numbers = to_cube(kind, weights)
    assert numbers.shape == (1, dimensions(kind, len(raw)))
    assert ((numbers >= 0) & (numbers <= 1)).all()
    assert from_cube(kind, numbers) == pytest.approx(weights, abs=1e-7)


@kinds
def test_one_weight_of_many_may_be_large(kind: Coordinates) -> None:
    """Seven tenths of the first of forty: its quantile, were it of what is taken, would be 1 in every number that a computer has."""
    weights = np.array([[0.7, *[0.3 / 39] * 39]])
    assert from_cube(kind, to_cube(kind, weights)) == pytest.approx(weights, abs=1e-9)


@settings(max_examples=80, deadline=None)
@given(numbers=st.lists(inner, min_size=1, max_size=12))
def test_stick_breaking_is_a_bijection(numbers: list[float]) -> None:
    point = np.array([numbers])
    weights = from_cube("stick_breaking", point)
    assert (weights >= 0).all()
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert to_cube("stick_breaking", weights) == pytest.approx(point, abs=1e-6)


@settings(max_examples=80, deadline=None)
@given(numbers=st.lists(inner, min_size=2, max_size=12), stretch=st.floats(0.2, 3.0))
def test_exponential_coordinates_are_rays(numbers: list[float], stretch: float) -> None:
    """A power of all coordinates is the same mixture, and the inverse is the point of the ray whose spacings sum to the number of weights."""
    point = np.array([numbers])
    weights = from_cube("exponential", point)
    assert weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert from_cube("exponential", point**stretch) == pytest.approx(weights, abs=1e-9)
    back = to_cube("exponential", weights)
    assert -np.log(back).sum() == pytest.approx(len(numbers), rel=1e-6)
    assert from_cube("exponential", back) == pytest.approx(weights, abs=1e-9)


@kinds
def test_the_cube_s_uniform_is_the_simplex_s(kind: Coordinates) -> None:
    """Means and variances of 20,000 draws against direct ones, within five standard errors (of a mean: .0011)."""
    rng = np.random.default_rng(0)
    found = from_cube(kind, rng.random((20_000, dimensions(kind, 5))))
    expected = sample_uniform(rng, 20_000, 5)
    assert found.mean(axis=0) == pytest.approx(np.full(5, 0.2), abs=5 * 0.163 / np.sqrt(20_000))
    assert found.std(axis=0) == pytest.approx(expected.std(axis=0), rel=0.05)
    assert np.quantile(found, 0.9, axis=0) == pytest.approx(np.quantile(expected, 0.9, axis=0), abs=0.015)


@kinds
def test_ends_of_the_cube_are_mixtures(kind: Coordinates) -> None:
    count = dimensions(kind, 4)
    for point in (np.zeros((1, count)), np.ones((1, count))):
        weights = from_cube(kind, point)
        assert np.isfinite(weights).all()
        assert weights.sum() == pytest.approx(1.0)
