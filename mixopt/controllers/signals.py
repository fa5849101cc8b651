"""What a controller is told: one array per signal, over named domains and targets, NaN where nothing was measured.

NaN is the mask. A domain that was not in a batch has no loss and no gradient; a zero in its place would be read as "nothing to learn" or
"no effect", and moves weights for no reason (three of the published codes do so). NaN cannot be taken for a value: a controller that
forgets the mask poisons its own weights, and its contract test. Signals are recorded as JSON, in which NaN is null, and can be replayed
into any controller.

Axes: D domains, T targets, P probes (mixtures asked for in the decision before), L layers, E experts. A target is any named held-out set;
one that bears a domain's name is that domain's own.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np

from mixopt.errors import DataError
from mixopt.mixture import FloatArray


class Signal(StrEnum):
    """What a trainer can measure. It computes what a controller's `needs` names, and nothing else. Losses are in nats per token."""

    TRAIN_LOSS = "train_loss"
    """(D,) mean training loss since the last call."""
    TRAIN_TOKENS = "train_tokens"
    """(D,) tokens drawn since the last call. Never needed; where it is given, epoch limits count it in place of the weights asked for."""
    VALIDATION_LOSS = "validation_loss"
    """(T,) loss on held-out sets."""
    EXCESS_LOSS = "excess_loss"
    """(D,) mean over tokens of max(loss - loss of a reference model, 0), clipped per token."""
    GRADIENT_PRODUCTS = "gradient_products"
    """(T, D) <gradient of target, gradient of domain>: above zero where a step on the domain lowers the target's loss."""
    HEAD_PRODUCTS = "head_products"
    """(T, D) the same of the output layer alone."""
    INFLUENCE = "influence"
    """(T, D) the same with the target's gradient preconditioned by an inverse (approximate) Hessian: influence on minus the loss."""
    MIXTURE_INFLUENCE = "mixture_influence"
    """(T, P) the same of batches drawn from the mixtures that the decision before asked for as `probes`, in their order."""
    GRADIENT_NORMS = "gradient_norms"
    """(D,) norms of the domains' gradients."""
    TARGET_NORMS = "target_norms"
    """(T,) norms of the targets' gradients."""
    GATE_LOAD = "gate_load"
    """(D, L, E) share of a domain's routed tokens that each expert gets, in evaluation mode; rows over E sum to 1."""
    REWARD = "reward"
    """(D,) feedback of an evaluation, more is better to train on."""


AXES: Mapping[Signal, str] = {
    Signal.TRAIN_LOSS: "D",
    Signal.TRAIN_TOKENS: "D",
    Signal.VALIDATION_LOSS: "T",
    Signal.EXCESS_LOSS: "D",
    Signal.GRADIENT_PRODUCTS: "TD",
    Signal.HEAD_PRODUCTS: "TD",
    Signal.INFLUENCE: "TD",
    Signal.MIXTURE_INFLUENCE: "TP",
    Signal.GRADIENT_NORMS: "D",
    Signal.TARGET_NORMS: "T",
    Signal.GATE_LOAD: "DLE",
    Signal.REWARD: "D",
}


@dataclass(frozen=True, eq=False)
class Signals:
    """Measurements at one moment of a run.

    Attributes:
        domains, targets: names along the axes D and T.
        step: optimizer steps so far.
        tokens: trained on so far.
        learning_rate: of the last step.
        values: arrays with the axes of `AXES`, NaN where nothing was measured.

    Raises:
        DataError: an array has another shape than its names, or holds an infinite number.
    """

    domains: tuple[str, ...]
    targets: tuple[str, ...]
    tokens: int
    values: Mapping[Signal, FloatArray]
    step: int = 0
    learning_rate: float = 0.0

    def __post_init__(self) -> None:
        sizes = {"D": len(self.domains), "T": len(self.targets)}
        checked = {}
        for signal, given in self.values.items():
            values = np.array(given, dtype=np.float64)
            axes = AXES[signal]
            if values.ndim != len(axes) or any(sizes.get(axis, size) != size for axis, size in zip(axes, values.shape, strict=True)):
                raise DataError(
                    f"Signal '{signal}' has shape {values.shape} for {len(self.domains)} domains and {len(self.targets)} targets.",
                    f"Its axes are {', '.join(axes)} (see mixopt.controllers.signals).",
                )
            if np.isinf(values).any():
                raise DataError(f"Signal '{signal}' holds an infinite number.", "A run that diverged has no signals; stop it.")
            values.setflags(write=False)
            checked[signal] = values
        object.__setattr__(self, "values", checked)

    def __getitem__(self, signal: Signal) -> FloatArray:
        return self.values[signal]

    def only(self, needs: Collection[Signal]) -> Signals:
        """The same without every signal that is not needed."""
        return replace(self, values={signal: values for signal, values in self.values.items() if signal in needs})

    def reordered(self, domains: Sequence[str], targets: Sequence[str]) -> Signals:
        """The same along other orders of the names.

        Raises:
            DataError: the names are others.
        """
        indices = {"D": _positions("domains", self.domains, domains), "T": _positions("targets", self.targets, targets)}

        def moved(signal: Signal, values: FloatArray) -> FloatArray:
            for axis, letter in enumerate(AXES[signal]):
                if letter in indices:
                    values = np.take(values, indices[letter], axis=axis)
            return values

        values = {signal: moved(signal, given) for signal, given in self.values.items()}
        return replace(self, domains=tuple(domains), targets=tuple(targets), values=values)

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain lists and numbers; null where nothing was measured."""
        return {
            "domains": list(self.domains),
            "targets": list(self.targets),
            "step": self.step,
            "tokens": self.tokens,
            "learning_rate": self.learning_rate,
            "values": {signal.value: listed(values) for signal, values in self.values.items()},
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Signals:
        """Raises DataError where a signal is unknown or has a wrong shape."""
        unknown = set(stored["values"]) - {signal.value for signal in Signal}
        if unknown:
            raise DataError(f"There is no signal '{sorted(unknown)[0]}'.", f"Known: {', '.join(Signal)}.")
        values = {Signal(name): arrayed(entries) for name, entries in stored["values"].items()}
        names = tuple(stored["domains"]), tuple(stored["targets"])
        return cls(*names, stored["tokens"], values, stored["step"], stored["learning_rate"])


def listed(values: FloatArray) -> Any:
    """An array as its shape and its entries in one list, NaN as None; floats survive JSON text exactly."""
    return {"shape": list(values.shape), "data": [None if math.isnan(value) else value for value in values.ravel().tolist()]}


def arrayed(stored: Mapping[str, Any]) -> FloatArray:
    """The array that `listed` wrote."""
    flat = np.array([np.nan if value is None else value for value in stored["data"]], dtype=np.float64)
    return flat.reshape(stored["shape"])


def _positions(what: str, have: Sequence[str], want: Sequence[str]) -> list[int]:
    if sorted(have) != sorted(want):
        raise DataError(f"Signals are over the {what} {', '.join(sorted(have))}.", f"The controller has: {', '.join(sorted(want))}.")
    return [list(have).index(name) for name in want]
