"""Training on pairs and text: the same alone, in any pack, on both paths and after any interruption; the record says what was scored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import proxy_models.device.step as device_step
from proxy_models.checkpoint import WEIGHTS_NAME, load_checkpoint
from proxy_models.config import ProxyConfig
from proxy_models.device.engine import EnginePool
from proxy_models.device.precision import Compute
from proxy_models.device.step import DeviceOptions, DeviceStep
from proxy_models.evaluate import EvaluationSpec
from proxy_models.sampler import DomainStream
from proxy_models.token_store import TokenWriter
from proxy_models.train import MemberOutcome, MemberResult, MemberSpec, TrainSettings, train_pack
from tests.proxy_models.late_step import LateStep

VOCAB, WINDOW, STEPS = 64, 24, 16
CONFIG = ProxyConfig("tiny", VOCAB, 32, 2, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=16)
SETTINGS = TrainSettings(tokens=STEPS * 4 * WINDOW, window=WINDOW, tokens_per_step=4 * WINDOW, checkpoint_seconds=1e9)
MIXTURES = {"both": (0.5, 0.3, 0.2), "pairs": (0.6, 0.4, 0.0), "text": (0.0, 0.0, 1.0)}


class Device(DeviceStep):
    options = DeviceOptions(compute=Compute(loss_bytes=2**18), read_every=5)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two domains of pairs whose completions count on from their prompts, one of text, and held-out pairs."""
    folder = tmp_path_factory.mktemp("corpus")
    generator = np.random.default_rng(0)
    for stride, name in ((1, "ones"), (3, "threes"), (1, "held-out")):
        with TokenWriter(folder / name, VOCAB, "tok") as writer:
            for _ in range(50):
                prompt, length = int(generator.integers(1, 9)), int(generator.integers(12, 30))
                ids = (generator.integers(VOCAB) + stride * np.arange(length)) % (VOCAB - 1) + 1
                writer.add([*ids, 0], 20, scored_from=max(prompt, length - 10))
            writer.close(name)
    with TokenWriter(folder / "text", VOCAB, "tok") as writer:
        for _ in range(30):
            writer.add([*((generator.integers(VOCAB) + 5 * np.arange(30)) % (VOCAB - 1) + 1), 0], 60)
        writer.close("text")
    return folder


def member(corpus: Path, name: str, seed: int = 0) -> MemberSpec:
    domains = tuple(DomainStream(key, corpus / key, 10**6) for key in ("ones", "threes", "text"))
    return MemberSpec(name, seed, 3e-3, domains, (MIXTURES[name],))


def trained(corpus: Path, folder: Path, names: tuple[str, ...], **options: object) -> dict[str, MemberOutcome]:
    evaluations = [EvaluationSpec("p", corpus / "held-out", "completion", None, 40)]
    folders = {name: folder / name for name in names}
    members = [member(corpus, name) for name in names]
    outcomes = train_pack(CONFIG, SETTINGS, members, evaluations, folders, **options)  # type: ignore[arg-type]
    return {outcome.member_id: outcome for outcome in outcomes}


def result(outcome: MemberOutcome) -> MemberResult:
    assert isinstance(outcome, MemberResult), outcome
    return dataclasses.replace(outcome, seconds=0.0)


def unscored(outcome: MemberOutcome) -> MemberResult:
    """Without losses on held-out sets: of a model so narrow their last digits depend on the size of the pack (`evaluate.LEAST_SQUARES`)."""
    return dataclasses.replace(result(outcome), measurements=())


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return dict(load_checkpoint(folder / name / WEIGHTS_NAME).tensors)


def same_weights(one: Path, other: Path, name: str) -> bool:
    left, right = weights(one, name), weights(other, name)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.fixture(scope="module")
def trio(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, MemberOutcome]]:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trio")
    return folder, trained(corpus, folder, ("both", "pairs", "text"))


