"""What was measured, in units of the objective: noise, spread, the best measured mixture, baselines, and predictions against it.

Surrogates are fitted on realized mixtures; everything here goes by the requested ones, which is what a user can ask for again. In a swarm of
several sources all of this is at one of them, where the answer is wanted or, as long as too little was measured there, at the largest. The main
trade-off: runs of other sources then serve the fit alone, and do not enter any measured number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mixopt.domains import DomainSet
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray
from mixopt.objective import Objective, measure_noise, rows_at
from mixopt.prediction import Prediction
from mixopt.proposal import effect_json
from mixopt.space import BoolArray, MixtureSpace
from mixopt.surrogates.cross_validation import rank_correlation
from mixopt.surrogates.observations import MINIMUM_TRIALS, mixture_groups
from mixopt.surrogates.scales import Sizes, sources_in
from mixopt.swarm import Swarm
from mixopt.trial import Source

# A requested mixture is feasible if it breaks no cap by more than a proxy of 1M tokens could express.
MEASURED_FEASIBLE_WITHIN = 1e-6


@dataclass(frozen=True)
class Measured:
    """Runs of one source in objective units, relative to the objective's natural losses.

    Attributes:
        values: of each trial, shape (trials,).
        noise_std: of one run, pooled over repeated mixtures, or what it was said to be.
        spread: standard deviation over trials.
    """

    swarm: Swarm
    values: FloatArray
    noise_std: float
    spread: float

    @classmethod
    def of(cls, swarm: Swarm, objective: Objective, noise_std: float | None = None) -> Measured:
        """The runs of `swarm`; noise is measured unless it is given.

        Raises:
            DataError: no noise is given, and no mixture was trained twice.
        """
        values = objective.difference(swarm.values(objective.metrics), np.array(objective.natural_losses))
        if noise_std is None:
            noise_std = float(measure_noise(values[:, None], mixture_groups(swarm)).std[0])
        return cls(swarm, values, noise_std, float(values.std(ddof=1)))


def sources_of(swarm: Swarm, sizes: Sizes | None = None) -> list[Source]:
    """The sources of a swarm, the cheapest first: as `scales.sources_in`; where that is not known, by the FLOPs or the tokens of a run."""
    try:
        return list(sources_in(swarm, sizes))
    except DataError:
        pass
    trials = swarm.trials()
    found: dict[Source, list[float]] = {}
    for source, flops in zip(swarm.points().sources, trials["flops"].to_list(), strict=True):
        found.setdefault(source, []).append(flops)

    def cost(source: Source) -> tuple[float, int, str]:
        mean = float(np.mean(found[source]))
        return (mean if np.isfinite(mean) else 0.0, source.tokens, source.key)

    return sorted(found, key=cost)


def answer_source(swarm: Swarm, wanted: Source | None) -> Source:
    """Where the answer is wanted: as asked for, or the only source there is.

    Raises:
        ConfigError: there are several, and none was asked for.
    """
    if wanted is not None:
        return wanted
    sources = sources_of(swarm)
    if len(sources) > 1:
        raise ConfigError(
            f"The runs are of {len(sources)} sources ({', '.join(source.key for source in sources)}), and it is not said for which the answer is wanted.",
            "Name one of them.",
        )
    return sources[0]


def measured_at(swarm: Swarm, source: Source, sizes: Sizes | None = None) -> Swarm:
    """The runs whose losses are told as measured: those of `source`, or, where they are fewer than 4, of the largest source with 4.

    Raises:
        DataError: no source has 4 runs.
    """
    enough = [known for known in sources_of(swarm, sizes) if len(swarm.at_source(known)) >= MINIMUM_TRIALS]
    if not enough:
        raise DataError(
            f"A proposal needs at least {MINIMUM_TRIALS} finished trials of one source, got {len(swarm)} of several.", "Run more trials."
        )
    chosen = source if source in enough else enough[-1]
    return swarm if len(enough) == len(set(swarm.points().sources)) == 1 else swarm.at_source(chosen)


def best_measured(measured: Measured, space: MixtureSpace, keeps: Callable[[FloatArray], BoolArray] | None = None) -> dict[str, Any]:
    """The measured mixture with the least mean objective: among feasible ones if there are any, for no other can be recommended.

    Args:
        keeps: which of mixtures (n, domains) come into question, shape (n,), where some feasible one does; None: all.

    Returns:
        JSON values: trial_id and label of its first trial, weights, objective (difference to natural), runs, feasible, note.
    """
    swarm, groups = measured.swarm, mixture_groups(measured.swarm)
    order = [swarm.domains.index(name) for name in space.domains]
    requested = swarm.points(realized=False).averages()[:, order]
    feasible = space.contains(requested, MEASURED_FEASIBLE_WITHIN)
    eligible = feasible if feasible.any() else np.ones(len(groups), dtype=bool)
    kept = feasible & keeps(requested) if keeps is not None else feasible
    eligible = kept if kept.any() else eligible
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


def best_weights(best: Mapping[str, Any], space: MixtureSpace) -> FloatArray:
    """Weights (domains,) of what `best_measured` returned, in the order of the space."""
    return np.array([best["weights"][name] for name in space.domains])


def compare_baselines(prediction: Prediction, measured: Measured, space: MixtureSpace, domains: DomainSet) -> dict[str, Any]:
    """Natural, uniform and UniMax: predicted difference to natural with interval, measured mean (None if not run), runs, feasibility."""
    mixtures = {"natural": domains.natural(), "uniform": domains.uniform(), "unimax": domains.unimax()}
    weights = np.stack([mixture.array(space.domains) for mixture in mixtures.values()])
    effects = prediction.objective_effects(weights, prediction.natural)
    found: dict[str, Any] = {}
    for index, (name, mixture) in enumerate(mixtures.items()):
        rows = rows_at(measured.swarm, mixture)
        found[name] = {
            **effect_json(effects[index]),
            "measured": float(measured.values[rows].mean()) if rows.any() else None,
            "runs": int(rows.sum()),
            "feasible": bool(space.contains(weights[index : index + 1], MEASURED_FEASIBLE_WITHIN)[0]),
        }
    return found


def guard(prediction: Prediction, optimum: FloatArray, best: Mapping[str, Any], indistinct: float) -> dict[str, Any]:
    """Whether the predicted gain over the best measured mixture is more than noise."""
    weights = np.array([best["weights"][name] for name in prediction.domains])
    gain = prediction.objective_effects(optimum[None], weights)[0]
    inside = gain.mean > -indistinct or gain.high >= 0
    unit = prediction.objective.unit
    sentence = (
        f"The predicted difference to the best measured {'feasible ' if best['feasible'] else ''}mixture ({best['label'] or best['trial_id']}) is "
        f"{gain.mean:.3g} {unit} (90% interval {gain.low:.3g} to {gain.high:.3g})"
    )
    worse = gain.mean >= indistinct and gain.low > 0
    if worse:
        why = "a floor or the pull" if best["feasible"] else "the caps"
        sentence += f": that mixture is predicted to be better, and is not proposed because of {why}."
    else:
        sentence += ", inside the noise: verification decides between the two." if inside else ", beyond the noise."
    return {"difference": effect_json(gain), "inside_noise": bool(inside), "worse": bool(worse), "sentence": sentence}


def out_of_fold_evidence(prediction: Prediction, objective: Objective, measured: Measured) -> dict[str, Any]:
    """Rank correlations, coverage, and predicted against measured objective per trial, in the order of the measured runs."""
    trials = measured.swarm.trials()
    named = [
        {"trial_id": trial_id, "label": label, "measured": value}
        for trial_id, label, value in zip(trials["trial_id"], trials["label"], measured.values.tolist(), strict=True)
    ]
    shown: dict[str, Any] = {"objective_over_trials": named}
    errors = prediction.errors
    if errors is None:
        return {**shown, "predicted": [], "spearman": {}, "out_of_fold_missing": prediction.errors_missing}
    errors = errors.rows(prediction.rows_of(measured.swarm.trial_ids))
    count = len(objective.metrics)
    # Relative to the same natural losses as the measured values are.
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
