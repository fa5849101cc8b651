"""How far predictions may be trusted: out of fold, by what a user does with them, next to rules that need no model.

A correlation says little by itself. On a swarm where one domain decides everything, ranking mixtures by the weight of that domain reaches .98 (RegMix's
1B table); a surrogate that does no better adds nothing, and a reader should see that. So every number stands beside three trivial baselines, judged
on the same folds. The main trade-off: one source and one cross-validation. Good numbers do not show that rankings carry over to larger models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from mixopt.mixture import FloatArray
from mixopt.objective import Objective
from mixopt.ranking import pairwise_accuracy
from mixopt.surrogates.cross_validation import OutOfFold, rank_correlation

TAIL_SHARE, LEAST_TAIL = 0.1, 4
"""Lower-tail optimism looks at the tenth of the runs predicted best, at least four of them: fewer would tell of one run's luck."""
DIVERSITY_OFFSET = 1e-3
"""Added to weights before their logarithm is taken, as in the surrogates' features: zeros of a table are weights below half a thousandth."""
BASELINES = {
    "best_single_weight": "a straight line in the weight of the one domain that ranks the training folds best",
    "most_diverse": "the mean over domains of log(weight + 0.001): the more even a mixture, the better; nothing is fitted",
    "linear": "least squares on all weights",
}
MEANINGS = {
    "spearman": "rank correlation of predicted and measured",
    "pairwise_accuracy": "share of pairs of runs that the prediction orders as the measurement does; a tie counts half",
    "regret_at_1_percent": "how much worse than the best run the run predicted best is, in percent of the range from best to worst",
    "lower_tail_optimism": "measured minus predicted, both as losses, mean over the tenth of the runs predicted best (at least 4): above 0, "
    "the best predictions promise too much; in the unit of the metric",
    "r2": "share of the variance explained; below 0: worse than the mean",
    "coverage90": "share of measurements inside the 90% interval, noise included; 0.9 is right",
}


def scores(predicted: FloatArray, measured: FloatArray, std: FloatArray | None = None, values: bool = True) -> dict[str, float | None]:
    """The numbers of `MEANINGS` for predictions of n runs, all arrays of shape (n,), lower is better.

    Args:
        std: of the predicted measurements; None: no intervals, no coverage.
        values: whether `predicted` is in the unit of `measured`; otherwise it only ranks.
    """
    spread = float(np.ptp(measured))
    tail = np.argsort(predicted, kind="stable")[: max(LEAST_TAIL, math.ceil(TAIL_SHARE * len(predicted)))]
    pick = measured[predicted == predicted.min()].mean()  # of a tie, any could be picked
    squares = float(((measured - measured.mean()) ** 2).sum())
    return {
        "spearman": rank_correlation(predicted, measured),
        "pairwise_accuracy": pairwise_accuracy(predicted, measured),
        "regret_at_1_percent": 100 * float(pick - measured.min()) / spread if spread else 0.0,
        "lower_tail_optimism": float((measured - predicted)[tail].mean()) if values else None,
        "r2": 1 - float(((measured - predicted) ** 2).sum()) / squares if values and squares else None,
        "coverage90": None if std is None else float((np.abs(measured - predicted) <= norm.ppf(0.95) * std).mean()),
    }


def diagnose(
    errors: OutOfFold,
    metrics: Sequence[str],
    objective: Objective,
    objective_std: FloatArray,
    shares: FloatArray,
    folds: NDArray[np.int64],
) -> dict[str, Any]:
    """`scores` of the surrogate and of the trivial baselines, for every metric and for the objective, as JSON values.

    Args:
        errors: out-of-fold predictions of runs of one source, columns in the order of `metrics`, which begins with the objective's.
        objective_std: of the objective of those predictions, noise included, shape (runs,).
        shares: weights of the runs, shape (runs, domains).
        folds: of each run, those that `errors` was made with.
    """
    count = len(objective.metrics)
    natural = np.array(objective.natural_losses)
    measured = np.column_stack([errors.measured, objective.difference(errors.measured[:, :count], natural)])
    predicted = np.column_stack([errors.mean, objective.difference(errors.mean[:, :count], natural)])
    stds = np.column_stack([errors.std, objective_std])
    linear = linear_predictions(shares, errors.measured, folds)
    linear = np.column_stack([linear, objective.difference(linear[:, :count], natural)])
    single = single_weight_predictions(shares, measured, folds)
    diverse = -np.log(shares + DIVERSITY_OFFSET).mean(axis=1)
    found = []
    for column in range(measured.shape[1]):
        truth = measured[:, column]
        baselines = {
            "best_single_weight": scores(single[:, column], truth),
            "most_diverse": scores(diverse, truth, values=False),
            "linear": scores(linear[:, column], truth),
        }
        found.append({**scores(predicted[:, column], truth, stds[:, column]), "baselines": baselines})
    return {"objective": found[-1], "metrics": dict(zip(metrics, found[:-1], strict=True))}


def best_baseline(entry: Mapping[str, Any]) -> tuple[str, float]:
    """Name and Spearman of the trivial baseline that ranks best."""
    ranks = {name: float(baseline["spearman"]) for name, baseline in entry["baselines"].items()}
    best = max(ranks, key=lambda name: (ranks[name], name))
    return best, ranks[best]


def linear_predictions(shares: FloatArray, measured: FloatArray, folds: NDArray[np.int64]) -> FloatArray:
    """Each run of `measured` (runs, metrics) by least squares on the weights of the other folds' runs; least norm where they leave it open."""
    predicted = np.empty_like(measured)
    for fold in np.unique(folds):
        out = folds == fold
        # Weights sum to 1, so they hold the constant.
        coefficients = np.linalg.lstsq(shares[~out], measured[~out], rcond=None)[0]
        predicted[out] = shares[out] @ coefficients
    return predicted


def single_weight_predictions(shares: FloatArray, measured: FloatArray, folds: NDArray[np.int64]) -> FloatArray:
    """Each run by a straight line in one weight: per metric, the one whose ranks fit best on the other folds' runs.

    A line and not the weight itself, because folds may choose different domains, and predictions of all folds are ranked together.
    """
    predicted = np.empty_like(measured)
    for fold in np.unique(folds):
        out = folds == fold
        ranks = [_standardized(rankdata(values[~out], axis=0)) for values in (shares, measured)]
        best = np.abs(ranks[0].T @ ranks[1]).argmax(axis=0)
        for column, domain in enumerate(best.tolist()):
            weight, loss = shares[~out, domain], measured[~out, column]
            centred = weight - weight.mean()
            slope = float(centred @ loss) / float(centred @ centred) if np.ptp(weight) else 0.0
            predicted[out, column] = loss.mean() + slope * (shares[out, domain] - weight.mean())
    return predicted


def _standardized(ranks: FloatArray) -> FloatArray:
    """Columns of mean 0 and length 1; 0 where constant."""
    centred = ranks - ranks.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=0))
    return np.asarray(np.where(lengths > 0, centred / np.where(lengths > 0, lengths, 1.0), 0.0))
