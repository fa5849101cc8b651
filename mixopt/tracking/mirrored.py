"""What MLflow shows of a search and of its trials: pure functions from findings to the content of runs.

A `MirroredRun` depends on the record alone, so its digest tells whether anything has to be written, and a mirror made at once equals one
made step by step. Only what can never change is a parameter, because MLflow refuses to change parameters; what people sort and filter by
numbers (weights too) is a metric, because MLflow sorts parameters as text. Keys are the same for the search and all its trials, of both
stages, and for every search, so that runs can be compared across searches; what is the domains' or targets' own has their name in the key.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from mixopt import __version__
from mixopt.balance import Balance
from mixopt.beginnings import BASE_LABEL, beginning_sentence, trial_beginning
from mixopt.code_version import joined
from mixopt.components.config import EVALUATORS
from mixopt.history import TrialRecord
from mixopt.tracking.averages import gate_sentence
from mixopt.tracking.findings import Findings
from mixopt.tracking.inputs import Input, search_inputs, trial_inputs
from mixopt.tracking.note import answer_markdown
from mixopt.trial import AVERAGED, FailureKind, Outcome, Trial, TrialState, content_digest
from mixopt.verification import LABEL_PREFIX, OBJECTIVE

# MLflow refuses or cuts tags of more than 8,000 characters (mlflow/utils/validation.py).
NOTE_CHARACTERS = 7_900
KEY_TAG, SEARCH_TAG, PARENT_TAG, NOTE_TAG = "mixopt.key", "mixopt.search_id", "mlflow.parentRunId", "mlflow.note.content"
# The loss to sort by from the first trial on: bits per byte, mean over the objective's metrics by their weights, screened out or not.
MEAN = "mean_bits_per_byte"
# The same along the way, every point on the same rows: fewer than those of the end, whose numbers are the trial's.
MEAN_CURVE = "curve/mean_bits_per_byte"

TRIAL_STATUS = {
    TrialState.RUNNING: "RUNNING",
    TrialState.COMPLETED: "FINISHED",
    TrialState.FAILED: "FAILED",
    TrialState.ABANDONED: "FAILED",
}
SEARCH_STATUS = {"running": "RUNNING", "interrupted": "KILLED", "finished": "FINISHED", "failed": "FAILED"}

# What a run consists of, by how it is written; the times are part of none.
PARTS = {
    "state": ("key", "name", "status", "tags"),
    "measured": ("params", "measured"),
    "summaries": ("summaries",),
    "inputs": ("inputs",),
}

MERGE_METRICS = ("displacement", "largest_displacement", "agreement", "agreement_with_base", "load_variation")
"""Of a merge's diagnosis, those that are numbers to sort by."""

# Metric, value, step.
Point = tuple[str, float, int]


@dataclass(frozen=True)
class MirroredRun:
    """The content of one run.

    Attributes:
        key: names the run in the record and, as a tag, in MLflow.
        measured: (metric, value, step), finite; what never changes once it is known.
        summaries: the same, for what a later proposal may change; the last one written counts.
        inputs: what it was trained and scored on.
        status: RUNNING, FINISHED, FAILED or KILLED.
        measured_ms, summaries_ms: Unix time stamped on the metrics. Measurements bear the time the search was made, always, so that writing
            them again adds no second point to a curve.
        started_ms, ended_ms: Unix time. No time is part of a digest: when something happened moves, what happened does not.
    """

    key: str
    name: str
    status: str
    tags: Mapping[str, str]
    params: Mapping[str, str]
    measured: tuple[Point, ...]
    summaries: tuple[Point, ...]
    inputs: tuple[Input, ...]
    measured_ms: int
    summaries_ms: int
    started_ms: int
    ended_ms: int | None

    def digests(self) -> dict[str, str]:
        """Part of the content -> its hash, so that only what has changed is written: each part costs MLflow a request."""
        content = asdict(self)
        return {part: content_digest([content[name] for name in names]) for part, names in PARTS.items()}


