"""Skewed tokens for the tiny proxy, the same in every test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from proxy_models.config import ProxyConfig


@pytest.fixture
def draw_tokens(tiny: ProxyConfig) -> Callable[..., torch.Tensor]:
    """draw_tokens(members, step): skewed ids, int64 (K, 4, 33); member k's depend on k and step alone."""

    def draw(members: int, step: int = 0, sequences: int = 4, window: int = 32) -> torch.Tensor:
        streams = []
        for k in range(members):
            generator = torch.Generator().manual_seed(1_000 * step + k)
            streams.append((torch.rand(sequences, window + 1, generator=generator) ** 3 * tiny.vocab_size).long())
        return torch.stack(streams)

    return draw
