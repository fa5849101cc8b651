"""The size dial: counts against brute force, rules, messages."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from proxy_models import config as dial
from proxy_models.config import DENSE, SIZES, WIDTHS, ProxyConfig, default_learning_rate, proxy_config
from proxy_models.model import PackedProxy
from proxy_models.reference import PlainProxy


def test_parameters_are_those_of_a_member(tiny: ProxyConfig, tiny_dense: ProxyConfig) -> None:
    for config in (tiny, tiny_dense, proxy_config("nano", 300), proxy_config("nano-dense", 300)):
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
@pytest.mark.parametrize("shape", ["tiny", "tiny_dense"])
def test_flops_are_those_the_plain_model_spends(shape: str, window: int, request: pytest.FixtureRequest) -> None:
    """torch counts the plain model's products; it computes all of the attention matrix, of which the causal half is taken off."""
    tiny: ProxyConfig = request.getfixturevalue(shape)
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
    """The table of shapes that packed training was measured on; the identity of every trial rests on them."""
    sizes = ("nano", "micro", "small")
    shapes = {size: dataclasses.astuple(proxy_config(size, 8192))[2:9] for size in sizes}
    assert shapes == {"nano": (64, 2, 2, 8, 2, 1, 32), "micro": (128, 4, 4, 8, 2, 1, 64), "small": (256, 6, 4, 8, 2, 1, 128)}
    millions = [round(proxy_config(size, 8192).parameters().total / 1e6, 2) for size in sizes]
    assert millions == [0.67, 2.20, 8.99]
    megaflops = [round(proxy_config(size, 8192).training_flops_per_token(128) / 1e6, 1) for size in sizes]
    assert megaflops == [3.7, 10.1, 33.9]


@pytest.mark.parametrize(("size", "active"), [("medium", 30e6), ("large", 150e6)])
def test_larger_sizes_have_fine_grained_experts_and_the_active_parameters_asked_for(size: str, active: float) -> None:
    config = proxy_config(size, 8192)
    assert (config.n_experts, config.top_k, config.n_shared_experts) == (64, 8, 2)
    assert config.parameters().active == pytest.approx(active, rel=0.06)
    assert config.parameters().active - config.parameters().embedding == pytest.approx(active, rel=0.06)
    assert 3 * config.d_expert == 2 * config.d_model
    # Tensor cores and grouped products work on tiles of 64 or more.
    assert {config.d_model % 64, config.d_expert % 64} == {0}
    assert config.d_head == 64


@pytest.mark.parametrize("size", WIDTHS)
def test_a_dense_control_is_of_equal_active_size_but_for_the_router(size: str) -> None:
    sparse, dense = proxy_config(size, 8192), proxy_config(size + DENSE, 8192)
    router = sparse.n_layers * sparse.d_model * sparse.n_experts
    assert dense.parameters().total == dense.parameters().active == sparse.parameters().active - router
    assert dense.training_flops_per_token(512) == sparse.training_flops_per_token(512) - 6 * router
    assert dense.d_shared == (sparse.top_k + sparse.n_shared_experts) * sparse.d_expert
    same = {"size": "", "n_experts": 0, "top_k": 0, "n_shared_experts": 1}
    assert dataclasses.replace(sparse, **same) == dataclasses.replace(dense, **same)


def test_the_table_of_the_docstring_is_what_the_code_computes() -> None:
    rows = {words[0]: words[1:] for line in (dial.__doc__ or "").splitlines() if (words := line.split()) and words[0] in SIZES}
    assert rows.keys() == WIDTHS.keys()
    for size, row in rows.items():
        config = proxy_config(size, 8192)
        counts = config.parameters()
        shape = [str(number) for number in (config.d_model, config.n_layers, config.n_heads)]
        assert row[:5] == [*shape, f"{config.n_experts}/{config.top_k}/{config.n_shared_experts}", str(config.d_expert)]
        for text, number in zip(
            row[5:], (counts.total, counts.active, counts.embedding, config.training_flops_per_token(512)), strict=True
        ):
            digits = len(text.rstrip("M").partition(".")[2])
            assert text == f"{number / 1e6:.{digits}f}M"


def test_learning_rate_falls_with_width() -> None:
    assert [default_learning_rate(size) for size in WIDTHS] == pytest.approx([3e-3, 1.5e-3, 7.5e-4, 5e-4, 2.5e-4])
    assert all(default_learning_rate(size + DENSE) == default_learning_rate(size) for size in WIDTHS)


@pytest.mark.parametrize("function", [lambda size: proxy_config(size, 512), default_learning_rate])
def test_unknown_size_names_the_known_ones(function: object) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="'giant'; known sizes: nano, micro, small, medium, large, nano-dense"):
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
        ({"top_k": 0}, "or both 0 for a dense proxy"),
        ({"n_experts": 0}, "at most n_experts, 0"),
    ],
)
def test_impossible_shapes_are_refused(tiny: ProxyConfig, change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(tiny, **change)


def test_window_must_hold_a_token(tiny: ProxyConfig) -> None:
    with pytest.raises(ValueError, match="window is 0"):
        tiny.forward_flops_per_token(0)
