"""One mixture for the whole run: the prior, as the result of a search or the natural mixture. The control of every comparison.

Within the limits: where available tokens or caps bind, the nearest allowed mixture.
"""

from __future__ import annotations

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.signals import Signal, Signals


class Static(Adaptive):
    name = "static"
    options_type = Every
    needs: frozenset[Signal] = frozenset()

    def first(self) -> Wanted:
        return Wanted(self.setup.start)

    def update(self, signals: Signals) -> Wanted:
        return Wanted(self.setup.start)
