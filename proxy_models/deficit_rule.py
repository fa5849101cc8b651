"""Which domain the next window comes from: not drawn at random, but dealt out so that counts follow the weights.

`DeficitRule` is the rule as one reads it, a window at a time. `deal` applies it to all members of a pack at once, many windows ahead, with the
same float operations in the same order, so that both say the same to the last tie: per window of a pack of 64 it is 25 times as fast. The trade-off:
the rule stands here twice, and a test holds them together.

Shapes: K members, D domains of positive weight in some phase, P phases, N windows of a member, A domains of positive weight in the current phase.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# Deficits are differences of sums of float weights; closer than this they are equal.
TIE_WINDOWS = 1e-9

CHUNK_WINDOWS = 64
"""Windows of a member whose entitlements are laid out at once: half a megabyte for 64 members and 14 domains."""


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

    Attributes:
        counts: int64 (P, D), windows drawn; with them the rule goes on from anywhere.
    """

    def __init__(self, weights: NDArray[np.float64], windows: Sequence[int]) -> None:
        self.weights = weights
        self.ends = np.cumsum(windows)
        self.owed_before = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights * np.array(windows)[:, None], axis=0)])
        self.active = [np.flatnonzero(row > 0) for row in weights]
        self.counts: NDArray[np.int64] = np.zeros(weights.shape, dtype=np.int64)

    @property
    def drawn(self) -> int:
        """Windows drawn so far."""
        return int(self.counts.sum())

    @property
    def left(self) -> int:
        """Windows that can still be drawn."""
        return int(self.ends[-1]) - self.drawn

    @property
    def left_in_phase(self) -> int:
        """Windows until weights change."""
        drawn = self.drawn
        return int(self.ends[self.phase_of(drawn)]) - drawn

    def phase_of(self, window: int) -> int:
        """The phase of a window, counted from 0 over the whole run."""
        return int(np.searchsorted(self.ends, window, side="right"))

    def margin(self, phase: int) -> float:
        """delta."""
        count = len(self.active[phase])
        return 1 / (2 * count - 2) if count > 1 else 0.0

    def draw(self) -> int:
        """The index of the domain that the next window comes from."""
        drawn = self.drawn
        phase = self.phase_of(drawn)
        assert phase < len(self.ends), "no windows left"
        active = self.active[phase]
        weight = self.weights[phase, active]
        steps = drawn + 1 - (int(self.ends[phase - 1]) if phase else 0)
        deficit = self.owed_before[phase, active] + steps * weight - self.counts[:, active].sum(axis=0)
        margin = self.margin(phase)
        owed = deficit >= margin - TIE_WINDOWS
        if owed.any():
            windows_left = np.where(owed, (1 - margin - deficit) / weight, np.inf)
            choice = int(np.argmax(windows_left <= windows_left.min() + TIE_WINDOWS))
        else:  # only after a change of weights: what is owed belongs to domains of zero weight
            choice = int(np.argmax(deficit >= deficit.max() - TIE_WINDOWS))
        self.counts[phase, active[choice]] += 1
        return int(active[choice])


def deal(rules: Sequence[DeficitRule], count: int) -> NDArray[np.int64]:
    """What `draw` would say, called `count` times on each rule: indices of domains, shape (count, K). Counts move as if it had been."""
    assert all(rule.left >= count for rule in rules), "no windows left"
    domain_NK = np.empty((count, len(rules)), dtype=np.int64)
    dealt = 0
    while dealt < count:
        # Within one stretch no member changes its phase.
        stretch = min(count - dealt, CHUNK_WINDOWS, *(rule.left_in_phase for rule in rules))
        domain_NK[dealt : dealt + stretch] = _deal_stretch(rules, stretch)
        dealt += stretch
    return domain_NK


def _deal_stretch(rules: Sequence[DeficitRule], count: int) -> NDArray[np.int64]:
    """`deal` where every rule stays in one phase. Domains lead the arrays, so that every operation runs along the members."""
    members = len(rules)
    phases = [rule.phase_of(rule.drawn) for rule in rules]
    most = max(len(rule.active[phase]) for rule, phase in zip(rules, phases, strict=True))
    # Rows beyond a member's active domains are owed nothing ever.
    index_AK = np.zeros((most, members), dtype=np.int64)
    weight_AK = np.ones((most, members))
    before_AK = np.full((most, members), -np.inf)
    has_AK = np.zeros((most, members))
    first_K, margin_K = np.empty(members), np.empty(members)
    for k, (rule, phase) in enumerate(zip(rules, phases, strict=True)):
        active = rule.active[phase]
        rows = slice(len(active))
        index_AK[rows, k], weight_AK[rows, k] = active, rule.weights[phase, active]
        before_AK[rows, k] = rule.owed_before[phase, active]
        has_AK[rows, k] = rule.counts[:, active].sum(axis=0)
        first_K[k] = rule.drawn + 1 - (int(rule.ends[phase - 1]) if phase else 0)
        margin_K[k] = rule.margin(phase)
    steps_N1K: NDArray[np.float64] = (first_K + np.arange(count)[:, None])[:, None]
    choice_NK = _choices(before_AK + steps_N1K * weight_AK, has_AK, weight_AK, margin_K)
    domain_NK = index_AK[choice_NK, np.arange(members)]
    for k, (rule, phase) in enumerate(zip(rules, phases, strict=True)):
        rule.counts[phase] += np.bincount(domain_NK[:, k], minlength=rule.counts.shape[1])
    return domain_NK


def _choices(
    owed_NAK: NDArray[np.float64], has_AK: NDArray[np.float64], weight_AK: NDArray[np.float64], margin_K: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Rows of the chosen domains, (N, K). Every line does what `draw` does, in one array of its own; `has_AK` counts along."""
    count, members = len(owed_NAK), len(margin_K)
    least_owed_K, limit_K = margin_K - TIE_WINDOWS, 1 - margin_K
    choice_NK = np.empty((count, members), dtype=np.int64)
    deficit_AK, left_AK = np.empty_like(has_AK), np.empty_like(has_AK)
    mask_AK, first_K = np.empty(has_AK.shape, dtype=np.bool_), np.empty(members)
    has, lanes = has_AK.reshape(-1), np.arange(members)
    for owed_AK, choice_K in zip(owed_NAK, choice_NK, strict=True):
        np.subtract(owed_AK, has_AK, out=deficit_AK)
        np.less(deficit_AK, least_owed_K, out=mask_AK)
        np.subtract(limit_K, deficit_AK, out=left_AK)
        np.divide(left_AK, weight_AK, out=left_AK)
        np.putmask(left_AK, mask_AK, np.inf)
        np.minimum.reduce(left_AK, axis=0, out=first_K)
        nobody = first_K.max() == np.inf
        if nobody:  # of some member: the domain that is owed most
            unowed = first_K == np.inf
            left_AK[:, unowed] = -deficit_AK[:, unowed]
            np.minimum.reduce(left_AK, axis=0, out=first_K)
        np.add(first_K, TIE_WINDOWS, out=first_K)
        np.less_equal(left_AK, first_K, out=mask_AK)
        mask_AK.argmax(axis=0, out=choice_K)
        place_K = choice_K * members + lanes
        has[place_K] = has[place_K] + 1.0
    return choice_NK
