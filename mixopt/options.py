"""Options that a part of the product lets one choose: one check of what was given, for strategies and controllers alike."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from mixopt.errors import ConfigError

Kind = TypeVar("Kind", bound=BaseModel)


def checked_options(kind: type[Kind], given: Mapping[str, Any], owner: str, place: str) -> Kind:
    """What was given, checked, with defaults.

    Args:
        kind: the options there are.
        owner: whose they are, as `strategy 'bayes'`.
        place: where they are given, as `search.options`.

    Raises:
        ConfigError: an option that is not there, with the nearest that is; or a value that one cannot have.
    """
    known = list(kind.model_fields)
    unknown = sorted(set(given) - set(known))
    if unknown:
        nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.0)
        hint = f"Did you mean '{nearest[0]}'? It takes: {', '.join(known)}." if known else f"It takes none; leave `{place}` out."
        raise ConfigError(f"`{place}.{unknown[0]}` is no option of the {owner}.", hint)
    try:
        return kind.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"`{place}{'.' if name else ''}{name}` of the {owner} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}.",
            f"It means: {kind.model_fields[name].description}" if name in known else "Mend it, or leave it out.",
        ) from error
