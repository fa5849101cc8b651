"""Members that begin with the weights of another run, against slow training by hand; on the path of a CPU and on that of a GPU."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch

from proxy_models.beginning import LostParent
from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, load_checkpoint, save_checkpoints
from proxy_models.config import ProxyConfig
from proxy_models.device.precision import Compute
from proxy_models.device.step import DeviceOptions, DeviceStep
from proxy_models.evaluate import EvaluationSpec, score_weights
from proxy_models.pack_step import PackStep
from proxy_models.reference import PlainProxy, PlainTrainer
from proxy_models.sampler import DomainStream, MemberSampler
from proxy_models.specs import Beginning, MemberFailure, MemberOutcome, MemberResult, MemberSpec, MemberStopped, TrainSettings, spec_hash
from proxy_models.token_store import TokenWriter
from proxy_models.train import train_pack
from proxy_models.upcycling import dense_parent, upcycled

VOCAB, WINDOW, STEP, STEPS = 64, 16, 64, 10
CONFIG = ProxyConfig("tiny", VOCAB, 32, 2, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=16)
DENSE = dense_parent(CONFIG)
SETTINGS = TrainSettings(tokens=STEPS * STEP, window=WINDOW, tokens_per_step=STEP, checkpoint_seconds=1e9)


class OnDevice(DeviceStep):
    """The path of a GPU, not captured, in float32."""

    options = DeviceOptions(compute=Compute(loss_bytes=2**16), read_every=1)


@dataclasses.dataclass(frozen=True)
class Scene:
    """Two domains, a held-out set, and two parents: a finished proxy and a finished dense one."""

    folder: Path
    streams: tuple[DomainStream, ...]
    evaluations: list[EvaluationSpec]

    @property
    def continued(self) -> Beginning:
        return Beginning("continued", "parent", self.folder / "parent" / WEIGHTS_NAME)

    def upcycled(self, reinitialized: float = 0.5) -> Beginning:
        return Beginning("upcycled", "dense", self.folder / "dense" / WEIGHTS_NAME, reinitialized)

    def member(self, name: str, beginning: Beginning | None, seed: int = 0, rate: float = 3e-3) -> MemberSpec:
        return MemberSpec(name, seed, rate, self.streams, ((0.25, 0.75),), beginning=beginning)

    def train(self, members: list[MemberSpec], folder: Path, config: ProxyConfig = CONFIG, **options: object) -> list[MemberOutcome]:
        folders = {member.member_id: folder / member.member_id for member in members}
        settings = options.pop("settings", SETTINGS)
        return train_pack(config, settings, members, self.evaluations, folders, **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")

    def write(name: str, seed: int) -> Path:
        generator = np.random.default_rng(seed)
        with TokenWriter(folder / name, VOCAB, "tok") as writer:
            for _ in range(40):
                ids = (generator.integers(VOCAB) + (2 * seed + 1) * np.arange(30)) % (VOCAB - 1) + 1
                writer.add([*ids.tolist(), 0], text_bytes=60)
            writer.close(name)
        return folder / name

    streams = tuple(DomainStream(name, write(name, seed), 400) for seed, name in enumerate(("one", "two")))
    scene = Scene(folder, streams, [EvaluationSpec("held out", write("held-out", 1), "text", 150, 50)])
    scene.train([scene.member("parent", None)], folder)
    scene.train([scene.member("dense", None)], folder, DENSE)
    return scene


def model_state(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / WEIGHTS_NAME).part("model")


def end_nats(outcome: MemberOutcome) -> float:
    assert isinstance(outcome, MemberResult), outcome
    return outcome.measurements[-1][2]


STILL = dataclasses.replace(SETTINGS, tokens=STEP)
"""One step; with a rate of nearly nothing it leaves weights as they are."""


def test_a_continued_member_begins_as_its_parent_ended(scene: Scene, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, bias_update_rate=0.0)
    (outcome,) = scene.train([scene.member("a", scene.continued, rate=1e-30)], tmp_path, config, settings=STILL)
    (scored,) = score_weights(CONFIG, scene.continued.weights, scene.evaluations, WINDOW)
    assert end_nats(outcome) == pytest.approx(scored.loss_nats, abs=1e-6)
    parent, after = model_state(scene.folder / "parent"), model_state(tmp_path / "a")
    assert all(torch.equal(parent[name], after[name]) for name in parent)
    assert any(parent[name].any() for name in parent if name.endswith("router_bias")), "biases are continued, too"


def test_an_upcycled_member_begins_as_its_dense_parent_ended(scene: Scene, tmp_path: Path) -> None:
    members = [scene.member("copy", scene.upcycled(0.0), rate=1e-30), scene.member("drawn", scene.upcycled(0.5), rate=1e-30)]
    copy, drawn = scene.train(members, tmp_path, settings=STILL)
    (scored,) = score_weights(DENSE, scene.upcycled().weights, scene.evaluations, WINDOW)
    assert end_nats(copy) == pytest.approx(scored.loss_nats, abs=1e-5)
    assert abs(end_nats(drawn) - scored.loss_nats) > 1e-4


@pytest.mark.parametrize("path", [PackStep, OnDevice], ids=["cpu", "device"])
@pytest.mark.parametrize("kind", ["continued", "upcycled"])
def test_training_goes_on_from_the_parent_as_slow_training_by_hand_does(
    scene: Scene, tmp_path: Path, kind: str, path: type[PackStep]
) -> None:
    beginning = scene.continued if kind == "continued" else scene.upcycled()
    spec = scene.member("mine", beginning, seed=4)
    # In company of members with other beginnings, and one place short, so that the last takes a place that another has left.
    company = [scene.member("x", None, 1), spec, scene.member("y", scene.continued, 2), scene.member("z", scene.upcycled(), 3)]
    outcomes = scene.train(company, tmp_path, step_type=path, places=2)
    assert all(isinstance(outcome, MemberResult) for outcome in outcomes)

    state = load_checkpoint(beginning.weights).part("model")
    state = state if kind == "continued" else upcycled(CONFIG, state, 4, 0.5)
    model = PlainProxy(CONFIG, state)
    trainer = PlainTrainer(model, 3e-3, SETTINGS.weight_decay, clip=SETTINGS.clip)
    windows = SETTINGS.windows_per_step
    sampler = MemberSampler(spec.data_seed, spec.domains, spec.weights, spec.fractions, STEPS * windows, WINDOW)
    losses = [trainer.step(torch.from_numpy(sampler.next_windows(windows)), SETTINGS.rate_scale(step)) for step in range(STEPS)]
    result = outcomes[1]
    assert isinstance(result, MemberResult)
    assert [nats for _, nats in result.diagnostics["training_loss"]] == pytest.approx(losses, abs=2e-4)
    after = model_state(tmp_path / "mine")
    torch.testing.assert_close(after["embedding"], model.weights["embedding"].detach(), rtol=1e-3, atol=1e-4)
    assert result.diagnostics["beginning"] == {"kind": kind, "parent": beginning.parent, "reinitialized": beginning.reinitialized}


def test_a_member_does_not_read_what_its_parent_read_in_the_same_order(scene: Scene) -> None:
    specs = [
        scene.member("a", None),
        scene.member("b", scene.continued),
        scene.member("c", dataclasses.replace(scene.continued, parent="x")),
    ]
    draws = [MemberSampler(spec.data_seed, spec.domains, spec.weights, spec.fractions, 40, WINDOW).next_windows(40) for spec in specs]
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[1], draws[2])
    windows = [{row.tobytes() for row in draw} for draw in draws]
    assert len(windows[0] & windows[1]) > 1, "of the same unique windows, as in a run that goes on over the same corpus"


class StopAt:
    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self, ids: Collection[str]) -> Collection[str]:
        self.left -= 1
        return () if self.left >= 0 else ids


def test_a_resumed_member_equals_an_uninterrupted_one_and_needs_its_parent_no_more(scene: Scene, tmp_path: Path) -> None:
    parent = tmp_path / "parent.safetensors"
    parent.write_bytes(scene.continued.weights.read_bytes())
    begun = dataclasses.replace(scene.continued, weights=parent)
    members = [scene.member("a", begun, 1), scene.member("b", scene.upcycled(), 2)]
    scene.train(members, tmp_path / "whole")
    assert all(isinstance(one, MemberStopped) for one in scene.train(members, tmp_path / "cut", should_stop=StopAt(0)))
    assert all(isinstance(one, MemberStopped) for one in scene.train(members, tmp_path / "cut", should_stop=StopAt(4)))
    parent.unlink()
    assert all(isinstance(one, MemberResult) for one in scene.train(members, tmp_path / "cut"))
    for name in "ab":
        whole, cut = model_state(tmp_path / "whole" / name), model_state(tmp_path / "cut" / name)
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


@pytest.mark.parametrize("damage", ["missing", "truncated", "changed"])
def test_lost_weights_fail_the_member_alone(scene: Scene, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "parent.safetensors"
    if damage == "truncated":
        path.write_bytes(scene.continued.weights.read_bytes()[:-100])
    elif damage == "changed":
        content = bytearray(scene.continued.weights.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    bad, good = scene.train([scene.member("bad", dataclasses.replace(scene.continued, weights=path)), scene.member("good", None)], tmp_path)
    assert isinstance(good, MemberResult)
    assert isinstance(bad, MemberFailure)
    assert (bad.kind, bad.tokens) == ("error", 0)
    assert isinstance(bad.error, LostParent)
    assert not (tmp_path / "bad" / CHECKPOINT_NAME).exists()


def test_weights_of_another_shape_fail_the_member(scene: Scene, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoints({path: Checkpoint({"model.embedding": torch.zeros(VOCAB, 8)}, {})})
    for beginning in (dataclasses.replace(scene.continued, weights=path), dataclasses.replace(scene.upcycled(), weights=path)):
        (outcome,) = scene.train([scene.member("bad", beginning)], tmp_path)
        assert isinstance(outcome, MemberFailure)
        assert isinstance(outcome.error, ValueError)


def test_the_beginning_enters_the_identity_and_its_place_on_disk_does_not(scene: Scene) -> None:
    def of(beginning: Beginning | None) -> str:
        return spec_hash("1", CONFIG, SETTINGS, scene.member("a", beginning), scene.evaluations)

    different = [None, scene.continued, dataclasses.replace(scene.continued, parent="x"), scene.upcycled(0.5), scene.upcycled(0.25)]
    assert len({of(beginning) for beginning in different}) == len(different)
    assert of(dataclasses.replace(scene.continued, weights=Path("elsewhere"))) == of(scene.continued)


def test_the_identity_of_a_member_from_scratch_is_what_it_always_was() -> None:
    """Kept weights and checkpoints of earlier versions are recognized by it."""
    streams = (DomainStream("one", Path("one"), 400), DomainStream("two", Path("two"), 800))
    spec = MemberSpec("a", 3, 3e-3, streams, ((0.25, 0.75),))
    evaluations = [EvaluationSpec("held out", Path("held-out"), "text", 150, 50)]
    assert spec_hash("1", CONFIG, SETTINGS, spec, evaluations) == PINNED
    assert spec.data_seed == 3


PINNED = "669756799732fe74ff733feccb284b79e005d06224101714d94715d4bb3ca1ba"


@pytest.mark.parametrize(("kind", "share"), [("copied", 0.0), ("continued", 0.5), ("upcycled", 1.5), ("upcycled", float("nan"))])
def test_wrong_beginnings_are_refused(kind: str, share: float) -> None:
    with pytest.raises(ValueError, match="is "):
        Beginning(kind, "parent", Path("w"), share)  # type: ignore[arg-type]
