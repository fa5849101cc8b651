"""Features: bounds, exact ends, order within a domain, domains moved together."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mixopt.surrogates.features import ZERO_RESOLUTION, root_and_log, weights

SCHEDULES = arrays(np.float64, st.tuples(st.integers(0, 6), st.integers(1, 3), st.integers(1, 5)), elements=st.floats(0, 1))


@given(SCHEDULES)
def test_features_lie_in_the_unit_cube(schedules: np.ndarray) -> None:
    count, phases, domains = schedules.shape
    features = root_and_log(schedules)
    assert features.shape == (count, 2 * phases * domains)
    assert ((features >= 0) & (features <= 1 + 1e-12)).all()


@given(SCHEDULES, st.randoms())
def test_moving_domains_moves_their_features(schedules: np.ndarray, random: object) -> None:
    count, phases, domains = schedules.shape
    order = list(range(domains))
    random.shuffle(order)  # type: ignore[attr-defined]
    moved = root_and_log(schedules[:, :, order]).reshape(count, 2, phases, domains)
    np.testing.assert_array_equal(moved, root_and_log(schedules).reshape(count, 2, phases, domains)[..., order])


def test_ends_and_reference() -> None:
    schedules = np.array([[[0.0, 1.0, 0.04]]])
    features = root_and_log(schedules)[0]
    np.testing.assert_allclose(features[:3], [0, 1, 0.2])
    low, high = np.log(ZERO_RESOLUTION), np.log(1 + ZERO_RESOLUTION)
    np.testing.assert_allclose(features[3:], [0, 1, (np.log(0.04 + ZERO_RESOLUTION) - low) / (high - low)])


def test_weights_put_phases_side_by_side() -> None:
    schedules = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(weights(schedules), [[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]])
