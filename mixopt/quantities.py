"""Numbers as people write them: 3B tokens, 4.2TB of text, `count`.

The experiment file and command-line options read them alike. Each function leaves what is no text alone, so that pydantic checks it.
"""

from __future__ import annotations

import math
import re
from typing import Any

SUFFIXES = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
BYTE_SUFFIXES = {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "KI": 2.0**10, "MI": 2.0**20, "GI": 2.0**30, "TI": 2.0**40}
SECOND_SUFFIXES = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
# What `tokens` may say instead of a number: the prepared training text is all there is.
COUNT_THEM = "count"


def parse_count(value: Any) -> Any:
    """Numbers as people write them: 1_000_000, 1e6, "3B", "250k"."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([kKmMbBtT]?)\s*", value)
        if not match:
            raise ValueError(f"'{value}' is not a count; write 250000, 2.5e5 or 250K")
        return float(match[1].replace("_", "")) * SUFFIXES.get(match[2].upper(), 1.0)
    return value


def parse_whole_count(value: Any) -> Any:
    """As `parse_count`, and whole."""
    number = parse_count(value)
    if isinstance(number, float) and number.is_integer():
        return int(number)
    return number


def parse_bytes(value: Any) -> Any:
    """Sizes as people write them: 4.2TB, 300 GB, 1.5GiB, 1e12. A bare B is refused: it means bytes to some and billions to others."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([kmgtpKMGTP]?[iI]?)([bB]?)\s*", value)
    if not match or match[2].upper() not in BYTE_SUFFIXES or (match[3] and not match[2]):
        raise ValueError(f"'{value}' is not a size; write 4.2TB, 300GB or 1e12")
    return float(match[1].replace("_", "")) * BYTE_SUFFIXES[match[2].upper()]


def parse_whole_bytes(value: Any) -> Any:
    """As `parse_bytes`, and whole."""
    number = parse_bytes(value)
    return int(number) if isinstance(number, float) and number.is_integer() else number


def parse_seconds(value: Any) -> Any:
    """Times as people write them: 90, 90s, 30m, 2h, 1.5d."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", value)
        if not match or match[2] not in SECOND_SUFFIXES:
            raise ValueError(f"'{value}' is not a time; write 90s, 30m, 2h or 1.5d")
        return float(match[1]) * SECOND_SUFFIXES[match[2]]
    return value


def parse_token_count(value: Any) -> Any:
    """A count of tokens, or the word `count`."""
    if value is None or value == COUNT_THEM:
        return value
    number = parse_count(value)
    if not isinstance(number, int | float) or not 0 < number < math.inf:
        raise ValueError("not a number of tokens above 0; write 3e9 or 3B, or `count` where the prepared text is all there is")
    return float(number)
