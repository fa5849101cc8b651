"""The controller protocol: weights that move while a model trains, decided from measured signals; and what all controllers share.

A run goes so, in any trainer:

    while trained < tokens:
        decision = controller.decision      # train decision.tokens on decision.mixture
        controller.observe(signals)         # measured after that; only those that controller.needs names

A decision of no tokens asks for signals at once. A method is a subclass of `Adaptive` with one function, `update`, from signals to the
weights that it wants; floor, caps, epoch limits, the largest step, the course of the run and the state are here. Inside, domains and
targets are in the order of their names, so that listing them otherwise changes no bit. The main trade-off: state is plain JSON (floats
keep every bit in it), which is large where a method remembers much.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from mixopt.controllers.course import Course
from mixopt.controllers.limits import Limits
from mixopt.controllers.signals import Signal, Signals, arrayed, listed
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.space import MixtureSpace

Mode = Literal["sample", "loss_weight"]
STATE_VERSION = 1
# A twentieth of an equal share (assumed): every domain is still heard of, and a controller that was wrong about one can come back.
# Published floors are .001/K (DoReMi), .05/K (dynamic mixing for MoE tuning), .01 (ADO).
FLOOR_OF_EQUAL = 0.05


class ControllerOptions(BaseModel):
    """What a controller lets one choose, with defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Every(ControllerOptions):
    every: float = Field(0.02, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")


@dataclass(frozen=True)
class Setup:
    """What every controller is given.

    Attributes:
        domains, targets: names. A target that bears a domain's name is that domain's held-out set.
        tokens: of the whole run.
        step_tokens: of one optimizer step; decisions last whole steps.
        prior: where weights start, and what methods without memory tilt; None: equal weights.
        target_weights: how much each target counts; others than those named count 0; None: all alike.
        floor: least weight of each domain; None: a twentieth of an equal share.
        cap: largest weight of each domain.
        available: tokens of domains that the run may use, repetitions counted; others are not limited.
        largest_step: total variation between two decisions at most.
        space: mixtures allowed at any time, in place of `cap` and `available`.
        seed: of everything random.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    tokens: int
    step_tokens: int = 1
    prior: Mixture | None = None
    target_weights: Mapping[str, float] | None = None
    floor: float | Mapping[str, float] | None = None
    cap: float | Mapping[str, float] = 1.0
    available: Mapping[str, float] = field(default_factory=dict)
    largest_step: float = 1.0
    space: MixtureSpace | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for what, names in (("domains", self.domains), ("targets", self.targets)):
            if len(set(names)) != len(names):
                raise ConfigError(f"Names of {what} repeat: {', '.join(names)}.", "Give each its own name.")
        if len(self.domains) < 2:
            raise ConfigError(f"A controller needs at least two domains, got {len(self.domains)}.", "Name them in `domains`.")
        if self.tokens < 1 or self.step_tokens < 1:
            raise ConfigError(f"`tokens` is {self.tokens} and `step_tokens` {self.step_tokens}.", "Both are at least 1.")
        if not 0 < self.largest_step <= 1:
            raise ConfigError(f"`largest_step` is {self.largest_step}.", "It is a total variation, above 0 and at most 1.")
        if self.space is not None and (self.cap != 1.0 or self.available):
            raise ConfigError(
                "A space is given, and `cap` or `available` too.", "Put bounds and `max_epochs` into the domains of the space."
            )
        for what, given in (("floor", self.floor), ("cap", self.cap), ("available", self.available)):
            values = given if isinstance(given, Mapping) else {} if given is None else {"": given}
            unknown = sorted(set(values) - set(self.domains) - {""})
            if unknown:
                raise ConfigError(f"`{what}` names the domain '{unknown[0]}'.", f"Domains: {', '.join(self.domains)}.")
            wrong = [value for value in values.values() if not (0 <= value < np.inf) or (what != "available" and value > 1)]
            if wrong:
                raise ConfigError(
                    f"`{what}` is {wrong[0]}.", "It is a count of tokens." if what == "available" else "It lies between 0 and 1."
                )
        weights = self.target_weights or {}
        unknown = sorted(set(weights) - set(self.targets))
        if unknown:
            raise ConfigError(f"`target_weights` names the target '{unknown[0]}'.", f"Targets: {', '.join(self.targets) or 'none'}.")
        if self.target_weights is not None and not (all(0 <= value < np.inf for value in weights.values()) and sum(weights.values()) > 0):
            raise ConfigError(f"`target_weights` are {dict(weights)}.", "They are at least 0, and one of them is above 0.")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Domains in the order of every array inside."""
        return tuple(sorted(self.domains))

    @cached_property
    def target_names(self) -> tuple[str, ...]:
        return tuple(sorted(self.targets))

    @cached_property
    def start(self) -> FloatArray:
        """The prior, shape (domains,)."""
        return np.full(len(self.names), 1 / len(self.names)) if self.prior is None else self.prior.array(self.names)

    @cached_property
    def targets_weighted(self) -> FloatArray:
        """Weights of targets, summing to 1, shape (targets,)."""
        given = dict.fromkeys(self.target_names, 1.0) if self.target_weights is None else self.target_weights
        weights = np.array([given.get(name, 0.0) for name in self.target_names], dtype=np.float64)
        return np.asarray(weights / max(weights.sum(), np.finfo(float).tiny))

    @cached_property
    def own(self) -> FloatArray:
        """Which target is which domain's own held-out set, 0 or 1, shape (targets, domains)."""
        return np.array([[float(target == name) for name in self.names] for target in self.target_names]).reshape(-1, len(self.names))

    @cached_property
    def limits(self) -> Limits:
        """The set of decisions. Raises InfeasibleError where there is none."""
        floor = FLOOR_OF_EQUAL / len(self.names) if self.floor is None else self.floor
        floors = self._each(floor, 0.0)
        if self.space is not None:
            return Limits.within(self.space, self.names, floors, self.tokens, self.largest_step)
        available = self._each(self.available, np.inf)
        caps = self._each(self.cap, 1.0)
        if self.floor is None:  # a default gives way; one that was asked for does not
            floors = np.minimum(floors, np.minimum(caps, available / self.tokens))
        return Limits(floors, caps, available, self.tokens, self.largest_step)

    def lasting(self, share: float) -> int:
        """Tokens of a share of the run, in whole steps and at least one."""
        return max(round(share * self.tokens / self.step_tokens), 1) * self.step_tokens

    def _each(self, given: float | Mapping[str, float], default: float) -> FloatArray:
        values = given if isinstance(given, Mapping) else dict.fromkeys(self.names, given)
        return np.array([values.get(name, default) for name in self.names], dtype=np.float64)


@dataclass(frozen=True)
class Decision:
    """What to train on until the next call.

    Attributes:
        mixture: shares of tokens.
        tokens: until signals are wanted again; 0: at once.
        mode: sample: windows are drawn by the mixture. loss_weight: they are drawn evenly, and losses are multiplied by `loss_factors`.
        probed: the domain that this decision leans on to learn its effect; empty where it is no probe.
        probes: mixtures whose influence the next signals shall hold; the trainer trains on none of them.
        even: in the mode loss_weight, what windows are drawn by: equal shares, as far as what is left of each domain allows.
    """

    mixture: Mixture
    tokens: int
    mode: Mode = "sample"
    probed: str = ""
    probes: tuple[Mixture, ...] = ()
    even: Mixture | None = None

    @property
    def sampling(self) -> Mixture:
        """What windows are drawn by."""
        return self.mixture if self.even is None else self.even

    def loss_factors(self, sampling: Mixture | None = None) -> dict[str, float]:
        """What losses are multiplied by where domains are drawn by `sampling`: weight over share, 1 on average over tokens.

        Args:
            sampling: None: the decision's own.

        Raises:
            DataError: a domain with weight is never drawn.
        """
        drawn = (self.sampling if sampling is None else sampling).as_dict()
        missing = [name for name, weight in self.mixture.as_dict().items() if weight > 0 and not drawn.get(name, 0.0) > 0]
        if missing:
            raise DataError(f"Domain '{missing[0]}' has weight and is never drawn.", "Sample every domain.")
        return {name: weight / drawn[name] if weight > 0 else 0.0 for name, weight in self.mixture.as_dict().items()}

    def to_json(self) -> dict[str, Any]:
        probes = [mixture.as_dict() for mixture in self.probes]
        return {
            "mixture": self.mixture.as_dict(),
            "tokens": self.tokens,
            "mode": self.mode,
            "probed": self.probed,
            "probes": probes,
            "sampling": self.sampling.as_dict(),
        }


class Controller(Protocol):
    """Moves weights while a model trains. The same signals in the same order give the same decisions."""

    @property
    def needs(self) -> frozenset[Signal]: ...
    @property
    def decision(self) -> Decision: ...
    def observe(self, signals: Signals) -> Decision: ...
    def final(self) -> Schedule: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


@dataclass(frozen=True, eq=False)
class Wanted:
    """Weights (domains,) that a method asks for; None: as they are.

    Attributes:
        tokens: until the next call; None: the usual interval.
        probes: rows of mixtures (probes, domains) whose influence it wants to be told.
    """

    weights: FloatArray | None = None
    tokens: int | None = None
    probed: str = ""
    probes: FloatArray | None = None


class Adaptive(ABC):
    """A controller but for `update`.

    Attributes:
        weights: last decision that was no probe, shape (domains,).
        memory: what the method remembers: arrays by name, and nothing else, so that the state is complete by construction.
    """

    name: ClassVar[str]
    options_type: ClassVar[type[ControllerOptions]] = Every

    def __init__(self, setup: Setup, options: ControllerOptions) -> None:
        self.setup, self.given = setup, options
        self._seen, self._calls = 0, 0
        self._used = np.zeros(len(setup.names))
        self._course = Course.empty(len(setup.names))
        self.weights = setup.limits.nearest(setup.start, self._used, 0)
        self.memory: dict[str, FloatArray] = self.begin()
        self._decision, self._now = self._decided(self.first())

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """Signals that `update` reads, and no others."""

    @abstractmethod
    def update(self, signals: Signals) -> Wanted:
        """What the method wants after these signals: the needed ones, in the order of names. Each of them may be NaN anywhere."""

    def begin(self) -> dict[str, FloatArray]:
        """The memory before anything was observed."""
        return {}

    def first(self) -> Wanted:
        """What is wanted before anything was observed."""
        return Wanted()

    @property
    def mode(self) -> Mode:
        return getattr(self.given, "mode", "sample")

    @property
    def interval(self) -> int:
        """Tokens between two calls."""
        return self.setup.lasting(getattr(self.given, "every", 1.0))

    @property
    def calls(self) -> int:
        """Calls of `observe` so far, this one included."""
        return self._calls

    @property
    def seen(self) -> int:
        """Tokens trained on so far."""
        return self._seen

    @property
    def trained_on(self) -> FloatArray:
        """Weights of the decision that the signals at hand come after, shape (domains,)."""
        return self._now

    @property
    def decision(self) -> Decision:
        """What to train on now."""
        return self._decision

    def nearest(self, weights: FloatArray) -> FloatArray:
        """The allowed weights nearest to some (domains,), now."""
        return self.setup.limits.nearest(weights, self._used, self._seen)

    def observe(self, signals: Signals) -> Decision:
        """The next decision.

        Raises:
            DataError: a needed signal is missing, names are others, or the run went backward.
        """
        missing = sorted(self.needs - set(signals.values))
        if missing:
            given = ", ".join(sorted(signals.values)) or "none"
            raise DataError(
                f"The controller '{self.name}' needs the signal '{missing[0]}'.", f"Measure it before each call; given: {given}."
            )
        if signals.tokens < self._seen:
            raise DataError(
                f"Signals after {signals.tokens} tokens came behind those after {self._seen}.", "Observe in the order of training."
            )
        ordered = signals.reordered(self.setup.names, self.setup.target_names)
        elapsed = ordered.tokens - self._seen
        self._course = self._course.then(self._now, elapsed)
        drawn = ordered.values.get(Signal.TRAIN_TOKENS)
        asked = elapsed * self._decision.sampling.array(self.setup.names)
        self._used = self._used + (asked if drawn is None or np.isnan(drawn).all() else np.nan_to_num(drawn, nan=0.0))
        self._seen, self._calls = ordered.tokens, self._calls + 1
        self._decision, self._now = self._decided(self.update(ordered.only(self.needs)))
        return self._decision

    def _decided(self, wanted: Wanted) -> tuple[Decision, FloatArray]:
        limits = self.setup.limits
        raw = self.weights if wanted.weights is None else wanted.weights
        assert np.all(np.isfinite(raw)), f"{self.name} gave weights {raw}: a mask was forgotten"
        if wanted.probed:
            weights = limits.nearest(raw, self._used, self._seen)
        else:
            weights = self.weights = limits.step(self.weights, raw, self._used, self._seen)
        tokens = self.interval if wanted.tokens is None else wanted.tokens
        probes = () if wanted.probes is None else tuple(self._mixture(row) for row in wanted.probes)
        even = None
        if self.mode == "loss_weight":
            even = self._mixture(limits.nearest(np.full(len(weights), 1 / len(weights)), self._used, self._seen))
        return Decision(self._mixture(weights), tokens, self.mode, wanted.probed, probes, even), weights

    def _mixture(self, weights: FloatArray) -> Mixture:
        return Mixture.from_array(self.setup.names, np.maximum(weights, 0.0)).reordered(self.setup.domains)

    def final(self) -> Schedule:
        """What the run was trained on, in at most 64 phases; the current mixture where nothing was."""
        if not self._course.tokens.sum() > 0:
            return Schedule.constant(self._mixture(self.weights))
        rows = self._course.drawn / self._course.tokens[:, None]
        shares = self._course.tokens / self._course.tokens.sum()
        return Schedule(tuple(self._mixture(row) for row in rows), tuple(shares.tolist()))

    def averaged(self) -> Schedule:
        """The average of the course as a schedule of one phase: what methods propose that are run for their mean."""
        return Schedule.constant(Adaptive.final(self).average())

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on beside setup and options; JSON, exact."""
        even = None if self._decision.even is None else self._decision.even.array(self.setup.names).tolist()
        return {
            "version": STATE_VERSION,
            "controller": self.name,
            "options": self.given.model_dump(mode="json"),
            "domains": list(self.setup.names),
            "targets": list(self.setup.target_names),
            "seen": self._seen,
            "calls": self._calls,
            "used": self._used.tolist(),
            "weights": self.weights.tolist(),
            "now": self._now.tolist(),
            "course": self._course.to_json(),
            "decision": {
                "tokens": self._decision.tokens,
                "probed": self._decision.probed,
                "probes": self._rows(self._decision.probes),
                "even": even,
            },
            "memory": {name: listed(values) for name, values in self.memory.items()},
        }

    def _rows(self, mixtures: Sequence[Mixture]) -> list[list[float]]:
        return [mixture.array(self.setup.names).tolist() for mixture in mixtures]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where `state_dict` was taken.

        Raises:
            DataError: it is of another version, controller, domains, targets or options.
        """
        expected = {
            "version": STATE_VERSION,
            "controller": self.name,
            "domains": list(self.setup.names),
            "targets": list(self.setup.target_names),
            "options": self.given.model_dump(mode="json"),
        }
        for key, value in expected.items():
            if state.get(key) != value:
                raise DataError(
                    f"The state's {key} is {state.get(key)!r}, and the controller's {value!r}.", "Restore into the same setting."
                )
        self._seen, self._calls = int(state["seen"]), int(state["calls"])
        self._used, self.weights, self._now = (np.array(state[key], dtype=np.float64) for key in ("used", "weights", "now"))
        self._course = Course.from_json(state["course"], len(self.setup.names))
        self.memory = {name: arrayed(values) for name, values in state["memory"].items()}
        stored = state["decision"]
        probes = tuple(self._mixture(np.array(row)) for row in stored["probes"])
        even = None if stored["even"] is None else self._mixture(np.array(stored["even"]))
        self._decision = Decision(self._mixture(self._now), stored["tokens"], self.mode, stored["probed"], probes, even)
