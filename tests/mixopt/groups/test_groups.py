"""Groups of domains: paths, rules with the nearest name where they are wrong, units, weights per level."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.groups.rules import GroupRule, check_rules, group_members, split_of, units_of, weights_per_level

PATHS = {
    "news": "web/news/high",
    "blogs": "web/blogs",
    "python": "code",
    "forum": "web/news/low",
    "c": "code",
    "wire": "web/news/high",
    "novels": "",
}
TOKENS = {"news": 30.0, "blogs": 20.0, "python": 6.0, "forum": 10.0, "c": 2.0, "wire": 10.0, "novels": 22.0}


def test_every_prefix_is_a_group_and_sub_groups_follow_their_group() -> None:
    assert group_members(PATHS) == {
        "web": ("news", "blogs", "forum", "wire"),
        "web/news": ("news", "forum", "wire"),
        "web/news/high": ("news", "wire"),
        "web/news/low": ("forum",),
        "web/blogs": ("blogs",),
        "code": ("python", "c"),
    }
    assert group_members({"a": "", "b": ""}) == {}


def test_a_natural_split_goes_by_tokens_and_given_shares_below_it_hold() -> None:
    assert split_of("web/news", PATHS, TOKENS, ()) == pytest.approx({"news": 0.6, "wire": 0.2, "forum": 0.2})
    rules = (GroupRule("web/news", (("low", 0.5), ("high", 0.5))), GroupRule("web", "natural"))
    assert split_of("web", PATHS, TOKENS, rules) == pytest.approx(
        {"news": 5 / 7 * 0.5 * 0.75, "wire": 5 / 7 * 0.5 * 0.25, "forum": 5 / 7 * 0.5, "blogs": 2 / 7}
    )


def test_units_are_the_outermost_groups_with_shares_and_the_domains_around_them() -> None:
    rules = (GroupRule("web/news", (("low", 0.5), ("high", 0.5))), GroupRule("web/news/high", "natural"), GroupRule("code", "natural"))
    units = units_of(PATHS, TOKENS, rules)
    assert units.names == ("web/news/*", "blogs", "code/*", "novels")
    assert units.titles == ("web/news", "blogs", "code", "novels")
    expanded = dict(zip(PATHS, units.expand(np.array([0.4, 0.1, 0.2, 0.3])), strict=True))
    assert expanded == pytest.approx({"news": 0.15, "wire": 0.05, "forum": 0.2, "blogs": 0.1, "python": 0.15, "c": 0.05, "novels": 0.3})


def test_without_shares_units_are_domains_and_nothing_is_converted() -> None:
    units = units_of(PATHS, TOKENS, (GroupRule("web", bounds=(0.1, 0.5)),))
    weights = np.random.default_rng(0).dirichlet(np.ones(7), 3)
    assert units.are_domains
    assert units.expand(weights) is weights
    assert units.collapse(weights) is weights


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_expansion_keeps_the_sum_and_collapsing_inverts_it(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = [f"d{index}" for index in range(int(rng.integers(3, 10)))]
    levels = [["a", "a/x", "a/x/high", "a/y", "b", "b/z", ""][rng.integers(7)] for _ in names]
    paths = dict(zip(["other", *names], ["", *levels], strict=True))
    tokens = dict(zip(paths, rng.lognormal(0, 3, len(paths)).tolist(), strict=True))
    rules = tuple(GroupRule(path, "natural") for path in group_members(paths) if rng.random() < 0.5)
    units = units_of(paths, tokens, rules)
    weights = rng.dirichlet(np.ones(len(units.names)), 5)
    expanded = units.expand(weights)
    assert np.allclose(expanded.sum(axis=1), 1, atol=1e-12)
    assert np.allclose(units.collapse(expanded), weights, atol=1e-12)
    # Another order of domains gives the same weights by name.
    order = [list(paths)[index] for index in rng.permutation(len(paths))]
    other = units_of({name: paths[name] for name in order}, tokens, rules)
    columns = [units.names.index(name) for name in other.names]
    assert np.allclose(other.expand(weights[:, columns]), expanded[:, [list(paths).index(name) for name in order]], atol=1e-15)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (GroupRule("wb"), r"'groups' names 'wb', but no domain is in that group. Did you mean 'web'\?"),
        (GroupRule("zzz"), r"Groups: web, web/news"),
        (GroupRule("web", (("new", 0.5), ("blogs", 0.5))), r"shares of group 'web' name 'new', which is not in it. Did you mean 'news'\?"),
        (GroupRule("web", (("news", 1.0),)), r"shares of group 'web' leave out 'blogs'"),
        (GroupRule("code", (("python", 0.5), ("c", 0.4))), r"shares of group 'code' sum to 0.9"),
        (GroupRule("code", (("python", 1.5), ("c", -0.5))), r"share of 'c' in group 'code' is -0.5"),
        (GroupRule("code", (("python", math.nan), ("c", 1.0))), r"share of 'python' in group 'code' is nan"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_nearest_name(rule: GroupRule, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_rules(PATHS, (rule,))


def test_rules_need_groups() -> None:
    with pytest.raises(ConfigError, match="Give domains a `group` first"):
        check_rules({"a": "", "b": ""}, (GroupRule("web"),))


def test_a_child_that_is_both_group_and_domain_is_ambiguous() -> None:
    with pytest.raises(ConfigError, match="a domain and a group that are both called 'news'"):
        check_rules({"news": "web", "wire": "web/news"}, (GroupRule("web", (("news", 1.0),)),))


def test_shares_are_accepted_within_rounding_and_made_exact() -> None:
    rules = (GroupRule("code", (("python", 0.3333333), ("c", 0.6666666))),)
    check_rules(PATHS, rules)
    assert math.fsum(split_of("code", PATHS, TOKENS, rules).values()) == pytest.approx(1, abs=1e-15)


def test_a_search_needs_two_units() -> None:
    domains = tuple(Domain(name, name, 1000, 1e9, "all") for name in ("a", "b"))
    with pytest.raises(ConfigError, match="All domains lie in group 'all', whose shares are given, so nothing is left to search"):
        _ = DomainSet(domains, 1e9, (GroupRule("all", "natural"),)).units


def test_weights_per_level_sum_up_and_sort_within_their_parent() -> None:
    weights = {"news": 0.1, "blogs": 0.3, "python": 0.2, "forum": 0.1, "c": 0.1, "wire": 0.0, "novels": 0.2}
    natural = {name: tokens / 100 for name, tokens in TOKENS.items()}
    rows = [(row.path, row.level, row.weight, row.share, row.natural) for row in weights_per_level(PATHS, weights, natural)]
    expected = [
        ("web", 1, 0.5, 0.5, 0.7),
        ("web/blogs", 2, 0.3, 0.6, 0.2),
        ("web/news", 2, 0.2, 0.4, 0.5),
        ("web/news/high", 3, 0.1, 0.5, 0.4),
        ("web/news/low", 3, 0.1, 0.5, 0.1),
        ("code", 1, 0.3, 0.3, 0.08),
    ]
    assert [row[:2] for row in rows] == [row[:2] for row in expected]
    assert np.allclose([row[2:] for row in rows], [row[2:] for row in expected])
    empty = dict.fromkeys(PATHS, 0.0) | {"novels": 1.0}
    assert {row.share for row in weights_per_level(PATHS, empty, natural)} == {0.0}
    assert weights_per_level(dict.fromkeys(PATHS, ""), weights, natural) == []
