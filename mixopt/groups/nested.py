"""Geometry of mixtures whose groups are bounded: a box, sum 1, and bounds on the sums of nested sets of coordinates.

Nested sets make a tree, and on a tree everything is exact. The sums a node can reach form an interval, found from the leaves up. In the
nearest point every leaf is clip(y - t) and every node's sum is that of its parts, clipped to its interval, for a shift t that is common to
all that no clipped node separates; so the projection solves one equation in t per node, from the root down. Each is piecewise linear and
falls with t: Newton's steps inside a bracket end on the right piece. The main trade-off: iterations over rows at once instead of sorting
breakpoints as `simplex.project` does, which stays in use where no group is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from mixopt.mixture import FloatArray

# Newton ends within a dozen steps; every third step halves the bracket, whatever the pieces look like.
MOST_STEPS = 120
# Sums of some dozen float64 weights differ by less; what is missing after that is spread over what is free.
ROUNDING = 1e-14


@dataclass(frozen=True)
class SumBound:
    """Least and largest sum of some coordinates.

    Attributes:
        path: the group it speaks of.
        members: indices of the coordinates.
    """

    path: str
    members: tuple[int, ...]
    least: float
    largest: float


class Leaves(Protocol):
    """What the coordinates of the nearest point are at a shift; `reserve` (n,) is how much farther than the bounds shifts must go to hold them all."""

    @property
    def reserve(self) -> FloatArray: ...
    def respond(self, columns: Sequence[int], shifted: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Values of some coordinates where the point minus the shift is `shifted` (n, columns), and whether they move with it, 0 or 1."""
        ...


@dataclass(frozen=True, eq=False)
class Clipped:
    """Bounds and nothing else."""

    lower: FloatArray
    upper: FloatArray
    reserve: FloatArray = field(default_factory=lambda: np.zeros(1))

    def respond(self, columns: Sequence[int], shifted: FloatArray) -> tuple[FloatArray, FloatArray]:
        lower, upper = self.lower[list(columns)], self.upper[list(columns)]
        return np.clip(shifted, lower, upper), ((shifted > lower) & (shifted < upper)).astype(np.float64)


@dataclass(eq=False)
class Node:
    """One bounded set in the tree; `bound` is None for the root, whose sum is 1.

    Attributes:
        leaves: coordinates that lie in no set below this one.
        parts: the sets below.
        least, largest: the sums that bounds of this node and of all below it allow; least > largest where there are none.
    """

    bound: SumBound | None
    leaves: list[int] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)
    least: float = 0.0
    largest: float = 1.0

    def parts_least(self, lower: FloatArray) -> float:
        """The least sum that what lies below allows, the node's own bound left aside."""
        return float(lower[self.leaves].sum()) + sum(part.least for part in self.parts)

    def parts_largest(self, upper: FloatArray) -> float:
        """The largest, as `parts_least`."""
        return float(upper[self.leaves].sum()) + sum(part.largest for part in self.parts)

    def inner_first(self) -> list[Node]:
        return [*(node for part in self.parts for node in part.inner_first()), self]


def build_tree(lower: FloatArray, upper: FloatArray, sums: Sequence[SumBound]) -> Node:
    """The tree of `sums` over coordinates within `lower` and `upper` (coordinates,), each node with the interval of its sums.

    Two sums are nested or disjoint; of equal sets the one listed first is the outer.
    """
    root = Node(None)
    nodes = [(root, frozenset(range(len(lower))))]
    for bound in sorted(sums, key=lambda bound: -len(bound.members)):
        node, members = Node(bound), frozenset(bound.members)
        assert all(members <= other or not members & other for _, other in nodes), "groups are nested"
        parent = next(other for other, around in reversed(nodes) if members <= around)
        parent.parts.append(node)
        nodes.append((node, members))
    for index in range(len(lower)):
        next(node for node, members in reversed(nodes) if index in members).leaves.append(index)
    for node in root.inner_first():
        node.least, node.largest = node.parts_least(lower), node.parts_largest(upper)
        if node.bound is not None:
            node.least, node.largest = max(node.least, node.bound.least), min(node.largest, node.bound.largest)
    return root


