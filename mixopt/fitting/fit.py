"""`mixopt.fit`: from measured runs to predictions, an answer and a judgement of both.

One surrogate is fitted once; the answer, the predictions and the diagnostics all come from that fit. Everything that could be wrong with the input is
found before it. The main trade-off: what was not measured (the loss at the natural mixture, the noise of a seed) is taken from the surrogate and said
to be, where a search would have measured it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mixopt.answer.measured import Measured
from mixopt.domains import DomainSet
from mixopt.errors import DataError
from mixopt.fitting.diagnostics import BASELINES, MEANINGS, diagnose
from mixopt.fitting.file import WHAT, FitFile
from mixopt.fitting.predictions import Asked, check_sources, predictions, read_asked
from mixopt.fitting.runs import UNKNOWN_SIZE, Runs
from mixopt.fitting.tables import Table, read_table, table_of
from mixopt.fitting.where import answer_at, spoken
from mixopt.objective import Objective
from mixopt.prediction import FOLDS, Prediction
from mixopt.proposal import Proposal
from mixopt.recommendation import Settings, Study, recommend
from mixopt.space import MixtureSpace
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.base import Surrogate, takes_several_sources
from mixopt.surrogates.cross_validation import checked_folds
from mixopt.surrogates.observations import MINIMUM_TRIALS, mixture_groups
from mixopt.surrogates.stacked import Stacked, folds_for
from mixopt.swarm import Points, Swarm

DEFAULT_SURROGATE = "auto"
LOSS_UNIT = "the metrics' own unit"
OUTLIER, MOST_OUTLIERS = 30.0, 5
"""In median absolute deviations: 20 standard deviations of a normal distribution."""
SEEDS = 1
"""Runs of each mixture that differences are judged for: a user trains the target once."""


@dataclass(frozen=True)
class FitResult:
    """What `fit` found.

    Attributes:
        runs: the runs fitted.
        config: what was asked for.
        domains, space: natural mixture, caps and bounds, and the feasible mixtures.
        surrogate: its name.
        several: whether it takes runs of several sizes and token counts together.
        prediction: the fitted surrogates with the objective on top.
        proposal: the answer.
        diagnostics: JSON values of `diagnostics.json`.
        notes: everything a reader should know, as sentences.
    """

    runs: Runs
    config: FitFile
    domains: DomainSet
    space: MixtureSpace
    surrogate: str
    several: bool
    prediction: Prediction
    proposal: Proposal
    diagnostics: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    fitted_on: Swarm = field(repr=False, default_factory=lambda: Swarm.empty(()))

    @property
    def natural_known(self) -> bool:
        """Whether the natural mixture follows from token counts; otherwise it is the uniform one."""
        return self.config.counted

    @property
    def natural_name(self) -> str:
        return "natural" if self.natural_known else "uniform"

    def asked(self, mixtures: Points | pl.DataFrame | Path) -> Asked:
        """Mixtures to predict, checked.

        Args:
            mixtures: points; or a table with an id column and weights per domain, and `size` and `tokens` where runs had several.

        Raises:
            DataError: they are not mixtures of the fitted domains, or are asked for where the surrogate cannot answer.
        """
        if isinstance(mixtures, Points):
            asked = Asked(mixtures, "", ())
        else:
            table: Table = read_table(mixtures) if isinstance(mixtures, Path) else table_of(mixtures, "The table of mixtures")
            asked = read_asked(table, self.runs, self.prediction.source)
        known = list(dict.fromkeys(self.fitted_on.points().sources))
        check_sources(asked.points, known, several=self.several)
        return asked

    def predict(self, mixtures: Points | pl.DataFrame | Path) -> pl.DataFrame:
        """`<metric>_mean` and `<metric>_std` of every metric, `objective_mean`, `objective_std`, behind the ids where the mixtures have them.

        Standard deviations are of noise-free values; the objective is relative to the natural mixture; maximized metrics have their own sign.

        Raises:
            DataError: as `asked`.
        """
        asked = self.asked(mixtures)
        found = predictions(self.prediction, self.runs, asked.points)
        return found.insert_column(0, pl.Series(asked.id_column, asked.ids)) if asked.id_column else found

    def write(self, folder: Path | str, mixtures: Points | pl.DataFrame | Path | None = None) -> list[Path]:
        """Writes proposal.yaml, diagnostics.json, report.html and, for `mixtures`, predictions.csv; all of them or none. Returns their paths."""
        from mixopt.fitting.outputs import write_outputs

        return write_outputs(self, Path(folder), None if mixtures is None else self.predict(mixtures))


def fit(
    swarm: Swarm | Runs, *, config: FitFile | None = None, surrogate: str | Surrogate | None = None, seed: int | None = None
) -> FitResult:
    """Fits measured runs and finds the best mixture.

    Args:
        swarm: a swarm whose metrics are losses, apart from those in `config.maximize`; or what `mixopt.fitting.runs.read_runs` read from tables.
        config: token counts, caps, bounds, objective; default: none of them, so that the natural mixture is the uniform one.
        surrogate: its name, or one of the user's own; default: that of `config`.
        seed: of everything that is drawn; default: that of `config`.

    Raises:
        DataError: fewer than 4 runs, or a metric that some run lacks.
        ConfigError: `config` names what the runs do not have.
        InfeasibleError: no mixture keeps the caps, bounds and floors; says which, and by how much.
    """
    config = config or FitFile()
    seed = config.seed if seed is None else seed
    runs = swarm if isinstance(swarm, Runs) else Runs.of(swarm, config.maximize)
    if len(runs.swarm) < MINIMUM_TRIALS:
        raise DataError(f"A fit needs at least {MINIMUM_TRIALS} runs, got {len(runs.swarm)}.", "Run more.")
    weights = config.weights(runs.swarm.metrics)
    domains = config.domain_set(runs)
    space = MixtureSpace.from_domains(domains)
    source = answer_at(runs.swarm, config)
    surrogate = surrogate or config.surrogate or DEFAULT_SURROGATE
    name = surrogate if isinstance(surrogate, str) else type(surrogate).__name__
    model = get_surrogate(surrogate, **_options(surrogate, config)) if isinstance(surrogate, str) else surrogate
    several = takes_several_sources(model)
    fitted_on, notes = _at_one_source(runs.swarm, name, source, several)
    settings = Settings(
        metrics=weights,
        objective_kind=config.objective.kind,
        seeds=SEEDS,
        pull=None if config.objective.pull == "auto" else config.objective.pull,
        seed=seed,
        floors=config.floors(runs),
        confidence=config.objective.confidence,
        loss_unit=LOSS_UNIT,
        source=source,
        sizes=dict(config.sizes),
        negated=runs.maximized,
    )
    study = Study.of(fitted_on, space, domains, model, settings)
    proposal = recommend(fitted_on, space, domains, model, settings, study)
    objective, measured, prediction = study.objective, study.measured, study.prediction
    notes = (*runs.notes, *_outlier_notes(fitted_on), *_prior_notes(config, runs), *notes, *_noise_notes(objective, config))
    diagnostics = _diagnostics(name, model, prediction, measured, objective, proposal, fitted_on, seed, notes)
    return FitResult(runs, config, domains, space, name, several, prediction, proposal, diagnostics, notes, fitted_on)


def _options(surrogate: str, config: FitFile) -> dict[str, Any]:
    return {"sizes": dict(config.sizes)} if config.sizes and takes_several_sources(get_surrogate(surrogate)) else {}


def _at_one_source(swarm: Swarm, name: str, source: Any, several: bool) -> tuple[Swarm, tuple[str, ...]]:
    """The runs that a surrogate is fitted on, and what to say of the others."""
    sources = list(dict.fromkeys(swarm.points().sources))
    if len(sources) == 1:
        return swarm, ()
    where = f"Runs are of {len(sources)} sizes and token counts; the answer is for {spoken(source)}"
    if several:
        return swarm, (f"{where}.",)
    there = swarm.at_source(source)
    if len(there) < MINIMUM_TRIALS:
        raise DataError(
            f"Surrogate '{name}' fits runs of one size and token count, and {len(there)} runs are at {spoken(source)}, where the answer is wanted.",
            f"Choose a surrogate over several sources, or another `target` in {WHAT}.",
        )
    return there, (
        f"{where}, and the surrogate {name} fits the {len(there)} runs there; the other {len(swarm) - len(there)} are not used.",
    )


def _outlier_notes(swarm: Swarm) -> list[str]:
    """Runs whose value of a metric is so far from all others at their source that a slip is likelier than a mixture."""
    notes = []
    for source in dict.fromkeys(swarm.points().sources):
        there = swarm.at_source(source)
        values = there.values(swarm.metrics)
        away = np.abs(values - np.median(values, axis=0))
        far = away > OUTLIER * np.maximum(np.median(away, axis=0), np.finfo(float).tiny)
        # Most values alike to the last digit say nothing of how far is far.
        far &= np.median(away, axis=0) > 0
        for row, column in zip(*np.nonzero(far), strict=True):
            notes.append(
                f"Run {there.trial_ids[row]} has {values[row, column]:.4g} of '{swarm.metrics[column]}', more than {OUTLIER:g} times as far from the "
                "median as half of the runs: look whether that is a slip."
            )
    return notes[:MOST_OUTLIERS] + ([f"{len(notes) - MOST_OUTLIERS} more such values."] if len(notes) > MOST_OUTLIERS else [])


def _prior_notes(config: FitFile, runs: Runs) -> list[str]:
    notes = []
    if not config.counted:
        notes.append(
            "No token counts were given, so the natural mixture is unknown and taken to be uniform: effects are differences to the uniform mixture, "
            "and nothing limits how often a domain is repeated."
        )
    elif config.budget_tokens is None:
        notes.append("No budget was given, so nothing limits how often a domain is repeated.")
    notes += [
        f"Domain '{name}' of {WHAT} has no weight in any run and takes no part; its tokens do not count into the natural mixture."
        for name in runs.left_out_domains
        if name in config.domains
    ]
    return notes


def _noise_notes(objective: Objective, config: FitFile) -> list[str]:
    notes = []
    if objective.noise_from == "surrogate":
        notes.append(
            "Too few mixtures were run more than once to measure the noise of a seed, so it is what the surrogate could not explain; "
            "three runs of each of two mixtures would measure it."
        )
    if objective.natural_from == "surrogate":
        notes.append(f"The {'natural' if config.counted else 'uniform'} mixture was not run, so its losses are predicted.")
    notes += [f"Metric '{metric}' does not count in the objective: it {why}." for metric, why in objective.screened.items()]
    return notes


def _diagnostics(
    name: str,
    model: Surrogate,
    prediction: Prediction,
    measured: Measured,
    objective: Objective,
    proposal: Proposal,
    fitted_on: Swarm,
    seed: int,
    notes: tuple[str, ...],
) -> dict[str, Any]:
    """The content of diagnostics.json."""
    there = measured.swarm
    source = there.points().sources[0]
    body: dict[str, Any] = {
        "surrogate": {"name": name, **_described(prediction)},
        "runs": len(fitted_on),
        "mixtures": int(mixture_groups(fitted_on).max()) + 1,
        "domains": len(fitted_on.domains),
        "judged_on": {
            "runs": len(there),
            **({} if source.size == UNKNOWN_SIZE else {"size": source.size}),
            **({"tokens": source.tokens} if source.tokens > 1 else {}),
        },
        "noise": {
            "from": objective.noise_from,
            "degrees_of_freedom": objective.degrees_of_freedom,
            "std": dict(zip(objective.metrics, objective.noise_std, strict=True)),
        },
    }
    if prediction.errors is None:
        body |= {"folds": 0, "not_judged": prediction.errors_missing, "objective": None, "metrics": {}}
    else:
        rows = prediction.rows_of(there.trial_ids)
        numbers = checked_folds(mixture_groups(fitted_on), _fold_count(model, len(fitted_on)), seed)
        errors = prediction.errors.rows(rows)
        stds = np.array([entry["std"] for entry in proposal.evidence["predicted"]])
        shares = there.points().averages()
        body |= {"folds": int(numbers.max()) + 1, **diagnose(errors, prediction.metrics, objective, stds, shares, numbers[rows])}
        body["metrics"] = {metric: body["metrics"][metric] for metric in sorted(body["metrics"])}
    return {**body, "meaning": {**MEANINGS, "baselines": BASELINES}, "notes": list(notes)}


def _fold_count(model: Surrogate, runs: int) -> int:
    """Folds that the surrogate's out-of-fold predictions were made with: a stack of few runs makes more of them than it is asked for."""
    return max(FOLDS, folds_for(runs)) if isinstance(model, Stacked) else FOLDS


def _described(prediction: Prediction) -> dict[str, Any]:
    """What the fitted surrogate says of itself: of a stack, which members it relies on and why."""
    said: dict[str, Any] = {}
    for fitted in (prediction.counted, prediction.others):
        whole = getattr(fitted, "whole", fitted)
        describe = getattr(whole, "describe", None)
        if describe is not None:
            found = dict(describe())
            metrics = {**said.get("metrics", {}), **found.get("metrics", {})}
            said = {**found, **said, **({"metrics": dict(sorted(metrics.items()))} if metrics else {})}
    return said
