"""The section `trainer` of an experiment file: a trainer of the user's own instead of mixopt's proxies.

Two kinds: `command`, a program that mixopt runs, one trial a time or many at once; and `elsewhere`, where trials are written down by `mixopt ask`
and outcomes are read by `mixopt tell`. mixopt then knows nothing of documents and tokenizers: domains are names with token counts. The main
trade-off: what a trial depends on beside its mixture is known by the trainer only, so it is stated, as `name` and `version`.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mixopt.config_model import Count, Model, Name, Seconds, WholeCount
from mixopt.errors import ConfigError
from mixopt.quantities import COUNT_THEM

if TYPE_CHECKING:
    from mixopt.config import Experiment

PLACEHOLDERS = ("python", "request", "result", "folder")
"""What `{...}` in an argument of the command may be: this Python, the request's file, the result's file, the trial's own folder."""
ID_COLUMN = "trial_id"
ASKED_COLUMNS = (ID_COLUMN, "label", "seed", "source", "tokens", "phase", "fraction", "folder")
"""Columns of a table of trials beside the domains."""
TOLD_COLUMNS = ("status", "reason", "flops", "seconds")
"""Columns of a table of outcomes beside the metrics."""
# Names that results already use for the objective; see `mixopt.verification`.
TAKEN_NAMES = ("objective", "bits_per_byte")


def _argument(value: Any) -> Any:
    """YAML reads a bare 100 as a number; arguments are text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _arguments(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError("one text, and there is no shell to take it apart; write a list, as [python, train.py, '{request}', '{result}']")
    return [_argument(item) for item in value] if isinstance(value, list | tuple) else value


def _known_placeholders(value: tuple[str, ...] | None) -> tuple[str, ...] | None:
    for argument in value or ():
        for name in re.findall(r"\{([A-Za-z_]+)\}", argument):
            if name not in PLACEHOLDERS:
                nearest = difflib.get_close_matches(name, PLACEHOLDERS, n=1, cutoff=0.0)[0]
                raise ValueError(f"'{{{name}}}' stands for nothing; did you mean '{{{nearest}}}'? There are {', '.join(PLACEHOLDERS)}")
    return value


class MetricConfig(Model):
    """One number that the trainer reports."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,99}$", description="As the trainer calls it, such as target/gsm8k.")
    weight: float = Field(1.0, ge=0, description="Weight in the objective; 0: predicted and reported, but does not count.")
    maximize: bool = Field(False, description="More of it is better, as of an accuracy; it is stored negated.")


