"""What bounds the units of a search and its groups, and the smallest relaxation where that leaves no mixture.

A domain's weight is its share of its unit's, so what bounds a domain, or a group inside the unit, bounds the unit. A remedy is found by
trying: the domains with one cap or bound changed by what is missing, offered only if that suffices. The main trade-off: one constraint is
relaxed at a time, the cheapest that suffices alone; where none does, all epoch caps are scaled together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from mixopt.domains import DomainSet
from mixopt.errors import InfeasibleError
from mixopt.feasibility import FEASIBLE_WITHIN, capped_bounds, quoted, round_up, upper_reason
from mixopt.groups.nested import Node, SumBound, build_tree
from mixopt.groups.rules import GroupRule, ancestors, frozen_paths, group_members
from mixopt.mixture import FloatArray

# Epoch caps are scaled by at most so much before they are said not to be the reason.
LARGEST_FACTOR = 1e6


@dataclass(frozen=True)
class Limit:
    """One bound on the weight of a unit.

    Attributes:
        value: of the unit's weight.
        reason: a clause, as "bounds allow at most 0.3".
        owner: the domain or group whose bound or cap it is.
        share: of the owner in the unit.
        epochs: whether it is an epoch cap.
    """

    value: float
    reason: str
    owner: str
    share: float
    epochs: bool = False


@dataclass(frozen=True)
class UnitLimits:
    """Everything that bounds one unit, from below and from above; at least one of each."""

    lower: tuple[Limit, ...]
    upper: tuple[Limit, ...]

    @property
    def least(self) -> Limit:
        return max(self.lower, key=lambda limit: limit.value)

    @property
    def most(self) -> Limit:
        return min(self.upper, key=lambda limit: limit.value)


def unit_limits(domains: DomainSet) -> list[UnitLimits]:
    """The limits of each unit, in the order of `domains.units`."""
    units, limits = domains.units, domains.epoch_limits().tolist()
    below: list[list[Limit]] = [[] for _ in units.names]
    above: list[list[Limit]] = [[] for _ in units.names]

    def add(unit: int, owner: str, whole: bool, share: float, bounds: tuple[float, float], most: str, epochs: bool = False) -> None:
        inner = "" if whole else owner
        least = f"bounds ask for at least {bounds[0]:.3g}"
        if share > 0 or bounds[0] > 0:
            value = bounds[0] / share if share > 0 else math.inf
            below[unit].append(Limit(value, _of_unit(inner, share, least, f"at least {value:.3g}"), owner, share))
        if share > 0:
            value = min(bounds[1] / share, 1.0)
            above[unit].append(Limit(value, _of_unit(inner, share, most, f"at most {value:.3g}"), owner, share, epochs))

    for index, (domain, least, most) in enumerate(
        zip(domains.domains, *(bounds.tolist() for bounds in capped_bounds(domains)), strict=True)
    ):
        reason, epochs = upper_reason(domain, limits[index]), limits[index] < domain.bounds[1]
        unit = int(units.owner[index])
        add(unit, domain.name, not units.is_group(unit), float(units.share[index]), (least, most), reason, epochs)
    for rule, unit, share in _rules_on_units(domains):
        add(unit, rule.path, rule.path == units.titles[unit], share, rule.bounds, f"bounds allow at most {rule.bounds[1]:.3g}")
    return [UnitLimits(tuple(lower), tuple(upper)) for lower, upper in zip(below, above, strict=True)]


def _of_unit(inner: str, share: float, clause: str, whole: str) -> str:
    """The clause, and what it means for the unit where it speaks of a part of it."""
    return f"{inner} is {share:.1%} of it and {clause}, so all of it {whole}" if inner else clause


def _rules_on_units(domains: DomainSet) -> Iterator[tuple[GroupRule, int, float]]:
    """Rules with bounds on a unit or on a group inside one, with the unit and the group's share in it."""
    members, units = group_members(domains.group_paths), domains.units
    frozen = set(frozen_paths(domains.group_paths, domains.rules))
    for rule in domains.rules:
        if rule.bounds != (0.0, 1.0) and frozen & set(ancestors(rule.path)):
            inside = [domains.names.index(name) for name in members[rule.path]]
            yield rule, int(units.owner[inside[0]]), math.fsum(units.share[inside].tolist())


def sum_bounds(domains: DomainSet) -> tuple[SumBound, ...]:
    """Bounds on groups of several units, outer groups first."""
    paths, units = domains.group_paths, domains.units
    frozen = set(frozen_paths(paths, domains.rules))
    rules = {rule.path: rule for rule in domains.rules}
    found = []
    for path, members in group_members(paths).items():
        rule = rules.get(path)
        if rule is not None and rule.bounds != (0.0, 1.0) and not frozen & set(ancestors(path)):
            inside = sorted({int(units.owner[domains.names.index(name)]) for name in members})
            found.append(SumBound(path, tuple(inside), *rule.bounds))
    return tuple(found)


