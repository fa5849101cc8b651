"""What came to the engine by separate ways, all at once, against slow training by hand: members that are upcycled or go on from another run,
in muP, with a balancing loss beside the bias, on pairs and text, at rates of their own; on the path of a CPU and on that of a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch

import proxy_models.device.step as device_step
from proxy_models.checkpoint import WEIGHTS_NAME, Checkpoint, load_checkpoint, save_checkpoints, with_prefix
from proxy_models.config import ProxyConfig
from proxy_models.device.engine import EnginePool
from proxy_models.device.precision import Compute
from proxy_models.device.step import DeviceOptions, DeviceStep
from proxy_models.evaluate import EvaluationSpec
from proxy_models.model import PackedProxy
from proxy_models.pack_step import PackStep
from proxy_models.parametrization import rate_multiplier
from proxy_models.reference import PlainProxy, PlainTrainer
from proxy_models.sampler import DomainStream, MemberSampler
from proxy_models.specs import Beginning, MemberOutcome, MemberResult, MemberSpec, MemberStopped, TrainSettings
from proxy_models.token_store import TokenWriter
from proxy_models.train import train_pack
from proxy_models.upcycling import dense_parent, upcycled

VOCAB, WINDOW, STEPS = 64, 24, 12
CONFIG = ProxyConfig(
    "tiny", VOCAB, 32, 4, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=16, auxiliary_loss=0.2, parametrization="mup"
)
SETTINGS = TrainSettings(tokens=STEPS * 4 * WINDOW, window=WINDOW, tokens_per_step=4 * WINDOW, checkpoint_seconds=1e9)


class OnDevice(DeviceStep):
    """The path of a GPU, not captured, in float32, heard of late."""

    options = DeviceOptions(compute=Compute(loss_bytes=2**16), read_every=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens of a domain of pairs and one of text, held-out pairs, and weights of two parents."""
    made = tmp_path_factory.mktemp("all")
    generator = np.random.default_rng(0)
    for name, stride, prompts in (("pairs", 1, True), ("text", 5, False), ("held-out", 1, True)):
        with TokenWriter(made / name, VOCAB, "tok") as writer:
            for _ in range(40):
                length = int(generator.integers(12, 30))
                ids = (generator.integers(VOCAB) + stride * np.arange(length)) % (VOCAB - 1) + 1
                writer.add([*ids, 0], 20, scored_from=length - 8 if prompts else 0)
            writer.close(name)
    for name, config in (("routed", CONFIG), ("dense", dense_parent(CONFIG))):
        state = PackedProxy(config, [9]).member_state(0)
        noise = torch.Generator().manual_seed(9)
        state = {key: tensor * (1 + 0.5 * torch.rand(tensor.shape, generator=noise)) for key, tensor in state.items()}
        for key in state:
            if key.endswith("router_bias"):
                state[key] = 0.05 * torch.randn(state[key].shape, generator=noise)
        save_checkpoints({made / f"{name}.safetensors": Checkpoint(with_prefix("model", state), {})})
    return made


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_step, "ENGINES", EnginePool())


def members(folder: Path) -> list[MemberSpec]:
    streams = tuple(DomainStream(key, folder / key, 10**6) for key in ("pairs", "text"))
    continued = Beginning("continued", "r", folder / "routed.safetensors")
    made = Beginning("upcycled", "d", folder / "dense.safetensors", 0.5)
    return [
        MemberSpec("upcycled", 1, 3e-3, streams, ((0.75, 0.25),), beginning=made),
        MemberSpec("text", 2, 1e-3, streams, ((0.0, 1.0),)),
        MemberSpec("continued", 3, 2e-3, streams, ((1.0, 0.0),), beginning=continued),
    ]


def trained(folder: Path, out: Path, step_type: type[PackStep], **options: object) -> dict[str, MemberOutcome]:
    specs = members(folder)
    evaluations = [EvaluationSpec("p", folder / "held-out", "completion", None, 40)]
    outcomes = train_pack(
        CONFIG, SETTINGS, specs, evaluations, {spec.member_id: out / spec.member_id for spec in specs}, step_type=step_type, **options
    )  # type: ignore[arg-type]
    return {outcome.member_id: outcome for outcome in outcomes}


