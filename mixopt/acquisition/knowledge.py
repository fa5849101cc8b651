"""The knowledge gradient: how much lower the least predicted objective is expected to be once one more run has been seen.

What a search is for is its answer, the mixture of the least *predicted* objective, and not a lucky run: so a run is worth what it changes in the
prediction anywhere, its own noise counted (Frazier, Powell & Dayanik 2009, section 3; Balandat et al. 2020, arXiv 1910.06403, section 4.2). That holds of
runs of any source in the same unit, so that they can be compared per cost. The answer may be any of some dozens of mixtures, the optima of
draws from the posterior, or the new one. Runs under way are drawn, with their noise, a path each. The main trade-off: answers are looked for
among these mixtures only, so a run is worth a little more than is said.

Legend: M points, U units, D domains, A answers, K metrics, S paths, F features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve

from mixopt.acquisition.beliefs import Beliefs
from mixopt.acquisition.conditioned import features_of
from mixopt.mixture import FloatArray
from mixopt.surrogates.source_kernel import IntArray, source_covariance

CHUNK = 64
"""Points at once: so many times answers, paths and metrics are numbers in memory."""


@dataclass(frozen=True)
class Knowledge:
    """Knowledge gradient of a run at one source; build it with `about`.

    Attributes:
        beliefs: given draws of the runs under way, a path each.
        answers: features of the mixtures that may be the answer, shape (A, F).
        means: predicted losses of the answers, shape (A, S, K).
        solved: inverse covariance of the trials times their covariance with the answers, (N, A) per metric.
        normal: what the new run shows, in standard deviations, shape (S, K).
        now: least predicted objective before it, averaged over paths.
        source: number of the source of the new run.
        may_answer: whether the new mixture may itself be the answer: it is run where the answer is wanted, and is feasible.
    """

    beliefs: Beliefs
    answers: FloatArray
    means: FloatArray
    solved: tuple[FloatArray, ...]
    normal: FloatArray
    now: float
    source: int
    may_answer: bool

    @classmethod
    def about(cls, beliefs: Beliefs, answers_AD: FloatArray, normal_SK: FloatArray, source: int, may_answer: bool) -> Knowledge:
        means_ASK = np.broadcast_to(beliefs.moments(answers_AD)[0], (len(answers_AD), *normal_SK.shape))
        features_AF = features_of(answers_AD)
        at = beliefs.at(beliefs.answer, len(answers_AD))
        solved = tuple(
            cho_solve((process.factor, True), process.cross(features_AF, at_A).T)
            for process, at_A in zip(beliefs.processes, at, strict=True)
        )
        now = float(beliefs.objective.value(means_ASK).min(axis=0).mean())
        return cls(beliefs, features_AF, means_ASK, solved, normal_SK, now, source, may_answer)

    def values(self, points_MU: FloatArray) -> FloatArray:
        """How far the least predicted objective is expected to fall, shape (M,)."""
        return self._reached(self.beliefs.coordinates.weights(points_MU)).values

    def __call__(self, points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The same, and its derivatives by the units' weights (M, U)."""
        weights_MD = self.beliefs.coordinates.weights(points_MU)
        found = self._reached(weights_MD)
        answers, paths, metrics = len(self.answers), *self.normal.shape
        by_loss_MSK = -self.beliefs.objective.sensitivities(found.losses) / paths
        by_step_MSK = by_loss_MSK * self.normal
        own_MS1 = (found.best == answers)[:, :, None]
        total_MK = found.variances + self.beliefs.noise(self.source)
        # The step of the new mixture itself is variance / sqrt(variance + noise), that of another answer covariance / sqrt(variance + noise).
        by_variance_MK = (by_step_MSK * own_MS1).sum(axis=1) * (1 / np.sqrt(total_MK) - 0.5 * found.variances / total_MK**1.5)
        by_reach_MAK = np.zeros((len(weights_MD), answers + 1, metrics))
        np.add.at(by_reach_MAK, (np.arange(len(weights_MD))[:, None], found.best), by_step_MSK)
        by_reach_MAK = by_reach_MAK[:, :answers]
        by_variance_MK -= 0.5 * (by_reach_MAK * found.reach).sum(axis=1) / total_MK
        by_covariance_MAK = by_reach_MAK / np.sqrt(total_MK)[:, None]
        by_features_MF = self._by_features(weights_MD, np.where(own_MS1, by_loss_MSK, 0.0), by_variance_MK, by_covariance_MAK)
        return found.values, self.beliefs.by_units(weights_MD, by_features_MF)

    def _by_features(
        self, weights_MD: FloatArray, by_mean_MSK: FloatArray, by_variance_MK: FloatArray, by_covariance_MAK: FloatArray
    ) -> FloatArray:
        """Derivatives by features, shape (M, F), from those by the moments of new runs and by their covariances with the answers."""
        features_MF, at = features_of(weights_MD), self.beliefs.at(self.source, len(weights_MD))
        at_answers = self.beliefs.at(self.beliefs.answer, len(self.answers))
        found_MF = np.zeros_like(features_MF)
        for metric, (process, at_M, at_A) in enumerate(zip(self.beliefs.processes, at, at_answers, strict=True)):
            found_MF += process.slopes(features_MF, at_M, by_mean_MSK[:, :, metric], by_variance_MK[:, metric])
            by_MA = process.scale**2 * by_covariance_MAK[:, :, metric]
            found_MF += process.prior_slopes(features_MF, at_M, self.answers, at_A, by_MA)
            found_MF -= process.prior_slopes(features_MF, at_M, process.features, process.at, by_MA @ self.solved[metric].T)
        return found_MF

    def _reached(self, weights_MD: FloatArray) -> _Reached:
        means_MSK, variances_MK = self.beliefs.moments(weights_MD, self.source)
        spread_MK = np.sqrt(variances_MK + self.beliefs.noise(self.source))
        reach_MAK = self._covariances(weights_MD) / spread_MK[:, None]
        best_MS, least_MS = self._least(reach_MAK)
        rows, paths = np.arange(len(weights_MD))[:, None], np.arange(len(self.normal))
        losses_MSK = self.means[best_MS, paths] + reach_MAK[rows, best_MS] * self.normal
        if self.may_answer:
            own_MSK = means_MSK + (variances_MK / spread_MK)[:, None, :] * self.normal
            own_MS = self.beliefs.objective.value(own_MSK)
            better_MS = own_MS < least_MS
            best_MS, least_MS = np.where(better_MS, len(self.answers), best_MS), np.minimum(own_MS, least_MS)
            losses_MSK = np.where(better_MS[:, :, None], own_MSK, losses_MSK)
        return _Reached(self.now - least_MS.mean(axis=1), reach_MAK, variances_MK, losses_MSK, best_MS)

    def _covariances(self, weights_MD: FloatArray) -> FloatArray:
        """Of new runs with the answers, shape (M, A, K), squared bits per byte."""
        features_MF, at = features_of(weights_MD), self.beliefs.at(self.source, len(weights_MD))
        at_answers = self.beliefs.at(self.beliefs.answer, len(self.answers))
        found = []
        for process, at_M, at_A, solved_NA in zip(self.beliefs.processes, at, at_answers, self.solved, strict=True):
            prior_MA = source_covariance(features_MF, at_M, self.answers, at_A, process.parameters)
            found.append(process.scale**2 * (prior_MA - process.cross(features_MF, at_M) @ solved_NA))
        return np.stack(found, axis=2)

    def _least(self, reach_MAK: FloatArray) -> tuple[IntArray, FloatArray]:
        """Number of the best answer once a run has been seen, and the objective there, both (M, S)."""
        objective, shape = self.beliefs.objective, (len(reach_MAK), len(self.normal))
        best_MS, least_MS = np.empty(shape, dtype=np.int64), np.empty(shape)
        values_AS = objective.value(self.means)
        for at in range(0, len(reach_MAK), CHUNK):
            part_MAK = reach_MAK[at : at + CHUNK]
            if self.beliefs.linear:
                values_MAS = values_AS + (part_MAK * self.beliefs.factors()) @ self.normal.T
            else:
                values_MAS = objective.value(self.means + part_MAK[:, :, None, :] * self.normal)
            best_MS[at : at + CHUNK] = values_MAS.argmin(axis=1)
            least_MS[at : at + CHUNK] = values_MAS.min(axis=1)
        return best_MS, least_MS


@dataclass(frozen=True)
class _Reached:
    """What a new run at each point brings: values (M,), steps of the answers per standard deviation that it shows (M, A, K), its variances (M, K), losses
    of the best answer afterwards (M, S, K), and its number (M, S), that of the new mixture being the number of answers."""

    values: FloatArray
    reach: FloatArray
    variances: FloatArray
    losses: FloatArray
    best: IntArray
