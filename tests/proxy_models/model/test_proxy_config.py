"""The size dial: counts against brute force, rules, messages."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from proxy_models.config import SIZES, ProxyConfig, default_learning_rate, proxy_config
from proxy_models.model import PackedProxy
from proxy_models.reference import PlainProxy


def test_parameters_are_those_of_a_member(tiny: ProxyConfig) -> None:
    for config in (tiny, proxy_config("nano", 300)):
        state = PackedProxy(config, [0]).member_state(0)
        counted = sum(tensor.numel() for name, tensor in state.items() if "router_bias" not in name)
        assert config.parameters().total == counted
        assert config.parameters().embedding == state["embedding"].numel()


def test_active_parameters_are_those_that_one_token_gives_a_gradient(tiny: ProxyConfig) -> None:
    model = PackedProxy(tiny, [3])
    model.training_loss(torch.tensor([[[5, 9]]])).sum().backward()
    idle = 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        if "expert_" in name:
            idle += sum(int(expert.numel()) for expert in parameter.grad[0] if not expert.any())
    assert tiny.parameters().active == tiny.parameters().total - idle


@pytest.mark.parametrize("window", [1, 2, 24])
def test_flops_are_those_the_plain_model_spends(tiny: ProxyConfig, window: int) -> None:
    """torch counts the plain model's products; it computes all of the attention matrix, of which the causal half is taken off."""
    sequences = 3
    plain = PlainProxy(tiny, PackedProxy(tiny, [0]).member_state(0))
    tokens = torch.randint(0, tiny.vocab_size, (sequences, window + 1), generator=torch.Generator().manual_seed(0))
    future = tiny.n_layers * sequences * 4 * tiny.d_model * (window**2 - window * (window + 1) // 2)
    with FlopCounterMode(display=False) as forward:
        loss = plain.loss(tokens)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    counted = (forward.get_total_flops() - future) / (sequences * window)
    assert tiny.forward_flops_per_token(window) == pytest.approx(counted, rel=1e-12)
    both = (forward.get_total_flops() + backward.get_total_flops() - 3 * future) / (sequences * window)
    assert tiny.training_flops_per_token(window) == pytest.approx(both, rel=1e-12)


def test_sizes_have_the_measured_shapes() -> None:
    """The table of shapes that packed training was measured on."""
    shapes = {size: dataclasses.astuple(proxy_config(size, 8192))[2:9] for size in SIZES}
    assert shapes == {"nano": (64, 2, 2, 8, 2, 1, 32), "micro": (128, 4, 4, 8, 2, 1, 64), "small": (256, 6, 4, 8, 2, 1, 128)}
    millions = [round(proxy_config(size, 8192).parameters().total / 1e6, 2) for size in SIZES]
    assert millions == [0.67, 2.20, 8.99]
    megaflops = [round(proxy_config(size, 8192).training_flops_per_token(128) / 1e6, 1) for size in SIZES]
    assert megaflops == [3.7, 10.1, 33.9]


def test_learning_rate_falls_with_width() -> None:
    assert [default_learning_rate(size) for size in SIZES] == pytest.approx([3e-3, 1.5e-3, 7.5e-4])


@pytest.mark.parametrize("function", [lambda size: proxy_config(size, 512), default_learning_rate])
def test_unknown_size_names_the_known_ones(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="'giant'; known sizes: nano, micro, small"):
        function("giant")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size is 0"),
        ({"n_shared_experts": 0}, "n_shared_experts is 0"),
        ({"d_model": 36}, "d_model is 36; it must be a multiple of 8"),
        ({"d_expert": 4}, "d_expert is 4"),
        ({"n_heads": 3}, "3 heads"),
        ({"top_k": 1}, "top_k is 1"),
        ({"top_k": 5}, "at most n_experts, 4"),
    ],
)
def test_impossible_shapes_are_refused(tiny: ProxyConfig, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny, **change)


def test_window_must_hold_a_token(tiny: ProxyConfig) -> None:
    with pytest.raises(ValueError, match="window is 0"):
        tiny.forward_flops_per_token(0)
