"""What an experiment file may say: frozen models of its sections, with every default and every check that needs no other file.

`experiment_file` reads YAML into them. The resolved file is stored with the search. The main trade-off: every default is written here, once, so
that the schema documents the product.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from mixopt.answer.floors import Floor, resolve_floors
from mixopt.config_model import Count, Model, Name, WholeCount, checked_mixture, unknown_domains
from mixopt.constraints.config import ConstraintsConfig
from mixopt.constraints.rules import NamedMixture
from mixopt.errors import ConfigError
from mixopt.groups.rules import GroupRule, ancestors, check_rules
from mixopt.own_trainer.config import TrainerConfig, check_beside
from mixopt.quantities import COUNT_THEM, parse_bytes, parse_token_count, parse_whole_bytes
from mixopt.warm_start.config import WarmStart

ByteCount = Annotated[float, BeforeValidator(parse_bytes), Field(gt=0, allow_inf_nan=False)]
WholeByteCount = Annotated[int, BeforeValidator(parse_whole_bytes), Field(gt=0, lt=2**53)]
Rate = Annotated[float | Literal["calibrated"] | None, BeforeValidator(lambda value: _check_rate(value))]
TokenCount = Annotated[float | Literal["count"] | None, BeforeValidator(parse_token_count)]


def _check_bounds(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError(f"{list(value)} must be two numbers with 0 <= least <= largest <= 1")
    return value


# Switch Transformers' weight (arXiv 2101.03961, section 2.2): large enough to balance, small enough to leave the loss alone.
AUXILIARY_LOSS = 0.01


def _check_rate(value: Any) -> Any:
    """Said in one sentence, instead of one per kind that it could be."""
    if value is None or value == "calibrated":
        return value
    try:
        rate = float(value)
    except (TypeError, ValueError):
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"{value!r} is no rate; write a number above 0, as 0.003, or `calibrated`")
    return rate


# Far more than any published swarm has; a slip of the finger would have commands think for hours before the first trial.
MOST_TRIALS = 10_000
Kind = Literal["text", "completion"]
Bounds = Annotated[tuple[float, float], AfterValidator(_check_bounds)]
Paths = Annotated[
    tuple[Annotated[str, AfterValidator(lambda value: _named(_without_secret(value)))], ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    Field(min_length=1),
]


class HubConfig(Model):
    """Documents from a data set of the Hugging Face hub, streamed. No code of the data set is ever run."""

    dataset: str = Field(min_length=1, description="Its id, as organization/name; or an absolute folder laid out as one.")
    config: str | None = Field(None, description="Its configuration, such as sample-10BT; default: the only one, or its default.")
    split: str = Field("train", min_length=1)
    revision: str | None = Field(
        None, description="Branch, tag or commit; default: the main branch. The commit found first is kept for this output."
    )


class DomainConfig(Model):
    """One training domain: where its documents are, and how many tokens of it the target corpus holds."""

    name: Name
    path: Paths | None = Field(
        None,
        description="Training documents: file, glob or URL (s3://, gs://, hf://, https://...) of json, jsonl, Parquet, Arrow or text, "
        "or a list of them; json and text also as .gz and .zst.",
    )
    hub: HubConfig | None = Field(None, description="Training documents from the Hugging Face hub, instead of `path`.")
    group: str = Field(
        "", description="Path of levels such as web, web/science or web/science/high; weights are shown per level, see `groups`."
    )
    text_column: str = Field("text", description="Column of files and data sets with rows that holds the document.")
    prompt_column: str | None = Field(
        None, description="With `completion_column`: fine-tuning data; prompts are seen, and only completions are trained on and scored."
    )
    completion_column: str | None = None
    valid: Paths | None = Field(None, description="Held-out documents; default: a share of the documents, split by hash.")
    held_out: float = Field(0.02, gt=0, lt=0.5, description="Share of documents held out when `valid` is not given.")
    max_documents: WholeCount | None = Field(None, description="Prepare the first so many documents only.")
    max_bytes: WholeByteCount | None = Field(None, description="Prepare the first documents only, up to so many bytes of text, as 2GB.")
    tokens: TokenCount = Field(
        None, description="Tokens of this domain in the target corpus, as 3e9 or 3B; `count`: the prepared training text is all there is."
    )
    bytes: ByteCount | None = Field(
        None, description="Instead of `tokens`: bytes of text (not compressed) in the target corpus, as 4.2TB; tokens are then estimated."
    )
    repeats: float = Field(1.0, ge=1, description="How many times the tokens hold every document, if the inventory repeats them already.")
    revision: str | None = Field(
        None, min_length=1, description="With `trainer`: which state of the documents this is; another one makes other trials."
    )
    max_epochs: float = Field(4.0, gt=0, description="How often the target run may repeat this domain's unique documents.")
    bounds: Bounds = Field((0.0, 1.0), description="Least and largest weight.")

    @model_validator(mode="after")
    def _source(self) -> DomainConfig:
        if self.path is not None and self.hub is not None:  # that one is given is the whole file's business: a trainer knows its own data
            raise ValueError(f"domain '{self.name}' has both path and hub; say where its documents are, with one of them")
        # `text` is the default, which resolved files write out.
        _one_kind(f"domain '{self.name}'", self.prompt_column, self.completion_column, self.text_column not in ("text", None))
        capped = self.max_documents is not None or self.max_bytes is not None
        if self.hub is not None and not capped:
            raise ValueError(f"domain '{self.name}' reads from the hub without a limit; add max_documents or max_bytes, as 2GB")
        if (self.tokens is None) == (self.bytes is None):
            found = "neither tokens nor bytes" if self.tokens is None else "both tokens and bytes"
            raise ValueError(f"domain '{self.name}' has {found}; say how much of it the target corpus holds, with one of them")
        if self.tokens == COUNT_THEM and capped:
            raise ValueError(
                f"domain '{self.name}' has tokens: count, which counts what is prepared, and a cap on that; give tokens or bytes instead"
            )
        return self

    @property
    def kind(self) -> Kind:
        return "completion" if self.prompt_column is not None else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The text column, or prompt and completion."""
        return _columns(self.prompt_column, self.completion_column, self.text_column)

    @field_validator("group")
    @classmethod
    def _path(cls, value: str) -> str:
        if value and not all(part.strip() for part in value.split("/")):
            raise ValueError("a level has no name; write levels as web/science/high, without a slash at either end")
        return value


