"""A surrogate of one source carried to another by a constant ratio per metric, known from one or a few anchor runs there.

On public runs one anchor predicts the losses of a size twice as large within .5 to 1.2%, without any law (methods/surrogates-measured.md, B). The ratio is the
mean of measured over predicted loss at the anchors. Its uncertainty has two parts: what the surrogate and the noise leave open at the anchors, less the more there
are; and how much the ratio depends on the mixture, which more anchors measure and do not lower. The main trade-off: the ranking is the proxy's; however many
anchors there are, they do not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted, Posterior
from mixopt.surrogates.cross_validation import noise_at
from mixopt.surrogates.observations import MINIMUM_TRIALS
from mixopt.surrogates.scales import Sizes, sources_in
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

RATIO_STD, RATIO_ANCHORS = 0.02, 2.0
"""Spread of the ratio over mixtures, relative, before anchors are seen, and so many of them it counts as: on public runs one anchor left errors of .5 to 1.2% between
neighbouring sizes, and of 3% from 1M to 60M parameters (RegMix, benchmarks/scaling.py)."""


class NoRatio(DataError):
    """A metric whose losses are 0 or of both signs: nothing is a multiple of them."""


class AnchorRatio:
    """Fits `base` at the source with most runs; see the module's docstring.

    Args:
        base: name of a surrogate of one source.
        sizes: name of a size -> parameters; only the order of sources by cost needs them.
    """

    several_sources = True

    def __init__(self, base: str = "gaussian_process", sizes: Sizes | None = None) -> None:
        self.base = base
        self.sizes = sizes

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Fitted:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as the surrogate `base` says of the runs of its source.
            NoRatio: losses at anchors and predictions for them have different signs, or are 0.
        """
        from mixopt.surrogates import get_surrogate

        counts: dict[Source, int] = {}
        for source in swarm.points().sources:
            counts[source] = counts.get(source, 0) + 1
        if len(counts) <= 1:
            return get_surrogate(self.base).fit(swarm, metrics)
        # Of sources with equally many runs the costliest: it is nearest to what is asked about.
        proxy = max(sources_in(swarm, self.sizes), key=lambda source: counts[source])
        if counts[proxy] < MINIMUM_TRIALS:
            raise DataError(f"No source has the {MINIMUM_TRIALS} runs that a surrogate needs; the most are {counts[proxy]} at {proxy.key}.")
        fitted = get_surrogate(self.base).fit(swarm.at_source(proxy), metrics)
        ratios = {source: _ratio(fitted, swarm.at_source(source), proxy, metrics) for source in counts if source != proxy}
        return FittedRatio(fitted, proxy, ratios)


@dataclass(frozen=True)
class Ratio:
    """Loss at a source over the proxy's: `mean` and `std`, both (metrics,), and the seed noise there, (metrics,)."""

    mean: FloatArray
    std: FloatArray
    noise_std: FloatArray


def _ratio(fitted: Fitted, anchors: Swarm, proxy: Source, metrics: Sequence[str]) -> Ratio:
    anchors = anchors.by_trial_id()
    points = anchors.points()
    asked = Points(points.domains, points.schedules, (proxy,) * len(points.sources), points.fractions)
    posterior, noise_AK = fitted.posterior(asked), noise_at(fitted, asked)
    measured_AK = anchors.values(metrics)
    for column, metric in enumerate(metrics):
        if not np.isfinite(measured_AK[:, column]).all():
            missing = int((~np.isfinite(measured_AK[:, column])).sum())
            raise DataError(
                f"Metric '{metric}' is missing in {missing} of {len(anchors)} trials.",
                "Score those trials on it, or leave the metric out.",
            )
        if (measured_AK[:, column] * posterior.mean[:, column] <= 0).any():
            raise NoRatio(
                f"Metric '{metric}' is 0 or changes its sign between sources, so that a ratio means nothing.", "Use multi_source_gp."
            )
    ratios_AK = measured_AK / posterior.mean
    mean_K = ratios_AK.mean(axis=0)
    count = len(ratios_AK)
    doubt_K = np.abs(mean_K) * np.sqrt(np.mean((posterior.std**2 + 2 * noise_AK**2) / posterior.mean**2, axis=0))
    seen_K = np.maximum(ratios_AK.var(axis=0, ddof=1) - doubt_K**2, 0.0) if count > 1 else np.zeros(len(metrics))
    apart_K = ((count - 1) * seen_K + RATIO_ANCHORS * (RATIO_STD * mean_K) ** 2) / (count - 1 + RATIO_ANCHORS)
    std_K = np.sqrt(apart_K + (apart_K + doubt_K**2) / count)
    return Ratio(mean_K, std_K, np.abs(mean_K) * fitted.noise_std)


