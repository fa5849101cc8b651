"""What the fidelity benchmark compares: losses of one arm with those of another, mixture by mixture, as rows and as printed tables."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transfer.arms import Arm

from mixopt.mixture import FloatArray
from mixopt.ranking import FEWEST_MIXTURES, Agreement, agreement
from mixopt.trial import Outcome, Trial

MEANS = {"mean of targets": "target/", "mean of domains": "valid/"}
"""Printed first: means over the metrics whose names begin so, in bits per byte."""


@dataclass(frozen=True)
class Measured:
    """Losses of an arm after some of its tokens.

    Attributes:
        name: of the arm, with the tokens where they are not all.
        mixtures: keys of mixtures, in the order of the arm.
        losses: metric -> bits per byte of the first seed, shape (mixtures,).
        noise: metric -> standard deviation over seeds, pooled over the mixtures trained twice; NaN where none was.
        seconds: of its trials together, as packs took them.
    """

    name: str
    mixtures: tuple[tuple[float, ...], ...]
    losses: Mapping[str, FloatArray]
    noise: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One arm compared with another on one metric; see `mixopt.ranking.Agreement`. NaN is written as None.

    Attributes:
        noise_bits, signal_bits: of `arm`: standard deviation over seeds, and over mixtures less the noise's.
    """

    arm: str
    reference: str
    metric: str
    mixtures: int
    spearman: float
    spearman_low: float
    spearman_high: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    ceiling_spearman: float | None
    ceiling_accuracy: float | None
    noise_bits: float | None
    signal_bits: float | None
    best_loss_bits: float
    arm_seconds: float


def measured_of(arm: Arm, trials: Sequence[Trial], outcomes: Mapping[str, Outcome], metrics: Mapping[str, str]) -> list[Measured]:
    """Of an arm whose first trials are done: at its end, then at the earlier points of its curves.

    Args:
        metrics: evaluation key -> metric.
    """
    done = [trial for trial in trials if trial.trial_id in outcomes]
    if not done:
        return []
    counts = sorted({m.tokens for m in outcomes[done[0].trial_id].measurements}, reverse=True)
    return [_at(arm, done, outcomes, metrics, tokens, tokens == counts[0]) for tokens in counts]


def _at(
    arm: Arm, trials: Sequence[Trial], outcomes: Mapping[str, Outcome], metrics: Mapping[str, str], tokens: int, is_end: bool
) -> Measured:
    by_mixture: dict[tuple[float, ...], list[dict[str, float]]] = {}
    for trial in trials:
        named = {
            metrics[m.evaluation_key]: m.bits_per_byte
            for m in outcomes[trial.trial_id].measurements
            if m.tokens == tokens and m.evaluation_key in metrics
        }
        for mean, prefix in MEANS.items():
            parts = [value for metric, value in named.items() if metric.startswith(prefix)]
            if parts:
                named[mean] = math.fsum(parts) / len(parts)
        by_mixture.setdefault(tuple(trial.schedule.array()[0].tolist()), []).append(named)
    names = sorted(set.intersection(*(set(named) for runs in by_mixture.values() for named in runs)))
    return Measured(
        name=arm.name if is_end else f"{arm.name}, after {_short(tokens)} of {_short(arm.tokens)}",
        mixtures=tuple(by_mixture),
        losses={name: np.array([runs[0][name] for runs in by_mixture.values()]) for name in names},
        noise={name: _pooled([[run[name] for run in runs] for runs in by_mixture.values()]) for name in names},
        seconds=math.fsum(outcomes[trial.trial_id].seconds for trial in trials),
    )


def _short(tokens: int) -> str:
    return f"{tokens / 1e6:.3g}M" if tokens >= 1e6 else f"{tokens / 1e3:.0f}K"


def _pooled(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation within groups."""
    squares = math.fsum(float(np.var(group)) * len(group) for group in groups)
    degrees = sum(len(group) - 1 for group in groups)
    return math.sqrt(squares / degrees) if degrees else math.nan


def compare(arm: Measured, reference: Measured) -> Iterator[Row]:
    """Rows of all metrics, means first; none where fewer than four mixtures are in both."""
    common = [mixture for mixture in arm.mixtures if mixture in reference.mixtures]
    if len(common) < FEWEST_MIXTURES:
        return
    here, there = ([one.mixtures.index(mixture) for mixture in common] for one in (arm, reference))
    names = [name for name in arm.losses if name in reference.losses]
    for name in sorted(names, key=lambda name: (name not in MEANS, name)):
        noise = (arm.noise[name], reference.noise[name])
        losses = arm.losses[name][here]
        found = agreement(losses, reference.losses[name][there], None if any(map(math.isnan, noise)) else noise)
        signal = math.sqrt(max(float(losses.var(ddof=1)) - noise[0] ** 2, 0.0)) if not math.isnan(noise[0]) else None
        yield _row(arm, reference, name, found, noise[0], signal, float(losses.min()))


def _row(arm: Measured, reference: Measured, metric: str, found: Agreement, noise: float, signal: float | None, best: float) -> Row:
    def known(value: float) -> float | None:
        return None if math.isnan(value) else value

    return Row(
        arm=arm.name,
        reference=reference.name,
        metric=metric,
        mixtures=found.n,
        spearman=found.spearman,
        spearman_low=found.spearman_low,
        spearman_high=found.spearman_high,
        accuracy=found.accuracy,
        accuracy_low=found.accuracy_low,
        accuracy_high=found.accuracy_high,
        ceiling_spearman=known(found.ceiling_spearman),
        ceiling_accuracy=known(found.ceiling_accuracy),
        noise_bits=known(noise),
        signal_bits=signal,
        best_loss_bits=best,
        arm_seconds=arm.seconds,
    )


def print_rows(rows: Sequence[Row], per_target: bool) -> None:
    """A line per comparison and metric; without `per_target` the means only."""
    if not rows:
        print("Nothing can be compared yet.")
        return
    head = (
        f"{'arm':36} {'ranks as':24} {'metric':24} {'n':>3} {'spearman':>8} {'90% interval':>14} {'ceiling':>7} "
        f"{'pairs':>6} {'90% interval':>14} {'ceiling':>7} {'noise':>6} {'signal':>6}"
    )
    print(head)
    for row in rows:
        if not per_target and row.metric not in MEANS:
            continue
        cells = [_cell(getattr(row, name), 2) for name in ("ceiling_spearman", "ceiling_accuracy")]
        print(
            f"{row.arm:36} {row.reference:24} {row.metric:24} {row.mixtures:3} {row.spearman:8.2f} "
            f"{row.spearman_low:6.2f} to {row.spearman_high:4.2f} {cells[0]:>7} {row.accuracy:6.2f} "
            f"{row.accuracy_low:6.2f} to {row.accuracy_high:4.2f} {cells[1]:>7} {_cell(row.noise_bits, 3):>6} {_cell(row.signal_bits, 3):>6}"
        )


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
