"""From the trials of a calibration to what they show.

One set of losses answers all questions: those at one seed per mixture and rate say which rate ranks, repeats say what a seed does, points along each
run say what tokens bring. What did not end is left out and counted. Pure: the same outcomes give the same result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mixopt.answer.measured import Measured
from mixopt.calibration.agreement import Ranking, choose_rate, rank_rates
from mixopt.calibration.curves import fit_power_law
from mixopt.calibration.design import CalibrationPlan
from mixopt.calibration.noise import MetricNoise, seed_noise
from mixopt.calibration.result import Calibration, MetricCurve, RateResult, Resources
from mixopt.mixture import FloatArray
from mixopt.objective import Objective, ObjectiveKind, fit_objective, rows_at
from mixopt.ranking import FEWEST_MIXTURES
from mixopt.record.contents import swarm_of
from mixopt.surrogates.observations import mixture_groups
from mixopt.swarm import Swarm
from mixopt.trial import Outcome, Trial

Finished = Mapping[str, Outcome]
"""Trial id -> its outcome."""


@dataclass(frozen=True)
class Scoring:
    """How losses are read.

    Attributes:
        kind, weights: of the search's objective; metric -> weight.
        metrics: source key -> evaluation key -> metric.
    """

    kind: ObjectiveKind
    weights: Mapping[str, float]
    metrics: Mapping[str, Mapping[str, str]]


def analyse(
    plan: CalibrationPlan,
    finished: Finished,
    scoring: Scoring,
    resources: Sequence[Resources] = (),
    origin: Literal["calibrate", "search"] = "calibrate",
) -> Calibration:
    """What the finished trials of a calibration show.

    Raises:
        DataError: nothing has finished at the natural mixture, or no mixture has two seeds.
    """
    own = [trial for trial in _own_trials(plan) if trial.trial_id in finished]
    swarm = _swarm(plan, own, finished, scoring)
    objective = fit_objective(scoring.kind, scoring.weights, swarm, plan.factory.domains.natural())
    rates, rate, reason = _rates(plan, finished, scoring, objective)
    return Calibration(
        calibration_id=plan.calibration_id,
        source=plan.factory.source,
        origin=origin,
        own_rate=plan.own_rate,
        rate=rate,
        reason=reason,
        rates=rates,
        references=tuple(name for name, trials in plan.references if _complete(trials, finished)),
        mixtures=len(plan.rates[0][1]),
        noise=_noise(plan, swarm),
        screened=objective.screened,
        objective_unit=objective.unit,
        objective_noise_std=Measured.of(swarm, objective).noise_std,
        degrees_of_freedom=objective.degrees_of_freedom,
        curves=_curves(plan, finished, scoring),
        resources=tuple(resources),
        trials=len(own),
    )


def _own_trials(plan: CalibrationPlan) -> list[Trial]:
    """Trials of the source at its own rate, each once."""
    return list({trial.trial_id: trial for trial in (*plan.rates[0][1], *plan.repeats)}.values())


def _swarm(plan: CalibrationPlan, trials: Sequence[Trial], finished: Finished, scoring: Scoring) -> Swarm:
    metrics = scoring.metrics[plan.factory.source.key]
    return swarm_of([(trial, finished[trial.trial_id]) for trial in trials], plan.factory.domains.names, metrics)


# Rates


def _rates(plan: CalibrationPlan, finished: Finished, scoring: Scoring, objective: Objective) -> tuple[tuple[RateResult, ...], float, str]:
    """Every rate, the one to train with, and why."""
    losses = {rate: _losses(trials, finished, scoring, objective) for rate, trials in plan.rates}
    references = {
        name: _scores(_losses(trials, finished, scoring, objective), objective)
        for name, trials in plan.references
        if _complete(trials, finished)
    }
    scores = {rate: _scores(values, objective) for rate, values in losses.items() if values.size and np.isfinite(values).all()}
    rankings = _rankings(plan, scores, references)
    means = {rate: float((losses[rate] @ np.array(objective.weights)).mean()) for rate in scores}
    judged = {ranking.rate: ranking for ranking in rankings}
    rows = tuple(
        RateResult(rate, means.get(rate), int((~np.isfinite(values)).any(axis=1).sum()), judged.get(rate))
        for rate, values in losses.items()
    )
    if not rankings:
        why = "no other rate was tried" if len(plan.rates) == 1 else "there is nothing to judge the others by"
        return rows, plan.own_rate, f"The rate stays {plan.own_rate:g}: {why}."
    rate, reason = choose_rate(rankings, means)
    return rows, rate, reason


def _rankings(plan: CalibrationPlan, scores: Mapping[float, FloatArray], references: Mapping[str, FloatArray]) -> list[Ranking]:
    """Of the rates whose runs all ended; none where the own rate's did not, or mixtures are too few."""
    mixtures = len(plan.rates[0][1])
    if plan.own_rate not in scores or not references or mixtures < FEWEST_MIXTURES:
        return []
    return rank_rates(scores, references)


def _complete(trials: Sequence[Trial], finished: Finished) -> bool:
    return all(trial.trial_id in finished for trial in trials)


