"""Controllers move the weights while a model trains. One file each, one protocol (`base`), one contract test.

A new one joins by its file and one line in `_MODULES`; nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from mixopt.errors import ConfigError

if TYPE_CHECKING:
    from mixopt.controllers.base import Adaptive, ControllerOptions, Setup

# name -> module and class.
_MODULES = {
    "ado": ("mixopt.controllers.ado", "Ado"),
    "aioli": ("mixopt.controllers.aioli", "Aioli"),
    "cluster_refine": ("mixopt.controllers.cluster_refine", "ClusterRefine"),
    "dga": ("mixopt.controllers.dga", "Dga"),
    "doge": ("mixopt.controllers.doge", "Doge"),
    "doremi": ("mixopt.controllers.doremi", "Doremi"),
    "fastmix": ("mixopt.controllers.fastmix", "Fastmix"),
    "gate_load": ("mixopt.controllers.gate_load", "GateLoad"),
    "odm": ("mixopt.controllers.odm", "Odm"),
    "skillit": ("mixopt.controllers.skillit", "Skillit"),
    "static": ("mixopt.controllers.static", "Static"),
    "stratified": ("mixopt.controllers.stratified", "Stratified"),
    "tikmix_d": ("mixopt.controllers.tikmix_d", "TikmixD"),
    "tikmix_m": ("mixopt.controllers.tikmix_m", "TikmixM"),
}


def controller_names() -> tuple[str, ...]:
    """Names that `get_controller` knows, sorted."""
    return tuple(sorted(_MODULES))


def get_controller(name: str, setup: Setup, options: Mapping[str, Any] | None = None) -> Adaptive:
    """The controller of that name.

    Raises:
        ConfigError: no such controller, it does not take these options, or it cannot do what is set up.
        InfeasibleError: the setup's limits leave no mixture.
    """
    return cast("Adaptive", _class_of(name)(setup, read_options(name, options or {})))


def options_type(name: str) -> type[ControllerOptions]:
    """What a controller lets one choose. Raises ConfigError: no such controller."""
    return cast("type[ControllerOptions]", _class_of(name).options_type)


def read_options(name: str, options: Mapping[str, Any]) -> ControllerOptions:
    """Options, checked, with defaults.

    Raises:
        ConfigError: no such controller; an option it does not know, with the nearest it does; or a value that an option cannot have.
    """
    from mixopt.options import checked_options

    return checked_options(options_type(name), options, f"controller '{name}'", "options")


def _class_of(name: str) -> type[Any]:
    if name not in _MODULES:
        nearest = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.0)
        raise ConfigError(f"There is no controller '{name}'.", f"Did you mean '{nearest[0]}'? Known: {', '.join(controller_names())}.")
    module, class_name = _MODULES[name]
    return cast("type[Any]", getattr(importlib.import_module(module), class_name))
