"""What the surrogates say about the objective: its mean anywhere, and intervals of differences between named mixtures.

Surrogates are fitted per metric and draw metrics independently, but the errors of metrics are not independent: a lucky seed is lucky on all
of them. The spread of the objective is therefore widened by the correlation of out-of-fold errors between metrics, never narrowed. The main
trade-off: one correlation for all mixtures, estimated from a few dozen errors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.objective import Objective
from mixopt.proposal import Effect
from mixopt.surrogates.base import Fitted, Surrogate
from mixopt.surrogates.cross_validation import OutOfFold, fit_with_out_of_fold
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

# 90% intervals from so many draws: their ends are known to within a twentieth of a standard deviation.
DRAWS = 2000
INTERVAL = (5.0, 95.0)
FOLDS = 5
# A standard deviation from so many draws is known within 6%. Joint draws cost the cube of the points, so they are made in chunks.
SPREAD_DRAWS = 128
SPREAD_CHUNK = 64


@dataclass(frozen=True)
class Prediction:
    """Fitted surrogates with the objective on top. Build it with `predict`.

    Attributes:
        objective: relative to the *predicted* natural losses, so that the natural mixture's own predicted difference is 0.
        counted: surrogates of the objective's metrics, in its order; `others`: of every other metric that all trials were scored on.
        errors: out-of-fold predictions of the objective's metrics followed by the others; None with a reason when there are too few trials.
        correlation: of the out-of-fold errors of the objective's metrics, shape (metrics, metrics).
    """

    domains: tuple[str, ...]
    source: Source
    natural: FloatArray
    objective: Objective
    counted: Fitted
    others: Fitted | None
    errors: OutOfFold | None
    errors_missing: str
    correlation: FloatArray
    seed: int

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.objective.metrics + (self.others.metrics if self.others else ())

    def points(self, weights: FloatArray) -> Points:
        """Mixtures (n, domains) at the search's source."""
        return Points(self.domains, weights[:, None, :], (self.source,) * len(weights))

    def mean(self, weights: FloatArray) -> FloatArray:
        """Objective of the predicted losses of mixtures (n, domains), relative to the natural mixture's, shape (n,)."""
        return self.objective.difference(self.counted.mean(self.points(weights)), np.array(self.objective.natural_losses))

    def metric_effects(self, weights: FloatArray) -> dict[str, Effect]:
        """Predicted difference of one mixture (domains,) to the natural one, for every metric, in bits per byte."""
        effects: dict[str, Effect] = {}
        for fitted in (self.counted, self.others):
            if fitted is not None:
                draws = fitted.posterior(self.points(np.stack([weights, self.natural]))).sample(DRAWS, self.seed)
                differences = draws[:, 0] - draws[:, 1]
                effects |= {metric: _effect(differences[:, column]) for column, metric in enumerate(fitted.metrics)}
        return effects

    def objective_effects(self, weights: FloatArray, reference: FloatArray) -> list[Effect]:
        """Predicted objective of each mixture (n, domains) minus that of `reference` (domains,), with 90% intervals."""
        points = np.concatenate([weights, reference[None]])
        draws = self.counted.posterior(self.points(points)).sample(DRAWS, self.seed)
        effects: list[Effect] = []
        for index in range(len(weights)):
            values = self.objective.difference(draws[:, index], draws[:, -1])
            effects.append(_effect(values, self._widening(draws[:, index] - draws[:, -1], values)))
        return effects

    def difference_std(self, weights: FloatArray, reference: FloatArray) -> FloatArray:
        """Standard deviation of the predicted objective of mixtures (n, domains) minus that of `reference` (domains,), shape (n,)."""
        found = [np.zeros(0)]
        for at in range(0, len(weights), SPREAD_CHUNK):
            points = np.concatenate([weights[at : at + SPREAD_CHUNK], reference[None]])
            draws = self.counted.posterior(self.points(points)).sample(SPREAD_DRAWS, self.seed)
            differences = draws[:, :-1] - draws[:, -1:]
            losses = np.array(self.objective.natural_losses) + differences.mean(axis=0)
            independent = self.objective.difference(draws[:, :-1], draws[:, -1:]).std(axis=0)
            found.append(np.maximum(independent, self.measurement_std(losses, differences.std(axis=0))))
        return np.concatenate(found)

    def measurement_std(self, losses: FloatArray, stds: FloatArray) -> FloatArray:
        """Standard deviation of the objective where metrics have `stds` (n, metrics) around `losses`, with correlated errors, shape (n,)."""
        parts = self.objective.sensitivities(losses) * stds
        return np.asarray(np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", parts, self.correlation, parts), 0.0)))

    def _widening(self, differences: FloatArray, values: FloatArray) -> float:
        """Factor >= 1 by which correlated errors spread `values` more than the metrics' independent draws (draws, metrics) do."""
        spread = float(values.std())
        if spread == 0:
            return 1.0
        losses = np.array(self.objective.natural_losses) + differences.mean(axis=0)
        return max(1.0, float(self.measurement_std(losses[None], differences.std(axis=0)[None])[0]) / spread)


def predict(
    surrogate: Surrogate, swarm: Swarm, objective: Objective, domains: tuple[str, ...], natural: FloatArray, seed: int
) -> Prediction:
    """Fits `surrogate` to every metric that all trials of the swarm (of one source) were scored on.

    Args:
        domains: order of the last axis of every array handed to the result; `natural` is (domains,) in it.
    """
    unscored = np.isnan(swarm.values(swarm.metrics)).sum(axis=0).tolist()
    rest = [metric for metric, missing in zip(swarm.metrics, unscored, strict=True) if not missing and metric not in objective.metrics]
    counted, errors, reason = fit_with_out_of_fold(surrogate, swarm, objective.metrics, FOLDS, seed)
    others = None
    if rest:
        others, rest_errors, _ = fit_with_out_of_fold(surrogate, swarm, rest, FOLDS, seed)
        if errors is not None and rest_errors is not None:
            errors = errors.beside(rest_errors)
    source = swarm.points().sources[0]
    natural_losses = counted.mean(Points(domains, natural[None, None, :], (source,)))[0]
    return Prediction(
        domains=domains,
        source=source,
        natural=natural,
        objective=objective.with_natural(natural_losses),
        counted=counted,
        others=others,
        errors=errors,
        errors_missing=reason,
        correlation=_correlation(errors, len(objective.metrics)),
        seed=seed,
    )


def _correlation(errors: OutOfFold | None, count: int) -> FloatArray:
    """Correlation of the first `count` metrics' standardized out-of-fold errors; all 1 (the widest) when there are none."""
    if errors is None:
        return np.ones((count, count))
    standardized = ((errors.measured - errors.mean) / errors.std)[:, :count]
    # About zero and not about their mean: a bias that metrics share is an error they share.
    moments = standardized.T @ standardized / len(standardized)
    scales = np.sqrt(np.maximum(np.diag(moments), np.finfo(float).tiny))
    correlation = moments / np.outer(scales, scales)
    np.fill_diagonal(correlation, 1.0)
    return np.asarray(correlation)


def _effect(values: FloatArray, widening: float = 1.0) -> Effect:
    centre = float(values.mean())
    low, high = np.percentile(values, INTERVAL)
    return Effect(centre, centre + widening * (float(low) - centre), centre + widening * (float(high) - centre))
