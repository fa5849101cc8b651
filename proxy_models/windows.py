"""How a token file is laid out in training windows of T + 1 tokens, of which the last T are predicted.

- Plain text is one stream, documents one after the other; window w holds tokens wT to wT + T, so neighbours share a token. Every token is scored.
- Prompt/completion pairs (`scored_from` of the file tells them) are packed whole, several into a window: no pair stands in two windows, so no completion is
  ever cut. A window begins with an end token, as documents do in training, and what the pairs leave of it is filled with end tokens. A pair longer
  than T has a window to itself and its prompt is cut on the left, exactly as it is when it is scored held out (`evaluate`). Only completions, their
  end token included, are scored; prompts and filling are seen and predict nothing.

Which pairs share a window is decided by best fit, longest first ("Fewer Truncations Improve Language Modeling", arXiv 2404.10830, section 3, packs documents
so), which leaves little to fill. The trade-offs: later pairs of a window see earlier ones, as text windows hold several documents; and the layout costs a
microsecond or so per pair in every process.

Shapes: N windows that are read, S = T + 1 tokens of a window, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from proxy_models.hashed_order import hashed_order
from proxy_models.token_store import TokenStore

Int64Array = NDArray[np.int64]
Bools = NDArray[np.bool_]


class Windows(Protocol):
    """The windows of one token file.

    Attributes:
        count: how many there are.
        vocab_size: of the file.
        dtype: of its tokens.
        has_prompts: whether some tokens are not scored.
    """

    count: int
    vocab_size: int
    dtype: np.dtype[Any]
    has_prompts: bool

    def read(self, index_N: Int64Array) -> tuple[NDArray[Any], Bools | None]:
        """Tokens (N, S), and which of the T predicted ones are scored (N, T); None: all."""
        ...

    def scored(self, index_N: Int64Array) -> int:
        """Scored tokens of these windows together."""
        ...

    def padding(self, index_N: Int64Array) -> int:
        """Predicted tokens of these windows that belong to no document."""
        ...


def windows_of(path: Path, window: int) -> Windows:
    """The windows of a token file.

    Raises:
        ValueError: a completion is longer than a window.
        DamagedTokenFile, FileNotFoundError: the file cannot be read.
    """
    store = TokenStore.open(path)
    return _pair_windows(path, store.info.checksum, window) if has_prompts(store) else TextWindows(store, window)


def has_prompts(store: TokenStore) -> bool:
    """Whether a file holds prompt/completion pairs."""
    return bool(store.scored_from.any())


def completion_lengths(store: TokenStore, window: int) -> Int64Array:
    """Tokens of every completion.

    Raises:
        ValueError: one is longer than a window.
    """
    lengths = np.asarray(np.diff(store.document_ends, prepend=0) - store.scored_from, dtype=np.int64)
    if lengths.max() > window:
        worst = int(lengths.argmax())
        raise ValueError(
            f"Completion {worst} of {store.path} has {int(lengths[worst])} tokens, the window {window}; "
            "completions are never cut: raise the window or leave that pair out."
        )
    return lengths


class TextWindows:
    """Slices of a stream of text. Attributes and methods as of `Windows`."""

    has_prompts = False

    def __init__(self, store: TokenStore, window: int) -> None:
        self.count = max((store.info.tokens - 1) // window, 0)
        self.vocab_size, self.dtype = store.info.vocab_size, store.tokens.dtype
        self._window = window
        # All windows as rows, (count, S), over the mapped file itself; neighbours share a token.
        self._rows = np.lib.stride_tricks.sliding_window_view(np.asarray(store.tokens), window + 1)[::window] if self.count else None

    def read(self, index_N: Int64Array) -> tuple[NDArray[Any], None]:
        assert self._rows is not None, "a file without a window has nothing to read"
        return self._rows[index_N], None

    def scored(self, index_N: Int64Array) -> int:
        return len(index_N) * self._window

    def padding(self, index_N: Int64Array) -> int:
        return 0


class PairWindows:
    """Whole pairs packed into windows. Attributes and methods as of `Windows`.

    Raises:
        ValueError: a completion is longer than a window.
    """

    has_prompts = True

    def __init__(self, store: TokenStore, window: int) -> None:
        self.vocab_size, self.dtype = store.info.vocab_size, store.tokens.dtype
        self._window, self._tokens = window, store.tokens
        ends = np.asarray(store.document_ends, dtype=np.int64)
        lengths, completions = np.diff(ends, prepend=0), completion_lengths(store, window)
        self._end_id = int(store.tokens[ends[0] - 1])
        sizes = np.minimum(lengths, window)
        # Among pairs of one length the order looks random, so that a window does not hold neighbours of the file.
        window_P = best_fit(sizes, window, hashed_order(len(sizes), "pairs", store.info.content_hash))
        self.count = int(window_P.max()) + 1
        # Pairs in the order of their windows; within a window in the order of the file. Pairs first[w] to first[w + 1] - 1 are those of window w.
        order = np.argsort(window_P, kind="stable")
        self._first = np.searchsorted(window_P[order], np.arange(self.count + 1))
        self._end, self._length, self._size = ends[order], lengths[order], sizes[order]
        self._scored = completions[order]  # the last so many tokens of the pair
        before = np.cumsum(self._size) - self._size
        self._offset = before - before[self._first[:-1]][window_P[order]]

    def read(self, index_N: Int64Array) -> tuple[NDArray[Any], Bools]:
        tokens_NS = np.full((len(index_N), self._window + 1), self._end_id, dtype=self.dtype)
        scored_NT = np.zeros((len(index_N), self._window), dtype=np.bool_)
        row, pair = self._pairs(index_N)
        size = self._size[pair]
        # One entry per token: which of its pair's last `size` tokens it is, and of which pair.
        of = np.repeat(np.arange(len(pair)), size)
        back = np.repeat(np.cumsum(size), size) - np.arange(len(of))  # 1 for the last
        column = (self._offset[pair] + size)[of] - back
        tokens_NS[row[of], column + 1] = self._tokens[self._end[pair][of] - back]
        scored_NT[row[of], column] = back <= self._scored[pair][of]
        cut = np.flatnonzero(self._length[pair] > size)  # alone in their windows, and predicted from their own token before
        tokens_NS[row[cut], 0] = self._tokens[self._end[pair[cut]] - size[cut] - 1]
        return tokens_NS, scored_NT

    def scored(self, index_N: Int64Array) -> int:
        return int(self._scored[self._pairs(index_N)[1]].sum())

    def padding(self, index_N: Int64Array) -> int:
        return len(index_N) * self._window - int(self._size[self._pairs(index_N)[1]].sum())

    def _pairs(self, index_N: Int64Array) -> tuple[Int64Array, Int64Array]:
        """(row of the window in `index_N`, number of the pair) of every pair of these windows."""
        counts = self._first[index_N + 1] - self._first[index_N]
        row = np.repeat(np.arange(len(index_N)), counts)
        within = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        return row, self._first[index_N][row] + within


@lru_cache(maxsize=64)
def _pair_windows(path: Path, checksum: str, window: int) -> PairWindows:
    """Cached, because all members of a pack share a layout; by checksum, should the file be replaced."""
    return PairWindows(TokenStore.open(path), window)


def best_fit(sizes: Int64Array | Sequence[int], window: int, order: Int64Array) -> Int64Array:
    """Which window each thing goes to, counted from 0, so that none holds more than `window`: longest first, each into the fullest window that has room.

    Args:
        sizes: shape (P,), each from 1 to `window`.
        order: a permutation of the P things, in which those of equal size are taken.
    """
    sizes = np.asarray(sizes, dtype=np.int64)
    assert not len(sizes) or (sizes.min() >= 1 and sizes.max() <= window)
    window_P = np.empty(len(sizes), dtype=np.int64)
    with_room: list[list[int]] = [[] for _ in range(window + 1)]
    rooms = 0  # bit r is set where some window has r tokens of room
    count = 0
    for thing, size in zip((taken := order[np.argsort(-sizes[order], kind="stable")]).tolist(), sizes[taken].tolist(), strict=True):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = with_room[room].pop()
            if not with_room[room]:
                rooms ^= 1 << room
        else:
            chosen, room, count = count, window, count + 1
        if room > size:
            with_room[room - size].append(chosen)
            rooms |= 1 << (room - size)
        window_P[thing] = chosen
    return window_P
