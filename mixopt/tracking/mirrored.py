"""What MLflow shows of a search and of its trials: pure functions from findings to the content of runs.

A `MirroredRun` depends on the record alone, so its digest tells whether anything has to be written, and a mirror made at once equals one
made step by step. Only what can never change about a trial is a parameter, because MLflow refuses to change parameters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from mixopt import __version__
from mixopt.history import TrialRecord
from mixopt.tracking.findings import Findings
from mixopt.tracking.note import answer_markdown
from mixopt.trial import Outcome, TrialState, content_digest
from mixopt.verification import OBJECTIVE

# MLflow refuses or cuts tags of more than 8,000 characters (mlflow/utils/validation.py).
NOTE_CHARACTERS = 7_900
KEY_TAG, SEARCH_TAG, PARENT_TAG, NOTE_TAG = "mixopt.key", "mixopt.search_id", "mlflow.parentRunId", "mlflow.note.content"

TRIAL_STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.ABANDONED: "FAILED",
}
SEARCH_STATUS = {"running": "RUNNING", "interrupted": "KILLED", "finished": "FINISHED", "failed": "FAILED"}


# Metric, value, step.
Point = tuple[str, float, int]


@dataclass(frozen=True)
class MirroredRun:
    """The content of one run.

    Attributes:
        key: names the run in the record and, as a tag, in MLflow.
        measured: (metric, value, step), finite; what never changes once it is known.
        summaries: the same, for what a later proposal may change; the last one written counts.
        status: RUNNING, FINISHED, FAILED or KILLED.
        measured_ms, summaries_ms: Unix time stamped on the metrics. Measurements bear the time the search was made, always, so that writing
            them again adds no second point to a curve.
        started_ms, ended_ms: Unix time. No time is part of the digest: when something happened moves, what happened does not.
    """

    key: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    measured: tuple[Point, ...]
    summaries: tuple[Point, ...]
    measured_ms: int
    summaries_ms: int
    started_ms: int
    ended_ms: int | None

    def digest(self) -> str:
        """Hash of the content."""
        return content_digest({name: value for name, value in asdict(self).items() if not name.endswith("_ms")})


def search_run(findings: Findings) -> MirroredRun:
    """The parent run: the answer as a note, how far the search is, the proposal's weights and effect."""
    search, context = findings.search, findings.context
    counts = Counter(record.state for record in findings.trials)
    completed = counts[TrialState.COMPLETED]
    objective = context.get("objective") or {}
    tags = {
        NOTE_TAG: fitted_note(answer_markdown(findings)),
        "mixopt.kind": "search",
        "mixopt.state": search.state,
        "mixopt.strategy": str(context.get("strategy", "")),
        "mixopt.objective": f"{objective.get('kind', '')} over {objective.get('over', '')}",
        "mixopt.corpus": content_digest(sorted([domain["name"], domain["content_hash"]] for domain in context["domains"])),
        "mixopt.experiment": str(context.get("experiment_hash", "")),
        "mixopt.version": str((context.get("versions") or {}).get("mixopt", __version__)),
    }
    metrics = {
        "trials/completed": float(completed),
        "trials/failed": float(counts[TrialState.FAILED] + counts[TrialState.ABANDONED]),
        "cost/flops": math.fsum(record.outcome.flops for record in findings.trials if record.outcome),
        "cost/seconds": math.fsum(record.outcome.seconds for record in findings.trials if record.outcome),
    }
    if findings.proposal is not None:
        effect = findings.proposal.objective
        metrics |= {"objective/predicted": effect.mean, "objective/predicted_low": effect.low, "objective/predicted_high": effect.high}
        metrics |= {f"weight/{name}": weight for name, weight in findings.proposal.mixture.as_dict().items()}
    if findings.verification is not None:
        tags["mixopt.recommended"] = findings.verification.recommended
        metrics |= {
            f"objective/verified_against_{row.baseline}": row.mean for row in findings.verification.comparisons if row.metric == OBJECTIVE
        }
    return MirroredRun(
        key=search_key(search.search_id),
        name=f"{search.name} {search.search_id[:8]}",
        status=SEARCH_STATUS[search.state],
        tags={**_identity(search.search_id, search_key(search.search_id)), **tags},
        params={},
        # The step is the number of trials, so that a search that goes on draws a curve.
        summaries=_finite((name, value, completed) for name, value in metrics.items()),
        measured=(),
        measured_ms=_milliseconds(search.created),
        summaries_ms=_milliseconds(search.updated),
        started_ms=_milliseconds(search.created),
        ended_ms=None if search.state == "running" else _milliseconds(search.updated),
    )


def trial_runs(findings: Findings, parent_run_id: str) -> list[MirroredRun]:
    """One child run per trial that has started."""
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal else {}
    objective = {trial["trial_id"]: float(trial["measured"]) for trial in evidence.get("objective_over_trials") or ()}
    return [
        _trial_run(findings, record, parent_run_id, objective.get(record.trial.trial_id))
        for record in findings.trials
        if record.state in TRIAL_STATUS
    ]


def _trial_run(findings: Findings, record: TrialRecord, parent_run_id: str, objective: float | None) -> MirroredRun:
    search_id, trial, outcome = findings.search.search_id, record.trial, record.outcome
    key = f"{search_key(search_id)}/{record.stage}/{trial.trial_id}"
    summaries = [("objective", objective, trial.source.tokens)] if objective is not None and record.stage == "search" else []
    weights = {f"weight.{name}": f"{weight:.6g}" for name, weight in trial.schedule.average().as_dict().items()}
    ended = _milliseconds(record.updated)
    return MirroredRun(
        key=key,
        name=f"{'v' if record.stage == 'verification' else ''}{record.ordinal + 1:03d} {trial.label.removeprefix('verify:') or 'trial'} {trial.source.size} s{trial.seed}",
        status=TRIAL_STATUS[record.state],
        tags={
            **_identity(search_id, key),
            PARENT_TAG: parent_run_id,
            "mixopt.kind": "trial",
            "mixopt.trial_id": trial.trial_id,
            "mixopt.stage": record.stage,
            "mixopt.label": trial.label,
            "mixopt.state": record.state.value,
            # Always there, because a tag that disappears would stay in MLflow after a retry that went well.
            "mixopt.failure": f"{record.failure.kind.value}: {record.failure.message}"[:500] if record.failure else "none",
        },
        params={**weights, "source": trial.source.key, "seed": str(trial.seed)},
        measured=_finite(_outcome_points(outcome, _metric_names(findings.context)) if outcome else ()),
        summaries=_finite(summaries),
        measured_ms=_milliseconds(findings.search.created),
        summaries_ms=_milliseconds(findings.search.updated),
        started_ms=ended - (int(1000 * outcome.seconds) if outcome else 0),
        ended_ms=None if record.state is TrialState.RUNNING else ended,
    )


def search_key(search_id: str) -> str:
    """Key of the parent run; those of the children begin with it."""
    return f"search/{search_id}"


def trials_table(findings: Findings) -> dict[str, list[Any]]:
    """The finished trials of the search as a table of columns and rows, in the form of pandas' orient="split"."""
    swarm = findings.swarm
    columns = [
        "trial",
        "label",
        "size",
        "seed",
        *(f"weight {name}" for name in swarm.domains),
        *(f"{m} (bits per byte)" for m in swarm.metrics),
    ]
    shares, losses = swarm.points().averages(), swarm.values(swarm.metrics)
    rows: list[list[Any]] = []
    for row, trial in enumerate(swarm.trials().iter_rows(named=True)):
        numbers = [round(float(value), 6) if math.isfinite(value) else None for value in (*shares[row], *losses[row])]
        rows.append([trial["trial_id"], trial["label"], trial["size"], trial["seed"], *numbers])
    return {"columns": columns, "data": rows}


def fitted_note(text: str) -> str:
    """The note, cut at the end of a line where MLflow would refuse it."""
    if len(text) <= NOTE_CHARACTERS:
        return text
    rest = "\n\n(The rest is in the artifact answer.md.)"
    return text[: text.rindex("\n", 0, NOTE_CHARACTERS - len(rest))] + rest


def _identity(search_id: str, key: str) -> dict[str, str]:
    return {SEARCH_TAG: search_id, KEY_TAG: key, "mlflow.source.name": "mixopt"}


def _metric_names(context: Mapping[str, Any]) -> dict[str, str]:
    """Evaluation key -> metric, for the trials of both stages."""
    return {**(context.get("metrics_verification") or {}), **context["metrics"]}


def _outcome_points(outcome: Outcome, names: Mapping[str, str]) -> list[Point]:
    points = [("cost/flops", outcome.flops, outcome.tokens), ("cost/seconds", outcome.seconds, outcome.tokens)]
    for measurement in outcome.measurements:
        name = names.get(measurement.evaluation_key)
        if name is not None:
            points.append((f"bits_per_byte/{name}", measurement.bits_per_byte, measurement.tokens))
            points.append((f"loss_nats/{name}", measurement.loss_nats, measurement.tokens))
    return points


def _finite(points: Iterable[Point]) -> tuple[Point, ...]:
    """Without what is not finite: MLflow stores NaN and then cannot plot it."""
    return tuple(point for point in points if math.isfinite(point[1]))


def _milliseconds(moment: datetime) -> int:
    return int(1000 * moment.timestamp())
