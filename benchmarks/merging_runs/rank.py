"""Rows of the benchmark of merging: how what is cheap ranks the mixtures that were really trained.

The truth is the loss of those on twice the probe's text, mean over two seeds where all of them have two. Metrics are the targets, their mean, and the mean over the
held-out sets of domains, in bits per byte. `wide` are the mixtures of the design; with a general share, `reachable` and `extrapolated` are those (halfway ones
included) whose merge needs no negative weight, and the others.

Trade-off: an interval resamples mixtures; two evaluators of the same mixtures are compared by their difference, resampled together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from merging_runs.measure import Measured, component_weights, within_reach

from mixopt.mixture import FloatArray
from mixopt.ranking import FEWEST_MIXTURES, INTERVAL, agreement, spearmans

MEANS = {"mean of targets": "target/", "mean of domains": "valid/"}
MAIN = "mean of targets"
TOP_SHARE = 0.25
PENALTIES = np.geomspace(1e-3, 1e3, 13)
"""Of the regression, in units of standardized features times runs."""
DRAWS = {True: 2_000, False: 500}
"""Resamplings: of means, and of single targets."""


@dataclass(frozen=True)
class Row:
    """One evaluator on one metric.

    Attributes:
        evaluator: merged, ensemble, trained (short runs, and other seeds), or regression on the mixture and what is named in `operator`.
        spearman: with the losses of the mixtures that were really trained; low and high: 90% over resampled mixtures.
        top_quartile_spearman: among the best quarter of the mixtures.
        search_flops: of components and scoring, or of training, for the mixtures of the row; the base, which all share, is not counted.
        size, horizon, schedule, rate_scale: of the mixtures that were really trained; tokens, proxy_schedule: of the proxies.
        general: share of the natural mixture in components.
        weights: exact, or shrunk: toward the natural mixture, by the general share.
        subset: wide, reachable or extrapolated.
        displacement: of components, mean; agreement: of the merges' routers with the base's.
        ceiling: what two seeds of the truth itself reach, each with the other; None where there are none.
    """

    evaluator: str
    operator: str
    metric: str
    spearman: float
    spearman_low: float
    spearman_high: float
    top_quartile_spearman: float
    search_flops: float
    mixtures: int
    size: str
    horizon: int
    schedule: str
    rate_scale: float
    tokens: int
    proxy_schedule: str
    general: float | None
    weights: str
    subset: str
    displacement: float | None
    agreement: float | None
    ceiling: float | None


@dataclass(frozen=True)
class Difference:
    """Merged proxies or an ensemble against trained ones, by Spearman on the mean of the targets.

    Attributes:
        case: what is compared, in words.
        horizon: of the mixtures that were really trained; tokens: of the components; trained_tokens: of the short runs.
        at_mixtures: so many mixtures searched make the costs what they are: equal, or `cost` of the trained ones'.
        cost: of the merged proxies over that of the trained ones, scoring included.
        difference: of the two Spearmans; low, high: 90% over mixtures, resampled for both together.
    """

    case: str
    evaluator: str
    operator: str
    size: str
    horizon: int
    tokens: int
    general: float | None
    weights: str
    trained_tokens: int
    at_mixtures: int
    cost: float
    spearman: float
    trained_spearman: float
    difference: float
    difference_low: float
    difference_high: float


@dataclass(frozen=True)
class Truth:
    """What the mixtures of an arm really lose.

    Attributes:
        wide_M: which of them are of the design.
        losses: metric -> bits per byte by mixture, means included.
        seeds: the same of each seed alone, for the wide ones that were trained twice; shape (2, n).
        mixture_MK, natural_K: data mixtures.
    """

    size: str
    horizon: int
    schedule: str
    rate_scale: float
    wide_M: FloatArray
    losses: Mapping[str, FloatArray]
    seeds: Mapping[str, FloatArray]
    mixture_MK: FloatArray
    natural_K: FloatArray

    def is_of(self, measured: Measured) -> bool:
        return (self.size, self.horizon, self.schedule, self.rate_scale) == (
            measured.size,
            measured.tokens,
            measured.schedule,
            measured.rate_scale,
        )

    @property
    def wide(self) -> int:
        return int(self.wide_M.sum())


def with_means(losses: Mapping[str, Sequence[float | None]]) -> dict[str, FloatArray]:
    """Targets and the two means; NaN where nothing was measured."""
    table = {metric: np.array([math.nan if one is None else one for one in values]) for metric, values in losses.items()}
    means = {mean: np.mean([table[metric] for metric in table if metric.startswith(prefix)], axis=0) for mean, prefix in MEANS.items()}
    return {**means, **{metric: values for metric, values in table.items() if metric.startswith("target/")}}


def truth_of(
    measured: Measured,
    again: Mapping[str, Sequence[float]] | None,
    wide: int,
    mixture_MK: FloatArray,
    natural_K: FloatArray,
) -> Truth:
    """Args:
    measured: the trained mixtures, on the full sets; again: the first of them with another seed.
    """
    first = with_means(measured.losses)
    wide_M = np.arange(len(mixture_MK)) < wide
    losses, seeds = first, dict[str, FloatArray]()
    if again is not None and (second := with_means(again)):
        count = len(second[MAIN])
        seeds = {metric: np.stack([values[:count], second[metric]]) for metric, values in first.items()} if count >= FEWEST_MIXTURES else {}
        if count >= wide:
            losses = {metric: np.concatenate([seeds[metric].mean(axis=0), values[count:]]) for metric, values in first.items()}
    return Truth(measured.size, measured.tokens, measured.schedule, measured.rate_scale, wide_M, losses, seeds, mixture_MK, natural_K)


def rows_of(measured: Measured, truth: Truth, per_target: bool) -> Iterator[Row]:
    """One evaluator against one truth, by subset and metric."""
    predicted = with_means(measured.losses)
    # All arms rank the same wide mixtures; some, and all short runs, no others.
    known_M = np.zeros(len(truth.wide_M), dtype=bool)
    common = np.isfinite(predicted[MAIN])[: len(known_M)]
    known_M[: len(common)] = common
    for subset, mask_M in subsets(measured, truth).items():
        chosen = np.flatnonzero(mask_M & known_M)
        if len(chosen) < max(FEWEST_MIXTURES, 0.99 * mask_M.sum()):
            continue
        for metric, values in predicted.items():
            if metric != MAIN and not (per_target and subset == "wide"):
                continue
            yield _row(measured, truth, metric, subset, values[chosen], truth.losses[metric][chosen])


def subsets(measured: Measured, truth: Truth) -> dict[str, FloatArray]:
    if not measured.general:
        return {"wide": truth.wide_M}
    reach_M = within_reach(component_weights(truth.mixture_MK, truth.natural_K, measured.general))
    return {"wide": truth.wide_M, "reachable": reach_M, "extrapolated": ~reach_M}


def _row(measured: Measured, truth: Truth, metric: str, subset: str, predicted: FloatArray, real: FloatArray) -> Row:
    found = agreement(predicted, real, draws=DRAWS[metric in MEANS])
    return Row(
        evaluator=measured.evaluator,
        operator=measured.operator,
        metric=metric,
        spearman=round(found.spearman, 4),
        spearman_low=round(found.spearman_low, 4),
        spearman_high=round(found.spearman_high, 4),
        top_quartile_spearman=round(top_spearman(predicted, real), 4),
        search_flops=measured.shared_flops + len(real) * measured.each_flops,
        mixtures=len(real),
        size=truth.size,
        horizon=truth.horizon,
        schedule=truth.schedule,
        rate_scale=truth.rate_scale,
        tokens=measured.tokens,
        proxy_schedule=measured.schedule,
        general=measured.general,
        weights=measured.weights,
        subset=subset,
        displacement=None if measured.displacement is None else round(measured.displacement, 4),
        agreement=None if measured.agreement is None else round(measured.agreement, 4),
        ceiling=ceiling(truth, metric) if subset == "wide" else None,
    )


def top_spearman(predicted: FloatArray, real: FloatArray) -> float:
    """Among the quarter of the mixtures that are really best; at least three."""
    best = np.argsort(real, kind="stable")[: max(3, round(TOP_SHARE * len(real)))]
    return float(spearmans(predicted[None, best], real[None, best])[0])


def ceiling(truth: Truth, metric: str) -> float | None:
    """Spearman of one seed with the other, over the mixtures that have both."""
    if metric not in truth.seeds:
        return None
    one, other = truth.seeds[metric]
    return round(float(spearmans(one[None], other[None])[0]), 4)


def regression(mixture_NK: FloatArray, features_NF: FloatArray, real_N: FloatArray) -> FloatArray:
    """Ridge on mixtures and what evaluators predict: for each run, what the others say of it, (n,)."""
    inputs = np.concatenate([mixture_NK, features_NF], axis=1)
    return np.array([_ridge(np.delete(inputs, n, axis=0), np.delete(real_N, n), inputs[n]) for n in range(len(real_N))])


def _ridge(inputs_NF: FloatArray, real_N: FloatArray, asked_F: FloatArray) -> float:
    """Prediction at one point; the penalty by generalized cross-validation."""
    centre_F, spread_F = inputs_NF.mean(axis=0), inputs_NF.std(axis=0)
    spread_F = np.where(spread_F > 0, spread_F, 1.0)
    scaled_NF, mean = (inputs_NF - centre_F) / spread_F, real_N.mean()
    left, singular, right = np.linalg.svd(scaled_NF, full_matrices=False)
    projected = left.T @ (real_N - mean)
    best: tuple[float, FloatArray] | None = None
    for penalty in PENALTIES * len(real_N):
        shrink = singular**2 / (singular**2 + penalty)
        residual = real_N - mean - left @ (shrink * projected)
        score = float((residual**2).sum()) / (len(real_N) - 1 - shrink.sum()) ** 2
        if best is None or score < best[0]:
            best = score, right.T @ (shrink * projected / np.where(singular > 0, singular, 1.0))
    assert best is not None
    return float(mean + ((asked_F - centre_F) / spread_F) @ best[1])


def regression_rows(measured: Measured | None, truth: Truth, trained: Measured) -> Iterator[Row]:
    """Leave-one-out predictions over the wide mixtures, from the mixture alone (None) or from it and one evaluator's losses on all targets."""
    wide = truth.wide
    mixture = truth.mixture_MK[:wide]
    predicted = {} if measured is None else with_means(measured.losses)
    targets = [values[:wide] for metric, values in predicted.items() if metric.startswith("target/")]
    features = np.stack(targets, axis=1) if targets else np.zeros((wide, 0))
    if not np.isfinite(features).all():
        return
    name = "mixture" if measured is None else f"mixture and {measured.evaluator}"
    cost = Measured(
        evaluator="regression",
        operator=name,
        weights="" if measured is None else measured.weights,
        size=truth.size,
        tokens=truth.horizon,
        schedule=truth.schedule,
        rate_scale=truth.rate_scale,
        general=None if measured is None else measured.general,
        losses={},
        shared_flops=0.0 if measured is None else measured.shared_flops,
        each_flops=trained.each_flops + (0.0 if measured is None else measured.each_flops),
    )
    for metric in truth.losses:
        if metric != "mean of domains":
            real = truth.losses[metric][:wide]
            yield _row(cost, truth, metric, "wide", regression(mixture, features, real), real)


