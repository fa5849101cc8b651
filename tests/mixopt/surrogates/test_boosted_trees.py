"""What is particular to the trees: the least leaf, the noise from repeats, and the flat prediction outside the swarm."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.errors import DataError
from mixopt.surrogates.boosted_trees import BoostedTrees, _jackknife_factor
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)


def line_swarm(count: int, noise: float = 0.0) -> Swarm:
    """Two domains; the loss is the weight of the second."""
    share = np.linspace(0.2, 0.8, count)
    values = share + noise * np.random.default_rng(0).normal(size=count)
    return Swarm.from_arrays(["a", "b"], np.stack([1 - share, share], axis=1)[:, None, :], ["m"], values[:, None], SOURCE)


def at(*shares: float) -> Points:
    schedules = np.array([[[1 - share, share]] for share in shares])
    return Points(("a", "b"), schedules, (SOURCE,) * len(shares))


def test_fewer_than_forty_trials_are_split() -> None:
    """LightGBM's default leaf of 20 would predict a constant here: Spearman 0 (RegMix at 16 and 32 runs)."""
    low, high = BoostedTrees().fit(line_swarm(24), ["m"]).mean(at(0.25, 0.75))[:, 0]
    assert high - low > 0.3


def test_prediction_is_flat_outside_the_swarm() -> None:
    inside, outside = BoostedTrees().fit(line_swarm(60), ["m"]).mean(at(0.8, 1.0))[:, 0]
    assert inside == outside


def test_jackknife_of_means_is_the_variance_of_the_mean() -> None:
    """Models that predict the mean of their data: with n groups of one, the jackknife is exactly s^2 / n."""
    data = np.random.default_rng(1).normal(size=12)
    leave_one_out = (data.sum() - data) / 11
    factor = _jackknife_factor(leave_one_out[None, :])
    assert (factor @ factor.T)[0, 0] == pytest.approx(data.var(ddof=1) / 12)


def test_without_repeats_noise_and_misfit_share_what_is_left() -> None:
    fit = BoostedTrees().fit(line_swarm(60, noise=0.05), ["m"]).fits[0]
    assert fit.noise_std == pytest.approx(fit.misfit_std)


def test_with_repeats_misfit_is_told_from_noise() -> None:
    """Twelve mixtures, twice each, noise of 0.001: the steps of the trees are a misfit many times larger, and not called noise."""
    share = np.repeat(np.linspace(0.2, 0.8, 12), 2)
    values = share + 0.001 * np.random.default_rng(2).normal(size=24)
    swarm = Swarm.from_arrays(["a", "b"], np.stack([1 - share, share], axis=1)[:, None, :], ["m"], values[:, None], SOURCE)
    fit = BoostedTrees().fit(swarm, ["m"]).fits[0]
    assert 0.0005 < fit.noise_std < 0.002  # twelve degrees of freedom: 20% relative error
    assert fit.misfit_std > 5 * fit.noise_std


def test_swarm_with_one_mixture_only_is_refused() -> None:
    schedules = np.full((6, 1, 2), 0.5)
    swarm = Swarm.from_arrays(["a", "b"], schedules, ["m"], np.arange(6.0)[:, None], SOURCE)
    with pytest.raises(DataError, match="same mixture"):
        BoostedTrees().fit(swarm, ["m"])
