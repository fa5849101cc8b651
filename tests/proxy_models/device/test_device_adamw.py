"""AdamW without the host against AdamW with it, and its treatment of members that must not move."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.device.adamw import DeviceAdamW
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW

RATES, DECAY = [1e-2, 3e-3, 1e-3], 0.2


def gradients_of(model: PackedProxy, step: int, scale: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(step)
    return [scale * torch.randn(parameter.shape, generator=generator) for parameter in model.parameters()]


def state(optimizer: PackedAdamW, k: int) -> dict[str, Tensor]:
    return {**optimizer.model.member_state(k), **optimizer.member_state(k)}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize(("clip", "parametrization"), [(math.inf, "standard"), (0.3, "standard"), (0.3, "mup")])
def test_it_is_the_optimizer_with_the_host(tiny: ProxyConfig, fused: bool, clip: float, parametrization: str) -> None:
    """Ten steps of three members at rates, scales and norms of their own; the second takes no part in every third.

    Rates are rounded to float32 on the device, hence not bit for bit.
    """
    tiny = dataclasses.replace(tiny, n_layers=3, parametrization=parametrization)
    host = PackedAdamW(PackedProxy(tiny, [0, 1, 2]), RATES, DECAY, clip=clip)
    device = DeviceAdamW(PackedProxy(tiny, [0, 1, 2]), RATES, DECAY, clip=clip, fused=fused)
    for step in range(10):
        scale, active = [1.0, 0.5, 0.1 * (step + 1)], [True, step % 3 != 0, True]
        gradients = gradients_of(host.model, step, scale=0.001 * 3**step)  # from below the clip to above it
        for parameter, gradient in zip(host.model.parameters(), gradients, strict=True):
            parameter.grad = gradient.clone()
        norms, finite = host.step(scale, active)
        rates = torch.tensor([rate * one for rate, one in zip(RATES, scale, strict=True)])
        norm_K, stepped_K = device.update([gradient.clone() for gradient in gradients], rates, torch.tensor(active))
        assert norm_K.tolist() == pytest.approx(norms, rel=1e-6)
        assert stepped_K.tolist() == active
        assert all(finite)
    for k in range(3):
        for name, mine in state(device, k).items():
            torch.testing.assert_close(mine, state(host, k)[name], rtol=2e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e30])  # the square of the last is no float32
def test_a_member_without_a_finite_gradient_does_not_move(tiny: ProxyConfig, fused: bool, poison: float) -> None:
    clean, hurt = (DeviceAdamW(PackedProxy(tiny, [0, 1, 2]), RATES, DECAY, fused=fused) for _ in range(2))
    before = state(hurt, 1)
    for step in range(2):
        gradients = gradients_of(clean.model, step)
        poisoned = [gradient.clone() for gradient in gradients]
        poisoned[-1][1, 0] = poison
        rates, active = torch.tensor(RATES), torch.ones(3, dtype=torch.bool)
        clean.update(gradients, rates, active)
        norm_K, stepped_K = hurt.update(poisoned, rates, active)
        assert stepped_K.tolist() == [True, False, True]
        assert not math.isfinite(float(norm_K[1]))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state(hurt, 1).items())
    for k in (0, 2):
        assert all(torch.equal(tensor, state(hurt, k)[name]) for name, tensor in state(clean, k).items())


@pytest.mark.parametrize("fused", [True, False])
def test_it_asks_nobody(tiny: ProxyConfig, fused: bool, watch) -> None:  # type: ignore[no-untyped-def]
    optimizer = DeviceAdamW(PackedProxy(tiny, [0, 1, 2]), RATES, DECAY, clip=0.1, fused=fused)
    gradients, rates, active = gradients_of(optimizer.model, 0), torch.tensor(RATES), torch.tensor([True, False, True])
    with watch() as operators:
        optimizer.update(gradients, rates, active)
    assert ("_fused_adamw_" in operators.seen) == fused


def test_gradients_may_have_any_strides(tiny: ProxyConfig) -> None:
    one, other = (DeviceAdamW(PackedProxy(tiny, [0, 1, 2]), RATES, DECAY) for _ in range(2))
    gradients = gradients_of(one.model, 0)
    turned = [gradient.mT.contiguous().mT if gradient.dim() > 2 else gradient.clone() for gradient in gradients]
    assert any(not gradient.is_contiguous() for gradient in turned)
    for optimizer, slopes in ((one, gradients), (other, turned)):
        optimizer.update(slopes, torch.tensor(RATES), torch.ones(3, dtype=torch.bool))
    assert all(torch.equal(tensor, state(other, 1)[name]) for name, tensor in state(one, 1).items())


def test_checkpoints_of_either_serve_both(tiny: ProxyConfig) -> None:
    device = DeviceAdamW(PackedProxy(tiny, [0, 1, 2]), RATES, DECAY)
    device.update(gradients_of(device.model, 0), torch.tensor(RATES), torch.ones(3, dtype=torch.bool))
    host = PackedAdamW(PackedProxy(tiny, [5]), [1.0], DECAY)
    host.load_member_state(0, device.member_state(2))
    assert all(torch.equal(tensor, device.member_state(2)[name]) for name, tensor in host.member_state(0).items())
    chosen = device.select([2, 0])
    assert isinstance(chosen, DeviceAdamW)
    assert chosen.learning_rates == (RATES[2], RATES[0])
    assert all(torch.equal(tensor, device.member_state(2)[name]) for name, tensor in chosen.member_state(0).items())
