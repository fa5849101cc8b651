"""From losses to the one number that a search minimizes, with the seed noise that says which differences mean something.

Losses are in bits per byte, or in whatever unit a table of the user's has. The default divides each metric's difference to the natural mixture
by its seed noise, so that a metric counts by how clearly a mixture moves it and not by its scale. Noise is measured: pooled over the mixtures that
were trained with several seeds; only where there are no repeats is it what a surrogate could not explain, and that is said. The main trade-off: one
pooled noise per metric, although noise depends on the mixture; with two or three seeds per mixture anything finer would be noise itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray, Mixture
from mixopt.surrogates.observations import MINIMUM_REPEAT_DEGREES, mixture_groups
from mixopt.swarm import Swarm
from mixopt.trial import WEIGHT_DECIMALS

ObjectiveKind = Literal["noise_scaled", "mean", "weighted", "worst_case", "z_scored"]
# Kinds whose value is a loss, in the metrics' own unit: nothing is divided, and nothing is screened.
IN_LOSS_UNITS = ("mean", "weighted")
BITS_PER_BYTE = "bits per byte"
SEED_STDS, MIXTURE_STDS = "standard deviations of a seed", "standard deviations over the mixtures"

# Losses are float32 means of values near 1: seeds that agree better than this agree by rounding, and dividing by less would blow up. Of metrics
# in smaller units, this share of their largest value.
LEAST_NOISE_BITS_PER_BYTE = 1e-6
LEAST_VALUE = 1e-30
# Of fewer mixtures a standard deviation is hardly known: too little to leave out what somebody asked for.
FEWEST_TO_SCREEN = 4


@dataclass(frozen=True)
class Objective:
    """A function of losses, lower is better. Build it with `fit_objective`.

    Attributes:
        kind: noise_scaled: weighted mean over metrics of (loss - natural) / noise, in standard deviations of a seed;
            mean and weighted: weighted mean loss, in the unit of losses (they differ in whether weights must be stated); worst_case: the largest
            (loss - natural) / noise, in which weights do not enter; z_scored: weighted mean of (loss - natural) / standard deviation over mixtures.
        metrics: those that count, in the order of the last axis of every array of losses; screened ones are not among them.
        weights: one per metric, summing to 1.
        noise_std: seed noise per metric, in the unit of losses.
        natural_losses: mean loss per metric at the natural mixture, in the unit of losses.
        degrees_of_freedom: of the noise: trials minus mixtures among the repeated ones; 0 where a surrogate estimated it.
        screened: metric -> why it was left out, with numbers.
        spread_std: standard deviation of each metric over the mixtures, in the unit of losses; empty unless the kind is z_scored.
        loss_unit: of losses.
        noise_from, natural_from: whether noise and natural losses were measured or are a surrogate's.
    """

    kind: ObjectiveKind
    metrics: tuple[str, ...]
    weights: tuple[float, ...]
    noise_std: tuple[float, ...]
    natural_losses: tuple[float, ...]
    degrees_of_freedom: int
    screened: Mapping[str, str]
    spread_std: tuple[float, ...] = ()
    loss_unit: str = BITS_PER_BYTE
    noise_from: Literal["repeats", "surrogate"] = "repeats"
    natural_from: Literal["runs", "surrogate"] = "runs"

    @property
    def unit(self) -> str:
        return unit_of(self.kind, self.loss_unit)

    def value(self, losses: FloatArray) -> FloatArray:
        """The objective of `losses` (..., metrics), shape (...)."""
        if self.kind in IN_LOSS_UNITS:
            return np.asarray(losses @ np.array(self.weights))
        return self.difference(losses, np.array(self.natural_losses))

    def difference(self, losses: FloatArray, natural_losses: FloatArray) -> FloatArray:
        """How much better (negative) or worse `losses` are than `natural_losses` (both (..., metrics), broadcast), shape (...)."""
        scaled = (losses - natural_losses) / self._scales()
        return np.asarray(scaled.max(axis=-1) if self.kind == "worst_case" else scaled @ np.array(self.weights))

    def pieces(self, losses: FloatArray) -> FloatArray:
        """What the objective is the largest of: (..., metrics) for the worst case, else itself as (..., 1)."""
        if self.kind == "worst_case":
            return np.asarray((losses - np.array(self.natural_losses)) / self._scales())
        return self.value(losses)[..., None]

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
        """Records from before a field was known have its default."""
        arrays: dict[str, Any] = {
            key: tuple(body[key]) for key in ("metrics", "weights", "noise_std", "natural_losses", "spread_std") if key in body
        }
        words = {key: body[key] for key in ("loss_unit", "noise_from", "natural_from") if key in body}
        plain = {"kind": body["kind"], "degrees_of_freedom": int(body["degrees_of_freedom"]), "screened": dict(body["screened"])}
        return cls(**plain, **arrays, **words)

    def _scales(self) -> FloatArray:
        if self.kind in IN_LOSS_UNITS:
            return np.ones(len(self.metrics))
        return np.array(self.spread_std if self.kind == "z_scored" else self.noise_std)


def unit_of(kind: str, loss_unit: str = BITS_PER_BYTE) -> str:
    """Unit of an objective of a kind over losses in `loss_unit`."""
    return loss_unit if kind in IN_LOSS_UNITS else MIXTURE_STDS if kind == "z_scored" else SEED_STDS


@dataclass(frozen=True)
class Estimates:
    """What a surrogate says of some metrics, for swarms in which it was not measured.

    Attributes:
        noise_std: seed noise, shape (metrics,).
        natural_losses: predicted at the natural mixture, shape (metrics,).
    """

    metrics: tuple[str, ...]
    noise_std: FloatArray
    natural_losses: FloatArray


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
    return Noise(np.maximum(np.sqrt(squares / degrees), least_noise(values)), degrees, repeated)


def least_noise(values: FloatArray) -> FloatArray:
    """The least noise that is taken for one, of `values` (trials, quantities), shape (quantities,)."""
    largest = np.abs(values).max(axis=0, initial=LEAST_VALUE)
    return np.asarray(LEAST_NOISE_BITS_PER_BYTE * np.minimum(largest, 1.0))


def fit_objective(
    kind: ObjectiveKind,
    weights: Mapping[str, float],
    swarm: Swarm,
    natural: Mixture | None = None,
    loss_unit: str = BITS_PER_BYTE,
    estimates: Estimates | None = None,
) -> Objective:
    """Measures noise and natural losses on a swarm of one source, and screens metrics that carry no signal.

    A metric is screened, unless losses count as they are (mean, weighted), when the standard deviation over mixtures, after removing the
    noise's share, is not above the seed noise; unless that would leave none, in which case all stay.

    Args:
        weights: metric -> weight above 0.
        natural: the natural mixture; default: the trials labelled "natural".
        loss_unit: of the losses.
        estimates: of the metrics in `weights`; taken for the noise where there are fewer than 3 degrees of freedom of repeats, and for the natural
            losses where no natural mixture is in the swarm. None: both are then an error.

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
    noise_lacks, natural_lacks = lacking(swarm, natural) if estimates is not None else (False, False)
    noise, noisy = find_noise(swarm, metrics, loss_unit, estimates if noise_lacks else None)
    screened = {} if kind in IN_LOSS_UNITS or len(noisy) == len(metrics) else noisy
    kept = [index for index, metric in enumerate(metrics) if metric not in screened]
    share = np.array([weights[metrics[index]] for index in kept])
    if estimates is not None and natural_lacks:
        natural_losses = estimates.natural_losses
    else:
        natural_losses = losses[_natural_rows(swarm, natural)].mean(axis=0)
    spread = np.maximum(_mixture_means(losses, mixture_groups(swarm)).std(axis=0), least_noise(losses))
    return Objective(
        kind=kind,
        metrics=tuple(metrics[index] for index in kept),
        weights=tuple((share / share.sum()).tolist()),
        noise_std=tuple(noise.std[kept].tolist()),
        natural_losses=tuple(natural_losses[kept].tolist()),
        degrees_of_freedom=noise.degrees_of_freedom,
        screened=screened,
        spread_std=tuple(spread[kept].tolist()) if kind == "z_scored" else (),
        loss_unit=loss_unit,
        noise_from="surrogate" if noise_lacks else "repeats",
        natural_from="surrogate" if natural_lacks else "runs",
    )


