"""What an experiment file may say: frozen models of its sections, with every default and every check that needs no other file.

Sections of some size lie beside what they configure (`corpus.config`, `groups.config`, `answer.config`, `proxy_config` and others); this one joins them.
`experiment_file` reads YAML into them, and the resolved file is stored with the search. The main trade-off: every default is written in a model, once, so that the
schema documents the product.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, field_validator, model_validator

from mixopt.addresses import is_url, without_login
from mixopt.answer.config import ObjectiveConfig
from mixopt.answer.floors import resolve_floors
from mixopt.components.config import EVALUATOR_STRATEGIES, FEWEST_STEPS, HORIZON, ComponentsConfig, Evaluator
from mixopt.config_model import Count, Model, Name, WholeCount, unknown_domains
from mixopt.constraints.config import ConstraintsConfig
from mixopt.corpus.config import DomainConfig, TargetConfig, TokenizerConfig
from mixopt.errors import ConfigError
from mixopt.groups.config import GroupConfig
from mixopt.groups.rules import GroupRule, ancestors, check_rules
from mixopt.own_trainer.config import TrainerConfig, check_beside
from mixopt.proxy_config import ProxyConfig
from mixopt.warm_start.config import WarmStart

# Far more than any published swarm has; a slip of the finger would have commands think for hours before the first trial.
MOST_TRIALS = 10_000


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
    evaluators: tuple[Evaluator, ...] = Field(
        (),
        description="Proxies of no training of their own that may be asked, too: merged (an average of components' weights), ensemble (one of their "
        "tokens' probabilities). The budget is then the cost of `trials` trials of `proxy`, components and all. Default: merged, for the strategies "
        f"{' and '.join(EVALUATOR_STRATEGIES)}.",
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

    @model_validator(mode="before")
    @classmethod
    def _evaluators_have_what_they_need(cls, value: Any) -> Any:
        """Strategies of merged proxies have some, and several evaluators a surrogate that takes them, unless the file says otherwise."""
        if not isinstance(value, dict):
            return value
        if value.get("strategy") in EVALUATOR_STRATEGIES:
            value = {"evaluators": ("merged",), **value}
        if value.get("evaluators"):
            value = {"surrogate": "expert_ensemble", **value}
        return value

    @field_validator("evaluators")
    @classmethod
    def _each_once(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"one is named twice: {', '.join(value)}")
        return value


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
    components: ComponentsConfig = Field(ComponentsConfig(), description="What merged and ensembled proxies are made of.")
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
    def _components_have_a_base(self) -> Experiment:
        if self.search.evaluators:
            refuse_components(self, "`search.evaluators` are given")
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
            ("components.mixture", self.components.mixture),
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
    def component_tokens(self) -> int:
        """Training tokens of a component: as given, or the default share of the search's proxies', in whole steps."""
        step = self.proxy.tokens_per_step
        return self.components.tokens or step * max(round(HORIZON * self.proxy.tokens / step), FEWEST_STEPS)

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


def refuse_components(experiment: Experiment, why: str) -> None:
    """Whether an experiment can have components at all.

    Args:
        why: they are wanted, as the beginning of the message.

    Raises:
        ConfigError: its trials begin with no common base, components would train for too few steps, or beside a trainer of the user's own.
    """
    beginning, proxy, components = experiment.proxy.beginning, experiment.proxy, experiment.components
    if experiment.trainer is not None:
        raise ConfigError(f"{why}, and merged proxies are mixopt's own.", "Leave them out beside a `trainer`.")
    if beginning.kind != "continued":
        raise ConfigError(
            f"{why}, and trials begin {beginning.kind if beginning.kind == 'upcycled' else 'from scratch'}: components branch from a common base.",
            "Set `proxy.beginning: {kind: continued, base: {mixture: natural, tokens: ...}}`; the base is trained first.",
        )
    if components.tokens is not None and components.tokens < FEWEST_STEPS * proxy.tokens_per_step:
        raise ConfigError(
            f"`components.tokens` is {components.tokens}, fewer than {FEWEST_STEPS} steps of {proxy.tokens_per_step}.",
            "Raise it, or leave it out.",
        )


def json_schema() -> dict[str, Any]:
    """JSON schema of the experiment file."""
    return Experiment.model_json_schema()
