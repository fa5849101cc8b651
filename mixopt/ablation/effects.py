"""What each domain brings each target, with its error: how a plan's losses become effects.

Positive is a domain that helps: with it the loss is lower, by so many bits per byte. All effects are differences between models measured on the same
held-out rows, so their error is that of paired differences: a jackknife over folds of the rows, of unequal size (Busing, Meijer and van der
Leeden, Statistics and Computing, 1999). Sampled Shapley values have the error of sampling besides: the spread between circles, drawn
towards the mean over domains, as two or three circles say little by themselves. The variances add up, with degrees of freedom after
Satterthwaite.

The trade-off: intervals hold these two errors and not the third, the seeds that components were trained with: these models are what is
ablated. And they are for one effect: of a hundred that are nothing, ten will seem to be something.

Legend: K domains, M metrics, S subsets, F folds, U circles.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.ablation.plan import Plan
from mixopt.ablation.result import MEAN, Ablation, Effects
from mixopt.errors import DataError
from mixopt.mixture import FloatArray

LEVEL = 0.9
"""Of intervals, as everywhere in mixopt."""
BORROWED_DEGREES = 4.0
"""Weight, in circles, of the mean over domains in the variance between circles (an assumption, tested for coverage): domains differ by a few times
in it, and that of three circles by itself is wrong by as much."""


@dataclass(frozen=True)
class FoldTable:
    """Losses of subsets on one held-out set.

    Attributes:
        bits_SF: of every subset's model on each fold of the rows; the order of subsets is the plan's.
        text_bytes_F: that each fold stands for.
    """

    bits_SF: FloatArray
    text_bytes_F: FloatArray

    def losses(self) -> FloatArray:
        """Bits per byte of each subset, shape (S,)."""
        return np.asarray(self.bits_SF.sum(axis=1) / self.text_bytes_F.sum())

    def losses_without(self) -> FloatArray:
        """The same with each fold left out, shape (S, F)."""
        bits_S1, text_bytes = self.bits_SF.sum(axis=1, keepdims=True), self.text_bytes_F.sum()
        return np.asarray((bits_S1 - self.bits_SF) / (text_bytes - self.text_bytes_F))


def ablation_effects(plan: Plan, tables: Mapping[str, FoldTable], weights: Mapping[str, float] | None = None) -> Ablation:
    """Effects of every domain on every metric and on their mean.

    Args:
        tables: metric -> losses of the plan's subsets.
        weights: metric -> weight in the mean, which need not sum to one; default: all alike.

    Raises:
        DataError: there is no metric, a table is not of the plan's subsets, has fewer than two folds, or holds something that is not finite; or no
            weight is above 0.
    """
    _check(plan, tables)
    shares_M = _shares(list(tables), weights)
    parts = {"leave_one_out": plan.leave_one_out()[None], "add_one_in": plan.add_one_in()[None]}
    if plan.has_shapley:
        parts["shapley"] = plan.shapley()
    effects = {name: _effects(factors, list(tables.values()), shares_M) for name, factors in parts.items()}
    losses_SM = np.stack([table.losses() for table in tables.values()], axis=1)
    with_mean = np.column_stack([losses_SM @ shares_M, losses_SM])
    return Ablation(
        domains=plan.domains,
        metrics=(MEAN, *tables),
        base=tuple(with_mean[plan.row[frozenset()]].tolist()),
        everything=tuple(with_mean[plan.row[frozenset(plan.domains)]].tolist()),
        leave_one_out=effects["leave_one_out"],
        add_one_in=effects["add_one_in"],
        shapley=effects.get("shapley"),
        subsets=len(plan.subsets),
        circles=len(plan.circles),
    )


def _effects(factors_UKS: FloatArray, tables: Sequence[FoldTable], shares_M: FloatArray) -> Effects:
    """Effects of one kind, the mean over metrics first."""
    losses_SM = np.stack([table.losses() for table in tables], axis=1)
    units_UKM = _with_mean(factors_UKS @ losses_SM, shares_M)
    mean_KS = factors_UKS.mean(axis=0)
    text_KM = np.stack([_jackknife(mean_KS, table) for table in tables], axis=1)
    degrees_M = np.array([len(table.text_bytes_F) - 1 for table in tables], dtype=np.float64)
    # Metrics are measured on different texts, whose errors have nothing to do with each other.
    parts_KM = text_KM * shares_M**2
    total_K = parts_KM.sum(axis=1)
    text_degrees = np.column_stack([_degrees(list(parts_KM.T), degrees_M), np.tile(degrees_M, (len(text_KM), 1))])
    text = np.column_stack([total_K, text_KM])
    sampling, sampling_degrees = _between(units_UKM)
    degrees = _degrees([text, sampling], [text_degrees, np.full(text.shape, sampling_degrees)])
    return _table(units_UKM.mean(axis=0), text, sampling, degrees)


def _table(value: FloatArray, text: FloatArray, sampling: FloatArray, degrees: FloatArray) -> Effects:
    from scipy.special import stdtrit

    reach = stdtrit(degrees, 0.5 + LEVEL / 2) * np.sqrt(text + sampling)
    columns = (value, value - reach, value + reach, np.sqrt(text), np.sqrt(sampling))
    return Effects(*(tuple(tuple(row) for row in column.tolist()) for column in columns))


def _with_mean(values_UKM: FloatArray, shares_M: FloatArray) -> FloatArray:
    return np.concatenate([(values_UKM @ shares_M)[..., None], values_UKM], axis=-1)


def _jackknife(factors_KS: FloatArray, table: FoldTable) -> FloatArray:
    """Variance of effects over the held-out rows, shape (K,)."""
    folds = len(table.text_bytes_F)
    inverse_F = table.text_bytes_F.sum() / table.text_bytes_F  # h of the paper: size of the whole over that of what is left out
    whole_K1, without_KF = (factors_KS @ table.losses())[:, None], factors_KS @ table.losses_without()
    jackknifed_K1 = folds * whole_K1 - ((1 - 1 / inverse_F) * without_KF).sum(axis=1, keepdims=True)
    pseudo_KF = inverse_F * whole_K1 - (inverse_F - 1) * without_KF
    return np.asarray(((pseudo_KF - jackknifed_K1) ** 2 / (inverse_F - 1)).mean(axis=1))


def _between(units_UKM: FloatArray) -> tuple[FloatArray, float]:
    """Variance of the mean over circles, (K, M), and its degrees of freedom; 0 where there is one unit, which is exact."""
    circles = len(units_UKM)
    if circles == 1:
        return np.zeros(units_UKM.shape[1:]), 1.0
    own_KM = units_UKM.var(axis=0, ddof=1)
    shared_1M = own_KM.mean(axis=0, keepdims=True)
    degrees = circles - 1 + BORROWED_DEGREES
    return np.asarray(((circles - 1) * own_KM + BORROWED_DEGREES * shared_1M) / degrees / circles), degrees


def _degrees(variances: Sequence[FloatArray], degrees: Sequence[FloatArray] | FloatArray) -> FloatArray:
    """Satterthwaite's degrees of freedom of a sum of variances; 1 where all are 0 and nothing depends on it."""
    total = np.sum(variances, axis=0)
    parts = np.sum([variance**2 / degree for variance, degree in zip(variances, degrees, strict=True)], axis=0)
    return np.asarray(np.where(parts > 0, total**2 / np.where(parts > 0, parts, 1.0), 1.0))


