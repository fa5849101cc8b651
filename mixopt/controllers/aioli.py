"""Aioli (arXiv 2411.05735): weights by how much each domain lowers the targets' losses, learned by probes on the live run.

    w_j = prior_j exp(rate * K * sum_i Abar_ij) / Z,     Abar = A - min(A, 0) scaled to sum 1, smoothed over rounds

A is from `probing`: drop of target i per probe of domain j. Sign: A above zero is a drop of the loss, so more weight. It is the only
published method that was below equal weights on all six sets of its own comparison (-.20 to -.44 perplexity; secondary text, two notes
agree; update rule from the authors' code). Its objective is validation perplexity, which there disagreed with downstream accuracy
(correlation .53), and the linear law explains little of instruction tuning.

Deviations. Scores are times K, so that one rate serves any number of domains: the authors' 1 for 7 domains and .2 for 2 are .14 and .1 in
this unit. Memoryless from the prior with smoothing (`ema` .1 of the old) as their code with EMA has it from uniform; `accumulate` is
their other mode. Where no probe lowered or raised any loss there is nothing to normalise, and the prior stays. In theirs 13 to 70% of the
run are probes; here a stated share.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Wanted
from mixopt.controllers.limits import smoothed, tilted
from mixopt.controllers.probing import Probing, ProbingOptions, unmeasured
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray


class AioliOptions(ProbingOptions):
    every: float = Field(0.1, gt=0, le=1, description="Share of the run's tokens from one round of probes to the next.")
    rate: float = Field(0.15, gt=0, description="Of the tilt, per score; scores are 1 on average.")
    ema: float = Field(0.1, ge=0, lt=1, description="How much of the matrix before stays in the new one.")
    accumulate: bool = Field(False, description="Tilt the weights before, not the prior.")


class Aioli(Probing):
    name = "aioli"
    options_type = AioliOptions
    given: AioliOptions

    def begin(self) -> dict[str, FloatArray]:
        return super().begin() | {"matrix": np.full((len(self.setup.target_names), len(self.setup.names)), np.nan)}

    def update(self, signals: Signals) -> Wanted:
        return Wanted() if unmeasured(signals) else self.probed(signals[Signal.VALIDATION_LOSS])

    def learned(self, matrix_TD: FloatArray, losses_T: FloatArray) -> Wanted:
        self.memory["matrix"] = smoothed(self.memory["matrix"], normalised(matrix_TD), self.given.ema)
        base = self.weights if self.given.accumulate else self.setup.start
        probes = len(self.setup.names) * self.given.rounds * self.probe_tokens
        lasting = max(self.interval - probes, self.setup.step_tokens)
        return Wanted(tilted(base, aioli_scores(self.memory["matrix"], self.setup.targets_weighted), self.given.rate), lasting)


def normalised(matrix_TD: FloatArray) -> FloatArray:
    """Without negative entries and with sum 1 over what was measured; all NaN where there is no difference to speak of."""
    known = matrix_TD[~np.isnan(matrix_TD)]
    if not len(known):
        return matrix_TD
    lifted = matrix_TD - min(known.min(), 0.0)
    total = np.nansum(lifted)
    return lifted / total if total > 1e-12 else np.full(matrix_TD.shape, np.nan)


def aioli_scores(matrix_TD: FloatArray, weights_T: FloatArray) -> FloatArray:
    """Weighted column sums times the number of domains, shape (domains,); 1 on average where all targets count alike and were measured."""
    known = ~np.isnan(matrix_TD).any(axis=1)
    if not known.any() or not weights_T[known].sum() > 0:
        return np.full(matrix_TD.shape[1], np.nan)
    shares = weights_T[known] / weights_T[known].sum()
    return np.asarray(matrix_TD.shape[1] * known.sum() * (shares @ matrix_TD[known]))