def objective_at(objective: Objective, runs: Swarm, natural: Mixture, estimates: Estimates | None = None) -> Objective:
    """An objective whose noise was measured elsewhere, relative to the natural mixture's losses, and to the spread, in runs of one source.

    Args:
        estimates: as for `fit_objective`; taken where the natural mixture is not among the runs.

    Raises:
        DataError: it is not, and there are no estimates; or a run lacks a metric.
    """
    losses = complete_values(runs, objective.metrics)
    if estimates is not None and not _is_natural(runs, natural).any():
        columns = [estimates.metrics.index(metric) for metric in objective.metrics]
        moved = replace(objective.with_natural(estimates.natural_losses[columns]), natural_from="surrogate")
    else:
        moved = replace(objective.with_natural(losses[_natural_rows(runs, natural)].mean(axis=0)), natural_from="runs")
    if objective.kind != "z_scored":
        return moved
    spread = np.maximum(_mixture_means(losses, mixture_groups(runs)).std(axis=0), least_noise(losses))
    return replace(moved, spread_std=tuple(spread.tolist()))


def lacking(swarm: Swarm, natural: Mixture | None = None) -> tuple[bool, bool]:
    """Whether a swarm of one source has too few repeats to measure noise by them, and whether it lacks the natural mixture."""
    repeats = len(swarm) - len(np.unique(mixture_groups(swarm)))
    return repeats < MINIMUM_REPEAT_DEGREES, not _is_natural(swarm, natural).any()


