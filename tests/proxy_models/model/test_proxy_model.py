"""The stacked model against plain models; independence of its members; its state."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from proxy_models.balancing import Loads
from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.layers import QUERY_BLOCK, CausalAttention, rotary_table
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW
from proxy_models.reference import PlainProxy, PlainTrainer, rotate

Draw = Callable[..., Tensor]


def train(model: PackedProxy, optimizer: PackedAdamW, tokens_KBS: Tensor) -> Tensor:
    optimizer.zero_grad()
    losses = model.training_loss(tokens_KBS)
    losses.sum().backward()
    _, finite = optimizer.step([1.0] * model.members, [True] * model.members)
    model.update_router_bias(finite)
    return losses.detach()


def assert_same_member(left: PackedProxy, k: int, right: PackedProxy, j: int) -> None:
    other = right.member_state(j)
    for name, tensor in left.member_state(k).items():
        assert torch.equal(tensor, other[name]), name


def test_losses_and_gradients_equal_plain_models(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    """In float64, where nothing but a mistake separates the two."""
    model = PackedProxy(tiny, [11, 12, 13]).double()
    for moe in model.moe_layers:
        moe.router_bias.normal_(0, 0.1, generator=torch.Generator().manual_seed(0))
    tokens = draw_tokens(3)
    losses = model.training_loss(tokens)
    losses.sum().backward()
    for k in range(3):
        plain = PlainProxy(tiny, model.member_state(k))
        loss = plain.loss(tokens[k])
        loss.backward()
        torch.testing.assert_close(losses[k], loss, rtol=1e-12, atol=0)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad[k], plain.weights[name].grad, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(model.token_losses(tokens)[k], plain.token_losses(tokens[k]).detach(), rtol=1e-11, atol=1e-12)
        assert [moe.load[k].tolist() for moe in model.moe_layers] == [load.long().tolist() for load in plain.loads]


def differences_after_ten_steps(config: ProxyConfig, draw_tokens: Draw, dtype: torch.dtype) -> Tensor:
    """Absolute differences of all weights between a pack of three (seeds, rates and data differ) and three plain models, both trained."""
    rates = [3e-3, 1e-2, 1e-3]
    model = PackedProxy(config, [5, 6, 7]).to(dtype)
    start = [model.member_state(k) for k in range(3)]
    # The fused update takes its clip factor in float32, which float64 would show.
    optimizer = PackedAdamW(model, rates, weight_decay=0.1, clip=0.5, fused=dtype == torch.float32)
    trainers = [PlainTrainer(PlainProxy(config, start[k]), rates[k], weight_decay=0.1, clip=0.5) for k in range(3)]
    for step in range(10):
        tokens = draw_tokens(3, step)
        losses = train(model, optimizer, tokens)
        for k, trainer in enumerate(trainers):
            assert trainer.step(tokens[k]) == pytest.approx(float(losses[k]), rel=1e-5)
    differences = []
    for k, trainer in enumerate(trainers):
        for name, parameter in model.named_parameters():
            plain = trainer.model.weights[name].detach()
            assert (plain - start[k][name]).abs().max() > 1e-3, f"{name} did not move"
            differences.append((parameter[k].detach() - plain).abs().flatten())
        for layer, moe in enumerate(model.moe_layers):
            torch.testing.assert_close(moe.router_bias[k], trainer.model.router_biases[layer])
    return torch.cat(differences)


def test_ten_steps_equal_plain_models_in_float64(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    assert differences_after_ten_steps(tiny, draw_tokens, torch.float64).max() < 1e-11


def test_a_dense_pack_equals_plain_models(tiny_dense: ProxyConfig, draw_tokens: Draw) -> None:
    """Loss, gradients and ten steps of the control, in float64; it has no experts to route to, and says so."""
    model = PackedProxy(tiny_dense, [11, 12, 13]).double()
    tokens = draw_tokens(3)
    losses = model.training_loss(tokens)
    losses.sum().backward()
    for k in range(3):
        plain = PlainProxy(tiny_dense, model.member_state(k))
        loss = plain.loss(tokens[k])
        loss.backward()
        torch.testing.assert_close(losses[k], loss, rtol=1e-12, atol=0)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad[k], plain.weights[name].grad, rtol=1e-9, atol=1e-13)
        torch.testing.assert_close(model.token_losses(tokens)[k], plain.token_losses(tokens[k]).detach(), rtol=1e-11, atol=1e-12)
    assert differences_after_ten_steps(tiny_dense, draw_tokens, torch.float64).max() < 1e-11
    assert model.loads(1) == Loads([], [])
    assert not [name for name in model.state_dict() if "expert_" in name or "router" in name or "load" in name]


def test_a_dense_pack_is_compacted_like_any_other(tiny_dense: ProxyConfig, draw_tokens: Draw) -> None:
    full = PackedProxy(tiny_dense, [0, 1, 2])
    optimizer = PackedAdamW(full, [3e-3] * 3, 0.1)
    train(full, optimizer, draw_tokens(3))
    part = full.select([2, 0])
    rest = optimizer.select([2, 0], part)
    tokens = draw_tokens(3, 1)
    train(full, optimizer, tokens)
    train(part, rest, tokens[[2, 0]])
    assert_same_member(part, 0, full, 2)
    assert_same_member(part, 1, full, 0)


def test_many_narrow_experts_equal_plain_models(draw_tokens: Draw) -> None:
    """Eight of 64 and two shared, as medium and large have: the order of sums over choices, experts without a row."""
    config = ProxyConfig("fine", vocab_size=96, d_model=32, n_layers=2, n_heads=2, n_experts=64, top_k=8, n_shared_experts=2, d_expert=8)
    assert differences_after_ten_steps(config, draw_tokens, torch.float64).max() < 1e-11


def test_ten_steps_equal_plain_models_in_float32(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    """Within 2e-6, but for a few weights whose gradient is nearly zero: Adam divides it by its own size, rounding and all. Over nine members
    of three seeds at these rates at most 0.2% of the weights were beyond 2e-6, and none beyond 7e-5."""
    differences = differences_after_ten_steps(tiny, draw_tokens, torch.float32)
    assert (differences > 2e-6).double().mean() < 0.01
    assert differences.max() < 1e-3


def test_initial_weights_depend_on_the_own_seed_alone(tiny: ProxyConfig) -> None:
    alone, pack = PackedProxy(tiny, [8]), PackedProxy(tiny, [7, 9, 8])
    assert_same_member(alone, 0, pack, 2)
    assert not torch.equal(pack.embedding[0], pack.embedding[1])
    torch.manual_seed(123)  # the global generator plays no part
    assert_same_member(alone, 0, PackedProxy(tiny, [8]), 0)


def test_members_do_not_depend_on_their_pack(draw_tokens: Draw) -> None:
    """Members 0 and 1 of two equal those of four, bit for bit, over five steps of the real nano shape."""
    config = proxy_config("nano", 96)
    small, large = PackedProxy(config, [0, 1]), PackedProxy(config, [0, 1, 2, 3])
    optimizers = [PackedAdamW(model, [3e-3] * model.members, 0.1) for model in (small, large)]
    for step in range(5):
        tokens = draw_tokens(4, step)
        losses = train(small, optimizers[0], tokens[:2]), train(large, optimizers[1], tokens)
        assert torch.equal(losses[0], losses[1][:2])
    for k in (0, 1):
        assert_same_member(small, k, large, k)


@pytest.mark.parametrize("poisoned", ["embedding", "layers.0.moe.router", "layers.1.attention.qkv", "layers.0.moe.expert_in"])
def test_a_nan_changes_no_other_member(tiny: ProxyConfig, draw_tokens: Draw, poisoned: str) -> None:
    clean, sick = PackedProxy(tiny, [0, 1, 2]), PackedProxy(tiny, [0, 1, 2])
    with torch.no_grad():
        dict(sick.named_parameters())[poisoned][1].fill_(float("nan"))
    before = sick.member_state(1)
    optimizers = [PackedAdamW(model, [3e-3] * 3, 0.1) for model in (clean, sick)]
    for step in range(3):
        tokens = draw_tokens(3, step)
        train(clean, optimizers[0], tokens)
        losses = train(sick, optimizers[1], tokens)
        assert losses.isnan().tolist() == [False, True, False]
    for k in (0, 2):
        assert_same_member(clean, k, sick, k)
    for name, tensor in sick.member_state(1).items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), f"the diverged member's {name} moved"


def test_scoring_disturbs_nothing(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    model = PackedProxy(tiny, [0, 1])
    losses = model.training_loss(draw_tokens(2))
    load = [moe.load.clone() for moe in model.moe_layers]
    scored = model.token_losses(draw_tokens(2, step=1, sequences=3, window=20))
    assert scored.shape == (2, 3, 20)
    assert not scored.requires_grad
    assert all(torch.equal(moe.load, kept) for moe, kept in zip(model.moe_layers, load, strict=True))
    torch.testing.assert_close(model.token_losses(draw_tokens(2)).mean((1, 2)), losses.detach(), rtol=1e-5, atol=0)
    losses.sum().backward()  # the workspace was used in between; the gradients must not live in it
    again = PackedProxy(tiny, [0, 1])
    again.training_loss(draw_tokens(2)).sum().backward()
    for mine, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine.grad, other.grad)


def test_gradients_of_several_forward_passes_meet_in_one_backward(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    """The tied embedding's gradient is handed from loss to lookup outside autograd: each pass has its own, and scoring in between has none."""
    model = PackedProxy(tiny, [4, 5]).double()
    parameters = list(model.parameters())
    apart = [torch.autograd.grad(model.training_loss(draw_tokens(2, step)).sum(), parameters) for step in range(2)]
    first = model.training_loss(draw_tokens(2, 0))
    second = model.training_loss(draw_tokens(2, 1))
    model.token_losses(draw_tokens(2, 2))
    (first.sum() - 3.0 * second.sum()).backward(retain_graph=True)
    for parameter, one, other in zip(parameters, *apart, strict=True):
        torch.testing.assert_close(parameter.grad, one - 3.0 * other, rtol=1e-9, atol=1e-13)
    with pytest.raises(RuntimeError, match="once per forward pass"):
        first.sum().backward()


