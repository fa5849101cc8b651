"""Trials, their outcomes, and the identity that lets one search reuse what another trained.

A trial's id is the hash of everything that determines the trained weights, and of nothing else: no strategy, objective, target, path or
name. Two searches that would train the same proxy therefore share it. Domains enter by content hash, and domains of zero weight do not
enter at all, so that adding a domain to the corpus keeps every trial that did not use it.
"""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mixopt.errors import ConfigError
from mixopt.mixture import Schedule

JsonValue = Any
AVERAGED = "merge"
"""Among the diagnostics of an outcome: it is of an average of components; what is known of the merge."""

# Weights that differ by less cannot change which windows a run draws; rounding keeps identities stable under float noise.
WEIGHT_DECIMALS = 9


class TrialState(enum.StrEnum):
    """Where a trial stands.

    proposed --> running --> completed
        ^           |
        |           +-----> failed      (a crash; tried again)
        +-----------+          |
                               +------> abandoned   (diverged, or failed too often; never tried again)
    """

    PROPOSED = "proposed"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class Source:
    """Where an outcome comes from.

    Attributes:
        evaluator: "trained" (others: merged, ensemble, command).
        size: name of the proxy size, as `nano`.
        tokens: training tokens of the trial.
    """

    evaluator: str
    size: str
    tokens: int

    @property
    def key(self) -> str:
        return f"{self.evaluator}/{self.size}/{self.tokens}"


@dataclass(frozen=True)
class TrialDomain:
    """One training domain of a trial: its name in this search, its content, and how many unique tokens the trial may see."""

    name: str
    content_hash: str
    unique_tokens: int


@dataclass(frozen=True)
class Trial:
    """One schedule at one source with one seed. Build it with `TrialFactory.make`, which computes the id.

    Attributes:
        trial_id: content hash, 20 hexadecimal digits.
        recipe: proxy and optimizer settings, JSON values only (window, tokens_per_step, learning_rate, ...).
        domains: one per domain of the schedule, in its order.
        label: why the search asked for it (base, natural, uniform, unimax, corner, design, verify:...); not part of the identity.
        inputs: ids of the trials whose weights it begins with; none: it begins from scratch. What is made of them is in `recipe["beginning"]`:
            `kind` continued or upcycled, and `reinitialized`.
    """

    trial_id: str
    schedule: Schedule
    source: Source
    seed: int
    recipe: Mapping[str, JsonValue]
    domains: tuple[TrialDomain, ...]
    tokenizer_hash: str
    engine_version: str
    label: str = ""
    inputs: tuple[str, ...] = ()

    def spec(self) -> dict[str, JsonValue]:
        """Everything needed to rebuild this trial, as JSON values; `trial_from_spec` inverts it."""
        return {
            "trial_id": self.trial_id,
            "domains": [[domain.name, domain.content_hash, domain.unique_tokens] for domain in self.domains],
            "weights": self.schedule.array().tolist(),
            "fractions": list(self.schedule.fractions),
            "source": [self.source.evaluator, self.source.size, self.source.tokens],
            "seed": self.seed,
            "recipe": dict(self.recipe),
            "tokenizer_hash": self.tokenizer_hash,
            "engine_version": self.engine_version,
            "label": self.label,
            "inputs": list(self.inputs),
        }


def trial_from_spec(spec: Mapping[str, JsonValue]) -> Trial:
    """The trial that `Trial.spec` described."""
    from mixopt.mixture import Mixture

    domains = tuple(TrialDomain(name, content_hash, int(unique)) for name, content_hash, unique in spec["domains"])
    names = tuple(domain.name for domain in domains)
    schedule = Schedule(tuple(Mixture(names, tuple(row)) for row in spec["weights"]), tuple(spec["fractions"]))
    evaluator, size, tokens = spec["source"]
    return Trial(
        trial_id=spec["trial_id"],
        schedule=schedule,
        source=Source(evaluator, size, int(tokens)),
        seed=int(spec["seed"]),
        recipe=dict(spec["recipe"]),
        domains=domains,
        tokenizer_hash=spec["tokenizer_hash"],
        engine_version=spec["engine_version"],
        label=spec.get("label", ""),
        inputs=tuple(spec.get("inputs", ())),
    )


