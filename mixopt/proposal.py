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


def effect_json(effect: Effect) -> dict[str, float]:
    return {"mean": effect.mean, "low": effect.low, "high": effect.high}


@dataclass(frozen=True)
class Relaxation:
    """What one constraint costs: the predicted objective of the best mixture without so much of it, minus the proposal's.

    Attributes:
        constraint: that holds the proposal, as in `Proposal.binding`.
        change: what was relaxed, by how much ("the cap on math raised from 0.0833 to 0.0917").
        gain: in objective units, negative is better; 0 where nothing better was found.
        weights: domain -> weight of the best mixture then.
    """

    constraint: str
    change: str
    gain: Effect
    weights: Mapping[str, float]


@dataclass(frozen=True)
class Alternative:
    """Another mixture within noise of the proposal.

    Attributes:
        weights: domain -> weight.
        objective: predicted, minus the proposal's.
        distance: total variation to the proposal, the share of tokens that differ.
    """

    weights: Mapping[str, float]
    objective: Effect
    distance: float


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
        sensitivities: domain, or group of a given split -> predicted change of the objective for one more percentage point of it, which the others
            give in proportion.
        relaxations: of the constraints in `binding`, what relaxing each would bring.
        alternatives: mixtures that differ from the proposal and from each other and cannot be told from it: their weights, their predicted
            objective minus the proposal's, and their distance.
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
    sensitivities: Mapping[str, Effect] = field(default_factory=dict)
    relaxations: tuple[Relaxation, ...] = ()
    alternatives: tuple[Alternative, ...] = ()

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
            # Records from before these were known have none.
            sensitivities={name: Effect(**effect) for name, effect in body.get("sensitivities", {}).items()},
            relaxations=tuple(Relaxation(**{**entry, "gain": Effect(**entry["gain"])}) for entry in body.get("relaxations", ())),
            alternatives=tuple(
                Alternative(**{**entry, "objective": Effect(**entry["objective"])}) for entry in body.get("alternatives", ())
            ),
        )
