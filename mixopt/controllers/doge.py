"""DoGE (arXiv 2310.15393): exponentiated steps toward domains whose gradient agrees with the targets' gradients.

    w_j <- w_j exp(rate * score_j) / Z,     score_j = clip( sum_i <g_j, h_i> / mean_j |g_j| , 0, 5)

with gradients g of domains and h of targets, each clipped to norm 5. The answer is the mean over the run. Rate is the authors' lr / mu =
5e-4 / .01. Sign: a product above zero means that a step on domain j lowers target i's loss, so more weight. Evidence: the authors' code;
tables from secondary text; in Aioli's comparison worse than equal weights on five of six sets.

Deviations. The published score and its clip both scale with the current learning rate, so that weights freeze as it decays: here the rate
is constant. A domain absent from a batch keeps there its stale row of gradients for ever: here it keeps its weight for that step. The
published score leaves a domain's product with itself out where targets are the training sets, for it is a squared norm, noise included;
ours are held-out sets, whose own product is unbiased and stays (`leave_out_own` is for targets that share their domain's batch). Sums
over targets are weighted, and equal the published sum where all count alike.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Mode, Wanted
from mixopt.controllers.limits import tilted, weighted_mean
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray, Schedule


class DogeOptions(Every):
    mode: Mode = Field("loss_weight", description="Whether windows are drawn by the weights, or losses are multiplied by them.")
    every: float = Field(0.01, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")
    rate: float = Field(0.05, gt=0, description="Of a step, per unit of score.")
    clip: float = Field(5.0, gt=0, description="Largest norm of a gradient, and largest score.")
    leave_out_own: bool = Field(False, description="Without the product of a domain with the target of its name.")


class Doge(Adaptive):
    name = "doge"
    options_type = DogeOptions
    given: DogeOptions
    needs = frozenset({Signal.GRADIENT_PRODUCTS, Signal.GRADIENT_NORMS, Signal.TARGET_NORMS})

    def update(self, signals: Signals) -> Wanted:
        options, setup = self.given, self.setup
        products = signals[Signal.GRADIENT_PRODUCTS]
        if options.leave_out_own:
            products = np.where(setup.own > 0, 0.0, products)
        scores = doge_scores(products, signals[Signal.GRADIENT_NORMS], signals[Signal.TARGET_NORMS], setup.targets_weighted, options.clip)
        return Wanted(tilted(self.weights, scores, options.rate))

    def final(self) -> Schedule:
        """The mean over the run."""
        return self.averaged()


def doge_scores(products_TD: FloatArray, norms_D: FloatArray, norms_T: FloatArray, weights_T: FloatArray, clip: float) -> FloatArray:
    """Scores (domains,) from inner products of unclipped gradients and their norms; NaN where a domain's gradient was not measured."""
    shrunk_D, shrunk_T = (np.minimum(1.0, clip / np.maximum(norms, 1e-30)) for norms in (norms_D, norms_T))
    agreement = weighted_mean(products_TD * shrunk_D * shrunk_T[:, None], weights_T) * len(weights_T)
    clipped = (norms_D * shrunk_D)[~np.isnan(norms_D)]
    return np.clip(agreement / ((clipped.mean() if len(clipped) else np.nan) + 1e-6), 0.0, clip)
