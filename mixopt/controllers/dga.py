"""DGA, dynamic gradient alignment (arXiv 2410.02498): a mirror step along gradient products on the live model, then an average with the
weights before.

    hat_j = w_j exp(rate * a_j) / Z,     w <- (1 - beta) w + beta hat,     a_j = mean over targets of <g_j, h_i> / (mean_j |g_j| |h_i|)

Sign: a product above zero lowers the target's loss, so more weight. **The evidence is the thinnest of all controllers**: the form is from
the abstract, a review thread and a third party's implementation; where the average is taken, and beta (.1) and the interval (100 steps),
are from memory; no accuracy gain was consistent in its reviews, and the rate is not known at all (10 is assumed: products so scaled
differ by some hundredths).

Deviations. The product is divided by the mean norm of the domains' gradients and by the target's, so that the rate does not depend on the
size of gradients; a common factor for all domains, so their ratios are those of the products. Noise of one batch moves weights by at most
beta. A domain without a gradient keeps its weight. Collapse onto one domain is what floors of the setup are for.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.limits import tilted, weighted_mean
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray


class DgaOptions(Every):
    every: float = Field(0.02, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")
    rate: float = Field(10.0, gt=0, description="Of the mirror step, per unit of alignment.")
    beta: float = Field(0.1, gt=0, le=1, description="How far weights go to where the mirror step points.")


class Dga(Adaptive):
    name = "dga"
    options_type = DgaOptions
    given: DgaOptions
    needs = frozenset({Signal.GRADIENT_PRODUCTS, Signal.GRADIENT_NORMS, Signal.TARGET_NORMS})

    def update(self, signals: Signals) -> Wanted:
        given = signals[Signal.GRADIENT_PRODUCTS], signals[Signal.GRADIENT_NORMS], signals[Signal.TARGET_NORMS]
        pointed = tilted(self.weights, alignment(*given, self.setup.targets_weighted), self.given.rate)
        return Wanted((1 - self.given.beta) * self.weights + self.given.beta * pointed)


def alignment(products_TD: FloatArray, norms_D: FloatArray, norms_T: FloatArray, weights_T: FloatArray) -> FloatArray:
    """Mean products (domains,) in units of the mean norms; NaN where a domain's gradient was not measured."""
    known = norms_D[~np.isnan(norms_D)]
    scale = known.mean() if len(known) else np.nan
    return weighted_mean(products_TD / np.maximum(scale * norms_T, 1e-30)[:, None], weights_T)
