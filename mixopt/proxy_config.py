"""What an experiment file says of proxies: their size, how they are trained, and what they begin with."""

from __future__ import annotations

import math
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from mixopt.config_model import Count, Model, WholeCount, checked_mixture
from mixopt.constraints.rules import NamedMixture

Rate = Annotated[float | Literal["calibrated"] | None, BeforeValidator(lambda value: _check_rate(value))]


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
