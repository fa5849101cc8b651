"""What accompanies a merge, against counts by hand; Fisher information; the bias estimated anew."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.merging.bias import imbalance, reestimate_bias
from proxy_models.merging.components import HeldComponent, members_of
from proxy_models.merging.contraction import merged_pack
from proxy_models.merging.diagnosis import Inspector, displacement
from proxy_models.merging.merge import merge
from proxy_models.merging.routes import Routes, component_routes, diagonal_fisher, routes_of, single
from proxy_models.model import PackedProxy
from proxy_models.reference import PlainProxy

Branch = Callable[..., HeldComponent]
State = dict[str, Tensor]


def held(component: HeldComponent) -> State:
    return {name: component.rows(name, 0, shape[0]) for name, shape in component.shapes.items()}


# Displacement


def test_displacement_by_hand(base_state: State, branch: Branch) -> None:
    component, base = branch("a", 1), HeldComponent("base", base_state)
    groups: dict[str, list[Tensor]] = {}
    for name, start in base_state.items():
        if name.endswith("router_bias"):
            continue
        one = component.rows(name, 0, start.shape[0])
        if name.endswith("router"):
            one, start = one - one.mean(1, keepdim=True), start - start.mean(1, keepdim=True)
        kind = {"embedding": "embedding", "norm": "norms", "router": "router"}.get(name.split(".")[-1])
        kind = kind or ("experts" if ".expert" in name else "shared" if ".shared" in name else "attention")
        groups.setdefault(kind, []).append(torch.stack([(one - start).flatten(), one.flatten(), start.flatten()]).double())

    def relative(parts: list[Tensor]) -> float:
        moved, own, reference = (math.sqrt(float(row.square().sum())) for row in torch.cat(parts, dim=1))
        return moved / (own + reference)

    found = displacement(component, base)
    assert found.by_group == pytest.approx({kind: relative(parts) for kind, parts in groups.items()}, rel=1e-5)
    assert found.total == pytest.approx(relative([part for parts in groups.values() for part in parts]), rel=1e-5)
    assert set(found.by_group) == {"embedding", "attention", "router", "experts", "shared", "norms"}


def test_displacement_is_zero_at_the_base_and_one_at_its_opposite(base_state: State) -> None:
    base = HeldComponent("base", base_state)
    opposite = HeldComponent("opposite", {name: -value for name, value in base_state.items()})
    assert displacement(base, base).total == 0
    assert displacement(opposite, base).total == pytest.approx(1)
    zeros = HeldComponent("zeros", {name: torch.zeros_like(value) for name, value in base_state.items()})
    assert displacement(zeros, zeros).total == 0
    shifted = {**base_state, "layers.0.moe.router": base_state["layers.0.moe.router"] + 3}
    assert displacement(HeldComponent("shifted", shifted), base).total < 1e-6


# Routes


def test_routes_are_those_of_the_plain_model(tiny: ProxyConfig, branch: Branch, tokens: Tensor) -> None:
    component = branch("a", 1)
    found = component_routes(tiny, component, tokens)
    plain = PlainProxy(tiny, held(component))
    plain.logits(tokens[:, :-1])
    for layer, chosen_BTS in enumerate(plain.chosen):
        expected = chosen_BTS.flatten(0, 1).sort(-1).values
        assert float((found.expert_LNC[layer].sort(-1).values == expected).float().mean()) > 0.999
    assert float((found.loads() - torch.stack(plain.loads)).abs().max()) <= 2  # a near tie may fall the other way
    assert torch.allclose(found.shares().sum(1), torch.ones(2, dtype=torch.float64))


def test_routes_do_not_depend_on_batches(tiny: ProxyConfig, branch: Branch, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = component_routes(tiny, branch("a", 1), tokens)
    monkeypatch.setattr("proxy_models.merging.routes.BATCH_TOKENS", 70)
    assert torch.equal(component_routes(tiny, branch("a", 1), tokens).expert_LNC, whole.expert_LNC)


def test_agreement_by_hand() -> None:
    one = Routes(torch.tensor([[[0, 1], [2, 3], [0, 2]]]), 4)
    other = Routes(torch.tensor([[[1, 0], [2, 1], [1, 3]]]), 4)
    assert one.agreement(other) == [pytest.approx((2 + 1 + 0) / 6)]
    assert one.agreement(one) == [1.0]


def test_watches_are_taken_away(tiny: ProxyConfig, branch: Branch, tokens: Tensor) -> None:
    pack = single(tiny, branch("a", 1))
    with pytest.raises(ValueError, match="token ids"):
        routes_of(pack, tokens + 1000)
    assert [moe.watch for moe in pack.moe_layers] == [None, None]


# Diagnoses


def test_a_merge_of_one_agrees_with_itself(tiny: ProxyConfig, branch: Branch, base_state: State, tokens: Tensor) -> None:
    parts, base = [branch("a", 1), branch("b", 2, step=1.0)], HeldComponent("base", base_state)
    found = Inspector(tiny, parts, base, tokens).of_merge(merge(parts, {"a": 1.0, "b": 0.0}))
    assert found.agreement["a"] == (1.0, 1.0)
    assert max(found.agreement["b"]) < 0.9
    assert found.measured_from == "base"
    assert found.agreement_with_base == tuple(component_routes(tiny, parts[0], tokens).agreement(component_routes(tiny, base, tokens)))
    assert min(found.agreement_with_base) < 1
    assert found.displacement["a"] == displacement(parts[0], base)
    assert found.displacement["b"].total > found.displacement["a"].total
    assert found.tokens == 16 * 32
    assert json.loads(json.dumps(found.to_json()))["displacement"]["a"]["total"] == found.displacement["a"].total


def test_packs_are_diagnosed_as_single_merges(tiny: ProxyConfig, branch: Branch, base_state: State, tokens: Tensor) -> None:
    parts, weights = [branch("a", 1), branch("b", 2)], [[0.3, 0.7], [0.9, 0.1]]
    for base in (HeldComponent("base", base_state), None):
        inspector = Inspector(tiny, parts, base, tokens)
        singles = [inspector.of_merge(merge(parts, {"a": row[0], "b": row[1]})) for row in weights]
        together = inspector.of_pack(merged_pack(tiny, parts, weights))
        for one, other in zip(singles, together, strict=True):
            assert one.measured_from == other.measured_from == ("merged" if base is None else "base")
            assert one.displacement == other.displacement
            for name in "ab":  # narrow proxies round a little differently in packs
                assert one.agreement[name] == pytest.approx(other.agreement[name], abs=0.01)
        assert singles[0].agreement != singles[1].agreement


def test_dead_experts_are_found(tiny: ProxyConfig, base_state: State, tokens: Tensor) -> None:
    starved = dict(base_state)
    starved["layers.1.moe.router_bias"] = torch.tensor([0.0, -9.0, 0.0, 0.0])
    parts = [HeldComponent("a", base_state), HeldComponent("b", starved)]
    found = Inspector(tiny, parts, None, tokens).of_merge(starved)
    assert found.agreement_with_base is None
    assert found.dead_experts == ((1, 1),)
    assert found.dead_in_components == {"a": 0, "b": 1}
    loads = component_routes(tiny, parts[1], tokens).loads().double()
    assert found.load_variation == pytest.approx((loads.std(1, correction=0) / loads.mean(1)).tolist())


def test_dense_proxies_have_no_routes(tiny_dense: ProxyConfig, tokens: Tensor) -> None:
    parts = members_of(PackedProxy(tiny_dense, [0, 1]), ["a", "b"])
    found = Inspector(tiny_dense, parts, parts[0], tokens).of_merge(merge(parts, {"a": 0.5, "b": 0.5}))
    assert (found.agreement, found.dead_experts, found.load_variation) == ({"a": (), "b": ()}, (), ())
    assert found.displacement["b"].total > 0.1
    json.dumps(found.to_json())
    pack = PackedProxy(tiny_dense, [0])
    reestimate_bias(pack, tokens)


# Fisher information


def test_fisher_information_against_the_plain_model(tiny: ProxyConfig, branch: Branch, tokens: Tensor) -> None:
    component = branch("a", 1)
    found = diagonal_fisher(tiny, component, tokens[:3])
    plain = PlainProxy(tiny, held(component))
    expected = {name: torch.zeros_like(value) for name, value in plain.weights.items()}
    for window in tokens[:3]:
        gradients = torch.autograd.grad(plain.loss(window[None]), list(plain.weights.values()))
        for name, gradient in zip(plain.weights, gradients, strict=True):
            expected[name] += gradient.detach().square() / 3
    assert found.keys() == held(component).keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, rtol=1e-2, atol=1e-3 * float(value.max())), name
    assert not found["layers.0.moe.router_bias"].any()
    balanced = diagonal_fisher(replace(tiny, auxiliary_loss=0.5), component, tokens[:3])
    assert all(torch.equal(balanced[name], value) for name, value in found.items()), "a loss for balance says nothing of the data"


# The balancing bias


def test_a_bias_estimated_anew_is_more_even(tiny: ProxyConfig, branch: Branch, base_state: State, tokens: Tensor) -> None:
    skewed = dict(base_state)
    skewed["layers.0.moe.router_bias"] = torch.tensor([0.4, 0.0, 0.0, -0.4])
    pack = merged_pack(tiny, [HeldComponent("a", skewed), branch("b", 1)], [[1.0, 0.0], [0.0, 1.0]])
    weights = {name: value.clone() for name, value in pack.state_dict().items()}
    before = imbalance(pack, tokens)
    reestimate_bias(pack, tokens)
    after = imbalance(pack, tokens)
    assert bool((after <= before).all())
    assert after[0] < 0.1 < 0.3 < before[0]
    changed = {name for name, value in pack.state_dict().items() if not torch.equal(value, weights[name])}
    assert changed == {"layers.0.moe.router_bias", "layers.1.moe.router_bias"}


def test_a_bias_that_was_better_is_kept(tiny: ProxyConfig, branch: Branch, tokens: Tensor) -> None:
    """One pass is a step far too long for a bias that is even already."""
    pack = single(tiny, branch("a", 1))
    reestimate_bias(pack, tokens)
    even = pack.member_state(0)
    reestimate_bias(pack, tokens, passes=1)
    assert all(torch.equal(value, even[name]) for name, value in pack.member_state(0).items())


def test_no_passes_leave_the_bias(tiny: ProxyConfig, branch: Branch, tokens: Tensor) -> None:
    pack = single(tiny, branch("a", 1))
    before = pack.member_state(0)
    reestimate_bias(pack, tokens, passes=0)
    assert all(torch.equal(value, before[name]) for name, value in pack.member_state(0).items())


def test_a_common_shift_of_biases_changes_no_choice(tiny: ProxyConfig, base_state: State, tokens: Tensor) -> None:
    """Why the average of biases is that of centred ones."""
    shifted = {name: value + 0.5 if name.endswith("router_bias") else value for name, value in base_state.items()}
    routes = [component_routes(tiny, HeldComponent("a", state), tokens) for state in (base_state, shifted)]
    assert routes[0].agreement(routes[1]) == pytest.approx([1.0, 1.0], abs=1e-3)
