"""Makes trials: joins a schedule with everything else that a trial's identity depends on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from mixopt.domains import DomainSet
from mixopt.mixture import Schedule
from mixopt.trial import JsonValue, Source, Trial, TrialDomain, trial_identity


class MakeTrial(Protocol):
    """(schedule, seed, label) -> trial at one source, with its identity. Given by whoever composes the search."""

    def __call__(self, schedule: Schedule, seed: int, label: str) -> Trial: ...


@dataclass(frozen=True)
class TrialFactory:
    """Makes the trials of one search at one source.

    Attributes:
        recipe: proxy and optimizer settings; must hold `window`.
        engine_version: changes whenever the same trial would train to other weights.
        inputs: ids of the trials whose weights each of its trials begins with; how is in `recipe["beginning"]`.
    """

    domains: DomainSet
    source: Source
    recipe: Mapping[str, JsonValue]
    tokenizer_hash: str
    engine_version: str
    inputs: tuple[str, ...] = ()

    def make(self, schedule: Schedule, seed: int, label: str) -> Trial:
        """The trial that trains `schedule` (over the domains of this search, in any order) with `seed`."""
        schedule = Schedule(tuple(mixture.reordered(self.domains.names) for mixture in schedule.mixtures), schedule.fractions)
        unique = self.domains.unique_tokens(self.source.tokens, int(self.recipe["window"]))
        domains = tuple(TrialDomain(d.name, d.content_hash, unique[d.name].tokens) for d in self.domains.domains)
        shared = (self.tokenizer_hash, self.engine_version)
        identity = trial_identity(schedule, self.source, seed, self.recipe, domains, *shared, self.inputs)
        return Trial(identity, schedule, self.source, seed, dict(self.recipe), domains, *shared, label, self.inputs)
