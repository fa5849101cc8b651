"""What the trials of a search measured, arranged for people: noise against spread, curves over tokens, cost by stage.

Plain data from findings, so that a figure and the table beside it cannot disagree. The main trade-off: everything is computed anew whenever
a report is written; a few thousand trials take a second.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.components.config import EVALUATORS
from mixopt.errors import DataError
from mixopt.history import TrialRecord
from mixopt.objective import measure_noise
from mixopt.surrogates.observations import mixture_groups
from mixopt.swarm import Swarm
from mixopt.tracking.findings import ARM_TITLES, Findings
from mixopt.trial import Outcome, Source, TrialState
from mixopt.verification import LABEL_PREFIX, MEAN_BITS_PER_BYTE

STAGES = ("search", "verification")
"""Stages whose trials are compared with each other."""


@dataclass(frozen=True)
class MetricNoise:
    """Seed noise of a metric against what mixtures do to it, bits per byte.

    Attributes:
        noise_std: pooled over the mixtures trained with several seeds.
        spread_std: standard deviation over mixtures, noise's share removed.
        mixtures: how many mixtures that is over.
        by_mixture: (name, seeds, their standard deviation) of each mixture with several.
        screened: why the objective leaves the metric out; empty if it does not.
    """

    metric: str
    noise_std: float
    degrees_of_freedom: int
    spread_std: float
    mixtures: int
    by_mixture: tuple[tuple[str, int, float], ...]
    screened: str

    @property
    def ratio(self) -> float:
        """Signal to noise: above 1 a proxy of this size tells mixtures apart by this metric."""
        return self.spread_std / self.noise_std


@dataclass(frozen=True)
class Curve:
    """Losses of one trial over its tokens, bits per byte.

    Attributes:
        arms: the mixtures it is a run of; empty for a point of the design.
        one_set_of_rows: whether the end is scored on the rows of the points before it, as in trials recorded since that is measured; else on more.
        all_rows: the end on all rows, which is what everything else in the report goes by.
    """

    trial_id: str
    label: str
    arms: tuple[str, ...]
    seed: int
    metric: str
    tokens: tuple[int, ...]
    bits_per_byte: tuple[float, ...]
    one_set_of_rows: bool
    all_rows: float


@dataclass(frozen=True)
class StageCost:
    """What one stage has spent: sums over its completed trials. `seconds` are of one worker: a pack's time over its members, summed.
    `sources` are (size, tokens) of its trials."""

    stage: str
    sources: tuple[tuple[str, int], ...]
    asked: int
    states: Mapping[str, int]
    tokens: int
    flops: float
    seconds: float


def noise_by_metric(findings: Findings, metrics: Sequence[str]) -> list[MetricNoise]:
    """Noise of each metric that all trials of the search were scored on; empty while no mixture has been trained with two seeds."""
    swarm = findings.answered
    if not len(swarm):
        return []
    losses, groups = swarm.values(metrics), mixture_groups(swarm)
    scored: list[bool] = np.asarray(np.isfinite(losses).all(axis=0)).tolist()
    try:
        noise = measure_noise(losses, groups)
    except DataError:
        return []
    numbers, counts = np.unique(groups, return_counts=True)
    means = np.array([losses[groups == number].mean(axis=0) for number in numbers])
    spread = np.sqrt(np.maximum(means.var(axis=0, ddof=1) - noise.std**2, 0.0)) if len(means) > 1 else np.zeros(len(metrics))
    repeated = [
        (_name(swarm, int(np.argmax(groups == number))), groups == number, int(count))
        for number, count in zip(numbers, counts, strict=True)
        if count > 1
    ]
    screened = findings.proposal.screened if findings.proposal else {}
    return [
        MetricNoise(
            metric=metric,
            noise_std=float(noise.std[column]),
            degrees_of_freedom=noise.degrees_of_freedom,
            spread_std=float(spread[column]),
            mixtures=len(numbers),
            by_mixture=tuple((name, count, float(losses[rows, column].std(ddof=1))) for name, rows, count in repeated),
            screened=screened.get(metric, ""),
        )
        for column, metric in enumerate(metrics)
        if scored[column]
    ]


def _name(swarm: Swarm, row: int) -> str:
    """A repeated mixture by its label; a corner by the domain it is a corner of."""
    trials = swarm.trials()
    label = str(trials["label"][row])
    if label in ARM_TITLES:
        return ARM_TITLES[label]
    weights = np.array(trials["requested"][row].to_list()).mean(axis=0)
    largest = int(weights.argmax())
    return f"{label}: {weights[largest]:.0%} {swarm.domains[largest]}"


def curves(findings: Findings, stage: str, metrics: Sequence[str]) -> list[Curve]:
    """Curves of the completed trials of a stage for each metric, and for their mean ("bits_per_byte") by the objective's weights."""
    keys = findings.context.get("metrics_verification" if stage == "verification" else "metrics") or findings.context["metrics"]
    weights = _mean_weights(findings, metrics)
    found: list[Curve] = []
    for record in findings.trials:
        if record.stage != stage or record.outcome is None:
            continue
        losses, on_curve = _losses(record.outcome, keys), _losses(record.outcome, findings.context.get("metrics_curve") or {})
        points = {metric: losses[metric] for metric in metrics if metric in losses}
        one_set = {metric: on_curve[metric] for metric in points if metric in on_curve}
        if all(metric in losses for metric in weights):
            points[MEAN_BITS_PER_BYTE] = _mean(losses, weights)
            if all(metric in on_curve for metric in weights):
                one_set[MEAN_BITS_PER_BYTE] = _mean(on_curve, weights)
        arms = arms_of(record)
        for metric, values in points.items():
            tokens = tuple(sorted(values))
            drawn = values | one_set.get(metric, {})
            bits = tuple(drawn[count] for count in tokens)
            same, end = metric in one_set, values[tokens[-1]]
            found.append(Curve(record.trial.trial_id, record.trial.label, arms, record.trial.seed, metric, tokens, bits, same, end))
    return found


