"""What goes into the training of a pack, and what comes out: plain values, so that a pack can be described in one process and trained in another."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSpec
from proxy_models.sampler import DomainStream

# The last part of the run, over which the experts' load is averaged: long enough for thousands of rows, short enough for one state of the router.
RECENT_SHARE = 1 / 10
MEASURED_AT = (1 / 8, 1 / 4, 1 / 2, 1)
"""Losses are measured after these shares of the run: geometric, because loss curves are close to power laws of tokens.

With the usual "wsd" schedule (warm-up over 5%, decay over the last 20%) all points before the end are at the full rate and lie on one curve; the end is
decayed, and lies below what they lead to. With "constant" all four lie on one curve. A decay that begins before half of the run reaches the third point."""


HASHED_DEFAULTS = frozenset(
    {
        *("rope_theta", "norm_eps", "bias_update_rate"),
        *("schedule", "warmup_fraction", "decay_fraction", "weight_decay", "clip", "checkpoint_seconds"),
    }
)
"""Fields of `ProxyConfig` and `TrainSettings` that enter a `spec_hash` at their default, too: those with one when the first checkpoints were kept."""


@dataclass(frozen=True)
class Beginning:
    """The finished run whose weights a member begins with; optimizer and schedule begin anew.

    Attributes:
        kind: "continued": its weights as they are; "upcycled": those of a dense control, made into experts (`upcycling.py`).
        parent: identity of that run: all that decides its weights. Enters the member's own.
        weights: its `weights.safetensors`; where they lie is not part of what is trained.
        reinitialized: share of every routed expert's hidden units that is drawn anew; upcycling only.

    Raises:
        ValueError: the kind is unknown, or a share is not between 0 and 1, or given where nothing is drawn.
    """

    kind: Literal["continued", "upcycled"]
    parent: str
    weights: Path
    reinitialized: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in ("continued", "upcycled"):
            raise ValueError(f"kind of beginning is '{self.kind}'; it is 'continued' or 'upcycled'.")
        if not 0 <= self.reinitialized <= (1 if self.kind == "upcycled" else 0):
            raise ValueError(f"reinitialized is {self.reinitialized}; it is between 0 and 1, and 0 unless upcycled.")

    def identity(self) -> list[str | float]:
        """What of it decides the member's weights, as JSON values."""
        return [self.kind, self.parent, self.reinitialized]


@dataclass(frozen=True)
class MemberSpec:
    """One proxy of a pack.

    Attributes:
        member_id: names it in results and progress; not part of what is trained.
        seed: of its initial weights and its data order. Where it begins with weights of another run: of its data order and of what is drawn anew.
        learning_rate: peak.
        domains: its training domains, distinct keys.
        weights: shape (phases, domains): shares of tokens, rows summing to 1.
        fractions: share of the run per phase.
        beginning: whose weights it begins with; None: initial weights of its seed.
    """

    member_id: str
    seed: int
    learning_rate: float
    domains: tuple[DomainStream, ...]
    weights: tuple[tuple[float, ...], ...]
    fractions: tuple[float, ...] = (1.0,)
    beginning: Beginning | None = None

    @property
    def data_seed(self) -> int:
        """Seed of the data order. With a beginning it depends on the parent, too: else a member would read the very windows, in the very
        order, that a parent of the same seed has read."""
        if self.beginning is None:
            return self.seed
        words = f"{self.seed} after {self.beginning.parent}"
        return int.from_bytes(hashlib.sha256(words.encode()).digest()[:7], "little")