def search_run(findings: Findings) -> MirroredRun:
    """The parent run: the answer as a note, how far the search is, the best measured so far, the proposal's weights and effect."""
    search, context = findings.search, findings.context
    completed = sum(record.state is TrialState.COMPLETED for record in findings.trials)
    tags = {
        NOTE_TAG: fitted_note(answer_markdown(findings)),
        "mixopt.kind": "search",
        "mixopt.stage": "search",
        "mixopt.state": search.state,
        "mixopt.experiment": str(context.get("experiment_hash", "")),
        "mixopt.cost": spoken_cost([record.outcome for record in findings.trials if record.outcome]),
        "mixopt.router": f"collapsed in {len(findings.collapsed)} of {len(findings.balances)} trials"
        if findings.balances
        else "not measured",
        **({"mixopt.beginning": beginning_sentence(context)} if beginning_sentence(context) else {}),
        **({"mixopt.gate": gate_sentence(findings)[:NOTE_CHARACTERS]} if findings.gate is not None else {}),
        **_code_tags(findings),
    }
    if findings.verification is not None:
        tags["mixopt.recommended"] = findings.verification.recommended
    return MirroredRun(
        key=search_key(search.search_id),
        name=f"{search.name} {search.search_id[:8]}",
        status=SEARCH_STATUS[search.state],
        tags={**_identity(findings, search_key(search.search_id)), **tags},
        params=_search_params(findings),
        # The step is the number of trials, so that a search that goes on draws a curve.
        summaries=_finite((name, value, completed) for name, value in _search_metrics(findings).items()),
        measured=(),
        inputs=search_inputs(findings),
        measured_ms=_milliseconds(search.created),
        summaries_ms=_milliseconds(search.updated),
        started_ms=_milliseconds(search.created),
        ended_ms=None if search.state == "running" else _milliseconds(search.updated),
    )


def _search_params(findings: Findings) -> dict[str, str]:
    """What the search's identity covers, so that it never changes for this run; with the keys of the trials where it means the same."""
    context = findings.context
    objective, recipe = context.get("objective") or {}, context.get("recipe") or {}
    _, size, tokens = context["sources"]["search"]
    values = {
        "size": size,
        "tokens": tokens,
        "seed": context.get("seed"),
        "strategy": context.get("strategy"),
        "surrogate": context.get("surrogate"),
        "objective": objective.get("kind"),
        "pull": objective.get("pull"),
        "budget_tokens": context.get("budget_tokens"),
        "domains": len(context["domains"]),
        **{
            name: recipe.get(name)
            for name in ("learning_rate", "window", "tokens_per_step", "bias_update_rate", "auxiliary_loss", "parametrization")
        },
        "beginning": (recipe.get("beginning") or {}).get("kind"),
    }
    return {name: _number_text(value) for name, value in values.items() if value is not None}


def _search_metrics(findings: Findings) -> dict[str, float]:
    counts = Counter(record.state for record in findings.trials)
    outcomes = [record.outcome for record in findings.trials if record.outcome]
    # As its trials have them, so that searches sort among themselves: the best that the search measured.
    searched = [record for record in findings.trials if record.stage == "search" and record.outcome]
    objectives = objective_values(findings)
    best = [objectives[key] for record in searched if (key := (record.stage, record.trial.trial_id)) in objectives]
    means = [mean for record in searched if (mean := _mean_bits(findings, record.trial, record.outcome)) is not None]
    metrics = {name: _shown(min(values)) for name, values in ((OBJECTIVE, best), (MEAN, means)) if values}
    metrics |= {
        "trials/completed": float(counts[TrialState.COMPLETED]),
        "trials/failed": float(counts[TrialState.FAILED] + counts[TrialState.ABANDONED]),
        "trials/collapsed": float(len(findings.collapsed)),
        **_cost(outcomes),
    }
    if findings.proposal is not None:
        effect = findings.proposal.objective
        metrics |= {"objective/predicted": effect.mean, "objective/predicted_low": effect.low, "objective/predicted_high": effect.high}
        metrics |= {f"weight/{name}": round(weight, 6) for name, weight in findings.proposal.mixture.as_dict().items()}
        # What the answer calls the best measured mixture: one that the target run may use, over its seeds. `objective` is the best single run.
        if "objective" in findings.proposal.best_measured:
            metrics["objective/best_measured"] = float(findings.proposal.best_measured["objective"])
    if findings.verification is not None:
        metrics |= {
            f"objective/verified_against_{row.baseline}": row.mean for row in findings.verification.comparisons if row.metric == OBJECTIVE
        }
    return metrics


