"""Without rules on groups every identity is what it was before there were any; with them, only what they mean for domains counts."""

from __future__ import annotations

from dataclasses import replace

from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.groups.rules import GroupRule
from mixopt.mixture import Mixture, Schedule
from mixopt.search_identity import search_identity
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy
from mixopt.strategies.base import Assignment, Offer
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source

DOMAINS = DomainSet(
    (
        Domain("web", "hash-web", 5_000_000, 60e9, "web"),
        Domain("code", "hash-code", 2_000_000, 20e9, "code", 2.0, (0.05, 0.6)),
        Domain("math", "hash-math", 900_000, 3e9, ""),
    ),
    100e9,
)
# Computed at commit 6683ead, before there were rules on groups. A record full of trials hangs on them.
TRIAL_ID = "ea5e696161da1816d63e"
SEARCH_ID = "46c21bc8f3f7a427eb60"
DESIGN_IDS = [
    "ec355d588745ad9f3c9f",
    "a3b6dcd92871852fe57b",
    "27c14a5921fb213bd813",
    "15b05827cf8d679749fb",
    "2d5ac4be9fe158fcd47b",
    "fd117f0ccf79239ed978",
    "62a58adc2ab59d2d3339",
    "ec95db7144688b73298a",
    "91a3ea6e440de9320e9f",
    "0a1cbbb6f4b56c63642e",
    "1ae59256a8229e1dedc3",
    "f8f0395408de179dd2ac",
    "ee438e3770a8775539ec",
    "a455e17278fee753a660",
    "de2f79cba5d988192fc6",
    "d3af7c9327f069f83051",
]


def factory(domains: DomainSet = DOMAINS) -> TrialFactory:
    return TrialFactory(domains, Source("trained", "nano", 1_000_000), {"window": 512, "learning_rate": 0.002}, "tokenizer", "1")


def identity(domains: DomainSet = DOMAINS) -> str:
    objective = {"kind": "mean", "pull": 0.05, "weights": {"t": 1.0}}
    return search_identity(factory(domains), objective, "regression", {"surrogate": "gaussian_process", "seeds": 3}, 0)


def ruled(*rules: GroupRule, groups: tuple[str, str, str] = ("web", "rest", "rest")) -> DomainSet:
    domains = tuple(replace(domain, group=group) for domain, group in zip(DOMAINS.domains, groups, strict=True))
    return DomainSet(domains, DOMAINS.budget_tokens, rules)


def design(domains: DomainSet) -> list[str]:
    maker = factory(domains)
    assignment = Assignment(
        space=MixtureSpace.from_domains(domains),
        domains=domains,
        offers=(Offer(maker.source, maker.make, 1.0),),
        surrogate=get_surrogate("gaussian_process"),
        metrics={"t": 1.0},
        objective_kind="mean",
        trials=16,
        seeds=3,
        pull=0.05,
        seed=0,
    )
    strategy = get_strategy("regression", assignment)
    return [trial.trial_id for trial in strategy.ask(16, Swarm.empty(domains.names), [], [])]


def test_identities_without_rules_are_pinned() -> None:
    assert factory().make(Schedule.constant(Mixture.of({"web": 0.5, "code": 0.3, "math": 0.2})), 7, "x").trial_id == TRIAL_ID
    assert identity() == SEARCH_ID
    assert design(DOMAINS) == DESIGN_IDS


def test_groups_without_rules_are_labels() -> None:
    for labels in (ruled(), ruled(GroupRule("rest")), ruled(groups=("a/b/c", "", "a"))):
        assert identity(labels) == SEARCH_ID
        assert design(labels) == DESIGN_IDS


def test_each_rule_makes_another_search() -> None:
    split, bound = GroupRule("rest", "natural"), GroupRule("rest", bounds=(0.0, 0.5))
    given = GroupRule("rest", (("code", 0.5), ("math", 0.5)))
    ids = [SEARCH_ID, *(identity(ruled(rule)) for rule in (split, bound, given, replace(split, bounds=(0.0, 0.5))))]
    assert len(set(ids)) == 5


def test_renaming_a_group_or_writing_a_natural_split_out_changes_nothing() -> None:
    split = GroupRule("rest", "natural", (0.0, 0.5))
    assert identity(ruled(split)) == identity(ruled(replace(split, path="other"), groups=("web", "other", "other")))
    written = GroupRule("rest", (("code", 20 / 23), ("math", 3 / 23)), (0.0, 0.5))
    assert identity(ruled(split)) == identity(ruled(written))


def test_bounds_on_a_group_keep_every_trial_and_a_split_keeps_those_at_the_baselines() -> None:
    assert design(ruled(GroupRule("web", bounds=(0.0, 0.5)))) == DESIGN_IDS
    split = design(ruled(GroupRule("rest", "natural")))
    assert split[:5] == DESIGN_IDS[:5]
    assert set(split) != set(DESIGN_IDS)