def _losses(trials: Sequence[Trial], finished: Finished, scoring: Scoring, objective: Objective) -> FloatArray:
    """Losses at the end, bits per byte, shape (trials, metrics of the objective); NaN for a trial that did not end."""
    ends = [_end(trial, finished, scoring) for trial in trials]
    return np.array([[end.get(metric, np.nan) for metric in objective.metrics] for end in ends]).reshape(len(ends), len(objective.metrics))


def _end(trial: Trial, finished: Finished, scoring: Scoring) -> dict[str, float]:
    """Metric -> bits per byte at the end of training."""
    outcome, names = finished.get(trial.trial_id), scoring.metrics[trial.source.key]
    if outcome is None:
        return {}
    return {
        names[m.evaluation_key]: m.bits_per_byte for m in outcome.measurements if m.tokens == outcome.tokens and m.evaluation_key in names
    }


def _scores(losses: FloatArray, objective: Objective) -> FloatArray:
    """The objective, then its metrics, shape (mixtures, 1 + metrics); the first mixture is the natural one, which the objective is relative to."""
    if not np.isfinite(losses).all():
        return losses
    return np.concatenate([objective.with_natural(losses[0]).value(losses)[:, None], losses], axis=1)


# Noise


def _noise(plan: CalibrationPlan, swarm: Swarm) -> tuple[MetricNoise, ...]:
    """Of every metric that all trials were scored on."""
    losses, groups = swarm.values(swarm.metrics), mixture_groups(swarm)
    scored = np.flatnonzero(np.isfinite(losses).all(axis=0)).tolist()
    metrics = tuple(swarm.metrics[column] for column in scored)
    losses = losses[:, scored]
    names = _names(plan, swarm)
    repeats = {names[int(np.argmax(groups == group))]: losses[groups == group] for group in np.unique(groups)}
    means = np.array([values.mean(axis=0) for values in repeats.values()])
    return seed_noise(metrics, repeats, means)


def _names(plan: CalibrationPlan, swarm: Swarm) -> list[str]:
    """How people call the mixture of each trial: natural, uniform, UniMax, "corner of code", or draw with its number."""
    domains = plan.factory.domains
    units = domains.units
    names = [f"draw {row + 1}" for row in range(len(swarm))]
    for row, label in enumerate(swarm.trials()["label"].to_list()):
        if label == "corner":
            mixture = swarm.points(realized=False).schedules[row].mean(axis=0)
            names[row] = f"corner of {units.titles[int(units.collapse(mixture).argmax())]}"
    for title, mixture in (("UniMax", domains.unimax()), ("uniform", domains.uniform()), ("natural", domains.natural())):
        names = [title if here else name for name, here in zip(names, rows_at(swarm, mixture), strict=True)]
    return names


# Curves


def _curves(plan: CalibrationPlan, finished: Finished, scoring: Scoring) -> tuple[MetricCurve, ...]:
    """What tokens bring every metric, over the mixtures that ended at the source, and where there is one in the longer run of the same size."""
    source = plan.factory.source
    longer = next((trials for _, trials in plan.references if trials[0].source.size == source.size and _complete(trials, finished)), ())
    own = [trial for trial in plan.rates[0][1] if trial.trial_id in finished]
    times = longer[0].source.tokens // source.tokens if longer else 1
    metrics = sorted(set(scoring.metrics[source.key].values()))
    curves = []
    for metric in metrics:
        tokens, losses = _points(own, metric, finished, scoring, plan.factory.recipe)
        if longer:
            more = _points(longer, metric, finished, scoring, plan.factory.recipe)
            tokens, losses = np.concatenate([tokens, more[0]]), np.concatenate([losses, more[1]])
        ends = [
            np.mean([_end(trial, finished, scoring)[metric] for trial in trials]) if _scored(trials, metric, finished, scoring) else None
            for trials in (own, longer)
        ]
        if ends[0] is not None:
            law = fit_power_law(tokens, losses)
            curves.append(MetricCurve(metric, law, float(ends[0]), None if ends[1] is None else float(ends[1]), times))
    return tuple(curves)


def _scored(trials: Sequence[Trial], metric: str, finished: Finished, scoring: Scoring) -> bool:
    return bool(trials) and all(metric in _end(trial, finished, scoring) for trial in trials)


def _points(
    trials: Sequence[Trial], metric: str, finished: Finished, scoring: Scoring, recipe: Mapping[str, object]
) -> tuple[FloatArray, FloatArray]:
    """Tokens and mean losses (points,) before the end and before the rate decays, where every trial was measured."""
    decay = float(str(recipe.get("decay_fraction", 0.0))) if recipe.get("schedule") == "wsd" else 0.0
    found: dict[int, list[float]] = {}
    for trial in trials:
        outcome, names = finished[trial.trial_id], scoring.metrics[trial.source.key]
        for m in outcome.measurements:
            if names.get(m.evaluation_key) == metric and m.tokens < outcome.tokens and m.tokens <= (1 - decay) * outcome.tokens:
                found.setdefault(m.tokens, []).append(m.bits_per_byte)
    everywhere = {tokens: values for tokens, values in sorted(found.items()) if len(values) == len(trials)}
    return np.array(list(everywhere), dtype=np.float64), np.array([np.mean(values) for values in everywhere.values()], dtype=np.float64)