def find_noise(
    swarm: Swarm, metrics: tuple[str, ...], loss_unit: str = BITS_PER_BYTE, estimates: Estimates | None = None
) -> tuple[Noise, dict[str, str]]:
    """Seed noise of `metrics` over a swarm of one source, and which of them do not rise above it: metric -> why, with numbers.

    Args:
        estimates: of the same metrics, taken instead of measuring.

    Raises:
        DataError: a trial lacks a metric, or no mixture has two seeds.
    """
    losses = complete_values(swarm, metrics)
    groups = mixture_groups(swarm)
    if estimates is None:
        noise = measure_noise(losses, groups)
    else:
        assert estimates.metrics == metrics, "estimates are of the metrics asked for"
        noise = Noise(np.maximum(estimates.noise_std, least_noise(losses)), 0, 0)
    return noise, _reasons(metrics, _mixture_means(losses, groups), noise, loss_unit)


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


def _mixture_means(losses: FloatArray, groups: NDArray[np.int64]) -> FloatArray:
    """Mean losses of each mixture, shape (mixtures, metrics)."""
    return np.array([losses[groups == group].mean(axis=0) for group in np.unique(groups)])


def _is_natural(swarm: Swarm, natural: Mixture | None) -> NDArray[np.bool_]:
    return np.array([label == "natural" for label in swarm.trials()["label"]]) if natural is None else rows_at(swarm, natural)


def _natural_rows(swarm: Swarm, natural: Mixture | None) -> NDArray[np.bool_]:
    rows = _is_natural(swarm, natural)
    if not rows.any():
        raise DataError("No trial at the natural mixture has finished.", "Wait for one; every effect is a difference to it.")
    return rows


def _reasons(metrics: tuple[str, ...], means: FloatArray, noise: Noise, loss_unit: str) -> dict[str, str]:
    """Metric -> reason, for those whose signal does not exceed their noise."""
    if len(means) < FEWEST_TO_SCREEN:
        return {}
    # The variance of single runs over mixtures is signal plus noise; means over repeats hold less noise, so this errs toward screening.
    total = means.var(axis=0, ddof=1)
    signal = np.sqrt(np.maximum(total - noise.std**2, 0.0))
    known = f"{noise.degrees_of_freedom} degrees of freedom" if noise.degrees_of_freedom else "estimated by the surrogate, no repeats"
    return {
        metric: f"varies by {signal[index]:.2g} {loss_unit} over {len(means)} mixtures, not above its seed noise of {noise.std[index]:.2g} ({known})"
        for index, metric in enumerate(metrics)
        if signal[index] <= noise.std[index]
    }
