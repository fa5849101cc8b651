"""An upcycled proxy: equal to its dense parent until something is drawn anew, and then different in exactly that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proxy_models.config import DENSE, WIDTHS, ProxyConfig, proxy_config
from proxy_models.model import PackedProxy
from proxy_models.reference import PlainProxy
from proxy_models.upcycling import dense_parent, upcycled

FINE = ProxyConfig("fine", vocab_size=96, d_model=48, n_layers=2, n_heads=2, n_experts=16, top_k=4, n_shared_experts=2, d_expert=16)


def trained_dense(config: ProxyConfig, seed: int = 3) -> dict[str, Tensor]:
    """A dense parent whose weights are large and lopsided, as training may leave them; norms are not one."""
    state = PackedProxy(dense_parent(config), [seed]).member_state(0)
    generator = torch.Generator().manual_seed(seed)
    return {name: tensor * (1 + torch.rand(tensor.shape, generator=generator)) for name, tensor in state.items()}


def proxy_of(config: ProxyConfig, state: dict[str, Tensor]) -> PackedProxy:
    model = PackedProxy(config, [0], draw=False)
    model.load_member_state(0, state)
    return model


@pytest.mark.parametrize("shape", ["tiny", "fine", "nano"])
@pytest.mark.parametrize("seed", [0, 7])
def test_an_upcycled_proxy_equals_its_dense_parent(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], shape: str, seed: int) -> None:
    """Whatever the router of the seed says; in float32, so losses agree to some units in the last place."""
    config = {"tiny": tiny, "fine": FINE, "nano": proxy_config("nano", 96)}[shape]
    dense = trained_dense(config)
    tokens_1BS = draw_tokens(1)
    expected = proxy_of(dense_parent(config), dense).token_losses(tokens_1BS)
    model = proxy_of(config, upcycled(config, dense, seed, 0.0))
    torch.testing.assert_close(model.token_losses(tokens_1BS), expected, rtol=1e-5, atol=1e-5)
    # Each token went to one copy of every group: only that gives the parent's sum.
    model.training_loss(tokens_1BS)
    for moe in model.moe_layers:
        by_group = moe.load.view(-1, config.top_k)
        assert (by_group == by_group[:, :1]).all()
        assert (by_group[:, 0] > 0).sum() > 1, "the router sends tokens to several copies"


def test_in_double_precision_they_are_equal_to_rounding(draw_tokens: Callable[..., Tensor], tiny: ProxyConfig) -> None:
    dense = trained_dense(tiny)
    tokens_BS = draw_tokens(1)[0]
    plain = PlainProxy(dense_parent(tiny), {name: tensor.double() for name, tensor in dense.items()})
    experts = PlainProxy(tiny, {name: tensor.double() for name, tensor in upcycled(tiny, dense, 1, 0.0).items()})
    torch.testing.assert_close(experts.logits(tokens_BS[:, :-1]), plain.logits(tokens_BS[:, :-1]), rtol=1e-12, atol=1e-12)


def test_what_is_not_feed_forward_is_the_parents(tiny: ProxyConfig) -> None:
    dense = trained_dense(tiny)
    state = upcycled(tiny, dense, 0, 0.5)
    assert state.keys() == PackedProxy(tiny, [0]).member_state(0).keys()
    kept = [name for name in dense if not name.endswith(("shared_in", "shared_out"))]
    assert len(kept) == len(dense) - 2 * tiny.n_layers
    assert all(torch.equal(state[name], dense[name]) for name in kept)
    assert all(not state[name].any() for name in state if name.endswith("router_bias"))
    state["embedding"].zero_()
    assert dense["embedding"].any(), "the parent's tensors are not shared"


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_exactly_the_share_of_hidden_units_is_drawn_anew(tiny: ProxyConfig, share: float) -> None:
    dense = trained_dense(tiny)
    before, after = upcycled(tiny, dense, 5, 0.0), upcycled(tiny, dense, 5, share)
    width, chosen = tiny.d_expert, []
    for name in before:
        if "expert_" not in name:
            assert torch.equal(before[name], after[name]), f"{name} does not depend on the share"
    for layer in range(tiny.n_layers):
        prefix = f"layers.{layer}.moe."
        changed_in = (before[prefix + "expert_in"] != after[prefix + "expert_in"]).transpose(1, 2)  # (E, 2F, D)
        changed_out = before[prefix + "expert_out"] != after[prefix + "expert_out"]  # (E, F, D)
        for expert in range(tiny.n_experts):
            gate, up, out = changed_in[expert, :width], changed_in[expert, width:], changed_out[expert]
            units = out.any(dim=1)
            assert units.sum() == math.floor(share * width)
            for part in (gate, up, out):
                assert torch.equal(part.all(dim=1), units), "a unit is drawn anew whole"
                assert torch.equal(part.any(dim=1), units), "and the others not at all"
            chosen.append(tuple(units.tolist()))
    if 0 < share < 1:
        assert len(set(chosen)) > 1, "every expert for itself"


def test_what_is_drawn_has_the_mean_and_deviation_of_what_it_replaces() -> None:
    config = dataclasses.replace(FINE, d_model=192, d_expert=256, n_experts=8)
    dense = trained_dense(config)
    dense = {name: tensor + 0.05 if name.endswith("shared_out") else tensor for name, tensor in dense.items()}
    before, after = upcycled(config, dense, 0, 0.0), upcycled(config, dense, 0, 1.0)
    for name in ("layers.0.moe.expert_in", "layers.1.moe.expert_out"):
        for expert in range(config.n_experts):
            old, new = before[name][expert], after[name][expert]
            parts = zip(old.chunk(2, 1), new.chunk(2, 1), strict=True) if name.endswith("in") else [(old, new)]
            for one, other in parts:
                assert float(other.std()) == pytest.approx(float(one.std()), rel=0.03)
                assert float(other.mean()) == pytest.approx(float(one.mean()), abs=0.02 * float(one.std()))


def test_the_seed_decides_what_is_drawn(tiny: ProxyConfig) -> None:
    dense = trained_dense(tiny)
    first, again, other = (upcycled(tiny, dense, seed, 0.5) for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    for name in ("layers.0.moe.router", "layers.0.moe.expert_in", "layers.1.moe.expert_out"):
        assert not torch.equal(first[name], other[name])
    assert torch.equal(first["layers.0.moe.shared_in"], other["layers.0.moe.shared_in"])


@pytest.mark.parametrize("size", WIDTHS)
def test_the_parent_of_a_size_is_its_dense_control(size: str) -> None:
    assert dense_parent(proxy_config(size, 512)) == proxy_config(size + DENSE, 512)


def test_what_cannot_be_upcycled_is_refused(tiny: ProxyConfig, tiny_dense: ProxyConfig) -> None:
    dense = trained_dense(tiny)
    with pytest.raises(ValueError, match="dense already"):
        upcycled(tiny_dense, dense, 0, 0.5)
    with pytest.raises(ValueError, match="no multiple of top_k"):
        dense_parent(dataclasses.replace(tiny, top_k=3))
    with pytest.raises(ValueError, match=r"reinitialized is 1\.5"):
        upcycled(tiny, dense, 0, 1.5)
    with pytest.raises(ValueError, match="not those of tiny-dense"):
        upcycled(tiny, PackedProxy(tiny, [0]).member_state(0), 0, 0.5)
    with pytest.raises(ValueError, match=r"layers\.0\.moe\.shared_in"):
        upcycled(tiny, trained_dense(dataclasses.replace(tiny, d_expert=24)), 0, 0.5)
