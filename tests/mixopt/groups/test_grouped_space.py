"""The feasible space with rules on groups: members' caps bound their unit, group bounds hold, and infeasible rules are explained."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.answer.near_optimal import find_near_optimal
from mixopt.domains import Domain, DomainSet
from mixopt.errors import InfeasibleError
from mixopt.groups.limits import is_feasible
from mixopt.groups.rules import GroupRule
from mixopt.optimum import minimize
from mixopt.space import MixtureSpace

PATHS = {"news": "web/news", "wire": "web/news", "blogs": "web", "python": "code", "c": "code", "math": "", "law": "law"}
TOKENS = {"news": 30.0, "wire": 10.0, "blogs": 40.0, "python": 6.0, "c": 4.0, "math": 5.0, "law": 5.0}


def domains(*rules: GroupRule, budget: float = 100.0, **changes: dict[str, object]) -> DomainSet:
    made = (Domain(name, f"hash-{name}", 1_000_000, TOKENS[name], group) for name, group in PATHS.items())
    return DomainSet(tuple(replace(domain, **changes.get(domain.name, {})) for domain in made), budget, rules)


def random_set(rng: np.random.Generator) -> DomainSet:
    """Domains in random groups with random rules, caps and bounds, feasible or not."""
    paths = ["", "a", "a/x", "a/x/u", "a/y", "b", "b/z"]
    count = int(rng.integers(3, 10))
    made = tuple(
        Domain(
            f"d{index}",
            f"h{index}",
            1000,
            float(rng.lognormal(0, 1)),
            paths[rng.integers(7)] if index else "",
            bounds=(float(rng.choice([0.0, 0.0, 0.02])), float(rng.choice([1.0, 0.6]))),
        )
        for index in range(count)
    )
    used = sorted(
        {"/".join(domain.group.split("/")[: depth + 1]) for domain in made if domain.group for depth in range(domain.group.count("/") + 1)}
    )
    rules = tuple(
        GroupRule(path, "natural" if rng.random() < 0.3 else None, (float(rng.choice([0.0, 0.1])), float(rng.choice([1.0, 0.5]))))
        for path in used
        if rng.random() < 0.7
    )
    return DomainSet(made, float(sum(domain.target_tokens for domain in made) * rng.uniform(0.3, 3.0)), rules)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_samples_and_projections_keep_caps_splits_and_group_bounds(seed: int) -> None:
    rng = np.random.default_rng(seed)
    set_ = random_set(rng)
    if not is_feasible(set_):
        with pytest.raises(InfeasibleError):
            MixtureSpace.from_domains(set_)
        return
    space = MixtureSpace.from_domains(set_)
    count = len(set_.names)
    projected = space.project(rng.normal(0.2, 0.5, (20, count)))
    for points in (space.sample(50, rng), projected):
        assert space.contains(points, 1e-12).all()
        # Against the rules themselves, not against what the space made of them.
        assert np.all(points <= set_.epoch_limits() + 1e-9)
        for index, domain in enumerate(set_.domains):
            assert np.all((points[:, index] >= domain.bounds[0] - 1e-9) & (points[:, index] <= domain.bounds[1] + 1e-9))
        for rule in set_.rules:
            inside = [i for i, domain in enumerate(set_.domains) if f"{domain.group}/".startswith(f"{rule.path}/")]
            total = points[:, inside].sum(axis=1)
            assert np.all((total >= rule.bounds[0] - 1e-9) & (total <= rule.bounds[1] + 1e-9))
            if rule.shares == "natural":
                split = set_.target_tokens[inside] / set_.target_tokens[inside].sum()
                assert np.allclose(points[:, inside], total[:, None] * split, atol=1e-9)
        assert np.all(points >= 0), "a weight of -1e-17 has no square root"
    assert np.allclose(space.project(projected), projected, atol=1e-12)
    moved = projected + rng.uniform(-1e-15, 1e-15, projected.shape)
    assert np.all(space.project(moved) >= 0)


def test_a_unit_is_capped_by_its_tightest_member() -> None:
    # Natural split of code: python .6, c .4. c may be repeated twice: 8 of 100 tokens, so code at most 20%.
    space = MixtureSpace.from_domains(domains(GroupRule("code", "natural"), c={"max_epochs": 2.0}, python={"bounds": (0.03, 1.0)}))
    unit = space.units.names.index("code/*")
    assert space.unit_upper[unit] == pytest.approx(0.2)
    assert space.unit_lower[unit] == pytest.approx(0.05)
    most = space.project_with(space.project(np.full((1, 7), 1 / 7))[0], unit, 0.2)
    assert dict(zip(space.domains, most, strict=True)) == pytest.approx(
        {**dict(zip(space.domains, most, strict=True)), "python": 0.12, "c": 0.08}
    )
    assert "code: c is 40.0% of it and 2 epochs allow at most 0.08, so all of it at most 0.2" in space.binding(most)
    assert not space.contains(most[None] + np.array([[0, 0, 0, 0.01, -0.01, 0, 0]]))[0]


def test_rules_inside_a_unit_bound_it() -> None:
    rules = (GroupRule("web", (("news", 0.5), ("blogs", 0.5))), GroupRule("web/news", bounds=(0.1, 0.3)))
    space = MixtureSpace.from_domains(domains(*rules))
    unit = space.units.names.index("web/*")
    assert (space.unit_lower[unit], space.unit_upper[unit]) == pytest.approx((0.2, 0.6))
    assert not space.sums


def test_nested_group_bounds_hold_and_are_named() -> None:
    rules = (GroupRule("web", bounds=(0.2, 0.5)), GroupRule("web/news", bounds=(0.1, 0.3)), GroupRule("code", bounds=(0.0, 0.2)))
    space = MixtureSpace.from_domains(domains(*rules))
    assert [bound.path for bound in space.sums] == ["web", "web/news", "code"]
    blogs, python = space.domains.index("blogs"), space.domains.index("python")
    assert space.unit_reach[1][blogs] == pytest.approx(0.4)
    assert space.unit_reach[1][python] == pytest.approx(0.2)
    best = minimize(lambda p: -p[:, blogs] - 0.5 * p[:, python], space, np.full((1, 7), 1 / 7), seed=0, candidates=2000).weights
    assert best[blogs] == pytest.approx(0.4, abs=1e-6)
    assert best[python] == pytest.approx(0.2, abs=1e-6)
    assert {"web: bounds allow the group at most 0.5", "web/news: bounds ask for at least 0.1 of the group"} <= set(space.binding(best))


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32 - 1))
def test_linear_functions_end_where_linear_programming_does(seed: int) -> None:
    from scipy.optimize import linprog

    rules = (GroupRule("web", bounds=(0.3, 0.5)), GroupRule("code", "natural"), GroupRule("web/news", bounds=(0.1, 0.2)))
    space = MixtureSpace.from_domains(domains(*rules))
    slopes = np.random.default_rng(seed).normal(size=7)
    over_units = space.units.expand(np.eye(len(space.units.names))) @ slopes
    least, largest = space.sum_limits
    exact = linprog(
        over_units,
        A_ub=np.concatenate([space.sum_matrix, -space.sum_matrix]),
        b_ub=np.concatenate([largest, -least]),
        A_eq=np.ones((1, len(over_units))),
        b_eq=[1.0],
        bounds=list(zip(space.unit_lower, space.unit_upper, strict=True)),
    )
    best = minimize(lambda p: p @ slopes, space, np.full((1, 7), 1 / 7), seed=0, candidates=2000)
    assert space.contains(best.weights[None])[0]
    assert best.value == pytest.approx(exact.fun, abs=1e-6)


def test_near_optimal_range_of_a_flat_function_is_the_whole_reach() -> None:
    rules = (GroupRule("web", bounds=(0.3, 0.5)), GroupRule("code", "natural"), GroupRule("web/news", bounds=(0.1, 0.2)))
    space = MixtureSpace.from_domains(domains(*rules))
    start = space.project(np.full((1, 7), 1 / 7))[0]
    found = find_near_optimal(lambda p: np.zeros(len(p)), space, start, 0.0, seed=0)
    low, high = found.low, found.high
    assert np.allclose(low, space.units.expand(space.unit_reach[0]), atol=1e-9)
    assert np.allclose(high, space.units.expand(space.unit_reach[1]), atol=1e-9)


def test_listing_domains_in_another_order_permutes_samples() -> None:
    set_ = domains(GroupRule("web", bounds=(0.3, 0.5)), GroupRule("code", "natural"))
    order = [5, 3, 0, 6, 2, 4, 1]
    other = replace(set_, domains=tuple(set_.domains[index] for index in order))
    first, second = (MixtureSpace.from_domains(found).sample(100, np.random.default_rng(1)) for found in (set_, other))
    assert np.allclose(second, first[:, order], atol=1e-12)


def remedied(set_: DomainSet, hint: str) -> DomainSet:
    """What the first remedy of a hint asks for."""
    number = r"([0-9.]*[0-9])"
    if found := re.search(rf"^Raise `max_epochs` of '(\w+)' (?:from [0-9.]+ )?to {number}", hint):
        caps = {found[1]: float(found[2])}
        return replace(set_, domains=tuple(replace(d, max_epochs=caps.get(d.name, d.max_epochs)) for d in set_.domains))
    if found := re.search(rf"^Multiply `max_epochs` of .* by {number}", hint):
        return replace(set_, domains=tuple(replace(d, max_epochs=d.max_epochs * float(found[1])) for d in set_.domains))
    found = re.search(rf"^(Lower the least|Raise the largest) weight of (?:group )?'([\w/]+)' (?:in `bounds` )?to {number}", hint)
    assert found, hint
    value, least = float(found[3]), found[1].startswith("Lower")

    def changed(bounds: tuple[float, float]) -> tuple[float, float]:
        return (value, bounds[1]) if least else (bounds[0], value)

    return replace(
        set_,
        domains=tuple(replace(d, bounds=changed(d.bounds)) if d.name == found[2] else d for d in set_.domains),
        rules=tuple(replace(r, bounds=changed(r.bounds)) if r.path == found[2] else r for r in set_.rules),
    )


@pytest.mark.parametrize(
    ("set_", "message"),
    [
        (
            domains(GroupRule("code", "natural", (0.5, 1.0)), c={"max_epochs": 2.0}),
            "group 'code' has given shares; bounds ask for at least 0.5, but c is 40.0% of it",
        ),
        (
            domains(GroupRule("code", "natural", (0.0, 0.3)), python={"bounds": (0.2, 1.0)}),
            "python is 60.0% of it and bounds ask for at least 0.2, so all of it at least 0.333, but bounds allow at most 0.3",
        ),
        (
            domains(GroupRule("code", bounds=(0.5, 1.0))),
            r"group 'code' must weigh at least 0.5, but what is in it can weigh 0.4 together \(python 0.24, c 0.16\)",
        ),
        (
            domains(GroupRule("web", bounds=(0.0, 0.3)), news={"bounds": (0.2, 1.0)}, blogs={"bounds": (0.2, 1.0)}),
            r"least weights in group 'web' sum to 0.4, but its bounds allow at most 0.3 \(blogs 0.2, news 0.2\)|\(news 0.2, blogs 0.2\)",
        ),
        (
            domains(GroupRule("web", bounds=(0.7, 1.0)), GroupRule("code", "natural", (0.4, 1.0))),
            r"least weights sum to 1.1, 0.1 too much \(code 0.4, web 0.7\)",
        ),
        (
            domains(GroupRule("web", bounds=(0.0, 0.2)), budget=400.0),
            r"largest weights sum to 0.4, 0.6 short of 1 \(python 0.06, c 0.04, math 0.05, law 0.05, web 0.2\), which is 240 of the 400 budget tokens",
        ),
        (
            domains(
                GroupRule("web", bounds=(0.0, 0.2)),
                budget=10.0,
                **{name: {"bounds": (0.0, 0.1)} for name in ("python", "c", "math", "law")},
            ),
            r"largest weights sum to 0.6, 0.4 short of 1",
        ),
        (
            domains(
                GroupRule("web", bounds=(0.0, 0.3)),
                budget=600.0,
                **{name: {"bounds": (0.0, 0.3)} for name in ("python", "c", "math", "law")},
            ),
            r"largest weights sum to 0.4333, 0.5667 short of 1",
        ),
    ],
)
def test_infeasible_rules_are_explained_with_a_remedy_that_works(set_: DomainSet, message: str) -> None:
    assert not is_feasible(set_)
    with pytest.raises(InfeasibleError, match=message) as caught:
        MixtureSpace.from_domains(set_)
    space = MixtureSpace.from_domains(remedied(set_, caught.value.hint))
    assert space.contains(space.sample(10, np.random.default_rng(0))).all()


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32 - 1))
def test_following_remedies_ends_in_a_feasible_set(seed: int) -> None:
    set_ = random_set(np.random.default_rng(seed))
    for _ in range(20):
        try:
            MixtureSpace.from_domains(set_)
        except InfeasibleError as error:
            if "several" in error.hint or "those in it" in error.hint:
                return  # no one change would do, and it says so
            set_ = remedied(set_, error.hint)
        else:
            return
    raise AssertionError("remedies lead nowhere")


def test_a_fixed_mixture_of_units_is_one_point() -> None:
    rules = (GroupRule("web", "natural", (0.5, 0.5)), GroupRule("code", "natural", (0.3, 0.3)))
    space = MixtureSpace.from_domains(domains(*rules, math={"bounds": (0.1, 0.1)}, law={"bounds": (0.1, 0.1)}))
    points = space.sample(5, np.random.default_rng(0))
    assert np.allclose(points, points[0], atol=1e-12)
    assert any(sentence.startswith("web: fixed at 0.5") for sentence in space.binding(points[0]))
