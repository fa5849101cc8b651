"""From a swarm to a proposal: fit, minimize where the caps allow, and say how much of the answer to believe.

The optimum of a fitted function is optimistic (the winner's curse), and an optimum is often flat. So the objective is pulled toward the
natural mixture, the range of mixtures that cannot be told apart from the optimum is reported next to it, and the predicted gain over the best
*measured* feasible mixture is compared with the noise. Nothing is hidden: a gain inside the noise is proposed all the same and called so,
and verification decides.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixopt.answer.constraints import FloorSet, place_floors
from mixopt.answer.floors import Floor, resolve_floors
from mixopt.answer.local_search import KEPT_WITHIN
from mixopt.answer.measured import (
    Measured,
    answer_source,
    best_measured,
    best_weights,
    compare_baselines,
    guard,
    measured_at,
    out_of_fold_evidence,
)
from mixopt.answer.near_optimal import NearOptimal, find_near_optimal
from mixopt.answer.problem import Problem
from mixopt.answer.pull import DEFAULT_PULL, PullChoice, choose_pull
from mixopt.answer.relaxation import binding_floors, relaxations, sensitivities
from mixopt.calibration.resolution import resolvable_difference
from mixopt.domains import DomainSet
from mixopt.effects import domain_effects
from mixopt.errors import DataError, InfeasibleError
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.objective import BITS_PER_BYTE, Estimates, Objective, ObjectiveKind, fit_objective, lacking, objective_at
from mixopt.optimum import Optimum
from mixopt.prediction import Fits, Prediction, estimated, predict
from mixopt.proposal import Alternative, Proposal
from mixopt.space import MixtureSpace
from mixopt.surrogates.base import Surrogate
from mixopt.surrogates.observations import MINIMUM_TRIALS
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

# Mixtures and joint draws for the expected gain: its cost is the cube of the first, some milliseconds per metric.
GAIN_CANDIDATES, GAIN_DRAWS = 192, 256
ALTERNATIVES = 3
# Where predictions of unseen runs say nothing, the natural mixture is the answer unless a gain of the losses' whole spread speaks against it.
NO_EVIDENCE_PULL = 1.0
# Moving a percentage point of the tokens for less than this share of the noise is nothing.
FIRST_ORDER_WITHIN = 0.05


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
        sizes: name of a size -> parameters, for names that are no numbers; only the order of sources needs them.
        negated: metrics of which more is better, stored as their negatives; only sentences need them.
        noise_source: whose repeats say what the noise and so the objective's scale are, where runs of `source` have none, as averages of components.
            None: `source` itself.
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
    sizes: Mapping[str, float] | None = None
    negated: frozenset[str] = frozenset()
    noise_source: Source | None = None


def nothing_to_gain(swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings) -> bool:
    """Whether even perfect knowledge of the objective would gain less than the noise that so many seeds leave; False while that is not known.

    The expected value of perfect information bounds what any number of further trials can bring, as far as the surrogate is right.
    """
    try:
        study = Study.of(swarm, space, domains, surrogate, settings)
    except DataError:
        return False
    # What is looked for lies around the optimum; choosing its pull by cross-validation, at every look, would move it little.
    pull = DEFAULT_PULL if settings.pull is None else settings.pull
    optimum = pose(study, space, domains, best_measured(study.measured, space), settings, pull).solve()
    gain = expected_gain(study.prediction, space, optimum.weights, settings.seed)
    return gain < study.measured.noise_std * float(np.sqrt(2 / settings.seeds))


def expected_gain(prediction: Prediction, space: MixtureSpace, optimum: FloatArray, seed: int) -> float:
    """How much lower the objective is expected to be at the best mixture than at the one predicted to be best, were every mixture's known.

    The expected value of perfect information (Raiffa and Schlaifer, 1961): least expected objective minus expected least objective, over feasible mixtures
    near `optimum` and all over the feasible set, by joint draws from the posterior. In units of the objective, at least 0.
    """
    far = space.sample(GAIN_CANDIDATES, np.random.default_rng([seed, 0xE1]))
    steps = np.geomspace(0.02, 1.0, GAIN_CANDIDATES)[:, None]
    between = optimum + steps * (far - optimum)
    # Between two feasible mixtures all are, unless only so many domains may have weight.
    candidates = np.concatenate([optimum[None], between if space.is_convex else space.project(between)])
    draws = prediction.counted.posterior(prediction.points(candidates)).sample(GAIN_DRAWS, seed)
    values = prediction.objective.difference(draws, np.array(prediction.objective.natural_losses))
    return float(values.mean(axis=0).min() - values.min(axis=1).mean())


def recommend(
    swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings, study: Study | None = None
) -> Proposal:
    """The mixture with the least predicted objective plus pull that keeps the floors, and the evidence for it.

    Args:
        swarm: trials of one source, or of several where `settings.source` says for which the answer is; surrogates are fitted on the realized
            mixtures, all else goes by the requested ones.
        study: `Study.of` the same arguments, where somebody has it already.

    Raises:
        DataError: fewer than 4 trials, a metric of the objective was not measured, or, with `settings.measured_only`, no trial at the natural
            mixture or no repeats.
        ConfigError: an unknown kind or metric of a floor, or several sources and none asked for.
        InfeasibleError: no mixture keeps the floors.
    """
    study = study or _study(swarm, space, domains, surrogate, settings)
    best = best_measured(study.measured, space)
    choice = PullChoice(settings.pull, "as set") if settings.pull is not None else study.choose_pull(space, settings.seed)
    problem = pose(study, space, domains, best, settings, choice.pull)
    optimum = problem.solve()
    proposal = _describe(study, problem, optimum.weights, best, domains, surrogate, settings)
    evidence = {**_pull_evidence(choice), "optimizer": _optimizer_evidence(optimum, study.measured.noise_std)}
    return replace(proposal, evidence={**proposal.evidence, **evidence}, relaxations=relaxations(problem, domains, optimum.weights))


def recommend_measured(swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings) -> Proposal:
    """The best measured feasible mixture, by the mean of its runs, told as `recommend` tells its optimum: for searches that do not predict.

    The surrogate gives the intervals and the near-optimal range, and no part of the choice. Floors are looked at as predicted, as everywhere.

    Raises:
        DataError: as `recommend`, or no feasible mixture was measured.
        InfeasibleError: no mixture that was measured keeps the floors.
    """
    study = _study(swarm, space, domains, surrogate, settings)
    best = best_measured(study.measured, space)
    if not best["feasible"]:
        raise DataError("None of the mixtures that were measured is feasible, so none can be proposed.", "Run more trials.")
    choice = PullChoice(0.0, "none: the best measured mixture is proposed")
    problem = pose(study, space, domains, best, settings, choice.pull)
    if problem.limits is not None:
        best = best_measured(study.measured, space, lambda weights: problem.excess(weights) <= KEPT_WITHIN)
        if problem.excess(best_weights(best, space)[None])[0] > KEPT_WITHIN:
            raise InfeasibleError(
                "None of the mixtures that were measured keeps every floor, as far as the surrogate predicts.",
                "Loosen the floors, run more trials, or take a strategy that predicts, as regression.",
            )
    weights = space.project(best_weights(best, space)[None])[0]  # feasible within a rounding of the record, now exactly
    proposal = _describe(study, problem, weights, best, domains, surrogate, settings)
    told = {"method": "best measured", "status": best["note"], "residuals": {}, "first_order_meaning": "nothing was optimized"}
    return replace(proposal, evidence={**proposal.evidence, **_pull_evidence(choice), "optimizer": told})


def recommend_chosen(
    swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings, choose: Choose
) -> Proposal:
    """The feasible mixture that `choose` takes, told as `recommend` tells its optimum: for searches that optimize something of their own.

    The surrogate gives predictions, intervals and the near-optimal range; `choose` gets it, too, so that it can look at the floors.

    Raises:
        DataError, InfeasibleError: as `recommend`, or as `choose` does.
    """
    study = _study(swarm, space, domains, surrogate, settings)
    best = best_measured(study.measured, space)
    choice = PullChoice(0.0, "none: the strategy chooses by an objective of its own")
    problem = pose(study, space, domains, best, settings, choice.pull)
    weights, told = choose(study, problem)
    proposal = _describe(study, problem, weights, best, domains, surrogate, settings)
    told = {"residuals": {}, "first_order_meaning": "no slope was followed", **told}
    return replace(proposal, evidence={**proposal.evidence, **_pull_evidence(choice), "optimizer": told})


def _study(swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings) -> Study:
    if len(swarm) < MINIMUM_TRIALS:
        raise DataError(f"A proposal needs at least {MINIMUM_TRIALS} finished trials, got {len(swarm)}.", "Run more trials.")
    return Study.of(swarm, space, domains, surrogate, settings)


def _describe(
    study: Study,
    problem: Problem,
    weights: FloatArray,
    best: Mapping[str, Any],
    domains: DomainSet,
    surrogate: Surrogate,
    settings: Settings,
) -> Proposal:
    """A feasible mixture (domains,) as a proposal: its effects, what cannot be told from it, and the evidence that does not depend on how it was chosen."""
    objective, measured, prediction, space = study.objective, study.measured, study.prediction, problem.space
    # What a comparison of two mixtures with so many seeds each cannot tell apart.
    indistinct = measured.noise_std * float(np.sqrt(2 / settings.seeds))
    within = max(indistinct, _doubt_of_gain(prediction, weights, best))
    near = _near_optimal(problem, weights, within)
    mixture = Mixture.from_array(space.domains, weights)
    limits = problem.limits
    held = tuple(limits.sentences()[index] for index in binding_floors(limits, weights)) if limits is not None else ()
    return Proposal(
        schedule=Schedule.constant(mixture),
        objective=prediction.objective_effects(weights[None], prediction.natural)[0],
        effects=prediction.metric_effects(weights),
        near_optimal={name: (float(near.low[i]), float(near.high[i])) for i, name in enumerate(space.domains)},
        epochs=domains.epochs(mixture),
        binding=space.binding(weights) + held,
        screened=objective.screened,
        best_measured=best,
        evidence={
            "trials": len(prediction.trial_ids),
            "surrogate": type(surrogate).__name__,
            **_objective_evidence(study),
            **_floor_evidence(limits, weights),
            "near_optimal_within": within,
            "near_optimal_meaning": "predicted to be worse than the proposal by at most near_optimal_within: one posterior standard deviation "
            "of the proposal's gain over the best measured mixture, or, if that is more, the seed noise of the objective times "
            f"sqrt(2 / {settings.seeds}), which {settings.seeds} runs of each mixture could not tell apart",
            "baselines": compare_baselines(prediction, measured, space, domains),
            "expected_gain": expected_gain(prediction, space, weights, settings.seed),
            "expected_gain_meaning": "how much better the best mixture is expected to be than the one predicted to be best, were the objective of all "
            "mixtures known: more trials of this size can bring no more than that",
            "resolvable": {"objective": resolvable_difference(measured.noise_std, settings.seeds), "seeds": settings.seeds},
            "guard": guard(prediction, weights, best, indistinct),
            "domain_effects": domain_effects(prediction, "natural", prediction.natural, units=space.units).to_json(),
            **out_of_fold_evidence(prediction, objective, measured),
        },
        sensitivities=sensitivities(prediction, space, weights),
        alternatives=_alternatives(prediction, near, weights),
    )


@dataclass(frozen=True)
class Study:
    """What a swarm says: the objective, the runs in its units, the surrogate fitted to all of them, and the source whose repeats tell the noise."""

    objective: Objective
    measured: Measured
    prediction: Prediction
    noise_source: Source

    @classmethod
    def of(cls, swarm: Swarm, space: MixtureSpace, domains: DomainSet, surrogate: Surrogate, settings: Settings) -> Study:
        """Where the natural mixture was not run, or hardly a mixture twice, the surrogate is asked, and the objective says so.

        Raises:
            DataError, ConfigError: as `recommend`.
        """
        source = answer_source(swarm, settings.source)
        _refuse_elsewhere(swarm, source)
        runs = measured_at(swarm, source, settings.sizes)
        repeats = runs if settings.noise_source is None else measured_at(swarm, settings.noise_source, settings.sizes)
        natural = domains.natural().array(space.domains)
        fits = None
        if not settings.measured_only and (any(lacking(repeats, domains.natural())) or lacking(runs, domains.natural())[1]):
            fits = Fits.of(surrogate, swarm, tuple(settings.metrics), settings.seed)
        estimates = _natural_estimates(fits, repeats, space.domains, natural)
        objective = fit_objective(settings.objective_kind, settings.metrics, repeats, domains.natural(), settings.loss_unit, estimates)
        prediction = predict(surrogate, swarm, objective, space.domains, natural, settings.seed, source, fits)
        noise_std = None
        if objective.noise_from == "surrogate":
            losses, stds = np.array([objective.natural_losses]), np.array([objective.noise_std])
            noise_std = float(prediction.measurement_std(losses, stds)[0])
        elif repeats is not runs:
            noise_std = Measured.of(repeats, objective).noise_std
        if repeats is not runs:
            objective = objective_at(objective, runs, domains.natural(), _natural_estimates(fits, runs, space.domains, natural))
        return cls(objective, Measured.of(runs, objective, noise_std), prediction, repeats.points().sources[0])

    @property
    def spread(self) -> float:
        """What a pull of 1 is, in objective units. At least the noise: where nothing depends on the mixture, the natural one is as good as any."""
        return max(self.measured.spread, self.measured.noise_std)

    def choose_pull(self, space: MixtureSpace, seed: int) -> PullChoice:
        rank = self._rank_out_of_fold()
        if rank is not None and rank <= 0:
            how = f"{NO_EVIDENCE_PULL:g}, for the surrogate does not rank runs that it has not seen (Spearman {rank:.2f} out of fold)"
            return PullChoice(NO_EVIDENCE_PULL, how)
        return choose_pull(self.measured.swarm, space, self.objective, self.prediction.natural, self.spread, seed)

    def _rank_out_of_fold(self) -> float | None:
        """Spearman of the objective out of fold; None where it could not be checked."""
        found = out_of_fold_evidence(self.prediction, self.objective, self.measured)["spearman"]
        value = found.get("objective")
        return None if value is None else float(value)


Choose = Callable[[Study, Problem], tuple[FloatArray, dict[str, Any]]]
"""Of what is known and what is feasible: a feasible mixture (domains,), and how it was found: JSON values `method` and `status`."""


def _natural_estimates(fits: Fits | None, runs: Swarm, names: tuple[str, ...], natural: FloatArray) -> Estimates | None:
    """What the fits say of the natural mixture at the source of `runs`; None without fits."""
    return None if fits is None else estimated(fits.fitted, Points(names, natural[None, None, :], (runs.points().sources[0],)))


def _refuse_elsewhere(swarm: Swarm, source: Source) -> None:
    """Raises DataError where all runs are of one source and the answer is wanted at another: a surrogate of one source would answer for its own."""
    known = set(swarm.points().sources)
    if len(known) == 1 and source not in known:
        (other,) = known
        raise DataError(
            f"All {len(swarm)} finished trials are of {other.key}, and the answer is wanted for {source.key}, of which there is none.",
            "Run a few trials there: raise `search.trials`, or take fewer or cheaper `search.sources`.",
        )


def pose(study: Study, space: MixtureSpace, domains: DomainSet, best: Mapping[str, Any], settings: Settings, pull: float) -> Problem:
    """What is minimized, with floors placed relative to their baselines.

    Raises:
        ConfigError: a floor names a metric that is not predicted.
    """
    prediction = study.prediction
    named = {"natural": domains.natural(), "uniform": domains.uniform(), "unimax": domains.unimax()}
    baselines = {name: mixture.array(space.domains) for name, mixture in named.items()}
    baselines["best_measured"] = best_weights(best, space)
    limits = None
    if settings.floors:
        floors = resolve_floors(settings.floors, prediction.metrics, tuple(settings.metrics))
        limits = place_floors(prediction, floors, baselines, prediction.noise(), settings.confidence, settings.negated)
    return Problem.of(prediction, space, pull * study.spread, limits, np.stack(list(baselines.values())))


def _near_optimal(problem: Problem, optimum: FloatArray, within: float) -> NearOptimal:
    """Feasible mixtures that keep the floors and are predicted to be worse than the optimum by at most `within`.

    One margin for all mixtures. With each mixture's own doubt instead, those far from every trial would all count as near-optimal: nothing
    is known of them.
    """
    prediction = problem.prediction
    level = prediction.mean(optimum[None])[0]
    kept = max(float(problem.excess(optimum[None])[0]), KEPT_WITHIN)

    def beyond(weights: FloatArray) -> FloatArray:
        worse = prediction.mean(weights) - level - within
        return np.where(problem.excess(weights) <= kept, worse, np.maximum(worse, 1.0)) if problem.limits is not None else np.asarray(worse)

    return find_near_optimal(beyond, problem.space, optimum, 0.0, prediction.seed)


def _alternatives(prediction: Prediction, near: NearOptimal, optimum: FloatArray) -> tuple[Alternative, ...]:
    weights = near.alternatives(ALTERNATIVES)
    effects = prediction.objective_effects(weights, optimum) if len(weights) else []
    return tuple(
        Alternative(dict(zip(prediction.domains, row.tolist(), strict=True)), effect, float(0.5 * np.abs(row - optimum).sum()))
        for row, effect in zip(weights, effects, strict=True)
    )


def _doubt_of_gain(prediction: Prediction, optimum: FloatArray, best: Mapping[str, Any]) -> float:
    """Posterior standard deviation of the difference between the optimum and the best measured mixture."""
    measured = np.array([[best["weights"][name] for name in prediction.domains]])
    return float(prediction.difference_std(measured, optimum)[0])


def _objective_evidence(study: Study) -> dict[str, Any]:
    """The objective, its noise, and what was measured of both or taken from the surrogate."""
    objective, measured = study.objective, study.measured
    said = {
        ("repeats", "runs"): "noise and natural losses are measured",
        ("repeats", "surrogate"): "noise is measured; the natural mixture was not run, so its losses are predicted",
        ("surrogate", "runs"): "natural losses are measured; noise is estimated by the surrogate, since there are no repeats or too few",
        (
            "surrogate",
            "surrogate",
        ): "noise is estimated by the surrogate, since there are no repeats or too few, and the natural mixture was not run, "
        "so its losses are predicted",
    }
    return {
        "objective": objective.to_json(),
        "objective_unit": objective.unit,
        "objective_basis": said[objective.noise_from, objective.natural_from],
        "objective_noise_std": measured.noise_std,
        "objective_spread": measured.spread,
        "noise_std": dict(zip(objective.metrics, objective.noise_std, strict=True)),
        "noise_degrees_of_freedom": objective.degrees_of_freedom,
        "source": study.prediction.source.key,
        "measured_source": measured.swarm.points().sources[0].key,
        "noise_source": study.noise_source.key,
    }


def _pull_evidence(choice: PullChoice) -> dict[str, Any]:
    return {"pull": choice.pull, "pull_choice": choice.to_json()}


def _floor_evidence(limits: FloorSet | None, weights: FloatArray) -> dict[str, Any]:
    """Each floor with the predicted room below it; nothing where there are none."""
    if limits is None:
        return {}
    room = (-limits.excess(weights[None])[0]).tolist()
    rows = zip(limits.floors, limits.sentences(), limits.limits.tolist(), room, strict=True)
    return {"floors": [{**floor.to_json(), "sentence": sentence, "limit": limit, "room": left} for floor, sentence, limit, left in rows]}


def _optimizer_evidence(optimum: Optimum, noise_std: float) -> dict[str, Any]:
    """What the solver said, what its answer misses, and whether that matters."""
    missed = optimum.residuals.first_order
    said = "the function has no slopes, so there is no first-order check"
    if missed is not None:
        small = missed <= FIRST_ORDER_WITHIN * noise_std
        said = f"the best small move would gain {missed:.2g} per percentage point, {'nothing' if small else 'not nothing'} beside a noise of {noise_std:.2g}"
    return {"method": optimum.method, "status": optimum.status, "residuals": optimum.residuals.to_json(), "first_order_meaning": said}
