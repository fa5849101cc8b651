"""Plans of reuse: how many proxies each needs, which domains partial reuse frees, what is recommended, and what nothing new means."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import FloatArray
from mixopt.reuse import plans as plans_module
from mixopt.reuse.changes import Changes, compare
from mixopt.reuse.law import ObjectiveLaw, imagined
from mixopt.reuse.plans import Plan, Risks, make_plans

OLD = ("a", "b", "c", "d", "e")


@pytest.fixture(autouse=True)
def few_laws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough to see what plans do, in a quarter of the time."""
    monkeypatch.setattr(plans_module, "LAWS", 8)


def domain_set(contents: dict[str, str], rules: tuple[GroupRule, ...] = (), groups: dict[str, str] | None = None) -> DomainSet:
    groups = groups or {}
    domains = tuple(Domain(name, content, 1000, 60.0, groups.get(name, "")) for name, content in contents.items())
    return DomainSet(domains, 100.0, rules)


def law(slopes: FloatArray | None = None) -> ObjectiveLaw:
    """Every domain is good for a metric of its own."""
    matrix = -3.0 * np.eye(5) if slopes is None else slopes
    return ObjectiveLaw(OLD, matrix, np.full(len(matrix), 10.0), np.zeros(len(matrix)), np.full(5, 0.2), 0.01)


def planned(
    new: dict[str, str], noise: float = 1.0, fitted: ObjectiveLaw | None = None, **changed: object
) -> tuple[dict[str, Plan], str, str, Changes]:
    old = domain_set({name: name for name in OLD})
    domains = replace(domain_set(new), **changed)  # type: ignore[arg-type]
    changes = compare({name: name for name in OLD}, new)
    fitted = fitted or law()
    risks = Risks.of(fitted, old, changes, domains)
    plans, recommended, why = make_plans(changes, domains, dict.fromkeys(OLD, 0.2), risks, noise)
    return {plan.name: plan for plan in plans}, recommended, why, changes


def test_proxies_are_those_of_the_paper() -> None:
    """3 (|D_comp| + 2) for reuse, 3 (m + 1) for all: one added to five domains."""
    plans, _, _, _ = planned({name: name for name in OLD} | {"new": "new"})
    assert plans["full"].proxies == 3 * (1 + 2)
    assert plans["full"].measured == ("new",)
    assert plans["full"].kept == pytest.approx(dict.fromkeys(OLD, 0.2))
    assert plans["none"].proxies == 3 * (6 + 1)
    partial = plans["partial"]
    assert partial.proxies == 3 * (1 + len(partial.freed) + 2)
    assert set(partial.measured) == {"new", *partial.freed}


def test_the_risk_decides_and_the_cheapest_plan_inside_the_noise_is_taken() -> None:
    new = {name: name for name in OLD} | {"new": "new"}
    plans, recommended, why, _ = planned(new, noise=1e3)
    assert recommended == "full"
    assert "inside" in why
    full, partial = plans["full"].risk, plans["partial"].risk
    assert 0 <= partial <= full
    assert planned(new, noise=0.0)[1] == "none"
    assert planned(new, noise=(full + partial) / 2)[1] == "partial"


def test_a_bound_is_never_below_the_risk_and_olmix_s_is_above_both() -> None:
    plans, _, _, _ = planned({name: name for name in OLD} | {"new": "new"}, noise=0.0)
    for name in ("full", "partial"):
        plan = plans[name]
        assert plan.typical <= plan.risk <= plan.bound
        assert plan.published is not None
        assert plan.kappa is not None
        assert plan.published > plan.typical


def test_partial_reuse_frees_the_domain_that_the_new_one_competes_with() -> None:
    """Only metric 0 is steep: a new domain, which acts like an old one, matters most where it acts like `a`."""
    slopes = np.diag([-9.0, -0.1, -0.1, -0.1, -0.1])
    plans, _, _, _ = planned({name: name for name in OLD} | {"new": "new"}, noise=1e-6, fitted=law(slopes))
    assert plans["partial"].freed[0] == "a"


def test_a_rename_costs_nothing() -> None:
    plans, recommended, why, _ = planned({"a": "a", "b": "b", "c": "c", "dd": "d", "e": "e"})
    assert recommended == "full"
    assert plans["full"].proxies == 0
    assert plans["full"].risk == pytest.approx(0.0, abs=1e-4)
    assert plans["full"].kept["dd"] == pytest.approx(0.2)
    assert "Nothing but names changed" in why


def test_what_is_removed_gives_its_weight_in_proportion_and_nothing_is_trained() -> None:
    plans, recommended, why, _ = planned({"a": "a", "b": "b", "c": "c", "d": "d"})
    assert (recommended, plans["full"].proxies) == ("full", 0)
    assert plans["full"].kept == pytest.approx(dict.fromkeys("abcd", 0.25))
    assert "removed" in why


def test_where_everything_changed_all_is_recomputed() -> None:
    plans, recommended, why, _ = planned({f"{name}2": f"{name}2" for name in OLD})
    assert (list(plans), recommended) == (["none"], "none")
    assert why == "Full recompute: everything changed."


def test_where_one_domain_stayed_there_is_no_unit_to_keep() -> None:
    plans, recommended, why, _ = planned({"a": "a", "x": "x", "y": "y"})
    assert (list(plans), recommended) == (["none"], "none")
    assert "too little stayed" in why


def test_a_group_of_given_shares_with_a_new_domain_is_measured_whole() -> None:
    new = {name: name for name in OLD} | {"new": "new"}
    groups = {"new": "g", "a": "g"}
    domains = domain_set(new, (GroupRule("g", "natural"),), groups)
    plans, _, _, _ = planned(new, domains=domains.domains, rules=domains.rules)
    assert plans["full"].measured == ("a", "new")
    assert plans["full"].units == 2  # the group and what is kept
    assert plans["none"].units == 5


def test_a_plan_that_rules_forbid_says_why() -> None:
    new = {name: name for name in OLD} | {"new": "new"}
    domains = domain_set(new, (GroupRule("g", bounds=(0.0, 0.5)),), {"new": "g", "a": "g"})
    plans, recommended, _, _ = planned(new, domains=domains.domains, rules=domains.rules)
    assert "Group 'g' has rules" in plans["full"].problem
    assert recommended == "none"


def test_imagined_parts_of_a_split_domain_act_together_as_it_did() -> None:
    new = {name: name for name in OLD[1:]} | {"a1": "a1", "a2": "a2"}
    changes = compare({name: name for name in OLD}, new, {"a": ("a1", "a2")})
    names = tuple(new)
    natural = np.array([0.1, 0.1, 0.1, 0.1, 0.45, 0.15])
    for seed in range(5):
        found = imagined(law(), changes, names, natural, np.random.default_rng(seed))
        assert found.slopes_KD[:, 4] * 0.75 + found.slopes_KD[:, 5] * 0.25 == pytest.approx(law().slopes_KD[:, 0])
        assert found.slopes_KD[:, 0] == pytest.approx(law().slopes_KD[:, 1])
