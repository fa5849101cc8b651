"""Weights of a base that tell experts apart, components that branched from it, and tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.merging.components import HeldComponent
from proxy_models.model import PackedProxy

State = dict[str, Tensor]


@pytest.fixture
def base_state(tiny: ProxyConfig) -> State:
    """Weights that tell experts and tokens apart, and a bias."""
    state = PackedProxy(tiny, [5]).member_state(0)
    generator = torch.Generator().manual_seed(5)
    for name, value in state.items():
        if name.endswith("router_bias"):
            value.normal_(0, 0.05, generator=generator)
        elif not name.endswith("norm"):
            value.mul_(8)
    return state


@pytest.fixture
def branch(base_state: State) -> Callable[..., HeldComponent]:
    """branch(name, seed): the base, moved a little at random."""

    def make(name: str, seed: int, step: float = 0.05) -> HeldComponent:
        generator = torch.Generator().manual_seed(seed)
        state = {key: value + step * torch.randn(value.shape, generator=generator) for key, value in base_state.items()}
        return HeldComponent(name, state, "base")

    return make


@pytest.fixture
def tokens(tiny: ProxyConfig) -> Tensor:
    """16 windows of 32, int64 (16, 33)."""
    return torch.randint(tiny.vocab_size, (16, 33), generator=torch.Generator().manual_seed(1))
