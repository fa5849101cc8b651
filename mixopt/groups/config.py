"""What an experiment file says of groups of domains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from mixopt.config_model import Model


def _check_bounds(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] <= value[1] <= 1:
        raise ValueError(f"{list(value)} must be two numbers with 0 <= least <= largest <= 1")
    return value


Bounds = Annotated[tuple[float, float], AfterValidator(_check_bounds)]


class GroupConfig(Model):
    """Rules on a group of domains."""

    shares: Literal["natural"] | dict[str, float] | None = Field(
        None,
        description="The split inside the group, which is then searched as one unit: natural (by tokens), or a share for every child "
        "(sub-groups by their last level, and domains), summing to 1. Below, levels split by their own shares, or naturally.",
    )
    bounds: Bounds = Field((0.0, 1.0), description="Least and largest weight of the whole group.")

    @field_validator("shares", mode="before")
    @classmethod
    def _shares(cls, value: Any) -> Any:
        """Said in one sentence, instead of one per kind that it could be."""
        if value is None or value == "natural":
            return value
        if not isinstance(value, dict):
            raise ValueError("write `natural`, or a share for every child, as {high: 0.7, low: 0.3}")
        for child, share in value.items():
            if isinstance(share, bool) or not isinstance(share, int | float):
                raise ValueError(f"the share of '{child}' is {share!r}; write a number, all of them sum to 1")
        return {str(child): float(share) for child, share in value.items()}
