"""Iterative refinement of clusters (Diversify and Conquer, arXiv 2409.11378): a few rounds, each toward clusters whose samples the model
still answers worst.

    w_j <- w_j exp(rate * reward_j) / Z

with reward_j = mean of score(gold answer) - score(generated answer) over the cluster's samples of the last round, in the unit of the
scorer. What was drawn does not return: `available` tokens of the setup. Clusters are domains here. Evidence: paper and code; three
rounds.

Deviations. The paper multiplies by s_j / sum s, which breaks where a mean gap is negative; the code takes softmax of the gaps and forgets
the weights before. Here softmax times the weights before. The rate is in one over the scorer's unit; 1 is the code's. A cluster without a
scored sample keeps its weight, where the code divides by nothing. Budgets per cluster (in the code a total was used as one) are the
sampler's.
"""

from __future__ import annotations

from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.limits import tilted
from mixopt.controllers.signals import Signal, Signals


class ClusterRefineOptions(Every):
    every: float = Field(1 / 3, gt=0, le=1, description="Share of the run's tokens in a round.")
    rate: float = Field(1.0, gt=0, description="Of the tilt, per unit of reward.")


class ClusterRefine(Adaptive):
    name = "cluster_refine"
    options_type = ClusterRefineOptions
    given: ClusterRefineOptions
    needs = frozenset({Signal.REWARD})

    def update(self, signals: Signals) -> Wanted:
        return Wanted(tilted(self.weights, signals[Signal.REWARD], self.given.rate))
