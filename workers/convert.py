"""The one place that knows both vocabularies: trials and outcomes of mixopt, members and results of proxy_models.

mixopt speaks of named domains, sources and recipes, proxy_models of streams, shapes and steps; neither imports the other. What is passed to
training here is a function of the trial's identity alone: weights are rounded as identity rounds them, domains are keyed and ordered by
content, and domains without weight are left out, so that two searches with one trial id train the same proxy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixopt.balance import judged
from mixopt.code_version import code_version
from mixopt.components.config import EVALUATORS
from mixopt.cost import Shape
from mixopt.errors import ConfigError, DataError
from mixopt.proxy_config import AUXILIARY_LOSS, BeginningConfig
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Evaluation
from mixopt.trial import WEIGHT_DECIMALS, Failure, FailureKind, JsonValue, Measurement, Outcome, Trial
from proxy_models.config import DENSE, SIZES, ProxyConfig, default_learning_rate, proxy_config

if TYPE_CHECKING:
    # The trainer imports torch, which a driver that only plans does not need.
    from proxy_models.train import Beginning, EvaluationSpec, MemberFailure, MemberResult, MemberSpec, TrainSettings

CHECKPOINT_SECONDS = 20.0
"""Between checkpoints: the most that a lost process costs, while writing one takes some milliseconds."""


def recipe_for(proxy: ProxySettings, size: str, vocab_size: int) -> dict[str, JsonValue]:
    """Proxy and optimizer settings of a trial, as they enter its identity.

    Args:
        proxy: the `proxy` section of the experiment file; its learning rate, where given, is used as it is, whatever the size.

    Raises:
        ConfigError: the size is unknown.
    """
    if size not in SIZES:
        near = difflib.get_close_matches(size, SIZES, n=1)
        remedy = f"Did you mean '{near[0]}'?" if near else f"Known sizes: {', '.join(SIZES)}."
        raise ConfigError(f"Unknown proxy size '{size}'.", remedy)
    # `calibrated` is a word of the file, not a rate: whoever composes a search puts the number in its place.
    rate = proxy.learning_rate if isinstance(proxy.learning_rate, float) else default_learning_rate(size, proxy.parametrization)
    recipe: dict[str, JsonValue] = {
        "vocab_size": vocab_size,
        "window": proxy.window,
        "tokens_per_step": proxy.tokens_per_step,
        "learning_rate": rate,
        "schedule": proxy.schedule,
        "warmup_fraction": proxy.warmup_fraction,
        "decay_fraction": proxy.decay_fraction,
        "weight_decay": proxy.weight_decay,
        "clip": proxy.clip,
        **_balancing(proxy, size),
        **_beginning_recipe(proxy.beginning),
    }
    if proxy.parametrization != "standard":  # at its default it is left out, as in trials of before
        recipe["parametrization"] = proxy.parametrization
    return recipe


def _balancing(proxy: ProxySettings, size: str) -> dict[str, JsonValue]:
    """What of the balancing is not the default: all that enters an identity, so that trials from before it could be chosen stay what they are."""
    if size.endswith(DENSE):
        return {}
    recipe: dict[str, JsonValue] = {}
    if proxy.balancing in ("auxiliary_loss", "none"):
        recipe["bias_update_rate"] = 0.0
    if proxy.balancing in ("auxiliary_loss", "both"):
        recipe["auxiliary_loss"] = AUXILIARY_LOSS if proxy.auxiliary_loss is None else proxy.auxiliary_loss
    return recipe


def _beginning_recipe(beginning: BeginningConfig) -> dict[str, JsonValue]:
    """How the weights of a trial's inputs become its first weights; nothing from scratch, as in recipes from before there was a choice."""
    if beginning.kind == "scratch":
        return {}
    return {"beginning": {"kind": beginning.kind, **({"reinitialized": beginning.reinitialized} if beginning.kind == "upcycled" else {})}}


def proxy_of(trial: Trial) -> ProxyConfig:
    """The model that `trial` trains, or whose weights it averages.

    Raises:
        ConfigError: the trial is not of a proxy.
    """
    if trial.source.evaluator not in ("trained", *EVALUATORS):
        raise ConfigError(
            f"Trial {trial.trial_id} asks for the evaluator '{trial.source.evaluator}'.",
            "This runner trains, merges and ensembles proxies only.",
        )
    recipe = trial.recipe
    config = proxy_config(trial.source.size, int(recipe["vocab_size"]), str(recipe.get("parametrization", "standard")))
    return replace(
        config,
        bias_update_rate=float(recipe.get("bias_update_rate", config.bias_update_rate)),
        auxiliary_loss=float(recipe.get("auxiliary_loss", config.auxiliary_loss)),
        frozen_router=recipe.get("router") == "frozen",
    )


def settings_of(trial: Trial, checkpoint_seconds: float = CHECKPOINT_SECONDS) -> TrainSettings:
    """How `trial` is trained; equal for all members of a pack."""
    from proxy_models.train import TrainSettings

    recipe = trial.recipe
    return TrainSettings(
        tokens=trial.source.tokens,
        window=int(recipe["window"]),
        tokens_per_step=int(recipe["tokens_per_step"]),
        schedule=recipe["schedule"],
        warmup_fraction=float(recipe["warmup_fraction"]),
        decay_fraction=float(recipe["decay_fraction"]),
        weight_decay=float(recipe["weight_decay"]),
        clip=float(recipe["clip"]),
        checkpoint_seconds=checkpoint_seconds,
    )


