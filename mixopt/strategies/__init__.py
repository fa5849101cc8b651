"""Strategies propose trials. One file each, one protocol (`base`), one contract test.

A new one joins by its file and one line in `_MODULES`; nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from mixopt.errors import ConfigError
from mixopt.strategies.base import Strategy
from mixopt.swarm import Swarm

# name -> module and class. Every class takes the keyword arguments of `RegressionStrategy`.
_MODULES = {"regression": ("mixopt.strategies.regression", "RegressionStrategy")}


def strategy_names() -> tuple[str, ...]:
    """Names that `get_strategy` knows, sorted."""
    return tuple(sorted(_MODULES))


def get_strategy(name: str) -> Callable[..., Strategy]:
    """The class of that name; call it with the keyword arguments of `RegressionStrategy`.

    Raises:
        ConfigError: no such strategy.
    """
    if name not in _MODULES:
        nearest = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.0)
        raise ConfigError(f"There is no strategy '{name}'.", f"Did you mean '{nearest[0]}'? Known: {', '.join(strategy_names())}.")
    module, class_name = _MODULES[name]
    return cast(Callable[..., Strategy], getattr(importlib.import_module(module), class_name))


def knowing(strategy: Strategy, calibration: Swarm) -> Strategy:
    """The strategy, which judges whether to stop early with these finished runs of the search's calibration, too."""
    return cast(Strategy, replace(cast(Any, strategy), calibration=calibration)) if len(calibration) else strategy
