"""The proposal: the recommended mixture with its predicted effect, its uncertainty and the evidence behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mixopt.mixture import Mixture, Schedule


@dataclass(frozen=True)
class Effect:
    """A predicted difference to the natural mixture, in bits per byte for metrics and in objective units for the objective.

    Negative is better. `low` and `high` bound the central 90% of the posterior of the difference.
    """

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Proposal:
    """What a search recommends.

    Attributes:
        schedule: the recommended mixture, one phase.
        objective: predicted objective minus the natural mixture's.
        effects: metric -> predicted difference to natural; every metric measured, in the objective or not.
        near_optimal: domain -> least and largest weight among feasible mixtures whose predicted objective is within noise of the optimum.
        epochs: domain -> repetitions in the target run.
        binding: the constraints that hold the optimum back, as sentences ("math: 4 epochs allow at most 0.083").
        screened: metric -> why it was left out of the objective.
        best_measured: trial id and label of the best measured mixture, its weights, and its objective difference to natural.
        evidence: JSON values: number of trials, surrogate, pull, out-of-fold Spearman per metric, noise per metric, baselines' predicted
            objective, predicted against measured pairs for the figures.
    """

    schedule: Schedule
    objective: Effect
    effects: Mapping[str, Effect]
    near_optimal: Mapping[str, tuple[float, float]]
    epochs: Mapping[str, float]
    binding: tuple[str, ...]
    screened: Mapping[str, str]
    best_measured: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mixture(self) -> Mixture:
        return self.schedule.average()

    def to_json(self) -> dict[str, Any]:
        body = asdict(self)
        body["schedule"] = {
            "domains": list(self.schedule.domains),
            "weights": self.schedule.array().tolist(),
            "fractions": list(self.schedule.fractions),
        }
        return body

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Proposal:
        schedule = body["schedule"]
        names = tuple(schedule["domains"])
        return cls(
            schedule=Schedule(tuple(Mixture(names, tuple(row)) for row in schedule["weights"]), tuple(schedule["fractions"])),
            objective=Effect(**body["objective"]),
            effects={metric: Effect(**effect) for metric, effect in body["effects"].items()},
            near_optimal={name: (low, high) for name, (low, high) in body["near_optimal"].items()},
            epochs=dict(body["epochs"]),
            binding=tuple(body["binding"]),
            screened=dict(body["screened"]),
            best_measured=dict(body["best_measured"]),
            evidence=dict(body["evidence"]),
        )
