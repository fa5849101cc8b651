"""Words of texts as 64-bit hashes, and hashes of runs of words; vectorized, because every word of a corpus passes here.

A word is a run of letters, digits and underscores in lower case; a character of a script that puts no spaces between words (Chinese,
Japanese) is a word of its own. Texts go through NumPy as code points. A word's hash is a polynomial in mixed code points modulo 2^64, a run's
hash a polynomial in its words' hashes, so that runs of every length come out of one pass. The trade-off: two runs that differ can share a
hash, about one in 10^7 comparisons of 10^12 words with 10^6 runs of targets; nothing here is exact, and nothing needs to be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

U64 = np.ndarray[tuple[int], np.dtype[np.uint64]]
I64 = np.ndarray[tuple[int], np.dtype[np.int64]]

CODE_POINTS = 0x110000
# Ideographs and kana (Unicode blocks): scripts whose words a computer cannot tell apart by spaces. Hangul has spaces.
UNSPACED = ((0x3040, 0x30FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF))
# Odd, hence invertible modulo 2^64; otherwise arbitrary.
LETTER_BASE, WORD_BASE = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
SEPARATOR, LETTER, WHOLE_WORD = 0, 1, 2
# Between two texts of one array: no letter, so no word crosses it.
BORDER = "\n"


@dataclass(frozen=True)
class Words:
    """The words of some texts, in order.

    Attributes:
        hashes: of each word, shape (words,).
        starts: where each begins in `joined`, shape (words,).
        texts: which text each belongs to, counted from 0, shape (words,).
        joined: the texts in lower case, one after another.
    """

    hashes: U64
    starts: I64
    texts: I64
    joined: str

    def excerpt(self, first: int, count: int) -> str:
        """The text from word `first` to the word `count` - 1 later, as it stands in lower case."""
        last = int(self.starts[first + count - 1])
        end = last + 1
        if _classes()[ord(self.joined[last])] == LETTER:
            while end < len(self.joined) and _classes()[ord(self.joined[end])] == LETTER:
                end += 1
        return self.joined[int(self.starts[first]) : end]


def is_word_character(character: str) -> bool:
    return character.isalnum() or character == "_"


def words_of(lowered: Sequence[str]) -> Words:
    """The words of texts that are in lower case already. Needs about 40 bytes of memory per character."""
    joined = BORDER.join(lowered)
    points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    classes = _classes()[points]
    begins = classes == LETTER
    begins[1:] &= classes[:-1] != LETTER
    begins |= classes == WHOLE_WORD
    starts = np.flatnonzero(begins)
    ends = np.cumsum([len(text) + len(BORDER) for text in lowered])
    texts = np.searchsorted(ends, starts, side="right")
    return Words(_word_hashes(points, starts), starts, texts, joined)


def run_hashes(words: U64, lengths: Sequence[int]) -> Iterator[tuple[int, U64]]:
    """(length, hash of the run that begins at each word) for ascending `lengths`; valid until the next is asked for."""
    wanted, base = set(lengths), np.uint64(WORD_BASE)
    running = words.copy()
    for length in range(1, min(max(wanted, default=0), len(words)) + 1):
        if length > 1:
            running = running[:-1]
            running *= base
            running += words[length - 1 :]
        if length in wanted:
            yield length, running


def _word_hashes(points: np.ndarray[tuple[int], np.dtype[np.uint32]], starts: I64) -> U64:
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    powers, inverses = _powers(1 << max(len(points) - 1, 1).bit_length())
    # Every character counts with the power of its place, and separators count nothing; dividing by the power of the place where the word
    # begins leaves a hash that does not depend on it.
    sums = np.add.reduceat(_mixed()[points] * powers[: len(points)], starts)
    return _finish(sums * inverses[starts])


@cache
def _classes() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """What each code point is: SEPARATOR, LETTER or WHOLE_WORD."""
    table = np.fromiter((is_word_character(chr(point)) for point in range(CODE_POINTS)), dtype=np.uint8, count=CODE_POINTS)
    for first, last in UNSPACED:
        table[first : last + 1][table[first : last + 1] == LETTER] = WHOLE_WORD
    return table


@cache
def _mixed() -> U64:
    """A number of its own for each code point; 0 for separators."""
    numbers = _finish(np.arange(1, CODE_POINTS + 1, dtype=np.uint64))
    numbers[_classes() == SEPARATOR] = 0
    return numbers


@cache
def _powers(count: int) -> tuple[U64, U64]:
    """LETTER_BASE to the powers 0, 1, ..., count - 1 modulo 2^64, and their inverses."""

    def powers(base: int) -> U64:
        factors = np.full(count, base % (1 << 64), dtype=np.uint64)
        factors[0] = 1
        return np.multiply.accumulate(factors)

    return powers(LETTER_BASE), powers(pow(LETTER_BASE, -1, 1 << 64))


def _finish(values: U64) -> U64:
    """Spreads every bit over all others (the finalizer of SplitMix64, Steele et al. 2014)."""
    mixed = values ^ (values >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed
