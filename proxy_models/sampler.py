"""Which window a member of a pack trains on next: a pure function of its seed, its domains and how many windows it has drawn.

Counter-based, so a member sees the same tokens alone, in any pack, in any process, after any interruption, and in whatever order its domains
are listed. Two parts:

- `deficit_rule` decides which domain the next window comes from. It is not random: each domain's count follows its share as closely as
  whole windows allow, because the variance of drawing domains at random is noise a mixture search pays for (noise-measured.md).
- `MemberSampler` decides which window of that domain. How a domain is laid out in windows of T + 1 tokens, and which of their tokens are scored, is the
  matter of `windows`. The proxy sees a subset of them, fixed by the domain's key alone and nested for smaller limits, in an order that the seed
  reshuffles every epoch.

Windows are dealt and read a block ahead, for all members of a pack together, because one at a time they would cost a GPU more than it takes to train
on them. What a sampler remembers and reports is what it handed out, never what it read ahead.

A share of a mixture is a share of windows, whatever they hold: prompts are seen, so they count, and so does the little filling of windows of pairs.

Trade-offs: the tokens at the end of a text domain that fill no window are never trained on; a block or two of every member are in memory (128 KiB each).

Shapes: K members, D domains of positive weight in some phase, P phases, B windows per step, N windows of a block, T tokens per window.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from proxy_models.deficit_rule import DeficitRule, deal
from proxy_models.hashed_order import hashed_order
from proxy_models.windows import windows_of

BLOCK_TOKENS = 1 << 16
"""Tokens of a member that are read ahead: the cost of looking into a domain is shared by all its windows of a block."""


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


@lru_cache(maxsize=64)
def _unique_windows(key: str, available: int, unique: int) -> NDArray[np.int64]:
    """The first `unique` windows of a domain's fixed order. Cached, because members share it and sorting millions of windows takes long."""
    windows = hashed_order(available, "subset", key)[:unique].copy()
    windows.setflags(write=False)
    return windows


@dataclass(frozen=True)
class Batch:
    """Windows of every member of a pack.

    Attributes:
        tokens_KBS: int64.
        scored_KBT: which of the predicted tokens the loss is taken on; None: all.
    """

    tokens_KBS: NDArray[np.int64]
    scored_KBT: NDArray[np.bool_] | None


