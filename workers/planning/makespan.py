"""When packs start and end, before any runs: the loop of `mixopt.search` and the packs of `workers.packing`, with estimated seconds.

It follows the loop step by step (ask for whole free slots, pack what was asked for, start the next pack when a slot is free) rather than
dividing work by slots, because with few trials the last packs, and slots that stay empty, are a large part of the time. Failures, and packs
that are not of equal speed, are not foreseen.

Pure: the same trials give the same packs.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixopt.trial import Trial
from workers.packing import Device, default_pack_size, plan_packs

Pack = tuple[Trial, ...]
Seconds = Callable[[Trial], float]


@dataclass(frozen=True)
class Schedule:
    """Packs in the order they start, and when the last one ends."""

    packs: tuple[Pack, ...]
    seconds: float

    @property
    def pack_size(self) -> int:
        """Trials of the largest pack; 0 if nothing is left."""
        return max((len(pack) for pack in self.packs), default=0)


def schedule_search(
    trials: Sequence[Trial], seconds_of: Seconds, slots: int, pack_size: int | None, device: Device, batch: int | None = None
) -> Schedule:
    """The trials of a search, asked for as slots come free; arguments as of the runner and of `run_search`."""
    return _Simulation(seconds_of, slots, pack_size, device).run(trials, batch)


def schedule_together(trials: Sequence[Trial], seconds_of: Seconds, slots: int, pack_size: int | None, device: Device) -> Schedule:
    """Trials that are submitted at once, as those of a verification are."""
    return _Simulation(seconds_of, slots, pack_size, device).run(trials, max(1, len(trials)))


class _Simulation:
    def __init__(self, seconds_of: Seconds, slots: int, pack_size: int | None, device: Device) -> None:
        self._seconds_of, self._slots, self._pack_size, self._device = seconds_of, slots, pack_size, device
        # As `PackRunner.capacity` and `_Loop.room` have it.
        self._per_slot = pack_size or default_pack_size(1024, device)
        self._clock = 0.0
        self._under_way = 0
        self._running: list[tuple[float, int, Pack]] = []  # a heap by the time at which they end
        self._queue: deque[Pack] = deque()
        self._started: list[Pack] = []

    def run(self, trials: Sequence[Trial], batch: int | None) -> Schedule:
        unasked = deque(trials)
        self._fill(unasked, batch)
        while self._running:
            self._clock, _, ended = heapq.heappop(self._running)
            for _ in ended:  # one by one, as the runner reports them
                self._under_way -= 1
                self._fill(unasked, batch)
        return Schedule(tuple(self._started), self._clock)

    def _fill(self, unasked: deque[Trial], batch: int | None) -> None:
        while unasked and (room := self._room()) > 0:
            count = min(batch or room, len(unasked))
            asked = [unasked.popleft() for _ in range(count)]
            free = max(1, self._slots - len(self._running) - len(self._queue))
            self._queue.extend(plan_packs(asked, free, self._pack_size, self._device))
            self._under_way += count
        while self._queue and len(self._running) < self._slots:
            pack = self._queue.popleft()
            self._started.append(pack)
            end = self._clock + sum(self._seconds_of(trial) for trial in pack)
            heapq.heappush(self._running, (end, len(self._started), pack))

    def _room(self) -> int:
        capacity = self._slots * self._per_slot
        if not self._under_way:
            return max(1, capacity)
        return (capacity - self._under_way) // self._per_slot * self._per_slot
