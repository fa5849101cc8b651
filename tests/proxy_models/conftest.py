"""A proxy small enough for tests that still has every part: several layers, heads, experts and more than one shared expert."""

from __future__ import annotations

import pytest
import torch

from proxy_models.config import ProxyConfig


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def tiny() -> ProxyConfig:
    return ProxyConfig("tiny", vocab_size=96, d_model=32, n_layers=2, n_heads=2, n_experts=4, top_k=2, n_shared_experts=2, d_expert=16)


@pytest.fixture
def tiny_dense() -> ProxyConfig:
    """The dense control of `tiny`."""
    return ProxyConfig(
        "tiny-dense", vocab_size=96, d_model=32, n_layers=2, n_heads=2, n_experts=0, top_k=0, n_shared_experts=4, d_expert=16
    )
