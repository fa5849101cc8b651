"""The feasible space: bounds with reasons, and infeasibility explained with a remedy that works."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.domains import Domain, DomainSet
from mixopt.errors import InfeasibleError
from mixopt.space import MixtureSpace


def domains(tokens: dict[str, float], budget: float, **changes: dict[str, object]) -> DomainSet:
    made = (Domain(name, f"hash-{name}", 1_000_000, count) for name, count in tokens.items())
    return DomainSet(tuple(replace(domain, **changes.get(domain.name, {})) for domain in made), budget)


def test_bounds_are_the_tighter_of_user_and_epochs() -> None:
    space = MixtureSpace.from_domains(
        domains({"web": 100, "math": 2, "code": 30}, 96, code={"bounds": (0.1, 0.5)}, math={"bounds": (0.0, 0.9)})
    )
    assert np.allclose(space.upper, [1.0, 4 * 2 / 96, 0.5])
    assert np.allclose(space.lower, [0.0, 0.0, 0.1])


def test_binding_names_the_constraint() -> None:
    space = MixtureSpace.from_domains(domains({"web": 100, "math": 2, "code": 30}, 96, code={"bounds": (0.1, 0.5)}))
    weights = np.array([1 - 0.5 - 8 / 96, 8 / 96, 0.5])
    assert space.binding(weights) == ("math: 4 epochs allow at most 0.0833", "code: bounds allow at most 0.5")
    assert space.binding(np.array([0.85, 0.05, 0.1])) == ("code: bounds ask for at least 0.1",)
    assert space.binding(np.array([0.8, 0.05, 0.15])) == ()


def test_the_simplex_itself_binds_nothing() -> None:
    space = MixtureSpace.from_domains(domains({"web": 100, "code": 100}, 10))
    assert space.binding(np.array([1.0, 0.0])) == ()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_samples_and_projections_are_feasible(seed: int, dimension: int) -> None:
    rng = np.random.default_rng(seed)
    tokens = {f"d{index}": float(value) for index, value in enumerate(rng.lognormal(0, 1.5, dimension))}
    space = MixtureSpace.from_domains(domains(tokens, sum(tokens.values()) * rng.uniform(0.1, 3.9)))
    assert space.contains(space.sample(50, rng), 1e-12).all()
    assert space.contains(space.project(rng.normal(size=(20, dimension))), 1e-12).all()


def test_samples_reach_every_bound_and_permute_with_the_names() -> None:
    tokens = {"web": 100.0, "math": 2.0, "code": 30.0, "law": 5.0}
    space = MixtureSpace.from_domains(domains(tokens, 96))
    draws = space.sample(5000, np.random.default_rng(0))
    assert np.allclose(draws.min(axis=0), space.project(np.eye(4)).min(axis=0), atol=0.02)
    assert np.allclose(draws.max(axis=0), space.upper, atol=0.02)
    order = ["law", "web", "code", "math"]
    other = MixtureSpace.from_domains(domains({name: tokens[name] for name in order}, 96))
    columns = [space.domains.index(name) for name in order]
    assert np.allclose(other.sample(100, np.random.default_rng(3)), space.sample(100, np.random.default_rng(3))[:, columns], atol=1e-12)


def test_contains_looks_at_bounds_and_sum() -> None:
    space = MixtureSpace.from_domains(domains({"web": 100, "math": 2}, 96))
    rows = np.array([[0.95, 0.05], [0.9, 0.1], [0.95, 0.04], [1.01, -0.01]])
    assert space.contains(rows).tolist() == [True, False, False, False]
    assert space.contains(rows, 0.02).tolist() == [True, True, True, True]


def test_least_weight_above_its_own_epoch_cap() -> None:
    with pytest.raises(InfeasibleError, match=r"'math' must weigh at least 0.2, but 4 epochs allow 0.08333") as caught:
        MixtureSpace.from_domains(domains({"web": 100, "math": 2}, 96, math={"bounds": (0.2, 1.0)}))
    needed = float(re.search(r"`max_epochs` of 'math' to ([0-9.]+)", caught.value.hint)[1])
    MixtureSpace.from_domains(domains({"web": 100, "math": 2}, 96, math={"bounds": (0.2, 1.0), "max_epochs": needed}))
    lowered = float(re.search(r"least weight to ([0-9.]+[0-9])", caught.value.hint)[1])
    MixtureSpace.from_domains(domains({"web": 100, "math": 2}, 96, math={"bounds": (lowered, 1.0)}))


def test_least_weights_above_one() -> None:
    with pytest.raises(InfeasibleError, match=r"sum to 1.3, 0.3 too much") as caught:
        MixtureSpace.from_domains(domains({"web": 100, "code": 100}, 10, web={"bounds": (0.6, 1.0)}, code={"bounds": (0.7, 1.0)}))
    lowered = float(re.search(r"of 'code' to ([0-9.]+[0-9])", caught.value.hint)[1])
    assert lowered == pytest.approx(0.4, abs=1e-4)
    MixtureSpace.from_domains(domains({"web": 100, "code": 100}, 10, web={"bounds": (0.6, 1.0)}, code={"bounds": (lowered, 1.0)}))


def test_epoch_caps_below_one_name_the_cheapest_cap() -> None:
    tokens = {"web": 10.0, "math": 2.0, "code": 5.0}
    with pytest.raises(InfeasibleError, match=r"sum to 0.68, 0.32 short of 1") as caught:
        MixtureSpace.from_domains(domains(tokens, 100))
    needed = float(re.search(r"`max_epochs` of 'web' from 4 to ([0-9.]+[0-9])", caught.value.hint)[1])
    assert needed == pytest.approx(7.2)
    MixtureSpace.from_domains(domains(tokens, 100, web={"max_epochs": needed}))
    with pytest.raises(InfeasibleError):
        MixtureSpace.from_domains(domains(tokens, 100, web={"max_epochs": needed - 0.02}))


def test_a_least_weight_above_its_cap_by_rounding_is_the_cap() -> None:
    set_ = domains({"web": 1000, "math": 25 / 3}, 100, math={"bounds": (0.3333333334, 1.0)})
    space = MixtureSpace.from_domains(set_)
    assert np.all(space.lower <= space.upper)
    assert np.allclose(space.sample(5, np.random.default_rng(0))[:, 1], 1 / 3)


def test_a_fixed_weight_is_said_once() -> None:
    space = MixtureSpace.from_domains(domains({"web": 100, "math": 50}, 10, math={"bounds": (0.3, 0.3)}))
    assert space.binding(np.array([0.7, 0.3])) == ("math: fixed at 0.3, since bounds allow at most 0.3 and bounds ask for at least 0.3",)


def test_where_one_cap_is_not_enough_all_are_scaled() -> None:
    tokens = {"a": 10.0, "b": 10.0, "c": 10.0}
    bounded = {name: {"bounds": (0.0, 0.45)} for name in tokens}
    with pytest.raises(InfeasibleError) as caught:
        MixtureSpace.from_domains(domains(tokens, 400, **bounded))
    factor = float(re.search(r"by ([0-9.]+[0-9])", caught.value.hint)[1])
    assert factor == pytest.approx(10 / 3, abs=0.011)
    MixtureSpace.from_domains(domains(tokens, 400, **{name: {"bounds": (0.0, 0.45), "max_epochs": 4 * factor} for name in tokens}))


def test_user_bounds_below_one_are_named_as_such() -> None:
    tokens = {"a": 100.0, "b": 100.0}
    with pytest.raises(InfeasibleError) as caught:
        MixtureSpace.from_domains(domains(tokens, 10, a={"bounds": (0.0, 0.3)}, b={"bounds": (0.0, 0.5)}))
    raised = float(re.search(r"'b' in `bounds` to ([0-9.]+[0-9])", caught.value.hint)[1])
    assert raised == pytest.approx(0.7)
    MixtureSpace.from_domains(domains(tokens, 10, a={"bounds": (0.0, 0.3)}, b={"bounds": (0.0, raised)}))


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_remedy_about_epochs_works(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dimension = int(rng.integers(2, 6))
    tokens = {f"d{index}": float(value) for index, value in enumerate(rng.lognormal(0, 1, dimension))}
    changes = {name: {"bounds": (0.0, float(rng.choice([1.0, 0.7])))} for name in tokens}
    short = domains(tokens, sum(tokens.values()) * rng.uniform(4.1, 12), **changes)
    with pytest.raises(InfeasibleError) as caught:
        MixtureSpace.from_domains(short)
    one = re.search(r"`max_epochs` of '(\w+)' from 4 to ([0-9.]*[0-9])", caught.value.hint)
    all_of = re.search(r"Multiply `max_epochs` of (.+) by ([0-9.]*[0-9])\.$", caught.value.hint)
    assert one or all_of
    raised = {one[1]: float(one[2])} if one else {name: 4 * float(all_of[2]) for name in re.findall(r"'(\w+)'", all_of[1])}
    mended = tuple(replace(domain, max_epochs=raised.get(domain.name, 4.0)) for domain in short.domains)
    MixtureSpace.from_domains(DomainSet(mended, short.budget_tokens))