def check_groups(domains: DomainSet) -> None:
    """Finds a mixture that keeps the rules on groups too. `feasibility.check_domains` has passed the domains.

    Raises:
        InfeasibleError: there is none.
    """
    limits = unit_limits(domains)
    for title, unit in zip(domains.units.titles, limits, strict=True):
        if unit.least.value > unit.most.value + FEASIBLE_WITHIN:
            raise InfeasibleError(
                f"No mixture is feasible: group '{title}' has given shares; {unit.least.reason}, but {unit.most.reason}.",
                _unit_remedy(domains, unit),
            )
    root, lower, upper = _tree(domains, limits)
    for node in root.inner_first():
        _check_node(domains, node, lower, upper)


def is_feasible(domains: DomainSet) -> bool:
    """Whether any mixture keeps bounds, caps and rules."""
    lower, upper = capped_bounds(domains)
    limits = unit_limits(domains)
    if np.any(lower > upper + FEASIBLE_WITHIN) or any(unit.least.value > unit.most.value + FEASIBLE_WITHIN for unit in limits):
        return False
    root, _, _ = _tree(domains, limits)
    inner = all(node.least <= node.largest + FEASIBLE_WITHIN for node in root.inner_first())
    return inner and root.least <= 1 + FEASIBLE_WITHIN and root.largest >= 1 - FEASIBLE_WITHIN


def _tree(domains: DomainSet, limits: list[UnitLimits]) -> tuple[Node, FloatArray, FloatArray]:
    upper = np.array([unit.most.value for unit in limits])
    lower = np.minimum([unit.least.value for unit in limits], upper)
    return build_tree(lower, upper, sum_bounds(domains)), lower, upper


def _unit_remedy(domains: DomainSet, unit: UnitLimits) -> str:
    """Lower what asks for too much, or raise all that allow too little."""
    least, most = unit.least, unit.most
    lowered = [
        f"lower the least weight of '{limit.owner}' to {_down(most.value * limit.share):g}"
        for limit in unit.lower
        if limit.value > most.value
    ]
    raised = []
    for limit in unit.upper if least.value <= 1 else ():
        if limit.value < least.value and limit.epochs:
            raised.append(f"`max_epochs` of '{limit.owner}' to {_epochs_for(domains, limit.owner, least.value * limit.share):g}")
        elif limit.value < least.value:
            raised.append(f"the largest weight of '{limit.owner}' to {_up(least.value * limit.share):g}")
    hint = " and ".join(lowered) + (f", or raise {' and '.join(raised)}" if raised else "")
    return f"{hint[0].upper()}{hint[1:]}."


def _check_node(domains: DomainSet, node: Node, lower: FloatArray, upper: FloatArray) -> None:
    """One bounded group, or everything: what lies in it can reach its bounds."""
    least, most = node.parts_least(lower), node.parts_largest(upper)
    path = node.bound.path if node.bound else ""
    floor, ceiling = (node.bound.least, node.bound.largest) if node.bound else (1.0, 1.0)
    parts = _parts(domains, node, lower, upper)
    if least > ceiling + FEASIBLE_WITHIN:
        listed = ", ".join(f"{name} {low:.4g}" for name, low, _ in parts if low > 0)
        if node.bound:
            message = f"the least weights in group '{path}' sum to {least:.4g}, but its bounds allow at most {ceiling:.4g} ({listed})"
            hint = f"Raise the largest weight of '{path}' to {_up(least):g}, or lower those in it by {least - ceiling:.4g} in total."
        else:
            message = f"the least weights sum to {least:.4g}, {least - 1:.4g} too much ({listed})"
            hint = f"Lower several by {least - 1:.4g} in total."
        raise InfeasibleError(f"No mixture is feasible: {message}.", _lowered(domains, least - ceiling) or hint)
    if most < floor - FEASIBLE_WITHIN:
        listed, short = ", ".join(f"{name} {high:.4g}" for name, _, high in parts), floor - most
        if node.bound:
            message = f"group '{path}' must weigh at least {floor:.4g}, but what is in it can weigh {most:.4g} together ({listed})"
            raised = _raised(domains, short, path)
            hint = (
                f"Lower the least weight of '{path}' to {_down(most):g}" + (f", or {raised[0].lower()}{raised[1:]}" if raised else "") + "."
            )
        else:
            message = f"the largest weights sum to {most:.4g}, {short:.4g} short of 1 ({listed})"
            message += f", which is {short * domains.budget_tokens:.3g} of the {domains.budget_tokens:.3g} budget tokens"
            hint = f"{_raised(domains, short) or _scaled(domains) or 'Raise several largest weights in `bounds`, then the epoch caps'}."
        raise InfeasibleError(f"No mixture is feasible: {message}.", hint)


def _parts(domains: DomainSet, node: Node, lower: FloatArray, upper: FloatArray) -> list[tuple[str, float, float]]:
    """Name, least and largest weight of what lies right below a node."""
    titles = domains.units.titles
    leaves = [(titles[leaf], float(lower[leaf]), float(upper[leaf])) for leaf in node.leaves]
    return leaves + [(part.bound.path, part.least, part.largest) for part in node.parts if part.bound]


