"""Rows that were copied, told from runs that were repeated.

A repeat has another seed and so another loss; two rows that agree to the last digit say nothing of noise. Taken for repeats they would say that there
is none, and an objective in units of noise would be in units of rounding. The main trade-off: metrics of few digits can agree by chance, so rows count as
copies only where no repeat of the whole swarm differs from its fellows in anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixopt.mixture import FloatArray


def copied_rows(shares: FloatArray, losses: FloatArray, sources: Sequence[str]) -> NDArray[np.bool_]:
    """Which rows are copies of an earlier one, shape (runs,); none where any repeat differs from its fellows.

    Args:
        shares: weights, shape (runs, domains).
        losses: shape (runs, metrics).
        sources: what else tells runs apart, one per run.
    """
    places = np.unique(np.array(sources), return_inverse=True)[1].reshape(-1, 1)
    mixtures = np.column_stack([places, shares])
    several, whole = (np.unique(rows, axis=0, return_index=True)[1] for rows in (mixtures, np.column_stack([mixtures, losses])))
    copied = np.ones(len(shares), dtype=bool)
    copied[several] = False
    return copied if len(several) == len(whole) else np.zeros(len(shares), dtype=bool)
