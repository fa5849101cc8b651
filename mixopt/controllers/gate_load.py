"""Dynamic mixing for tuning Mixture-of-Experts models (arXiv 2406.11256): more weight to domains whose tokens go to other experts than
the rest.

    w = (1 - c) * prior_j exp(rate * Delta_j) / Z + c * prior_j,     Delta_j = mean over domains i (j included) of |O_j - O_i|_2

with O_j the share of domain j's routed tokens per expert of the last layer, in evaluation mode. Rate 10, c .05 and the last layer are the
authors' code, which is their algorithm 1. It rewards being different, not being useful. Evidence: abstract and code; the results table
was not found.

Deviations. The published update multiplies the weights before, and runs away: with fixed loads and a gap of .05, 20 updates put .9 on one
domain, and the authors' own MoLM run ended with .935 on code. Here the prior is tilted by loads that are averaged over calls, so that
equal loads give equal weights however often they are seen; `accumulate` is theirs; smoothing is toward the prior, theirs is uniform.
`layers: all` measures distances over all layers together. Loads of balanced routers are nearly equal, and the signal is small.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.limits import smoothed, tilted
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray


class GateLoadOptions(Every):
    every: float = Field(0.05, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")
    rate: float = Field(10.0, gt=0, description="Of the tilt, per unit of distance between loads.")
    smoothing: float = Field(0.05, ge=0, lt=1, description="Share of the prior mixed in.")
    ema: float = Field(0.5, ge=0, lt=1, description="How much of the loads before stays in the new ones.")
    layers: Literal["last", "all"] = Field("last", description="Layers whose loads are compared.")
    accumulate: bool = Field(False, description="Tilt the weights before, not the prior.")


class GateLoad(Adaptive):
    name = "gate_load"
    options_type = GateLoadOptions
    given: GateLoadOptions
    needs = frozenset({Signal.GATE_LOAD})

    def begin(self) -> dict[str, FloatArray]:
        return {"load": np.zeros(0)}

    def update(self, signals: Signals) -> Wanted:
        options, fresh = self.given, signals[Signal.GATE_LOAD]
        before = self.memory["load"]
        load = self.memory["load"] = smoothed(before, fresh, options.ema) if before.shape == fresh.shape else fresh
        layers = load[:, -1:] if options.layers == "last" else load
        base = self.weights if options.accumulate else self.setup.start
        moved = tilted(base, load_distances(layers), options.rate)
        return Wanted((1 - options.smoothing) * moved + options.smoothing * self.setup.start)


def load_distances(load_DLE: FloatArray) -> FloatArray:
    """Mean distance of each domain's loads to all domains' that have any, itself included, shape (domains,); NaN without loads."""
    flat = load_DLE.reshape(len(load_DLE), -1)
    known = ~np.isnan(flat).any(axis=1)
    distances = np.full(len(flat), np.nan)
    if known.any():
        gaps = flat[known][:, None] - flat[known][None]
        distances[known] = np.linalg.norm(gaps, axis=-1).mean(axis=1)
    return distances
