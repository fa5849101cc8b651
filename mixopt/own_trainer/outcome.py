"""What a trainer of the user's own reports of a trial, checked, as an outcome.

Nothing of it is believed before it is looked at: every metric must be there, known and finite, shares must be those of the trial's domains. Metrics
of which more is better are negated here, so that everything behind this sees losses. The main trade-off: a metric that nobody asked for is an
error, not left out; it is a misspelt one more often than not.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixopt.code_version import code_version
from mixopt.own_trainer.config import TrainerConfig
from mixopt.runner import Evaluation
from mixopt.trial import WEIGHT_DECIMALS, Failure, FailureKind, Measurement, Outcome, Trial, content_digest

MINIMIZED, MAXIMIZED = "minimized", "maximized"
"""Kinds of evaluation."""
REQUEST_VERSION = 1
RESULT_KEYS = ("metrics", "weights", "flops", "seconds", "curve", "trial_id", "version")
LARGEST_RESULT_BYTES = 16_000_000
SHARES_WITHIN = 1e-3
"""Shares that a trainer counted may miss their sum of 1 by so much; they are then made exact."""


class BadResultError(Exception):
    """A report that cannot be used; `failure` says why."""

    def __init__(self, kind: FailureKind, message: str) -> None:
        super().__init__(message)
        self.failure = Failure(kind, message)


def evaluations_of(trainer: TrainerConfig) -> tuple[Evaluation, ...]:
    """The trainer's metrics as what trials are scored on; keys know name and direction, nothing else."""
    kinds = {metric.name: MAXIMIZED if metric.maximize else MINIMIZED for metric in trainer.metrics}
    return tuple(
        Evaluation(
            key=content_digest(["own trainer", name, kind]),
            metric=name,
            kind=kind,
            path=Path(),
            max_tokens=None,
            curve_key=content_digest(["own trainer", name, kind, "curve"]),
        )
        for name, kind in kinds.items()
    )


def request_of(trial: Trial, folder: Path | None = None) -> dict[str, Any]:
    """What a trainer is told of its trial, as JSON values; the file format is promised by its version. `folder`: where the program may keep files."""
    domains = trial.schedule.domains
    return {
        "version": REQUEST_VERSION,
        "trial_id": trial.trial_id,
        "label": trial.label,
        "size": trial.source.size,
        "tokens": trial.source.tokens,
        "seed": trial.seed,
        "domains": list(domains),
        "weights": [mixture.as_dict() for mixture in trial.schedule.mixtures],
        "fractions": list(trial.schedule.fractions),
        **({} if folder is None else {"output_folder": str(folder)}),
    }


@dataclass(frozen=True)
class Measured:
    """What was reported of one trial, checked.

    Attributes:
        values: metric -> value as the trainer gave it.
        realized: one mapping of domain -> share per phase; None: as requested.
        curve: (tokens, metric -> value) before the end, ascending.
    """

    values: Mapping[str, float]
    realized: tuple[Mapping[str, float], ...] | None = None
    flops: float | None = None
    seconds: float | None = None
    curve: tuple[tuple[int, Mapping[str, float]], ...] = field(default=())