def project_nested(points: FloatArray, lower: FloatArray, upper: FloatArray, root: Node, leaves: Leaves | None = None) -> FloatArray:
    """Euclidean projection of each row onto {x : lower <= x <= upper, sum x = 1, every set's sum within its bounds}.

    Args:
        points: shape (n, coordinates).
        root: of `build_tree`, with root.least <= 1 <= root.largest up to 1e-9.
        leaves: what else acts on each coordinate alone; its values lie within the bounds.
    """
    nearest = np.empty_like(points)
    _Projection(points, lower, upper, leaves or Clipped(lower, upper)).fill(root, np.ones(len(points)), nearest)
    return nearest


def reach(lower: FloatArray, upper: FloatArray, root: Node) -> tuple[FloatArray, FloatArray]:
    """Least and largest value that each coordinate takes in the set, each of shape (coordinates,)."""
    least, largest = lower.copy(), upper.copy()

    def walk(node: Node, low: float, high: float) -> None:
        # What is left for one part when all others take the most, or the least, that they can.
        spare_low = low - node.parts_largest(upper)
        spare_high = high - node.parts_least(lower)
        for leaf in node.leaves:
            least[leaf] = max(lower[leaf], min(spare_low + upper[leaf], upper[leaf]))
            largest[leaf] = min(upper[leaf], max(spare_high + lower[leaf], lower[leaf]))
        for part in node.parts:
            walk(part, max(part.least, spare_low + part.largest), min(part.largest, spare_high + part.least))

    walk(root, 1.0, 1.0)
    return least, largest


@dataclass(frozen=True, eq=False)
class _Projection:
    """Rows of `points` on their way into the set."""

    points: FloatArray
    lower: FloatArray
    upper: FloatArray
    leaves: Leaves

    def fill(self, node: Node, total: FloatArray, out: FloatArray) -> None:
        """Writes the coordinates of `node` so that they sum to `total` (n,)."""
        shift = self._solve(node, total)
        own = list(self.leaves.respond(node.leaves, self.points[:, node.leaves] - shift[:, None])[0].T)
        own += [self._sum(part, shift)[0] for part in node.parts]
        least = np.array([*self.lower[node.leaves], *(part.least for part in node.parts)])
        largest = np.array([*self.upper[node.leaves], *(part.largest for part in node.parts)])
        values = np.stack(own, axis=1)
        # One step on what is free removes the rounding of the solution.
        free = (values > least) & (values < largest)
        missing = total - values.sum(axis=1)
        values = np.clip(values + np.where(free, (missing / np.maximum(free.sum(axis=1), 1))[:, None], 0.0), least, largest)
        out[:, node.leaves] = values[:, : len(node.leaves)]
        for column, part in enumerate(node.parts, start=len(node.leaves)):
            self.fill(part, values[:, column], out)

    def _solve(self, node: Node, total: FloatArray) -> FloatArray:
        """The shift of each row for which the parts of `node` sum to `total`, shape (n,)."""
        members = [leaf for inner in node.inner_first() for leaf in inner.leaves]
        points = self.points[:, members]
        low = (points - self.upper[members]).min(axis=1) - self.leaves.reserve
        high = (points - self.lower[members]).max(axis=1) + self.leaves.reserve
        shift = np.clip((points.sum(axis=1) - total) / len(members), low, high)
        for step in range(MOST_STEPS):
            value, slope = self._parts_sum(node, shift)
            excess = value - total
            if np.all((np.abs(excess) <= ROUNDING) | (high - low <= ROUNDING)):
                break
            low = np.where(excess > 0, shift, low)
            high = np.where(excess < 0, shift, high)
            newton = shift + excess / np.maximum(slope, 1.0)
            usable = (slope > 0.5) & (newton >= low) & (newton <= high) & (step % 3 < 2)
            shift = np.where(np.abs(excess) <= ROUNDING, shift, np.where(usable, newton, (low + high) / 2))
        return np.asarray(shift)

    def _parts_sum(self, node: Node, shift: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Sum of the parts of `node` at a shift (n,), its own bound left aside, and how fast it falls, each of shape (n,)."""
        values, moving = self.leaves.respond(node.leaves, self.points[:, node.leaves] - shift[:, None])
        value, slope = values.sum(axis=1), moving.sum(axis=1)
        for part in node.parts:
            inner, steepness = self._sum(part, shift)
            value, slope = value + inner, slope + steepness
        return value, slope

    def _sum(self, node: Node, shift: FloatArray) -> tuple[FloatArray, FloatArray]:
        """As `_parts_sum`, within the node's interval, at whose ends it stays the same."""
        value, slope = self._parts_sum(node, shift)
        return np.clip(value, node.least, node.largest), np.where((value > node.least) & (value < node.largest), slope, 0.0)
