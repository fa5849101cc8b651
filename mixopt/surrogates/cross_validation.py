"""Out-of-fold predictions: how well a surrogate predicts mixtures it has not seen, at the source it was fitted on.

Repeats of one mixture stay in the same fold, otherwise the model would be asked what it was told. Good numbers here do not show that
rankings transfer to larger models: same-scale cross-validation alone must not pick the surrogate (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, spearmanr

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted, Surrogate
from mixopt.surrogates.observations import MINIMUM_TRIALS, mixture_groups
from mixopt.swarm import Points, Swarm


@dataclass(frozen=True)
class OutOfFold:
    """Predictions of each trial by a fit that did not see its mixture; all of shape (trials, metrics), in the order of `swarm.trial_ids`.

    Attributes:
        mean: predicted bits per byte.
        std: of the predicted *measurement*: uncertainty of the noise-free loss and seed noise together.
        measured: bits per byte.
    """

    mean: FloatArray
    std: FloatArray
    measured: FloatArray

    def spearman(self) -> FloatArray:
        """Rank correlation of predicted and measured per metric, shape (metrics,); 0 where either is constant."""
        return np.array([rank_correlation(m, y) for m, y in zip(self.mean.T, self.measured.T, strict=True)])

    def beside(self, other: OutOfFold) -> OutOfFold:
        """These metrics followed by those of `other`, of the same trials."""
        return OutOfFold(*(np.concatenate(pair, axis=1) for pair in zip(self._arrays(), other._arrays(), strict=True)))

    def columns(self, columns: Sequence[int]) -> OutOfFold:
        """Some of the metrics."""
        return OutOfFold(*(array[:, list(columns)] for array in self._arrays()))

    def rows(self, rows: NDArray[np.int64]) -> OutOfFold:
        """Some of the trials."""
        return OutOfFold(*(array[rows] for array in self._arrays()))

    def _arrays(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        return self.mean, self.std, self.measured

    def coverage(self, level: float = 0.9) -> FloatArray:
        """Share of measurements inside the central interval of `level`, shape (metrics,)."""
        inside = np.abs(self.measured - self.mean) <= norm.ppf(0.5 + level / 2) * self.std
        return np.asarray(inside.mean(axis=0))


def rank_correlation(predicted: FloatArray, measured: FloatArray) -> float:
    """Spearman's correlation of two arrays of shape (n,); 0 where either is constant: a constant ranks nothing."""
    if np.ptp(predicted) == 0 or np.ptp(measured) == 0:
        return 0.0
    return float(spearmanr(predicted, measured).statistic)


def fold_numbers(groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """Fold of each trial, shape (n,): groups dealt in random order, so folds differ by one group at most; no more folds than groups."""
    count = int(groups.max()) + 1
    dealt = np.empty(count, dtype=np.int64)
    dealt[np.random.default_rng(seed).permutation(count)] = np.arange(count) % min(folds, count)
    return dealt[groups]


class TooFewToCheck(DataError):
    """Too few trials, or too few different mixtures, to predict some from the others."""


def checked_folds(groups: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """As `fold_numbers`, where every fold leaves enough trials to fit on.

    Raises:
        TooFewToCheck: fewer than two folds or mixtures, or a fold would leave fewer than 4 trials.
    """
    if folds < 2:
        raise TooFewToCheck(f"Cross-validation needs at least 2 folds, got {folds}.")
    if len(groups) == 0 or groups.max() == 0:
        raise TooFewToCheck(f"Cross-validation needs at least two different mixtures, got {len(groups)} trials.", "Run more trials.")
    numbers = fold_numbers(groups, folds, seed)
    if len(groups) - np.bincount(numbers).max() < MINIMUM_TRIALS:
        raise TooFewToCheck(f"{len(groups)} trials in {folds} folds leave fewer than {MINIMUM_TRIALS} to fit on.", "Run more trials.")
    return numbers


@runtime_checkable
class ChecksItself(Protocol):
    """A surrogate that predicts trials out of fold while it fits, for less than fitting it again per fold costs (stacks do)."""

    def fit_with_out_of_fold(self, swarm: Swarm, metrics: Sequence[str], folds: int, seed: int) -> tuple[Fitted, OutOfFold]: ...


def fit_with_out_of_fold(
    surrogate: Surrogate, swarm: Swarm, metrics: Sequence[str], folds: int = 5, seed: int = 0
) -> tuple[Fitted, OutOfFold | None, str]:
    """`surrogate` fitted to all trials, its out-of-fold predictions, and why there are none where there are too few trials for them.

    Raises:
        DataError: whatever `surrogate.fit` raises.
    """
    if isinstance(surrogate, ChecksItself):
        try:
            return *surrogate.fit_with_out_of_fold(swarm, metrics, folds, seed), ""
        except TooFewToCheck as error:
            return surrogate.fit(swarm, metrics), None, error.message
    fitted = surrogate.fit(swarm, metrics)
    try:
        return fitted, out_of_fold(surrogate, swarm, metrics, folds, seed), ""
    except DataError as error:
        return fitted, None, error.message


def out_of_fold(surrogate: Surrogate, swarm: Swarm, metrics: Sequence[str], folds: int = 5, seed: int = 0) -> OutOfFold:
    """Fits `surrogate` once per fold on the other folds' trials and predicts the fold.

    The result is a pure function of the swarm's content: the order of its rows does not matter.

    Raises:
        TooFewToCheck: fewer than two folds, or a fold would leave fewer than 4 trials to fit on.
        DataError: whatever `surrogate.fit` raises.
    """
    return out_of_fold_by(lambda part: surrogate.fit(part, metrics), swarm, metrics, folds, seed)


def out_of_fold_by(fit: Callable[[Swarm], Fitted], swarm: Swarm, metrics: Sequence[str], folds: int, seed: int) -> OutOfFold:
    """As `out_of_fold`, with `fit` called on the trials of all folds but one."""
    numbers = checked_folds(mixture_groups(swarm), folds, seed)
    names = np.array(swarm.trial_ids)
    measured = swarm.values(metrics)
    mean, std = np.empty_like(measured), np.empty_like(measured)
    for fold in range(int(numbers.max()) + 1):
        held_out = numbers == fold
        fitted = fit(swarm.select(names[~held_out].tolist()))
        points = swarm.select(names[held_out].tolist()).points()
        posterior = fitted.posterior(points)
        mean[held_out] = posterior.mean
        std[held_out] = np.sqrt(posterior.std**2 + noise_at(fitted, points) ** 2)
    return OutOfFold(mean, std, measured)


@runtime_checkable
class KnowsNoiseOfMixtures(Protocol):
    """A fitted surrogate whose seed noise depends on the mixture."""

    def noise_at(self, points: Points) -> FloatArray: ...


def noise_at(fitted: Fitted, points: Points) -> FloatArray:
    """Standard deviation of seed noise of every point, shape (n, metrics), bits per byte."""
    if isinstance(fitted, KnowsNoiseOfMixtures):
        return fitted.noise_at(points)
    return np.broadcast_to(fitted.noise_std, (len(points.schedules), len(fitted.metrics)))
