"""Which subsets are measured, and the algebra of Shapley's values on any losses of them."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.ablation.plan import Plan, Subset, plan_ablation
from mixopt.errors import ConfigError


def names(count: int) -> list[str]:
    return [f"domain {k:02d}" for k in range(count)]


def drawn(plan: Plan, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(len(plan.subsets))


def estimate(plan: Plan, losses: np.ndarray) -> np.ndarray:
    return np.asarray((plan.shapley() @ losses).mean(axis=0))


def of_all_orders(plan: Plan, losses: np.ndarray) -> np.ndarray:
    """Shapley's values by their definition."""
    total, orders = np.zeros(len(plan.domains)), list(permutations(range(len(plan.domains))))
    for order in orders:
        before: Subset = frozenset()
        for k in order:
            after = before | {plan.domains[k]}
            total[k] += losses[plan.row[before]] - losses[plan.row[after]]
            before = after
    return total / len(orders)


plans = st.builds(
    lambda count, circles, exact, seed: plan_ablation(names(count), circles, seed, exact_up_to=count if exact else 0),
    st.integers(2, 6),
    st.integers(2, 4),
    st.booleans(),
    st.integers(0, 99),
)


@given(st.integers(2, 6), st.integers(0, 99))
def test_exact_values_are_those_of_all_orders(count: int, seed: int) -> None:
    plan = plan_ablation(names(count))
    losses = drawn(plan, seed)
    assert plan.exact
    assert len(plan.subsets) == 2**count
    assert estimate(plan, losses) == pytest.approx(of_all_orders(plan, losses), abs=1e-12)


@given(plans, st.integers(0, 99))
def test_values_of_every_unit_add_up_to_what_all_bring(plan: Plan, seed: int) -> None:
    losses = drawn(plan, seed)
    whole = losses[plan.row[frozenset()]] - losses[plan.row[frozenset(plan.domains)]]
    assert (plan.shapley() @ losses).sum(axis=1) == pytest.approx(whole, abs=1e-12)


@given(plans, st.integers(0, 99), st.integers(0, 5))
def test_a_domain_that_changes_nothing_is_worth_nothing(plan: Plan, seed: int, which: int) -> None:
    dummy = plan.domains[which % len(plan.domains)]
    numbers = {subset: i for i, subset in enumerate(sorted({s - {dummy} for s in plan.subsets}, key=sorted))}
    losses = np.random.default_rng(seed).standard_normal(len(numbers))[[numbers[subset - {dummy}] for subset in plan.subsets]]
    k = plan.domains.index(dummy)
    for factors in (plan.shapley().mean(axis=0), plan.leave_one_out(), plan.add_one_in()):
        assert factors[k] @ losses == pytest.approx(0, abs=1e-12)


@given(st.integers(2, 6), st.integers(0, 99))
def test_domains_that_do_the_same_are_worth_the_same(count: int, seed: int) -> None:
    plan = plan_ablation(names(count))
    one, other = plan.domains[:2]
    values: dict[tuple[int, Subset], float] = {}
    rng = np.random.default_rng(seed)
    losses = []
    for subset in plan.subsets:
        key = (len(subset & {one, other}), subset - {one, other})
        losses.append(values.setdefault(key, float(rng.standard_normal())))
    found = estimate(plan, np.array(losses))
    assert found[0] == pytest.approx(found[1], abs=1e-12)


@given(plans, st.integers(0, 99), st.floats(-3, 3))
def test_values_are_linear_in_the_losses(plan: Plan, seed: int, factor: float) -> None:
    one, other = drawn(plan, seed), drawn(plan, seed + 100)
    assert estimate(plan, one + factor * other) == pytest.approx(estimate(plan, one) + factor * estimate(plan, other), abs=1e-9)


@given(plans, st.integers(0, 99))
def test_what_depends_on_how_many_and_adds_up_over_domains_is_exact_in_every_circle(plan: Plan, seed: int) -> None:
    rng = np.random.default_rng(seed)
    own, sizes = rng.standard_normal(len(plan.domains)), rng.standard_normal(len(plan.domains) + 1)
    losses = np.array([sizes[len(subset)] + sum(own[plan.domains.index(name)] for name in subset) for subset in plan.subsets])
    shared = (sizes[0] - sizes[-1]) / len(plan.domains)
    assert plan.shapley() @ losses == pytest.approx(np.tile(shared - own, (len(plan.shapley()), 1)), abs=1e-12)


def average_game(plan: Plan, seed: int = 0) -> np.ndarray:
    """Quadratic losses of uniform averages of displacements: what merging is, near a base."""
    rng = np.random.default_rng(seed)
    moved = rng.standard_normal((len(plan.domains), 5))
    best = 0.5 * moved.mean(axis=0) + 0.5 * rng.standard_normal(5)
    return np.asarray(((plan.weights() @ moved - best) ** 2).sum(axis=1))


def test_sampled_values_converge_to_exact_ones() -> None:
    """Root mean square errors fall as one over the root of the circles: by 4 from 4 to 64; sigma of an RMS of 7 values is about a quarter."""
    exact = plan_ablation(names(8))
    truth = estimate(exact, average_game(exact))
    errors = []
    for circles in (4, 64):
        plan = plan_ablation(names(8), circles, exact_up_to=0)
        errors.append(np.sqrt(((estimate(plan, average_game(plan)) - truth) ** 2).mean()))
    assert errors[1] < 0.5 * errors[0]
    assert errors[1] < 0.1 * truth.std()


def test_a_circle_takes_its_arcs_and_more_circles_keep_those_before() -> None:
    few, more = plan_ablation(names(14), 2, seed=5), plan_ablation(names(14), 3, seed=5)
    assert more.circles[:2] == few.circles
    assert set(few.subsets) < set(more.subsets)
    # Two circles share nothing, single domains and all but one.
    assert 14 * 13 + 2 < len(few.subsets) <= 2 * 14 * 13 + 2 - 2 * 14
    assert len(plan_ablation(names(14), 2, seed=6).subsets) <= 2 * 14 * 13 + 2 - 2 * 14
    assert plan_ablation(names(14), 2, seed=6).circles != few.circles


def test_without_circles_there_are_ends_only() -> None:
    plan = plan_ablation(names(5), 0)
    assert not plan.has_shapley
    assert len(plan.subsets) == 2 + 2 * 5


def test_the_order_of_domains_changes_nothing_else() -> None:
    one = plan_ablation(names(9), 2)
    other = plan_ablation(names(9)[::-1], 2)
    assert (one.subsets, one.circles) == (other.subsets, other.circles)
    losses = drawn(one, 0)
    assert estimate(one, losses) == pytest.approx(estimate(other, losses)[::-1])


@settings(max_examples=20)
@given(plans)
def test_weights_are_uniform_over_each_subset(plan: Plan) -> None:
    weights = plan.weights()
    assert plan.subsets[0] == frozenset()
    assert not weights[0].any()
    assert weights[1:].sum(axis=1) == pytest.approx(1.0)
    for subset, row in zip(plan.subsets[1:], weights[1:], strict=True):
        assert {name: 1 / len(subset) for name in subset} == pytest.approx(
            {name: weight for name, weight in zip(plan.domains, row.tolist(), strict=True) if weight}
        )


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="two or more distinct"):
        plan_ablation(["web"])
    with pytest.raises(ConfigError, match="two or more distinct"):
        plan_ablation(["web", "web"])
    with pytest.raises(ConfigError, match="circles is 1"):
        plan_ablation(["web", "code"], 1)
