"""What is minimized: the predicted objective, the pull toward the natural mixture, and the constraints, in one piece.

The pull is a KL divergence (Olmix, arXiv 2602.12237), here in standard deviations of the objective over the swarm, so that a strength means the
same for every objective. The main trade-off: a pull costs predicted objective to save from a prediction's luck; `pull` weighs the two by
cross-validation.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from mixopt.answer.constraints import FloorSet
from mixopt.errors import InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.optimum import CANDIDATES, Optimum, is_piecewise_constant, minimize
from mixopt.prediction import Prediction
from mixopt.simplex import kl_divergence, sample_uniform
from mixopt.space import MixtureSpace

PROBES = 256
LARGE = 5000
"""Domains times metrics."""
# Moves of a piecewise constant function are sought among so many candidates where a constraint is relaxed.
FEW_CANDIDATES = 2000


def is_large(space: MixtureSpace, metrics: int) -> bool:
    """Whether predictions of all metrics cost so much that a search must do with few of them."""
    return len(space.domains) * metrics > LARGE


@dataclass(frozen=True)
class Problem:
    """Minimize the predicted objective + strength * KL(mixture, natural) over `space`, within `limits`.

    Attributes:
        strength: of the pull, in objective units.
        starts: mixtures worth trying, shape (n, domains).
        smooth: whether the prediction has slopes.
    """

    prediction: Prediction
    space: MixtureSpace
    strength: float
    limits: FloorSet | None
    starts: FloatArray
    smooth: bool

    @classmethod
    def of(cls, prediction: Prediction, space: MixtureSpace, strength: float, limits: FloorSet | None, starts: FloatArray) -> Problem:
        # Inside the simplex: trees split at exactly 0, so a move away from a face would look like a slope.
        probes = sample_uniform(np.random.default_rng([prediction.seed, 0x9B0]), PROBES, len(space.domains))
        smooth = not is_piecewise_constant(prediction.mean, probes)
        return cls(prediction, space, strength, limits if limits is not None and len(limits) else None, starts, smooth)

    def value(self, weights: FloatArray) -> FloatArray:
        """What is minimized at mixtures (n, domains), shape (n,)."""
        return self.prediction.mean(weights) + self.strength * kl_divergence(weights, self.prediction.natural)

    def pieces(self, weights: FloatArray) -> FloatArray:
        """What `value` is the largest of, shape (n, pieces): a worst case has an edge wherever two metrics are equally bad."""
        objective = self.prediction.objective
        losses = self.prediction.counted.mean(self.prediction.points(weights))
        return np.asarray(objective.pieces(losses) + self.strength * kl_divergence(weights, self.prediction.natural)[:, None])

    def excess(self, weights: FloatArray) -> FloatArray:
        """The largest miss of a floor by mixtures (n, domains), shape (n,); 0 and less where there is none."""
        return self.limits.excess(weights).max(axis=1) if self.limits is not None else np.zeros(len(weights))

    @property
    def large(self) -> bool:
        """Whether each prediction costs so much that candidates must be few: hundreds of domains and dozens of metrics."""
        return is_large(self.space, len(self.prediction.objective.metrics))

    def solve(self, candidates: int | None = None) -> Optimum:
        """The best feasible mixture found.

        Raises:
            InfeasibleError: no mixture was found that keeps every floor; names those that are missed, and by how much at the closest mixture.
        """
        pieces = self.pieces if self.prediction.objective.kind == "worst_case" else None
        seed = self.prediction.seed
        if candidates is None:
            candidates = FEW_CANDIDATES if self.large else CANDIDATES
        optimum = minimize(self.value, self.space, self.starts, seed, self.smooth, candidates, self.limits, pieces)
        if optimum.method == "closest":
            raise self._out_of_reach(optimum.weights)
        return optimum

    def within(self, space: MixtureSpace, limits: FloorSet | None) -> Problem:
        """The same under other constraints."""
        return replace(self, space=space, limits=limits)

    def _out_of_reach(self, closest: FloatArray) -> InfeasibleError:
        assert self.limits is not None, "only floors can be out of reach: the space is not empty"
        missed = self.limits.excess(closest[None])[0]
        unit = self.limits.unit
        parts = [
            f"{sentence}, missed by {miss:.3g}" for sentence, miss in zip(self.limits.sentences(), missed.tolist(), strict=True) if miss > 0
        ]
        named = sorted(zip(self.space.domains, closest.tolist(), strict=True), key=lambda item: -item[1])
        mixture = ", ".join(f"{name} {weight:.3g}" for name, weight in named if weight >= 5e-4)
        return InfeasibleError(
            f"No mixture keeps every floor, as far as the surrogate predicts. The closest ({mixture}) has {'; '.join(parts)}.",
            f"Loosen these floors by that much ({unit}), raise the caps and bounds that stand in their way, or lower their confidence.",
        )
