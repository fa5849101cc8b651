"""The section `constraints` of files that users write: frozen models, and what they say as plain values.

The main trade-off: a mixture may be named before it is known, for natural and UniMax follow from token counts that are found later; what the
name stands for is looked up where the domains are.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from mixopt.config_model import Model, checked_mixture
from mixopt.constraints.rules import Constraints, NamedMixture, Near


class NearConfig(Model):
    """The answer may differ from a given mixture by so much."""

    mixture: NamedMixture | dict[str, float] = Field(
        "natural", description="natural, uniform, unimax, or a weight for every domain (those left out: 0), summing to 1."
    )
    distance: float = Field(
        gt=0,
        le=1,
        description="Largest share of the tokens that may come from other domains than in that mixture: total variation, 0 to 1.",
    )

    @field_validator("mixture", mode="before")
    @classmethod
    def _mixture(cls, value: Any) -> Any:
        return checked_mixture(value)


class ConstraintsConfig(Model):
    """Limits on the mixture as a whole, beside those on domains and groups."""

    most_domains: int | None = Field(
        None, ge=1, description="Largest number of domains with a weight above 0; of a group of given shares every domain counts."
    )
    near: NearConfig | None = Field(None, description="Stay near a given mixture.")

    @property
    def constraints(self) -> Constraints:
        near = self.near
        if near is None:
            return Constraints(self.most_domains)
        mixture = near.mixture if isinstance(near.mixture, str) else tuple(near.mixture.items())
        return Constraints(self.most_domains, Near(mixture, near.distance))
