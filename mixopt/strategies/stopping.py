"""When a search may stop before its budget is spent: once even perfect knowledge would gain less than noise.

It is looked at with the first half, five eighths, three quarters and seven eighths of the trials, each time with exactly these, so that the answer
does not hang on the order in which they end. The main trade-off: a search that could stop between two looks goes on to the next.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import polars as pl

from mixopt.recommendation import nothing_to_gain
from mixopt.strategies.base import Assignment
from mixopt.swarm import Swarm

STOP_AT = (1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares of the trials after which a search that may stop early looks whether it should."""
FEWEST_TO_STOP = 16
"""Below, a surrogate does not know how little it knows."""


def is_enough(assignment: Assignment, asked: Sequence[str], completed: Swarm, judged: dict[str, bool], total: int | None = None) -> bool:
    """Whether at some point of looking, with all trials up to it completed, no more of them could bring a gain that stands out of noise.

    Args:
        asked: ids of the search's trials in the order of asking, abandoned ones left out.
        judged: what was found before, by digest; added to.
        total: trials of the whole search, where they are not `assignment.trials`.
    """
    total = assignment.trials if total is None else total
    finished = set(completed.trial_ids)
    for share in STOP_AT:
        first = list(asked[: math.ceil(share * total)])
        if len(first) < max(FEWEST_TO_STOP, share * total) or not finished.issuperset(first):
            continue
        part = assignment.fitted(_with_calibration(completed.select(first), assignment.calibration))
        digest = part.digest()
        if digest not in judged:
            judged[digest] = nothing_to_gain(part, assignment.space, assignment.domains, assignment.surrogate, assignment.settings)
        if judged[digest]:
            return True
    return False


def _with_calibration(part: Swarm, calibration: Swarm | None) -> Swarm:
    """The trials looked at, and the calibration's that are none of the search."""
    if calibration is None:
        return part
    known = set(part.trial_ids)
    more = calibration.select([trial_id for trial_id in calibration.trial_ids if trial_id not in known])
    return Swarm(part.domains, pl.concat([part.table, more.table]))
