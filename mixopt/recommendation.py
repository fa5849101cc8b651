"""From a swarm to a proposal: fit, minimize where the caps allow, and say how much of the answer to believe.

The optimum of a fitted function is optimistic (the winner's curse), and an optimum is often flat. So the objective is pulled toward the
natural mixture, the range of mixtures that cannot be told apart from the optimum is reported next to it, and the predicted gain over the best
*measured* feasible mixture is compared with the noise. Nothing is hidden: a gain inside the noise is proposed all the same and called so,
and verification decides.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt.calibration.resolution import resolvable_difference
from mixopt.domains import DomainSet
from mixopt.effects import domain_effects
from mixopt.errors import DataError
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.objective import Objective, ObjectiveKind, fit_objective, measure_noise, rows_at
from mixopt.optimum import Optimum, is_piecewise_constant, minimize, near_optimal_range
from mixopt.prediction import Prediction, predict
from mixopt.proposal import Effect, Proposal
from mixopt.simplex import kl_divergence, sample_uniform
from mixopt.space import MixtureSpace
from mixopt.surrogates.base import Surrogate
from mixopt.surrogates.cross_validation import rank_correlation
from mixopt.surrogates.observations import MINIMUM_TRIALS, mixture_groups
from mixopt.swarm import Swarm

# A requested mixture is feasible if it breaks no cap by more than a proxy of 1M tokens could express.
MEASURED_FEASIBLE_WITHIN = 1e-6
PROBES = 256
# Mixtures and joint draws for the expected gain: its cost is the cube of the first, some milliseconds per metric.
GAIN_CANDIDATES, GAIN_DRAWS = 192, 256


@dataclass(frozen=True)
class Settings:
    """How to recommend: metric -> weight, kind of objective, seeds per baseline, pull toward natural, seed of everything random."""

    metrics: Mapping[str, float]
    objective_kind: ObjectiveKind
    seeds: int
    pull: float
    seed: int


@dataclass(frozen=True)
class Measured:
    """The swarm in objective units, relative to the measured natural losses.

    Attributes:
        values: of each trial, shape (trials,).
        noise_std: of one run, pooled over repeated mixtures.
        spread: standard deviation over trials.
    """

    swarm: Swarm
    values: FloatArray
    noise_std: float
    spread: float

    @classmethod
    def of(cls, swarm: Swarm, objective: Objective) -> Measured:
        values = objective.difference(swarm.values(objective.metrics), np.array(objective.natural_losses))
        noise = measure_noise(values[:, None], mixture_groups(swarm))
        return cls(swarm, values, float(noise.std[0]), float(values.std(ddof=1)))


def nothing_to_gain(swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings) -> bool:
    """Whether even perfect knowledge of the objective would gain less than the noise that so many seeds leave; False while that is not known.

    The expected value of perfect information bounds what any number of further trials can bring, as far as the surrogate is right.
    """
    try:
        objective = fit_objective(settings.objective_kind, settings.metrics, swarm, domains.natural())
        measured = Measured.of(swarm, objective)
        prediction = predict(surrogate, swarm, objective, space.domains, domains.natural().array(space.domains), settings.seed)
    except DataError:
        return False
    optimum = _optimize(prediction, measured, space, domains, best_measured(measured, space), settings)
    gain = expected_gain(prediction, space, optimum.weights, settings.seed)
    return gain < measured.noise_std * float(np.sqrt(2 / settings.seeds))


def expected_gain(prediction: Prediction, space: MixtureSpace, optimum: FloatArray, seed: int) -> float:
    """How much lower the objective is expected to be at the best mixture than at the one predicted to be best, were every mixture's known.

    The expected value of perfect information (Raiffa and Schlaifer, 1961): least expected objective minus expected least objective, over feasible mixtures
    near `optimum` and all over the feasible set, by joint draws from the posterior. In units of the objective, at least 0.
    """
    far = space.sample(GAIN_CANDIDATES, np.random.default_rng([seed, 0xE1]))
    steps = np.geomspace(0.02, 1.0, GAIN_CANDIDATES)[:, None]
    candidates = np.concatenate([optimum[None], optimum + steps * (far - optimum)])  # between two feasible mixtures all are
    draws = prediction.counted.posterior(prediction.points(candidates)).sample(GAIN_DRAWS, seed)
    values = prediction.objective.difference(draws, np.array(prediction.objective.natural_losses))
    return float(values.mean(axis=0).min() - values.min(axis=1).mean())


def recommend(swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings) -> Proposal:
    """The mixture with the least predicted objective plus pull, and the evidence for it.

    Args:
        swarm: trials of one source; surrogates are fitted on the realized mixtures, all else goes by the requested ones.

    Raises:
        DataError: fewer than 4 trials, none at the natural mixture, no repeats, or a metric of the objective was not measured.
    """
    if len(swarm) < MINIMUM_TRIALS:
        raise DataError(f"A proposal needs at least {MINIMUM_TRIALS} finished trials, got {len(swarm)}.", "Run more trials.")
    objective = fit_objective(settings.objective_kind, settings.metrics, swarm, domains.natural())
    measured = Measured.of(swarm, objective)
    natural = domains.natural().array(space.domains)
    prediction = predict(surrogate, swarm, objective, space.domains, natural, settings.seed)
    best = best_measured(measured, space)
    optimum = _optimize(prediction, measured, space, domains, best, settings)
    # What a comparison of two mixtures with so many seeds each cannot tell apart.
    indistinct = measured.noise_std * float(np.sqrt(2 / settings.seeds))
    within = max(indistinct, _doubt_of_gain(prediction, optimum.weights, best))
    low, high = _near_optimal(prediction, space, optimum.weights, within, settings.seed)
    mixture = Mixture.from_array(space.domains, optimum.weights)
    return Proposal(
        schedule=Schedule.constant(mixture),
        objective=prediction.objective_effects(optimum.weights[None], natural)[0],
        effects=prediction.metric_effects(optimum.weights),
        near_optimal={name: (float(low[i]), float(high[i])) for i, name in enumerate(space.domains)},
        epochs=domains.epochs(mixture),
        binding=space.binding(optimum.weights),
        screened=objective.screened,
        best_measured=best,
        evidence={
            "trials": len(swarm),
            "surrogate": type(surrogate).__name__,
            "pull": settings.pull,
            "objective": objective.to_json(),
            "objective_unit": objective.unit,
            "objective_noise_std": measured.noise_std,
            "objective_spread": measured.spread,
            "noise_std": dict(zip(objective.metrics, objective.noise_std, strict=True)),
            "noise_degrees_of_freedom": objective.degrees_of_freedom,
            "near_optimal_within": within,
            "near_optimal_meaning": "predicted to be worse than the proposal by at most near_optimal_within: one posterior standard deviation "
            "of the proposal's gain over the best measured mixture, or, if that is more, the seed noise of the objective times "
            f"sqrt(2 / {settings.seeds}), which {settings.seeds} runs of each mixture could not tell apart",
            "optimizer": {"method": optimum.method, "status": optimum.status},
            "baselines": _baselines(prediction, measured, space, domains),
            "expected_gain": expected_gain(prediction, space, optimum.weights, settings.seed),
            "expected_gain_meaning": "how much better the best mixture is expected to be than the one predicted to be best, were the objective of all "
            "mixtures known: more trials of this size can bring no more than that",
            "resolvable": {"objective": resolvable_difference(measured.noise_std, settings.seeds), "seeds": settings.seeds},
            "guard": _guard(prediction, optimum.weights, best, indistinct),
            "domain_effects": domain_effects(prediction, "natural", natural, units=space.units).to_json(),
            **_out_of_fold(prediction, objective, measured),
        },
    )


def _optimize(
    prediction: Prediction, measured: Measured, space: MixtureSpace, domains: DomainSet, best: Mapping[str, Any], settings: Settings
) -> Optimum:
    # At least the noise: where nothing that was measured depends on the mixture, the natural one is as good as any.
    strength = settings.pull * max(measured.spread, measured.noise_std)
    natural = prediction.natural

    def pulled(weights: FloatArray) -> FloatArray:
        return prediction.mean(weights) + strength * kl_divergence(weights, natural)

    baselines = [mixture.array(space.domains) for mixture in (domains.natural(), domains.uniform(), domains.unimax())]
    starts = np.stack([*baselines, np.array([best["weights"][name] for name in space.domains])])
    # Inside the simplex: trees split at exactly 0, so a move away from a face would look like a slope.
    probes = sample_uniform(np.random.default_rng([settings.seed, 0x9B0]), PROBES, len(space.domains))
    smooth = not is_piecewise_constant(prediction.mean, probes)
    return minimize(pulled, space, starts, settings.seed, smooth)


def _near_optimal(
    prediction: Prediction, space: MixtureSpace, optimum: FloatArray, within: float, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Least and largest weight per domain among feasible mixtures predicted to be worse than the optimum by at most `within`.

    One margin for all mixtures. With each mixture's own doubt instead, those far from every trial would all count as near-optimal: nothing
    is known of them.
    """
    level = prediction.mean(optimum[None])[0]
    return near_optimal_range(lambda weights: np.asarray(prediction.mean(weights) - level - within), space, optimum, 0.0, seed)


