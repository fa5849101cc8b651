"""Groups trials into packs that train together in one process.

Packing gains 1.15 to 1.4 times on a CPU below some hundred tokens per step and next to nothing from 1,024 on, while one lost process costs
the whole pack its progress since the last checkpoint; on a GPU it hides kernel launches and gains far more. So packs are small on CPUs and
large on GPUs, and as many as fill the free slots evenly. The trade-off: packs are planned when trials are submitted and never regrouped.

Pure: the same trials in the same order give the same packs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from mixopt.trial import Trial

Device = Literal["cpu", "cuda"]


def default_pack_size(tokens_per_step: int, device: Device = "cpu") -> int:
    """Most trials of one pack, by tokens per optimizer step and trial.

    CPU: measured in `methods/packed-training.md`, sections 3 and 8.6 (gain 1.17 to 1.4 at 128 tokens, 1.06 to 1.09 at 512, 1.00 to 1.07 at
    1,024). GPU: its section 6, which is arithmetic, not measurement: 64 members saturate a device at 1,024 tokens per step, and from some
    16,000 on a single one does.
    """
    if device == "cuda":
        return max(1, min(64, 65_536 // tokens_per_step))
    if tokens_per_step >= 1024:
        return 4
    return 8 if tokens_per_step >= 512 else 16


def plan_packs(trials: Sequence[Trial], slots: int, pack_size: int | None = None, device: Device = "cpu") -> list[tuple[Trial, ...]]:
    """Splits `trials` into packs of one shape each, so that `slots` processes finish at about the same time.

    Args:
        slots: packs that can start now.
        pack_size: most trials of a pack; None: `default_pack_size`.

    Returns:
        Packs in the order they should start: the dearest first, which keeps the last ones to finish short. Each trial is in exactly one.

    Raises:
        ValueError: slots or pack_size are below 1.
    """
    if slots < 1 or (pack_size is not None and pack_size < 1):
        raise ValueError(f"slots is {slots} and pack_size {pack_size}; both must be at least 1.")
    shapes: dict[tuple[str, str], list[Trial]] = {}
    for trial in trials:
        shapes.setdefault((trial.source.key, json.dumps(dict(trial.recipe), sort_keys=True)), []).append(trial)
    packs = []
    for members in shapes.values():
        limit = pack_size or default_pack_size(int(members[0].recipe["tokens_per_step"]), device)
        packs.extend(_split(members, slots, limit))
    # Stable, so equal costs keep the order in which trials were asked for.
    return sorted(packs, key=_size_for_ordering, reverse=True)


def _split(trials: Sequence[Trial], slots: int, limit: int) -> list[tuple[Trial, ...]]:
    """Consecutive packs whose sizes differ by at most one; their number is a multiple of `slots` where there are trials enough."""
    fewest = -(-len(trials) // limit)
    count = min(len(trials), -(-fewest // slots) * slots)
    size, larger = divmod(len(trials), count)
    packs, start = [], 0
    for index in range(count):
        end = start + size + (index < larger)
        packs.append(tuple(trials[start:end]))
        start = end
    return packs


def _size_for_ordering(pack: Sequence[Trial]) -> int:
    """Training tokens of a pack; across proxy sizes only a rough order, which is all that starting the dearest first needs."""
    return len(pack) * pack[0].source.tokens
