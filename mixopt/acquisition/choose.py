"""Which run comes next, one after the other: its mixture by the expected improvement, or its source, too, by the knowledge gradient per cost.

Runs that were chosen count as under way for those after them, so a batch is spread and its first runs are those of a smaller batch. The main trade-off:
each is the best next one, not the batch the best together.

Legend: A answers, M points, U units, D domains, S paths, K metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, TypeVar

import numpy as np

from mixopt.acquisition.ascent import candidates, maximize
from mixopt.acquisition.beliefs import Beliefs, UnitSpace
from mixopt.acquisition.improvement import Improvement
from mixopt.acquisition.knowledge import Knowledge
from mixopt.mixture import FloatArray

PATHS = 64
"""Draws of what runs under way and the next one will show; halves of them mirror each other, which takes most of the chance out of an average."""
MOST_BASELINES = 24
"""Measured mixtures that may be the best one: those behind them by prediction hardly ever are, and cost the cube of their number."""
GOOD = 8
"""Best mixtures around which to look, and which may be the answer."""


class Chooser(Protocol):
    """What is known and under way, and what it says of the next run."""

    def given(self, source: int, weights_MD: FloatArray) -> Self:
        """With runs of these mixtures under way at a source."""
        ...

    def best(self, sources: Sequence[int], where: UnitSpace) -> tuple[int, FloatArray]:
        """The source among `sources` to run at, and points of `where`, best first (M, U)."""
        ...


C = TypeVar("C", bound=Chooser)


@dataclass(frozen=True)
class Improving:
    """By noisy expected improvement where the answer is wanted; build it with `start`.

    Attributes:
        good: points to look around, shape (G, U).
    """

    improvement: Improvement
    good: FloatArray
    rng: np.random.Generator

    @classmethod
    def start(
        cls,
        beliefs: Beliefs,
        measured_MD: FloatArray,
        waiting: Sequence[tuple[int, FloatArray]],
        rng: np.random.Generator,
    ) -> Improving:
        """From the feasible mixtures that were measured, and the mixtures under way (M, D) per source."""
        good_GU, ranked_MD = _good(beliefs, measured_MD, rng)
        base_MD = np.concatenate([beliefs.coordinates.weights(good_GU[:1]), ranked_MD[:MOST_BASELINES]])
        paths = PATHS if beliefs.linear else 4 * PATHS
        improvement = Improvement.over(beliefs, base_MD, np.ones(len(base_MD), dtype=bool), paths, rng)
        return _with(cls(improvement, good_GU, rng), waiting)

    def given(self, source: int, weights_MD: FloatArray) -> Improving:
        improvement = self.improvement
        for row, inside in zip(weights_MD, improvement.beliefs.coordinates.contains(weights_MD), strict=True):
            improvement = improvement.with_point(row, bool(inside), self.rng)
        return replace(self, improvement=improvement)

    def best(self, sources: Sequence[int], where: UnitSpace) -> tuple[int, FloatArray]:
        points_MU, _ = maximize(self.improvement, self.improvement.values, where, self.good, self.rng)
        return self.improvement.beliefs.answer, points_MU


@dataclass(frozen=True)
class Informing:
    """By the knowledge gradient per cost, over all sources; build it with `start`.

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

    @classmethod
    def start(
        cls,
        beliefs: Beliefs,
        measured_MD: FloatArray,
        waiting: Sequence[tuple[int, FloatArray]],
        costs: Sequence[float],
        rng: np.random.Generator,
    ) -> Informing:
        """From the feasible mixtures that were measured, and the mixtures under way (M, D) per source."""
        good_GU, _ = _good(beliefs, measured_MD, rng)
        coordinates = beliefs.coordinates
        spots_MU = candidates(coordinates, good_GU, rng)
        drawn_MS = beliefs.objective.value(beliefs.draw(coordinates.weights(spots_MU), PATHS, rng))
        answers_AD = coordinates.weights(np.concatenate([good_GU, spots_MU[np.unique(drawn_MS.argmin(axis=0))]]))
        half_SK = rng.standard_normal((PATHS // 2, len(beliefs.processes)))
        return _with(cls(beliefs, answers_AD, good_GU, np.concatenate([half_SK, -half_SK]), tuple(costs), rng), waiting)

    def given(self, source: int, weights_MD: FloatArray) -> Informing:
        answers_AD = np.concatenate([self.answers, weights_MD[self.beliefs.coordinates.contains(weights_MD)]])
        return replace(self, beliefs=self.beliefs.under_way(weights_MD, source, PATHS, self.rng), answers=answers_AD)

    def best(self, sources: Sequence[int], where: UnitSpace) -> tuple[int, FloatArray]:
        found: list[tuple[float, int, FloatArray]] = []
        for source in sources:
            may_answer = source == self.beliefs.answer and where is self.beliefs.coordinates
            gain = Knowledge.about(self.beliefs, self.answers, self.normal, source, may_answer)
            points_MU, gains_M = maximize(gain, gain.values, where, self.good, self.rng)
            found.append((float(gains_M[0]) / self.costs[source], source, points_MU))
        _, source, points_MU = max(found, key=lambda one: one[:2])
        return source, points_MU


def _good(beliefs: Beliefs, measured_MD: FloatArray, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Points to look around, the predicted optimum first (G, U); and the measured mixtures, the best predicted first (M, D)."""
    coordinates = beliefs.coordinates
    predicted_M = beliefs.mean(coordinates.points(measured_MD)) if len(measured_MD) else np.zeros(0)
    ranked_MD = measured_MD[np.argsort(predicted_M, kind="stable")]
    best_GU = coordinates.points(ranked_MD[:GOOD])
    return np.concatenate([predicted_optimum(beliefs, best_GU, rng), best_GU]), ranked_MD


def _with(chooser: C, waiting: Sequence[tuple[int, FloatArray]]) -> C:
    for source, weights_MD in waiting:
        if len(weights_MD):
            chooser = chooser.given(source, weights_MD)
    return chooser


def predicted_optimum(beliefs: Beliefs, good_GU: FloatArray, rng: np.random.Generator) -> FloatArray:
    """The feasible point predicted to be best, shape (1, U)."""

    def negative(points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
        values_M, slopes_MU = beliefs.mean_and_slopes(points_MU)
        return -values_M, -slopes_MU

    return maximize(negative, lambda points_MU: -beliefs.mean(points_MU), beliefs.coordinates, good_GU, rng)[0][:1]