def _doubt_of_gain(prediction: Prediction, optimum: FloatArray, best: Mapping[str, Any]) -> float:
    """Posterior standard deviation of the difference between the optimum and the best measured mixture."""
    measured = np.array([[best["weights"][name] for name in prediction.domains]])
    return float(prediction.difference_std(measured, optimum)[0])


def best_measured(measured: Measured, space: MixtureSpace) -> dict[str, Any]:
    """The measured mixture with the least mean objective: among feasible ones if there are any, for no other can be recommended.

    Returns:
        JSON values: trial_id and label of its first trial, weights, objective (difference to natural), runs, feasible, note.
    """
    swarm, groups = measured.swarm, mixture_groups(measured.swarm)
    order = [swarm.domains.index(name) for name in space.domains]
    requested = swarm.points(realized=False).averages()[:, order]
    feasible = space.contains(requested, MEASURED_FEASIBLE_WITHIN)
    eligible = feasible if feasible.any() else np.ones(len(groups), dtype=bool)
    means = np.array([measured.values[groups == group].mean() for group in groups])
    row = int(np.argmin(np.where(eligible, means, np.inf)))
    runs = int((groups == groups[row]).sum())
    return {
        "trial_id": swarm.trial_ids[row],
        "label": swarm.trials()["label"][row],
        "weights": dict(zip(space.domains, requested[row].tolist(), strict=True)),
        "objective": float(means[row]),
        "runs": runs,
        "feasible": bool(feasible[row]),
        "note": f"best of {len(set(groups[eligible].tolist()))} "
        + (
            "feasible mixtures measured"
            if feasible.any()
            else "mixtures measured; none of them keeps the caps, so it cannot be recommended"
        ),
    }