@dataclass(frozen=True)
class TrainSettings:
    """What the members of a pack share.

    Attributes:
        tokens: training tokens per member; whole steps are trained, never more tokens than this.
        window: tokens per window.
        tokens_per_step: tokens per member and step, a multiple of `window`.
        schedule: of the learning rate, after linear warm-up. "constant"; or "wsd", which falls linearly over the last `decay_fraction` and would
            reach zero one step after the last (warm-up, stable, decay: MiniCPM, arXiv 2404.06395, section 4; linear to zero: arXiv 2405.18392).
        warmup_fraction, decay_fraction: shares of the steps.
        clip: largest gradient norm of a member.
        checkpoint_seconds: time between checkpoints; the only setting that does not change what is trained.

    Raises:
        ValueError: a setting is out of range.
    """

    tokens: int
    window: int
    tokens_per_step: int
    schedule: Literal["constant", "wsd"] = "wsd"
    warmup_fraction: float = 0.05
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    clip: float = 1.0
    checkpoint_seconds: float = 20.0

    def __post_init__(self) -> None:
        if self.window < 1 or self.tokens_per_step < self.window or self.tokens_per_step % self.window:
            raise ValueError(f"tokens_per_step is {self.tokens_per_step}; it must be a multiple of window, {self.window}.")
        if self.tokens < self.tokens_per_step:
            raise ValueError(f"tokens is {self.tokens}, less than one step of {self.tokens_per_step}.")
        if self.schedule not in ("constant", "wsd"):
            raise ValueError(f"schedule is '{self.schedule}'; it is 'constant' or 'wsd'.")
        for name in ("warmup_fraction", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")
        if not (self.weight_decay >= 0 and self.clip > 0 and self.checkpoint_seconds >= 0):
            raise ValueError(
                f"weight_decay {self.weight_decay}, clip {self.clip} or checkpoint_seconds {self.checkpoint_seconds} is negative."
            )

    @property
    def steps(self) -> int:
        return self.tokens // self.tokens_per_step

    @property
    def windows_per_step(self) -> int:
        return self.tokens_per_step // self.window

    @property
    def measured_steps(self) -> tuple[int, ...]:
        """After how many steps losses are measured; the last is the end."""
        return tuple(sorted({max(1, math.floor(self.steps * share)) for share in MEASURED_AT}))

    @property
    def recent_steps(self) -> int:
        """The last steps, over which the experts' load is counted."""
        return math.ceil(self.steps * RECENT_SHARE)

    def rate_scale(self, step: int) -> float:
        """What the peak rate is multiplied by in step `step`, counted from 0; between 0 (excluded) and 1."""
        warmup_steps = round(self.warmup_fraction * self.steps)
        scale = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        if self.schedule == "wsd":
            decay_steps = round(self.decay_fraction * self.steps)
            scale = min(scale, (self.steps - step) / (decay_steps + 1))
        return scale


@dataclass(frozen=True)
class MemberResult:
    """A member that finished.

    Attributes:
        realized: key of a domain -> share of the windows drawn, one per phase; prompts count as seen.
        measurements: (key of the evaluation, training tokens, loss in nats per token, bits per byte); the largest token count is the end.
        tokens: training tokens seen.
        flops: training FLOPs, as if every token were scored; measuring losses is not counted.
        seconds: wall time of the pack, measuring losses included, divided by the members it had at the time.
        diagnostics: JSON values: epochs per key; scored_tokens per key, on which the loss was taken, and padding_tokens, which fill windows of
            prompt/completion pairs and belong to none (what is left of `tokens` are prompts); gradient_norm median and max; expert_load least and
            largest share per layer in the last step; training_loss as (tokens, mean nats since the point before); steps; documents_per_window;
            compute: which library or path multiplied; balance, where there are routed experts: rows per layer and expert in the last step
            (last_step_rows) and over the last tenth of the steps (recent_rows, of recent_steps; fewer if an older version wrote the checkpoint it went on
            from), and of the finished member on the scored tokens of each held-out set (rows_by_set); entropy of the router's softmax per layer, mean
            over the tokens of these sets, 1 if undecided (no layers without sets); experts_per_token: rows of a token.
    """

    member_id: str
    realized: Mapping[str, tuple[float, ...]]
    measurements: tuple[tuple[str, int, float, float], ...]
    tokens: int
    flops: float
    seconds: float
    diagnostics: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> MemberResult:
        """Inverts `to_json`, also after a trip through JSON text."""
        realized = {key: tuple(shares) for key, shares in body["realized"].items()}
        measurements = tuple((key, tokens, nats, bits) for key, tokens, nats, bits in body["measurements"])
        return cls(**{**body, "realized": realized, "measurements": measurements})


@dataclass(frozen=True)
class MemberFailure:
    """A member that was given up, while others may go on. `tokens` had been trained by then.

    Attributes:
        kind: "diverged": its loss or gradient was not finite; the step that showed it was not taken. "error": `error` was raised by what it
            alone does, such as reading its data, or scoring and saving its weights.
    """

    member_id: str
    kind: Literal["diverged", "error"]
    message: str
    tokens: int
    error: Exception | None = field(default=None, compare=False)


@dataclass(frozen=True)
class MemberStopped:
    """A member that was asked to stop. If it had begun, it goes on from its checkpoint; `tokens` had been trained by then."""

    member_id: str
    tokens: int


MemberOutcome = MemberResult | MemberFailure | MemberStopped


def own_failure(member_id: str, error: Exception, tokens: int) -> MemberFailure:
    """The failure of a member that alone has run into `error`; what its frames hold is let go."""
    traceback.clear_frames(error.__traceback__)
    return MemberFailure(member_id, "error", f"{type(error).__name__}: {error}", tokens, error)


def about_memory(error: BaseException) -> bool:
    """Whether there was too little memory; torch's CPU allocator raises a plain RuntimeError."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def spec_hash(
    engine_version: str, config: ProxyConfig, settings: TrainSettings, member: MemberSpec, evaluations: Sequence[EvaluationSpec]
) -> str:
    """Hash of all that decides a member's weights and measurements: what a checkpoint must match to be gone on from. No paths, no names.

    Fields that came later are left out at their defaults, so that checkpoints of before still match.
    """
    shared = _settled(settings)
    del shared["checkpoint_seconds"]
    columns = zip(member.domains, zip(*member.weights, strict=True), strict=True)
    body = {
        "engine": engine_version,
        "config": _settled(config),
        "settings": shared,
        "seed": member.seed,
        "learning_rate": member.learning_rate,
        "domains": sorted([stream.key, stream.unique_tokens, *column] for stream, column in columns if any(column)),
        "fractions": member.fractions,
        "evaluations": [[spec.key, spec.kind, spec.max_tokens, spec.curve_tokens] for spec in evaluations],
        **({} if member.beginning is None else {"beginning": member.beginning.identity()}),
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _settled(value: ProxyConfig | TrainSettings) -> dict[str, Any]:
    """Its fields, without those at their default that came after `HASHED_DEFAULTS`."""
    later = [one for one in dataclasses.fields(value) if one.default is not dataclasses.MISSING and one.name not in HASHED_DEFAULTS]
    left_out = {one.name for one in later if getattr(value, one.name) == one.default}
    return {name: item for name, item in dataclasses.asdict(value).items() if name not in left_out}
