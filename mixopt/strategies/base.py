"""The strategy protocol: pure functions of the history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from mixopt.mixture import Schedule
from mixopt.proposal import Proposal
from mixopt.swarm import Swarm
from mixopt.trial import Trial

# (schedule, seed, label) -> trial at the search's source, with its identity. Given by whoever composes the search.
MakeTrial = Callable[[Schedule, int, str], Trial]


class Strategy(Protocol):
    """Proposes trials and, in the end, a mixture. The same history gives the same answer; nothing is remembered between calls.

    `ask` returns at most `count` trials that are neither completed, pending nor abandoned; an empty list means finished. `propose` raises
    DataError when too few trials have finished.
    """

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]: ...
    def propose(self, completed: Swarm) -> Proposal: ...
