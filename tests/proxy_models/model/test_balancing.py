"""The balancing loss: its value and gradient against the plain model, whose loss it is not, on the path of a CPU and of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proxy_models.balancing import BalanceLoss
from proxy_models.config import ProxyConfig
from proxy_models.device.precision import Compute
from proxy_models.model import PackedProxy
from proxy_models.moe import PackedMoE
from proxy_models.reference import PlainProxy
from tests.proxy_models.model.test_proxy_model import differences_after_ten_steps

Draw = Callable[..., Tensor]
WEIGHT = 0.3
"""Far above what anybody would use, so that a wrong gradient shows."""


@pytest.mark.parametrize("compute", [None, Compute(experts="capacity")], ids=["cpu", "device"])
def test_its_gradient_is_that_of_the_plain_model_and_the_loss_is_not_touched(
    tiny: ProxyConfig, draw_tokens: Draw, compute: Compute | None
) -> None:
    """In float64, for members that choose with different biases; members weigh differently in the sum that is differentiated."""
    config = replace(tiny, auxiliary_loss=WEIGHT)
    model = PackedProxy(config, [11, 12, 13], compute=compute).double()
    for moe in model.moe_layers:
        moe.router_bias.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    tokens, scale_K = draw_tokens(3), torch.tensor([1.0, 1.0, 0.5 if compute is not None else 1.0], dtype=torch.float64)
    losses = model.training_loss(tokens)
    (losses * scale_K).sum().backward()
    without = PackedProxy(tiny, [11, 12, 13], compute=compute).double()
    for k in range(3):
        without.load_member_state(k, model.member_state(k))
        plain = PlainProxy(config, model.member_state(k))
        loss = plain.loss(tokens[k])
        ((loss + plain.auxiliary_loss()) * scale_K[k]).backward()
        torch.testing.assert_close(losses[k], loss, rtol=1e-12, atol=0)
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter.grad[k], plain.weights[name].grad, rtol=1e-9, atol=1e-13)
        assert 2 < float(plain.auxiliary_loss().detach()) / WEIGHT < 2 * 4  # two layers of four experts, of which each token has two
    assert torch.equal(losses, without.training_loss(tokens)), "what is reported is the cross-entropy, to the last bit"
    without.training_loss(tokens).sum().backward()
    assert not torch.allclose(model.layers[0].moe.router.grad, without.layers[0].moe.router.grad, rtol=0.1)


@pytest.mark.parametrize("bias_update_rate", [0.0, 1e-3], ids=["instead of the bias", "beside the bias"])
def test_ten_steps_equal_plain_models(tiny: ProxyConfig, draw_tokens: Draw, bias_update_rate: float) -> None:
    config = replace(tiny, auxiliary_loss=WEIGHT, bias_update_rate=bias_update_rate)
    assert differences_after_ten_steps(config, draw_tokens, torch.float64).max() < 1e-11


def test_it_is_one_for_even_experts_and_grows_with_what_the_fullest_gets() -> None:
    logits = torch.zeros(2, 12, 4, dtype=torch.float64)
    logits[1, :, 2] = 20.0  # sure of one
    load = torch.tensor([[6, 6, 6, 6], [0, 0, 24, 0]])
    torch.testing.assert_close(
        BalanceLoss.apply(logits, logits.softmax(-1), load), torch.tensor([1.0, 4.0], dtype=torch.float64), rtol=1e-7, atol=0
    )


def test_it_passes_gradcheck() -> None:
    load = torch.tensor([[3, 1, 4, 2], [10, 0, 0, 0]])
    logits = torch.randn(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: BalanceLoss.apply(x, x.detach().softmax(-1), load), logits)


def test_a_pass_leaves_nothing_behind(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    """What the gradient needs is let go of with the loss; a pass that trains nothing makes none of it."""
    model = PackedProxy(replace(tiny, auxiliary_loss=WEIGHT), [0])
    model.training_loss(draw_tokens(1))
    model.token_losses(draw_tokens(1))
    assert all(moe._balance_loss_K is None for moe in model.moe_layers)


def test_without_a_bias_rate_there_is_no_bias(tiny: ProxyConfig, draw_tokens: Draw) -> None:
    model = PackedProxy(replace(tiny, bias_update_rate=0.0), [0])
    model.training_loss(draw_tokens(1))
    model.update_router_bias()
    assert all(not bool(moe.router_bias.any()) for moe in model.moe_layers)


def lopsided(config: ProxyConfig) -> tuple[PackedMoE, Callable[[], Tensor]]:
    """A layer whose router prefers two experts for every token, and a source of such tokens (1, 512, D)."""
    torch.manual_seed(0)
    moe, generator = PackedMoE(config, 1), torch.Generator().manual_seed(1)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    direction_D = torch.nn.functional.normalize(torch.randn(config.d_model, generator=generator), dim=0)
    with torch.no_grad():
        moe.norm.fill_(1.0)
        moe.router[0, :, 0] += 1.5 * direction_D
        moe.router[0, :, 1] += 1.2 * direction_D
    return moe, lambda: 4.0 * direction_D + torch.randn(1, 512, config.d_model, generator=generator)


@pytest.mark.parametrize("method", ["none", "bias", "auxiliary loss"])
def test_a_collapsed_router_is_rescued_by_either_method_and_by_nothing_else(tiny: ProxyConfig, method: str) -> None:
    config = replace(tiny, bias_update_rate=0.01 if method == "bias" else 0.0, auxiliary_loss=0.1 if method == "auxiliary loss" else 0.0)
    moe, draw = lopsided(config)
    optimizer = torch.optim.Adam([moe.router], lr=0.01)
    shares = []
    for _ in range(200):
        out = moe(draw(), record_load=True)
        shares.append((moe.load / moe.load.sum()).flatten().tolist())
        if method == "auxiliary loss":
            optimizer.zero_grad()
            (0.0 * out.sum() + config.auxiliary_loss * moe.take_balance_loss().sum()).backward()
            optimizer.step()
        moe.update_bias()
    assert sorted(shares[0])[:2] == [0.0, 0.0]
    if method == "none":
        assert sorted(shares[-1])[:2] == [0.0, 0.0]
    else:
        late = [sum(values) / 50 for values in zip(*shares[-50:], strict=True)]  # the bias steps to and fro
        assert min(late) > 0.15  # even is 0.25
