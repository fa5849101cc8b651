"""How well one set of measurements ranks mixtures as another does: rank correlation, pairwise decisions, their intervals, and the noise ceiling.

A proxy is worth what its ranking is worth for the target. Spearman's correlation is what the field quotes; pairwise decision accuracy (DataDecide,
arXiv 2504.11393, section 2: the share of pairs of mixtures that both order alike) is what a user does with it. Neither reaches 1 where seeds are
noisy, so both stand beside a ceiling: what they would be if the two sources ranked the noise-free mixtures identically.

Trade-off: intervals resample mixtures, so they are wide where mixtures are few, and say nothing of mixtures of another kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from mixopt.errors import DataError
from mixopt.mixture import FloatArray

DRAWS = 2000
"""Resamplings and simulations: the ends of a 90% interval are then known to within a twentieth of a standard deviation."""
INTERVAL = (5.0, 95.0)
FEWEST_MIXTURES = 4
"""Of fewer, a rank correlation has so few values that an interval means nothing."""


@dataclass(frozen=True)
class Agreement:
    """How two measurements of the same n mixtures rank them. Low and high are the ends of 90% intervals.

    Attributes:
        spearman: rank correlation, -1 to 1; 0 where either is constant.
        accuracy: share of pairs that both order alike; a pair that one of them ties counts half.
        ceiling_spearman, ceiling_accuracy: mean of the two if both sources ranked the noise-free mixtures alike; NaN where noise is not known.
    """

    n: int
    spearman: float
    spearman_low: float
    spearman_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ceiling_spearman: float = float("nan")
    ceiling_accuracy: float = float("nan")


def agreement(
    first: FloatArray, second: FloatArray, noise: tuple[float, float] | None = None, seed: int = 0, draws: int = DRAWS
) -> Agreement:
    """Agreement of two measurements of the same mixtures, both of shape (n,), lower or higher being better in both.

    Args:
        noise: standard deviation of each measurement over seeds, in its own unit; None: not known, and no ceiling.
        draws: resamplings of the mixtures, and simulations for the ceiling.

    Raises:
        DataError: shapes differ, a value is not finite, or there are fewer than 4 mixtures.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise DataError(f"Measurements of shapes {first.shape} and {second.shape} cannot be compared; give one number per mixture to each.")
    if len(first) < FEWEST_MIXTURES:
        raise DataError(f"{len(first)} mixtures are too few to compare rankings.", f"Measure at least {FEWEST_MIXTURES} at both sources.")
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise DataError("A measurement is not finite.", "Leave its mixture out at both sources.")
    rng = np.random.default_rng(seed)
    rows = rng.integers(len(first), size=(draws, len(first)))
    resampled_first, resampled_second = first[rows], second[rows]
    spearman = np.percentile(spearmans(resampled_first, resampled_second), INTERVAL)
    accuracy = np.percentile(accuracies(resampled_first, resampled_second, rows), INTERVAL)
    ceiling = (float("nan"), float("nan")) if noise is None else noise_ceiling(first, second, noise, rng, draws)
    return Agreement(
        n=len(first),
        spearman=float(spearmans(first[None], second[None])[0]),
        spearman_low=float(spearman[0]),
        spearman_high=float(spearman[1]),
        accuracy=float(accuracies(first[None], second[None])[0]),
        accuracy_low=float(accuracy[0]),
        accuracy_high=float(accuracy[1]),
        ceiling_spearman=ceiling[0],
        ceiling_accuracy=ceiling[1],
    )


def spearmans(first: FloatArray, second: FloatArray) -> FloatArray:
    """Rank correlation of each row of two arrays (m, n), shape (m,); ties share their mean rank; 0 where a row is constant."""
    ranks = [rankdata(values, axis=1) for values in (first, second)]
    centred = [rank - rank.mean(axis=1, keepdims=True) for rank in ranks]
    scale = np.sqrt((centred[0] ** 2).sum(axis=1) * (centred[1] ** 2).sum(axis=1))
    products = (centred[0] * centred[1]).sum(axis=1)
    return np.asarray(np.where(scale > 0, products / np.where(scale > 0, scale, 1.0), 0.0))


def accuracies(first: FloatArray, second: FloatArray, identity: NDArray[np.int64] | None = None) -> FloatArray:
    """Share of pairs that two arrays (m, n) order alike, by row, shape (m,).

    Args:
        identity: which mixture each column is, (m, n); a pair of one mixture with itself, as resampling makes it, counts for nothing.
    """
    left, right = np.triu_indices(first.shape[1], k=1)
    signs = [np.sign(values[:, left] - values[:, right]) for values in (first, second)]
    alike = 0.5 * (1.0 + signs[0] * signs[1])
    counted = np.ones(alike.shape, dtype=bool) if identity is None else identity[:, left] != identity[:, right]
    pairs = counted.sum(axis=1)
    return np.asarray(np.where(pairs > 0, (alike * counted).sum(axis=1) / np.maximum(pairs, 1), 0.5))


def pairwise_accuracy(first: FloatArray, second: FloatArray) -> float:
    """As `accuracies` of two arrays (n,), in time n log n: by Kendall's tau, whose correction for ties is undone. One half where there are no pairs."""
    from scipy.stats import kendalltau

    pairs = len(first) * (len(first) - 1) / 2
    if pairs == 0:
        return 0.5
    tied = []
    for values in (first, second):
        counts = np.unique(values, return_counts=True)[1]
        tied.append(float((counts * (counts - 1) / 2).sum()))
    if pairs in tied:
        return 0.5
    surplus = float(kendalltau(first, second).statistic) * np.sqrt((pairs - tied[0]) * (pairs - tied[1]))
    return float(0.5 * (1 + surplus / pairs))


def noise_ceiling(
    first: FloatArray, second: FloatArray, noise: tuple[float, float], rng: np.random.Generator, draws: int = DRAWS
) -> tuple[float, float]:
    """Mean Spearman and pairwise accuracy of two noisy measurements of one truth, with the noise that each has relative to its own signal.

    The truth is the second measurement, shrunk so that its spread is that of the signal alone (variance over mixtures less the noise's).
    A source whose spread does not exceed its noise has no signal, and the ceiling is that of chance: 0 and one half.
    """
    signals = [float(np.sqrt(max(values.var(ddof=1) - std**2, 0.0))) for values, std in zip((first, second), noise, strict=True)]
    if min(signals) == 0.0:
        return 0.0, 0.5
    truth = (second - second.mean()) / second.std(ddof=1)
    noisy = [truth + (std / signal) * rng.standard_normal((draws, len(truth))) for std, signal in zip(noise, signals, strict=True)]
    return float(spearmans(*noisy).mean()), float(accuracies(*noisy).mean())
