"""The surrogate protocol: fit on a swarm, answer with a joint posterior over points."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Protocol

from mixopt.mixture import FloatArray
from mixopt.swarm import Points, Swarm


class Posterior(Protocol):
    """Predicted losses in bits per byte at n points for some metrics.

    `mean` and `std` have shape (n, metrics); `std` is of the noise-free loss. `sample` draws jointly over the points.
    """

    @property
    def mean(self) -> FloatArray: ...
    @property
    def std(self) -> FloatArray: ...
    def sample(self, count: int, seed: int) -> FloatArray:
        """Draws of shape (count, n, metrics)."""
        ...


class Fitted(Protocol):
    """A fitted surrogate; pure, so the same points give the same posterior."""

    @property
    def metrics(self) -> tuple[str, ...]: ...
    @property
    def noise_std(self) -> FloatArray:
        """Seed noise the fit found, shape (metrics,), bits per byte."""
        ...

    def posterior(self, points: Points) -> Posterior: ...
    def mean(self, points: Points) -> FloatArray:
        """Posterior mean alone, shape (n, metrics); cheap enough for 100,000 points."""
        ...


class Surrogate(Protocol):
    """Fits one model per metric on the realized mixtures of a swarm.

    A surrogate whose attribute `several_sources` is true takes runs of several sizes and token counts together and answers at the source of each point; all
    others want a swarm of one source.

    Raises (fit):
        DataError: fewer than 4 trials, or a metric that some trial was not scored on.
    """

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Fitted: ...


def takes_several_sources(surrogate: Surrogate) -> bool:
    """Whether it fits runs of several sizes and token counts together."""
    return bool(getattr(surrogate, "several_sources", False))


def takes_several_sizes(surrogate: Surrogate) -> bool:
    """Whether it fits runs of several sizes, which it may want to know the parameters of: its option `sizes`."""
    return "sizes" in inspect.signature(type(surrogate)).parameters


def refuse_metrics(surrogate: Surrogate, metrics: Sequence[str], domains: Sequence[str]) -> None:
    """Raises DataError where a metric is none that it can predict: by its method `refuse_metrics`. Most take any."""
    refuse = getattr(surrogate, "refuse_metrics", None)
    if refuse is not None:
        refuse(metrics, domains)