class _DomainWindows:
    """The windows that one member may see of one domain, by how many it has drawn."""

    def __init__(self, stream: DomainStream, window: int, seed: int) -> None:
        self.windows = windows_of(stream.path, window)
        self.unique = min(self.windows.count, stream.unique_tokens // window)
        if self.unique < 1:
            raise ValueError(
                f"{stream.path} fills {self.windows.count} windows, and {stream.unique_tokens} of its tokens may be seen; "
                f"a window takes {window} and one more."
            )
        self._key, self._seed = stream.key, seed
        self._subset = _unique_windows(stream.key, self.windows.count, self.unique)
        self._epoch, self._order = -1, self._subset

    def next(self, drawn: int, count: int) -> NDArray[np.int64]:
        """Numbers of the `count` windows after `drawn` earlier ones."""
        pieces = []
        while count > 0:
            epoch, position = divmod(drawn, self.unique)
            if epoch != self._epoch:
                self._order = self._shuffled(epoch)
                self._epoch = epoch
            piece = self._order[position : position + count]
            pieces.append(piece)
            drawn, count = drawn + len(piece), count - len(piece)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def total(self, drawn: int, of: Callable[[NDArray[np.int64]], int]) -> int:
        """A count `of` windows, over the first `drawn` windows."""
        epochs, position = divmod(drawn, self.unique)
        return (epochs * of(self._subset) if epochs else 0) + (of(self._shuffled(epochs)[:position]) if position else 0)

    def _shuffled(self, epoch: int) -> NDArray[np.int64]:
        return self._subset[hashed_order(self.unique, "epoch", self._seed, self._key, epoch)]


class MemberSampler:
    """Draws the training windows of one member.

    Args:
        seed: of the member; with the key of a domain it fixes the order of the domain's windows.
        domains: distinct keys; those without weight in every phase are not opened.
        weights: shape (P, D): shares of tokens per phase, in the order of `domains`; rows sum to 1.
        fractions: share of the windows per phase.
        windows: windows of the whole run.
        window: T.

    Attributes:
        has_prompts: whether some domain of weight holds prompts, which are not scored.

    Raises:
        ValueError: keys repeat, weights are not shares, a domain is shorter than one window, or a completion is longer.
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
        self.has_prompts = any(domain.windows.has_prompts for domain in self._domains)
        self._tokens = np.empty((0, window + 1), dtype=np.result_type(*(domain.windows.dtype for domain in self._domains)))
        self._scored = np.empty((0, window if self.has_prompts else 0), dtype=np.bool_)
        self._forget_block()

    def next_windows(self, count: int) -> NDArray[np.int64]:
        """The next `count` windows, shape (count, T + 1)."""
        windows: NDArray[np.int64] = next_windows([self], count)[0]
        return windows

    def next_batch(self, count: int) -> Batch:
        """The next `count` windows, as those of a pack of one."""
        return next_batch([self], count)

    def _forget_what_is_ahead(self) -> None:
        """Stays where it is, with nothing dealt or read ahead."""
        self._rule.counts[:] = self._counts()
        self._forget_block()

    def _forget_block(self) -> None:
        """Goes on from the rule's counts, with nothing read ahead."""
        self._before = self._rule.counts.copy()
        self._dealt = np.empty(0, dtype=np.int64)
        self._tokens, self._scored = self._tokens[:0], self._scored[:0]
        self._taken = 0

    @property
    def _ahead(self) -> int:
        """Windows read and not yet handed out."""
        return len(self._tokens) - self._taken

    def _take(self, out_BS: NDArray[np.int64], out_scored_BT: NDArray[np.bool_] | None) -> None:
        """Hands out windows that were read ahead; where the pack is told what is scored, that too."""
        end = self._taken + len(out_BS)
        out_BS[:] = self._tokens[self._taken : end]
        if out_scored_BT is not None:
            out_scored_BT[:] = self._scored[self._taken : end] if self.has_prompts else True
        self._taken = end

    def _read_ahead(self, domain_N: NDArray[np.int64]) -> None:
        """Reads the windows that the rule dealt after those at hand; the rule has counted them already."""
        drawn = (self._rule.counts.sum(axis=0) - np.bincount(domain_N, minlength=len(self._domains))).tolist()
        tokens = np.empty((self._ahead + len(domain_N), self._window + 1), dtype=self._tokens.dtype)
        tokens[: self._ahead] = self._tokens[self._taken :]
        new = tokens[self._ahead :]
        scored = np.ones((len(tokens), self._scored.shape[1]), dtype=np.bool_)
        scored[: self._ahead] = self._scored[self._taken :]
        new_scored = scored[self._ahead :]
        place_N = np.argsort(domain_N, kind="stable")
        ends = np.cumsum(np.bincount(domain_N, minlength=len(self._domains))).tolist()
        for domain, earlier, start, end in zip(self._domains, drawn, [0, *ends[:-1]], ends, strict=True):
            if end > start:
                places = place_N[start:end]
                new[places], scored_NT = domain.windows.read(domain.next(earlier, end - start))
                if scored_NT is not None:
                    new_scored[places] = scored_NT
        self._before = self._counts()
        self._dealt = np.concatenate([self._dealt[self._taken :], domain_N])
        self._tokens, self._scored, self._taken = tokens, scored, 0

    def _counts(self) -> NDArray[np.int64]:
        """Windows handed out, per phase and domain."""
        counts = self._before.copy()
        first = int(counts.sum())
        phases = np.searchsorted(self._rule.ends, np.arange(first, first + self._taken), side="right")
        np.add.at(counts, (phases, self._dealt[: self._taken]), 1)
        return counts

    @property
    def vocab_size(self) -> int:
        """The largest vocabulary of the domains."""
        return max(domain.windows.vocab_size for domain in self._domains)

    def state(self) -> dict[str, list[int]]:
        """Windows drawn per phase, by key; JSON values, and all there is to remember."""
        counts = self._counts()
        return {key: counts[:, index].tolist() for index, key in enumerate(self._used_keys)}

    def load_state(self, state: Mapping[str, Sequence[int]]) -> None:
        """Goes on where `state` was taken.

        Raises:
            ValueError: the state belongs to other domains or phases.
        """
        counts = self._rule.counts
        if set(state) != set(self._used_keys) or any(len(state[key]) != len(counts) for key in state):
            raise ValueError(f"Sampler state over {sorted(state)} does not fit domains {list(self._used_keys)} in {len(counts)} phases.")
        counts[:] = np.array([state[key] for key in self._used_keys], dtype=np.int64).T
        self._forget_block()

    def realized(self) -> dict[str, tuple[float, ...]]:
        """Share of the windows drawn so far, per phase (0 in phases not begun), for every domain listed."""
        counts = self._counts()
        shares = dict(zip(self._used_keys, (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)).T.tolist(), strict=True))
        return {key: tuple(shares.get(key, [0.0] * len(counts))) for key in self._keys}

    def epochs(self) -> dict[str, float]:
        """How often each domain that has weight was gone through so far."""
        drawn = self._counts().sum(axis=0).tolist()
        return {key: drawn[index] / self._domains[index].unique for index, key in enumerate(self._used_keys)}

    def scored_tokens(self) -> dict[str, int]:
        """Tokens handed out so far that the loss is taken on, of each domain that has weight."""
        return self._totals(lambda domain: domain.windows.scored)

    def padding_tokens(self) -> dict[str, int]:
        """Tokens handed out so far that fill windows of pairs and belong to none, of each domain that has weight."""
        return self._totals(lambda domain: domain.windows.padding)

    def _totals(self, of: Callable[[_DomainWindows], Callable[[NDArray[np.int64]], int]]) -> dict[str, int]:
        drawn = self._counts().sum(axis=0).tolist()
        return {key: domain.total(count, of(domain)) for key, domain, count in zip(self._used_keys, self._domains, drawn, strict=True)}


