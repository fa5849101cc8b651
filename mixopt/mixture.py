"""What a mixture is: a point on the simplex over named domains, and a schedule of such points.

Weights are shares of *tokens*. A mixture is a schedule of one phase, and every array carries the phase axis from the start, shape
(phases, domains), so that nothing has to change when schedules are searched. Domains are matched by name, never by position: two mixtures
whose domains are listed in another order are converted with `Mixture.reordered`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ConfigError

FloatArray = NDArray[np.float64]

# Sums are accepted within this distance of 1 and then made exact: far below what one training window can express, far above float error.
SUM_TOLERANCE = 1e-6
# Each quotient of a division by the sum is off by half a unit in its last place at most, so their sum by half a unit of 1.
ROUNDING = 2.0**-52


@dataclass(frozen=True)
class Mixture:
    """Shares of tokens per domain.

    Attributes:
        domains: distinct names, one per weight.
        weights: shares of tokens, non-negative, summing to 1 (within 1e-6; made exact on construction).

    Raises:
        ConfigError: names repeat, lengths differ, or the weights are not on the simplex.
    """

    domains: tuple[str, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.domains) != len(self.weights) or not self.domains:
            raise ConfigError(f"A mixture needs one weight per domain, got {len(self.domains)} domains and {len(self.weights)} weights.")
        if len(set(self.domains)) != len(self.domains):
            repeated = sorted({name for name in self.domains if self.domains.count(name) > 1})
            raise ConfigError(f"Domain names repeat in a mixture: {', '.join(repeated)}.", "Give every domain its own name.")
        for name, weight in zip(self.domains, self.weights, strict=True):
            if not math.isfinite(weight) or weight < 0:
                raise ConfigError(f"Weight of domain '{name}' is {weight}.", "Weights are finite and at least 0.")
        total = math.fsum(self.weights)
        if abs(total - 1) > SUM_TOLERANCE:
            raise ConfigError(f"Mixture weights sum to {total:.9g}.", "Weights are shares of tokens and sum to 1.")
        # Divided once: quotients sum to 1 within their own rounding, and dividing again would move their last bits at every reading of a record.
        total = 1.0 if abs(total - 1) <= ROUNDING else total
        object.__setattr__(self, "weights", tuple(float(weight) / total for weight in self.weights))

    @classmethod
    def of(cls, weights: Mapping[str, float]) -> Mixture:
        """The mixture with these weights by domain name."""
        return cls(tuple(weights), tuple(weights.values()))

    @classmethod
    def from_array(cls, domains: Sequence[str], weights: FloatArray) -> Mixture:
        """The mixture with `weights` of shape (domains,)."""
        return cls(tuple(domains), tuple(float(weight) for weight in weights))

    def array(self, domains: Sequence[str] | None = None) -> FloatArray:
        """Weights of shape (domains,), in the order of `domains` (default: its own)."""
        return np.array(self.weights if domains is None else self.reordered(domains).weights, dtype=np.float64)

    def reordered(self, domains: Sequence[str]) -> Mixture:
        """The same mixture with its domains in another order."""
        if set(domains) != set(self.domains) or len(domains) != len(self.domains):
            raise ConfigError(f"Mixture over {sorted(self.domains)} was asked for the domains {sorted(domains)}.")
        by_name = self.as_dict()
        return Mixture(tuple(domains), tuple(by_name[name] for name in domains))

    def as_dict(self) -> dict[str, float]:
        """Weights by domain name."""
        return dict(zip(self.domains, self.weights, strict=True))


@dataclass(frozen=True)
class Schedule:
    """One mixture per phase of training.

    Attributes:
        mixtures: one per phase, all over the same domains in the same order.
        fractions: share of the training tokens of each phase, positive, summing to 1.
    """

    mixtures: tuple[Mixture, ...]
    fractions: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.mixtures or len(self.mixtures) != len(self.fractions):
            raise ConfigError(
                f"A schedule needs one fraction per phase, got {len(self.mixtures)} mixtures and {len(self.fractions)} fractions."
            )
        if any(mixture.domains != self.mixtures[0].domains for mixture in self.mixtures):
            raise ConfigError(
                "The phases of a schedule list different domains.", "Use the same domains, in the same order, in every phase."
            )
        total = math.fsum(self.fractions)
        if any(not fraction > 0 for fraction in self.fractions) or abs(total - 1) > SUM_TOLERANCE:
            raise ConfigError(f"Phase fractions are {self.fractions}.", "Fractions are positive and sum to 1.")
        object.__setattr__(self, "fractions", tuple(float(fraction) / total for fraction in self.fractions))

    @classmethod
    def constant(cls, mixture: Mixture) -> Schedule:
        """The schedule of one phase."""
        return cls((mixture,))

    @property
    def domains(self) -> tuple[str, ...]:
        return self.mixtures[0].domains

    def array(self) -> FloatArray:
        """Weights of shape (phases, domains)."""
        return np.array([mixture.weights for mixture in self.mixtures], dtype=np.float64)

    def average(self) -> Mixture:
        """The mixture of all tokens of the run."""
        return Mixture.from_array(self.domains, np.array(self.fractions) @ self.array())
