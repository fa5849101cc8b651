"""The objective as a log-linear law of the mixture, F(q) = sum_k g_k exp(A_k . q), with slopes, optimum, and columns for domains nobody has measured.

Losses are fitted by the log-linear law (Olmix, arXiv 2602.12237: c_k + exp(A_k . q) per metric), and the objective weighs them; constants are left out. F and
the pull are convex, so a local optimum is the optimum, and a slope bounds a gap. A worst case is the largest of its parts, smoothed so that it has slopes.

Of a domain that is new no column of A is known: it is drawn from a kernel density over the old domains' columns; a revised one lies between such a draw and
itself, the parts of a split one around it. How far the old runs may have misled is seen by fitting them again with their errors drawn anew. The main trade-off:
risks are risks under this law and these draws; how well the law ranks unseen runs is told.

Legend: K metrics, D domains, N mixtures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixopt.answer.local_search import descend
from mixopt.mixture import FloatArray
from mixopt.objective import Objective
from mixopt.reuse.changes import Changes
from mixopt.simplex import kl_divergence
from mixopt.space import MixtureSpace
from mixopt.surrogates.features import weights
from mixopt.surrogates.log_linear import LogLinearSurrogate
from mixopt.surrogates.parametric import FittedLaw, bounded_exp, fit_law
from mixopt.swarm import Swarm

# Of a worst case: parts that are this much smaller than the largest, in objective units, weigh 1/e of it.
SMOOTHING = 0.05
# Logarithms of weights of zero, in the slope of the pull.
LEAST_WEIGHT = 1e-12
# Each goes on where the last ended; the law is convex, so the first that gains next to nothing is the end.
MOST_ROUNDS = 6
SETTLED = 1e-6
RESAMPLES = 8


@dataclass(frozen=True)
class ObjectiveLaw:
    """F over the mixtures of some domains.

    Attributes:
        slopes_KD: A.
        factors_K: g, in objective units, above 0.
        levels_K: of a worst case: what each part has beside its exponential.
        natural_D, strength: the pull is strength * KL(q, natural).
        worst: whether F is the largest part instead of the sum.
    """

    domains: tuple[str, ...]
    slopes_KD: FloatArray
    factors_K: FloatArray
    levels_K: FloatArray
    natural_D: FloatArray
    strength: float = 0.0
    worst: bool = False

    def value(self, q_ND: FloatArray) -> FloatArray:
        """F and the pull, shape (N,)."""
        parts_NK = self.factors_K * bounded_exp(q_ND @ self.slopes_KD.T)
        pull_N = self.strength * kl_divergence(q_ND, self.natural_D) if self.strength else 0.0
        if not self.worst:
            return np.asarray(parts_NK.sum(axis=1) + pull_N)
        parts_NK = parts_NK + self.levels_K
        top_N = parts_NK.max(axis=1)
        return np.asarray(top_N + SMOOTHING * np.log(np.exp((parts_NK - top_N[:, None]) / SMOOTHING).sum(axis=1)) + pull_N)

    def gradient(self, q_D: FloatArray) -> FloatArray:
        """Of `value` at one mixture, shape (D,)."""
        parts_K = self.factors_K * bounded_exp(self.slopes_KD @ q_D)
        if self.worst:
            tops_K = np.exp((parts_K + self.levels_K - (parts_K + self.levels_K).max()) / SMOOTHING)
            parts_K = parts_K * tops_K / tops_K.sum()
        slope_D = parts_K @ self.slopes_KD
        if self.strength:
            slope_D = slope_D + self.strength * (np.log(np.maximum(q_D, LEAST_WEIGHT) / self.natural_D) + 1)
        return np.asarray(slope_D)

    def optimum(self, space: MixtureSpace, start_D: FloatArray) -> FloatArray:
        """The feasible mixture with the least value, shape (D,), and never a worse one than where it starts."""
        best_D = space.project(start_D[None])[0]
        value = float(self.value(best_D[None])[0])
        for _ in range(MOST_ROUNDS):
            found_D, _ = descend(self.value, space, best_D)
            reached = float(self.value(found_D[None])[0])
            gained = value - reached
            if gained > 0:
                best_D, value = found_D, reached
            if gained <= SETTLED * max(abs(value), 1.0):
                break
        return np.asarray(best_D)


@dataclass(frozen=True)
class FittedObjective:
    """The law of a finished search.

    Attributes:
        resampled: laws that would have been fitted had other seeds been drawn (parametric bootstrap): how far the runs may have misled.
        spearman: of the objective of unseen runs, out of fold; NaN where it could not be checked.
    """

    law: ObjectiveLaw
    resampled: tuple[ObjectiveLaw, ...]
    spearman: float


def fit_objective_law(
    swarm: Swarm, objective: Objective, natural: Mapping[str, float], strength: float, folds: int = 5, resamples: int = RESAMPLES
) -> FittedObjective:
    """Fits the law to the runs of one source, for an objective that was made on them.

    Args:
        folds: in which runs are predicted unseen, a fit each; fewer than 2: they are not.

    Raises:
        DataError: fewer than 4 runs, or a run lacks a metric of the objective.
    """
    from mixopt.surrogates.cross_validation import TooFewToCheck, rank_correlation

    surrogate = LogLinearSurrogate()
    reference = np.array(objective.natural_losses)
    try:
        fitted, errors = surrogate.fit_with_out_of_fold(swarm, objective.metrics, folds, seed=0)
        spearman = rank_correlation(objective.difference(errors.mean, reference), objective.difference(errors.measured, reference))
    except TooFewToCheck:
        fitted, spearman = surrogate.fit(swarm, objective.metrics), float("nan")
    natural_D = np.array([natural[name] for name in fitted.observations.domains])
    law = _objective_law(fitted, objective, natural_D, strength)
    rng = np.random.default_rng(0xB007)
    drawn = tuple(_objective_law(_refitted(fitted, rng), objective, natural_D, strength) for _ in range(resamples))
    return FittedObjective(law, drawn, spearman)


def _objective_law(fitted: FittedLaw, objective: Objective, natural_D: FloatArray, strength: float) -> ObjectiveLaw:
    worst, reference = objective.kind == "worst_case", np.array(objective.natural_losses)
    # Weights over scales: what one unit of loss is worth; of a worst case, of each part.
    worth_K = 1 / np.array(objective.noise_std) if worst else objective.sensitivities(reference)
    scales_K = np.array([fit.scale for fit in fitted.fits])
    theta_KP = np.stack([fit.theta for fit in fitted.fits])
    levels_K = worth_K * (np.array([fit.center for fit in fitted.fits]) + scales_K * theta_KP[:, -1] - reference)
    return ObjectiveLaw(fitted.observations.domains, theta_KP[:, :-1], worth_K * scales_K, levels_K, natural_D, strength, worst)


def _refitted(fitted: FittedLaw, rng: np.random.Generator) -> FittedLaw:
    """The laws fitted to their own predictions with errors drawn anew, as large as the fit found them; from where they are."""
    observed = fitted.observations
    x_NI = weights(observed.schedules)
    stds_K = np.array([np.hypot(fit.noise_std, fit.misfit_std) for fit in fitted.fits])
    values_NK = fitted.values_at(x_NI) + stds_K * rng.normal(size=observed.values.shape)
    fits = tuple(
        fit_law(law, x_NI, values_NK[:, column], observed.groups, fit.theta[None])
        for column, (law, fit) in enumerate(zip(fitted.laws, fitted.fits, strict=True))
    )
    return replace(fitted, fits=fits)


def imagined(law: ObjectiveLaw, changes: Changes, domains: Sequence[str], natural_D: FloatArray, rng: np.random.Generator) -> ObjectiveLaw:
    """The law over the new domains, with columns for what nobody has measured; see the module's docstring.

    Args:
        natural_D: natural weights of the new domains, which also say how much of a split domain each part is.
    """
    column = dict(zip(law.domains, law.slopes_KD.T, strict=True))
    found: dict[str, FloatArray] = {name: column[old] for name, old in changes.kept.items()}

    count = len(law.domains)
    away_KD = (law.slopes_KD - law.slopes_KD.mean(axis=1, keepdims=True)) / np.sqrt(max(count - 1, 1))
    width = _bandwidth(count, len(law.slopes_KD))

    def drawn() -> FloatArray:
        # With their covariance, so that a domain may be better, or good for more, than any before it.
        return np.asarray(law.slopes_KD[:, rng.integers(count)] + width * away_KD @ rng.normal(size=count))

    for change in changes.changes:
        if change.kind == "added":
            found[change.new[0]] = drawn()
        elif change.kind == "revised":
            other = rng.uniform()
            found[change.new[0]] = (1 - other) * column[change.old] + other * drawn()
        elif change.kind == "split":
            share_S = np.array([natural_D[list(domains).index(name)] for name in change.new])
            share_S = share_S / share_S.sum()
            away_SK = rng.uniform() * np.stack([drawn() - column[change.old] for _ in change.new])
            away_SK = away_SK - share_S @ away_SK
            found |= {name: column[change.old] + away_K for name, away_K in zip(change.new, away_SK, strict=True)}
    slopes_KD = np.stack([found[name] for name in domains], axis=1)
    return ObjectiveLaw(tuple(domains), slopes_KD, law.factors_K, law.levels_K, natural_D, law.strength, law.worst)


def _bandwidth(points: int, dimensions: int) -> float:
    """Of a kernel density, in standard deviations (Silverman 1986, equation 4.14)."""
    return float((4 / ((dimensions + 2) * points)) ** (1 / (dimensions + 4)))
