"""When packs start and end, before any runs: the loop of `mixopt.search` and the packs of `workers.packing`, with estimated seconds.

It follows the loop step by step (ask for whole free slots, pack what was asked for, start the next pack when a slot is free, give a place that
becomes free to the next trial of the pack) rather than dividing work by slots, because with few trials the last packs, and slots that stay
empty, are a large part of the time. Failures, and packs that are not of equal speed, are not foreseen.

Pure: the same trials give the same packs.
"""

from __future__ import annotations

import heapq
import itertools
import operator
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mixopt.trial import Trial
from workers.packing import Device, PlannedPack, default_pack_size, plan_packs

Seconds = Callable[[Trial], float]

ROUNDING = 1e-9
"""Trials whose ends are closer than this, in shares of their time, end together."""


@dataclass(frozen=True)
class Schedule:
    """Packs in the order they start, and when the last one ends."""

    packs: tuple[PlannedPack, ...]
    seconds: float

    @property
    def pack_size(self) -> int:
        """Trials that train together in the largest pack; 0 if nothing is left."""
        return max((pack.places for pack in self.packs), default=0)


def ends(pack: PlannedPack, seconds_of: Seconds) -> list[tuple[float, Trial]]:
    """When each trial of a pack ends, in seconds after the pack's start: its places share one processor evenly."""
    waiting = deque(pack.trials)
    left: dict[str, float] = {}  # seconds alone, of those in training
    trials = {trial.trial_id: trial for trial in pack.trials}
    clock, ended = 0.0, []
    while waiting or left:
        while waiting and len(left) < pack.places:
            trial = waiting.popleft()
            left[trial.trial_id] = seconds_of(trial)
        least = min(left.values())
        clock += least * len(left)
        done = [trial_id for trial_id, seconds in left.items() if seconds <= least * (1 + ROUNDING)]
        left = {trial_id: seconds - least for trial_id, seconds in left.items() if trial_id not in done}
        ended += [(clock, trials[trial_id]) for trial_id in done]
    return ended


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
        self._ends: list[tuple[float, int, int]] = []  # a heap: time, the pack, trials of it that end then
        self._left: dict[int, int] = {}  # running packs: trials that have not ended
        self._queue: deque[PlannedPack] = deque()
        self._started: list[PlannedPack] = []

    def run(self, trials: Sequence[Trial], batch: int | None) -> Schedule:
        unasked = deque(trials)
        self._fill(unasked, batch)
        while self._ends:
            self._clock, number, count = heapq.heappop(self._ends)
            self._left[number] -= count
            if not self._left[number]:
                del self._left[number]
            self._start()
            for _ in range(count):  # one by one, as the runner reports them
                self._under_way -= 1
                self._fill(unasked, batch)
        return Schedule(tuple(self._started), self._clock)

    def _fill(self, unasked: deque[Trial], batch: int | None) -> None:
        while unasked and (room := self._room()) > 0:
            count = min(batch or room, len(unasked))
            asked = [unasked.popleft() for _ in range(count)]
            free = max(1, self._slots - len(self._left) - len(self._queue))
            self._queue.extend(plan_packs(asked, free, self._pack_size, self._device, busy=max(0, self._slots - free)))
            self._under_way += count
            self._start()

    def _start(self) -> None:
        while self._queue and len(self._left) < self._slots:
            pack = self._queue.popleft()
            number = len(self._started)
            self._started.append(pack)
            self._left[number] = len(pack.trials)
            for seconds, together in itertools.groupby(ends(pack, self._seconds_of), key=operator.itemgetter(0)):
                heapq.heappush(self._ends, (self._clock + seconds, number, len(list(together))))

    def _room(self) -> int:
        capacity = self._slots * self._per_slot
        if not self._under_way:
            return max(1, capacity)
        return (capacity - self._under_way) // self._per_slot * self._per_slot
