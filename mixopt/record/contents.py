"""What may enter the record, how outcomes of one trial merge, and what a search reads of them.

Outcomes are refused here, with the reason, rather than found out later by a surrogate. Pure functions; no database.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mixopt.errors import ConfigError, DataError
from mixopt.swarm import COLUMNS, Swarm
from mixopt.trial import WEIGHT_DECIMALS, JsonValue, Measurement, Outcome, Trial

logger = logging.getLogger(__name__)

# Shares are counts of windows over their total: exact to float error, so this only forgives rounding on the way.
SHARE_TOLERANCE = 1e-6

MEASUREMENT_COLUMNS = ("metric", "tokens", "loss_nats", "bits_per_byte")
TRIAL_COLUMNS = tuple(name for name in COLUMNS if name not in MEASUREMENT_COLUMNS)


def refuse_twin_domains(trial: Trial) -> None:
    """Raises DataError where two domains hold the same text: outcomes name domains by content and could not tell them apart."""
    seen: dict[str, str] = {}
    for domain in trial.domains:
        if domain.content_hash in seen:
            raise DataError(
                f"Domains '{seen[domain.content_hash]}' and '{domain.name}' hold exactly the same text.", "Leave one of them out."
            )
        seen[domain.content_hash] = domain.name


def check_outcome(outcome: Outcome, trial: Trial) -> None:
    """Raises DataError unless the outcome fits the trial: each used domain present, shares on the simplex in every phase, finite numbers."""
    hint = "This is a fault of the worker that reported it, not of the experiment."
    weights = trial.schedule.array()
    used = {
        domain.content_hash: domain.name for index, domain in enumerate(trial.domains) if weights[:, index].round(WEIGHT_DECIMALS).any()
    }
    missing = sorted(name for content, name in used.items() if content not in outcome.realized)
    if missing:
        raise DataError(f"The outcome of trial {trial.trial_id} lacks the realized share of {', '.join(missing)}.", hint)
    # Domains without weight do not enter a trial's identity, so another search's trial may know of ones that this one does not.
    foreign = sorted(content for content, shares in outcome.realized.items() if content not in used and any(shares))
    if foreign:
        raise DataError(f"The outcome of trial {trial.trial_id} has shares of domains it gives no weight: {', '.join(foreign)}.", hint)
    for content, shares in outcome.realized.items():
        if len(shares) != len(weights) or not all(math.isfinite(share) and share >= 0 for share in shares):
            raise DataError(f"The realized share of {content} in trial {trial.trial_id} is {shares}; it has {len(weights)} phases.", hint)
    for phase in range(len(weights)):
        total = math.fsum(shares[phase] for shares in outcome.realized.values())
        if abs(total - 1) > SHARE_TOLERANCE:
            raise DataError(f"The realized shares of trial {trial.trial_id} sum to {total:.9g} in phase {phase}.", hint)
    for name, value in (("tokens", outcome.tokens), ("flops", outcome.flops), ("seconds", outcome.seconds)):
        if not math.isfinite(value) or value < 0:
            raise DataError(f"The outcome of trial {trial.trial_id} reports {value} {name}.", hint)
    points = {(m.evaluation_key, m.tokens) for m in outcome.measurements}
    if not points or len(points) != len(outcome.measurements):
        problem = "repeats a measurement" if points else "holds no measurement"
        raise DataError(f"The outcome of trial {trial.trial_id} {problem}.", hint)


def new_measurements(before: Outcome, after: Outcome) -> tuple[Measurement, ...]:
    """Measurements of `after` at an evaluation and token count that `before` lacks; the first value recorded stands."""
    known = {(m.evaluation_key, m.tokens): m.bits_per_byte for m in before.measurements}
    for m in after.measurements:
        first = known.get((m.evaluation_key, m.tokens), m.bits_per_byte)
        if not math.isclose(first, m.bits_per_byte, rel_tol=1e-4):
            logger.warning("Trial %s scored again on %s gave %g instead of %g.", after.trial_id, m.evaluation_key, m.bits_per_byte, first)
    return tuple(m for m in after.measurements if (m.evaluation_key, m.tokens) not in known)


def without_measurements(before: Outcome, of: Outcome) -> Outcome:
    """`before` without its measurements at evaluations and token counts that `of` has, too."""
    taken = {(m.evaluation_key, m.tokens) for m in of.measurements}
    return replace(before, measurements=tuple(m for m in before.measurements if (m.evaluation_key, m.tokens) not in taken))


def finite(value: JsonValue) -> JsonValue:
    """The JSON value with numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def swarm_of(completed: Sequence[tuple[Trial, Outcome]], domains: Sequence[str], metrics: Mapping[str, str]) -> Swarm:
    """The swarm of these trials, in their order: realized shares under the search's names of domains, measurements of `metrics` only.

    Trials and measurements are two tables that are joined: a row of the swarm repeats its trial's weights, and building them once per
    measurement took four times as long.

    Args:
        domains: names of the swarm's domains, in its order.
        metrics: evaluation key -> name of the metric.

    Raises:
        DataError: a trial was asked over other domains.
    """
    import polars as pl

    trials = pl.DataFrame([_trial_row(trial, outcome, domains) for trial, outcome in completed], schema=_columns(TRIAL_COLUMNS))
    measured = [
        (trial.trial_id, metrics[m.evaluation_key], m.tokens, m.loss_nats, m.bits_per_byte)
        for trial, outcome in completed
        for m in sorted(outcome.measurements, key=lambda m: (metrics.get(m.evaluation_key, ""), m.tokens))
        if m.evaluation_key in metrics
    ]
    rows = pl.DataFrame(measured, schema=_columns(("trial_id", *MEASUREMENT_COLUMNS)), orient="row")
    return Swarm(tuple(domains), rows.join(trials, on="trial_id", how="left", maintain_order="left").select(list(COLUMNS)))


def _columns(names: Sequence[str]) -> dict[str, Any]:
    return {name: COLUMNS[name] for name in names}


def _trial_row(trial: Trial, outcome: Outcome, domains: Sequence[str]) -> dict[str, Any]:
    names = {domain.content_hash: domain.name for domain in trial.domains}
    shares = {names[content]: values for content, values in outcome.realized.items() if content in names}
    try:
        requested = [list(mixture.reordered(domains).weights) for mixture in trial.schedule.mixtures]
    except ConfigError as error:
        raise DataError(f"Trial {trial.trial_id} was asked over other domains. {error.message}") from error
    return {
        "trial_id": trial.trial_id,
        "label": trial.label,
        "evaluator": trial.source.evaluator,
        "size": trial.source.size,
        "source_tokens": trial.source.tokens,
        "seed": trial.seed,
        "fractions": list(trial.schedule.fractions),
        "requested": requested,
        "realized": [[shares[name][phase] if name in shares else 0.0 for name in domains] for phase in range(len(requested))],
        "flops": outcome.flops,
        "seconds": outcome.seconds,
    }
