"""What `mixopt fit --config FILE` may say, and what follows from it: domains at a budget, the objective, where the answer is wanted.

Everything has a default, because two tables are enough for an answer. What the file adds is what tables cannot hold: how many tokens there are, how
often they may be repeated, what counts. Names must be those of the tables; one that is not is an error that names the nearest. The main trade-off:
token counts are given for all domains or for none, since a natural mixture of some of them would be made up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mixopt.answer.config import FloorConfig
from mixopt.answer.floors import ALL, Floor
from mixopt.config_model import Count, Model, WholeCount, unknown_domains
from mixopt.constraints.config import ConstraintsConfig
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.fitting.runs import Runs
from mixopt.fitting.tables import nearest
from mixopt.groups.config import Bounds, GroupConfig
from mixopt.groups.rules import GroupRule
from mixopt.yaml_file import expand_variables, read_mapping, validate

DEFAULT_MAX_EPOCHS = 4.0
"""As in experiment files: repeats beyond four bring little (Muennighoff et al., arXiv 2305.16264)."""
WHAT = "the file of `--config`"
REMEDY = "Its sections are budget_tokens, domains, groups, constraints, objective, maximize, target, sizes, surrogate and seed; each may be left out."


def _text_keys(value: Any) -> Any:
    """YAML reads a bare 2024 as a number, and a domain may be called that."""
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else value


class FitDomain(Model):
    """What is known of one domain of the tables."""

    tokens: Count | None = Field(None, description="Tokens in the target corpus, as 3e9 or 3B; for all domains or for none.")
    max_epochs: float | None = Field(
        None, gt=0, description=f"How often the target run may repeat it; default {DEFAULT_MAX_EPOCHS:g} where tokens and budget are given."
    )
    repeats: float = Field(1.0, ge=1, description="How many times the tokens hold every document, if the inventory repeats them already.")
    bounds: Bounds = Field((0.0, 1.0), description="Least and largest weight.")
    group: str = Field("", description="Path of levels such as web/science; rules on groups are in `groups`.")


class FitObjective(Model):
    """What is minimized."""

    kind: Literal["noise_scaled", "mean", "weighted", "worst_case", "z_scored"] = Field(
        "noise_scaled",
        description="noise_scaled: weighted mean over metrics of (loss - loss at the natural mixture) / noise of a run; mean: weighted mean; weighted: "
        "the same, with weights stated; worst_case: largest noise-scaled difference; z_scored: weighted mean of (loss - loss at the natural mixture) / "
        "standard deviation over the mixtures.",
    )
    metrics: Annotated[
        dict[str, Annotated[float, Field(gt=0)]] | tuple[str, ...] | None, BeforeValidator(lambda value: _weights(value))
    ] = Field(None, description="Metrics that count, as a list or with weights, as {arxiv: 2, code: 1}; default: all, alike.")
    floors: tuple[FloorConfig, ...] = Field(
        (), description="Metrics that may not pay for the others; a loss as baseline of a maximized metric is in the metric's own sign."
    )
    confidence: float = Field(0.0, ge=0, description="Posterior standard deviations that predictions must keep from the floors.")
    pull: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto",
        description="Weight of KL(mixture, natural), in standard deviations of the objective over the runs; auto: chosen by cross-validation.",
    )

    @model_validator(mode="after")
    def _weights_are_stated(self) -> FitObjective:
        if self.kind == "weighted" and not isinstance(self.metrics, dict):
            raise ValueError("kind 'weighted' needs weights; write `metrics:` with them, as {arxiv: 2, code: 1}, or use 'mean'")
        return self


def _weights(value: Any) -> Any:
    """Said in one sentence, instead of one per kind that it could be."""
    if isinstance(value, list | tuple):
        names = [str(name) for name in value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"'{repeated[0]}' is listed twice")
        value = tuple(names)
    if value is not None and (not isinstance(value, dict | tuple) or not value):
        raise ValueError("write a list of metrics, or metrics with weights, as {arxiv: 2, code: 1}")
    return _text_keys(value)


class FitTarget(Model):
    """Where the answer is wanted, of runs of several sizes or token counts."""

    size: Annotated[str | None, BeforeValidator(lambda value: str(value) if isinstance(value, int | float) else value)] = Field(
        None, description="As in the column `size`; default: the largest."
    )
    tokens: WholeCount | None = Field(None, description="As in the column `tokens`; default: the most that were measured at that size.")


class FitFile(Model):
    """What tables of runs cannot say."""

    budget_tokens: Count | None = Field(None, description="Training tokens of the target run, as 30e9 or 30B; needs tokens of the domains.")
    domains: Annotated[dict[str, FitDomain], BeforeValidator(_text_keys)] = Field({}, description="By name, as in the table of mixtures.")
    groups: dict[str, GroupConfig] = Field({}, description="Rules on groups, by path: a given split, bounds on the group's weight.")
    constraints: ConstraintsConfig = Field(ConstraintsConfig(), description="Limits on the mixture as a whole.")
    objective: FitObjective = FitObjective()
    maximize: tuple[str, ...] = Field((), description="Metrics of which more is better, beside those of `--maximize`.")
    target: FitTarget | None = None
    sizes: Annotated[dict[str, Count], BeforeValidator(_text_keys)] = Field(
        {}, description="Parameters of sizes whose name does not say them, as {nano: 3M}."
    )
    surrogate: str | None = Field(None, description="Name of a surrogate; `mixopt list` names them.")
    seed: int = Field(0, ge=0, lt=2**31, description="Of everything that is drawn.")

    @field_validator("domains", mode="before")
    @classmethod
    def _empty_entries(cls, value: Any) -> Any:
        """`web:` with nothing behind it is a domain of which nothing is said."""
        return {key: {} if item is None else item for key, item in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _counts_belong_together(self) -> FitFile:
        counted = [name for name, domain in self.domains.items() if domain.tokens is not None]
        if self.budget_tokens is not None and not counted:
            raise ValueError("`budget_tokens` needs the tokens of the domains; give them, or leave it out")
        for name, domain in self.domains.items():
            if domain.max_epochs is not None and (domain.tokens is None or self.budget_tokens is None):
                raise ValueError(
                    f"`max_epochs` of domain '{name}' needs its tokens and budget_tokens; give both, or cap its weight by bounds"
                )
            if counted and domain.tokens is None:
                raise ValueError(f"domain '{name}' has no tokens, but '{counted[0]}' has; give them for all domains or for none")
        near = self.constraints.near
        if near is not None and near.mixture == "natural" and not counted:
            raise ValueError(
                "`constraints.near.mixture` is natural, which needs the tokens of the domains; give them, or weights by domain"
            )
        if near is not None and near.mixture == "unimax" and self.budget_tokens is None:
            raise ValueError(
                "`constraints.near.mixture` is unimax, which needs tokens of the domains and budget_tokens; give both, or weights"
            )
        return self

    @property
    def counted(self) -> bool:
        """Whether the natural mixture is known."""
        return any(domain.tokens is not None for domain in self.domains.values())

    def domain_set(self, runs: Runs) -> DomainSet:
        """The domains of the runs at the budget.

        Without token counts the natural mixture is not known: all domains count alike, and nothing caps their epochs.

        Raises:
            ConfigError: the file names a domain that the runs do not have, lacks one whose tokens are needed, or a rule on groups does not fit.
        """
        names = runs.swarm.domains
        for name in self.domains:
            if name not in names and name not in runs.left_out_domains:
                raise ConfigError(f"`domains` of {WHAT} names '{name}', which is no domain of the table.", nearest(name, names))
        lacking = [name for name in names if self.counted and name not in self.domains]
        if lacking:
            raise ConfigError(
                f"`domains` of {WHAT} gives tokens, but not of {', '.join(lacking)}.",
                "Give them for all domains of the table, or for none.",
            )
        rules = tuple(
            GroupRule(path, tuple(group.shares.items()) if isinstance(group.shares, dict) else group.shares, group.bounds)
            for path, group in self.groups.items()
        )
        if self.constraints.near is not None:
            unknown_domains(f"`constraints.near.mixture` of {WHAT}", self.constraints.near.mixture, names)
        made = tuple(self._domain(name) for name in names)
        return DomainSet(made, self.budget_tokens or float(len(names)), rules, self.constraints.constraints)

    def _domain(self, name: str) -> Domain:
        said = self.domains.get(name, FitDomain())
        capped = self.budget_tokens is not None
        return Domain(
            name=name,
            content_hash="",
            prepared_tokens=0,
            target_tokens=said.tokens or 1.0,
            group=said.group,
            max_epochs=(said.max_epochs or DEFAULT_MAX_EPOCHS) if capped else math.inf,
            bounds=said.bounds,
            repeats=said.repeats,
        )

    def weights(self, metrics: Sequence[str]) -> dict[str, float]:
        """Metric -> weight in the objective, in the order of `metrics`.

        Raises:
            ConfigError: the file counts a metric that is not among them.
        """
        counted = self.objective.metrics
        if counted is None:
            return dict.fromkeys(metrics, 1.0)
        for name in counted:
            if name not in metrics:
                raise ConfigError(f"`objective.metrics` of {WHAT} names '{name}', which is no metric of the runs.", nearest(name, metrics))
        weights = counted if isinstance(counted, dict) else dict.fromkeys(counted, 1.0)
        return {metric: weights[metric] for metric in metrics if metric in weights}

    def floors(self, runs: Runs) -> tuple[Floor, ...]:
        """The floors over the metrics of the runs, as losses.

        Raises:
            ConfigError: a floor names a metric that the runs do not have.
        """
        found = []
        for floor in (config.floor for config in self.objective.floors):
            if floor.metric not in (*runs.swarm.metrics, ALL):
                message = f"`objective.floors` of {WHAT} names '{floor.metric}', which is no metric of the runs."
                raise ConfigError(message, nearest(floor.metric, runs.swarm.metrics))
            if isinstance(floor.baseline, str):
                found.append(floor)
                continue
            # A number is in the metric's own sign, so that `all` is spelled out here.
            names = tuple(self.weights(runs.swarm.metrics)) if floor.metric == ALL and ALL not in runs.swarm.metrics else (floor.metric,)
            found += [replace(floor, metric=name, baseline=runs.sign(name) * floor.baseline) for name in names]
        return tuple(found)


def load_fit_file(path: Path) -> FitFile:
    """Reads the file of `--config`.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong, or an environment variable is not set.
    """
    return parse_fit_file(read_mapping(path, "Fit file", f"Name a YAML file. {REMEDY}"))


def parse_fit_file(raw: dict[str, Any]) -> FitFile:
    """Validates the content of such a file."""
    return validate(FitFile, expand_variables(raw, WHAT), WHAT, REMEDY)
