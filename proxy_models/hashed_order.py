"""Permutations that are a function of words, and of nothing else.

Training windows, their order in each epoch and the subsets used for evaluation all come from here. No generator carries state, so any
position can be computed alone, in any process, and the result does not depend on the version of a random-number library.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

# SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014): increment and the two multipliers.
INCREMENT = np.uint64(0x9E3779B97F4A7C15)
FIRST_MULTIPLIER = np.uint64(0xBF58476D1CE4E5B9)
SECOND_MULTIPLIER = np.uint64(0x94D049BB133111EB)


def hashed_order(count: int, *words: str | int) -> NDArray[np.int64]:
    """A permutation of 0..count-1, shape (count,), that looks random and depends on `words` only.

    The positions are sorted by the values of a SplitMix64 sequence whose start is the SHA-256 of the words. The sequence does not repeat, so
    there are no ties, and the values of one position do not depend on `count`.
    """
    text = "\x1f".join(f"{type(word).__name__}:{word}" for word in words)
    start = np.frombuffer(hashlib.sha256(text.encode()).digest()[:8], dtype="<u8")[0]
    with np.errstate(over="ignore"):
        value = start + np.arange(1, count + 1, dtype=np.uint64) * INCREMENT
        value = (value ^ (value >> np.uint64(30))) * FIRST_MULTIPLIER
        value = (value ^ (value >> np.uint64(27))) * SECOND_MULTIPLIER
        value ^= value >> np.uint64(31)
    # No two values are equal, so the fastest sort gives the one order there is.
    return np.argsort(value).astype(np.int64, copy=False)