def difference_of(case: str, measured: Measured, trained: Measured, truth: Truth, at_mixtures: int) -> Difference | None:
    """On the wide mixtures; None where one of the two lacks some."""
    wide = truth.wide
    one, other = (with_means(source.losses)[MAIN][:wide] for source in (measured, trained))
    if len(other) < wide or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    real = truth.losses[MAIN][:wide]
    rows = np.random.default_rng(0).integers(wide, size=(DRAWS[True], wide))
    differences = spearmans(one[rows], real[rows]) - spearmans(other[rows], real[rows])
    low, high = np.percentile(differences, INTERVAL)
    own, its = (float(spearmans(values[None], real[None])[0]) for values in (one, other))
    cost = (measured.shared_flops + at_mixtures * measured.each_flops) / (at_mixtures * trained.each_flops)
    return Difference(
        case=case,
        evaluator=measured.evaluator,
        operator=measured.operator,
        size=truth.size,
        horizon=truth.horizon,
        tokens=measured.tokens,
        general=measured.general,
        weights=measured.weights,
        trained_tokens=trained.tokens,
        at_mixtures=at_mixtures,
        cost=round(cost, 4),
        spearman=round(own, 4),
        trained_spearman=round(its, 4),
        difference=round(own - its, 4),
        difference_low=round(float(low), 4),
        difference_high=round(float(high), 4),
    )


def break_even(measured: Measured, trained: Measured) -> int | None:
    """The fewest mixtures for which components and scoring cost no more than training each; None: scoring alone costs more."""
    saved = trained.each_flops - measured.each_flops
    return math.ceil(measured.shared_flops / saved) if saved > 0 else None
