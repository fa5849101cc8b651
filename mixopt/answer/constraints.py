"""Floors as constraints on what a surrogate predicts.

A limit is relative to what the same surrogate predicts for the baseline, so that an error both share cancels; with a confidence it is kept by so
many posterior standard deviations, too. The main trade-off: a floor binds predictions, not losses. Verification tells whether it holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.answer.floors import Floor
from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray
from mixopt.prediction import Prediction

# A floor is kept if it is missed by no more than this, in the unit of losses: far below what any seed can tell.
FLOOR_WITHIN = 1e-6
SPOKEN_BASELINES = {"natural": "natural", "uniform": "uniform", "unimax": "UniMax", "best_measured": "the best measured mixture"}


@dataclass(frozen=True)
class FloorSet:
    """Floors as constraints on predicted losses. Build it with `place_floors`.

    Attributes:
        floors: with full names.
        baseline_losses, limits: of each floor, the baseline's loss and the largest loss allowed, shape (floors,).
        scales: a noise of each floor's metric, shape (floors,), which makes misses of different metrics comparable.
        confidence: posterior standard deviations that the predicted loss must keep from the limit.
        unit: of losses.
        negated: metrics of which more is better, whose losses are their negatives; sentences give them in their own sign.
    """

    prediction: Prediction
    floors: tuple[Floor, ...]
    baseline_losses: FloatArray
    limits: FloatArray
    scales: FloatArray
    confidence: float
    unit: str
    negated: frozenset[str] = frozenset()

    def __len__(self) -> int:
        return len(self.floors)

    def excess(self, weights: FloatArray) -> FloatArray:
        """By how much mixtures (n, domains) are above each limit, in the unit of losses, shape (n, floors); at most 0 where a floor is kept."""
        metrics = [floor.metric for floor in self.floors]
        unique = list(dict.fromkeys(metrics))
        losses = self.prediction.losses(weights, unique)
        if self.confidence:
            losses = losses + self.confidence * self.prediction.loss_stds(weights, unique)
        return np.asarray(losses[:, [unique.index(metric) for metric in metrics]] - self.limits)

    def sentences(self) -> tuple[str, ...]:
        """What each floor asks, as "math: at most 1.25 bits per byte, natural's 1.24 and 1%"."""
        return tuple(
            self._sentence(floor, base, limit)
            for floor, base, limit in zip(self.floors, self.baseline_losses.tolist(), self.limits.tolist(), strict=True)
        )

    def _sentence(self, floor: Floor, base: float, limit: float) -> str:
        turned = floor.metric in self.negated
        sign, allows, joined = (-1.0, "at least", "less") if turned else (1.0, "at most", "and")
        margin = f"{floor.by:g}%" if floor.percent else f"{floor.by:g}"
        whose = (
            f"{SPOKEN_BASELINES[floor.baseline]}'s predicted {sign * base:.4g}" if isinstance(floor.baseline, str) else f"{sign * base:.4g}"
        )
        more = f" {joined} {margin}" if floor.by else ""
        sure = f", with {self.confidence:g} posterior standard deviations to spare" if self.confidence else ""
        return f"{floor.metric}: the floor allows {allows} {sign * limit:.4g} {self.unit} ({whose}{more}){sure}"


def place_floors(
    prediction: Prediction,
    floors: Sequence[Floor],
    baselines: Mapping[str, FloatArray],
    noise: Mapping[str, float],
    confidence: float,
    negated: frozenset[str] = frozenset(),
) -> FloorSet:
    """The floors (of `resolve_floors`) as constraints.

    Args:
        baselines: name -> weights (domains,) of every baseline that a floor may name.
        noise: metric -> a scale of its losses above 0.
        negated: metrics of which more is better.

    Raises:
        ConfigError: the confidence is no finite number of at least 0.
    """
    if not (math.isfinite(confidence) and confidence >= 0):
        raise ConfigError(f"The confidence of the floors is {confidence}.", "Give a number of standard deviations, 0 or more.")
    base = []
    for floor in floors:
        if isinstance(floor.baseline, str):
            base.append(float(prediction.losses(baselines[floor.baseline][None], [floor.metric])[0, 0]))
        else:
            base.append(float(floor.baseline))
    base_losses = np.array(base)
    margins = np.array([floor.by / 100 * abs(loss) if floor.percent else floor.by for floor, loss in zip(floors, base, strict=True)])
    scales = np.array([noise[floor.metric] for floor in floors])
    unit = prediction.objective.loss_unit
    return FloorSet(prediction, tuple(floors), base_losses, base_losses + margins, scales, confidence, unit, negated)