class GroupConfig(Model):
    """Rules on a group of domains."""

    shares: Literal["natural"] | dict[str, float] | None = Field(
        None,
        description="The split inside the group, which is then searched as one unit: natural (by tokens), or a share for every child "
        "(sub-groups by their last level, and domains), summing to 1. Below, levels split by their own shares, or naturally.",
    )
    bounds: Bounds = Field((0.0, 1.0), description="Least and largest weight of the whole group.")

    @field_validator("shares", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        """Said in one sentence, instead of one per kind that it could be."""
        if value is None or value == "natural":
            return value
        if not isinstance(value, dict):
            raise ValueError("write `natural`, or a share for every child, as {high: 0.7, low: 0.3}")
        for child, share in value.items():
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise ValueError(f"the share of '{child}' is {share!r}; write a number, all of them sum to 1")
        return {str(child): float(share) for child, share in value.items()}


class TargetConfig(Model):
    """Held-out text, or prompts with completions, that the mixture should serve."""

    name: Name
    path: Paths | None = Field(None, description="Files, globs or URLs, as for domains.")
    hub: HubConfig | None = Field(None, description="Documents or pairs from the Hugging Face hub, instead of `path`.")
    max_documents: WholeCount | None = Field(None, description="Score the first so many documents or pairs only.")
    prompt_column: str | None = Field(None, description="With `completion_column`: only the completion is scored, after the prompt.")
    completion_column: str | None = None
    text_column: str | None = Field(None, description="For plain text targets.")
    weight: float = Field(1.0, gt=0, description="Weight in the objective.")

    @model_validator(mode="after")
    def _kind(self) -> TargetConfig:
        _one_source(f"target '{self.name}'", self.path, self.hub)
        _one_kind(f"target '{self.name}'", self.prompt_column, self.completion_column, self.text_column is not None)
        return self

    @property
    def kind(self) -> Kind:
        return "completion" if self.prompt_column is not None else "text"

    @property
    def columns(self) -> tuple[str, ...]:
        """The text column, or prompt and completion."""
        return _columns(self.prompt_column, self.completion_column, self.text_column or "text")


def _one_kind(owner: str, prompt: str | None, completion: str | None, names_text: bool) -> None:
    if (prompt is None) != (completion is None):
        raise ValueError(f"{owner} names only one of prompt_column and completion_column; name both")
    if prompt is not None and names_text:
        raise ValueError(f"{owner} names both text_column and prompt_column; choose one kind")


def _columns(prompt: str | None, completion: str | None, text: str) -> tuple[str, ...]:
    return (prompt, completion) if prompt is not None and completion is not None else (text,)


def _one_source(owner: str, path: tuple[str, ...] | None, hub: HubConfig | None) -> None:
    if (path is None) == (hub is None):
        found = "neither path nor hub" if path is None else "both path and hub"
        raise ValueError(f"{owner} has {found}; say where its documents are, with one of them")


class FloorConfig(Model):
    """No mixture may be worse than a baseline on a metric by more than so much."""

    metric: str = Field(
        min_length=1, description="A target or domain by its name, target/NAME, valid/NAME, or `all` that the objective counts."
    )
    baseline: Literal["natural", "uniform", "unimax", "best_measured"] | float = Field("natural", description="A mixture, or a loss.")
    by: Annotated[float | str, BeforeValidator(lambda value: _check_margin(value))] = Field(
        0.0, description="In the unit of losses, as 0.01, or in percent of the baseline's loss, as 1%."
    )

    @property
    def floor(self) -> Floor:
        percent = isinstance(self.by, str)
        return Floor(self.metric, self.baseline, float(str(self.by).removesuffix("%")), percent)


def _check_margin(value: Any) -> Any:
    """A number, or text as 1%; said in one sentence, instead of one per kind that it could be."""
    text = str(value).strip()
    try:
        number = float(text.removesuffix("%"))
    except ValueError:
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError(f"{value!r} is no margin; write a number, as 0.01, or percent, as 1%")
    return f"{number:g}%" if text.endswith("%") else number


class ObjectiveConfig(Model):
    """What is minimized: a function of losses in bits per byte."""

    kind: Literal["noise_scaled", "mean", "weighted", "worst_case", "z_scored"] = Field(
        "noise_scaled",
        description="noise_scaled: weighted mean of (loss - loss at the natural mixture) / seed noise; mean: weighted mean loss; "
        "weighted: the same, where every target states its weight; worst_case: largest noise-scaled difference; "
        "z_scored: weighted mean of (loss - loss at the natural mixture) / standard deviation over the mixtures.",
    )
    over: Literal["targets", "domains", "all"] | None = Field(
        None,
        description="Which losses count: targets, held-out text of the domains, or both. Default: targets if there are any, else domains.",
    )
    pull: Annotated[float | Literal["auto"], BeforeValidator(lambda value: _check_pull(value))] = Field(
        0.05,
        description="Weight of KL(mixture, natural), in standard deviations of the objective over the swarm; auto: chosen by cross-validation.",
    )
    floors: tuple[FloorConfig, ...] = Field((), description="Metrics that may not pay for the others.")
    confidence: float = Field(0.0, ge=0, description="Posterior standard deviations that predictions must keep from the floors.")


def _check_pull(value: Any) -> Any:
    """Said in one sentence, instead of one per kind that it could be."""
    if value == "auto":
        return value
    try:
        pull = float(value)
    except (TypeError, ValueError):
        pull = math.nan
    if isinstance(value, bool) or not (math.isfinite(pull) and pull >= 0):
        raise ValueError(f"{value!r} is no pull; write a number of at least 0, as 0.05, or `auto`")
    return pull


class TokenizerConfig(Model):
    """A byte-level BPE trained on the corpus, or one loaded from a file or the Hugging Face hub."""

    path: str | None = Field(None, description="A tokenizer.json; default: train one.")
    hub: str | None = Field(None, description="Repository of the Hugging Face hub with a tokenizer.json, instead of `path`.")
    revision: str | None = Field(None, description="Branch, tag or commit of `hub`; the commit found first is kept for this output.")
    vocab_size: int = Field(8192, ge=512, le=65536, description="Entries of the trained tokenizer; 4k to 8k is best for proxies.")
    sample_bytes: WholeCount = Field(40_000_000, description="Text used for training it, drawn evenly from the domains.")

    @model_validator(mode="after")
    def _one(self) -> TokenizerConfig:
        if self.path is not None and self.hub is not None:
            raise ValueError("both path and hub are given; choose one")
        if self.revision is not None and self.hub is None:
            raise ValueError("revision belongs to hub, which is not given")
        if self.path is not None and is_url(self.path):
            raise ValueError(f"path is the address {self.path}; name a file of this machine, or a repository under hub")
        return self


class BaseConfig(Model):
    """The run that trials begin with: one that is trained first, or a trial that the output folder holds already."""

    trial: str | None = Field(
        None,
        description="Id of a trial in the output folder, or its first 8 digits or more, as `mixopt show` prints them; nothing is trained then.",
    )
    mixture: NamedMixture | dict[str, float] = Field(
        "natural",
        description="What it is trained on: natural, uniform, unimax, or a weight for every domain (those left out: 0), summing to 1.",
    )
    tokens: WholeCount | None = Field(None, description="Its training tokens; default: `proxy.tokens`.")
    budget_tokens: Count | None = Field(
        None,
        description="Training tokens of the target's own first stage, which decide how often the base repeats documents. Default: in proportion, "
        "`budget_tokens` times the base's tokens over a trial's.",
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Seed of its initial weights and its data order.")
    learning_rate: float | None = Field(None, gt=0, description="Its peak rate, as `proxy.learning_rate` is a trial's; default: by size.")

    @field_validator("trial")
    @classmethod
    def _id(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch("[0-9a-f]{8,20}", value):
            raise ValueError("no id of a trial; write 8 to 20 of its digits, 0 to 9 and a to f, as `mixopt show` prints them")
        return value

    @field_validator("mixture", mode="before")
    @classmethod
    def _mixture(cls, value: Any) -> Any:
        """Said in one sentence, instead of one per kind that it could be."""
        return checked_mixture(value)


class BeginningConfig(Model):
    """What the trials of a search begin with. Optimizer, warm-up and schedule begin anew in every case."""

    kind: Literal["scratch", "continued", "upcycled"] = Field(
        "scratch",
        description="scratch: initial weights of a trial's seed; continued: the weights of `base` (continual pre-training); upcycled: those of a "
        "dense `base` of the same size, made into experts (Drop-Upcycling).",
    )
    base: BaseConfig = BaseConfig()
    reinitialized: float = Field(
        0.5, ge=0, le=1, description="upcycled: share of every routed expert's hidden units that a trial's seed draws anew."
    )

    @model_validator(mode="after")
    def _fits(self) -> BeginningConfig:
        if self.kind == "scratch" and self.base != BaseConfig():
            raise ValueError("trials from scratch have no base; name a kind, continued or upcycled, or leave `base` out")
        if self.kind != "upcycled" and self.reinitialized != type(self).model_fields["reinitialized"].default:
            raise ValueError("reinitialized belongs to kind: upcycled")
        if self.base.trial is not None and self.base != BaseConfig(trial=self.base.trial):
            raise ValueError("base names a trial that is trained, and how to train another; keep one of the two")
        return self


class ProxyConfig(Model):
    """The proxies of the search. What is not set follows from the size."""

    size: str = Field("nano", description="Size of the proxies; `mixopt proxies` lists them.")
    tokens: WholeCount = Field(1_000_000, description="Training tokens per trial.")
    seeds: int = Field(
        3, ge=2, description="Seeds at the natural and the uniform mixture, from which noise is measured (two at the corners)."
    )
    window: int = Field(512, ge=64, description="Tokens per window.")
    tokens_per_step: WholeCount = Field(1024, description="Tokens per optimizer step and trial.")
    learning_rate: Rate = Field(
        None,
        description="Peak rate of trials of `size`, in muP of the verification too; default: by size and parametrization. `calibrated`: what "
        "`mixopt calibrate FILE` recommended for each size that it swept; it has to be there before the search.",
    )
    parametrization: Literal["standard", "mup"] = Field(
        "standard",
        description="How initial weights and rates follow the size: standard, or mup (maximal update), where one rate serves every size.",
    )
    schedule: Literal["constant", "wsd"] = Field(
        "wsd", description="After warm-up: constant, or constant and a short linear decay at the end."
    )
    decay_fraction: float = Field(0.2, gt=0, lt=1, description="Share of the tokens spent decaying, for wsd.")
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    weight_decay: float = Field(0.1, ge=0)
    clip: float = Field(1.0, gt=0, description="Largest gradient norm, per trial.")
    beginning: BeginningConfig = Field(BeginningConfig(), description="What trials begin with; default: from scratch.")
    balancing: Literal["bias", "auxiliary_loss", "both", "none"] = Field(
        "bias",
        description="How the experts are kept in even use: bias: one that moves toward the experts that had too few tokens; auxiliary_loss: a "
        "loss over all tokens of a step, whose gradient alone enters training; both; none. Dense sizes have nothing to balance.",
    )
    auxiliary_loss: float | None = Field(
        None, gt=0, description=f"Weight of that loss, per layer, for `balancing: auxiliary_loss` or `both`; default: {AUXILIARY_LOSS:g}."
    )

    @model_validator(mode="after")
    def _weight_has_a_loss(self) -> ProxyConfig:
        if self.auxiliary_loss is not None and self.balancing not in ("auxiliary_loss", "both"):
            raise ValueError(
                f"auxiliary_loss is {self.auxiliary_loss:g}, but balancing is '{self.balancing}'; set `balancing: auxiliary_loss` or `both`, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _shapes(self) -> ProxyConfig:
        if self.tokens_per_step % self.window:
            raise ValueError(f"tokens_per_step {self.tokens_per_step} is not a multiple of window {self.window}")
        if self.tokens < 8 * self.tokens_per_step:
            raise ValueError(
                f"tokens {self.tokens} are fewer than 8 steps of {self.tokens_per_step}; raise tokens or lower tokens_per_step"
            )
        base = self.beginning.base.tokens
        if base is not None and base < 8 * self.tokens_per_step:
            raise ValueError(f"beginning.base.tokens {base} are fewer than 8 steps of {self.tokens_per_step}; raise it")
        return self


class SourceConfig(Model):
    """Proxies that a search may train beside those of `proxy`, because they are cheaper."""

    size: str = Field(description="Size of the proxies; `mixopt proxies` lists them.")
    tokens: WholeCount = Field(description="Training tokens per trial.")


class SearchConfig(Model):
    """How mixtures are proposed."""

    strategy: str = Field("regression", description="Name of a strategy; `mixopt list` names them.")
    surrogate: str = Field("gaussian_process", description="Name of a surrogate; `mixopt list` names them.")
    options: dict[str, Any] = Field({}, description="What the strategy lets one choose; `mixopt list --options` says what there is.")
    sources: tuple[SourceConfig, ...] = Field(
        (),
        description="Cheaper proxies that may be trained, too. The budget is then the cost of `trials` trials of `proxy`, where the answer is for.",
    )
    trials: int = Field(48, ge=4, le=MOST_TRIALS, description="Trials of the search; raising it later continues the search.")
    batch: int | None = Field(None, ge=1, description="Trials asked for at once; default: as many as can run.")
    seed: int = Field(0, ge=0, lt=2**31)
    max_attempts: int = Field(3, ge=1, description="How often a failed trial is tried before it is abandoned.")
    stop_early: bool = Field(
        False,
        description="End the search before all its trials once even perfect knowledge would bring less than the noise of its seeds; looked at "
        "after half, five eighths, three quarters and seven eighths of them.",
    )
    warm_start: WarmStart = Field(
        (),
        description="Earlier runs that count as evidence and not as trials: an output folder (its newest search), a search id, a table of runs; "
        "`mixopt reuse` writes such files.",
    )


class VerificationConfig(Model):
    """Proposal, best measured mixture and baselines, trained at a larger source."""

    enabled: bool = True
    size: str = Field("micro", description="Size of the proxies; `mixopt proxies` lists them.")
    tokens: WholeCount = Field(1_500_000, description="Training tokens per verification run.")
    seeds: int = Field(3, ge=2)
    evaluation_tokens: WholeCount | None = Field(None, description="Largest number of tokens scored per held-out set; default: all.")


class TrackingConfig(Model):
    """The MLflow mirror."""

    enabled: bool = True
    uri: str | None = Field(None, description="Tracking server or database; default: mlflow.db in the output directory.")
    experiment: str = "mixopt"


class RayConfig(Model):
    """Where trials run."""

    address: str | None = Field(None, description="None: a local cluster; auto or host:port: a running one; in-process: no Ray at all.")
    cpus: int | None = Field(None, ge=1, description="Cores of the local cluster; default: all.")
    pack_size: int | None = Field(None, ge=1, description="Trials trained together in one process; default: by size and device.")


class Experiment(Model):
    """A search: corpus, targets, budget, proxies, strategy, verification and where everything goes."""

    name: Name
    output: str = Field(description="Folder of tokens, record, proxies and results. Searches that share it share their trials.")
    budget_tokens: Count = Field(description="Training tokens of the target run, as 30e9 or 30B.")
    domains: tuple[DomainConfig, ...] = Field(min_length=2)
    levels: tuple[Name, ...] = Field((), description="Names of the levels of groups, outermost first, as source, topic, quality.")
    groups: dict[str, GroupConfig] = Field({}, description="Rules on groups, by path: a given split, bounds on the group's weight.")
    constraints: ConstraintsConfig = Field(ConstraintsConfig(), description="Limits on the mixture as a whole.")
    targets: tuple[TargetConfig, ...] = ()
    objective: ObjectiveConfig = ObjectiveConfig()
    tokenizer: TokenizerConfig = TokenizerConfig()
    proxy: ProxyConfig = ProxyConfig()
    search: SearchConfig = SearchConfig()
    verification: VerificationConfig = VerificationConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()
    trainer: TrainerConfig | None = Field(
        None,
        description="A trainer of your own instead of mixopt's proxies: a program that mixopt runs, or runs elsewhere, by ask and tell.",
    )

    @model_validator(mode="before")
    @classmethod
    def _trainer_verifies_when_asked(cls, value: Any) -> Any:
        """Beside a trainer of one's own, verification is off unless the file has its section, which trains `trainer.name` by itself."""
        trainer = value.get("trainer") if isinstance(value, dict) else None
        if not isinstance(trainer, dict):
            return value
        check = value.get("verification", {"enabled": False})
        if isinstance(check, dict) and "size" not in check and isinstance(trainer.get("name"), str):
            check = {**check, "size": trainer["name"]}
        return {**value, "verification": check}

    @field_validator("output")
    @classmethod
    def _folder(cls, value: str) -> str:
        if is_url(value):
            raise ValueError("an address; name a folder of a file system, which all workers share")
        if not value.strip():
            raise ValueError("no folder; name one, which will hold tokens, record and results")
        return value

    @model_validator(mode="after")
    def _distinct(self) -> Experiment:
        for kind, names in (("domain", [d.name for d in self.domains]), ("target", [t.name for t in self.targets])):
            repeated = sorted({name for name in names if names.count(name) > 1})
            if repeated:
                raise ValueError(f"{kind} names repeat: {', '.join(repeated)}")
        if self.trainer is None:
            for domain in self.domains:
                if domain.path is None and domain.hub is None:
                    raise ValueError(
                        f"`domains`: domain '{domain.name}' has neither path nor hub; say where its documents are, with one of them"
                    )
                if domain.revision is not None:
                    raise ValueError(
                        f"`domains`: domain '{domain.name}' has a revision, which belongs beside a `trainer`; one of hub data is `hub.revision`"
                    )
        else:
            check_beside(self.trainer, self)
        if self.objective.over == "targets" and not self.targets:
            raise ValueError("objective.over is 'targets' but no targets are listed; add targets or use 'domains'")
        return self

    @model_validator(mode="after")
    def _objective_fits(self) -> Experiment:
        """Weights where the objective is made of them, and floors on metrics that are measured."""
        silent = [target.name for target in self.targets if "weight" not in target.model_fields_set]
        if self.objective.kind == "weighted" and self.trainer is None and (self.objective_over == "domains" or silent):
            who = f"targets {', '.join(silent)} have none" if silent else "there are no targets that count"
            raise ValueError(f"objective.kind is 'weighted', which needs a weight of every target, and {who}; add `weight:`, or use 'mean'")
        resolve_floors([floor.floor for floor in self.objective.floors], self.metric_names, self.metric_names)
        return self

    @model_validator(mode="after")
    def _groups_fit(self) -> Experiment:
        for domain in self.domains:
            depth = len(ancestors(domain.group))
            if self.levels and depth > len(self.levels):
                raise ConfigError(
                    f"Group '{domain.group}' of domain '{domain.name}' has {depth} levels, but `levels` names {len(self.levels)}.",
                    "Name every level, or shorten the path.",
                )
        check_rules({domain.name: domain.group for domain in self.domains}, self.group_rules)
        return self

    @model_validator(mode="after")
    def _verification_trains(self) -> Experiment:
        """Found here, not after the search has been paid for."""
        check, step = self.verification, self.proxy.tokens_per_step
        if self.trainer is None and check.enabled and check.tokens < 8 * step:
            raise ValueError(
                f"`verification.tokens` is {check.tokens}, fewer than 8 steps of {step}; raise it, or set `verification.enabled: false`"
            )
        return self

    @model_validator(mode="after")
    def _mixtures_know_their_domains(self) -> Experiment:
        near = self.constraints.near
        for place, mixture in (
            ("proxy.beginning.base.mixture", self.proxy.beginning.base.mixture),
            ("constraints.near.mixture", near.mixture if near is not None else None),
        ):
            unknown_domains(f"`{place}`", mixture, [domain.name for domain in self.domains])
        return self

    @property
    def objective_over(self) -> Literal["targets", "domains", "all"]:
        return self.objective.over or ("targets" if self.targets else "domains")

    @property
    def metric_names(self) -> list[str]:
        """What a trial is scored on."""
        if self.trainer is not None:
            return [metric.name for metric in self.trainer.metrics]
        return [f"target/{target.name}" for target in self.targets] + [f"valid/{domain.name}" for domain in self.domains]

    @property
    def group_rules(self) -> tuple[GroupRule, ...]:
        """What `groups` says; groups without a rule are labels."""
        return tuple(
            GroupRule(path, tuple(group.shares.items()) if isinstance(group.shares, dict) else group.shares, group.bounds)
            for path, group in self.groups.items()
        )

    @property
    def output_dir(self) -> Path:
        return Path(self.output)

    def to_yaml(self) -> str:
        """The resolved file: absolute paths, every default written out, and no password, for it is kept and shown with the results."""
        resolved = self.model_dump(mode="json")
        if self.tracking.uri is not None:
            resolved["tracking"]["uri"] = without_login(self.tracking.uri)
        return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


def is_url(location: str) -> bool:
    """Whether a location is an address, as s3://bucket/file, and no path of this machine."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", location) is not None


def _without_secret(location: str) -> str:
    """Resolved files are kept and shown, so no password may be in one."""
    if is_url(location) and urlsplit(location).password is not None:
        raise ValueError(
            "a password in an address; leave it out and give credentials in the environment, as the file system's driver reads them"
        )
    return location


def _named(location: str) -> str:
    if not location.strip():
        raise ValueError("no path; name a file, a pattern or an address")
    return location


def without_login(address: str) -> str:
    """An address without user and password; MLflow takes them from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD as well."""
    parts = urlsplit(address)
    return address if "@" not in parts.netloc else parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def json_schema() -> dict[str, Any]:
    """JSON schema of the experiment file."""
    return Experiment.model_json_schema()
