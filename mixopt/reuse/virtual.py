"""The virtual domain of mixture reuse (Olmix, arXiv 2602.12237): what is kept moves as one unit, in the shares that it had.

Here that unit is a group of given shares, which searches know already; so a plan of reuse is an experiment file like any other. The main trade-off: groups
are nested, so a bound on a group that is kept in part cannot be said, and is refused.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from mixopt.domains import DomainSet
from mixopt.errors import ConfigError
from mixopt.groups.rules import GroupRule, Shares, ancestors, children_of, frozen_paths, group_members

GROUP = "kept"
# Shares are written with so many decimals; the largest takes what rounding leaves.
DECIMALS = 9


def expand(shares: Mapping[str, float], units: Mapping[str, float], virtual: str) -> dict[str, float]:
    """Weights of domains from weights of units, of which `virtual` stands for the domains of `shares`: q_j = rho p_j (Olmix, section on reuse)."""
    total = math.fsum(shares.values())
    rest = {name: weight for name, weight in units.items() if name != virtual}
    return {**{name: units[virtual] * share / total for name, share in shares.items()}, **rest}


def closed(names: Collection[str], paths: Mapping[str, str], rules: Sequence[GroupRule]) -> set[str]:
    """The domains of `names`, and those that groups of given shares hold together with them."""
    members = group_members(paths)
    together = [set(members[path]) for path in frozen_paths(paths, rules)]
    return set(names).union(*(group for group in together if group & set(names)))


def with_kept(domains: DomainSet, shares: Mapping[str, float]) -> DomainSet:
    """The domains, of which those in `shares` (two or more, of some weight) are one unit in these shares.

    Raises:
        ConfigError: a bounded group holds kept domains and others.
    """
    paths, rules = regrouped(domains.group_paths, domains.rules, shares)
    return replace(domains, domains=tuple(replace(d, group=paths[d.name]) for d in domains.domains), rules=rules)


def regrouped(
    paths: Mapping[str, str], rules: Sequence[GroupRule], shares: Mapping[str, float]
) -> tuple[dict[str, str], tuple[GroupRule, ...]]:
    """Domain -> path of its group, and the rules, once the domains of `shares` are one group of these shares; groups inside it stay groups.

    Raises:
        ConfigError: a bounded group holds kept domains and others.
    """
    members = group_members(paths)
    inside = set(shares)
    for rule in rules:
        held = set(members[rule.path])
        if held & inside and not held <= inside:
            others = sorted(held - inside)
            raise ConfigError(
                f"Group '{rule.path}' has rules, and of its domains {', '.join(sorted(held & inside))} would be kept as they are and "
                f"{', '.join(others)} measured anew.",
                f"Take the rules off '{rule.path}', or use `--reuse none`.",
            )
    outer = _unused(GROUP, {ancestors(path)[0] for path in paths.values() if path})
    nested = {name: f"{outer}/{path}" if name in inside and path else outer if name in inside else path for name, path in paths.items()}
    try:
        return nested, _rules(nested, outer, rules, inside, shares, members)
    except ConfigError:  # a domain and a group inside have the same name: labels go, for shares could mean either
        if any(rule.bounds != (0.0, 1.0) and set(members[rule.path]) <= inside for rule in rules):
            raise
    flat = {name: outer if name in inside else path for name, path in paths.items()}
    return flat, _rules(flat, outer, [rule for rule in rules if not set(members[rule.path]) & inside], set(), shares, members)


def _rules(
    paths: Mapping[str, str],
    outer: str,
    rules: Sequence[GroupRule],
    inside: Collection[str],
    shares: Mapping[str, float],
    members: Mapping[str, Sequence[str]],
) -> tuple[GroupRule, ...]:
    """Those on other groups as they are; on every group of what is kept the shares that the kept domains have."""
    moved = {f"{outer}/{rule.path}": rule for rule in rules if set(members[rule.path]) <= set(inside)}
    result = [rule for rule in rules if f"{outer}/{rule.path}" not in moved]
    for path in group_members(paths):
        if outer in ancestors(path):
            bounds = moved[path].bounds if path in moved else (0.0, 1.0)
            result.append(GroupRule(path, _shares_of(path, paths, shares), bounds))
    return tuple(result)


def _shares_of(path: str, paths: Mapping[str, str], shares: Mapping[str, float]) -> Shares:
    parts = {child: math.fsum(shares[name] for name in names) for child, names in children_of(path, paths).items()}
    total = math.fsum(parts.values())
    if total <= 0:
        return "natural"  # none of it is used, in whatever split
    rounded = {child: round(part / total, DECIMALS) for child, part in parts.items()}
    largest = max(rounded, key=lambda child: rounded[child])
    rounded[largest] = round(rounded[largest] + 1 - math.fsum(rounded.values()), DECIMALS)
    return tuple(rounded.items())


def _unused(name: str, taken: Collection[str]) -> str:
    return next(tried for tried in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3))) if tried not in taken)
