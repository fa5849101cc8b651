"""Scheffé's second-order mixture polynomial (1958): a term for every weight and every product of two, here with a ridge penalty.

The classical design-of-experiments model of mixtures; on RegMix's runs it was reported level with boosted trees at 1B (arXiv 2608.23922). Its terms grow with
the square of the number of domains, which the penalty and the dual form bear; slopes stay finite at zero weight, where real losses are steepest.
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.features import weights
from mixopt.surrogates.linear_model import LinearSurrogate


def scheffe_features(schedules: FloatArray) -> FloatArray:
    """Weights and products of pairs: (n, phases, domains) -> (n, I + I (I - 1) / 2) with I = phases * domains."""
    shares = weights(schedules)
    left, right = np.triu_indices(shares.shape[1], k=1)
    return np.concatenate([shares, shares[:, left] * shares[:, right]], axis=1)


class Scheffe(LinearSurrogate):
    """Ridge regression on `scheffe_features`."""

    def __init__(self) -> None:
        super().__init__(scheffe_features)