def trial_runs(findings: Findings, parent_run_id: str) -> list[MirroredRun]:
    """One child run per trial that has started."""
    objectives = objective_values(findings)
    return [
        _trial_run(findings, record, parent_run_id, objectives.get((record.stage, record.trial.trial_id)))
        for record in findings.trials
        if record.state in TRIAL_STATUS
    ]


def objective_values(findings: Findings) -> dict[tuple[str, str], float]:
    """(stage, trial id) -> measured objective, relative to the natural mixture of its stage; what the answer has measured so far."""
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal else {}
    values = {("search", trial["trial_id"]): float(trial["measured"]) for trial in evidence.get("objective_over_trials") or ()}
    check = findings.verification
    if check is None:
        return values
    for record in findings.trials:
        arm = record.trial.label.removeprefix(LABEL_PREFIX).partition("+")[0]
        if record.stage == "verification" and record.trial.seed in check.seeds.get(arm, ()):
            place = check.seeds[arm].index(record.trial.seed)
            values["verification", record.trial.trial_id] = check.losses[arm][OBJECTIVE][place]
    return values


def trial_name(record: TrialRecord) -> str:
    """Sorts as text in the order of asking, verification last: "007 design nano s6", "b001 base nano s0", "v001 proposal micro s0", "012 bayes merged nano"."""
    prefix = {"base": "b", "components": "c", "verification": "v"}.get(record.stage, "")
    source = record.trial.source
    if source.evaluator in EVALUATORS:  # which has no seed
        return f"{prefix}{record.ordinal + 1:03d} {_mixture_name(record.trial)} {source.evaluator} {source.size}"
    return f"{prefix}{record.ordinal + 1:03d} {_mixture_name(record.trial)} {source.size} s{record.trial.seed}"


def _mixture_name(trial: Trial) -> str:
    """The label as people read it: "design", "best measured = uniform"."""
    return trial.label.removeprefix(LABEL_PREFIX).replace("_", " ").replace("+", " = ") or "trial"


def _trial_run(findings: Findings, record: TrialRecord, parent_run_id: str, objective: float | None) -> MirroredRun:
    trial, outcome = record.trial, record.outcome
    key = f"{search_key(findings.search.search_id)}/{record.stage}/{trial.trial_id}"
    weights = trial.schedule.average().as_dict()
    # In the order in which the page of a run lists them.
    measured: list[Point] = []
    if outcome is not None:
        mean = _mean_bits(findings, trial, outcome)
        measured += [(MEAN, _shown(mean), outcome.tokens)] if mean is not None else []
        measured += _mean_curve(findings, outcome)
        measured += _outcome_points(outcome, _metric_names(findings.context))
    measured += [(f"weight/{name}", round(weight, 6), 0) for name, weight in weights.items()]
    balance = Balance.of(outcome.diagnostics) if outcome is not None else None
    measured += _router_points(balance, trial.source.tokens) if balance is not None else []
    measured += _merge_points(outcome) if outcome is not None else []
    ended = _milliseconds(record.updated)
    code = _code_tags(findings)
    # The code that trained it, which is not always the code that goes on with the search.
    version = outcome.diagnostics.get("code_version") if outcome else None
    return MirroredRun(
        key=key,
        name=trial_name(record),
        status=_trial_status(record, findings.search.state),
        tags={
            **_identity(findings, key),
            PARENT_TAG: parent_run_id,
            NOTE_TAG: _trial_note(trial, weights, balance),
            "mixopt.kind": "trial",
            "mixopt.trial_id": trial.trial_id,
            "mixopt.stage": record.stage,
            "mixopt.evaluator": trial.source.evaluator,
            "mixopt.mixture": _mixture_name(trial),
            "mixopt.state": record.state.value,
            "mixopt.cost": spoken_cost([outcome] if outcome else []),
            "mixopt.router": _router_state(balance),
            **({"mixopt.beginning": trial_beginning(trial)} if trial.inputs else {}),
            **code,
            "mixopt.version": str(version or code["mixopt.version"]),
            "mixopt.engine": trial.engine_version,
            # Always there, because a tag that disappears would stay in MLflow after a retry that went well.
            "mixopt.failure": f"{record.failure.kind.value}: {record.failure.message}"[:500] if record.failure else "none",
        },
        # Not the label: a later proposal may give a trial another one, and MLflow refuses to change a parameter.
        params={"size": trial.source.size, "tokens": str(trial.source.tokens), "seed": str(trial.seed)},
        measured=_finite(measured),
        summaries=_finite([(OBJECTIVE, _shown(objective), trial.source.tokens)] if objective is not None else ()),
        inputs=trial_inputs(findings, weights),
        measured_ms=_milliseconds(findings.search.created),
        summaries_ms=_milliseconds(findings.search.updated),
        started_ms=ended - (int(1000 * outcome.seconds) if outcome else 0),
        ended_ms=None if record.state is TrialState.RUNNING else ended,
    )


