"""How many places a pack has: exactly as many as it needs on a CPU, one of a few fixed numbers on a GPU.

A GPU replays captured work, which is captured once per number of places; so there are few numbers, a place may stay vacant, and a pack steps down
when enough places are. The trade-off: a vacant place costs as much as a member, hence the limit on how many there may be.
"""

from __future__ import annotations

FIXED_PLACES = (64, 32, 16, 8, 4, 2, 1)
"""64 saturate a GPU at 1,024 tokens per step (packed-training.md, section 6, arithmetic); halves keep at least half of the places taken."""

LEAST_TAKEN = 0.75
"""Where fewer of the places would be taken, some members wait for the next round instead: 40 are 32 and then 8, 50 are 64 with 14 vacant."""


def places_for(present: int, waiting: int, limit: int, fixed: bool) -> int:
    """Places of a pack at its next step.

    Args:
        present: members in training, who keep their places.
        waiting: members that could join.
        limit: most places; where they are fixed, the largest of those numbers that is not above it.

    Returns:
        At least `present`; 0 if there is nobody.
    """
    wanted = present + waiting
    if not fixed or not wanted:
        return max(present, min(limit, wanted))
    sizes = [size for size in FIXED_PLACES if size <= limit or size == 1]
    if wanted >= sizes[0]:
        return max(sizes[0], present)
    enough = min(size for size in sizes if size >= wanted)
    fewer = max(size for size in sizes if size <= wanted)
    return enough if wanted >= LEAST_TAKEN * enough or present > fewer else fewer