def _baselines(prediction: Prediction, measured: Measured, space: MixtureSpace, domains: DomainSet) -> dict[str, Any]:
    """Natural, uniform and UniMax: predicted difference to natural with interval, measured mean (None if not run), runs, feasibility."""
    mixtures = {"natural": domains.natural(), "uniform": domains.uniform(), "unimax": domains.unimax()}
    weights = np.stack([mixture.array(space.domains) for mixture in mixtures.values()])
    effects = prediction.objective_effects(weights, prediction.natural)
    found: dict[str, Any] = {}
    for index, (name, mixture) in enumerate(mixtures.items()):
        rows = rows_at(measured.swarm, mixture)
        found[name] = {
            **_effect_json(effects[index]),
            "measured": float(measured.values[rows].mean()) if rows.any() else None,
            "runs": int(rows.sum()),
            "feasible": bool(space.contains(weights[index : index + 1], MEASURED_FEASIBLE_WITHIN)[0]),
        }
    return found


def _guard(prediction: Prediction, optimum: FloatArray, best: Mapping[str, Any], indistinct: float) -> dict[str, Any]:
    """Whether the predicted gain over the best measured mixture is more than noise."""
    weights = np.array([best["weights"][name] for name in prediction.domains])
    gain = prediction.objective_effects(optimum[None], weights)[0]
    inside = gain.mean > -indistinct or gain.high >= 0
    unit = prediction.objective.unit
    sentence = (
        f"The predicted difference to the best measured {'feasible ' if best['feasible'] else ''}mixture ({best['label'] or best['trial_id']}) is "
        f"{gain.mean:.3g} {unit} (90% interval {gain.low:.3g} to {gain.high:.3g})"
    )
    sentence += ", inside the noise: verification decides between the two." if inside else ", beyond the noise."
    return {"difference": _effect_json(gain), "inside_noise": bool(inside), "sentence": sentence}


def _out_of_fold(prediction: Prediction, objective: Objective, measured: Measured) -> dict[str, Any]:
    """Rank correlations, coverage, and predicted against measured objective per trial, in the order of the swarm."""
    trials = measured.swarm.trials()
    named = [
        {"trial_id": trial_id, "label": label, "measured": value}
        for trial_id, label, value in zip(trials["trial_id"], trials["label"], measured.values.tolist(), strict=True)
    ]
    shown: dict[str, Any] = {"objective_over_trials": named}
    errors = prediction.errors
    if errors is None:
        return {**shown, "predicted": [], "spearman": {}, "out_of_fold_missing": prediction.errors_missing}
    count = len(objective.metrics)
    # Relative to the measured natural losses, as the measured values are.
    means = objective.difference(errors.mean[:, :count], np.array(objective.natural_losses))
    stds = prediction.measurement_std(errors.mean[:, :count], errors.std[:, :count])
    spearman = dict(zip(prediction.metrics, errors.spearman().tolist(), strict=True))
    shown["predicted"] = [
        {**entry, "mean": mean, "std": std} for entry, mean, std in zip(named, means.tolist(), stds.tolist(), strict=True)
    ]
    shown["predicted_meaning"] = "out of fold; std is of a measurement, seed noise included"
    shown["spearman"] = {**spearman, "objective": rank_correlation(means, measured.values)}
    shown["coverage90"] = float((np.abs(measured.values - means) <= 1.645 * stds).mean())
    return shown


def _effect_json(effect: Effect) -> dict[str, float]:
    return {"mean": effect.mean, "low": effect.low, "high": effect.high}
