"""Gradient-boosted trees on raw weights, as the RegMix paper fits them (arXiv 2407.01492), and tuned for few runs: kept for parity, never the best.

`lightgbm` is the paper's: gbdt, learning rate 0.01, 1000 rounds, no early stopping (the published notebook stops early on the *test* set). One change: the
default leaf of 20 trials cannot split fewer than 40, so the least leaf is min(20, max(3, n / 10)). Trees do not extrapolate: outside the
hull of the swarm the prediction stays flat. `lightgbm_few` has trees of four leaves on parts of the runs and of the domains, and bins of one run: of five
settings tried on RegMix (docs/log.md) the best at 32 to 128 runs. It ranks a single metric better (Pile-CC at 64 runs .97 against .95) and the mean of many
worse (.96 against .97).

Trees carry no uncertainty, so it is estimated, in two parts. The *spread* is the delete-a-group jackknife (Shao & Tu 1995, section 2.3) over
five models that each miss a fifth of the mixtures; it is joint over points. The *misfit* is what the out-of-fold errors show beyond spread
and seed noise: the same everywhere, independent between different mixtures. Seed noise is read from repeats of a mixture when there are
enough; otherwise noise and misfit cannot be told apart, and each gets half of what is left, so that neither is understated by more than a
factor of sqrt(2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.cross_validation import fold_numbers
from mixopt.surrogates.features import weights
from mixopt.surrogates.observations import Observations, repeat_variance
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm

if TYPE_CHECKING:
    from lightgbm import Booster

ROUNDS = 1000
PARAMETERS = {
    "objective": "regression",
    "boosting": "gbdt",
    "learning_rate": 0.01,
    "seed": 42,
    "deterministic": True,
    "force_row_wise": True,  # LightGBM would otherwise time both layouts and may choose differently from run to run
    "num_threads": 1,
    "verbosity": -1,
}
FEW_PARAMETERS = {
    **PARAMETERS,
    "learning_rate": 0.03,
    "num_leaves": 4,
    "min_data_in_leaf": 3,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "feature_fraction": 0.5,
}
FEW_ROUNDS = 600
JACKKNIFE_GROUPS = 5
# Least std, relative to the metric's scale, where all five models agree exactly.
MINIMUM_RELATIVE_STD = 1e-6


@dataclass(frozen=True)
class MetricTrees:
    """Trees of one metric.

    Attributes:
        full: fitted on all trials; the prediction, standardised.
        partial: fitted without one group of mixtures each.
        center, scale: bits per byte; outputs are standardised with them because LightGBM keeps labels in single precision.
        misfit_std, noise_std: bits per byte.
    """

    full: Booster
    partial: tuple[Booster, ...]
    center: float
    scale: float
    misfit_std: float
    noise_std: float


class BoostedTrees:
    """Fits trees per metric; see the module's docstring."""

    few = False

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedBoostedTrees:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`), or all trials share one mixture.
        """
        observations = Observations.of(swarm, metrics)
        if observations.groups.max() == 0:
            raise DataError(
                f"All {len(observations.values)} trials have the same mixture: trees have nothing to split.", "Run other mixtures."
            )
        features = weights(observations.schedules)
        folds = fold_numbers(observations.groups, JACKKNIFE_GROUPS, seed=0)
        train = _train_few if self.few else _train
        fits = tuple(_fit_metric(train, features, outputs, observations.groups, folds) for outputs in observations.values.T)
        return FittedBoostedTrees(observations, fits)


class TreesForFewRuns(BoostedTrees):
    """Trees tuned for fewer than 256 runs."""

    few = True


def _fit_metric(
    train: Callable[[FloatArray, FloatArray], Booster],
    features: FloatArray,
    outputs: FloatArray,
    groups: NDArray[np.int64],
    folds: NDArray[np.int64],
) -> MetricTrees:
    center = float(outputs.mean())
    scale = max(float(outputs.std()), MINIMUM_RELATIVE_STD * (abs(center) or 1.0))
    outputs = (outputs - center) / scale
    full = train(features, outputs)
    held_out = [folds == fold for fold in range(int(folds.max()) + 1)]
    partial = tuple(train(features[~rows], outputs[~rows]) for rows in held_out)
    predictions = _predict_all(partial, features)
    errors = outputs - predictions[np.arange(len(outputs)), folds]
    spread = _jackknife_factor(predictions)

    unexplained = max(float(np.mean(errors**2) - np.mean((spread**2).sum(axis=1))), 0.0)
    repeats = repeat_variance(outputs, groups)
    noise = unexplained / 2 if repeats is None else repeats
    misfit = unexplained / 2 if repeats is None else max(unexplained - repeats, 0.0)
    stds = scale * np.maximum(np.sqrt([misfit, noise]), MINIMUM_RELATIVE_STD)
    return MetricTrees(full, partial, center, scale, float(stds[0]), float(stds[1]))


def _train(features: FloatArray, outputs: FloatArray) -> Booster:
    import lightgbm

    parameters = {**PARAMETERS, "min_data_in_leaf": min(20, max(3, len(outputs) // 10))}
    # Otherwise LightGBM writes the model to text and reads it back, which takes almost as long as training it.
    return lightgbm.train(parameters, lightgbm.Dataset(features, label=outputs), num_boost_round=ROUNDS, keep_training_booster=True)


def _train_few(features: FloatArray, outputs: FloatArray) -> Booster:
    import lightgbm

    bins = {"min_data_in_bin": 1, "verbosity": -1}
    data = lightgbm.Dataset(features, label=outputs, params=bins)
    # Of two runs a part would be none.
    parameters = {**FEW_PARAMETERS, "bagging_fraction": FEW_PARAMETERS["bagging_fraction"] if len(outputs) > 2 else 1.0}
    return lightgbm.train(parameters, data, num_boost_round=FEW_ROUNDS, keep_training_booster=True)


def _predict(model: Booster, features: FloatArray) -> FloatArray:
    if len(features) == 0:  # LightGBM refuses to predict nothing
        return np.zeros(0)
    return np.asarray(model.predict(features, num_threads=1), dtype=np.float64)


def _predict_all(models: Sequence[Booster], features: FloatArray) -> FloatArray:
    """Shape (n, models)."""
    return np.stack([_predict(model, features) for model in models], axis=1)


def _jackknife_factor(predictions: FloatArray) -> FloatArray:
    """F of shape (n, groups) with F F^T the delete-a-group jackknife covariance of `predictions` (n, groups)."""
    groups = predictions.shape[1]
    return np.asarray(np.sqrt((groups - 1) / groups) * (predictions - predictions.mean(axis=1, keepdims=True)))


@dataclass(frozen=True)
class FittedBoostedTrees:
    """Trees of several metrics over the same trials."""

    observations: Observations
    fits: tuple[MetricTrees, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Seed noise from repeats, or half the unexplained variance without them; shape (metrics,), bits per byte."""
        return np.array([fit.noise_std for fit in self.fits])

    def mean(self, points: Points) -> FloatArray:
        """Prediction of the trees fitted on all trials, shape (n, metrics)."""
        features = weights(self.observations.align(points))
        return np.stack([fit.center + fit.scale * _predict(fit.full, features) for fit in self.fits], axis=1)

    def posterior(self, points: Points) -> GaussianPosterior:
        """Prediction, jackknife spread and misfit at `points`."""
        features = weights(self.observations.align(points))
        spreads = [fit.scale * _jackknife_factor(_predict_all(fit.partial, features)) for fit in self.fits]
        variances = [(spread**2).sum(axis=1) + fit.misfit_std**2 for spread, fit in zip(spreads, self.fits, strict=True)]
        # Points at the same mixture share their misfit, so that a mixture never differs from itself.
        same = np.unique(features, axis=0, return_inverse=True)[1].reshape(-1)

        def factor(metric: int) -> FloatArray:
            misfit = self.fits[metric].misfit_std * np.equal.outer(same, np.unique(same))
            return np.concatenate([spreads[metric], misfit], axis=1)

        return GaussianPosterior(self.mean(points), np.sqrt(np.stack(variances, axis=1)), factor)
