"""The virtual domain: the paper's example, and groups of kept shares among rules that are there already."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.groups.rules import GroupRule, check_rules, split_of
from mixopt.mixture import Mixture
from mixopt.reuse.virtual import closed, expand, regrouped, with_kept
from mixopt.space import MixtureSpace

NAMES = ("a", "b", "c", "d")


def domain_set(groups: dict[str, str] | None = None, rules: tuple[GroupRule, ...] = (), tokens: float = 100.0) -> DomainSet:
    groups = groups or {}
    return DomainSet(tuple(Domain(name, name, 1000, tokens, groups.get(name, "")) for name in NAMES), 100.0, rules)


def test_the_example_of_the_paper() -> None:
    """Olmix, arXiv 2602.12237: kept shares .25, .25, .5 and units .4, .6 are the mixture .1, .1, .2, .6."""
    kept = {"a": 0.25, "b": 0.25, "c": 0.5}
    assert expand(kept, {"kept": 0.4, "d": 0.6}, "kept") == pytest.approx({"a": 0.1, "b": 0.1, "c": 0.2, "d": 0.6})
    units = with_kept(domain_set(), kept).units
    assert units.names == ("kept/*", "d")
    assert units.expanded(Mixture(units.names, (0.4, 0.6))).weights == pytest.approx((0.1, 0.1, 0.2, 0.6))


def test_the_cap_of_a_kept_domain_caps_the_unit() -> None:
    """rho is at most the least k N_j / (R p~_j)."""
    scarce = domain_set()
    domains = replace(scarce, domains=(replace(scarce.domains[0], target_tokens=5.0, max_epochs=4.0), *scarce.domains[1:]))
    space = MixtureSpace.from_domains(with_kept(domains, {"a": 0.5, "b": 0.5}))
    assert space.unit_upper[space.units.names.index("kept/*")] == pytest.approx(4 * 5.0 / (100.0 * 0.5))


@given(st.lists(st.floats(0.0, 1.0), min_size=3, max_size=3).filter(lambda shares: sum(shares) > 1e-3))
def test_groups_inside_stay_and_the_shares_are_those_asked_for(shares: list[float]) -> None:
    groups = {"a": "web/high", "b": "web/low", "c": "", "d": "web"}
    domains = domain_set(groups)
    wanted = dict(zip(("a", "b", "c"), shares, strict=True))
    frozen = with_kept(domains, wanted)
    assert frozen.group_paths == {"a": "kept/web/high", "b": "kept/web/low", "c": "kept", "d": "web"}
    check_rules(frozen.group_paths, frozen.rules)
    split = split_of("kept", frozen.group_paths, dict.fromkeys(NAMES, 1.0), frozen.rules)
    total = sum(shares)
    assert split == pytest.approx({name: share / total for name, share in wanted.items()}, abs=1e-8)


def test_bounds_on_a_group_that_is_kept_whole_stay_bounds() -> None:
    domains = domain_set({"a": "web", "b": "web"}, (GroupRule("web", bounds=(0.1, 0.3)),))
    space = MixtureSpace.from_domains(with_kept(domains, {"a": 0.2, "b": 0.3, "c": 0.5}))
    draws = space.sample(64, np.random.default_rng(0))
    assert np.all(draws[:, :2].sum(axis=1) <= 0.3 + 1e-9)
    assert space.unit_upper[space.units.names.index("kept/*")] == pytest.approx(0.6)


def test_a_bounded_group_that_is_kept_in_part_is_refused() -> None:
    domains = domain_set({"a": "web", "d": "web"}, (GroupRule("web", bounds=(0.1, 0.3)),))
    with pytest.raises(ConfigError, match="Group 'web' has rules, and of its domains a would be kept"):
        with_kept(domains, {"a": 0.5, "b": 0.5})


def test_a_name_that_a_group_and_a_domain_share_costs_the_labels_only() -> None:
    paths, rules = regrouped({"a": "b", "b": "", "c": "x", "d": ""}, (), {"a": 0.5, "b": 0.25, "c": 0.25})
    assert paths == {"a": "kept", "b": "kept", "c": "kept", "d": ""}
    assert rules == (GroupRule("kept", (("a", 0.5), ("b", 0.25), ("c", 0.25))),)


def test_a_group_called_kept_keeps_its_name() -> None:
    paths, _ = regrouped({"a": "kept", "b": "", "c": "", "d": "kept"}, (), {"b": 0.5, "c": 0.5})
    assert paths == {"a": "kept", "b": "kept-2", "c": "kept-2", "d": "kept"}


def test_what_a_group_of_given_shares_holds_is_measured_together() -> None:
    rules = (GroupRule("web", "natural"),)
    assert closed({"a"}, {"a": "web", "b": "web", "c": "", "d": ""}, rules) == {"a", "b"}
    assert closed({"c"}, {"a": "web", "b": "web", "c": "", "d": ""}, rules) == {"c"}
