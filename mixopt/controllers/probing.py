"""How much training on each domain lowers each target's loss, learned on the live run: the LearnParams of Aioli (arXiv 2411.05735).

In rounds, the run trains for a little on mixtures that lean on one domain each, in a random order, and targets are measured after each.
With the linear law of one step, loss_i falls by sum_j A_ij p_j, the drops and the mixtures give A by least squares; exactly, if the law
is exact. Random orders spread the drift of a falling loss over all domains. The main trade-off: probes are training on mixtures that
nobody chose, and each costs a pass over the held-out sets.

Differs from the authors' code: it solves for the average drop per domain from the mixtures it asked for; here each drop counts with the
mixture that limits left of the one asked for, and per token trained. A target that was not measured before or after a probe misses that
probe only.
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Setup, Wanted
from mixopt.controllers.signals import Signal, Signals
from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray


class ProbingOptions(Every):
    rounds: int = Field(1, ge=1, le=100, description="How often each domain is probed in one round of learning.")
    probe_share: float = Field(0.3, gt=0, lt=1, description="Share of an interval that goes to probes; each takes a step at least.")
    lean: float = Field(0.75, gt=0, le=1, description="Weight of the probed domain in its mixture; the others share the rest evenly.")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of the run on the prior before the first probe.")


class Probing(Adaptive):
    """A controller that learns its matrix by probes. Memory: what this round trained on and measured."""

    given: ProbingOptions
    needs = frozenset({Signal.VALIDATION_LOSS})

    def __init__(self, setup: Setup, options: ProbingOptions) -> None:
        if not setup.targets:
            raise ConfigError(f"The controller '{self.name}' has no targets.", "Name held-out sets in `targets`, as those of the domains.")
        if abs(options.lean - 1 / len(setup.domains)) < 1e-3:
            raise ConfigError(f"`lean` is {options.lean}: every probe of {len(setup.domains)} domains is the same.", "Raise it.")
        super().__init__(setup, options)
        if len(setup.names) * options.rounds * self.probe_tokens > setup.tokens:
            raise ConfigError(
                f"One round of probes takes {len(setup.names) * options.rounds * self.probe_tokens} tokens of the run's {setup.tokens}.",
                "Lower `rounds`, or train for longer.",
            )

    @abstractmethod
    def learned(self, matrix_TD: FloatArray, losses_T: FloatArray) -> Wanted:
        """What is wanted after a round that found drops per target and domain, per probe; NaN rows were not measured."""

    @property
    def probe_tokens(self) -> int:
        probes = len(self.setup.names) * self.given.rounds
        return self.setup.lasting(self.given.every * self.given.probe_share / probes)

    def begin(self) -> dict[str, FloatArray]:
        return {"round": np.zeros(1), **self._fresh()}

    def _fresh(self) -> dict[str, FloatArray]:
        return {
            "probe_mixtures": np.zeros((0, len(self.setup.names))),
            "probe_losses": np.zeros((0, len(self.setup.target_names))),
            "probe_ends": np.zeros(0),
        }

    def first(self) -> Wanted:
        return Wanted(tokens=self.setup.lasting(self.given.warmup) if self.given.warmup > 0 else 0)

    def probed(self, losses: FloatArray) -> Wanted:
        """The next probe of the round after these losses (targets,), or what its end leads to."""
        memory = self.memory
        if len(memory["probe_losses"]):
            memory["probe_mixtures"] = np.concatenate([memory["probe_mixtures"], self.trained_on[None]])
        memory["probe_losses"] = np.concatenate([memory["probe_losses"], losses[None]])
        memory["probe_ends"] = np.append(memory["probe_ends"], float(self.seen))
        done, count = len(memory["probe_mixtures"]), len(self.setup.names)
        if done < self.given.rounds * count:
            rng = np.random.default_rng([self.setup.seed, 0xA101, int(memory["round"][0]), done // count])
            domain = int(rng.permutation(count)[done % count])
            mixture = np.full(count, (1 - self.given.lean) / (count - 1))
            mixture[domain] = self.given.lean
            return Wanted(mixture, self.probe_tokens, self.setup.names[domain])
        spans = np.diff(memory["probe_ends"]) / self.probe_tokens
        matrix = drops_per_domain(memory["probe_mixtures"], memory["probe_losses"], spans)
        self.memory = memory | self._fresh() | {"round": memory["round"] + 1}
        return self.learned(matrix, losses)


def drops_per_domain(mixtures_PD: FloatArray, losses_RT: FloatArray, spans_P: FloatArray) -> FloatArray:
    """A (targets, domains) of the law drop_i = span * sum_j A_ij p_j by least squares; NaN rows for targets that were not measured.

    Args:
        losses_RT: before the first probe and after each, shape (probes + 1, targets).
        spans_P: how long each probe took, in probes.
    """
    drops = losses_RT[:-1] - losses_RT[1:]
    matrix = np.full((losses_RT.shape[1], mixtures_PD.shape[1]), np.nan)
    for target, column in enumerate(drops.T):
        known = ~np.isnan(column)
        if known.any():
            matrix[target] = np.linalg.lstsq(mixtures_PD[known] * spans_P[known, None], column[known], rcond=None)[0]
    return matrix


def unmeasured(signals: Signals) -> bool:
    """Whether no target was measured."""
    return bool(np.isnan(signals[Signal.VALIDATION_LOSS]).all())