def read_result(path: Path, trial: Trial, metrics: Sequence[str]) -> Measured:
    """Reads `result.json` of a program.

    Raises:
        BadResultError: it is missing, is not what was promised, lacks a metric, has one that nobody asked for or that is not a finite number.
        OSError: it cannot be read.
    """
    if not path.exists():
        raise BadResultError(FailureKind.ERROR, f"The program ended well but wrote no result to {path.name}.")
    if path.stat().st_size > LARGEST_RESULT_BYTES:
        raise BadResultError(FailureKind.ERROR, f"{path.name} has {path.stat().st_size:,} bytes, more than any result needs.")
    try:
        body = json.loads(path.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise BadResultError(FailureKind.ERROR, f"{path.name} is not JSON: {' '.join(str(error).split())[:200]}.") from error
    return checked(body, trial, metrics)


def checked(body: Any, trial: Trial, metrics: Sequence[str]) -> Measured:
    """A result as JSON values, checked. Raises BadResultError as `read_result`."""
    if not isinstance(body, dict) or not isinstance(body.get("metrics"), dict):
        raise BadResultError(FailureKind.ERROR, 'The result is no object with `metrics`, as {"metrics": {"loss": 3.1}}.')
    for key in body:
        if key not in RESULT_KEYS:
            raise BadResultError(FailureKind.ERROR, f"The result has an unknown key '{key}'. {_nearest(key, RESULT_KEYS)}")
    if body.get("trial_id", trial.trial_id) != trial.trial_id:
        raise BadResultError(FailureKind.ERROR, f"The result is of trial {body['trial_id']!r}, not of {trial.trial_id}.")
    missing = [name for name in metrics if name not in body["metrics"]]
    if missing:
        raise BadResultError(FailureKind.ERROR, f"The result lacks the metric {', '.join(missing)}.")
    return Measured(
        values=_values(body["metrics"], metrics, ""),
        realized=_shares(body["weights"], trial) if body.get("weights") is not None else None,
        flops=_amount(body, "flops"),
        seconds=_amount(body, "seconds"),
        curve=_curve(body.get("curve") or (), trial, metrics),
    )


def outcome_of(trial: Trial, measured: Measured, evaluations: Sequence[Evaluation], flops: float | None, seconds: float) -> Outcome:
    """The outcome, in losses: values of maximized metrics are negated.

    Args:
        evaluations: those of which values are wanted; measured values may be of some of them only.
        flops, seconds: where the result does not say them; no FLOPs are 0.
    """
    end = trial.source.tokens
    points = [*measured.curve, (end, measured.values)]
    found = []
    for evaluation in evaluations:
        sign = -1.0 if evaluation.kind == MAXIMIZED else 1.0
        for tokens, values in points:
            if evaluation.metric in values:
                loss = sign * values[evaluation.metric]
                found.append(Measurement(evaluation.key, tokens, loss, loss))
                if tokens == end and measured.curve and evaluation.curve_key is not None:
                    found.append(Measurement(evaluation.curve_key, tokens, loss, loss))  # all points are on the same rows
    return Outcome(
        trial_id=trial.trial_id,
        realized=_realized(trial, measured.realized),
        measurements=tuple(found),
        tokens=end,
        flops=measured.flops if measured.flops is not None else flops or 0.0,
        seconds=measured.seconds if measured.seconds is not None else seconds,
        diagnostics={"code_version": code_version()},
    )


def _realized(trial: Trial, shares: Sequence[Mapping[str, float]] | None) -> dict[str, tuple[float, ...]]:
    """Content hash -> share per phase, of the domains with weight; each phase sums to 1."""
    rows = [mixture.as_dict() for mixture in trial.schedule.mixtures] if shares is None else shares
    requested = trial.schedule.array().round(WEIGHT_DECIMALS)
    used = [domain for index, domain in enumerate(trial.domains) if requested[:, index].any()]
    totals = [math.fsum(row.get(domain.name, 0.0) for domain in used) for row in rows]
    return {d.content_hash: tuple(row.get(d.name, 0.0) / total for row, total in zip(rows, totals, strict=True)) for d in used}


def _values(values: Any, metrics: Sequence[str], where: str) -> dict[str, float]:
    for name, value in values.items():
        if name not in metrics:
            raise BadResultError(FailureKind.ERROR, f"The result has an unknown metric '{name}'{where}. {_nearest(name, metrics)}")
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise BadResultError(FailureKind.ERROR, f"Metric '{name}'{where} is {str(value)[:50]!r}, which is no number.")
        if not math.isfinite(_float(value)):
            raise BadResultError(FailureKind.DIVERGED, f"Metric '{name}'{where} is {value}, which is not finite.")
    return {name: float(value) for name, value in values.items()}


def _amount(body: Mapping[str, Any], key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= _float(value) < math.inf:
        raise BadResultError(FailureKind.ERROR, f"`{key}` of the result is {value!r}; write a number of at least 0.")
    return float(value)


def _shares(given: Any, trial: Trial) -> tuple[Mapping[str, float], ...]:
    phases = [given] if isinstance(given, dict) else given
    count = len(trial.schedule.mixtures)
    if not isinstance(phases, list) or len(phases) != count or not all(isinstance(row, dict) for row in phases):
        raise BadResultError(FailureKind.ERROR, f"`weights` of the result is no list of {count} objects of domain and share.")
    for row, mixture in zip(phases, trial.schedule.mixtures, strict=True):
        asked = mixture.as_dict()
        for name, share in row.items():
            if name not in asked:
                raise BadResultError(
                    FailureKind.ERROR, f"`weights` of the result has an unknown domain '{name}'. {_nearest(name, list(asked))}"
                )
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= _float(share) < math.inf:
                raise BadResultError(FailureKind.ERROR, f"`weights` of the result gives '{name}' the share {share!r}.")
            if share > 0 and round(asked[name], WEIGHT_DECIMALS) == 0:
                raise BadResultError(
                    FailureKind.ERROR, f"`weights` of the result gives '{name}' {share:g}, which the trial gives no weight."
                )
        total = math.fsum(row.values())
        if abs(total - 1) > SHARES_WITHIN:
            raise BadResultError(FailureKind.ERROR, f"`weights` of the result sum to {total:.6g}; they are shares of tokens and sum to 1.")
    return tuple(phases)


def _curve(points: Any, trial: Trial, metrics: Sequence[str]) -> tuple[tuple[int, Mapping[str, float]], ...]:
    """The points before the end; one at the end says nothing that the metrics do not."""
    found: dict[int, Mapping[str, float]] = {}
    for point in points if isinstance(points, list | tuple) else [points]:
        if not isinstance(point, dict) or set(point) != {"tokens", "metrics"} or not isinstance(point["metrics"], dict):
            raise BadResultError(FailureKind.ERROR, "`curve` of the result is no list of {tokens, metrics}.")
        tokens = point["tokens"]
        if isinstance(tokens, bool) or not isinstance(tokens, int) or not 0 < tokens <= trial.source.tokens or tokens in found:
            raise BadResultError(
                FailureKind.ERROR,
                f"`curve` of the result has a point at {tokens!r} tokens; they differ, from 1 to {trial.source.tokens:,}.",
            )
        found[tokens] = _values(point["metrics"], metrics, f" at {tokens:,} tokens")
    return tuple(sorted((tokens, values) for tokens, values in found.items() if tokens < trial.source.tokens))


def _float(value: float | None) -> float:
    """NaN for nothing; infinite where it has more digits than a float."""
    try:
        return math.nan if value is None else float(value)
    except OverflowError:
        return math.inf


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean '{close[0]}'?" if close else f"There are {', '.join(known)}."
