"""From losses to the one number that a search minimizes, with the seed noise that says which differences mean something.

Losses are in bits per byte. The default divides each metric's difference to the natural mixture by its seed noise, so that a metric counts
by how clearly a mixture moves it and not by its scale. Noise is measured, never assumed: pooled over the mixtures that were trained with
several seeds. The main trade-off: one pooled noise per metric, although noise depends on the mixture; with two or three seeds per mixture
anything finer would be noise itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray, Mixture
from mixopt.surrogates.observations import mixture_groups
from mixopt.swarm import Swarm
from mixopt.trial import WEIGHT_DECIMALS

ObjectiveKind = Literal["noise_scaled", "mean", "worst_case"]

# Losses are float32 means of values near 1: seeds that agree better than this agree by rounding, and dividing by less would blow up.
LEAST_NOISE_BITS_PER_BYTE = 1e-6


@dataclass(frozen=True)
class Objective:
    """A function of losses, lower is better. Build it with `fit_objective`.

    Attributes:
        kind: noise_scaled: weighted mean over metrics of (loss - natural) / noise, in standard deviations of a seed;
            mean: weighted mean loss, in bits per byte; worst_case: the largest (loss - natural) / noise, in which weights do not enter.
        metrics: those that count, in the order of the last axis of every array of losses; screened ones are not among them.
        weights: one per metric, summing to 1.
        noise_std: seed noise per metric, bits per byte.
        natural_losses: mean loss per metric at the natural mixture, bits per byte.
        degrees_of_freedom: of the noise: trials minus mixtures among the repeated ones.
        screened: metric -> why it was left out, with numbers.
    """

    kind: ObjectiveKind
    metrics: tuple[str, ...]
    weights: tuple[float, ...]
    noise_std: tuple[float, ...]
    natural_losses: tuple[float, ...]
    degrees_of_freedom: int
    screened: Mapping[str, str]

    @property
    def unit(self) -> str:
        return "bits per byte" if self.kind == "mean" else "standard deviations of a seed"

    def value(self, losses: FloatArray) -> FloatArray:
        """The objective of `losses` (..., metrics), shape (...)."""
        if self.kind == "mean":
            return np.asarray(losses @ np.array(self.weights))
        return self.difference(losses, np.array(self.natural_losses))

    def difference(self, losses: FloatArray, natural_losses: FloatArray) -> FloatArray:
        """How much better (negative) or worse `losses` are than `natural_losses` (both (..., metrics), broadcast), shape (...)."""
        scaled = (losses - natural_losses) / self._scales()
        return np.asarray(scaled.max(axis=-1) if self.kind == "worst_case" else scaled @ np.array(self.weights))

    def sensitivities(self, losses: FloatArray) -> FloatArray:
        """Derivative of the objective by each loss at `losses` (..., metrics), same shape; at a tie of worst cases, one of them."""
        if self.kind == "worst_case":
            scaled = (losses - np.array(self.natural_losses)) / self._scales()
            worst = np.arange(len(self.metrics)) == scaled.argmax(axis=-1, keepdims=True)
            return np.asarray(worst / self._scales())
        return np.broadcast_to(np.array(self.weights) / self._scales(), losses.shape).copy()

    def with_natural(self, losses: FloatArray) -> Objective:
        """The same objective relative to other losses (metrics,) of the natural mixture: another source has its own."""
        if losses.shape != (len(self.metrics),) or not np.isfinite(losses).all():
            raise DataError(f"Natural losses have shape {losses.shape} or are not finite; the objective has {len(self.metrics)} metrics.")
        return replace(self, natural_losses=tuple(losses.tolist()))

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"screened": dict(self.screened)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Objective:
        arrays = {key: tuple(body[key]) for key in ("metrics", "weights", "noise_std", "natural_losses")}
        return cls(kind=body["kind"], degrees_of_freedom=int(body["degrees_of_freedom"]), screened=dict(body["screened"]), **arrays)

    def _scales(self) -> FloatArray:
        return np.ones(len(self.metrics)) if self.kind == "mean" else np.array(self.noise_std)


@dataclass(frozen=True)
class Noise:
    """Seed noise of some quantities over a swarm.

    Attributes:
        std: pooled within-mixture standard deviation, shape (quantities,).
        degrees_of_freedom: trials minus mixtures, among mixtures trained more than once.
        mixtures: how many such mixtures there are.
    """

    std: FloatArray
    degrees_of_freedom: int
    mixtures: int


def measure_noise(values: FloatArray, groups: NDArray[np.int64]) -> Noise:
    """Pooled within-group standard deviation of `values` (trials, quantities).

    Raises:
        DataError: no mixture was trained twice.
    """
    squares, degrees, repeated = np.zeros(values.shape[1]), 0, 0
    for group in np.unique(groups):
        members = values[groups == group]
        if len(members) > 1:
            squares += ((members - members.mean(axis=0)) ** 2).sum(axis=0)
            degrees += len(members) - 1
            repeated += 1
    if degrees == 0:
        raise DataError(
            "Seed noise cannot be measured: no mixture was trained with two seeds.",
            "Finish the repeats at the natural and uniform mixtures (`proxy.seeds`), then propose again.",
        )
    return Noise(np.maximum(np.sqrt(squares / degrees), LEAST_NOISE_BITS_PER_BYTE), degrees, repeated)


def fit_objective(kind: ObjectiveKind, weights: Mapping[str, float], swarm: Swarm, natural: Mixture | None = None) -> Objective:
    """Measures noise and natural losses on a swarm of one source, and screens metrics that carry no signal.

    A metric is screened out of noise_scaled and worst_case when the standard deviation over mixtures, after removing the noise's share, is
    not above the seed noise; unless that would leave none, in which case all stay.

    Args:
        weights: metric -> weight above 0.
        natural: the natural mixture; default: the trials labelled "natural".

    Raises:
        ConfigError: unknown kind, or weights that are not positive.
        DataError: a trial lacks a metric, no natural mixture is in the swarm, or no mixture has two seeds.
    """
    if kind not in get_args(ObjectiveKind):
        raise ConfigError(f"Objective '{kind}' is unknown.", f"Choose one of {', '.join(get_args(ObjectiveKind))}.")
    if not weights or not all(np.isfinite(weight) and weight > 0 for weight in weights.values()):
        raise ConfigError(f"The objective's weights are {dict(weights)}.", "Give at least one metric a weight above 0.")
    metrics = tuple(weights)
    losses = complete_values(swarm, metrics)
    noise, noisy = find_noise(swarm, metrics)
    screened = {} if kind == "mean" or len(noisy) == len(metrics) else noisy
    kept = [index for index, metric in enumerate(metrics) if metric not in screened]
    share = np.array([weights[metrics[index]] for index in kept])
    natural_losses = losses[_natural_rows(swarm, natural)].mean(axis=0)
    return Objective(
        kind=kind,
        metrics=tuple(metrics[index] for index in kept),
        weights=tuple((share / share.sum()).tolist()),
        noise_std=tuple(noise.std[kept].tolist()),
        natural_losses=tuple(natural_losses[kept].tolist()),
        degrees_of_freedom=noise.degrees_of_freedom,
        screened=screened,
    )


def find_noise(swarm: Swarm, metrics: tuple[str, ...]) -> tuple[Noise, dict[str, str]]:
    """Seed noise of `metrics` over a swarm of one source, and which of them do not rise above it: metric -> why, with numbers.

    Raises:
        DataError: a trial lacks a metric, or no mixture has two seeds.
    """
    losses = complete_values(swarm, metrics)
    groups = mixture_groups(swarm)
    noise = measure_noise(losses, groups)
    means = np.array([losses[groups == group].mean(axis=0) for group in np.unique(groups)])
    return noise, _reasons(metrics, means, noise)


def complete_values(swarm: Swarm, metrics: tuple[str, ...]) -> FloatArray:
    """End-point losses in bits per byte, shape (trials, metrics).

    Raises:
        DataError: some trial was not scored on some metric, named.
    """
    losses = swarm.values(metrics)
    missing = np.isnan(losses).sum(axis=0)
    if missing.any():
        worst = int(np.argmax(missing))
        raise DataError(
            f"{int(missing[worst])} of {len(swarm)} trials were not scored on '{metrics[worst]}', which the objective needs.",
            "Run the search again: kept weights are scored without training.",
        )
    return losses


def rows_at(swarm: Swarm, mixture: Mixture) -> NDArray[np.bool_]:
    """Which trials asked for `mixture` throughout, shape (trials,), in the order of `trial_ids`."""
    requested = swarm.points(realized=False).schedules
    return np.asarray(np.all(np.abs(requested - mixture.array(swarm.domains)) < 10.0**-WEIGHT_DECIMALS, axis=(1, 2)))


def _natural_rows(swarm: Swarm, natural: Mixture | None) -> NDArray[np.bool_]:
    labels = swarm.trials()["label"]
    rows = np.array([label == "natural" for label in labels]) if natural is None else rows_at(swarm, natural)
    if not rows.any():
        raise DataError("No trial at the natural mixture has finished.", "Wait for one; every effect is a difference to it.")
    return rows


def _reasons(metrics: tuple[str, ...], means: FloatArray, noise: Noise) -> dict[str, str]:
    """Metric -> reason, for those whose signal does not exceed their noise."""
    if len(means) < 2:
        return {}
    # The variance of single runs over mixtures is signal plus noise; means over repeats hold less noise, so this errs toward screening.
    total = means.var(axis=0, ddof=1)
    signal = np.sqrt(np.maximum(total - noise.std**2, 0.0))
    return {
        metric: f"varies by {signal[index]:.2g} bits per byte over {len(means)} mixtures, not above its seed noise of "
        f"{noise.std[index]:.2g} ({noise.degrees_of_freedom} degrees of freedom)"
        for index, metric in enumerate(metrics)
        if signal[index] <= noise.std[index]
    }
