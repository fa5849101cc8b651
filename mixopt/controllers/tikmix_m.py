"""TiKMiX-M (arXiv 2508.17677): at each stage the influence of some mixtures is measured, a regression learns it, and the best predicted
mixture is trained on.

Probes are mixtures around the current one, each weight between half and twice: a Latin hypercube in the logarithm, normalised. Of each
the trainer measures the influence on every target (a gradient over a batch drawn from the mixture). With Phat_i = P_i / max over probes
of P_i, the value of a mixture is sum_i Phat_i. The best is searched by the paper's algorithm 1: draws Dirichlet(strength * best so far),
the mean of the best predicted is the next centre. Evidence: the paper's text (a little above TiKMiX-D, single seed); numbers of
candidates, of rounds and strengths, and the box's factors are not stated there (half to twice is its additivity study's).

Deviations. The gradient of a mixture is the mixture of gradients, so that influence at one model is linear but for the noise of batches:
a ridge regression on the weights with its strength by leave-one-out, in place of LightGBM, which 32 points do not teach. The paper's
strengths fall, "to encourage exploration"; a large concentration is a narrow Dirichlet, so here they rise. Probes that were not measured
do not count; with fewer left than domains the weights stay. A target that no probe serves is left out of the sum. No constraint keeps a
target from being served worse; that is `tikmix_d`.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray

BOX = 2.0
STRENGTHS = (30.0, 3000.0)
PASSES, DRAWS, BEST = 8, 512, 32
RIDGES = tuple(np.geomspace(1e-6, 10.0, 15).tolist())


class TikmixMOptions(Every):
    every: float = Field(0.2, gt=0, le=1, description="Share of the run's tokens in a stage.")
    probes: int = Field(32, ge=4, le=4096, description="Mixtures whose influence is measured at the end of a stage.")


class TikmixM(Adaptive):
    name = "tikmix_m"
    options_type = TikmixMOptions
    given: TikmixMOptions
    needs = frozenset({Signal.MIXTURE_INFLUENCE})

    def begin(self) -> dict[str, FloatArray]:
        return {"stage": np.zeros(1), "probes": np.zeros((0, len(self.setup.names)))}

    def first(self) -> Wanted:
        return Wanted(probes=self._probes(self.weights))

    def update(self, signals: Signals) -> Wanted:
        value = summed_influence(signals[Signal.MIXTURE_INFLUENCE], self.setup.targets_weighted)
        known = ~np.isnan(value)
        best = self.weights
        if known.sum() >= len(self.setup.names):
            slopes = ridge(self.memory["probes"][known], value[known])
            best = self._searched(slopes)
        self.memory["stage"] = self.memory["stage"] + 1
        return Wanted(best, probes=self._probes(best))

    def _probes(self, centre: FloatArray) -> FloatArray:
        """Allowed mixtures (probes, domains) between half and twice the centre's weights, as near as limits let."""
        count, domains = self.given.probes, len(centre)
        rng = self._rng(0xA1)
        cells = (np.argsort(rng.random((domains, count)), axis=1).T + rng.random((count, domains))) / count
        # The square root: normalising by a sum that itself lies within the same factor keeps each weight within the box.
        factors = BOX ** (cells - 0.5)
        raw = centre * factors
        limits = self.setup.limits
        self.memory["probes"] = limits.nearest_rows(raw / raw.sum(axis=1, keepdims=True), self._used, self._seen)
        return self.memory["probes"]

    def _searched(self, slopes: FloatArray) -> FloatArray:
        """The mixture (domains,) that the search ends at."""
        rng, now, limits = self._rng(0xA2), self.weights, self.setup.limits
        best = now
        for strength in np.geomspace(*STRENGTHS, PASSES).tolist():
            drawn = rng.dirichlet(np.maximum(strength * best, 1e-3), DRAWS)
            drawn = limits.nearest_rows(np.clip(drawn, now / BOX, now * BOX), self._used, self._seen)
            inside = np.all((drawn >= now / BOX - 1e-12) & (drawn <= now * BOX + 1e-12), axis=1)
            pool = np.concatenate([best[None], drawn[inside]])
            ranked = pool[np.argsort(-(pool @ slopes), kind="stable")]
            best = ranked[: min(BEST, len(ranked))].mean(axis=0) if len(ranked) > 1 else best
        return best

    def _rng(self, tag: int) -> np.random.Generator:
        return np.random.default_rng([self.setup.seed, tag, int(self.memory["stage"][0])])


def summed_influence(influence_TP: FloatArray, weights_T: FloatArray) -> FloatArray:
    """Value of each probe, shape (probes,): influences over the largest, summed over targets; NaN where a target is missing."""
    largest = np.where(np.isnan(influence_TP), -np.inf, influence_TP).max(axis=1)
    served = largest > 0
    if not served.any():
        return np.full(influence_TP.shape[1], np.nan)
    return np.asarray(len(weights_T) * weights_T[served] @ (influence_TP[served] / largest[served, None]))


def ridge(mixtures_PD: FloatArray, values_P: FloatArray) -> FloatArray:
    """Slopes (domains,) of a ridge regression with an intercept; the penalty with the least squared error of leaving one out."""
    centred = mixtures_PD - mixtures_PD.mean(axis=0)
    left, sizes, right = np.linalg.svd(centred, full_matrices=False)
    rest = values_P - values_P.mean()
    best, least = np.zeros(mixtures_PD.shape[1]), np.inf
    for penalty in RIDGES:
        kept = sizes**2 / (sizes**2 + penalty * max(sizes[0] ** 2, 1e-300))
        fitted, leverage = left @ (kept * (left.T @ rest)), (left**2) @ kept + 1 / len(rest)
        error = float(np.mean(((rest - fitted) / np.maximum(1 - leverage, 1e-9)) ** 2))
        if error < least:
            shrunk = kept * (left.T @ rest) / np.maximum(sizes, 1e-300)
            best, least = right.T @ shrunk, error
    return best
