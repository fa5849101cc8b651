"""Surrogates predict outcomes of trials that were not run. One file each, one protocol (`base`), one contract test.

A new one joins by its file and one line in `_MODULES`; nothing is imported before it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any, cast

from mixopt.errors import ConfigError
from mixopt.surrogates.base import Surrogate

# name -> module and class.
_MODULES = {
    "anchor_ratio": ("mixopt.surrogates.anchor_ratio", "AnchorRatio"),
    "auto": ("mixopt.surrogates.stacked", "Stacked"),
    "bimix": ("mixopt.surrogates.bimix", "BiMixSurrogate"),
    "curve_features": ("mixopt.surrogates.curve_features", "CurveFeatures"),
    "expert_ensemble": ("mixopt.surrogates.expert_ensemble", "ExpertEnsemble"),
    "gaussian_process": ("mixopt.surrogates.gaussian_process", "GaussianProcess"),
    "lightgbm": ("mixopt.surrogates.boosted_trees", "BoostedTrees"),
    "lightgbm_few": ("mixopt.surrogates.boosted_trees", "TreesForFewRuns"),
    "log_linear": ("mixopt.surrogates.log_linear", "LogLinearSurrogate"),
    "multi_source_gp": ("mixopt.surrogates.multi_source_gp", "MultiSourceGP"),
    "power_law": ("mixopt.surrogates.power_law", "PowerLawSurrogate"),
    "ridge": ("mixopt.surrogates.ridge", "Ridge"),
    "scaling_additive": ("mixopt.surrogates.scaling_additive", "ScalingAdditiveSurrogate"),
    "scaling_effective": ("mixopt.surrogates.scaling_effective", "ScalingEffectiveSurrogate"),
    "scaling_joint": ("mixopt.surrogates.scaling_joint", "ScalingJointSurrogate"),
    "scheffe": ("mixopt.surrogates.scheffe", "Scheffe"),
    "sft_law": ("mixopt.surrogates.sft_law", "SftLawSurrogate"),
}


def surrogate_names() -> tuple[str, ...]:
    """Names that `get_surrogate` knows, sorted."""
    return tuple(sorted(_MODULES))


def get_surrogate(name: str, **options: Any) -> Surrogate:
    """The surrogate of that name, made with `options`.

    Raises:
        ConfigError: no such surrogate, or it does not take these options.
    """
    if name not in _MODULES:
        nearest = difflib.get_close_matches(name, _MODULES, n=1, cutoff=0.0)
        raise ConfigError(f"There is no surrogate '{name}'.", f"Did you mean '{nearest[0]}'? Known: {', '.join(surrogate_names())}.")
    module, class_name = _MODULES[name]
    try:
        return cast(Surrogate, getattr(importlib.import_module(module), class_name)(**options))
    except TypeError as error:
        raise ConfigError(f"Surrogate '{name}' does not take the options {sorted(options)} ({error}).") from error
