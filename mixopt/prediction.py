"""What the surrogates say about the objective: its mean anywhere, and intervals of differences between named mixtures.

Surrogates are fitted per metric and draw metrics independently, but the errors of metrics are not independent: a lucky seed is lucky on all
of them. The spread of the objective is therefore widened by the correlation of out-of-fold errors between metrics, never narrowed. The main
trade-off: one correlation for all mixtures, estimated from a few dozen errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.mixture import FloatArray
from mixopt.objective import Estimates, Objective, least_noise
from mixopt.proposal import Effect
from mixopt.surrogates.base import Fitted, Posterior, Surrogate
from mixopt.surrogates.cross_validation import OutOfFold, fit_with_out_of_fold, noise_at
from mixopt.surrogates.posterior import difference_variance
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
        source: where everything is predicted; of a swarm of several sources, the one where the answer is wanted.
        trial_ids: those fitted, in the order of the rows of `errors`.
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
    trial_ids: tuple[str, ...] = ()

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.objective.metrics + (self.others.metrics if self.others else ())

    def rows_of(self, trial_ids: Sequence[str]) -> NDArray[np.int64]:
        """Rows of `errors` that belong to these trials."""
        rows = {trial_id: row for row, trial_id in enumerate(self.trial_ids)}
        return np.array([rows[trial_id] for trial_id in trial_ids], dtype=np.int64)

    def noise(self) -> dict[str, float]:
        """Seed noise of every metric that was fitted: measured for those of the objective, else as the surrogate found it."""
        found: dict[str, float] = {}
        if self.others:
            least = least_noise(self.losses(self.natural[None], self.others.metrics))
            found = dict(zip(self.others.metrics, np.maximum(self.others.noise_std, least).tolist(), strict=True))
        return found | dict(zip(self.objective.metrics, self.objective.noise_std, strict=True))

    def losses(self, weights: FloatArray, metrics: Sequence[str]) -> FloatArray:
        """Predicted losses of mixtures (n, domains) on metrics that were fitted, shape (n, metrics)."""
        return self._columns(metrics, lambda fitted: fitted.mean(self.points(weights)))

    def loss_stds(self, weights: FloatArray, metrics: Sequence[str]) -> FloatArray:
        """Standard deviations of `losses`, noise-free."""
        return self._columns(metrics, lambda fitted: fitted.posterior(self.points(weights)).std)

    def _columns(self, metrics: Sequence[str], ask: Callable[[Fitted], FloatArray]) -> FloatArray:
        answers: dict[str, FloatArray] = {}
        for fitted in (self.counted, self.others):
            if fitted is not None and set(fitted.metrics) & set(metrics):
                answers |= dict(zip(fitted.metrics, ask(fitted).T, strict=True))
        return np.stack([answers[metric] for metric in metrics], axis=1)

    def points(self, weights: FloatArray) -> Points:
        """Mixtures (n, domains) at the search's source."""
        return Points(self.domains, weights[:, None, :], (self.source,) * len(weights))

    def mean(self, weights: FloatArray) -> FloatArray:
        """Objective of the predicted losses of mixtures (n, domains), relative to the natural mixture's, shape (n,)."""
        return self.objective.difference(self.counted.mean(self.points(weights)), np.array(self.objective.natural_losses))

    def metric_effects(self, weights: FloatArray) -> dict[str, Effect]:
        """Predicted difference of one mixture (domains,) to the natural one, for every metric, in the unit of losses."""
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


def estimated(fitted: Fitted, natural: Points) -> Estimates:
    """Seed noise and losses at the natural mixture (one point, at its source), as a surrogate sees them."""
    return Estimates(fitted.metrics, noise_at(fitted, natural)[0], fitted.mean(natural)[0])


@dataclass(frozen=True)
class Fits:
    """A surrogate fitted to some metrics, with its out-of-fold predictions, or why there are none."""

    fitted: Fitted
    errors: OutOfFold | None
    errors_missing: str

    @classmethod
    def of(cls, surrogate: Surrogate, swarm: Swarm, metrics: Sequence[str], seed: int) -> Fits:
        """Raises DataError as `Surrogate.fit` does."""
        return cls(*fit_with_out_of_fold(surrogate, swarm, metrics, FOLDS, seed))

    def only(self, metrics: tuple[str, ...]) -> Fits:
        """The same for some of the metrics."""
        if metrics == self.fitted.metrics:
            return self
        columns = [self.fitted.metrics.index(metric) for metric in metrics]
        return Fits(Part(self.fitted, tuple(columns)), self.errors.columns(columns) if self.errors else None, self.errors_missing)


@dataclass(frozen=True)
class Part:
    """Some of the metrics of a fitted surrogate."""

    whole: Fitted
    columns: tuple[int, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(self.whole.metrics[column] for column in self.columns)

    @property
    def noise_std(self) -> FloatArray:
        return self.whole.noise_std[list(self.columns)]

    def mean(self, points: Points) -> FloatArray:
        return self.whole.mean(points)[:, list(self.columns)]

    def posterior(self, points: Points) -> PartPosterior:
        return PartPosterior(self.whole.posterior(points), list(self.columns))


@dataclass(frozen=True)
class PartPosterior:
    """Some of the metrics of a posterior."""

    whole: Posterior
    columns: list[int]

    @property
    def mean(self) -> FloatArray:
        return self.whole.mean[:, self.columns]

    @property
    def std(self) -> FloatArray:
        return self.whole.std[:, self.columns]

    def sample(self, count: int, seed: int) -> FloatArray:
        return self.whole.sample(count, seed)[:, :, self.columns]

    def difference_variance(self, reference: int) -> FloatArray:
        """See the function of this name."""
        return difference_variance(self.whole, reference)[:, self.columns]


def predict(
    surrogate: Surrogate,
    swarm: Swarm,
    objective: Objective,
    domains: tuple[str, ...],
    natural: FloatArray,
    seed: int,
    source: Source | None = None,
    fits: Fits | None = None,
) -> Prediction:
    """Fits `surrogate` to every metric that all trials of the swarm were scored on.

    Args:
        domains: order of the last axis of every array handed to the result; `natural` is (domains,) in it.
        source: where predictions are wanted; default: the first trial's, for a swarm of one source.
        fits: of metrics that include the objective's, where somebody has fitted them already.
    """
    unscored = np.isnan(swarm.values(swarm.metrics)).sum(axis=0).tolist()
    rest = [metric for metric, missing in zip(swarm.metrics, unscored, strict=True) if not missing and metric not in objective.metrics]
    counted = (fits or Fits.of(surrogate, swarm, objective.metrics, seed)).only(objective.metrics)
    errors = counted.errors
    others = None
    if rest:
        more = fits.only(tuple(rest)) if fits and set(rest) <= set(fits.fitted.metrics) else Fits.of(surrogate, swarm, rest, seed)
        others = more.fitted
        if errors is not None and more.errors is not None:
            errors = errors.beside(more.errors)
    source = swarm.points().sources[0] if source is None else source
    natural_losses = counted.fitted.mean(Points(domains, natural[None, None, :], (source,)))[0]
    return Prediction(
        domains=domains,
        source=source,
        natural=natural,
        objective=objective.with_natural(natural_losses),
        counted=counted.fitted,
        others=others,
        errors=errors,
        errors_missing=counted.errors_missing,
        correlation=_correlation(errors, len(objective.metrics)),
        seed=seed,
        trial_ids=swarm.trial_ids,
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
