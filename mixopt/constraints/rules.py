"""What a user may ask of a mixture as a whole, as plain values; `space` gives them their meaning for a set of domains.

A number of domains counts domains, not the units that a search moves: a group of given shares brings in all of its domains that have a share. A
distance is total variation, half the sum of absolute differences: the share of the tokens that would have to be moved. The main trade-off: the number
of domains makes the feasible set a union of convex ones, so that optima are found by search and not by descent alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from mixopt.mixture import FloatArray

NamedMixture = Literal["natural", "uniform", "unimax"]


@dataclass(frozen=True)
class Near:
    """Total variation to a mixture is at most `distance`.

    Attributes:
        mixture: its name, or (domain, weight) pairs; domains left out weigh 0.
    """

    mixture: NamedMixture | tuple[tuple[str, float], ...]
    distance: float

    @property
    def title(self) -> str:
        """How sentences call the mixture."""
        spoken = {"natural": "the natural mixture", "uniform": "the uniform mixture", "unimax": "the UniMax mixture"}
        return spoken[self.mixture] if isinstance(self.mixture, str) else "the given mixture"


@dataclass(frozen=True)
class Constraints:
    """Limits on the mixture as a whole.

    Attributes:
        most_domains: with a weight above 0; None: as many as there are.
        near: None: anywhere.
    """

    most_domains: int | None = None
    near: Near | None = None

    def __bool__(self) -> bool:
        """Whether anything is asked for."""
        return self != Constraints()

    def without_tokens(self) -> Constraints:
        """What can be checked while token counts are unknown: natural and UniMax follow from them."""
        known = self.near is None or self.near.mixture == "uniform" or not isinstance(self.near.mixture, str)
        return self if known else Constraints(self.most_domains)

    def identity(self) -> dict[str, Any]:
        """JSON values for hashes; the order of domains does not matter. Empty where nothing is asked for."""
        found: dict[str, Any] = {}
        if self.most_domains is not None:
            found["most_domains"] = self.most_domains
        if self.near is not None:
            mixture = self.near.mixture
            named = mixture if isinstance(mixture, str) else sorted([name, weight] for name, weight in mixture if weight > 0)
            found["near"] = [named, self.near.distance]
        return found


ANYTHING = Constraints()
"""No limits."""


@dataclass(frozen=True, eq=False)
class Ball:
    """Mixtures within `distance` of `centre` (domains,) in total variation.

    Attributes:
        title: of the centre, in sentences.
    """

    centre: FloatArray
    distance: float
    title: str

    def distances(self, weights: FloatArray) -> FloatArray:
        """Of mixtures (..., domains) from the centre, shape (...)."""
        return np.asarray(0.5 * np.abs(weights - self.centre).sum(axis=-1))
