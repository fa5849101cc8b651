"""A surrogate that knows a law: what follows from its predictions can then be worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.domains import Domain, DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.objective import Estimates, ObjectiveKind, fit_objective
from mixopt.prediction import Prediction, predict
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)
NOISE = 0.01


@dataclass(frozen=True)
class Law:
    """A surrogate that is right everywhere.

    Attributes:
        losses: weights (n, domains), in the order of `domains`, -> losses (n, metrics).
        noise: per metric.
        doubt: posterior standard deviation, everywhere and independently.
    """

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    losses: Callable[[FloatArray], FloatArray]
    noise: tuple[float, ...] = ()
    doubt: float = 1e-9

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedLaw:
        return FittedLaw(self, tuple(metrics))

    def swarm(self, weights: FloatArray, noise: float = 0.0, seed: int = 0, source: Source = SOURCE) -> Swarm:
        """One run of each row of `weights`."""
        losses = self.losses(weights)
        losses = losses + noise * np.random.default_rng(seed).normal(size=losses.shape)
        return Swarm.from_arrays(self.domains, weights[:, None], self.metrics, losses, source)

    def prediction(self, domains: DomainSet, kind: ObjectiveKind = "mean", weights: Mapping[str, float] | None = None) -> Prediction:
        """What a proposal over `domains` is made from, the metrics weighted alike unless said otherwise."""
        chosen = dict(weights or dict.fromkeys(self.metrics, 1.0))
        runs = self.swarm(np.random.default_rng(0).dirichlet(np.ones(len(self.domains)), 8))
        natural = domains.natural().array(domains.names)
        fitted = self.fit(runs, tuple(chosen))
        points = Points(domains.names, natural[None, None], (SOURCE,))
        objective = fit_objective(
            kind, chosen, runs, domains.natural(), estimates=Estimates(tuple(chosen), fitted.noise_std, fitted.mean(points)[0])
        )
        return predict(self, runs, objective, domains.names, natural, seed=0)


@dataclass(frozen=True)
class FittedLaw:
    law: Law
    metrics: tuple[str, ...]

    @property
    def noise_std(self) -> FloatArray:
        noise = self.law.noise or (NOISE,) * len(self.law.metrics)
        return np.array([noise[self.law.metrics.index(metric)] for metric in self.metrics])

    def mean(self, points: Points) -> FloatArray:
        order = [points.domains.index(name) for name in self.law.domains]
        columns = [self.law.metrics.index(metric) for metric in self.metrics]
        return self.law.losses(points.averages()[:, order])[:, columns]

    def posterior(self, points: Points) -> GaussianPosterior:
        mean = self.mean(points)
        return GaussianPosterior(mean, np.full(mean.shape, self.law.doubt), lambda _metric: self.law.doubt * np.eye(len(mean)))


def domain_set(
    tokens: Mapping[str, float],
    budget: float | None = None,
    bounds: Mapping[str, tuple[float, float]] | None = None,
    groups: Mapping[str, str] | None = None,
    rules: tuple[GroupRule, ...] = (),
) -> DomainSet:
    """Domains of so many tokens; without a budget there are no epoch caps, with one they are four epochs."""
    bounds, groups = bounds or {}, groups or {}
    domains = tuple(
        Domain(name, name, 1000, count, groups.get(name, ""), 1e9 if budget is None else 4.0, bounds.get(name, (0.0, 1.0)))
        for name, count in tokens.items()
    )
    return DomainSet(domains, sum(tokens.values()) if budget is None else budget, rules)


def grid(steps: int) -> FloatArray:
    """All mixtures of three domains in steps of 1 / steps, shape (n, 3)."""
    cells = [(i / steps, j / steps) for i in range(steps + 1) for j in range(steps + 1 - i)]
    return np.array([(a, b, max(0.0, 1 - a - b)) for a, b in cells])