def _losses(outcome: Outcome, keys: Mapping[str, str]) -> dict[str, dict[int, float]]:
    """Metric -> tokens -> bits per byte."""
    losses: dict[str, dict[int, float]] = {}
    for measurement in outcome.measurements:
        if measurement.evaluation_key in keys:
            losses.setdefault(keys[measurement.evaluation_key], {})[measurement.tokens] = measurement.bits_per_byte
    return losses


def _mean(losses: Mapping[str, Mapping[int, float]], weights: Mapping[str, float]) -> dict[int, float]:
    """Tokens -> weighted mean over metrics, where all were measured."""
    shared = set.intersection(*(set(losses[metric]) for metric in weights))
    return {tokens: math.fsum(weight * losses[metric][tokens] for metric, weight in weights.items()) for tokens in shared}


def _mean_weights(findings: Findings, metrics: Sequence[str]) -> dict[str, float]:
    objective = findings.objective
    if objective is None:
        return dict.fromkeys(metrics, 1 / len(metrics))
    return dict(zip(objective.metrics, objective.weights, strict=True))


def arms_of(record: TrialRecord) -> tuple[str, ...]:
    """The named mixtures that a trial is a run of."""
    label = record.trial.label
    if record.stage == "verification":
        return tuple(label.removeprefix(LABEL_PREFIX).split("+"))
    return (label,) if label in ("natural", "uniform", "unimax") else ()


def _sized(source: Source) -> str:
    return f"{source.evaluator} {source.size}" if source.evaluator in EVALUATORS else source.size


def cost_by_stage(findings: Findings) -> list[StageCost]:
    """One row per stage that has trials; what others begin with comes first."""
    rows = []
    for stage in ("base", "components", *STAGES):
        records = [record for record in findings.trials if record.stage == stage]
        outcomes = [record.outcome for record in records if record.outcome is not None]
        if records:
            states = Counter(record.state.value for record in records)
            rows.append(
                StageCost(
                    stage,
                    tuple(dict.fromkeys((_sized(record.trial.source), record.trial.source.tokens) for record in records)),
                    len(records),
                    {state.value: states[state.value] for state in TrialState if states[state.value]},
                    sum(outcome.trained_tokens for outcome in outcomes),
                    math.fsum(outcome.flops for outcome in outcomes),
                    math.fsum(outcome.seconds for outcome in outcomes),
                )
            )
    return rows
