"""The feasible mixtures: bounds per domain from the user and from epoch caps, each remembered with its reason.

Constraints belong here and in the optimizer, not in the swarm (Olmix, arXiv 2602.12237: caps in the optimizer alone gave .7647, in both
.7855): proxies are trained on infeasible mixtures too, because that is where a domain's effect shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.domains import Domain, DomainSet
from mixopt.errors import InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.simplex import project, sample_dirichlet

BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]

# Sums of bounds may miss 1 by float error and no more.
FEASIBLE_WITHIN = 1e-9
# A weight this near to its bound is held by it: a thousandth of the smallest step a proxy can express.
BINDING_WITHIN = 1e-4


@dataclass(frozen=True, eq=False)
class MixtureSpace:
    """Mixtures with lower <= weights <= upper. Build it with `from_domains`, which checks that there are any.

    Attributes:
        domains: names of the last axis of every array here.
        lower, upper: least and largest weight, shape (domains,).
        lower_reasons, upper_reasons: why, as clauses ("4 epochs allow at most 0.083").
    """

    domains: tuple[str, ...]
    lower: FloatArray
    upper: FloatArray
    lower_reasons: tuple[str, ...]
    upper_reasons: tuple[str, ...]

    @classmethod
    def from_domains(cls, domains: DomainSet) -> MixtureSpace:
        """The mixtures that the users' bounds and the epoch caps at the target budget allow.

        Raises:
            InfeasibleError: there are none; says which domains, by how much, and the smallest relaxation.
        """
        limits = domains.epoch_limits()
        lower = np.array([domain.bounds[0] for domain in domains.domains], dtype=np.float64)
        upper = np.minimum([domain.bounds[1] for domain in domains.domains], np.minimum(limits, 1.0))
        _check_each(domains, lower, limits)
        _check_least(domains, lower)
        _check_largest(domains, upper, limits)
        # Where a least weight exceeds its cap by float error alone, both are the cap.
        lower = np.minimum(lower, upper)
        reasons = tuple(_upper_reason(domain, limit) for domain, limit in zip(domains.domains, limits.tolist(), strict=True))
        lower_reasons = tuple(f"bounds ask for at least {least:.3g}" for least in lower.tolist())
        for array in (lower, upper):
            array.setflags(write=False)
        return cls(domains.names, lower, upper, lower_reasons, reasons)

    def contains(self, weights: FloatArray, tolerance: float = FEASIBLE_WITHIN) -> BoolArray:
        """Which rows of `weights` (n, domains) are feasible within `tolerance` per weight, shape (n,)."""
        bounded = np.all((weights >= self.lower - tolerance) & (weights <= self.upper + tolerance), axis=-1)
        return np.asarray(bounded & (np.abs(weights.sum(axis=-1) - 1) <= tolerance))

    def project(self, weights: FloatArray) -> FloatArray:
        """The nearest feasible mixture to each row of `weights` (n, domains)."""
        return project(weights, self.lower, self.upper)

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Feasible mixtures spread over interior, faces and corners, shape (count, domains).

        Wide Dirichlet draws, projected: not uniform, but dense where optima lie, on the boundary. Columns are drawn in the order of the
        names, so that listing the domains in another order permutes the draws and changes nothing else.
        """
        dimension = len(self.domains)
        strengths = np.geomspace(0.3, 3.0, 15) * dimension
        draws = sample_dirichlet(rng, np.full(dimension, 1 / dimension), count, strengths.tolist(), zero_below=0.0)
        columns = np.argsort(np.argsort(self.domains))
        # The centre of the box, so that draws reach both ends of every domain also when caps are tight.
        centre = self.project(np.asarray((self.lower + self.upper)[None] / 2))
        stretched = centre + (draws[:, columns] - 1 / dimension) * rng.uniform(0.0, 1.5, (count, 1))
        return self.project(stretched)

    def binding(self, weights: FloatArray, tolerance: float = BINDING_WITHIN) -> tuple[str, ...]:
        """The constraints that hold `weights` (domains,), as sentences. A least weight of 0 is no constraint of the user's."""
        held: list[str] = []
        for index, name in enumerate(self.domains):
            if self.lower[index] == self.upper[index] > 0:
                held.append(f"{name}: fixed at {self.upper[index]:.3g}, since {self.upper_reasons[index]} and {self.lower_reasons[index]}")
                continue
            if weights[index] >= self.upper[index] - tolerance and self.upper[index] < 1:
                held.append(f"{name}: {self.upper_reasons[index]}")
            if weights[index] <= self.lower[index] + tolerance and self.lower[index] > 0:
                held.append(f"{name}: {self.lower_reasons[index]}")
        return tuple(held)


def _upper_reason(domain: Domain, limit: float) -> str:
    if limit < domain.bounds[1]:
        return f"{domain.max_epochs:g} epochs allow at most {limit:.3g}"
    return f"bounds allow at most {domain.bounds[1]:.3g}"


def _round_up(value: float) -> float:
    """Up to two decimals: what is suggested must really suffice."""
    return math.ceil(value * 100 - FEASIBLE_WITHIN) / 100


def _check_each(domains: DomainSet, lower: FloatArray, limits: FloatArray) -> None:
    """A least weight above the domain's own epoch cap."""
    clashes: list[tuple[str, str]] = []
    for domain, least, limit in zip(domains.domains, lower.tolist(), limits.tolist(), strict=True):
        if least > limit + FEASIBLE_WITHIN:
            needed = _round_up(least * domains.budget_tokens / domain.target_tokens)
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
    epochs = wanted * domains.budget_tokens / domains.target_tokens
    bounds = np.array([domain.bounds[1] for domain in domains.domains])
    capped = limits < bounds
    extra = np.where(capped & (wanted <= bounds), epochs - np.array([domain.max_epochs for domain in domains.domains]), np.inf)
    best = int(np.argmin(extra))
    if np.isfinite(extra[best]):
        return f"Raise `max_epochs` of '{domains.names[best]}' from {domains.domains[best].max_epochs:g} to {_round_up(float(epochs[best])):g}."
    if not capped.any():
        loosest = int(np.argmax(bounds))
        return f"Raise the largest weight of '{domains.names[loosest]}' in `bounds` to {min(_round_up(float(wanted[loosest])), 1.0):g}."
    factor = _common_factor(limits, bounds)
    if factor is not None:
        return f"Multiply `max_epochs` of {_list([n for n, c in zip(domains.names, capped, strict=True) if c])} by {_round_up(factor):g}."
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


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