def test_the_future_is_not_seen(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    model = PackedProxy(tiny, [4])
    tokens = draw_tokens(1)
    changed = tokens.clone()
    changed[:, :, 20:] = (changed[:, :, 20:] + 1) % tiny.vocab_size
    before, after = model.token_losses(tokens), model.token_losses(changed)
    torch.testing.assert_close(before[:, :, :19], after[:, :, :19])
    assert not torch.allclose(before[:, :, 19:], after[:, :, 19:])


def test_chunks_of_logits_do_not_change_the_loss(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    losses = [PackedProxy(tiny, [0, 1], chunk_tokens=chunk).training_loss(draw_tokens(2)) for chunk in (1, 50, 4096)]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize("window", [1, 9, QUERY_BLOCK, QUERY_BLOCK + 1, 3 * QUERY_BLOCK - 5])
def test_attention_matches_a_plain_one_and_its_gradients(window: int) -> None:
    """Torch's fused attention over heads rotated by the reference; windows of one block, of several and of a part."""
    generator = torch.Generator().manual_seed(window)
    qkv = torch.randn(2, window, 3, 2, 8, generator=generator, dtype=torch.float64).requires_grad_()
    query, key = (torch.stack([rotate(qkv[:, :, part, head], 10_000.0) for head in range(2)], dim=1) for part in (0, 1))
    plain = F.scaled_dot_product_attention(query, key, qkv[:, :, 2].transpose(1, 2), is_causal=True).transpose(1, 2)
    fast = CausalAttention.apply(qkv, rotary_table(window, 8, 10_000.0, torch.float64, torch.device("cpu")))
    torch.testing.assert_close(fast, plain)
    slope = torch.randn(fast.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(torch.autograd.grad(fast, qkv, slope), torch.autograd.grad(plain, qkv, slope))


def test_attention_stands_scores_of_any_size() -> None:
    """Logits of tens of thousands: exponentials are shifted by the largest."""
    qkv = (1e3 * torch.randn(1, 20, 3, 1, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    out = CausalAttention.apply(qkv, rotary_table(20, 8, 10_000.0, torch.float32, torch.device("cpu")))
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


def test_every_parameter_is_one_contiguous_leaf_with_the_pack_first(tiny: ProxyConfig) -> None:
    for name, parameter in PackedProxy(tiny, [0, 1, 2]).named_parameters():
        assert parameter.is_leaf, name
        assert parameter.is_contiguous(), name
        assert parameter.shape[0] == 3, name


def test_a_selected_pack_goes_on_as_if_it_had_been_alone(draw_tokens: Draw) -> None:
    config = proxy_config("nano", 96)
    full = PackedProxy(config, [0, 1, 2, 3])
    rates = [1e-3, 2e-3, 3e-3, 4e-3]
    optimizer = PackedAdamW(full, rates, 0.1)
    for step in range(3):
        train(full, optimizer, draw_tokens(4, step))
    full.training_loss(draw_tokens(4, 3))  # leaves a load that the bias update still needs
    part = full.select([3, 1])
    part_optimizer = optimizer.select([3, 1], part)
    assert part.seeds == (3, 1)
    assert part_optimizer.learning_rates == (4e-3, 2e-3)
    assert (part.loads(0), part.loads(1)) == (full.loads(3), full.loads(1))
    full.update_router_bias()
    part.update_router_bias()
    for step in range(4, 7):
        tokens = draw_tokens(4, step)
        assert torch.equal(train(full, optimizer, tokens)[[3, 1]], train(part, part_optimizer, tokens[[3, 1]]))
    assert_same_member(full, 3, part, 0)
    assert_same_member(full, 1, part, 1)
    with pytest.raises(ValueError, match=r"members \[4\]"):
        full.select([0, 4])


def test_a_member_moves_between_packs(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    model = PackedProxy(tiny, [0, 1])
    train(model, PackedAdamW(model, [1e-2] * 2, 0.1), draw_tokens(2))
    state = model.member_state(1)
    assert state["embedding"].shape == (tiny.vocab_size, tiny.d_model)
    assert state["layers.1.moe.router_bias"].abs().max() > 0
    other = PackedProxy(tiny, [7, 8, 9])
    untouched = other.member_state(0)
    other.load_member_state(2, state)
    assert_same_member(model, 1, other, 2)
    assert all(torch.equal(untouched[name], tensor) for name, tensor in other.member_state(0).items())
    state["embedding"].zero_()
    assert model.embedding[1].abs().max() > 0, "a member's state is a copy"


def test_a_foreign_state_is_refused_before_anything_changes(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [0])
    before = model.member_state(0)
    with pytest.raises(ValueError, match=r"layers\.1\.moe\.router are only in one"):
        model.load_member_state(0, {name: tensor + 1 for name, tensor in before.items() if name != "layers.1.moe.router"})
    with pytest.raises(ValueError, match=r"'norm' has shape \(31,\)"):
        model.load_member_state(0, {name: tensor[:31] if name == "norm" else tensor + 1 for name, tensor in before.items()})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.member_state(0).items())


def test_loads_are_of_the_last_pass_and_of_the_steps_counted(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    model = PackedProxy(tiny, [0, 1])
    assert model.loads(1) == Loads([[0] * 4, [0] * 4], [[0] * 4, [0] * 4])
    passes = []
    for step in range(3):
        model.training_loss(draw_tokens(2, step))
        passes.append([model.loads(k).last_LE for k in range(2)])
        if step == 1:
            model.count_from(1)  # anew
        model.count_load([step > 0, True])
    for k in range(2):
        rows = np.array([one[k] for one in passes])
        assert (rows.sum(-1) == 4 * 32 * 2).all()
        assert model.loads(k).counted_LE == rows[1:].sum(0).tolist()
    model.token_losses(draw_tokens(2, 4))
    assert model.loads(1).last_LE == passes[2][1], "scoring is not counted"


@pytest.mark.parametrize(
    ("shape", "value", "message"),
    [
        ((2, 4, 9), 96, "run from 0 to 96; the vocabulary has 96"),
        ((2, 4, 9), -1, "run from -1 to 0"),
        ((3, 4, 9), 0, r"expected \(2, B, T\+1\)"),
        ((2, 9), 0, r"shape \(2, 9\)"),
        ((2, 4, 1), 0, r"shape \(2, 4, 1\)"),
    ],
)
def test_wrong_tokens_are_refused(tiny: ProxyConfig, shape: tuple[int, ...], value: int, message: str) -> None:
    tokens = torch.zeros(shape, dtype=torch.int64)
    tokens[(0,) * len(shape)] = value
    model = PackedProxy(tiny, [0, 1])
    for method in (model.training_loss, model.token_losses):
        with pytest.raises(ValueError, match=message):
            method(tokens)


def test_a_pack_has_members(tiny: ProxyConfig) -> None:
    with pytest.raises(ValueError, match="seeds is empty"):
        PackedProxy(tiny, [])
