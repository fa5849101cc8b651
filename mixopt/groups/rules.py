"""Groups of domains: paths of levels such as `web/science/high`, the rules on them, and the units that a search moves.

A domain names its group; every prefix of that path is a group too. A rule may give the split inside a group, which is then searched as one
*unit* with fixed shares of its domains, or bound the weight of a group. Units are the coordinates of a search, domains stay what is trained,
recorded and exported: `Units` converts between the two. The main trade-off: mixtures keep one weight per domain everywhere, also those that
a unit holds together, so that records, baselines outside the rules and exports need no second vocabulary.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import ConfigError
from mixopt.mixture import SUM_TOLERANCE, FloatArray, Mixture
from mixopt.trial import WEIGHT_DECIMALS

SEPARATOR = "/"
# Ends the name of a unit that is a group, which no domain's name can: a group and a domain may share their name.
GROUP_SUFFIX = "/*"

IntArray = NDArray[np.int64]
Shares = Literal["natural"] | tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class GroupRule:
    """What the experiment file says about one group.

    Attributes:
        path: of the group, as `web/science`.
        shares: the split between its children (sub-groups by their last component, and domains): "natural" or (child, share); None: searched.
        bounds: least and largest weight of the whole group.
    """

    path: str
    shares: Shares | None = None
    bounds: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True)
class LevelWeight:
    """One row of `weights_per_level`; shares are of the parent group, or of everything at the first level.

    Attributes:
        level: 1 for the outermost.
    """

    path: str
    level: int
    weight: float
    share: float
    natural: float


@dataclass(frozen=True, eq=False)
class Units:
    """The coordinates of a search: single domains, and groups whose split is given.

    Attributes:
        names: one per unit; a domain's name, or a group's path with `/*`.
        domains: names of the last axis of mixtures over domains.
        owner: index of the unit of each domain, shape (domains,).
        share: of each domain in its unit, shape (domains,); the shares of one unit sum to 1.
    """

    names: tuple[str, ...]
    domains: tuple[str, ...]
    owner: IntArray
    share: FloatArray

    @property
    def are_domains(self) -> bool:
        """Whether every unit is a domain, as without rules: conversions then return what they were given."""
        return self.names == self.domains

    @property
    def titles(self) -> tuple[str, ...]:
        """How sentences call the units: a group by its path."""
        return tuple(name.removesuffix(GROUP_SUFFIX) for name in self.names)

    @property
    def counts(self) -> IntArray:
        """How many domains have weight once the unit has, shape (units,)."""
        return np.bincount(self.owner[self.share > 0], minlength=len(self.names)).astype(np.int64)

    def is_group(self, index: int) -> bool:
        return self.names[index].endswith(GROUP_SUFFIX)

    def expand(self, weights: FloatArray) -> FloatArray:
        """Weights of units (..., units) as weights of domains (..., domains)."""
        return weights if self.are_domains else np.asarray(weights[..., self.owner] * self.share)

    def collapse(self, weights: FloatArray) -> FloatArray:
        """Weights of domains (..., domains), in whatever split, summed to units (..., units)."""
        if self.are_domains:
            return weights
        incidence = (self.owner[:, None] == np.arange(len(self.names))).astype(np.float64)
        return np.asarray(weights @ incidence)

    def expanded(self, mixture: Mixture) -> Mixture:
        """A mixture over units as one over domains, in their order."""
        ordered = mixture.reordered(self.names)
        return ordered if self.are_domains else Mixture.from_array(self.domains, self.expand(ordered.array()))

    def collapsed(self, mixture: Mixture) -> Mixture:
        """A mixture over domains as one over units."""
        return mixture if self.are_domains else Mixture.from_array(self.names, self.collapse(mixture.array(self.domains)))


def ancestors(path: str) -> list[str]:
    """The groups that a path names, outermost first: `a/b` is in `a` and in `a/b`; the empty path is in none."""
    parts = path.split(SEPARATOR) if path else []
    return [SEPARATOR.join(parts[: count + 1]) for count in range(len(parts))]


def parent_of(path: str) -> str:
    """The group around a group; empty at the first level."""
    return path.rpartition(SEPARATOR)[0]


def group_members(paths: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Every group with all its domains, a group right before its sub-groups, otherwise in order of first appearance.

    Args:
        paths: domain -> path of its group, empty for none.
    """
    members: dict[str, list[str]] = {}
    for domain, path in paths.items():
        for group in ancestors(path):
            members.setdefault(group, []).append(domain)

    def walk(parent: str) -> list[str]:
        return [path for group in members if parent_of(group) == parent for path in (group, *walk(group))]

    return {path: tuple(members[path]) for path in walk("")}


