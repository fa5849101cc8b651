"""A family of components: one trial per domain, all branched from one base, and what their averages stand for.

Component k continues from the base on (1 - beta) of domain k and beta of general data (DeMix, arXiv 2602.00747, sections 1 and 1b of the methods file). An
average with weights alpha has therefore learned, to first order, from the data mixture p = (1 - beta) alpha + beta g: p is what a merged trial's schedule
says, so that merged and trained trials lie on one axis, and alpha is what follows from it, with beta un-mixed. A mixture that gives a domain less than the
general share of it has an alpha below zero: linear merges extrapolate, which first order allows as well; other operators and ensembles cannot, and reach
only the mixtures that hold the general share.

A merged trial depends on nothing random of its own: its seed is only the number under which a search asked for it and is no part of its identity. The main
trade-off: components see as many different documents of a domain as are prepared, where trained trials repeat a scarce domain as the target run would, so
what repetition costs is not in a merge; the epoch caps bound it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixopt.domains import DomainSet
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.space import MixtureSpace
from mixopt.trial import WEIGHT_DECIMALS, JsonValue, Source, Trial, TrialDomain, trial_identity

COMPONENT_LABEL = "component"
BEYOND_REACH = 1e-6
"""How far below zero a weight may be that is rounding."""
ENDLESS = 1.0
"""Tokens of a target run in which nothing is repeated: proxies then see everything that is prepared."""


@dataclass(frozen=True)
class Family:
    """Components of one base.

    Attributes:
        general: mixture of the general data, over the domains of the search; `share`: beta, how much of it is in every component.
        components: domain -> its trial, in the order of the search's domains.
        operator: how weights are merged, with its settings; JSON values.
        extrapolates: whether weights below zero are possible.
    """

    domains: DomainSet
    base: Trial
    general: Mixture
    share: float
    components: Mapping[str, Trial]
    operator: Mapping[str, JsonValue]

    @property
    def extrapolates(self) -> bool:
        return bool(self.operator["kind"] == "linear")

    @property
    def source(self) -> Source:
        """Of the components."""
        return next(iter(self.components.values())).source

    @property
    def trials(self) -> tuple[Trial, ...]:
        return tuple(self.components.values())

    def weights(self, mixture: Mixture) -> FloatArray:
        """Alpha, shape (domains,), in the order of the search's domains; sums to one, and may be below zero."""
        names = self.domains.names
        return np.asarray((mixture.array(names) - self.share * self.general.array(names)) / (1 - self.share))

    def mixture(self, weights: FloatArray) -> Mixture:
        """The data mixture that an average with these weights, of shape (domains,), stands for."""
        names = self.domains.names
        return Mixture.from_array(names, (1 - self.share) * weights + self.share * self.general.array(names))

    def reach(self, space: MixtureSpace) -> MixtureSpace:
        """The mixtures of a space that hold the general share of every domain.

        Raises:
            ConfigError: a bound or cap of the space is below that share.
        """
        names = space.domains
        held = self.share * self.general.array(names)
        shares_UD = space.units.expand(np.eye(len(space.units.names)))
        needed = np.divide(held, shares_UD, out=np.zeros_like(shares_UD), where=shares_UD > 0).max(axis=1)
        over = [name for name, least, most in zip(space.units.names, needed, space.unit_upper, strict=True) if least > most + BEYOND_REACH]
        if over:
            raise ConfigError(
                f"`components.general` is {self.share:g}: every average holds more of '{over[0]}' than its bound or cap allows.",
                "Lower `components.general`, choose another `components.mixture`, or take merged proxies of the operator linear, which extrapolate.",
            )
        unit_lower = np.minimum(np.maximum(space.unit_lower, needed), space.unit_upper)
        return replace(space, lower=space.units.expand(unit_lower), unit_lower=unit_lower)

    def maker(self, evaluator: str) -> MergedFactory:
        """Makes the merged or ensembled trials of these components."""
        return MergedFactory(self, evaluator)


