"""Observations of several sources: the arrays of `observations`, and each trial's source, size and tokens.

The explicit way to fit sources together. `Observations.of` keeps refusing it, because a surrogate that does not look at sources would average over sizes
without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.features import weights
from mixopt.surrogates.observations import Observations, checked_values, mixture_groups
from mixopt.surrogates.scales import Sizes, parameters_of
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

NO_SIZE_HINT = "Select one size, or use a law over sizes, as scaling_effective."


@dataclass(frozen=True)
class SourcedObservations(Observations):
    """Arrays of a swarm of one or several sources in canonical order.

    Attributes:
        groups: which trials repeat the same requested mixture at the same source, shape (n,).
        sources: of the trials, n of them.
        fractions: share of tokens per phase.
    """

    sources: tuple[Source, ...]
    fractions: tuple[float, ...]

    @classmethod
    def of(cls, swarm: Swarm, metrics: Sequence[str]) -> SourcedObservations:
        """The observations of `swarm`.

        Raises:
            DataError: no metric, fewer than 4 trials, or a metric that some trial was not scored on.
        """
        values = checked_values(swarm, metrics)
        points = swarm.points()
        rows = np.argsort(np.array(swarm.trial_ids), kind="stable")
        columns = np.argsort(np.array(swarm.domains), kind="stable")
        keys = np.unique([source.key for source in points.sources], return_inverse=True)[1].reshape(-1)
        groups = np.unique(np.stack([mixture_groups(swarm), keys], axis=1), axis=0, return_inverse=True)[1].reshape(-1)
        return cls(
            domains=tuple(swarm.domains[column] for column in columns),
            metrics=tuple(metrics),
            schedules=points.schedules[rows][:, :, columns],
            values=values[rows],
            groups=groups[rows],
            sources=tuple(points.sources[row] for row in rows),
            fractions=points.fractions,
        )

    def points(self) -> Points:
        """The trials as points."""
        return Points(self.domains, self.schedules, self.sources, self.fractions)


@dataclass(frozen=True)
class ScaledObservations(SourcedObservations):
    """With what laws over sizes and tokens are evaluated at.

    Attributes:
        sizes: name of a size -> parameters, for names that are no numbers.
        only_size: the size, where all trials have the same; its parameters are then not needed.
        center: means of the natural logarithms of parameters and of tokens over the trials; inputs are relative to them.
        unique_tokens: of each domain, in the order of `domains`; None: no repetition.
        one_size: the law has no term for the size: like a surrogate of one source, it answers for any size as for its own.
    """

    sizes: Sizes | None
    only_size: str | None
    one_size: bool
    center: tuple[float, float]
    unique_tokens: tuple[float, ...] | None

    @classmethod
    def scaled(
        cls,
        swarm: Swarm,
        metrics: Sequence[str],
        sizes: Sizes | None = None,
        unique_tokens: Mapping[str, float] | None = None,
        one_size: bool = False,
    ) -> ScaledObservations:
        """The observations of `swarm`.

        Raises:
            DataError: as `SourcedObservations.of`; several evaluators; several sizes, one of which has unknown parameters; a domain whose unique tokens
                are not known, or not above 0; several sizes for a law of one.
        """
        observed = SourcedObservations.of(swarm, metrics)
        evaluators = sorted({source.evaluator for source in observed.sources})
        if len(evaluators) > 1:
            raise DataError(
                f"A law over sizes and tokens fits runs of one evaluator, got {', '.join(evaluators)}.",
                "Select one, or use the surrogate multi_source_gp.",
            )
        names = {source.size for source in observed.sources}
        only = next(iter(names)) if len(names) == 1 else None
        if one_size and only is None:
            raise DataError(f"This law has no term for the size, and the runs are of {', '.join(sorted(names))}.", NO_SIZE_HINT)
        logs = np.array([_log_scale(source, sizes, only) for source in observed.sources])
        unique = None if unique_tokens is None else tuple(_unique_of(domain, unique_tokens) for domain in observed.domains)
        mean = logs.mean(axis=0)
        center = (float(mean[0]), float(mean[1]))
        return cls(**vars(observed), sizes=sizes, only_size=only, one_size=one_size, center=center, unique_tokens=unique)

    def inputs(self, points: Points) -> FloatArray:
        """Weights of all phases side by side, epochs of the same domains where unique tokens are known, log parameters, log tokens.

        Logarithms are natural and relative to `center`; shape (n, phases * domains + 2), or (n, 2 * phases * domains + 2) with epochs.

        Raises:
            DataError: other domains or phases than fitted on, or a size of unknown parameters.
        """
        schedules = self.align(points)
        if len(points.sources) != len(schedules):
            raise DataError(f"{len(schedules)} points need a source each, got {len(points.sources)}.")
        known = {source: _log_scale(source, self.sizes, source.size if self.one_size else self.only_size) for source in set(points.sources)}
        logs = np.array([known[source] for source in points.sources], dtype=np.float64).reshape(-1, 2)
        parts = [weights(schedules)]
        if self.unique_tokens is not None:
            shares = np.einsum("p,npd->nd", np.array(points.fractions), schedules)
            parts.append(np.tile(shares * np.exp(logs[:, 1:]) / np.array(self.unique_tokens), schedules.shape[1]))
        return np.concatenate([*parts, logs - np.array(self.center)], axis=1)


def _log_scale(source: Source, sizes: Sizes | None, only: str | None) -> tuple[float, float]:
    """Natural logarithms of parameters and tokens; the only size there is needs no parameters, whatever its name."""
    if source.tokens < 1:
        raise DataError(f"Source {source.key} has {source.tokens} tokens; a law over tokens needs at least 1.")
    try:
        parameters = parameters_of(source.size, sizes)
    except DataError:
        if source.size != only:
            raise
        parameters = 1.0
    return math.log(parameters), math.log(source.tokens)


def _unique_of(domain: str, unique_tokens: Mapping[str, float]) -> float:
    count = unique_tokens.get(domain, math.nan)
    if not count > 0:
        raise DataError(
            f"How many unique tokens domain '{domain}' has is not known ({count}).", f"Give unique_tokens a number above 0 for '{domain}'."
        )
    return float(count)
