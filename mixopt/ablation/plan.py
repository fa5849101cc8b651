"""The subsets of domains that an ablation measures, all of them beforehand, and what it makes of their losses.

Three questions about a domain, each a difference of losses: what is lost when it is left out of all; what it brings alone, to a base that knows
none; and what it brings on average over all orders in which domains can be added (Shapley's value), which shares the whole gain out between
them. Up to 8 domains all subsets are affordable and Shapley's values exact. Beyond, orders are sampled: domains are laid in a circle at random,
and all K orders that go round it from some domain are taken with their reverses. So every domain comes once at every place in either
direction, which matters most as the first steps from the base are the largest by far, and 2K orders take no more than the K(K-1) arcs of the circle. On
quadratic and ensemble-like games of 8 and 12 domains a mean square error took 5 to 100 times as many subsets with independent orders or orders
and their reverses. Circles are independent of each other, and their spread is the error of sampling.

The trade-off: a circle is a large unit, 58 subsets of 8 domains and 184 of 14, so that few circles are affordable, and their spread is roughly known.

Legend: K domains, S subsets, U units of sampling (circles).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from math import factorial

import numpy as np

from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray

Subset = frozenset[str]

EXACT_UP_TO = 8
"""Domains of which all subsets are measured: 256, about what four circles of 9 domains take."""
CIRCLES = 3
"""Default number where subsets are sampled; their spread is helped by that of the other domains (`effects`)."""


@dataclass(frozen=True)
class Plan:
    """What to measure. Build it with `plan_ablation`.

    Attributes:
        domains: K distinct names.
        circles: orders of the domains round each circle; none where all subsets are measured, or Shapley's values are not wanted.
        exact: whether all subsets are measured.
        subsets: S distinct ones, small before large. The first is empty: the base, of which components are continuations.
    """

    domains: tuple[str, ...]
    circles: tuple[tuple[str, ...], ...]
    exact: bool
    subsets: tuple[Subset, ...]

    @property
    def has_shapley(self) -> bool:
        return self.exact or bool(self.circles)

    @cached_property
    def row(self) -> dict[Subset, int]:
        """Place of each subset."""
        return {subset: s for s, subset in enumerate(self.subsets)}

    def weights(self) -> FloatArray:
        """Of the components in each subset's uniform average, shape (S, K); the row of the base is 0."""
        members = np.array([[name in subset for name in self.domains] for subset in self.subsets], dtype=np.float64)
        return np.asarray(members / np.maximum(members.sum(axis=1, keepdims=True), 1))

    def leave_one_out(self) -> FloatArray:
        """What losses (S,) are multiplied with for the loss without each domain less that of all, shape (K, S)."""
        whole = frozenset(self.domains)
        return self._differences([(whole - {name}, whole) for name in self.domains])

    def add_one_in(self) -> FloatArray:
        """The same for the loss of the base less that of each component alone."""
        return self._differences([(frozenset(), frozenset({name})) for name in self.domains])

    def shapley(self) -> FloatArray:
        """The same for Shapley's values, by unit of sampling, whose mean is the estimate: shape (U, K, S); one unit where all subsets are measured."""
        if self.exact:
            return self._all_subsets()[None]
        return np.stack([self._circle(circle) for circle in self.circles])

    def _differences(self, pairs: Sequence[tuple[Subset, Subset]]) -> FloatArray:
        factors = np.zeros((len(self.domains), len(self.subsets)))
        for k, (without, with_it) in enumerate(pairs):
            factors[k, self.row[without]] += 1.0
            factors[k, self.row[with_it]] -= 1.0
        return factors

    def _all_subsets(self) -> FloatArray:
        count = len(self.domains)
        factors = np.zeros((count, len(self.subsets)))
        for subset in self.subsets:
            for k, name in enumerate(self.domains):
                if name not in subset:
                    share = factorial(len(subset)) * factorial(count - len(subset) - 1) / factorial(count)
                    factors[k, self.row[subset]] += share
                    factors[k, self.row[subset | {name}]] -= share
        return factors

    def _circle(self, circle: Sequence[str]) -> FloatArray:
        place = {name: k for k, name in enumerate(self.domains)}
        factors = np.zeros((len(self.domains), len(self.subsets)))
        for order in _orders(circle):
            before: Subset = frozenset()
            for name in order:
                after = before | {name}
                factors[place[name], self.row[before]] += 1.0
                factors[place[name], self.row[after]] -= 1.0
                before = after
        return factors / (2 * len(circle))


def plan_ablation(domains: Sequence[str], circles: int = CIRCLES, seed: int = 0, exact_up_to: int = EXACT_UP_TO) -> Plan:
    """Which subsets to measure. More circles add subsets and leave those of fewer; the order of domains changes none.

    Args:
        circles: to sample where there are more than `exact_up_to` domains; 0: no Shapley values, also not exact ones.

    Raises:
        ConfigError: fewer than two domains, names that repeat, or a single circle, whose error nothing would tell.
    """
    names = tuple(domains)
    if len(names) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"An ablation needs two or more distinct domains, not {', '.join(names) or 'none'}.")
    if circles < 0 or circles == 1:
        raise ConfigError(f"circles is {circles}.", "Take 2 or more, whose spread tells the error of sampling, or 0 for no Shapley values.")
    exact = circles > 0 and len(names) <= exact_up_to
    # Drawn in the order of names: listing domains in another order permutes the effects and nothing else.
    drawn = [np.random.default_rng([0xAB1A, seed, number]).permutation(sorted(names)).tolist() for number in range(0 if exact else circles)]
    whole = frozenset(names)
    wanted: set[Subset] = {frozenset(), whole}
    wanted |= {frozenset({name}) for name in names} | {whole - {name} for name in names}
    if exact:
        wanted |= {frozenset(chosen) for size in range(len(names) + 1) for chosen in combinations(names, size)}
    for circle in drawn:
        wanted |= {frozenset(order[:size]) for order in _orders(circle) for size in range(len(names))}
    subsets = sorted(wanted, key=lambda subset: (len(subset), sorted(subset)))
    return Plan(names, tuple(tuple(circle) for circle in drawn), exact, tuple(subsets))


def _orders(circle: Sequence[str]) -> Iterator[list[str]]:
    """All orders that go round a circle, from every domain, and their reverses."""
    for start in range(len(circle)):
        order = [*circle[start:], *circle[:start]]
        yield order
        yield order[::-1]
