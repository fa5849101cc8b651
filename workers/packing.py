"""Groups trials into packs that train in one process: as many together as the pack has places, the others as places become free.

The trials of a pack are equal in source and recipe but for the learning rate, which each member has for itself.

Packing gains 1.35 to 2 times on a CPU at 128 tokens per step and 1.1 to 1.2 at 1,024 (docs/log.md, part 3); on a GPU it hides kernel launches
and should gain far more. So a pack has few places on CPUs and many on GPUs.

Trials beyond the places are put into a pack where that saves time: where all slots are free and each can be given its share, on one slot or on
GPUs, a process starts once, and places stay taken when trials end at different times. Several CPU slots share one queue of packs without waiting
trials instead, because their speeds differ and the next pack goes to whoever is free. Either way the slots are filled evenly, and a lost
process costs what its members trained since their last checkpoints. The trade-off: packs are planned when trials are submitted and never
regrouped.

Pure: the same trials in the same order give the same packs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mixopt.components.config import EVALUATORS
from mixopt.cost import Shape
from mixopt.trial import JsonValue, Trial
from proxy_models.config import proxy_config
from proxy_models.places import places_for
from workers.convert import shape_of
from workers.memory import member_memory

Device = Literal["cpu", "cuda"]


PACK_BYTES: dict[Device, float] = {"cpu": 4e9, "cuda": 64e9}
"""Memory that a pack of default size may take: on a CPU what a core has on common machines, on a GPU what an H100 of 80 GB has to spare. Proxies
that large gain nothing from a pack that needs more: it hides milliseconds of a step that takes a second."""


AVERAGES_TOGETHER = 32
"""Averages of components that one process scores at least, where there are so many: it reads and looks into the components once for all of them."""


@dataclass(frozen=True)
class PlannedPack:
    """Trials equal in source and recipe, but for the learning rate, for one process; at most `places` of them train at a time."""

    trials: tuple[Trial, ...]
    places: int


def pack_size_of(shape: Shape, device: Device = "cpu") -> int:
    """Most trials that train together: as many as gain by it, and as fit into `PACK_BYTES`; at least one."""
    config = proxy_config(shape.size, shape.vocab_size)
    member = member_memory(config, shape.window, shape.tokens_per_step, device).peak
    return max(1, min(default_pack_size(shape.tokens_per_step, device), int(PACK_BYTES[device] / member)))


def default_pack_size(tokens_per_step: int, device: Device = "cpu") -> int:
    """Most trials that gain by training together, by tokens per optimizer step and trial.

    CPU: 16 at 128 tokens; 4 at 1,024, where more members gain little that stands out of the noise (docs/log.md, part 3). GPU:
    `methods/packed-training.md`, section 6, which is arithmetic, not measurement: 64 members saturate a device at 1,024 tokens per step, and
    from some 16,000 on a single one does.
    """
    if device == "cuda":
        return max(1, min(64, 65_536 // tokens_per_step))
    if tokens_per_step >= 1024:
        return 4
    return 8 if tokens_per_step >= 512 else 16


def plan_packs(
    trials: Sequence[Trial], slots: int, pack_size: int | None = None, device: Device = "cpu", busy: int = 0
) -> list[PlannedPack]:
    """Splits `trials` into packs of one source and shared recipe each, so that `slots` processes finish at about the same time.

    Args:
        slots: packs that can start now.
        pack_size: most places of a pack; None: `pack_size_of`.
        busy: slots that will become free later.

    Returns:
        Packs in the order they should start: the dearest first, which keeps the last ones to finish short. Each trial is in exactly one.

    Raises:
        ValueError: slots or pack_size are below 1.
    """
    if slots < 1 or (pack_size is not None and pack_size < 1):
        raise ValueError(f"slots is {slots} and pack_size {pack_size}; both must be at least 1.")
    alike: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        alike.setdefault((trial.source.key, json.dumps(shared_recipe(trial.recipe), sort_keys=True)), []).append(trial)
    packs: list[PlannedPack] = []
    for members in alike.values():
        limit = pack_size or pack_size_of(shape_of(members[0]), device)
        if members[0].source.evaluator in EVALUATORS:
            limit = max(limit, AVERAGES_TOGETHER)
        waiting = not busy and (slots == 1 or device == "cuda")
        count = min(len(members), slots) if waiting else _packs_without_waiting(len(members), slots, limit)
        packs.extend(PlannedPack(share, _places(len(share), limit, device)) for share in _split(members, count))
    # Stable, so equal costs keep the order in which trials were asked for.
    return sorted(packs, key=_size_for_ordering, reverse=True)


def shared_recipe(recipe: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """What the members of a pack have in common: all of a recipe but the learning rate, and but the weights of an average."""
    shared = {name: value for name, value in recipe.items() if name not in ("learning_rate", "merge")}
    merge = recipe.get("merge")
    return shared if merge is None else {**shared, "merge": {name: value for name, value in merge.items() if name != "weights"}}


def _packs_without_waiting(trials: int, slots: int, limit: int) -> int:
    """So many packs that nobody waits; a multiple of `slots` where there are trials enough."""
    fewest = -(-trials // limit)
    return min(trials, -(-fewest // slots) * slots)


def _places(trials: int, limit: int, device: Device) -> int:
    """Places for so many trials: as few as give the same number of rounds on a CPU, what the pack will have at first on a GPU."""
    if device == "cuda":
        return places_for(0, trials, limit, fixed=True)
    rounds = -(-trials // limit)
    return -(-trials // rounds)


def _split(trials: Sequence[Trial], count: int) -> list[tuple[Trial, ...]]:
    """Consecutive parts whose sizes differ by at most one."""
    size, larger = divmod(len(trials), count)
    parts, start = [], 0
    for index in range(count):
        end = start + size + (index < larger)
        parts.append(tuple(trials[start:end]))
        start = end
    return parts


def _size_for_ordering(pack: PlannedPack) -> int:
    """Training tokens of a pack; across proxy sizes only a rough order, which is all that starting the dearest first needs."""
    return len(pack.trials) * pack.trials[0].source.tokens