def _merge_points(outcome: Outcome) -> list[Point]:
    """How far components have moved from their base, how much of the routing they share, and which experts no token reached."""
    merge = outcome.diagnostics.get(AVERAGED) or {}
    points = [(f"merge/{name}", _shown(float(merge[name])), outcome.tokens) for name in MERGE_METRICS if merge.get(name) is not None]
    dead = merge.get("dead_experts")
    return points if dead is None else [*points, ("merge/dead_experts", float(len(dead)), outcome.tokens)]


def _router_points(balance: Balance, tokens: int) -> list[Point]:
    """Of all layers: dead experts, the share of the tokens that the fullest expert sees, and the mean entropy."""
    points = [
        ("router/dead_experts", float(sum(balance.dead_experts)), tokens),
        ("router/fullest", _shown(max(balance.fullest_shares)), tokens),
    ]
    if balance.entropy:
        points.append(("router/entropy", _shown(math.fsum(balance.entropy) / len(balance.entropy)), tokens))
    return points


def _router_state(balance: Balance | None) -> str:
    """Whether the router has collapsed; also said where it was not measured, because MLflow keeps a tag that is no longer written."""
    if balance is None:
        return "not measured"
    return f"collapsed: {balance.collapse}"[:500] if balance.collapse else "in use"


def _trial_note(trial: Trial, weights: Mapping[str, float], balance: Balance | None) -> str:
    """The mixture in words, largest weights first; before it, whether the router has collapsed."""
    shares = sorted(((name, weight) for name, weight in weights.items() if weight > 0), key=lambda item: (-item[1], item[0]))
    listed = ", ".join(f"{weight:.1%} {name}" for name, weight in shares)
    collapsed = f"**Collapsed router** ({balance.collapse}). " if balance is not None and balance.collapse else ""
    source = trial.source
    what = f"{_mixture_name(trial)}, seed {trial.seed}, {source.size} proxy of {source.tokens:,} tokens"
    if source.evaluator in EVALUATORS:
        what = f"{_mixture_name(trial)}, {source.evaluator} {source.size} proxy of {len(trial.inputs) - 1} components of {source.tokens:,} tokens"
    return f"{collapsed}{what}: {listed}"[:NOTE_CHARACTERS]


def _trial_status(record: TrialRecord, search_state: str) -> str:
    """A trial that was cut short is killed, not failed; one recorded as running is so only while its search runs."""
    cancelled = record.failure is not None and record.failure.kind is FailureKind.CANCELLED
    if (record.state is TrialState.RUNNING and search_state != "running") or (record.state is TrialState.FAILED and cancelled):
        return "KILLED"
    return TRIAL_STATUS[record.state]