def _lowered(domains: DomainSet, excess: float) -> str:
    """The one least weight, the largest there is, whose lowering suffices; empty where none does."""
    found: list[tuple[float, str, DomainSet]] = []
    for domain, share in zip(domains.domains, domains.units.share.tolist(), strict=True):
        value = _down(domain.bounds[0] - excess * share)
        if value >= 0:
            changed = with_bounds(domains, domain.name, (value, domain.bounds[1]))
            found.append((domain.bounds[0], f"Lower the least weight of '{domain.name}' to {value:g}.", changed))
    shares = {rule.path: share for rule, _, share in _rules_on_units(domains)}
    for rule in domains.rules:
        value = _down(rule.bounds[0] - excess * shares.get(rule.path, 1.0))
        if value >= 0:
            changed = with_rule(domains, rule, (value, rule.bounds[1]))
            found.append((rule.bounds[0], f"Lower the least weight of group '{rule.path}' to {value:g}.", changed))
    return next((text for _, text, changed in sorted(found, key=lambda item: -item[0]) if is_feasible(changed)), "")


def _raised(domains: DomainSet, short: float, path: str = "") -> str:
    """The one cap or bound (inside the group `path`) whose raising suffices; epochs before bounds, the least change first."""
    inside = set(group_members(domains.group_paths)[path]) if path else set(domains.names)
    units, upper = domains.units, [unit.most.value for unit in unit_limits(domains)]
    found: list[tuple[int, float, str, DomainSet]] = []
    for index, domain in enumerate(domains.domains):
        wanted = (upper[units.owner[index]] + short) * float(units.share[index])
        if domain.name not in inside or not 0 < wanted <= 1 + FEASIBLE_WITHIN:
            continue
        epochs = _epochs_for(domains, domain.name, wanted)
        if epochs > domain.max_epochs:
            text = f"Raise `max_epochs` of '{domain.name}' from {domain.max_epochs:g} to {epochs:g}"
            found.append((0, epochs - domain.max_epochs, text, with_epochs(domains, {domain.name: epochs})))
        if wanted > domain.bounds[1]:
            most = min(_up(wanted), 1.0)
            text = f"Raise the largest weight of '{domain.name}' in `bounds` to {most:g}"
            found.append((1, most - domain.bounds[1], text, with_bounds(domains, domain.name, (domain.bounds[0], most))))
    shares = {rule.path: share for rule, _, share in _rules_on_units(domains)}
    for rule in domains.rules:
        if rule.bounds[1] < 1 and (not path or path in ancestors(rule.path)[:-1]):
            most = min(_up(rule.bounds[1] + short * shares.get(rule.path, 1.0)), 1.0)
            text = f"Raise the largest weight of group '{rule.path}' to {most:g}"
            found.append((1, most - rule.bounds[1], text, with_rule(domains, rule, (rule.bounds[0], most))))
    return next((text for _, _, text, changed in sorted(found, key=lambda item: item[:2]) if is_feasible(changed)), "")


def _scaled(domains: DomainSet) -> str:
    """The least factor on all epoch caps that suffices; empty where bounds alone forbid every mixture."""

    def scaled(factor: float) -> DomainSet:
        return with_epochs(domains, {domain.name: domain.max_epochs * factor for domain in domains.domains})

    if not is_feasible(scaled(LARGEST_FACTOR)):
        return ""
    low, high = 1.0, LARGEST_FACTOR
    while high - low > 1e-4 * low:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if is_feasible(scaled(middle)) else (middle, high)
    capped = [domain.name for domain, limit in zip(domains.domains, domains.epoch_limits(), strict=True) if limit < domain.bounds[1]]
    return f"Multiply `max_epochs` of {quoted(capped)} by {round_up(high):g}"


def _epochs_for(domains: DomainSet, name: str, weight: float) -> float:
    """The cap, rounded up, at which a domain may weigh `weight`."""
    index = domains.names.index(name)
    return round_up(domains.domains[index].max_epochs * weight / float(domains.epoch_limits()[index]))


def with_epochs(domains: DomainSet, caps: dict[str, float]) -> DomainSet:
    """The domains with other epoch caps, by name."""
    changed = (replace(domain, max_epochs=caps.get(domain.name, domain.max_epochs)) for domain in domains.domains)
    return replace(domains, domains=tuple(changed))


def with_bounds(domains: DomainSet, name: str, bounds: tuple[float, float]) -> DomainSet:
    """The domains with other bounds on one."""
    changed = (replace(domain, bounds=bounds) if domain.name == name else domain for domain in domains.domains)
    return replace(domains, domains=tuple(changed))


def with_rule(domains: DomainSet, rule: GroupRule, bounds: tuple[float, float]) -> DomainSet:
    """The domains with other bounds on the group of a rule."""
    return replace(domains, rules=tuple(replace(other, bounds=bounds) if other == rule else other for other in domains.rules))


def _up(weight: float) -> float:
    return math.ceil(weight * 1e4 - FEASIBLE_WITHIN) / 1e4


def _down(weight: float) -> float:
    return math.floor(weight * 1e4 + FEASIBLE_WITHIN) / 1e4
