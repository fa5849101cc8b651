"""How well one set of runs ranks mixtures as another does, how sure that is with so few mixtures, and which rate to train with.

The measure is pairwise decision accuracy: of all pairs of mixtures, the share that both order alike, as in `mixopt.ranking`.
Doubt comes from a bootstrap over mixtures, in which a pair of one mixture with itself does not count; Spearman's correlation is shown beside it
because papers give it. All rates are resampled together, so that what counts is how they differ on the same mixtures, and what a lucky set of mixtures does to all
of them cancels. The main trade-off: pairs weigh alike, also those that the reference itself can hardly tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.ranking import INTERVAL, spearmans

DRAWS = 4000
"""Of the bootstrap: a share of .99 is known within .002."""
LEVEL = 0.05
"""Chance of leaving the own rate for no reason, over all rates together (Bonferroni)."""


@dataclass(frozen=True)
class Ranking:
    """How one rate ranks mixtures, judged by the references.

    Attributes:
        rate: peak learning rate.
        accuracy: pairwise decision accuracy: half that of the objective, half the mean over its metrics; mean over references.
        low, high: its central 90% over resampled mixtures.
        spearman: name of a reference -> Spearman's correlation of the objective.
        spearman_metrics: name of a reference -> the same, mean over the objective's metrics.
        beats_own: share of resampled mixtures in which it ranks better than the own rate; ties count half.
    """

    rate: float
    accuracy: float
    low: float
    high: float
    spearman: Mapping[str, float]
    spearman_metrics: Mapping[str, float]
    beats_own: float


def agreement(first: FloatArray, second: FloatArray) -> FloatArray:
    """Whether two scores (n,) order each pair alike: 1, or 0; one half where either ties; shape (n, n)."""
    orders = [np.sign(scores[:, None] - scores[None, :]) for scores in (first, second)]
    return np.asarray(0.5 + 0.5 * orders[0] * orders[1])


def accuracy(agreements: FloatArray, counts: FloatArray) -> FloatArray:
    """Pairwise decision accuracy with each mixture taken so many times.

    Args:
        agreements: shape (..., n, n).
        counts: shape (draws, n).

    Returns:
        Shape (draws, ...); NaN where a draw holds one mixture only.
    """
    pairs = counts[:, :, None] * counts[:, None, :] * (1 - np.eye(counts.shape[1]))
    totals = pairs.sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.einsum("bij,...ij->b...", pairs, agreements) / totals.reshape(-1, *[1] * (agreements.ndim - 2)))


def rank_rates(scores: Mapping[float, FloatArray], references: Mapping[str, FloatArray], seed: int = 0) -> list[Ranking]:
    """Judges rates, the own one first.

    Args:
        scores: rate -> scores (mixtures, 1 + metrics): the objective, then its metrics; lower is better.
        references: name -> the same of a longer or larger run.
    """
    mixtures = next(iter(references.values())).shape[0]
    columns = [np.stack([_blend(values, reference) for reference in references.values()]).mean(axis=0) for values in scores.values()]
    agreements = np.stack(columns)  # (rates, n, n)
    generator = np.random.default_rng([0xCA11, seed])
    counts = generator.multinomial(mixtures, np.full(mixtures, 1 / mixtures), size=DRAWS).astype(np.float64)
    measured = accuracy(agreements, np.ones((1, mixtures)))[0]
    resampled = accuracy(agreements, counts)
    resampled = resampled[np.isfinite(resampled).all(axis=1)]
    wins = (resampled > resampled[:, :1]).mean(axis=0) + 0.5 * (resampled == resampled[:, :1]).mean(axis=0)
    low, high = np.percentile(resampled, INTERVAL, axis=0)
    return [
        Ranking(
            rate=rate,
            accuracy=float(measured[index]),
            low=float(low[index]),
            high=float(high[index]),
            spearman={name: _spearman(values[:, 0], reference[:, 0]) for name, reference in references.items()},
            spearman_metrics={
                name: float(np.mean([_spearman(a, b) for a, b in zip(values.T[1:], reference.T[1:], strict=True)]))
                for name, reference in references.items()
            },
            beats_own=float(wins[index]),
        )
        for index, (rate, values) in enumerate(scores.items())
    ]


def _spearman(first: FloatArray, second: FloatArray) -> float:
    return float(spearmans(first[None], second[None])[0])


def choose_rate(rankings: Sequence[Ranking], losses: Mapping[float, float]) -> tuple[float, str]:
    """The rate to train with, and why, as a sentence.

    The own rate stays unless another ranks better beyond doubt, with the number of rates that were tried taken into account. Of several such
    rates the one that ranks best is taken; of those that it cannot be told apart from, the one with the lowest loss.

    Args:
        rankings: of `rank_rates`, the own rate first.
        losses: rate -> mean loss over the mixtures, bits per byte.
    """
    own, others = rankings[0], rankings[1:]
    if not others:
        return own.rate, "No other rate was tried."
    sure = 1 - LEVEL / len(others)
    better = [ranking for ranking in others if ranking.beats_own >= sure and ranking.accuracy > own.accuracy]
    if not better:
        best = max(rankings, key=lambda ranking: ranking.accuracy)
        reason = (
            "no rate tried ranks the mixtures better"
            if best.accuracy <= own.accuracy
            else f"{best.rate:g} orders {best.accuracy:.0%} of the pairs as longer runs do against {own.accuracy:.0%}, which these mixtures cannot tell from chance"
        )
        return own.rate, f"The rate stays {own.rate:g}: {reason}."
    best = max(better, key=lambda ranking: ranking.accuracy)
    level = [ranking for ranking in better if ranking.high >= best.accuracy]
    chosen = min(level, key=lambda ranking: losses[ranking.rate])
    return chosen.rate, (
        f"{chosen.rate:g} orders {chosen.accuracy:.0%} of the pairs of mixtures as longer runs do, the own rate {own.rate:g} {own.accuracy:.0%}; "
        f"it does better in {chosen.beats_own:.1%} of resampled sets of mixtures."
    )


def _blend(scores: FloatArray, reference: FloatArray) -> FloatArray:
    """Agreement (n, n) of the objective, half, and the mean over the metrics, half."""
    pairs = [agreement(a, b) for a, b in zip(scores.T, reference.T, strict=True)]
    return pairs[0] if len(pairs) == 1 else 0.5 * pairs[0] + 0.5 * np.mean(pairs[1:], axis=0)
