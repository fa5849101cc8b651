"""Loss curves that a refactor must reproduce. If one is meant to change, raise ENGINE_VERSION and write the new curve:

python -m pytest tests/proxy_models/model/test_golden_losses.py prints it in the failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from proxy_models import ENGINE_VERSION
from proxy_models.config import proxy_config
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW

GOLDEN = Path(__file__).parents[2] / "golden" / "proxy_losses.json"


def curve(steps: int = 20) -> list[list[float]]:
    """Losses of a pack of two nano proxies on a Markov chain: each id is followed by one of four."""
    vocabulary, members = 128, 2
    model = PackedProxy(proxy_config("nano", vocabulary), [1, 2])
    optimizer = PackedAdamW(model, [3e-3, 1e-3], weight_decay=0.1)
    successors = torch.randint(0, vocabulary, (vocabulary, 4), generator=torch.Generator().manual_seed(0))
    losses = []
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        tokens = torch.randint(0, vocabulary, (members, 4, 33), generator=generator)
        choice = torch.randint(0, 4, tokens.shape, generator=generator)
        for t in range(1, tokens.shape[2]):
            tokens[..., t] = successors[tokens[..., t - 1], choice[..., t]]
        optimizer.zero_grad()
        loss_K = model.training_loss(tokens)
        loss_K.sum().backward()
        _, finite = optimizer.step([1.0] * members, [True] * members)
        model.update_router_bias(finite)
        losses.append([round(value, 5) for value in loss_K.tolist()])
    return losses


def test_losses_are_those_of_this_engine_version() -> None:
    """Relative 3e-4: products differ in their last digits between processors, and twenty steps amplify that; a changed rule shows at once."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    losses = curve()
    assert golden["engine_version"] == ENGINE_VERSION
    assert losses[-1][0] < losses[0][0] - 0.3, "the fast member learns"
    for got, want in zip(losses, golden["losses_nats"], strict=True):
        assert got == pytest.approx(want, rel=3e-4), f"new curve: {losses}"
