"""Which window a member of a pack trains on next: a pure function of its seed, its domains and how many windows it has drawn.

Counter-based, so a member sees the same tokens alone, in any pack, in any process, after any interruption, and in whatever order its domains
are listed. Two parts:

- `DeficitRule` decides which domain the next window comes from. It is not random: each domain's count follows its share as closely as
  whole windows allow, because the variance of drawing domains at random is noise a mixture search pays for (noise-measured.md).
- `MemberSampler` decides which window of that domain. A domain's windows are slices of T + 1 tokens at stride T of its token stream (documents
  one after the other; a window may hold several). The proxy sees a subset of them, fixed by the domain's key alone and nested for smaller limits, in an
  order that the seed reshuffles every epoch.

Trade-off: the tokens at the end of a domain that fill no window are never trained on.

Shapes: D domains of positive weight in some phase, P phases, B windows per step, T tokens per window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxy_models.hashed_order import hashed_order
from proxy_models.token_store import TokenStore

# Deficits are differences of sums of float weights; closer than this they are equal.
TIE_WINDOWS = 1e-9


@dataclass(frozen=True)
class DomainStream:
    """A training domain of one member.

    Attributes:
        key: names the content (its hash); decides the order of windows and breaks ties.
        path: its token file.
        unique_tokens: the member sees the first `unique_tokens // window` windows of the domain's fixed order.
    """

    key: str
    path: Path
    unique_tokens: int


def phase_windows(windows: int, fractions: Sequence[float]) -> tuple[int, ...]:
    """Windows of each phase, summing to `windows`.

    Raises:
        ValueError: a fraction is not positive, or a phase is too short for one window.
    """
    if not fractions or any(not fraction > 0 for fraction in fractions):
        raise ValueError(f"Phase fractions are {tuple(fractions)}; they must be positive.")
    total = math.fsum(fractions)
    ends = [round(windows * math.fsum(fractions[: index + 1]) / total) for index in range(len(fractions))]
    counts = tuple(end - start for start, end in zip([0, *ends[:-1]], ends, strict=True))
    if min(counts) < 1:
        raise ValueError(f"{windows} windows in phases of {tuple(fractions)} leave a phase without a window; train longer or merge phases.")
    return counts


class DeficitRule:
    """Tijdeman's chairman assignment: deals out windows so that running counts follow the weights.

    After n windows in all, domain i is owed S_i(n), the sum of its weights so far, and has x_i. Of the domains that are owed at least
    delta = 1 / (2k - 2) of a window, the one that would first be owed more than 1 - delta gets the next window (k domains of positive weight; R. Tijdeman,
    "The chairman assignment problem", Discrete Mathematics 32, 1980). For constant weights |x_i - S_i| <= 1 - delta at every n, the best that any
    rule can promise.

    When weights change between phases, what is owed is carried over and the rule goes on with the new weights, which it does not know in
    advance; a domain of zero weight is not drawn even if it is owed. The distance then stays below one window per phase so far, and in 170,000 random
    schedules of up to 7 phases below 1.8 windows.

    Args:
        weights: shape (P, D), rows summing to 1, zeros allowed. Ties go to the lower index, so callers list domains by key.
        windows: windows of each phase.
    """

    def __init__(self, weights: NDArray[np.float64], windows: Sequence[int]) -> None:
        self._weights = weights
        self._ends = np.cumsum(windows)
        self._owed_before = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights * np.array(windows)[:, None], axis=0)])
        self._active = [np.flatnonzero(row > 0) for row in weights]
        self.counts = np.zeros(weights.shape, dtype=np.int64)  # windows drawn, per phase and domain

    def draw(self) -> int:
        """The index of the domain that the next window comes from."""
        drawn = int(self.counts.sum())
        phase = int(np.searchsorted(self._ends, drawn, side="right"))
        assert phase < len(self._ends), "no windows left"
        active = self._active[phase]
        weight = self._weights[phase, active]
        steps = drawn + 1 - (int(self._ends[phase - 1]) if phase else 0)
        deficit = self._owed_before[phase, active] + steps * weight - self.counts[:, active].sum(axis=0)
        margin = 1 / (2 * len(active) - 2) if len(active) > 1 else 0.0
        owed = deficit >= margin - TIE_WINDOWS
        if owed.any():
            windows_left = np.where(owed, (1 - margin - deficit) / weight, np.inf)
            choice = int(np.argmax(windows_left <= windows_left.min() + TIE_WINDOWS))
        else:  # only after a change of weights: what is owed belongs to domains of zero weight
            choice = int(np.argmax(deficit >= deficit.max() - TIE_WINDOWS))
        self.counts[phase, active[choice]] += 1
        return int(active[choice])


@lru_cache(maxsize=64)
def _unique_windows(key: str, available: int, unique: int) -> NDArray[np.int64]:
    """The first `unique` windows of a domain's fixed order. Cached, because members share it and sorting millions of windows takes long."""
    windows = hashed_order(available, "subset", key)[:unique].copy()
    windows.setflags(write=False)
    return windows


