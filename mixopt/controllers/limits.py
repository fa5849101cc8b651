"""The core that all controllers share: tilted weights, and the set that every decision lies in.

Nearly every method is one update, w = project(softmax(log base + rate * score)) (section 15 of methods/merging-and-online.md); they
differ in the score. Floor, cap, what is left of each domain and the largest step belong here and not to the methods. The main trade-off:
weights outside the set go to its nearest point in the Euclidean sense, as everywhere in mixopt, and not in the geometry of the
exponential update.

Epoch limits are on the whole run, not on a decision: with `available` tokens of a domain and `left` tokens of the run to go, its weight
is at most (available - used) / left. Continuing so to the end uses no domain up; and a limit that is kept never shrinks, so that there is
always a mixture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from mixopt.constraints.programs import least_value
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.simplex import project
from mixopt.space import MixtureSpace

SUMS_WITHIN = 1e-9


def tilted(base: FloatArray, score: FloatArray, rate: float = 1.0) -> FloatArray:
    """softmax(log base + rate * score) over the domains that have a score; one without (NaN) keeps its weight of `base` to the bit.

    Scores may have any common offset, of any size.

    Args:
        base: a mixture, shape (domains,); domains of weight 0 stay at 0.
        score: shape (domains,).
    """
    known = ~np.isnan(score) & (base > 0)
    if not known.any():
        return base.copy()
    power = rate * (score[known] - score[known].max())
    logits = np.log(base[known]) + power
    raised = np.exp(logits - logits.max())
    result = base.copy()
    result[known] = base[known].sum() * raised / raised.sum()
    return result


def kept(last: FloatArray, fresh: FloatArray) -> FloatArray:
    """What was measured, and where nothing was (NaN) the last value; NaN where there never was one."""
    return np.where(np.isnan(fresh), last, fresh)


def smoothed(last: FloatArray, fresh: FloatArray, memory: float) -> FloatArray:
    """memory * last + (1 - memory) * fresh; the one that is there where the other is NaN."""
    return np.where(np.isnan(last), fresh, np.where(np.isnan(fresh), last, memory * last + (1 - memory) * fresh))


def weighted_mean(values_TX: FloatArray, weights_T: FloatArray) -> FloatArray:
    """Mean over the first axis with weights, over what was measured; NaN where nothing was, shape (X,)."""
    known = ~np.isnan(values_TX)
    total = known.T @ weights_T
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(known, values_TX, 0.0).T @ weights_T / np.where(total > 0, total, np.nan))


@dataclass(frozen=True, eq=False)
class Polyhedron:
    """Weights `expand @ x` with lower <= x <= upper, least <= rows @ x <= largest, and sum 1; x are the units of a space, or the domains.

    Attributes:
        expand: shape (domains, units).
    """

    expand: FloatArray
    lower: FloatArray
    upper: FloatArray
    rows: FloatArray
    least: FloatArray
    largest: FloatArray


@dataclass(frozen=True, eq=False)
class Limits:
    """The set of a controller's decisions.

    Attributes:
        floor, cap: least and largest weight, shape (domains,).
        available: tokens of each domain that the run may use, with their repetitions, shape (domains,); infinite for no limit.
        tokens: of the run.
        largest_step: total variation between two decisions at most.
        space: mixtures allowed at any time, with the floor in it; None: what floor and cap allow.
        order: where each domain stands in the space.
    """

    floor: FloatArray
    cap: FloatArray
    available: FloatArray
    tokens: int
    largest_step: float
    space: MixtureSpace | None = None
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.space is not None:
            return
        if np.any(self.floor > self.cap) or self.floor.sum() > 1 + SUMS_WITHIN:
            raise InfeasibleError(
                f"Floors of {self.floor.sum():.3g} in all leave no mixture below the caps.",
                "Lower `floor`; its sum is at most 1, and it is below `cap`.",
            )
        upper = np.minimum(self.cap, self.available / self.tokens)
        if upper.sum() < 1 - SUMS_WITHIN:
            raise InfeasibleError(
                f"Caps and available tokens allow {upper.sum():.3g} of the run's {self.tokens} tokens.",
                "Raise `cap` or `available`, or train less.",
            )

    @classmethod
    def within(cls, space: MixtureSpace, names: Sequence[str], floor: FloatArray, tokens: int, largest_step: float) -> Limits:
        """The mixtures of a space whose domains have at least `floor` (domains,), in the order of `names`, or their cap if less.

        Raises:
            ConfigError: the space limits the number of domains, or is over others.
            InfeasibleError: no mixture of the space keeps the floor.
        """
        if not space.is_convex:
            raise ConfigError("A controller moves all domains, and a largest number of them is set.", "Drop `constraints.most_domains`.")
        if sorted(names) != sorted(space.domains):
            raise ConfigError(f"The space is over {', '.join(space.domains)}.", f"The controller has: {', '.join(names)}.")
        order = tuple(space.domains.index(name) for name in names)
        floor_of = np.empty(len(order))
        floor_of[list(order)] = floor
        units = space.units
        wanted = np.zeros(len(units.names))
        share = np.asarray(units.share)
        with np.errstate(divide="ignore", invalid="ignore"):
            np.maximum.at(wanted, np.asarray(units.owner), np.where(share > 0, floor_of / share, 0.0))
        lower = np.minimum(np.maximum(space.unit_lower, wanted), space.unit_upper)
        floored = replace(space, unit_lower=lower, lower=units.expand(lower))
        if lower.sum() > 1 + SUMS_WITHIN or least_value(floored.polytope, np.zeros(len(lower)), space.ball) is None:
            raise InfeasibleError(f"No mixture of the space gives every domain {floor.max():.3g}.", "Lower `floor`.")
        bounds = floored.lower[list(order)], floored.upper[list(order)]
        return cls(*bounds, np.full(len(order), np.inf), tokens, largest_step, floored, order)

    def box(self, used: FloatArray, seen: float) -> tuple[FloatArray, FloatArray]:
        """Least and largest weights after `seen` tokens, of which each domain gave `used` (domains,)."""
        if self.space is not None or np.isinf(self.available).all():
            return self.floor, self.cap
        left = max(self.tokens - seen, 1.0)
        upper = np.minimum(self.cap, np.maximum(self.available - used, 0.0) / left)
        if upper.sum() < 1:  # drawn a little more than asked for, or trained beyond the end: then in proportion to what is left
            upper = upper / upper.sum() if upper.sum() > 0 else self.cap
        return np.minimum(self.floor, upper), upper

    def nearest(self, weights: FloatArray, used: FloatArray, seen: float) -> FloatArray:
        """The point of the set nearest to `weights` (domains,)."""
        return np.asarray(self.nearest_rows(weights[None], used, seen)[0])

    def nearest_rows(self, points: FloatArray, used: FloatArray, seen: float) -> FloatArray:
        """The same of each row, shape (n, domains)."""
        if self.space is not None:
            placed = np.empty(points.shape)
            placed[:, list(self.order)] = points
            return np.asarray(self.space.project(placed)[:, list(self.order)])
        return project(points, *self.box(used, seen))

    def polytope(self, used: FloatArray, seen: float) -> Polyhedron:
        """The set in the coordinates in which it is bounds and linear rows; a distance of the space is left out."""
        if self.space is None:
            return Polyhedron(np.eye(len(self.floor)), *self.box(used, seen), np.zeros((0, len(self.floor))), np.zeros(0), np.zeros(0))
        space = self.space
        expand = space.units.expand(np.eye(len(space.unit_lower))).T[list(self.order)]
        return Polyhedron(expand, space.unit_lower, space.unit_upper, space.sum_matrix, *space.sum_limits)

    def contains(self, weights: FloatArray) -> bool:
        """Whether the space, where there is one, holds `weights` (domains,)."""
        if self.space is None:
            return True
        placed = np.empty((1, len(weights)))
        placed[0, list(self.order)] = weights
        return bool(self.space.contains(placed)[0])

    def step(self, previous: FloatArray, wanted: FloatArray, used: FloatArray, seen: float) -> FloatArray:
        """The nearest point, or the part of the way to it that the largest step allows; in the set, for it is convex."""
        there = self.nearest(wanted, used, seen)
        distance = 0.5 * np.abs(there - previous).sum()
        if distance <= self.largest_step:
            return there
        return self.nearest(previous + self.largest_step / distance * (there - previous), used, seen)