@dataclass(frozen=True)
class FittedRatio:
    """A surrogate of the proxy's source, and the ratio of every other source that was run."""

    proxy_fit: Fitted
    proxy: Source
    ratios: dict[Source, Ratio]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.proxy_fit.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Seed noise of the proxy, shape (metrics,), bits per byte."""
        return self.proxy_fit.noise_std

    def noise_at(self, points: Points) -> FloatArray:
        """Seed noise of every point, relative as the proxy's, shape (n, metrics), bits per byte."""
        mean_MK, _ = self._ratios(points)
        return np.asarray(np.abs(mean_MK) * noise_at(self.proxy_fit, self._at_proxy(points)))

    def mean(self, points: Points) -> FloatArray:
        """Posterior mean at each point's source, shape (n, metrics)."""
        return np.asarray(self._ratios(points)[0] * self.proxy_fit.mean(self._at_proxy(points)))

    def posterior(self, points: Points) -> RatioPosterior:
        """At each point's source.

        Raises:
            DataError: a source that has no run.
        """
        numbers = {source: number for number, source in enumerate(dict.fromkeys(points.sources))}
        at_M = np.array([numbers[source] for source in points.sources], dtype=np.int64)
        return RatioPosterior(self.proxy_fit.posterior(self._at_proxy(points)), *self._ratios(points), at_M)

    def _at_proxy(self, points: Points) -> Points:
        return Points(points.domains, points.schedules, (self.proxy,) * len(points.sources), points.fractions)

    def _ratios(self, points: Points) -> tuple[FloatArray, FloatArray]:
        """Means and stds of the ratio of every point's source, both (n, metrics)."""
        one, none = np.ones(len(self.metrics)), np.zeros(len(self.metrics))
        known = {self.proxy: (one, none)} | {source: (ratio.mean, ratio.std) for source, ratio in self.ratios.items()}
        for source in points.sources:
            if source not in known:
                raise DataError(
                    f"No run was at {source.key}, so its ratio to {self.proxy.key} is not known.",
                    "Run one mixture there, or use a law over sizes, as scaling_effective.",
                )
        shape = (len(points.sources), len(self.metrics))
        means = np.array([known[source][0] for source in points.sources]).reshape(shape)
        return means, np.array([known[source][1] for source in points.sources]).reshape(shape)


@dataclass(frozen=True)
class RatioPosterior:
    """The proxy's posterior times a ratio that is uncertain, the same for all points of a source."""

    proxy: Posterior
    ratio: FloatArray
    ratio_std: FloatArray
    at: np.ndarray[tuple[int, ...], np.dtype[np.int64]]

    @property
    def mean(self) -> FloatArray:
        return np.asarray(self.ratio * self.proxy.mean)

    @property
    def std(self) -> FloatArray:
        first, second = self.ratio * self.proxy.std, self.proxy.mean * self.ratio_std
        return np.asarray(np.sqrt(first**2 + second**2 + (self.ratio_std * self.proxy.std) ** 2))

    def sample(self, count: int, seed: int) -> FloatArray:
        """Draws of shape (count, n, metrics), joint over points."""
        sources = int(self.at.max(initial=-1)) + 1
        normal = np.random.default_rng([seed, 0x4A710]).standard_normal((count, sources, self.ratio.shape[1]))
        return np.asarray(self.proxy.sample(count, seed) * (self.ratio + normal[:, self.at] * self.ratio_std))
