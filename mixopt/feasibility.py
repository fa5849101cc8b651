"""Whether bounds and epoch caps of single domains leave any mixture; if not: what is wrong, by how much, and the smallest relaxation.

What rules on groups add is in `groups.limits`. The main trade-off: the cheapest one constraint that suffices alone is relaxed; where none does,
all epoch caps are scaled together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mixopt.domains import Domain, DomainSet
from mixopt.errors import InfeasibleError
from mixopt.mixture import FloatArray

# Sums of bounds may miss 1 by float error and no more.
FEASIBLE_WITHIN = 1e-9


def check_domains(domains: DomainSet) -> None:
    """Bounds against epoch caps of each domain and, where no rule on groups changes them, their sums.

    Raises:
        InfeasibleError: there is no mixture.
    """
    lower, upper = capped_bounds(domains)
    limits = domains.epoch_limits()
    _check_each(domains, lower, limits)
    if not domains.rules:
        _check_least(domains, lower)
        _check_largest(domains, upper, limits)


def round_up(value: float) -> float:
    """Up to two decimals: what is suggested must really suffice."""
    return math.ceil(value * 100 - FEASIBLE_WITHIN) / 100


def _check_each(domains: DomainSet, lower: FloatArray, limits: FloatArray) -> None:
    """A least weight above the domain's own epoch cap."""
    clashes: list[tuple[str, str]] = []
    for domain, least, limit in zip(domains.domains, lower.tolist(), limits.tolist(), strict=True):
        if least > limit + FEASIBLE_WITHIN:
            needed = round_up(least * domains.budget_tokens / domain.unique_target_tokens)
            clashes.append(
                (
                    f"'{domain.name}' must weigh at least {least:.4g}, but {domain.max_epochs:g} epochs allow {limit:.4g}",
                    f"raise `max_epochs` of '{domain.name}' to {needed:g} or lower its least weight to {math.floor(limit * 1e4) / 1e4:g}",
                )
            )
    if clashes:
        hint = "; ".join(remedy for _, remedy in clashes)
        raise InfeasibleError(f"No mixture is feasible: {'; '.join(problem for problem, _ in clashes)}.", f"{hint[0].upper()}{hint[1:]}.")


def _check_least(domains: DomainSet, lower: FloatArray) -> None:
    """Least weights that sum to more than 1."""
    excess = float(lower.sum()) - 1
    if excess <= FEASIBLE_WITHIN:
        return
    listed = ", ".join(f"{domain.name} {least:.4g}" for domain, least in zip(domains.domains, lower.tolist(), strict=True) if least > 0)
    largest = int(np.argmax(lower))
    if lower[largest] >= excess:
        value = math.floor((lower[largest] - excess) * 1e4 + FEASIBLE_WITHIN) / 1e4
        hint = f"Lower that of '{domains.names[largest]}' to {value:g}, or several by {excess:.4g} in total."
    else:
        hint = f"Lower several by {excess:.4g} in total."
    raise InfeasibleError(f"No mixture is feasible: the least weights sum to {1 + excess:.4g}, {excess:.4g} too much ({listed}).", hint)


def _check_largest(domains: DomainSet, upper: FloatArray, limits: FloatArray) -> None:
    """Largest weights that sum to less than 1."""
    short = 1 - float(upper.sum())
    if short <= FEASIBLE_WITHIN:
        return
    listed = ", ".join(f"{domain.name} {most:.4g}" for domain, most in zip(domains.domains, upper.tolist(), strict=True))
    raise InfeasibleError(
        f"No mixture is feasible: the largest weights sum to {1 - short:.4g}, {short:.4g} short of 1 ({listed}), "
        f"which is {short * domains.budget_tokens:.3g} of the {domains.budget_tokens:.3g} budget tokens.",
        _cheapest_relaxation(domains, upper, limits, short),
    )


def _cheapest_relaxation(domains: DomainSet, upper: FloatArray, limits: FloatArray, short: float) -> str:
    """The one cap that has to rise least, else what all caps together have to do."""
    wanted = upper + short
    # Raising the cap of one domain alone must not run into its user bound; the cheapest costs the fewest additional epochs.
    epochs = wanted * domains.budget_tokens / domains.unique_target_tokens
    bounds = np.array([domain.bounds[1] for domain in domains.domains])
    capped = limits < bounds
    extra = np.where(capped & (wanted <= bounds), epochs - np.array([domain.max_epochs for domain in domains.domains]), np.inf)
    best = int(np.argmin(extra))
    if np.isfinite(extra[best]):
        return (
            f"Raise `max_epochs` of '{domains.names[best]}' from {domains.domains[best].max_epochs:g} to {round_up(float(epochs[best])):g}."
        )
    if not capped.any():
        loosest = int(np.argmax(bounds))
        return f"Raise the largest weight of '{domains.names[loosest]}' in `bounds` to {min(round_up(float(wanted[loosest])), 1.0):g}."
    factor = _common_factor(limits, bounds)
    if factor is not None:
        return f"Multiply `max_epochs` of {quoted([n for n, c in zip(domains.names, capped, strict=True) if c])} by {round_up(factor):g}."
    return f"The largest weights in `bounds` sum to {bounds.sum():.4g}; raise them until they sum to at least 1, then the epoch caps."


def _common_factor(limits: FloatArray, bounds: FloatArray) -> float | None:
    """The least factor on all epoch caps that makes the space non-empty, None if user bounds alone forbid it."""
    if bounds.sum() < 1:
        return None
    # The sum of min(factor * limit, bound) is concave and piecewise linear in the factor, with kinks at bound / limit.
    kinks = np.sort(bounds / limits)
    reached = int(np.argmax(np.minimum(kinks[:, None] * limits, bounds).sum(axis=1) >= 1 - FEASIBLE_WITHIN))
    free = bounds / limits >= kinks[reached]
    return float((1 - bounds[~free].sum()) / limits[free].sum())


def quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def capped_bounds(domains: DomainSet) -> tuple[FloatArray, FloatArray]:
    """Least and largest weight of each domain on its own, by bounds and epoch caps, each of shape (domains,)."""
    lower = np.array([domain.bounds[0] for domain in domains.domains], dtype=np.float64)
    upper = np.minimum([domain.bounds[1] for domain in domains.domains], np.minimum(domains.epoch_limits(), 1.0))
    return lower, upper


def upper_reason(domain: Domain, limit: float) -> str:
    """Why a domain weighs no more, where `limit` is the largest weight that its epoch cap allows."""
    if limit < domain.bounds[1]:
        return f"{domain.max_epochs:g} epochs allow at most {limit:.3g}"
    return f"bounds allow at most {domain.bounds[1]:.3g}"
