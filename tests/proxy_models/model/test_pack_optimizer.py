"""AdamW of a pack against torch's own, and its treatment of members that must not move."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW


def set_gradients(model: PackedProxy, step: int, scale: float = 1.0) -> None:
    """Random gradients, so that these tests do not depend on the model's."""
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)


def snapshot(model: PackedProxy, optimizer: PackedAdamW, k: int) -> dict[str, Tensor]:
    return {**model.member_state(k), **{f"optimizer.{name}": tensor for name, tensor in optimizer.member_state(k).items()}}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_torch_still_has_the_fused_kernel() -> None:
    """A private function; without it the plain form would slow training down unnoticed."""
    assert hasattr(torch, "_fused_adamw_")


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [math.inf, 0.3])
def test_each_member_steps_as_torch_adamw(tiny: ProxyConfig, fused: bool, clip: float) -> None:
    rates, decay, scale = [1e-2, 3e-3], 0.2, [1.0, 0.5]
    model = PackedProxy(tiny, [0, 1])
    optimizer = PackedAdamW(model, rates, decay, clip=clip, fused=fused)
    plain = [{name: parameter[k].detach().clone().requires_grad_() for name, parameter in model.named_parameters()} for k in range(2)]
    torch_optimizers = []
    for k in range(2):
        undecayed = [tensor for name, tensor in plain[k].items() if name == "embedding" or name.endswith("norm")]
        decayed = [tensor for name, tensor in plain[k].items() if name != "embedding" and not name.endswith("norm")]
        groups = [{"params": decayed, "weight_decay": decay}, {"params": undecayed, "weight_decay": 0.0}]
        torch_optimizers.append(torch.optim.AdamW(groups, lr=rates[k] * scale[k], betas=(0.9, 0.95), eps=1e-8))
    for step in range(6):
        set_gradients(model, step)
        for k in range(2):
            for name, parameter in model.named_parameters():
                plain[k][name].grad = parameter.grad[k].clone()
            norm = torch.nn.utils.clip_grad_norm_(plain[k].values(), clip if math.isfinite(clip) else 1e9)
            torch_optimizers[k].step()
            if k == 0:
                expected_norm = float(norm)
        norms, finite = optimizer.step(scale, [True, True])
        assert norms[0] == pytest.approx(expected_norm, rel=1e-5)
        assert finite == [True, True]
    for k in range(2):
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(parameter[k], plain[k][name], rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("fused", [True, False])
def test_members_that_must_not_move_do_not(tiny: ProxyConfig, fused: bool) -> None:
    model = PackedProxy(tiny, [0, 1, 2, 3])
    optimizer = PackedAdamW(model, [1e-2] * 4, 0.1, fused=fused)
    set_gradients(model, 0)
    optimizer.step([1.0] * 4, [True] * 4)
    before = [snapshot(model, optimizer, k) for k in range(4)]
    set_gradients(model, 1)
    model.layers[0].attention.qkv.grad[1, 0, 0] = float("nan")
    model.embedding.grad[2, 0, 0] = float("inf")
    norms, finite = optimizer.step([1.0] * 4, [True, True, True, False])
    assert finite == [True, False, False, True]
    assert math.isnan(norms[1])
    assert math.isinf(norms[2])
    after = [snapshot(model, optimizer, k) for k in range(4)]
    assert [same(before[k], after[k]) for k in range(4)] == [False, True, True, True]
    assert [float(state["optimizer.step"]) for state in after] == [2.0, 1.0, 1.0, 1.0]


def test_a_bad_gradient_changes_no_other_member(tiny: ProxyConfig) -> None:
    states = []
    for poison in (False, True):
        model = PackedProxy(tiny, [0, 1, 2])
        optimizer = PackedAdamW(model, [1e-2] * 3, 0.1)
        for step in range(3):
            set_gradients(model, step)
            if poison:
                model.norm.grad[1].fill_(float("nan"))
            optimizer.step([1.0] * 3, [True] * 3)
        states.append([snapshot(model, optimizer, k) for k in range(3)])
    assert [same(states[0][k], states[1][k]) for k in range(3)] == [True, False, True]


def test_clipping_sees_the_own_norm_only(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [0, 1])
    optimizer = PackedAdamW(model, [1e-2] * 2, 0.0, betas=(0.0, 0.0), clip=1.0)
    set_gradients(model, 0)
    for parameter in model.parameters():
        parameter.grad[0] *= 1e-4  # member 0 stays below the limit
    raw = [{name: parameter.grad[k].clone() for name, parameter in model.named_parameters()} for k in range(2)]
    norms, _ = optimizer.step([1.0] * 2, [True] * 2)
    for k in range(2):
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in raw[k].values()))
        assert norms[k] == pytest.approx(norm, rel=1e-5)
        state = optimizer.member_state(k)
        for name, gradient in raw[k].items():  # with beta 0 the first moment is the clipped gradient
            torch.testing.assert_close(state[f"first.{name}"], gradient / max(1.0, norm), rtol=1e-5, atol=1e-9)
    assert norms[0] < 1.0 < norms[1]