def children_of(group: str, paths: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Name of each child of a group -> its domains: sub-groups by their last component, and domains that lie in no sub-group.

    Raises:
        ConfigError: a sub-group and a domain have the same name, so that shares could mean either.
    """
    children: dict[str, tuple[str, ...]] = {}
    for path, domains in group_members(paths).items():
        if parent_of(path) == group:
            children[path.rpartition(SEPARATOR)[2]] = domains
    for domain, path in paths.items():
        if path == group:
            if domain in children:
                raise ConfigError(
                    f"Group '{group}' holds a domain and a group that are both called '{domain}', so its shares could mean either.",
                    "Rename one of them.",
                )
            children[domain] = (domain,)
    return children


def check_rules(paths: Mapping[str, str], rules: Sequence[GroupRule]) -> None:
    """Every rule speaks of a group there is, and shares name exactly its children and sum to 1 (within 1e-6).

    Raises:
        ConfigError: one does not; names the nearest that there is.
    """
    members = group_members(paths)
    for rule in rules:
        if rule.path not in members:
            raise ConfigError(f"'groups' names '{rule.path}', but no domain is in that group.", _nearest(rule.path, members, "Groups"))
        if isinstance(rule.shares, tuple):
            _check_shares(rule.path, dict(rule.shares), children_of(rule.path, paths))


def _check_shares(path: str, shares: Mapping[str, float], children: Iterable[str]) -> None:
    known = list(children)
    for child in shares:
        if child not in known:
            raise ConfigError(f"The shares of group '{path}' name '{child}', which is not in it.", _nearest(child, known, "It holds"))
    missing = [child for child in known if child not in shares]
    if missing:
        raise ConfigError(
            f"The shares of group '{path}' leave out {_quoted(missing)}.",
            "Name every child, with 0 for what is not used, or write `shares: natural`.",
        )
    for child, share in shares.items():
        if not (math.isfinite(share) and share >= 0):
            raise ConfigError(f"The share of '{child}' in group '{path}' is {share}.", "Shares are at least 0 and sum to 1.")
    total = math.fsum(shares.values())
    if abs(total - 1) > SUM_TOLERANCE:
        raise ConfigError(f"The shares of group '{path}' sum to {total:.9g}.", "Shares are of the group's tokens and sum to 1.")


def frozen_paths(paths: Mapping[str, str], rules: Sequence[GroupRule]) -> tuple[str, ...]:
    """The outermost groups whose split is given; what lies in them is fixed as well."""
    given = {rule.path for rule in rules if rule.shares is not None}
    return tuple(path for path in group_members(paths) if path in given and not given & set(ancestors(path)[:-1]))


def split_of(path: str, paths: Mapping[str, str], tokens: Mapping[str, float], rules: Sequence[GroupRule]) -> dict[str, float]:
    """Domain -> share of a group, by the shares given on it and on groups in it, and by tokens where none are; sums to 1."""
    shares = next((rule.shares for rule in rules if rule.path == path), None)
    if path not in group_members(paths):
        raise ConfigError(f"There is no group '{path}'.")
    children = children_of(path, paths)
    if isinstance(shares, tuple):
        total = math.fsum(share for _, share in shares)
        parts = {child: share / total for child, share in shares}
    else:
        sizes = {child: math.fsum(tokens[domain] for domain in domains) for child, domains in children.items()}
        total = math.fsum(sizes.values())
        parts = {child: size / total for child, size in sizes.items()}
    result: dict[str, float] = {}
    for child, domains in children.items():
        inner = (
            {child: 1.0} if domains == (child,) and paths[child] == path else split_of(f"{path}{SEPARATOR}{child}", paths, tokens, rules)
        )
        result |= {domain: parts[child] * share for domain, share in inner.items()}
    return result


def units_of(paths: Mapping[str, str], tokens: Mapping[str, float], rules: Sequence[GroupRule]) -> Units:
    """The units of a search over the domains of `paths`, each where its first domain stands.

    Raises:
        ConfigError: everything lies in one group of given shares.
    """
    unit_of = dict(zip(paths, paths, strict=True))
    share = dict.fromkeys(paths, 1.0)
    for path in frozen_paths(paths, rules):
        split = split_of(path, paths, tokens, rules)
        unit_of |= dict.fromkeys(split, path + GROUP_SUFFIX)
        share |= split
    names = tuple(dict.fromkeys(unit_of.values()))
    if len(names) < 2 <= len(paths):
        raise ConfigError(
            f"All domains lie in group '{names[0].removesuffix(GROUP_SUFFIX)}', whose shares are given, so nothing is left to search.",
            "Give shares to groups inside it instead.",
        )
    owner = np.array([names.index(unit_of[domain]) for domain in paths], dtype=np.int64)
    return Units(names, tuple(paths), owner, np.array([share[domain] for domain in paths]))


def rules_identity(paths: Mapping[str, str], units: Units, rules: Sequence[GroupRule]) -> list[Any]:
    """What the rules mean for domains, as JSON values; empty where they mean nothing. Renaming a group or a level changes nothing here."""
    members, by_unit = group_members(paths), list(zip(units.domains, units.owner.tolist(), units.share.tolist(), strict=True))
    splits = [
        sorted([domain, round(share, WEIGHT_DECIMALS)] for domain, owner, share in by_unit if owner == unit)
        for unit in range(len(units.names))
        if units.is_group(unit)
    ]
    bounds = [[sorted(members[rule.path]), list(rule.bounds)] for rule in rules if rule.bounds != (0.0, 1.0)]
    return [sorted(splits), sorted(bounds)] if splits or bounds else []


def weights_per_level(paths: Mapping[str, str], weights: Mapping[str, float], natural: Mapping[str, float]) -> list[LevelWeight]:
    """The weight of every group, heaviest first within its parent, a group right before its sub-groups; empty without groups.

    Args:
        paths: domain -> path of its group.
        weights, natural: domain -> weight.
    """
    members = group_members(paths)
    totals = {path: math.fsum(weights[domain] for domain in domains) for path, domains in members.items()}

    def walk(parent: str) -> list[LevelWeight]:
        rows: list[LevelWeight] = []
        for path in sorted((path for path in members if parent_of(path) == parent), key=lambda path: (-totals[path], path)):
            whole = totals[parent] if parent else 1.0
            share = totals[path] / whole if whole > 0 else 0.0
            expected = math.fsum(natural[domain] for domain in members[path])
            rows += [LevelWeight(path, len(ancestors(path)), totals[path], share, expected), *walk(path)]
        return rows

    return walk("")


def _nearest(name: str, known: Iterable[str], title: str) -> str:
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"{title}: {', '.join(known)}." if known else "Give domains a `group` first."


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