class TrainerConfig(Model):
    """A trainer of your own. What it needs to know of a trial is in `request.json`: mixture, seed, tokens."""

    kind: Literal["command", "elsewhere"] = Field(
        description="command: a program that mixopt runs for every trial; elsewhere: you run trials, by `mixopt ask` and `mixopt tell`."
    )
    name: Name = Field(description="What trains, as olmo-30m; with `version` all that tells its trials from those of another trainer.")
    tokens: WholeCount = Field(description="Training tokens per trial.")
    metrics: tuple[MetricConfig, ...] = Field(
        min_length=1, description="What every trial reports: names, or {name, weight, maximize}. Lower is better unless `maximize: true`."
    )
    version: str = Field("1", min_length=1, description="State of the trainer: change it when the same trial would come out otherwise.")
    unit: str = Field("the metric's own unit", min_length=1, description="Unit of the metrics, for sentences, as nats per token.")
    flops: Count | None = Field(None, description="Training FLOPs of a trial, where results do not say it; only for reports.")
    command: Annotated[tuple[str, ...] | None, BeforeValidator(_arguments), AfterValidator(_known_placeholders)] = Field(
        None,
        description="Program and arguments, no shell. {request}, {result}: the two JSON files; {folder}: the trial's own folder; {python}: the "
        "Python that runs mixopt.",
    )
    folder: str | None = Field(None, description="Where the program runs; default: the folder of the experiment file.")
    time_limit: Seconds | None = Field(
        None, description="Longest time of one run, as 90s, 30m or 2h; then it is ended, with all its children."
    )
    cpus: int = Field(1, ge=1, description="Cores that a trial takes.")
    gpus: float = Field(0.0, ge=0, description="GPUs that a trial takes; a share, as 0.5, lets trials share one.")

    @field_validator("metrics", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [{"name": item} if isinstance(item, str) else item for item in value] if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _fits(self) -> TrainerConfig:
        names = [metric.name for metric in self.metrics]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise ValueError(f"metric names repeat: {', '.join(repeated)}")
        taken = [name for name in names if name in (*TAKEN_NAMES, *ASKED_COLUMNS, *TOLD_COLUMNS)]
        if taken:
            raise ValueError(
                f"a metric is called '{taken[0]}', which means something else in tables of trials and results; call it otherwise"
            )
        if not any(metric.weight for metric in self.metrics):
            raise ValueError("no metric has a weight above 0, so nothing would be searched for")
        if self.kind == "command" and not self.command:
            raise ValueError("kind: command needs `command`, as ['{python}', train.py, '{request}', '{result}']")
        if self.kind == "elsewhere":
            given = [name for name in ("command", "folder", "time_limit") if getattr(self, name) is not None]
            if given:
                raise ValueError(f"{given[0]} belongs to kind: command; trials elsewhere are yours to run")
        return self

    @property
    def weights(self) -> dict[str, float]:
        """Metric -> weight in the objective, of those that count."""
        return {metric.name: metric.weight for metric in self.metrics if metric.weight > 0}

    @property
    def maximized(self) -> frozenset[str]:
        """Metrics that are stored negated."""
        return frozenset(metric.name for metric in self.metrics if metric.maximize)


def check_beside(trainer: TrainerConfig, experiment: Experiment) -> None:
    """That the rest of the file says nothing which a trainer of one's own would silently ignore.

    Raises:
        ConfigError: it does, or lacks what is needed.
    """
    own = "A `trainer` of your own brings its own data, tokenizer and evaluation"
    plain = {name: type(experiment).model_fields[name].default for name in ("targets", "tokenizer")}
    for section, default in plain.items():
        if getattr(experiment, section) != default:
            remedy = "List what it measures under `trainer.metrics`." if section == "targets" else "Leave it out."
            raise ConfigError(f"{own}; `{section}` is for mixopt's proxies.", remedy)
    if experiment.proxy != type(experiment.proxy)(seeds=experiment.proxy.seeds):
        raise ConfigError(f"{own}; of `proxy`, which describes mixopt's proxies, only `seeds` counts.", "Leave the rest out.")
    if experiment.search.sources:
        raise ConfigError("`search.sources` are sizes of mixopt's proxies, and there is a `trainer`.", "Leave them out.")
    if experiment.search.warm_start:
        raise ConfigError(
            "`search.warm_start` reads runs of mixopt's proxies, and there is a `trainer`.",
            "Leave it out. Trials of the same trainer in the same `output` are found by themselves, and `mixopt fit` fits tables of others.",
        )
    if experiment.ray.pack_size is not None:
        raise ConfigError(
            "`ray.pack_size` is how many of mixopt's proxies train together.", "Leave it out; a trial takes `trainer.cpus` cores."
        )
    if experiment.objective.over is not None:
        raise ConfigError(
            "`objective.over` chooses among losses of mixopt's proxies, and there is a `trainer`.",
            "Weigh its metrics under `trainer.metrics`.",
        )
    if experiment.objective.kind == "weighted":
        silent = [metric.name for metric in trainer.metrics if "weight" not in metric.model_fields_set]
        if silent:
            raise ConfigError(
                f"objective.kind is 'weighted', which needs a weight of every metric, and {', '.join(silent)} have none.",
                "Write {name: ..., weight: ...} under `trainer.metrics`, or use 'mean'.",
            )
    _check_domains(trainer, experiment)
    _check_verification(trainer, experiment)


def _check_domains(trainer: TrainerConfig, experiment: Experiment) -> None:
    metrics = {metric.name for metric in trainer.metrics}
    for domain in experiment.domains:
        if domain.tokens == COUNT_THEM:
            raise ConfigError(
                f"Domain '{domain.name}' has tokens: count, but beside a `trainer` mixopt reads no documents.", "Give its tokens, as 3B."
            )
        if domain.name in metrics or domain.name in (*ASKED_COLUMNS, *TOLD_COLUMNS):
            what = "a metric" if domain.name in metrics else "a column of tables of trials and results"
            raise ConfigError(f"Domain '{domain.name}' is called like {what}.", "Call one of them otherwise.")


def _check_verification(trainer: TrainerConfig, experiment: Experiment) -> None:
    check = experiment.verification
    if not check.enabled:
        return
    if trainer.kind == "elsewhere":
        raise ConfigError(
            "`verification` is on, but trials of kind: elsewhere are yours to run.",
            "Leave the section out, and train the proposal and the natural mixture with several seeds yourself.",
        )
    if (check.size, check.tokens) == (trainer.name, trainer.tokens):
        raise ConfigError(
            f"`verification` runs the trials of the search ({check.size}, {check.tokens:,} tokens).",
            "Give it more tokens, or another size, which the program finds in its request.",
        )