def test_norms_and_embedding_do_not_decay(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [0])
    before = model.member_state(0)
    optimizer = PackedAdamW(model, [1e-2], weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step([0.5], [True])
    for name, tensor in model.member_state(0).items():
        kept = name == "embedding" or name.endswith(("norm", "router_bias"))
        torch.testing.assert_close(tensor, before[name] * (1.0 if kept else 1.0 - 0.5 * 1e-2 * 0.5))


@pytest.mark.parametrize("fused", [True, False])
def test_state_goes_on_bit_for_bit(tiny: ProxyConfig, fused: bool) -> None:
    model = PackedProxy(tiny, [0, 1])
    optimizer = PackedAdamW(model, [1e-2, 2e-2], 0.1, fused=fused)
    for step in range(3):
        set_gradients(model, step)
        optimizer.step([1.0, 1.0], [True, step != 1])
    other = PackedProxy(tiny, [8, 9])
    resumed = PackedAdamW(other, [1e-2, 2e-2], 0.1, fused=fused)
    for k in range(2):
        other.load_member_state(k, model.member_state(k))
        resumed.load_member_state(k, optimizer.member_state(k))
    for pack, its_optimizer in ((model, optimizer), (other, resumed)):
        set_gradients(pack, 3)
        its_optimizer.step([1.0, 1.0], [True, True])
    assert all(same(snapshot(model, optimizer, k), snapshot(other, resumed, k)) for k in range(2))
    assert [float(optimizer.member_state(k)["step"]) for k in range(2)] == [4.0, 3.0]


def test_select_makes_its_own_model_when_none_is_given(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [0, 1, 2])
    optimizer = PackedAdamW(model, [1e-3, 2e-3, 3e-3], 0.1)
    set_gradients(model, 0)
    optimizer.step([1.0] * 3, [True] * 3)
    part = optimizer.select([2])
    assert part.model.members == 1
    assert same(snapshot(part.model, part, 0), snapshot(model, optimizer, 2))


def test_zero_grad_drops_gradients_and_step_asks_for_them(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [0])
    optimizer = PackedAdamW(model, [1e-3], 0.1)
    set_gradients(model, 0)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(ValueError, match="no gradient"):
        optimizer.step([1.0], [True])


def test_wrong_settings_are_refused(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [0, 1])
    with pytest.raises(ValueError, match="1 learning rates for 2 members"):
        PackedAdamW(model, [1e-3], 0.1)
    with pytest.raises(ValueError, match="must be finite"):
        PackedAdamW(model, [1e-3, float("nan")], 0.1)
    for settings, message in (
        ({"weight_decay": -1.0}, "weight_decay is -1"),
        ({"weight_decay": 0.1, "betas": (0.9, 1.0)}, "betas are"),
        ({"weight_decay": 0.1, "clip": 0.0}, "clip is 0"),
        ({"weight_decay": 0.1, "eps": 0.0}, "eps is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            PackedAdamW(model, [1e-3, 1e-3], **settings)
    optimizer = PackedAdamW(model, [1e-3, 1e-3], 0.1)
    with pytest.raises(ValueError, match="1 rates and 2 flags for 2 members"):
        optimizer.step([1.0], [True, True])
    state = optimizer.member_state(0)
    state.pop("step")
    with pytest.raises(ValueError, match="step are only in one"):
        optimizer.load_member_state(0, state)
