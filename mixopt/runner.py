"""How the search talks to whatever trains: the Runner protocol and the events that come back."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mixopt.trial import Failure, Outcome, Trial


@dataclass(frozen=True)
class Evaluation:
    """A held-out set that trials are scored on.

    Attributes:
        key: hash of content, kind and subset; names a measurement in the record.
        metric: its name in this search, `valid/<domain>` or `target/<name>`.
        kind: "text", or "completion" (only completions are scored).
        path: its token file.
        max_tokens: at the end of training, scored on the first so many tokens of a fixed hashed order of its windows; None: on all.
        curve_tokens: the same for points before the end, which only draw the curve; a nested subset, and smaller.
        curve_key: names the end's loss on that smaller subset, which costs no further pass, so that all points of a curve are on the same rows.
            Nothing waits for it: trials recorded without it are not scored again.
    """

    key: str
    metric: str
    kind: str
    path: Path
    max_tokens: int | None
    curve_tokens: int | None = None
    curve_key: str | None = None


@dataclass(frozen=True)
class Capacity:
    """What can run at once: `slots` packs of at most `pack_size` trials."""

    slots: int
    pack_size: int

    @property
    def trials(self) -> int:
        return self.slots * self.pack_size


@dataclass(frozen=True)
class Started:
    trial_id: str


@dataclass(frozen=True)
class Progress:
    """Training tokens done so far; for progress bars only, never recorded."""

    trial_id: str
    tokens: int


@dataclass(frozen=True)
class Completed:
    trial_id: str
    outcome: Outcome


@dataclass(frozen=True)
class Failed:
    trial_id: str
    failure: Failure


TrialEvent = Started | Progress | Completed | Failed


class Runner(Protocol):
    """Trains trials. One contract test covers every implementation.

    `submit` returns at once; `events` yields what happened since, blocking until something has, and ends when nothing is under way.
    Submitting a trial that an earlier process already finished (its result lies in the trial's folder) yields `Completed` without
    training; one that was interrupted goes on from its checkpoint. Each submitted trial ends in exactly one `Completed` or `Failed`.
    """

    def capacity(self) -> Capacity: ...
    def submit(self, trials: Sequence[Trial]) -> None: ...
    def events(self) -> Iterator[TrialEvent]: ...
    def cancel(self, trial_ids: Collection[str]) -> None: ...
    def close(self) -> None: ...
