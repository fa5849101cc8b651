"""What all sections of files that users write have in common: the frozen model, and mixtures by name or by weights.

Beside `config`, which holds the experiment file, so that sections can live beside the code that they configure. The main trade-off: a check that two
sections share is a function here, called by both, for pydantic's inheritance would hide it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from mixopt.constraints.rules import NamedMixture
from mixopt.errors import ConfigError
from mixopt.mixture import SUM_TOLERANCE
from mixopt.quantities import parse_count, parse_seconds, parse_whole_count

Count = Annotated[float, BeforeValidator(parse_count), Field(gt=0, allow_inf_nan=False)]
# Below 2^53 a count is exact as a float, and fits the integers of every database.
WholeCount = Annotated[int, BeforeValidator(parse_whole_count), Field(gt=0, lt=2**53)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]


class Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_stray_yes_or_no(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads a bare yes, no, on or off as a boolean, and Python would count with it: `tokens: yes` would be one token."""
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("a yes or no, where it does not belong; write a number, or put the word in quotes")
        return value


def checked_mixture(value: Any) -> Any:
    """A mixture by name, or weights by domain; said in one sentence, instead of one per kind that it could be.

    Raises:
        ValueError: neither, a weight outside 0 to 1, or a sum that is not 1.
    """
    if isinstance(value, str) and value in get_args(NamedMixture):
        return value
    if not isinstance(value, dict) or not value:
        raise ValueError("write natural, uniform or unimax, or weights by domain, as {web: 0.8, code: 0.2}")
    for domain, weight in value.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight <= 1:
            raise ValueError(f"the weight of '{domain}' is {weight!r}; write a number from 0 to 1, all of them sum to 1")
    if abs(sum(value.values()) - 1) > SUM_TOLERANCE:
        raise ValueError(f"the weights sum to {sum(value.values()):.6g}; they are shares of tokens and sum to 1")
    return {str(domain): float(weight) for domain, weight in value.items()}


def unknown_domains(place: str, mixture: object, domains: Sequence[str]) -> None:
    """Weights by domain speak of domains there are; anything but weights passes.

    Raises:
        ConfigError: they do not; names the nearest.
    """
    unknown = sorted(set(mixture) - set(domains)) if isinstance(mixture, dict) else []
    if unknown:
        near = difflib.get_close_matches(unknown[0], domains, n=1, cutoff=0.5)
        meant = f"Did you mean '{near[0]}'? " if near else ""
        raise ConfigError(
            f"{place} gives weight to {', '.join(unknown)}, which is no domain.", f"{meant}The domains are {', '.join(domains)}."
        )
