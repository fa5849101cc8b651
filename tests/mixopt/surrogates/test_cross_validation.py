"""Out-of-fold predictions never come from a model that has seen the mixture; summaries against direct counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.cross_validation import OutOfFold, fold_numbers, out_of_fold, rank_correlation
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)
DOMAINS = ("a", "b", "c")
METRICS = ("m", "k")


def swarm_with_repeats(mixtures: int, repeats: int) -> Swarm:
    schedules = np.repeat(np.random.default_rng(0).dirichlet(np.ones(3), mixtures), repeats, axis=0)[:, None, :]
    values = schedules[:, 0, :2] + 0.01 * np.random.default_rng(1).normal(size=(len(schedules), 2))
    return Swarm.from_arrays(DOMAINS, schedules, METRICS, values, SOURCE)


@dataclass(frozen=True)
class Witness:
    """Predicts 0 with std 3 and noise 4, and fails when it is asked about a mixture it was fitted on."""

    metrics: tuple[str, ...] = METRICS
    seen: frozenset[tuple[float, ...]] = frozenset()

    @property
    def noise_std(self) -> FloatArray:
        return np.full(len(self.metrics), 4.0)

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Witness:
        return Witness(tuple(metrics), frozenset(map(tuple, swarm.points().averages().tolist())))

    def mean(self, points: Points) -> FloatArray:
        return self.posterior(points).mean

    def posterior(self, points: Points) -> GaussianPosterior:
        assert not self.seen & set(map(tuple, points.averages().tolist()))
        shape = (len(points.schedules), len(self.metrics))
        return GaussianPosterior(np.zeros(shape), np.full(shape, 3.0), lambda metric: np.eye(shape[0]))


def test_repeats_of_a_mixture_are_held_out_together() -> None:
    swarm = swarm_with_repeats(7, 3)
    result = out_of_fold(Witness(), swarm, METRICS, folds=4, seed=2)
    np.testing.assert_array_equal(result.measured, swarm.values(METRICS))
    np.testing.assert_array_equal(result.mean, np.zeros((21, 2)))
    np.testing.assert_array_equal(result.std, np.full((21, 2), 5.0))  # noise and uncertainty add in squares


def test_order_of_trials_only_reorders_the_result() -> None:
    swarm = swarm_with_repeats(20, 2)
    shuffled = Swarm(swarm.domains, swarm.table.sample(fraction=1.0, shuffle=True, seed=3))
    surrogate = get_surrogate("gaussian_process")
    straight, turned = (out_of_fold(surrogate, one, METRICS, folds=5, seed=1) for one in (swarm, shuffled))
    order = [swarm.trial_ids.index(trial_id) for trial_id in shuffled.trial_ids]
    np.testing.assert_array_equal(straight.mean[order], turned.mean)
    np.testing.assert_array_equal(straight.std[order], turned.std)
    assert straight.spearman().min() > 0.9


@given(st.lists(st.integers(0, 8), min_size=1, max_size=40), st.integers(2, 7), st.integers(0, 100))
def test_folds_keep_groups_whole_and_balanced(labels: list[int], folds: int, seed: int) -> None:
    groups = np.unique(labels, return_inverse=True)[1]
    numbers = fold_numbers(groups, folds, seed)
    fold_of_group = {(int(group), int(fold)) for group, fold in zip(groups, numbers, strict=True)}
    assert len(fold_of_group) == groups.max() + 1
    sizes = np.bincount([fold for _, fold in fold_of_group])
    assert len(sizes) == min(folds, groups.max() + 1)
    assert sizes.max() - sizes.min() <= 1
    np.testing.assert_array_equal(numbers, fold_numbers(groups, folds, seed))


def test_coverage_counts_the_interval_and_spearman_the_ranks() -> None:
    measured = np.array([[0.0, 0.0], [1.0, 1.6], [2.0, 2.0], [3.0, 9.0]])
    result = OutOfFold(np.array([[0.0, 1.0], [10.0, 1.0], [20.0, 1.0], [30.0, 1.0]]), np.ones((4, 2)), measured)
    np.testing.assert_allclose(result.spearman(), [1.0, 0.0])
    np.testing.assert_allclose(result.coverage(0.9), [0.25, 0.75])  # 1.645 standard deviations
    np.testing.assert_allclose(result.coverage(0.5), [0.25, 0.25])  # 0.674


def test_rank_correlation_of_a_constant_is_zero() -> None:
    assert rank_correlation(np.zeros(5), np.arange(5.0)) == 0
    assert rank_correlation(np.arange(5.0), np.array([0.0, 3.0, 1.0, 4.0, 2.0])) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("swarm", "folds", "message"),
    [
        (Swarm.empty(DOMAINS), 5, "two different mixtures"),
        (swarm_with_repeats(1, 8), 5, "two different mixtures"),
        (swarm_with_repeats(4, 1), 4, "fewer than 4"),
        (swarm_with_repeats(8, 1), 1, "at least 2 folds"),
    ],
)
def test_too_little_data_is_refused(swarm: Swarm, folds: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        out_of_fold(get_surrogate("gaussian_process"), swarm, METRICS, folds=folds)
