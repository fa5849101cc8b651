"""Ridge regression on weights, their square roots and logarithms: a linear model that is hard to beat for its cost.

On RegMix's Pile-CC .963 at 64 runs and .986 at 512, between LightGBM and the Gaussian process (methods/surrogates-measured.md, A1).
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.features import root_and_log, weights
from mixopt.surrogates.linear_model import LinearSurrogate


def ridge_features(schedules: FloatArray) -> FloatArray:
    """Weights, square roots, logarithms: (n, phases, domains) -> (n, 3 * phases * domains)."""
    return np.concatenate([weights(schedules), root_and_log(schedules)], axis=1)


class Ridge(LinearSurrogate):
    """Ridge regression on `ridge_features`."""

    def __init__(self) -> None:
        super().__init__(ridge_features)