def test_the_record_says_what_was_scored(trio: tuple[Path, dict[str, MemberOutcome]]) -> None:
    windows = STEPS * 4
    both, pairs, text = (result(trio[1][name]) for name in ("both", "pairs", "text"))
    assert [share for (share,) in both.realized.values()] == pytest.approx([0.5, 0.3, 0.2], abs=1 / windows)
    assert text.diagnostics["scored_tokens"] == {"text": text.tokens}
    assert text.diagnostics["padding_tokens"] == {"text": 0}
    of = both.realized["text"][0] * windows * WINDOW
    assert both.diagnostics["scored_tokens"]["text"] == of
    scored, padding = pairs.diagnostics["scored_tokens"], pairs.diagnostics["padding_tokens"]
    assert scored.keys() == padding.keys() == {"ones", "threes"}
    # The least completion is 2 of 12 tokens, the longest 11 of 13 or more; the rest are prompts and filling.
    assert 0.15 * pairs.tokens < sum(scored.values()) < 0.85 * pairs.tokens
    assert sum(scored.values()) + sum(padding.values()) < pairs.tokens


def test_it_learns_what_completions_say(trio: tuple[Path, dict[str, MemberOutcome]]) -> None:
    curve = result(trio[1]["pairs"]).diagnostics["training_loss"]
    assert curve[-1][1] < curve[0][1] - 0.3


@pytest.mark.parametrize("names", [("text",), ("pairs",), ("text", "both")])
def test_company_changes_no_bit(corpus: Path, tmp_path: Path, trio: tuple[Path, dict[str, MemberOutcome]], names: tuple[str, ...]) -> None:
    """Also of a member that trains on text alone, in a pack that is told what is scored."""
    folder, whole = trio
    outcomes = trained(corpus, tmp_path, names)
    for name in names:
        assert unscored(outcomes[name]) == unscored(whole[name])
        assert same_weights(tmp_path, folder, name)


def test_resumed_equals_uninterrupted(corpus: Path, tmp_path: Path, trio: tuple[Path, dict[str, MemberOutcome]]) -> None:
    folder, whole = trio
    left = [5]

    def stop(ids: object) -> object:
        left[0] -= 1
        return () if left[0] >= 0 else ids

    names = ("both", "pairs", "text")
    trained(corpus, tmp_path, names, should_stop=stop)
    outcomes = trained(corpus, tmp_path, names)
    assert {name: result(outcomes[name]) for name in names} == {name: result(whole[name]) for name in names}
    assert all(same_weights(tmp_path, folder, name) for name in names)


def test_places_and_late_reports_change_nothing(corpus: Path, tmp_path: Path, trio: tuple[Path, dict[str, MemberOutcome]]) -> None:
    folder, whole = trio
    outcomes = trained(corpus, tmp_path, ("text", "pairs", "both"), places=2, step_type=LateStep)
    assert all(unscored(outcomes[name]) == unscored(whole[name]) for name in whole)
    assert all(same_weights(tmp_path, folder, name) for name in whole)


def test_the_device_path_ends_as_the_cpu(
    corpus: Path, tmp_path: Path, trio: tuple[Path, dict[str, MemberOutcome]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One place after the other, so that the text is trained before anybody has prompts."""
    monkeypatch.setattr(device_step, "ENGINES", EnginePool())
    outcomes = trained(corpus, tmp_path, ("text", "pairs", "both"), places=1, step_type=Device)
    for name, expected in trio[1].items():
        got, want = result(outcomes[name]), result(expected)
        assert (got.realized, got.diagnostics["scored_tokens"]) == (want.realized, want.diagnostics["scored_tokens"])
        assert [point[2] for point in got.measurements] == pytest.approx([point[2] for point in want.measurements], abs=2e-5)
        for key, tensor in weights(trio[0], name).items():
            torch.testing.assert_close(weights(tmp_path, name)[key], tensor, rtol=0, atol=2e-5)
