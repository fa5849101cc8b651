"""Strategies propose trials. One file each, one protocol (`base`), one contract test.

A new one joins by its file and one line in `_MODULES`; nothing is imported before it is asked for. Every class is a frozen dataclass of an
`Assignment` and of its `options`, whose type says what `search.options` may hold.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast, get_type_hints

from mixopt.errors import ConfigError
from mixopt.swarm import Swarm

if TYPE_CHECKING:
    from mixopt.strategies.base import Assignment, Options, Strategy

# name -> module and class.
_MODULES = {
    "bayes": ("mixopt.strategies.bayes", "BayesStrategy"),
    "climb": ("mixopt.strategies.climb", "ClimbStrategy"),
    "demix": ("mixopt.strategies.demix", "DemixStrategy"),
    "doe": ("mixopt.strategies.doe", "DoeStrategy"),
    "grid": ("mixopt.strategies.grid", "GridStrategy"),
    "mergemix": ("mixopt.strategies.mergemix", "MergemixStrategy"),
    "optuna": ("mixopt.strategies.optuna", "OptunaStrategy"),
    "pareto": ("mixopt.strategies.pareto", "ParetoStrategy"),
    "random": ("mixopt.strategies.random", "RandomStrategy"),
    "regression": ("mixopt.strategies.regression", "RegressionStrategy"),
    "scaling": ("mixopt.strategies.scaling", "ScalingStrategy"),
    "sft": ("mixopt.strategies.sft", "SftStrategy"),
}


def strategy_names() -> tuple[str, ...]:
    """Names that `get_strategy` knows, sorted."""
    return tuple(sorted(_MODULES))


def get_strategy(name: str, assignment: Assignment, options: Mapping[str, Any] | None = None) -> Strategy:
    """The strategy of that name for an assignment.

    Raises:
        ConfigError: no such strategy, or it does not take these options; or it cannot do what is assigned.
    """
    return cast("Strategy", _class_of(name)(assignment, read_options(name, options or {})))


def read_options(name: str, options: Mapping[str, Any]) -> Options:
    """`search.options` of the experiment file, checked, with defaults.

    Raises:
        ConfigError: no such strategy; an option it does not know, with the nearest it does; or a value that an option cannot have.
    """
    from mixopt.options import checked_options

    return checked_options(options_type(name), options, f"strategy '{name}'", "search.options")


def options_type(name: str) -> type[Options]:
    """What a strategy lets one choose.

    Raises:
        ConfigError: no such strategy.
    """
    return cast("type[Options]", get_type_hints(_class_of(name))["options"])


def takes_sources(name: str) -> bool:
    """Whether a strategy runs trials at more than the last of its offers: its attribute `several_sources`. Raises ConfigError as `options_type`."""
    return bool(getattr(_class_of(name), "several_sources", False))


def takes_averages(name: str) -> bool:
    """Whether a strategy counts averages of components as what they are: its attribute `takes_averages`. Raises ConfigError as `options_type`."""
    return bool(getattr(_class_of(name), "takes_averages", False))


def _class_of(name: str) -> type[Any]:
    if name not in _MODULES:
        nearest = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.0)
        raise ConfigError(f"There is no strategy '{name}'.", f"Did you mean '{nearest[0]}'? Known: {', '.join(strategy_names())}.")
    module, class_name = _MODULES[name]
    return cast("type[Any]", getattr(importlib.import_module(module), class_name))


def knowing(strategy: Strategy, calibration: Swarm) -> Strategy:
    """The strategy, which judges whether to stop early with these finished runs of the search's calibration, too."""
    if not len(calibration):
        return strategy
    given = cast("Any", strategy)
    return cast("Strategy", replace(given, assignment=given.assignment.with_calibration(calibration)))


def with_earlier(strategy: Strategy, earlier: Swarm) -> Strategy:
    """The strategy, which knows runs of earlier searches that no budget counts."""
    if not len(earlier):
        return strategy
    given = cast("Any", strategy)
    return cast("Strategy", replace(given, assignment=replace(given.assignment, earlier=earlier)))
