"""Whether limits on the mixture as a whole leave any; if not: by how much they miss, and the smallest relaxation.

Bounds, epoch caps and rules on groups have been checked before, so that what is missing here is the fault of these limits. The main trade-off: what is
offered relaxes a number of domains or a distance, the one that was just asked for, and not the caps that stand in their way; those are named.
"""

from __future__ import annotations

import math

import numpy as np

from mixopt.constraints.placed import ball_of, most_domains_of
from mixopt.constraints.programs import Polytope, Reached, fewest_domains, least_distance
from mixopt.constraints.rules import Ball
from mixopt.constraints.supports import feasible_supports
from mixopt.domains import DomainSet
from mixopt.errors import InfeasibleError
from mixopt.feasibility import FEASIBLE_WITHIN
from mixopt.mixture import FloatArray

# Of what stands in the way so much is named.
NAMED = 4


def check_constraints(domains: DomainSet, polytope: Polytope) -> None:
    """Finds a mixture that keeps the limits on the whole, too. `feasibility.check_domains` and `groups.limits.check_groups` have passed the domains.

    Raises:
        InfeasibleError: there is none.
    """
    most, ball = most_domains_of(domains), ball_of(domains)
    if most is not None:
        _check_count(domains, polytope, most, ball)
    if ball is None:
        return
    nearest = least_distance(polytope, ball)
    assert nearest is not None, "bounds and groups have been checked"
    if nearest.value > ball.distance + FEASIBLE_WITHIN:
        within_count = nearest if most is None else least_distance(polytope, ball, most)
        assert within_count is not None, "the number of domains has been checked"
        raise InfeasibleError(
            f"No mixture is feasible: bounds, caps and groups keep every mixture at least {nearest.value:.4g} of the tokens away from {ball.title}, "
            f"but `constraints.near` allows {ball.distance:.4g} ({_moved(domains, polytope, ball, nearest)}).",
            f"Raise `constraints.near.distance` to {_up(within_count.value):g}, or name a mixture that keeps them.",
        )
    if most is not None:
        _check_both(domains, polytope, ball, most)


def _check_count(domains: DomainSet, polytope: Polytope, most: int, ball: Ball | None) -> None:
    fewest = fewest_domains(polytope)
    assert fewest is not None, "bounds and groups have been checked"
    needed = _count(polytope, None, fewest)
    if needed <= most:
        return
    forced = [name for name, least in zip(domains.units.titles, polytope.lower.tolist(), strict=True) if least > 0]
    counts = domains.units.counts[polytope.lower > 0].sum()
    if counts > most:
        why = f"{int(counts)} domains have a least weight above 0 ({_listed(forced)})"
    else:
        largest = sorted(zip(polytope.upper.tolist(), domains.units.titles, strict=True), key=lambda item: (-item[0], item[1]))
        shown = ", ".join(f"{name} {weight:.4g}" for weight, name in largest[:NAMED])
        why = f"no mixture of fewer keeps bounds, caps and groups (largest weights: {shown}{', ...' if len(largest) > NAMED else ''})"
    raise InfeasibleError(
        f"No mixture is feasible: `constraints.most_domains` allows {_domains(most)}, but at least {needed} are needed, for {why}.",
        _more_domains(polytope, ball, needed),
    )


def _more_domains(polytope: Polytope, ball: Ball | None, needed: int) -> str:
    """As many domains as bounds need, or as a distance needs too; where no number suffices for that, a distance on top."""
    fewest = fewest_domains(polytope, ball) if ball is not None else None
    if ball is None or fewest is not None:
        return f"Raise `constraints.most_domains` to {needed if fewest is None else _count(polytope, ball, fewest)}."
    nearest = least_distance(polytope, ball, needed)
    assert nearest is not None, "so many domains are enough without a distance"
    return f"Raise `constraints.most_domains` to {needed} and `constraints.near.distance` to {_up(nearest.value):g}."


def _check_both(domains: DomainSet, polytope: Polytope, ball: Ball, most: int) -> None:
    nearest = least_distance(polytope, ball, most)
    assert nearest is not None, "the number of domains has been checked"
    if nearest.value <= ball.distance + FEASIBLE_WITHIN:
        return
    fewest = fewest_domains(polytope, ball)
    more = f", or `constraints.most_domains` to {_count(polytope, ball, fewest)}" if fewest is not None else ""
    raise InfeasibleError(
        f"No mixture is feasible: every mixture of at most {_domains(most)} is at least {nearest.value:.4g} of the tokens away from {ball.title}, but "
        f"`constraints.near` allows {ball.distance:.4g}.",
        f"Raise `constraints.near.distance` to {_up(nearest.value):g}{more}.",
    )


def _count(polytope: Polytope, ball: Ball | None, fewest: Reached) -> int:
    """The number of domains of the fewest, and one more where that is so only by the solver's tolerance."""
    used = fewest.support & (polytope.upper > 0) | (polytope.lower > 0)
    count = int(used @ polytope.units.counts)
    return count if feasible_supports(polytope, ball, used[None], {})[0] else count + 1


def _moved(domains: DomainSet, polytope: Polytope, ball: Ball, nearest: Reached) -> str:
    """The domains in which even the nearest mixture differs most from the centre, as "web at most 0.3 instead of 0.42"."""
    weights: FloatArray = domains.units.expand(nearest.weights)
    gaps = weights - ball.centre
    # Of gaps alike those first that bounds keep low: they are why.
    most = np.lexsort((gaps, -np.abs(gaps).round(9)))[:NAMED]
    return ", ".join(
        f"{domains.names[index]} {weights[index]:.3g} instead of {ball.centre[index]:.3g}"
        for index in most
        if abs(gaps[index]) > FEASIBLE_WITHIN
    )


def _listed(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _domains(count: int) -> str:
    return f"{count} domain{'' if count == 1 else 's'}"


def _up(distance: float) -> float:
    return math.ceil(distance * 1e4 - FEASIBLE_WITHIN) / 1e4
