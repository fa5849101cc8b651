"""Agreement of rankings: against scipy and a slow count, and the ceiling against a simulation whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from mixopt.errors import DataError
from mixopt.ranking import accuracies, agreement, noise_ceiling, spearmans

values = arrays(np.float64, st.integers(4, 12).map(lambda n: (2, n)), elements=st.integers(-5, 5).map(float))


@given(values)
def test_spearman_is_scipys_ties_included(pair):
    first, second = pair
    expected = 0.0 if np.ptp(first) == 0 or np.ptp(second) == 0 else spearmanr(first, second).statistic
    assert spearmans(first[None], second[None])[0] == pytest.approx(expected, abs=1e-12)


@given(values)
def test_accuracy_is_the_share_of_pairs_ordered_alike(pair):
    first, second = pair
    scores = []
    for i in range(len(first)):
        for j in range(i):
            ordered = (first[i] - first[j]) * (second[i] - second[j])
            scores.append(1.0 if ordered > 0 else 0.0 if ordered < 0 else 0.5)
    assert accuracies(first[None], second[None])[0] == pytest.approx(np.mean(scores))


def test_a_mixture_drawn_twice_is_no_pair():
    first, second = np.array([[1.0, 1.0, 2.0]]), np.array([[5.0, 5.0, 4.0]])
    assert accuracies(first, second, np.array([[0, 0, 1]]))[0] == 0.0
    assert accuracies(first, second)[0] == pytest.approx(0.5 / 3)


def test_same_rankings_agree_whatever_the_unit():
    losses = np.linspace(2.0, 3.0, 9) ** 2
    found = agreement(losses, 10 * losses + 3, noise=(1e-9, 1e-9))
    assert (found.spearman, found.accuracy, found.n) == (1.0, 1.0, 9)
    assert found.ceiling_spearman == pytest.approx(1.0)
    assert found.ceiling_accuracy == pytest.approx(1.0)
    opposite = agreement(losses, -losses)
    assert (opposite.spearman, opposite.accuracy) == (-1.0, 0.0)
    assert np.isnan(opposite.ceiling_spearman)


def test_intervals_hold_the_estimate_and_narrow_with_more_mixtures():
    rng = np.random.default_rng(0)
    truth = rng.standard_normal(200)
    first, second = truth + 0.5 * rng.standard_normal(200), truth + 0.5 * rng.standard_normal(200)
    few, many = agreement(first[:12], second[:12]), agreement(first, second)
    for found in (few, many):
        assert found.spearman_low <= found.spearman <= found.spearman_high
        assert found.accuracy_low <= found.accuracy <= found.accuracy_high
    assert many.spearman_high - many.spearman_low < 0.5 * (few.spearman_high - few.spearman_low)


def test_the_ceiling_is_what_two_noisy_looks_at_one_truth_reach():
    rng = np.random.default_rng(1)
    truth = rng.standard_normal(400)
    looks = [scale * truth + std * rng.standard_normal(400) for scale, std in ((1.0, 0.6), (3.0, 0.9))]
    spearman, accuracy = noise_ceiling(looks[0], looks[1], (0.6, 0.9), rng)
    reached = agreement(looks[0], looks[1])
    # 400 mixtures that do rank alike: what was reached is the ceiling, within its own error.
    assert spearman == pytest.approx(reached.spearman, abs=0.04)
    assert accuracy == pytest.approx(reached.accuracy, abs=0.03)


def test_no_signal_means_chance():
    flat = np.array([1.0, 1.1, 0.9, 1.05, 0.95])
    found = agreement(flat, 5 * flat, noise=(1.0, 0.1))
    assert (found.ceiling_spearman, found.ceiling_accuracy) == (0.0, 0.5)


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (np.ones(5), np.ones(4), "shapes"),
        (np.ones(3), np.ones(3), "too few"),
        (np.array([1.0, np.nan, 2.0, 3.0]), np.ones(4), "finite"),
    ],
)
def test_what_cannot_be_compared_is_said(first, second, said):
    with pytest.raises(DataError, match=said):
        agreement(first, second)