def trained_tokens(trial: Trial) -> int:
    """Tokens that `trial` really trains on: whole steps, as `TrainSettings.steps` counts them."""
    step = int(trial.recipe["tokens_per_step"])
    return trial.source.tokens // step * step


def shape_of(trial: Trial) -> Shape:
    """What decides how fast `trial` trains."""
    recipe = trial.recipe
    return Shape(trial.source.size, int(recipe["vocab_size"]), int(recipe["window"]), int(recipe["tokens_per_step"]))


def used_domains(trial: Trial) -> dict[str, tuple[float, ...]]:
    """Content hash of every domain with weight -> its weight per phase, ordered by content hash; each phase sums to 1.

    Raises:
        DataError: two domains with weight hold the same text.
    """
    weights = trial.schedule.array().round(WEIGHT_DECIMALS)
    used: dict[str, tuple[float, ...]] = {}
    for index, domain in sorted(enumerate(trial.domains), key=lambda pair: pair[1].content_hash):
        shares = weights[:, index]
        if not shares.any():
            continue
        if domain.content_hash in used:
            raise DataError(f"Two domains of trial {trial.trial_id} hold the text of '{domain.name}'.", "Keep one of them.")
        used[domain.content_hash] = tuple(shares.tolist())
    totals = [sum(column) for column in zip(*used.values(), strict=True)]
    return {key: tuple(share / total for share, total in zip(shares, totals, strict=True)) for key, shares in used.items()}


def member_of(trial: Trial, files: Mapping[str, Path], parents: Mapping[str, Path] | None = None) -> MemberSpec:
    """What one member of a pack trains on.

    Args:
        files: content hash of a domain -> its token file.
        parents: id of a trial that this one begins with -> its weights.

    Raises:
        DataError: a domain with weight has no token file, or two hold the same text.
        ConfigError: the trial begins in a way that this version does not know.
    """
    from proxy_models.train import DomainStream, MemberSpec

    used = used_domains(trial)
    unique = {domain.content_hash: domain.unique_tokens for domain in trial.domains}
    names = {domain.content_hash: domain.name for domain in trial.domains}
    missing = [names[key] for key in used if key not in files]
    if missing:
        raise DataError(f"There are no prepared tokens for {', '.join(sorted(missing))}.", "Run `mixopt prepare FILE` again.")
    return MemberSpec(
        member_id=trial.trial_id,
        seed=trial.seed,
        learning_rate=float(trial.recipe["learning_rate"]),
        domains=tuple(DomainStream(key, Path(files[key]), unique[key]) for key in used),
        weights=tuple(zip(*used.values(), strict=True)),
        fractions=trial.schedule.fractions,
        beginning=_beginning_of(trial, parents or {}),
    )


def _beginning_of(trial: Trial, parents: Mapping[str, Path]) -> Beginning | None:
    from proxy_models.train import Beginning

    described = trial.recipe.get("beginning")
    if described is None and not trial.inputs:
        return None
    if described is None or len(trial.inputs) != 1 or described.get("kind") not in ("continued", "upcycled"):
        raise ConfigError(
            f"Trial {trial.trial_id} begins with {len(trial.inputs)} trials in a way that is not known here ({described}).",
            "Run it with the version of mixopt that asked for it.",
        )
    (parent,) = trial.inputs
    return Beginning(described["kind"], parent, Path(parents[parent]), float(described.get("reinitialized", 0.0)))


def evaluation_of(evaluation: Evaluation) -> EvaluationSpec:
    """A held-out set, without its name in the search.

    Raises:
        ConfigError: its kind is unknown.
    """
    from proxy_models.train import EvaluationSpec

    if evaluation.kind != "text" and evaluation.kind != "completion":
        raise ConfigError(f"Evaluation {evaluation.metric} is of kind '{evaluation.kind}'.", "It is 'text' or 'completion'.")
    return EvaluationSpec(
        key=evaluation.key,
        path=evaluation.path,
        kind="completion" if evaluation.kind == "completion" else "text",
        max_tokens=evaluation.max_tokens,
        curve_tokens=evaluation.curve_tokens,
        curve_key=evaluation.curve_key,
    )


def outcome_of(result: MemberResult) -> Outcome:
    """What a trained member measured."""
    return Outcome(
        trial_id=result.member_id,
        realized={key: tuple(shares) for key, shares in result.realized.items()},
        measurements=tuple(Measurement(*measurement) for measurement in result.measurements),
        tokens=result.tokens,
        flops=result.flops,
        seconds=result.seconds,
        diagnostics={**judged(result.diagnostics), "code_version": code_version()},
    )


def failure_of_member(failure: MemberFailure) -> Failure:
    """Why a member stopped while the rest of its pack went on."""
    kinds = {kind.value for kind in FailureKind}
    return Failure(FailureKind(failure.kind) if failure.kind in kinds else FailureKind.ERROR, failure.message, failure.tokens)


@dataclass(frozen=True)
class CostModel:
    """What a trial costs before it is run. FLOPs are counted, seconds are an estimate; memory is in `memory`.

    Attributes:
        flops_per_second: useful FLOPs that one slot sustains.
    """

    flops_per_second: float

    def flops(self, trial: Trial) -> float:
        """Training FLOPs: active experts, causal attention and logits, forward and backward; what the trial will report, exactly. None where components
        are averaged."""
        if trial.source.evaluator in EVALUATORS:
            return 0.0
        return trained_tokens(trial) * proxy_of(trial).training_flops_per_token(int(trial.recipe["window"]))

    def seconds(self, trial: Trial) -> float:
        """Wall time on one slot; a pack of K trials takes K times as long."""
        return self.flops(trial) / self.flops_per_second
