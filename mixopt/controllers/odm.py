"""ODM, online data mixing (arXiv 2312.02406): domains as arms of an adversarial bandit, rewarded for what is left to learn.

    w = (1 - K eps) * prior_j exp(eps * h * R_j) / Z + K eps * prior_j,     eps = min(1/K, sqrt(ln K / (K h))),     h = min(calls, window)

with R_j the mean reward of domain j over the last h of its rewards. h * R is Exp3's cumulated reward, estimated from what was seen.
Evidence: the authors' code (its three variants differ: exp(loss) with exponential weights, exp(loss) with linear ones, reward over
probability); tables from their README.

Deviations. Published rewards are losses, and loss is not learnability: text of high entropy gains weight for ever. The default here is
`progress`, the fall of a domain's loss against its slow average; `loss` is theirs, over the mean first loss; `reward` takes an
evaluation's feedback in [0, 1]. Their averaged R times a vanishing rate tends to equal weights, whatever was learned: here the horizon h
multiplies it, and stops at `window`, which lets old rewards be forgotten. The mean of what was seen needs no division by probabilities,
whose variance Exp3 suffers from; a domain that was not seen keeps its mean, in place of a zero.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.limits import kept, smoothed, tilted
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray

SLOW = 0.9
"""Of the averages that progress and its scale are taken from: the authors' smoothing of rewards."""


class OdmOptions(Every):
    every: float = Field(0.005, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")
    reward: Literal["progress", "loss", "reward"] = Field("progress", description="What an arm is rewarded for.")
    window: int = Field(100, ge=1, description="Rewards that count; older ones fade.")


class Odm(Adaptive):
    name = "odm"
    options_type = OdmOptions
    given: OdmOptions

    @property
    def needs(self) -> frozenset[Signal]:
        return frozenset({Signal.REWARD if self.given.reward == "reward" else Signal.TRAIN_LOSS})

    def begin(self) -> dict[str, FloatArray]:
        count = len(self.setup.names)
        return {"mean": np.full(count, np.nan), "count": np.zeros(count), "slow": np.full(count, np.nan), "scale": np.full(1, np.nan)}

    def update(self, signals: Signals) -> Wanted:
        memory, options = self.memory, self.given
        reward = self._reward(signals)
        seen = ~np.isnan(reward)
        memory["count"] = memory["count"] + seen
        part = 1 / np.clip(memory["count"], 1, options.window)
        memory["mean"] = kept(memory["mean"], np.where(np.isnan(memory["mean"]), reward, memory["mean"] + part * (reward - memory["mean"])))
        return Wanted(exp3(self.setup.start, memory["mean"], min(self.calls, options.window)))

    def _reward(self, signals: Signals) -> FloatArray:
        if self.given.reward == "reward":
            return signals[Signal.REWARD]
        memory, loss = self.memory, signals[Signal.TRAIN_LOSS]
        known = loss[~np.isnan(loss)]
        if self.given.reward == "loss":
            if np.isnan(memory["scale"]).all() and len(known):
                memory["scale"] = np.array([known.mean()])
            return loss / memory["scale"]
        fallen = memory["slow"] - loss
        memory["slow"] = smoothed(memory["slow"], loss, SLOW)
        moved = np.abs(fallen[~np.isnan(fallen)])
        if len(moved):
            memory["scale"] = smoothed(memory["scale"], np.array([moved.mean()]), SLOW)
        return np.clip(fallen / np.maximum(memory["scale"], 1e-12), -1.0, 1.0)


def exp3(prior: FloatArray, mean_reward: FloatArray, horizon: int) -> FloatArray:
    """Weights (domains,) after `horizon` rewards per arm of these means; an arm that never was seen (NaN) keeps its share of the prior."""
    count = len(prior)
    rate = min(1 / count, float(np.sqrt(np.log(count) / (count * max(horizon, 1)))))
    return (1 - count * rate) * tilted(prior, mean_reward, rate * horizon) + count * rate * prior