def content_digest(value: JsonValue) -> str:
    """Hash of a JSON value: 20 hexadecimal digits of SHA-256 over its canonical form (sorted keys, no spaces)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:20]


def trial_identity(
    schedule: Schedule,
    source: Source,
    seed: int,
    recipe: Mapping[str, JsonValue],
    domains: Sequence[TrialDomain],
    tokenizer_hash: str,
    engine_version: str,
    inputs: Sequence[str] = (),
) -> str:
    """Content hash of a trial; independent of names, of the order of domains and of domains without weight."""
    weights = schedule.array()
    used = sorted(
        [domain.content_hash, domain.unique_tokens, [round(float(w), WEIGHT_DECIMALS) for w in weights[:, index]]]
        for index, domain in enumerate(domains)
        if any(round(float(w), WEIGHT_DECIMALS) > 0 for w in weights[:, index])
    )
    return content_digest(
        {
            "domains": used,
            "fractions": [round(fraction, WEIGHT_DECIMALS) for fraction in schedule.fractions],
            "source": [source.evaluator, source.size, source.tokens],
            "seed": seed,
            "recipe": dict(recipe),
            "tokenizer": tokenizer_hash,
            "engine": engine_version,
            "inputs": sorted(inputs),
        }
    )


@dataclass(frozen=True)
class Measurement:
    """Loss of one trial on one evaluation set after `tokens` training tokens.

    Attributes:
        evaluation_key: content hash of the evaluation set and of the subset measured.
        loss_nats: mean nats per scored token.
        bits_per_byte: total bits of the scored tokens over the bytes of their text.
    """

    evaluation_key: str
    tokens: int
    loss_nats: float
    bits_per_byte: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.loss_nats) and math.isfinite(self.bits_per_byte)):
            raise ConfigError(
                f"Loss of evaluation {self.evaluation_key} is {self.loss_nats} nats.", "A diverged trial is a failure, not an outcome."
            )


@dataclass(frozen=True)
class Outcome:
    """What a finished trial measured.

    Attributes:
        realized: content hash of a domain -> share of tokens drawn, one per phase. What surrogates are fitted on.
        measurements: at several token counts; those with the largest count are the end point.
        tokens: training tokens seen.  flops: training FLOPs.  seconds: wall time of its pack divided by its members.
        diagnostics: JSON values for review (epochs per domain, gradient norm, expert load, memory).
    """

    trial_id: str
    realized: Mapping[str, tuple[float, ...]]
    measurements: tuple[Measurement, ...]
    tokens: int
    flops: float
    seconds: float
    diagnostics: Mapping[str, JsonValue] = field(default_factory=dict)

    @property
    def trained_tokens(self) -> int:
        """Tokens that were trained for it: none, where components were averaged."""
        return 0 if AVERAGED in self.diagnostics else self.tokens

    def to_json(self) -> dict[str, JsonValue]:
        return {
            "trial_id": self.trial_id,
            "realized": {key: list(shares) for key, shares in self.realized.items()},
            "measurements": [[m.evaluation_key, m.tokens, m.loss_nats, m.bits_per_byte] for m in self.measurements],
            "tokens": self.tokens,
            "flops": self.flops,
            "seconds": self.seconds,
            "diagnostics": dict(self.diagnostics),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, JsonValue]) -> Outcome:
        return cls(
            trial_id=value["trial_id"],
            realized={key: tuple(shares) for key, shares in value["realized"].items()},
            measurements=tuple(
                Measurement(key, int(tokens), float(nats), float(bits)) for key, tokens, nats, bits in value["measurements"]
            ),
            tokens=int(value["tokens"]),
            flops=float(value["flops"]),
            seconds=float(value["seconds"]),
            diagnostics=dict(value.get("diagnostics", {})),
        )


class FailureKind(enum.StrEnum):
    """Why a trial failed; `retryable` tells whether trying again can help.

    program: the user's own trainer ended with an error, or was told to have failed; time_limit: it took longer than it may.
    """

    DIVERGED = "diverged"
    WORKER_LOST = "worker_lost"
    OUT_OF_MEMORY = "out_of_memory"
    DATA = "data"
    ERROR = "error"
    PROGRAM = "program"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"

    @property
    def retryable(self) -> bool:
        return self not in (FailureKind.DIVERGED, FailureKind.DATA, FailureKind.ERROR)


@dataclass(frozen=True)
class Failure:
    """A trial that did not finish. `tokens` had been trained when it stopped."""

    kind: FailureKind
    message: str
    tokens: int = 0