def search_key(search_id: str) -> str:
    """Key of the parent run; those of the children begin with it."""
    return f"search/{search_id}"


def trials_table(findings: Findings) -> dict[str, list[Any]]:
    """The finished trials of all stages as a table of columns and rows, in the form of pandas' orient="split"."""
    names = sorted(set(_metric_names(findings.context).values()))
    objectives = objective_values(findings)
    columns = ["run", OBJECTIVE, MEAN, "mixture", "size", "seed"]
    columns += [f"weight {name}" for name in findings.domains] + [f"{name} ({findings.loss_unit})" for name in names] + ["stage", "trial"]
    rows: list[list[Any]] = []
    for record in findings.trials:
        trial, outcome = record.trial, record.outcome
        if outcome is None:
            continue
        # Realized shares: what surrogates are fitted on.
        shares = {domain.name: outcome.realized.get(domain.content_hash, (0.0,)) for domain in trial.domains}
        # A trial that others begin with may be another search's, over other domains.
        phases = [shares.get(name, (0.0,)) for name in findings.domains]
        average = [sum(f * s for f, s in zip(trial.schedule.fractions, shares_of_phases, strict=False)) for shares_of_phases in phases]
        ends = _end_points(outcome, _metric_names(findings.context))
        values = [objectives.get((record.stage, trial.trial_id)), _mean_bits(findings, trial, outcome), *average, *map(ends.get, names)]
        numbers = [round(float(value), 6) if value is not None and math.isfinite(value) else None for value in values]
        evaluator = trial.source.evaluator
        what = [_mixture_name(trial), f"{evaluator} {trial.source.size}" if evaluator in EVALUATORS else trial.source.size, trial.seed]
        rows.append([trial_name(record), *numbers[:2], *what, *numbers[2:], record.stage, trial.trial_id])
    return {"columns": columns, "data": rows}


def fitted_note(text: str) -> str:
    """The note, cut at the end of a line where MLflow would refuse it."""
    if len(text) <= NOTE_CHARACTERS:
        return text
    rest = "\n\n(The rest is in the artifact answer.md.)"
    return text[: text.rindex("\n", 0, NOTE_CHARACTERS - len(rest))] + rest


def _identity(findings: Findings, key: str) -> dict[str, str]:
    return {
        SEARCH_TAG: findings.search.search_id,
        KEY_TAG: key,
        "mixopt.search": findings.search.name,
        "mlflow.source.name": "mixopt",
    }


def _code_tags(findings: Findings) -> dict[str, str]:
    """Strategy, objective, corpus and code, the same on the search and on its trials."""
    context = findings.context
    versions, objective = context.get("versions") or {}, context.get("objective") or {}
    return {
        "mixopt.strategy": str(context.get("strategy", "")),
        "mixopt.objective": f"{objective.get('kind', '')} over {objective.get('over', '')}",
        "mixopt.corpus": content_digest(sorted([domain["name"], domain["content_hash"]] for domain in context["domains"])),
        "mixopt.version": joined(str(versions.get("mixopt", __version__)), versions.get("commit")),
        "mixopt.engine": str(versions.get("engine", "")),
    }


def spoken_cost(outcomes: Sequence[Outcome]) -> str:
    """What these took, in words: "2.9e+14 FLOPs, 43 min"; the time is of one process."""
    if not outcomes:
        return "none yet"
    seconds = math.fsum(outcome.seconds for outcome in outcomes)
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
    return f"{math.fsum(outcome.flops for outcome in outcomes):.2g} FLOPs, {time}"


def _cost(outcomes: Sequence[Outcome]) -> dict[str, float]:
    return {
        "cost/flops": math.fsum(outcome.flops for outcome in outcomes),
        "cost/seconds": math.fsum(outcome.seconds for outcome in outcomes),
        "cost/tokens": math.fsum(outcome.trained_tokens for outcome in outcomes),
    }