def state_of(path: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(path).part("model")


class ScoredProxy(PlainProxy):
    """Its loss is the mean over the tokens that are told to count."""

    scored_BT: torch.Tensor

    def loss(self, tokens_BS: torch.Tensor) -> torch.Tensor:
        return self.token_losses(tokens_BS)[self.scored_BT].mean()


def by_hand(spec: MemberSpec) -> tuple[list[float], ScoredProxy]:
    """Losses of every step, and the model afterwards."""
    state = PackedProxy(CONFIG, [spec.seed]).member_state(0)
    if spec.beginning is not None:
        state = state_of(spec.beginning.weights)
        state = upcycled(CONFIG, state, spec.seed, 0.5) if spec.beginning.kind == "upcycled" else state
    model = ScoredProxy(CONFIG, state)
    multipliers = {name: rate_multiplier(CONFIG, name) for name in model.weights}
    trainer = PlainTrainer(model, spec.learning_rate, SETTINGS.weight_decay, clip=SETTINGS.clip, multipliers=multipliers)
    sampler = MemberSampler(spec.data_seed, spec.domains, spec.weights, spec.fractions, STEPS * 4, WINDOW)
    losses = []
    for step in range(STEPS):
        batch = sampler.next_batch(4)
        tokens_BS = torch.from_numpy(batch.tokens_KBS[0])
        model.scored_BT = torch.ones(4, WINDOW, dtype=torch.bool) if batch.scored_KBT is None else torch.from_numpy(batch.scored_KBT[0])
        losses.append(trainer.step(tokens_BS, SETTINGS.rate_scale(step)))
    return losses, model


@pytest.mark.parametrize("path", [PackStep, OnDevice], ids=["cpu", "device"])
def test_everything_at_once_equals_training_by_hand(folder: Path, tmp_path: Path, path: type[PackStep]) -> None:
    """In two places, so that one joins late. In float32, where a token or two between two all but equal experts may go either way."""
    outcomes = trained(folder, tmp_path, path, places=2)
    for spec in members(folder):
        losses, model = by_hand(spec)
        result = outcomes[spec.member_id]
        assert isinstance(result, MemberResult), result
        assert [nats for _, nats in result.diagnostics["training_loss"]] == pytest.approx(losses, abs=3e-4)
        after = state_of(tmp_path / spec.member_id / WEIGHTS_NAME)
        for name in ("embedding", "layers.3.attention.output", "layers.0.moe.router", "layers.3.moe.expert_out"):
            torch.testing.assert_close(after[name], model.weights[name].detach(), rtol=1e-2, atol=3e-4)
        for layer, bias in enumerate(model.router_biases):
            torch.testing.assert_close(after[f"layers.{layer}.moe.router_bias"], bias, rtol=0, atol=2.1 * CONFIG.bias_update_rate)
        rows = torch.tensor(result.diagnostics["balance"]["last_step_rows"])
        assert int((rows - torch.stack(model.loads).long()).abs().sum()) <= 4
        assert int(rows.sum()) == 4 * 2 * 4 * WINDOW
        assert result.diagnostics["balance"]["rows_by_set"].keys() == {"p"}
        assert (sum(result.diagnostics["scored_tokens"].values()) == result.tokens) is (spec.member_id == "text")


@pytest.mark.parametrize("path", [PackStep, OnDevice], ids=["cpu", "device"])
def test_everything_at_once_goes_on_where_it_was_interrupted(folder: Path, tmp_path: Path, path: type[PackStep]) -> None:
    whole = trained(folder, tmp_path / "whole", path)
    left = [7]

    def stop(ids: Collection[str]) -> Collection[str]:
        left[0] -= 1
        return () if left[0] >= 0 else ids

    assert all(isinstance(one, MemberStopped) for one in trained(folder, tmp_path / "cut", path, should_stop=stop).values())
    again = trained(folder, tmp_path / "cut", path)
    for name, result in again.items():
        assert isinstance(result, MemberResult)
        assert dataclasses.replace(result, seconds=0.0) == dataclasses.replace(whole[name], seconds=0.0)  # type: ignore[type-var]
        one, other = (state_of(tmp_path / run / name / WEIGHTS_NAME) for run in ("whole", "cut"))
        assert all(torch.equal(one[key], other[key]) for key in one)