@dataclass(frozen=True)
class MergedFactory:
    """Makes trials that average components; as `TrialFactory`, for one evaluator."""

    family: Family
    evaluator: str

    @property
    def source(self) -> Source:
        return replace(self.family.source, evaluator=self.evaluator)

    @property
    def extrapolates(self) -> bool:
        return self.evaluator == "merged" and self.family.extrapolates

    def make(self, schedule: Schedule, seed: int, label: str) -> Trial:
        """The trial that stands for `schedule`.

        Args:
            seed: the number under which it was asked for; no part of its identity.

        Raises:
            ConfigError: these averages do not reach the mixture.
        """
        family = self.family
        names = family.domains.names
        mixture = schedule.average().reordered(names)
        weights = family.weights(mixture)
        if not self.extrapolates:
            if weights.min() < -BEYOND_REACH:
                short = names[int(np.argmin(weights))]
                raise ConfigError(
                    f"No average of components has only {mixture.as_dict()[short]:.3g} of '{short}': a share of {family.share:g} of each is general data.",
                    "Ask for more of it, or lower `components.general`.",
                )
            weights = np.maximum(weights, 0.0)
            weights /= weights.sum()
        by_trial = {
            family.components[name].trial_id: round(float(weight), WEIGHT_DECIMALS)
            for name, weight in zip(names, weights, strict=True)
            if round(float(weight), WEIGHT_DECIMALS) != 0
        }
        return self._made(mixture, by_trial, seed, label)

    def of_base(self, label: str) -> Trial:
        """The base as an average of itself, so that it is scored as the averages are."""
        base = self.family.base
        own = {domain.content_hash: weight for domain, weight in zip(base.domains, base.schedule.average().weights, strict=True)}
        weights = {d.name: own.get(d.content_hash, 0.0) for d in self.family.domains.domains}
        if sum(weights.values()) < 1 - BEYOND_REACH:
            raise ConfigError(
                f"The base, trial {base.trial_id[:8]}, was trained on domains that this file does not list.",
                "Add them, or let a base be trained (`proxy.beginning.base` without `trial`).",
            )
        return self._made(Mixture.of(weights), {base.trial_id: 1.0}, 0, label)

    def _made(self, mixture: Mixture, by_trial: Mapping[str, float], seed: int, label: str) -> Trial:
        """The trial with these weights of trials, that stands for a mixture."""
        family = self.family
        one = next(iter(family.components.values()))
        operator = {"operator": dict(family.operator)} if self.evaluator == "merged" else {}
        recipe: dict[str, Any] = {**one.recipe, "merge": {"weights": dict(by_trial), "base": family.base.trial_id, **operator}}
        domains = tuple(
            TrialDomain(d.name, d.content_hash, _unique(family.components[d.name], d.content_hash)) for d in family.domains.domains
        )
        inputs = tuple(dict.fromkeys((*by_trial, family.base.trial_id)))
        schedule, shared = Schedule.constant(mixture), (one.tokenizer_hash, one.engine_version)
        # The general share is in the weights: two families that average to one model are one trial. Zero: the seed of everything that is not random.
        identity = trial_identity(schedule, self.source, 0, recipe, domains, *shared, inputs)
        return Trial(identity, schedule, self.source, seed, recipe, domains, *shared, label, inputs)


def _unique(component: Trial, content_hash: str) -> int:
    return next(domain.unique_tokens for domain in component.domains if domain.content_hash == content_hash)


def component_factory(domains: DomainSet, source: Source, recipe: Mapping[str, JsonValue], base: Trial) -> TrialFactory:
    """Makes components: trials that continue from the base, over all documents that are prepared."""
    return TrialFactory(replace(domains, budget_tokens=ENDLESS), source, recipe, base.tokenizer_hash, base.engine_version, (base.trial_id,))


def family_of(
    domains: DomainSet,
    base: Trial,
    make: Callable[[Schedule, int, str], Trial],
    general: Mixture,
    share: float,
    seed: int,
    operator: Mapping[str, JsonValue],
) -> Family:
    """The family whose components `make` makes."""
    names = domains.names
    components = {}
    for place, name in enumerate(names):
        weights = share * general.array(names)
        weights[place] += 1 - share
        components[name] = make(Schedule.constant(Mixture.from_array(names, weights)), seed, COMPONENT_LABEL)
    return Family(domains, base, general, share, components, operator)
