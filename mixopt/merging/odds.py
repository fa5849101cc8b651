"""Rank correlations of an evaluator with trained proxies, and what they would be for evaluators of known quality.

A dozen noisy mixtures say little: an evaluator that truly ranks with .9 may show .7, and one of .3 as well. So everything measured is held
against simulations with as many mixtures, the same spread and dependence of metrics, and the same seed noise: a perfect evaluator's mean
correlations are the ceiling, and what others would show says how often the gate errs.

The trade-off: mixtures are drawn normally distributed, from the covariance that the trained ones show; corners of a design are further out
than that, and make the real correlations a little higher.

Legend: G mixtures, M metrics, N draws.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.merging.paired import Paired
from mixopt.mixture import FloatArray
from mixopt.ranking import spearmans

FEWEST_ON_TOP = 4
"""Mixtures that a rank correlation of the best is taken of at least."""


def top_count(mixtures: int) -> int:
    """How many of the best mixtures are looked at by themselves: a quarter, or where that is fewer than 4, half, rounded up; 0 where even these are fewer."""
    quarter, half = mixtures // 4, -(-mixtures // 2)
    return quarter if quarter >= FEWEST_ON_TOP else half if half >= FEWEST_ON_TOP else 0


@dataclass(frozen=True)
class Correlations:
    """Spearman's, of N pairs of tables: objective_N, metrics_NM, and top_N of the objective among the best mixtures; top is 0 where there are too few."""

    objective_N: FloatArray
    metrics_NM: FloatArray
    top_N: FloatArray


def correlations(objectives: tuple[FloatArray, FloatArray], losses: tuple[FloatArray, FloatArray]) -> Correlations:
    """Of the first of each pair, which says what is best, with the second.

    Args:
        objectives: shape (N, G) each.
        losses: shape (N, G, M) each.
    """
    first, second = objectives
    draws, mixtures, metrics = losses[0].shape
    by_metric = [values.transpose(0, 2, 1).reshape(-1, mixtures) for values in losses]
    best = np.argsort(first, axis=1, kind="stable")[:, : top_count(mixtures)]
    top = spearmans(*(np.take_along_axis(values, best, axis=1) for values in objectives)) if best.shape[1] else np.zeros(draws)
    return Correlations(spearmans(first, second), spearmans(*by_metric).reshape(draws, metrics), top)


def measured(paired: Paired, rows_NG: NDArray[np.int64]) -> Correlations:
    """Of the pairs at hand, with the mixtures rows_NG (N draws of G) in each draw."""
    value = paired.objective.value
    objectives = (value(paired.trained_GM)[rows_NG], value(paired.proxy_GM)[rows_NG])
    return correlations(objectives, (paired.trained_GM[rows_NG], paired.proxy_GM[rows_NG]))


def simulated(paired: Paired, true_spearman: float, rng: np.random.Generator, draws: int) -> Correlations:
    """What an evaluator whose rank correlation with the noise-free losses is `true_spearman` shows on as many mixtures, in every metric."""
    mixtures, metrics = paired.trained_GM.shape
    centre = paired.trained_GM.mean(axis=0)
    spread_M = paired.trained_GM.std(axis=0, ddof=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        signal_M = np.where(spread_M > 0, np.sqrt(np.maximum(spread_M**2 - paired.noise_M**2, 0.0)) / spread_M, 0.0)
    _, sizes, axes = np.linalg.svd((paired.trained_GM - centre) * signal_M / math.sqrt(mixtures - 1), full_matrices=False)
    factor = sizes[:, None] * axes
    # Of two normal variables (Pearson, 1907): rank correlation s belongs to a linear one of 2 sin(pi s / 6).
    linear = 2 * math.sin(math.pi * true_spearman / 6)
    truth, other = (rng.standard_normal((draws, mixtures, len(factor))) @ factor for _ in range(2))
    proxy = linear * truth + math.sqrt(max(0.0, 1 - linear**2)) * other
    common = _common_share(paired, centre)
    each, all_alike = rng.standard_normal((draws, mixtures, metrics)), rng.standard_normal((draws, mixtures, 1))
    trained = truth + paired.noise_M * (math.sqrt(common) * all_alike + math.sqrt(1 - common) * each)
    value = paired.objective.value
    return correlations((value(centre + trained), value(centre + proxy)), (trained, proxy))


def _common_share(paired: Paired, centre_M: FloatArray) -> float:
    """Which share of the metrics' noise is one and the same, so that the objective's noise comes out as it is."""
    parts_M = np.abs(paired.objective.sensitivities(centre_M)) * paired.noise_M
    apart, together = float((parts_M**2).sum()), float(parts_M.sum() ** 2)
    if together <= apart:
        return 0.0
    return float(np.clip((paired.objective_noise**2 - apart) / (together - apart), 0.0, 1.0))
