"""What a seed does to each loss, how surely that is known, and whether it does more at some mixtures than at others.

Pooled over mixtures, as the objective takes it (`objective.measure_noise`), with its interval; and per mixture, with Bartlett's test of equal
variances. The main trade-off: two or three seeds per mixture find only differences of several times, so a test that finds none proves little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.objective import measure_noise

INTERVAL = 0.9


@dataclass(frozen=True)
class MetricNoise:
    """Seed noise of one metric, bits per byte.

    Attributes:
        std: pooled within mixtures; `low` and `high` bound the central 90% of what it may be, from its degrees of freedom.
        spread: standard deviation over mixtures with the noise's share taken out: what mixtures do.
        by_mixture: mixture -> (seeds, their standard deviation).
        unequal: p value of equal noise at all mixtures (Bartlett); None: too few seeds.
    """

    metric: str
    std: float
    low: float
    high: float
    degrees_of_freedom: int
    spread: float
    by_mixture: Mapping[str, tuple[int, float]]
    unequal: float | None

    @property
    def above_noise(self) -> bool:
        """Whether mixtures move it by more than a seed does: what screening asks."""
        return self.spread > self.std


def seed_noise(metrics: tuple[str, ...], repeats: Mapping[str, FloatArray], mixtures: FloatArray) -> tuple[MetricNoise, ...]:
    """Noise of every metric.

    Args:
        repeats: mixture -> losses (seeds, metrics).
        mixtures: mean losses of different mixtures (mixtures, metrics), for the spread.

    Raises:
        DataError: no mixture has two seeds.
    """
    from scipy.stats import chi2

    several = {name: values for name, values in repeats.items() if len(values) > 1}
    groups = np.repeat(np.arange(len(several)), [len(values) for values in several.values()])
    noise = measure_noise(np.concatenate([*several.values(), np.zeros((0, len(metrics)))]), groups)
    degrees = noise.degrees_of_freedom
    ends = [np.sqrt(degrees / chi2.ppf(q, degrees)) for q in (0.5 + INTERVAL / 2, 0.5 - INTERVAL / 2)]
    spread = np.sqrt(np.maximum(mixtures.var(axis=0, ddof=1) - noise.std**2, 0.0)) if len(mixtures) > 1 else np.zeros(len(metrics))
    return tuple(
        MetricNoise(
            metric=metric,
            std=float(noise.std[column]),
            low=float(noise.std[column] * ends[0]),
            high=float(noise.std[column] * ends[1]),
            degrees_of_freedom=degrees,
            spread=float(spread[column]),
            by_mixture={name: (len(values), float(values[:, column].std(ddof=1))) for name, values in several.items()},
            unequal=_bartlett([values[:, column] for values in several.values()]),
        )
        for column, metric in enumerate(metrics)
    )


def _bartlett(groups: list[FloatArray]) -> float | None:
    """P value of equal variances; None where it cannot be asked: one group, or seeds that agree exactly."""
    from scipy.stats import bartlett

    if len(groups) < 2 or any(np.ptp(values) == 0 for values in groups):
        return None
    return float(bartlett(*groups).pvalue)
