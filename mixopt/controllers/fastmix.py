"""FastMix (arXiv 2606.14971): the mixture as loss weights of evenly drawn domains, differentiated through one training step.

    w = softmax(z),     z_j <- z_j + rate * K * m_j,     m = momentum over  w_j (q_j - sum_i w_i q_i) / scale  +  entropy * dH/dz_j

with q_j the mean product of domain j's output-layer gradient with the targets', and H the entropy of w. The first term is minus the
gradient of the targets' loss after one step of SGD, with respect to z. Sign: q above zero lowers the targets' loss, so z rises. Evidence:
abstract, reviews and the authors' code.

Deviations, each from a defect of the code. Adam on z forgets the size of q, so noise moves z as far as signal does: here plain momentum
over the slow mean of |q|, one scale for all domains. A domain absent from the batch had q = 0, which is above or below average by chance:
here it is left out, and keeps its weight. `lambda > 0` lowered the entropy there, though called a regularizer: here a positive `entropy`
raises it. q carried the learning rate of training, which Adam cancelled: here it does not enter. z is read back from the weights after
limits, so that it cannot wind up behind a floor. Products of the output layer alone ignore what reaches the body (`products: all` takes
the whole gradient). Targets that are parts of benchmarks' training sets are leakage; the caller answers for them.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Mode, Wanted
from mixopt.controllers.limits import smoothed, tilted, weighted_mean
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray


class FastmixOptions(Every):
    mode: Mode = Field("loss_weight", description="Whether windows are drawn by the weights, or losses are multiplied by them.")
    every: float = Field(0.02, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")
    rate: float = Field(0.1, gt=0, description="Of a step of the logits, per unit of scaled gradient times the number of domains.")
    momentum: float = Field(0.5, ge=0, lt=1, description="Of the logits' gradient.")
    entropy: float = Field(0.0, ge=0, description="Weight of the entropy; above 0 keeps weights apart from corners.")
    products: Literal["head", "all"] = Field("head", description="Gradients of the output layer, or of everything.")


class Fastmix(Adaptive):
    name = "fastmix"
    options_type = FastmixOptions
    given: FastmixOptions

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({self._products})

    @property
    def _products(self) -> Signal:
        return Signal.HEAD_PRODUCTS if self.given.products == "head" else Signal.GRADIENT_PRODUCTS

    def begin(self) -> dict[str, FloatArray]:
        return {"momentum": np.full(len(self.setup.names), np.nan), "scale": np.full(1, np.nan)}

    def update(self, signals: Signals) -> Wanted:
        memory, options = self.memory, self.given
        gains = weighted_mean(signals[self._products], self.setup.targets_weighted)
        known = ~np.isnan(gains)
        if not known.any():
            return Wanted()
        memory["scale"] = smoothed(memory["scale"], np.array([np.abs(gains[known]).mean()]), 0.9)
        slope = logit_slope(self.weights, gains / np.maximum(memory["scale"], 1e-30), options.entropy)
        memory["momentum"] = smoothed(memory["momentum"], slope, options.momentum)
        moved = np.where(known, memory["momentum"], np.nan)
        return Wanted(tilted(self.weights, moved, options.rate * len(gains)))


def logit_slope(weights: FloatArray, gains: FloatArray, entropy: float = 0.0) -> FloatArray:
    """d/dz of sum_j w_j gain_j + entropy * H(w) at w = softmax(z), shape (domains,); NaN for domains without a gain."""
    known = ~np.isnan(gains) & (weights > 0)
    slope = np.full(len(weights), np.nan)
    share = weights[known] / weights[known].sum()
    value = gains[known] - entropy * np.log(share)
    slope[known] = share * (value - share @ value)
    return slope