def _shares(metrics: Sequence[str], weights: Mapping[str, float] | None) -> FloatArray:
    raw = np.array([1.0 if weights is None else weights.get(metric, 0.0) for metric in metrics])
    if not (raw >= 0).all() or not raw.sum() > 0:
        raise DataError(f"No metric of {', '.join(metrics)} has a weight above 0.", "Weigh at least one of the metrics that were measured.")
    return np.asarray(raw / raw.sum())


def _check(plan: Plan, tables: Mapping[str, FoldTable]) -> None:
    if not tables:
        raise DataError("An ablation needs the losses of at least one metric; tables is empty.")
    for metric, table in tables.items():
        folds = len(table.text_bytes_F)
        if table.bits_SF.shape != (len(plan.subsets), folds) or folds < 2:
            raise DataError(
                f"Losses on '{metric}' have shape {table.bits_SF.shape}; the plan has {len(plan.subsets)} subsets, and {folds} folds are known of.",
                "Measure every subset of the plan, on two or more folds of the held-out rows.",
            )
        if not np.isfinite(table.bits_SF).all() or not (np.isfinite(table.text_bytes_F) & (table.text_bytes_F > 0)).all():
            raise DataError(f"Losses on '{metric}' are not finite, or a fold stands for no text.", "Leave out the component that diverged.")
