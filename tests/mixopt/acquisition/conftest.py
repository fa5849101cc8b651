"""A fitted belief about a known law of six domains and three metrics, with caps and with groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from mixopt.acquisition.beliefs import Beliefs, UnitSpace
from mixopt.acquisition.conditioned import of_gaussian_process
from mixopt.domains import Domain, DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.objective import ObjectiveKind, fit_objective
from mixopt.surrogates.gaussian_process import FittedGaussianProcess, GaussianProcess
from mixopt.swarm import Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1_000_000)
TOKENS = {"web": 50.0, "code": 20.0, "books": 12.0, "math": 8.0, "law": 6.0, "news": 4.0}
GROUPS = {"web": "", "code": "stem", "math": "stem", "books": "prose/shelf", "law": "prose", "news": ""}
RULES = (GroupRule("prose", (("shelf", 0.8), ("law", 0.2))), GroupRule("stem", bounds=(0.1, 0.4)))
METRICS = ("a", "b", "c")


def domain_set(rules: tuple[GroupRule, ...] = ()) -> DomainSet:
    return DomainSet(tuple(Domain(name, f"h-{name}", 10**7, tokens, GROUPS[name]) for name, tokens in TOKENS.items()), 100.0, rules)


def law(weights_MD: FloatArray) -> FloatArray:
    blends = np.array([[0.2, 1.0, 0.1, 0.6, 0.1, 0.3], [0.5, 0.1, 1.0, 0.3, 0.2, 0.1], [0.1, 0.3, 0.2, 0.2, 0.9, 0.8]])
    return np.asarray(1.0 + (weights_MD @ blends.T + 0.03) ** -0.35)


@dataclass(frozen=True)
class Known:
    beliefs: Beliefs
    fitted: FittedGaussianProcess
    fitted_source: Source = SOURCE

    @property
    def coordinates(self) -> UnitSpace:
        return self.beliefs.coordinates


def _known(kind: ObjectiveKind = "mean", rules: tuple[GroupRule, ...] = (), trials: int = 24) -> Known:
    domains = domain_set(rules)
    rng = np.random.default_rng(7)
    natural = domains.natural().array()
    drawn = np.concatenate([np.stack([natural] * 3), rng.dirichlet(np.full(len(TOKENS), 0.8), trials - 3)])
    losses = law(drawn) + rng.normal(0, 0.02, (trials, len(METRICS)))
    swarm = Swarm.from_arrays(domains.names, drawn[:, None], METRICS, losses, SOURCE)
    objective = fit_objective(kind, dict.fromkeys(METRICS, 1.0), swarm, domains.natural())
    fitted = GaussianProcess().fit(swarm, objective.metrics)
    processes = tuple(of_gaussian_process(fitted, metric) for metric in range(len(objective.metrics)))
    return Known(Beliefs(UnitSpace.of(domains), objective, processes, ((0,),) * len(processes)), fitted)


@pytest.fixture(scope="session")
def known() -> Callable[..., Known]:
    """(kind, grouped) -> beliefs, the fit they come from, and the domains."""

    @cache
    def make(kind: ObjectiveKind = "mean", grouped: bool = False) -> Known:
        return _known(kind, RULES if grouped else ())

    return make