def _metric_names(context: Mapping[str, Any]) -> dict[str, str]:
    """Evaluation key -> metric, for the trials of all stages."""
    beside = ("metrics_base", "metrics_components", "metrics_verification")
    return {key: name for part in beside for key, name in (context.get(part) or {}).items()} | dict(context["metrics"])


def _end_points(outcome: Outcome, names: Mapping[str, str]) -> dict[str, float]:
    """Metric -> bits per byte of the finished proxy."""
    ends = [m for m in outcome.measurements if m.tokens == outcome.tokens and m.evaluation_key in names]
    return {names[m.evaluation_key]: m.bits_per_byte for m in ends}


def _mean_bits(findings: Findings, trial: Trial, outcome: Outcome | None) -> float | None:
    """The objective's metrics by their weights; None if one is not measured, or the record (an earlier version's) does not tell the weights."""
    weights = (findings.context.get("objective") or {}).get("weights")
    # The subsets that each stage scores differ, so a trial that belongs to both stages of several searches counts by its own source's.
    sources = {"/".join(map(str, source)): stage for stage, source in findings.context["sources"].items()}
    sources |= {"/".join(map(str, source)): "search" for source in findings.context.get("cheaper_sources", ())}
    stages = {"search": "metrics", "verification": "metrics_verification"}
    stage = stages.get(
        sources.get(trial.source.key, "search" if trial.source.evaluator in EVALUATORS else ""),
        "metrics_base" if trial.label == BASE_LABEL else "metrics_verification",
    )
    ends = _end_points(outcome, findings.context.get(stage) or findings.context["metrics"]) if outcome else {}
    if not weights or not weights.keys() <= ends.keys():
        return None
    return math.fsum(weight * ends[metric] for metric, weight in weights.items()) / math.fsum(weights.values())


def _mean_curve(findings: Findings, outcome: Outcome) -> list[Point]:
    """The mean of the objective's metrics on the rows of the curve; without its end in trials recorded before that was measured."""
    weights = (findings.context.get("objective") or {}).get("weights")
    if not weights:
        return []
    early, end = _metric_names(findings.context), findings.context.get("metrics_curve") or {}
    losses: dict[int, dict[str, float]] = {}
    for m in outcome.measurements:
        names = end if m.tokens == outcome.tokens else early
        if m.evaluation_key in names:
            losses.setdefault(m.tokens, {})[names[m.evaluation_key]] = m.bits_per_byte
    total = math.fsum(weights.values())
    return [
        (MEAN_CURVE, _shown(math.fsum(weight * found[metric] for metric, weight in weights.items()) / total), tokens)
        for tokens, found in sorted(losses.items())
        if weights.keys() <= found.keys()
    ]


def _outcome_points(outcome: Outcome, names: Mapping[str, str]) -> list[Point]:
    points = [(name, value, outcome.tokens) for name, value in _cost([outcome]).items()]
    scored = sum(outcome.diagnostics.get("scored_tokens", {}).values())
    if 0 < scored < outcome.trained_tokens:  # some were prompts; else it says nothing
        points.append(("scored_tokens", float(scored), outcome.tokens))
    for measurement in outcome.measurements:
        name = names.get(measurement.evaluation_key)
        if name is not None:
            points.append((f"bits_per_byte/{name}", measurement.bits_per_byte, measurement.tokens))
            points.append((f"loss_nats/{name}", measurement.loss_nats, measurement.tokens))
    return points


def _finite(points: Iterable[Point]) -> tuple[Point, ...]:
    """Without what is not finite: MLflow stores NaN and then cannot plot it."""
    return tuple(point for point in points if math.isfinite(point[1]))


def _shown(value: float) -> float:
    """Six digits, for MLflow's tables print every digit there is; the record and the swarm hold them all."""
    return float(f"{value:.6g}")


def _number_text(value: Any) -> str:
    """A number without a tail of digits, as parameters are compared as text."""
    return f"{value:.12g}" if isinstance(value, float) else str(value)


def _milliseconds(moment: datetime) -> int:
    return int(1000 * moment.timestamp())
