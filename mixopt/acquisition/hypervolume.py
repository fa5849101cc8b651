"""Expected hypervolume improvement on draws of what is measured: what one more run adds to a front of several objectives.

The front of two to four objectives dominates a region up to a reference point; a run is worth the volume that it is expected to add. Losses at the
measured mixtures and those under way are drawn, a path each, as in `improvement` (qNEHVI, Daulton et al. 2021, arXiv 2105.08195). What a path's front leaves
undominated is cut into boxes, in which the expected improvement of independent normal objectives is a product of formulas (Yang et al. 2019,
section 3). Its logarithm is what is maximized. The main trade-off: objectives that share metrics count as independent, and boxes grow with the
front to the power of the objectives less one, so fronts of three and more are thinned.

Legend: M points, U units, K metrics, J objectives, S paths, B boxes, N points of a front.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from mixopt.acquisition.beliefs import Beliefs
from mixopt.mixture import FloatArray

MOST_ON_FRONT = {2: 24, 3: 16, 4: 10}
LEAST_GAIN = 1e-30


@dataclass(frozen=True)
class Objectives:
    """Several objectives: weighted means of (loss - natural) / noise, lower is better.

    Attributes:
        names: J of them.
        factors: what each grows by per unit of each loss, shape (J, K).
        natural: losses at the natural mixture, shape (K,).
    """

    names: tuple[str, ...]
    factors: FloatArray
    natural: FloatArray

    def values(self, losses: FloatArray) -> FloatArray:
        """Of losses (..., K), shape (..., J)."""
        return np.asarray((losses - self.natural) @ self.factors.T)


def undominated(values_NJ: FloatArray) -> FloatArray:
    """Which points no other point is at least as good as in everything, the first of equals; indices, ascending."""
    kept = []
    for index, value_J in enumerate(values_NJ):
        no_worse = np.all(values_NJ <= value_J, axis=1)
        better = no_worse & np.any(values_NJ < value_J, axis=1)
        if not better.any() and not no_worse[:index].any():
            kept.append(index)
    return np.array(kept, dtype=np.int64)


def boxes_below(front_NJ: FloatArray, reference_J: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The region below the reference that no point of the front dominates, as disjoint boxes: lower and upper corners, both (B, J); some reach to -inf.

    By slices along the last objective, in which only points below the slice dominate anything.
    """
    objectives = len(reference_J)
    front_NJ = front_NJ[np.all(front_NJ < reference_J, axis=1)] if len(front_NJ) else front_NJ.reshape(0, objectives)
    if objectives == 1:
        best = min([reference_J[0], *front_NJ[:, 0].tolist()])
        return np.array([[-np.inf]]), np.array([[best]])
    levels = np.unique(front_NJ[:, -1])
    edges = np.concatenate([[-np.inf], levels, [reference_J[-1]]])
    lower, upper = [], []
    for low, high in pairwise(edges.tolist()):
        below = front_NJ[front_NJ[:, -1] <= low, :-1]
        inner_low, inner_high = boxes_below(below[undominated(below)], reference_J[:-1])
        lower.append(np.column_stack([inner_low, np.full(len(inner_low), low)]))
        upper.append(np.column_stack([inner_high, np.full(len(inner_high), high)]))
    return np.concatenate(lower), np.concatenate(upper)


def hypervolume(front_NJ: FloatArray, reference_J: FloatArray) -> float:
    """Volume that the front dominates, up to the reference."""
    inside = front_NJ[np.all(front_NJ < reference_J, axis=1)]
    if not len(inside):
        return 0.0
    ideal_J = inside.min(axis=0)
    lower, upper = boxes_below(inside, reference_J)
    left = np.prod(np.maximum(upper - np.maximum(lower, ideal_J), 0.0), axis=1).sum()
    return float(np.prod(reference_J - ideal_J) - left)


