"""Geometry of mixtures: draws, projection, divergence and whole counts, all over rows of shape (..., domains).

Everything here is plain arrays without names; names, caps and their reasons live in `space`. Draws are made in log space, because a Dirichlet
with a small concentration underflows to 0/0 otherwise. The main trade-off: the projection sorts the breakpoints of all rows at once instead
of iterating, which costs O(d log d) per row and is exact.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray

# RegMix (arXiv 2407.01492, released sampler): the prior is tempered by 0.5, the concentration is log-spaced over 15 values from 0.1 to 5,
# entries below 2e-4 become zero.
REGMIX_TEMPERATURE = 0.5
REGMIX_STRENGTHS: tuple[float, ...] = tuple(np.geomspace(0.1, 5.0, 15).tolist())
REGMIX_ZERO_BELOW = 2e-4
# A row within this distance of the simplex is on it: sums of some dozen float64 weights differ from 1 by less.
ON_SIMPLEX = 1e-12


def temper(prior: FloatArray, temperature: float = REGMIX_TEMPERATURE) -> FloatArray:
    """`prior` (domains,) raised to `temperature` and renormalized: 1 keeps it, 0 makes its support uniform. Zeros stay zero."""
    if np.any(prior < 0) or not np.any(prior > 0):
        raise ConfigError("A prior needs non-negative weights, at least one above 0.")
    tempered = np.where(prior > 0, np.where(prior > 0, prior, 1.0) ** temperature, 0.0)
    return np.asarray(tempered / tempered.sum())


def sample_uniform(rng: np.random.Generator, count: int, dimension: int) -> FloatArray:
    """Draws uniform over the simplex, shape (count, dimension)."""
    spacings = rng.standard_exponential((count, dimension))
    return np.asarray(spacings / spacings.sum(axis=1, keepdims=True))


def sample_dirichlet(
    rng: np.random.Generator,
    prior: FloatArray,
    count: int,
    strengths: Sequence[float] = REGMIX_STRENGTHS,
    temperature: float = REGMIX_TEMPERATURE,
    zero_below: float = REGMIX_ZERO_BELOW,
) -> FloatArray:
    """Draws around a prior as RegMix makes them (arXiv 2407.01492), without its rejection of large weights.

    Each row draws one of `strengths` s and then Dirichlet(s * tempered prior); weights below `zero_below` become zero. Small strengths give
    mixtures of one or two domains, large ones stay near the prior.

    Args:
        prior: shape (domains,), summing to 1; domains of prior 0 get weight 0.

    Returns:
        Shape (count, domains), rows summing to 1.
    """
    if len(strengths) == 0 or min(strengths) <= 0:
        raise ConfigError(f"Strengths {list(strengths)} must be positive.")
    if not 0 <= zero_below < 1 / len(prior):
        raise ConfigError(f"zero_below is {zero_below}, it must lie in [0, 1/domains).")
    base = temper(prior, temperature)
    strength = np.asarray(strengths)[rng.integers(len(strengths), size=count)]
    shape = strength[:, None] * base
    used = shape > 0
    safe = np.where(used, shape, 1.0)
    # log Gamma(a) = log Gamma(a + 1) + log(U) / a keeps shapes of 1e-3 from underflowing.
    log_gamma = np.log(rng.standard_gamma(safe + 1.0)) + np.log1p(-rng.random(safe.shape)) / safe
    log_gamma = np.where(used, log_gamma, -np.inf)
    weights = np.exp(log_gamma - log_gamma.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    weights[weights < zero_below] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def project(points: FloatArray, lower: FloatArray, upper: FloatArray, total: float = 1.0) -> FloatArray:
    """Euclidean projection of each row onto {x : lower <= x <= upper, sum x = total}.

    The answer is clip(y - t, lower, upper) for the one t that makes it sum to the total. That sum falls piecewise linearly in t with breakpoints
    y - upper and y - lower, so t lies on a segment found by sorting. Rows already in the set come back unchanged.

    Args:
        points: shape (n, domains).
        lower, upper: shape (domains,), or (n, domains) where every row has its own, with sum(lower) <= total <= sum(upper) up to 1e-9.
    """
    assert np.all(lower <= upper), "empty set: MixtureSpace checks this"
    assert np.all(lower.sum(axis=-1) <= total + 1e-9), "empty set: MixtureSpace checks this"
    assert np.all(total <= upper.sum(axis=-1) + 1e-9), "empty set: MixtureSpace checks this"
    inside = np.all((points >= lower) & (points <= upper), axis=1) & (np.abs(points.sum(axis=1) - total) <= ON_SIMPLEX)
    shift = _shift(points, lower, upper, total)
    clipped = np.clip(points - shift[:, None], lower, upper)
    # One exact step within the segment removes the rounding of the cumulative sums.
    free = (clipped > lower) & (clipped < upper)
    missing = total - clipped.sum(axis=1)
    clipped = np.clip(clipped + np.where(free, (missing / np.maximum(free.sum(axis=1), 1))[:, None], 0.0), lower, upper)
    return np.where(inside[:, None], points, clipped)


def _shift(points: FloatArray, lower: FloatArray, upper: FloatArray, total: float) -> FloatArray:
    """The t of each row for which clip(row - t, lower, upper) sums to the total, shape (n,)."""
    breaks = np.concatenate([points - upper, points - lower], axis=1)
    # Past y - upper a coordinate starts to fall, past y - lower it has stopped.
    change = np.concatenate([-np.ones_like(points), np.ones_like(points)], axis=1)
    order = np.argsort(breaks, axis=1, kind="stable")
    breaks = np.take_along_axis(breaks, order, axis=1)
    slope = np.cumsum(np.take_along_axis(change, order, axis=1), axis=1)
    falls = np.cumsum(slope[:, :-1] * np.diff(breaks, axis=1), axis=1)
    sums = upper.sum(axis=-1).reshape(-1, 1) + np.concatenate([np.zeros((len(points), 1)), falls], axis=1)
    # The last breakpoint whose sum is still at least the total; beyond it the sum falls with the slope of its segment.
    segment = np.maximum((sums >= total).sum(axis=1) - 1, 0)
    rows = np.arange(len(points))
    excess = sums[rows, segment] - total
    steepness = -slope[rows, segment]
    return np.asarray(breaks[rows, segment] + np.where(steepness > 0.5, excess / np.maximum(steepness, 1.0), 0.0))


def kl_divergence(weights: FloatArray, prior: FloatArray) -> FloatArray:
    """KL(weights || prior) in nats over the last axis; 0 log 0 = 0, infinite where weight lies on a domain of prior 0."""
    positive = weights > 0
    # Divided in log space: a ratio of denormal weights would under- or overflow.
    with np.errstate(divide="ignore"):
        log_ratio = np.where(positive, np.log(np.where(positive, weights, 1.0)) - np.log(prior), 0.0)
    return np.asarray(np.where(positive, weights * log_ratio, 0.0).sum(axis=-1))


def round_counts(weights: FloatArray, total: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Whole counts that sum to `total` and differ from weights * total by less than 1 each: largest remainder.

    Args:
        weights: shape (..., domains), each row summing to 1. Domains of weight 0 get count 0; ties go to the first domain.
    """
    if total < 0:
        raise ConfigError(f"A total of {total} cannot be split.")
    exact = weights * total
    floors = np.floor(exact)
    remainder = np.where(weights > 0, exact - floors, -1.0)
    missing = total - floors.sum(axis=-1, keepdims=True)
    rank = np.argsort(np.argsort(-remainder, axis=-1, kind="stable"), axis=-1, kind="stable")
    return np.asarray(floors + (rank < missing), dtype=np.int64)
