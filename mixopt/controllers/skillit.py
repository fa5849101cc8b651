"""Skill-It (arXiv 2307.14430): a fixed graph of which domain serves which target, times the targets' current losses.

    w_j = prior_j exp(rate * sum_i A_ij * mean of the last 3 losses of target i) / Z

A >= 0 is the graph, the influence of training on domain j on target i. Sign: more weight to what serves targets whose loss is still high.
Update rule, window 3 and rate .2 are from the authors' code; how they learn the graph is not shipped. Evidence is mixed: with a fixed
graph it was worse than equal weights on one of six sets of Aioli's comparison.

Deviations. Losses are divided by their first values, for else domains of high entropy get weight for being so (their flag
`normalize_loss`). A graph that is not given is learned by one round of probes (`probing`) at the start, as drops over first losses,
negative ones 0, the largest 1, in place of one short run per domain. A graph in which all entries are alike moves nothing, as theirs.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import ControllerOptions, Setup, Wanted
from mixopt.controllers.limits import kept, tilted, weighted_mean
from mixopt.controllers.probing import Probing, ProbingOptions, unmeasured
from mixopt.controllers.signals import Signal, Signals
from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray


class SkillitOptions(ProbingOptions):
    every: float = Field(0.05, gt=0, le=1, description="Share of the run's tokens between two decisions.")
    probe_share: float = Field(0.9, gt=0, lt=1, description="Share of one interval that goes to the probes of the start.")
    rate: float = Field(0.2, gt=0, description="Of the tilt, per unit of loss times graph.")
    window: int = Field(3, ge=1, le=1000, description="Evaluations whose mean loss counts.")
    normalize: bool = Field(True, description="Losses over their first values.")
    graph: dict[str, dict[str, float]] | None = Field(
        None, description="target -> domain -> influence, at least 0; absent ones are 0. None: learned."
    )


class Skillit(Probing):
    name = "skillit"
    options_type = SkillitOptions
    given: SkillitOptions

    def __init__(self, setup: Setup, options: ControllerOptions) -> None:
        assert isinstance(options, SkillitOptions)
        for target, row in (options.graph or {}).items():
            if target not in setup.targets or not set(row) <= set(setup.domains):
                raise ConfigError(f"`graph` names '{target}' with {', '.join(row)}.", "Use names of targets, and in them of domains.")
            if any(not 0 <= value < np.inf for value in row.values()):
                raise ConfigError(f"`graph` of the target '{target}' is {row}.", "Influences are at least 0.")
        super().__init__(setup, options)

    def begin(self) -> dict[str, FloatArray]:
        targets, domains = self.setup.target_names, self.setup.names
        graph = np.full((len(targets), len(domains)), np.nan)
        if self.given.graph is not None:
            graph = np.array([[self.given.graph.get(target, {}).get(domain, 0.0) for domain in domains] for target in targets])
        return super().begin() | {"graph": graph, "first": np.full(len(targets), np.nan), "window": np.zeros((0, len(targets)))}

    def update(self, signals: Signals) -> Wanted:
        if unmeasured(signals):
            return Wanted()
        losses = signals[Signal.VALIDATION_LOSS]
        self.memory["first"] = np.where(np.isnan(self.memory["first"]), losses, self.memory["first"])
        if np.isnan(self.memory["graph"]).all():
            return self.probed(losses)
        return self._tilted(losses)

    def learned(self, matrix_TD: FloatArray, losses_T: FloatArray) -> Wanted:
        served = np.maximum(matrix_TD / self.memory["first"][:, None], 0.0)
        largest = np.nanmax(served, initial=0.0)
        # A target that no probe was measured on serves as one that nothing influences; NaN would have the probes begin anew.
        self.memory["graph"] = np.nan_to_num(served / largest, nan=0.0) if largest > 0 else np.zeros(served.shape)
        return self._tilted(losses_T)

    def _tilted(self, losses_T: FloatArray) -> Wanted:
        memory = self.memory
        before = memory["window"][-1] if len(memory["window"]) else np.full(len(losses_T), np.nan)
        memory["window"] = np.concatenate([memory["window"], kept(before, losses_T)[None]])[-self.given.window :]
        mean = weighted_mean(memory["window"], np.ones(len(memory["window"])))
        scores = skillit_scores(memory["graph"], mean / memory["first"] if self.given.normalize else mean, self.setup.targets_weighted)
        return Wanted(tilted(self.setup.start, scores, self.given.rate), self.interval)


def skillit_scores(graph_TD: FloatArray, losses_T: FloatArray, weights_T: FloatArray) -> FloatArray:
    """sum_i A_ij loss_i (domains,), a sum as published where all targets count alike; over the targets that were measured."""
    return weighted_mean(graph_TD * losses_T[:, None], weights_T) * len(weights_T)
