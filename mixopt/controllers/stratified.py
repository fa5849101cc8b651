"""Equal weights: the control that most online methods do not beat (Aioli's own comparison, arXiv 2411.05735: one of seven does on all six
sets).

Equal within the limits: where available tokens or caps bind, the nearest allowed mixture.
"""

from __future__ import annotations

import numpy as np

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.signals import Signal, Signals


class Stratified(Adaptive):
    name = "stratified"
    options_type = Every
    needs: frozenset[Signal] = frozenset()

    def first(self) -> Wanted:
        return Wanted(self._equal())

    def update(self, signals: Signals) -> Wanted:
        return Wanted(self._equal())

    def _equal(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return np.full(len(self.setup.names), 1 / len(self.setup.names))
