"""How quiet the machine was while something was measured: what other processes, and other virtual machines, had of its cores.

Trade-off: known on Linux only, and a neighbour that takes memory bandwidth or cache is not seen.
"""

from __future__ import annotations

import os
import resource
from pathlib import Path

STAT = Path("/proc/stat")
USER, NICE, SYSTEM, IDLE, WAITING, INTERRUPT, SOFT_INTERRUPT, STOLEN = range(8)
"""Columns of the first line, in ticks; proc(5)."""


class Disturbance:
    """Counts from its making on."""

    def __init__(self) -> None:
        self._before = _ticks()
        self._own_before = _own_seconds()

    def shares(self) -> tuple[float | None, float | None]:
        """Shares of all cores' time that other processes had, and that the host took away; None: not known. Children that still run count as others."""
        before, after = self._before, _ticks()
        if before is None or after is None:
            return None, None
        passed = [end - start for start, end in zip(before, after, strict=True)]
        total = max(1, sum(passed))
        busy = sum(passed[column] for column in (USER, NICE, SYSTEM, INTERRUPT, SOFT_INTERRUPT))
        own = (_own_seconds() - self._own_before) * os.sysconf("SC_CLK_TCK")
        return max(0.0, busy - own) / total, passed[STOLEN] / total


def _own_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def _ticks() -> list[int] | None:
    try:
        return [int(word) for word in STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
