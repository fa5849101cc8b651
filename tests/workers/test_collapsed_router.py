"""Proxies whose router begins by sending every token to the same experts: what the outcome of the trial says, and which settings mend it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mixopt.balance import Balance
from mixopt.trial import Outcome
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSpec
from proxy_models.model import PackedProxy
from proxy_models.sampler import DomainStream
from proxy_models.token_store import TokenWriter
from proxy_models.train import MemberResult, MemberSpec, TrainSettings, train_pack
from workers.convert import outcome_of

VOCAB, WINDOW = 64, 16
CONFIG = ProxyConfig("tiny", VOCAB, 32, 2, 2, n_experts=8, top_k=2, n_shared_experts=1, d_expert=8, bias_update_rate=0.0)
SETTINGS = TrainSettings(tokens=80 * 128, window=WINDOW, tokens_per_step=128, checkpoint_seconds=1e9)


@pytest.fixture(autouse=True)
def _favourites(monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings share a direction, which the routers of all layers like in two of their experts."""
    usual = PackedProxy._initialize

    @torch.no_grad()
    def favouring(model: PackedProxy, k: int, seed: int) -> None:
        usual(model, k, seed)
        direction_D = torch.ones(model.config.d_model) / model.config.d_model**0.5
        model.embedding[k] += 1.0 * direction_D
        for moe in model.moe_layers:
            moe.router[k, :, 2] += 0.8 * direction_D
            moe.router[k, :, 5] += 0.72 * direction_D

    monkeypatch.setattr(PackedProxy, "_initialize", favouring)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for seed, name in enumerate(("train", "valid")):
        generator = np.random.default_rng(seed)
        with TokenWriter(folder / name, VOCAB, "tok") as writer:
            for _ in range(60):
                writer.add([*((generator.integers(VOCAB) + 3 * np.arange(30)) % (VOCAB - 1) + 1).tolist(), 0], text_bytes=60)
            writer.close(name)
    return folder


def outcome(corpus: Path, folder: Path, config: ProxyConfig) -> Outcome:
    member = MemberSpec("m", 0, 3e-3, (DomainStream("train", corpus / "train", 1000),), ((1.0,),))
    (result,) = train_pack(config, SETTINGS, [member], [EvaluationSpec("v", corpus / "valid", "text", 300)], {"m": folder})
    assert isinstance(result, MemberResult)
    return outcome_of(result)


def test_left_alone_the_outcome_says_that_it_has_collapsed(corpus: Path, tmp_path: Path) -> None:
    said = outcome(corpus, tmp_path, CONFIG).diagnostics["balance"]
    assert said["dead_experts"][0] >= 2
    assert said["collapsed"] == f"layer 1: {said['dead_experts'][0]} of 8 experts dead, one expert sees 100% of the tokens"


@pytest.mark.parametrize("method", [{"bias_update_rate": 0.02}, {"auxiliary_loss": 0.1}], ids=lambda method: next(iter(method)))
def test_balancing_mends_it(corpus: Path, tmp_path: Path, method: dict[str, float]) -> None:
    trained = outcome(corpus, tmp_path, replace(CONFIG, **method))
    balance = Balance.of(trained.diagnostics)
    assert balance is not None
    assert balance.dead_experts == (0, 0)
    assert trained.diagnostics["balance"]["collapsed"] == balance.collapse == ""
    assert max(balance.fullest_shares) < 0.6  # even is 0.25, left alone it is 1