def next_windows(samplers: Sequence[MemberSampler], count: int) -> NDArray[np.int64]:
    """The tokens of `next_batch`, shape (K, count, T + 1)."""
    return next_batch(samplers, count).tokens_KBS


def next_batch(samplers: Sequence[MemberSampler], count: int) -> Batch:
    """The next `count` windows of every member of a pack: what each one's `next_batch` gives, faster.

    Args:
        samplers: of members that share T; they need not be at the same step.

    Returns:
        what is scored is told where any member has prompts.

    Whatever is raised, every sampler is where it was before: the members can be asked one by one whose trouble it is.
    """
    window = samplers[0]._window
    block = max(count, BLOCK_TOKENS // window)
    while any(sampler._ahead < count for sampler in samplers):
        # With those who run out also those who soon will: members that joined at other steps are dealt to together from then on.
        behind = [one for one in samplers if one._ahead < count or (one._ahead < block // 2 and one._rule.left > 0)]
        ahead = min(block, *(sampler._rule.left for sampler in behind))
        assert ahead > 0, "no windows left"
        try:
            dealt_NK = deal([sampler._rule for sampler in behind], ahead)
            for sampler, domain_N in zip(behind, dealt_NK.T, strict=True):
                sampler._read_ahead(np.ascontiguousarray(domain_N))
        except BaseException:
            for sampler in behind:
                sampler._forget_what_is_ahead()
            raise
    out_KBS = np.empty((len(samplers), count, window + 1), dtype=np.int64)
    scored_KBT = np.empty((len(samplers), count, window), dtype=np.bool_) if any(sampler.has_prompts for sampler in samplers) else None
    for k, sampler in enumerate(samplers):
        sampler._take(out_KBS[k], None if scored_KBT is None else scored_KBT[k])
    return Batch(out_KBS, scored_KBT)


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
