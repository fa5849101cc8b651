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

from mixopt.answer.floors import Floor
from mixopt.answer.measured import Measured, answer_source, best_measured, compare_baselines, guard, measured_at, out_of_fold_evidence
from mixopt.calibration.resolution import resolvable_difference
from mixopt.domains import DomainSet
from mixopt.effects import domain_effects
from mixopt.errors import DataError
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.objective import BITS_PER_BYTE, Objective, ObjectiveKind, fit_objective, lacking
from mixopt.optimum import Optimum, is_piecewise_constant, minimize, near_optimal_range
from mixopt.prediction import Fits, Prediction, predict
from mixopt.proposal import Proposal
from mixopt.simplex import kl_divergence, sample_uniform
from mixopt.space import MixtureSpace
from mixopt.surrogates.base import Surrogate
from mixopt.surrogates.observations import MINIMUM_TRIALS
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

PROBES = 256
# Mixtures and joint draws for the expected gain: its cost is the cube of the first, some milliseconds per metric.
GAIN_CANDIDATES, GAIN_DRAWS = 192, 256
DEFAULT_PULL = 0.05
"""Olmix's (arXiv 2602.12237), which there weighs raw losses; here it is a share of the objective's spread over the swarm."""


@dataclass(frozen=True)
class Settings:
    """How to recommend.

    Attributes:
        metrics: metric -> weight in the objective.
        seeds: runs of each mixture that a comparison would have; differences smaller than their noise count as none.
        pull: weight of KL(mixture, natural), in standard deviations of the objective over the swarm; None: chosen by cross-validation.
        seed: of everything random.
        floors: no metric worse than a baseline by more than so much, on the prediction and `confidence` posterior standard deviations.
        loss_unit: of the losses in the swarm.
        source: where the answer is wanted; None: the only source of the swarm.
        measured_only: refuse a swarm without the natural mixture or without repeats, instead of letting the surrogate say what they are.
    """

    metrics: Mapping[str, float]
    objective_kind: ObjectiveKind
    seeds: int
    pull: float | None
    seed: int
    floors: tuple[Floor, ...] = ()
    confidence: float = 0.0
    loss_unit: str = BITS_PER_BYTE
    source: Source | None = None
    measured_only: bool = False


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


def recommend(
    swarm: Swarm,
    space: MixtureSpace,
    domains: DomainSet,
    surrogate: Surrogate,
    settings: Settings,
    studied: tuple[Objective, Measured, Prediction] | None = None,
) -> Proposal:
    """The mixture with the least predicted objective plus pull, and the evidence for it.

    Args:
        studied: what `study` gives for the same arguments, where somebody has it already.
        swarm: trials of one source; surrogates are fitted on the realized mixtures, all else goes by the requested ones.

    Raises:
        DataError: fewer than 4 trials, none at the natural mixture, no repeats, or a metric of the objective was not measured.
    """
    if len(swarm) < MINIMUM_TRIALS:
        raise DataError(f"A proposal needs at least {MINIMUM_TRIALS} finished trials, got {len(swarm)}.", "Run more trials.")
    objective, measured, prediction = studied or study(swarm, space, domains, surrogate, settings)
    natural = prediction.natural
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
            "baselines": compare_baselines(prediction, measured, space, domains),
            "expected_gain": expected_gain(prediction, space, optimum.weights, settings.seed),
            "expected_gain_meaning": "how much better the best mixture is expected to be than the one predicted to be best, were the objective of all "
            "mixtures known: more trials of this size can bring no more than that",
            "resolvable": {"objective": resolvable_difference(measured.noise_std, settings.seeds), "seeds": settings.seeds},
            "guard": guard(prediction, optimum.weights, best, indistinct),
            "domain_effects": domain_effects(prediction, "natural", natural, units=space.units).to_json(),
            **out_of_fold_evidence(prediction, objective, measured),
        },
    )


def study(
    swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings
) -> tuple[Objective, Measured, Prediction]:
    """The objective, the runs in its units, and the surrogate fitted to all of them.

    Where the natural mixture was not run, or hardly a mixture twice, the surrogate is asked, and the objective says so.

    Raises:
        DataError, ConfigError: as `recommend`.
    """
    source = answer_source(swarm, settings.source)
    runs = measured_at(swarm, source)
    natural = domains.natural().array(space.domains)
    fits = estimates = None
    if not settings.measured_only and any(lacking(runs, domains.natural())):
        measured_source = runs.points().sources[0]
        fits = Fits.of(surrogate, swarm, tuple(settings.metrics), settings.seed)
        estimates = fits.estimates(Points(space.domains, natural[None, None, :], (measured_source,)))
    objective = fit_objective(settings.objective_kind, settings.metrics, runs, domains.natural(), settings.loss_unit, estimates)
    prediction = predict(surrogate, swarm, objective, space.domains, natural, settings.seed, source, fits)
    noise_std = None
    if objective.noise_from == "surrogate":
        losses, stds = np.array([objective.natural_losses]), np.array([objective.noise_std])
        noise_std = float(prediction.measurement_std(losses, stds)[0])
    return objective, Measured.of(runs, objective, noise_std), prediction


def _optimize(
    prediction: Prediction, measured: Measured, space: MixtureSpace, domains: DomainSet, best: Mapping[str, Any], settings: Settings
) -> Optimum:
    # At least the noise: where nothing that was measured depends on the mixture, the natural one is as good as any.
    strength = (DEFAULT_PULL if settings.pull is None else settings.pull) * max(measured.spread, measured.noise_std)
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
