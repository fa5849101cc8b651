"""Experts in another order are the same model; averages of them are not, until they are in one order."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.merging.alignment import PermutedComponent, aligned, likeness, matched_experts, share_a_base
from proxy_models.merging.components import Component, HeldComponent
from proxy_models.merging.diagnosis import displacement
from proxy_models.merging.merge import merge
from proxy_models.merging.operators import MergeOperator, Spherical
from proxy_models.merging.routes import single
from proxy_models.merging.sparse_operators import Ties

Branch = Callable[..., HeldComponent]
State = dict[str, Tensor]
ORDER = [[2, 0, 3, 1], [1, 3, 0, 2]]


def permuted(state: State, expert_LE: list[list[int]]) -> State:
    """Written out, tensor by tensor."""
    moved = dict(state)
    for layer, order in enumerate(expert_LE):
        prefix = f"layers.{layer}.moe."
        for kind in ("expert_in", "expert_out", "router_bias"):
            moved[prefix + kind] = state[prefix + kind][order]
        moved[prefix + "router"] = state[prefix + "router"][:, order]
    return moved


def losses(config: ProxyConfig, component: Component, tokens: Tensor) -> Tensor:
    return single(config, component).token_losses(tokens[None])[0]


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=st.lists(st.permutations(range(4)), min_size=2, max_size=2))
def test_a_permuted_component_is_the_same_model(tiny: ProxyConfig, base_state: State, tokens: Tensor, orders: list[list[int]]) -> None:
    component = HeldComponent("a", base_state)
    moved = PermutedComponent(component, orders)
    expected = permuted(base_state, orders)
    assert all(torch.equal(moved.rows(name, 0, value.shape[0]), value) for name, value in expected.items())
    assert all(torch.equal(moved.rows("layers.0.moe.expert_in", 3, 7, e), expected["layers.0.moe.expert_in"][e, 3:7]) for e in range(4))
    assert torch.allclose(losses(tiny, moved, tokens), losses(tiny, component, tokens), atol=1e-5)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(orders=st.lists(st.permutations(range(4)), min_size=2, max_size=2), shift=st.floats(-3, 3))
def test_permuted_copies_merge_back_after_alignment(
    tiny: ProxyConfig, base_state: State, tokens: Tensor, orders: list[list[int]], shift: float
) -> None:
    """Also where the copy's router rows all carry one more vector, which changes nothing."""
    moved = permuted(base_state, orders)
    moved["layers.0.moe.router"] = moved["layers.0.moe.router"] + shift
    copies = [HeldComponent("a", base_state), HeldComponent("b", moved)]
    half = {"a": 0.5, "b": 0.5}
    merged = merge(aligned(copies), half)
    expected = losses(tiny, copies[0], tokens)
    assert torch.allclose(losses(tiny, HeldComponent("merged", merged), tokens), expected, atol=1e-4)
    if any(order != sorted(order) for order in orders):
        naive = losses(tiny, HeldComponent("naive", merge(copies, half)), tokens)
        assert float((naive - expected).abs().mean()) > 0.01


@pytest.mark.parametrize("operator", [None, Spherical(), Ties(density=1.0)])
def test_without_alignment_they_do_not(tiny: ProxyConfig, base_state: State, tokens: Tensor, operator: MergeOperator | None) -> None:
    copies = [HeldComponent("a", base_state), HeldComponent("b", permuted(base_state, ORDER))]
    base, half = HeldComponent("base", {name: torch.zeros_like(value) for name, value in base_state.items()}), {"a": 0.5, "b": 0.5}
    expected = losses(tiny, copies[0], tokens)
    naive, merged = (merge(parts, half, operator, base) for parts in (copies, aligned(copies)))
    errors = [float((losses(tiny, HeldComponent("m", state), tokens) - expected).abs().mean()) for state in (naive, merged)]
    assert errors[0] > 0.02
    assert errors[1] < 1e-4


def test_noisy_copies_are_matched(branch: Branch, base_state: State) -> None:
    noisy = branch("b", 7, step=0.3)
    state = {name: noisy.rows(name, 0, shape[0]) for name, shape in noisy.shapes.items()}
    matched = matched_experts(HeldComponent("a", base_state), HeldComponent("b", permuted(state, ORDER)))
    assert [[order[place] for place in row] for order, row in zip(ORDER, matched, strict=True)] == [[0, 1, 2, 3]] * 2


def test_the_matching_is_the_best_of_all(branch: Branch) -> None:
    """Against every one of the 24 orders, of models that have nothing to do with each other."""
    one, other = branch("a", 1, step=2.0), branch("b", 2, step=2.0)
    for layer, found in enumerate(matched_experts(one, other)):
        products_EE = likeness(one, other, layer)
        totals = {order: float(products_EE[range(4), list(order)].sum()) for order in itertools.permutations(range(4))}
        assert totals[tuple(found)] == max(totals.values())


def test_likeness_is_of_whole_experts(branch: Branch) -> None:
    one, other = branch("a", 1), branch("b", 2)

    def vector(component: HeldComponent, expert: int) -> Tensor:
        router = component.rows("layers.1.moe.router", 0, 32)
        centred = (router - router.mean(1, keepdim=True))[:, expert]
        parts = [component.rows(f"layers.1.moe.{kind}", 0, 4)[expert].flatten() for kind in ("expert_in", "expert_out")]
        return torch.cat([centred, *parts]).double()

    expected = torch.tensor([[float(vector(one, e) @ vector(other, f)) for f in range(4)] for e in range(4)], dtype=torch.float64)
    assert torch.allclose(likeness(one, other, 1), expected, rtol=1e-5)


def test_components_of_one_base_stay_as_they_are(branch: Branch, base_state: State) -> None:
    parts = [branch("a", 1), branch("b", 2)]
    assert share_a_base(parts)
    assert aligned(parts) == parts
    unknown = [parts[0], HeldComponent("c", base_state)]
    assert not share_a_base(unknown)
    assert [type(part) for part in aligned(unknown)] == [HeldComponent, PermutedComponent]
    assert not share_a_base([HeldComponent("c", base_state), HeldComponent("d", base_state)]), "nobody knows where these began"


def test_alignment_to_a_model_that_is_none_of_them(branch: Branch, base_state: State) -> None:
    reference = HeldComponent("reference", permuted(base_state, ORDER))
    parts = [HeldComponent("a", base_state), HeldComponent("b", permuted(base_state, ORDER[::-1]))]
    for part in aligned(parts, reference):
        assert displacement(part, reference).total < 1e-6


def test_an_order_that_is_no_permutation(branch: Branch) -> None:
    with pytest.raises(ValueError, match=r"order \[0, 0, 1, 2\] of experts in layer 1 of 'a' is no permutation of 4"):
        PermutedComponent(branch("a", 1), [[0, 1, 2, 3], [0, 0, 1, 2]])
    with pytest.raises(ValueError, match=r"order \[\] of experts in layer 1"):
        PermutedComponent(branch("a", 1), [[0, 1, 2, 3]])
