"""What a search has spent at each of its sources, and what of its budget is left.

The main trade-off: trials count as spent as soon as they are asked for, so a trial that is abandoned gives its cost back only when it is.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mixopt.strategies.base import Assignment, Offer
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

SPENT_WITHIN = 1e-9


@dataclass(frozen=True)
class Ledger:
    """What was spent at each source, completed and under way, and what there is."""

    offers: tuple[Offer, ...]
    spent: tuple[float, ...]
    budget: float

    @classmethod
    def of(cls, assignment: Assignment, completed: Swarm, pending: Sequence[Trial]) -> Ledger:
        sources = [*completed.points().sources, *(trial.source for trial in pending)]
        spent = tuple(offer.cost * sources.count(offer.source) for offer in assignment.offers)
        return cls(assignment.offers, spent, assignment.trials * assignment.offers[-1].cost - assignment.before)

    def affords(self, source: Source) -> bool:
        """Whether one more trial there keeps to the budget."""
        return any(offer.source == source and sum(self.spent) + offer.cost <= self.budget * (1 + SPENT_WITHIN) for offer in self.offers)

    def affordable(self) -> list[int]:
        """Numbers of the sources that the rest of the budget affords."""
        return [number for number, offer in enumerate(self.offers) if self.affords(offer.source)]

    def choices(self, least_share: float, among: Collection[int] | None = None) -> list[int]:
        """Those among which to choose, of the numbers in `among`: the one of the answer alone while it has less than its share."""
        found, last = [number for number in self.affordable() if among is None or number in among], len(self.offers) - 1
        return [last] if last in found and self.spent[last] < least_share * sum(self.spent) else found

    def after(self, *sources: Source) -> Ledger:
        """With one more trial at each."""
        spent = tuple(value + offer.cost * sources.count(offer.source) for value, offer in zip(self.spent, self.offers, strict=True))
        return Ledger(self.offers, spent, self.budget)