@dataclass(frozen=True)
class FrontImprovement:
    """Log expected hypervolume improvement; build it with `over`.

    Attributes:
        beliefs: given a draw per path of the mixtures measured and under way.
        fronts: drawn objectives of these that may be on the front, per path.
        boxes: what each path's front leaves, lower and upper corners.
    """

    beliefs: Beliefs
    objectives: Objectives
    reference: FloatArray
    fronts: tuple[FloatArray, ...]
    boxes: tuple[tuple[FloatArray, FloatArray], ...]

    @classmethod
    def over(
        cls,
        beliefs: Beliefs,
        objectives: Objectives,
        reference_J: FloatArray,
        weights_MD: FloatArray,
        eligible_M: NDArray[np.bool_],
        paths: int,
        rng: np.random.Generator,
    ) -> FrontImprovement:
        """Over the mixtures given; those that are not eligible are drawn and known, but not on the front."""
        losses_MSK = beliefs.draw(weights_MD, paths, rng)
        drawn_MSJ = objectives.values(losses_MSK)[eligible_M]
        fronts = tuple(drawn_MSJ[:, path] for path in range(paths))
        return cls(beliefs.given(weights_MD, losses_MSK), objectives, reference_J, fronts, ())._boxed()

    def with_point(self, weights_D: FloatArray, eligible: bool, rng: np.random.Generator) -> FrontImprovement:
        """After one more mixture is under way: its losses are drawn on every path."""
        means_MSK, variances_MK = self.beliefs.moments(weights_D[None])
        losses_MSK = means_MSK + np.sqrt(variances_MK)[:, None, :] * rng.standard_normal(means_MSK.shape)
        drawn_SJ = self.objectives.values(losses_MSK)[0]
        fronts = tuple(np.concatenate([front, row[None]]) if eligible else front for front, row in zip(self.fronts, drawn_SJ, strict=True))
        return replace(self, beliefs=self.beliefs.given(weights_D[None], losses_MSK), fronts=fronts)._boxed()

    def values(self, points_MU: FloatArray) -> FloatArray:
        """Values alone, shape (M,)."""
        means_MSK, variances_MK = self.beliefs.moments(self.beliefs.coordinates.weights(points_MU))
        return np.asarray(np.log(self._gain(means_MSK, variances_MK)[0]))

    def __call__(self, points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Logarithm of the expected improvement (M,) and its derivatives by the units' weights (M, U)."""
        weights_MD = self.beliefs.coordinates.weights(points_MU)
        means_MSK, variances_MK = self.beliefs.moments(weights_MD)
        gain_M, by_value_MSJ, by_std_MJ, std_MJ = self._gain(means_MSK, variances_MK)
        by_mean_MSK = (by_value_MSJ / gain_M[:, None, None]) @ self.objectives.factors
        by_variance_MK = (by_std_MJ / gain_M[:, None] / (2 * std_MJ)) @ self.objectives.factors**2
        return np.log(gain_M), self.beliefs.slopes(weights_MD, by_mean_MSK, by_variance_MK)

    def _gain(self, means_MSK: FloatArray, variances_MK: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Expected improvement (M,), its derivatives by the objectives' means (M, S, J) and standard deviations (M, J), and the latter."""
        values_MSJ = self.objectives.values(means_MSK)
        std_MJ = np.sqrt(variances_MK @ (self.objectives.factors**2).T)
        gain_M = np.full(len(means_MSK), LEAST_GAIN)
        by_value_MSJ, by_std_MJ = np.zeros_like(values_MSJ), np.zeros_like(std_MJ)
        for path, (lower_BJ, upper_BJ) in enumerate(self.boxes):
            part_M, by_value, by_std = _expected(values_MSJ[:, path], std_MJ, lower_BJ, upper_BJ)
            gain_M += part_M / len(self.boxes)
            by_value_MSJ[:, path] = by_value / len(self.boxes)
            by_std_MJ += by_std / len(self.boxes)
        return gain_M, by_value_MSJ, by_std_MJ, std_MJ

    def _boxed(self) -> FrontImprovement:
        most = MOST_ON_FRONT[len(self.reference)]
        boxes = []
        for values_NJ in self.fronts:
            front_NJ = values_NJ[undominated(values_NJ)]
            front_NJ = front_NJ[np.all(front_NJ < self.reference, axis=1)]
            boxes.append(boxes_below(thinned(front_NJ, most), self.reference))
        return replace(self, boxes=tuple(boxes))


def thinned(front_NJ: FloatArray, most: int) -> FloatArray:
    """At most so many points of a front, evenly along its first objective."""
    if len(front_NJ) <= most:
        return front_NJ
    order = np.argsort(front_NJ[:, 0], kind="stable")
    return np.asarray(front_NJ[order[np.unique(np.linspace(0, len(order) - 1, most).round().astype(int))]])


def _expected(
    mean_MJ: FloatArray, std_MJ: FloatArray, lower_BJ: FloatArray, upper_BJ: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Expected volume of what a normal point dominates within boxes (M,), and its derivatives by mean and std, both (M, J).

    In one box and objective it is psi(upper) - psi(lower), psi(a) the expectation of max(0, a - Y).
    """
    above, above_mean, above_std = _shortfall(upper_BJ, mean_MJ, std_MJ)
    below, below_mean, below_std = _shortfall(lower_BJ, mean_MJ, std_MJ)
    side_MBJ = above - below
    objectives = mean_MJ.shape[1]
    by_mean, by_std = np.empty_like(mean_MJ), np.empty_like(std_MJ)
    for one in range(objectives):
        others_MB = np.prod(side_MBJ[:, :, [other for other in range(objectives) if other != one]], axis=2)
        by_mean[:, one] = (others_MB * (above_mean - below_mean)[:, :, one]).sum(axis=1)
        by_std[:, one] = (others_MB * (above_std - below_std)[:, :, one]).sum(axis=1)
    return side_MBJ.prod(axis=2).sum(axis=1), by_mean, by_std


def _shortfall(edge_BJ: FloatArray, mean_MJ: FloatArray, std_MJ: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Expectation of max(0, edge - Y) and its derivatives by mean and std, all (M, B, J); 0 where the edge is -inf."""
    mean, std = mean_MJ[:, None], std_MJ[:, None]
    finite = np.isfinite(edge_BJ)
    z = (np.where(finite, edge_BJ, 0.0) - mean) / std
    share = np.where(finite, ndtr(z), 0.0)
    density = np.where(finite, np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi), 0.0)
    return std * (density + np.where(finite, z, 0.0) * share), -share, density
