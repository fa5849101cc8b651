"""Which run comes next, one after the other: its mixture by the expected improvement, or its source, too, by the knowledge gradient per cost.

Runs that were chosen count as under way for those after them, so a batch is spread and its first runs are those of a smaller batch. The main trade-off:
each is the best next one, not the batch the best together.

Legend: A answers, M points, U units, D domains, S paths, K metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixopt.acquisition.ascent import candidates, maximize
from mixopt.acquisition.beliefs import Beliefs, Coordinates
from mixopt.acquisition.improvement import Improvement
from mixopt.acquisition.knowledge import Knowledge
from mixopt.mixture import FloatArray

PATHS = 64
"""Draws of what runs under way and the next one will show; halves of them mirror each other, which takes most of the chance out of an average."""
MOST_BASELINES = 24
"""Measured mixtures that may be the best one: those behind them by prediction hardly ever are, and cost the cube of their number."""
GOOD = 8
"""Best mixtures around which to look, and which may be the answer."""


@dataclass(frozen=True)
class Chooser:
    """What is known and under way; build it with `start`.

    Attributes:
        beliefs: given draws of the runs under way.
        answers: mixtures that may be the answer, shape (A, D).
        good: points to look around, shape (G, U).
        normal: shape (S, K).
        costs: per source.
    """

    beliefs: Beliefs
    answers: FloatArray
    good: FloatArray
    normal: FloatArray
    costs: tuple[float, ...]
    rng: np.random.Generator
    improvement: Improvement

    @classmethod
    def start(
        cls,
        beliefs: Beliefs,
        measured_MD: FloatArray,
        waiting: Sequence[tuple[int, FloatArray]],
        costs: Sequence[float],
        rng: np.random.Generator,
    ) -> Chooser:
        """From the feasible mixtures that were measured, and the mixtures under way (M, D) per source."""
        coordinates = beliefs.coordinates
        predicted_M = beliefs.mean(coordinates.points(measured_MD)) if len(measured_MD) else np.zeros(0)
        best_MD = measured_MD[np.argsort(predicted_M, kind="stable")][:GOOD]
        optimum_1D = coordinates.weights(predicted_optimum(beliefs, coordinates.points(best_MD), rng))
        good_GU = coordinates.points(np.concatenate([optimum_1D, best_MD]))
        spots_MU = candidates(coordinates, good_GU, rng)
        drawn_MS = beliefs.objective.value(beliefs.draw(coordinates.weights(spots_MU), PATHS, rng))
        answers_AD = np.concatenate([optimum_1D, best_MD, coordinates.weights(spots_MU[np.unique(drawn_MS.argmin(axis=0))])])
        half_SK = rng.standard_normal((PATHS // 2, len(beliefs.processes)))
        base_MD = np.concatenate([optimum_1D, measured_MD[np.argsort(predicted_M, kind="stable")][:MOST_BASELINES]])
        paths = PATHS if beliefs.linear else 4 * PATHS
        improvement = Improvement.over(beliefs, base_MD, np.ones(len(base_MD), dtype=bool), paths, rng)
        chooser = cls(beliefs, answers_AD, good_GU, np.concatenate([half_SK, -half_SK]), tuple(costs), rng, improvement)
        for source, weights_MD in waiting:
            if len(weights_MD):
                chooser = chooser.given(source, weights_MD)
        return chooser

    def given(self, source: int, weights_MD: FloatArray) -> Chooser:
        """With these runs under way."""
        inside_M = self.beliefs.coordinates.contains(weights_MD)
        answers_AD = np.concatenate([self.answers, weights_MD[inside_M]])
        improvement = self.improvement
        if source == self.beliefs.answer:
            for row, ok in zip(weights_MD, inside_M, strict=True):
                improvement = improvement.with_point(row, bool(ok), self.rng)
        return replace(
            self, improvement=improvement, beliefs=self.beliefs.under_way(weights_MD, source, PATHS, self.rng), answers=answers_AD
        )

    def improving(self, where: Coordinates) -> FloatArray:
        """Points of the largest noisy expected improvement where the answer is wanted, best first (R, U)."""
        points_RU, _ = maximize(self.improvement, self.improvement.values, where, self.good, self.rng)
        return points_RU

    def best(self, sources: Sequence[int], where: Coordinates) -> tuple[int, FloatArray]:
        """The source among `sources` of the largest gain per cost, and its best points of `where`, best first (R, U)."""
        found: list[tuple[float, int, FloatArray]] = []
        for source in sources:
            may_answer = source == self.beliefs.answer and where is self.beliefs.coordinates
            gain = Knowledge.about(self.beliefs, self.answers, self.normal, source, may_answer)
            points_RU, gains_R = maximize(gain, gain.values, where, self.good, self.rng)
            found.append((float(gains_R[0]) / self.costs[source], source, points_RU))
        _, source, points_RU = max(found, key=lambda one: one[:2])
        return source, points_RU


def predicted_optimum(beliefs: Beliefs, good_GU: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The feasible point predicted to be best, shape (1, U)."""

    def negative(points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
        values_M, slopes_MU = beliefs.mean_and_slopes(points_MU)
        return -values_M, -slopes_MU

    return maximize(negative, lambda points_MU: -beliefs.mean(points_MU), beliefs.coordinates, good_GU, rng)[0][:1]