class _DomainWindows:
    """The windows that one member may see of one domain, by how many it has drawn."""

    def __init__(self, stream: DomainStream, window: int, seed: int) -> None:
        store = TokenStore.open(stream.path)
        available = (store.info.tokens - 1) // window
        self.unique = min(available, stream.unique_tokens // window)
        if self.unique < 1:
            raise ValueError(
                f"{stream.path} holds {store.info.tokens} tokens, of which {stream.unique_tokens} may be seen; a window takes {window + 1}."
            )
        self.vocab_size = store.info.vocab_size
        self._key, self._window, self._seed = stream.key, window, seed
        # A plain array: indexing a numpy.memmap costs several times more.
        self._tokens = np.asarray(store.tokens)
        self._subset = _unique_windows(stream.key, available, self.unique)
        self._epoch, self._order = -1, self._subset

    def read(self, drawn: int) -> NDArray[np.int64]:
        """The window after `drawn` earlier ones, shape (T + 1,)."""
        epoch, position = divmod(drawn, self.unique)
        if epoch != self._epoch:
            self._order = self._subset[hashed_order(self.unique, "epoch", self._seed, self._key, epoch)]
            self._epoch = epoch
        start = int(self._order[position]) * self._window
        return self._tokens[start : start + self._window + 1].astype(np.int64)


class MemberSampler:
    """Draws the training windows of one member.

    Args:
        seed: of the member; with the key of a domain it fixes the order of the domain's windows.
        domains: distinct keys; those without weight in every phase are not opened.
        weights: shape (P, D): shares of tokens per phase, in the order of `domains`; rows sum to 1.
        fractions: share of the windows per phase.
        windows: windows of the whole run.
        window: T.

    Raises:
        ValueError: keys repeat, weights are not shares, or a domain is shorter than one window.
        DamagedTokenFile, FileNotFoundError: a token file cannot be read.
    """

    def __init__(
        self,
        seed: int,
        domains: Sequence[DomainStream],
        weights: Sequence[Sequence[float]],
        fractions: Sequence[float],
        windows: int,
        window: int,
    ) -> None:
        self._keys = tuple(stream.key for stream in domains)
        rows = _checked_weights(self._keys, weights, len(fractions))
        # By key and without unused domains: nothing below depends on how the domains are listed.
        used = sorted((index for index in range(len(domains)) if rows[:, index].any()), key=lambda index: self._keys[index])
        self._used_keys = tuple(self._keys[index] for index in used)
        self._rule = DeficitRule(rows[:, used], phase_windows(windows, fractions))
        self._domains = tuple(_DomainWindows(domains[index], window, seed) for index in used)
        self._window = window

    def next_windows(self, count: int) -> NDArray[np.int64]:
        """The next `count` windows, shape (count, T + 1)."""
        windows = np.empty((count, self._window + 1), dtype=np.int64)
        for row in windows:
            index = self._rule.draw()
            row[:] = self._domains[index].read(int(self._rule.counts[:, index].sum()) - 1)
        return windows

    @property
    def vocab_size(self) -> int:
        """The largest vocabulary of the domains."""
        return max(domain.vocab_size for domain in self._domains)

    def state(self) -> dict[str, list[int]]:
        """Windows drawn per phase, by key; JSON values, and all there is to remember."""
        return {key: self._rule.counts[:, index].tolist() for index, key in enumerate(self._used_keys)}

    def load_state(self, state: Mapping[str, Sequence[int]]) -> None:
        """Goes on where `state` was taken.

        Raises:
            ValueError: the state belongs to other domains or phases.
        """
        counts = self._rule.counts
        if set(state) != set(self._used_keys) or any(len(state[key]) != len(counts) for key in state):
            raise ValueError(f"Sampler state over {sorted(state)} does not fit domains {list(self._used_keys)} in {len(counts)} phases.")
        counts[:] = np.array([state[key] for key in self._used_keys], dtype=np.int64).T

    def realized(self) -> dict[str, tuple[float, ...]]:
        """Share of the windows drawn so far, per phase (0 in phases not begun), for every domain listed."""
        counts = self._rule.counts
        shares = dict(zip(self._used_keys, (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).T.tolist(), strict=True))
        return {key: tuple(shares.get(key, [0.0] * len(counts))) for key in self._keys}

    def epochs(self) -> dict[str, float]:
        """How often each domain that has weight was gone through so far."""
        drawn = self._rule.counts.sum(axis=0).tolist()
        return {key: drawn[index] / self._domains[index].unique for index, key in enumerate(self._used_keys)}


def _checked_weights(keys: tuple[str, ...], weights: Sequence[Sequence[float]], phases: int) -> NDArray[np.float64]:
    """Weights of shape (P, D) whose rows sum to exactly what float division gives; the sums do not depend on the order of domains."""
    if len(set(keys)) != len(keys):
        raise ValueError(f"Domain keys repeat: {sorted(key for key in keys if keys.count(key) > 1)}.")
    if len(weights) != phases or any(len(row) != len(keys) for row in weights):
        raise ValueError(f"Weights must have shape ({phases} phases, {len(keys)} domains), got rows of {[len(row) for row in weights]}.")
    if any(not (math.isfinite(weight) and weight >= 0) for row in weights for weight in row):
        raise ValueError(f"Weights must be finite and at least 0, got {weights}.")
    totals = [math.fsum(row) for row in weights]
    if any(abs(total - 1) > 1e-6 for total in totals):
        raise ValueError(f"Weights of a phase must sum to 1, got {totals}.")
    return np.array([[weight / total for weight in row] for row, total in zip(weights, totals, strict=True)], dtype=np.float64)
