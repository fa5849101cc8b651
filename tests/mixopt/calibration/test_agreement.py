"""Pairwise decision accuracy against a slow count, its bootstrap, and the rule by which a rate is chosen."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.calibration.agreement import Ranking, accuracy, agreement, choose_rate, rank_rates

scores = st.lists(st.integers(-3, 3).map(float), min_size=3, max_size=8)


@given(scores, st.integers(0, 10**6))
def test_accuracy_is_the_share_of_pairs_in_the_same_order(first: list[float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    second = rng.integers(-3, 3, len(first)).astype(float)
    counts = rng.integers(0, 3, len(first)).astype(float)
    alike, total = 0.0, 0.0
    for i, j in itertools.combinations(range(len(first)), 2):
        orders = np.sign(first[i] - first[j]) * np.sign(second[i] - second[j])
        alike += counts[i] * counts[j] * (0.5 if orders == 0 else float(orders > 0))
        total += counts[i] * counts[j]
    measured = accuracy(agreement(np.array(first), second), counts[None])[0]
    assert measured == pytest.approx(alike / total) if total else np.isnan(measured)


def test_a_rate_that_ranks_as_the_reference_has_accuracy_one_and_the_reverse_zero() -> None:
    truth = np.arange(8.0)[:, None] * np.ones((1, 3))
    own, same, reverse = rank_rates({1.0: truth[[3, 6, 1, 7, 0, 5, 2, 4]], 2.0: truth * 5 - 1, 3.0: -truth}, {"longer": truth})
    assert (same.accuracy, same.low, same.high) == (1.0, 1.0, 1.0)
    assert reverse.accuracy == 0.0
    assert same.spearman["longer"] == pytest.approx(1.0)
    assert same.beats_own == pytest.approx(1.0, abs=0.01)
    assert reverse.beats_own == pytest.approx(0.0, abs=0.01)
    assert own.beats_own == 0.5


def ranking(rate: float, right: float, beats: float, low: float = 0.0, high: float = 1.0) -> Ranking:
    return Ranking(rate, right, low, high, {}, {}, beats)


LOSSES = {1.0: 3.0, 2.0: 2.5, 3.0: 2.0}


def test_the_own_rate_stays_unless_another_is_better_beyond_doubt() -> None:
    rate, reason = choose_rate([ranking(1.0, 0.7, 0.5), ranking(2.0, 0.9, 0.95), ranking(3.0, 0.8, 0.9)], LOSSES)
    assert rate == 1.0
    assert "cannot tell from chance" in reason
    assert (
        choose_rate([ranking(1.0, 0.9, 0.5), ranking(2.0, 0.8, 0.2)], LOSSES)[1]
        == "The rate stays 1: no rate tried ranks the mixtures better."
    )


def test_the_more_rates_are_tried_the_surer_one_has_to_be() -> None:
    rankings = [ranking(1.0, 0.7, 0.5), ranking(2.0, 0.9, 0.96)]
    assert choose_rate(rankings, LOSSES)[0] == 2.0
    assert choose_rate([*rankings, ranking(3.0, 0.6, 0.3)], LOSSES)[0] == 1.0


def test_ties_go_to_the_lower_loss() -> None:
    tied = [ranking(1.0, 0.6, 0.5), ranking(2.0, 0.95, 1.0, 0.8, 1.0), ranking(3.0, 0.93, 1.0, 0.8, 1.0)]
    assert choose_rate(tied, LOSSES)[0] == 3.0
    apart = [ranking(1.0, 0.6, 0.5), ranking(2.0, 0.95, 1.0, 0.9, 1.0), ranking(3.0, 0.7, 1.0, 0.65, 0.8)]
    assert choose_rate(apart, LOSSES)[0] == 2.0


def test_a_single_rate_is_the_rate() -> None:
    assert choose_rate([ranking(1.0, 0.5, 0.5)], LOSSES) == (1.0, "No other rate was tried.")
