"""Whole runs on the device path, not captured, against the path of a CPU: packs with places in fixed numbers, late reports, refill,
compaction, checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import proxy_models.device.engine as device_engine
import proxy_models.device.step as device_step
from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, load_checkpoint
from proxy_models.config import ProxyConfig
from proxy_models.device.engine import EnginePool
from proxy_models.device.precision import Compute
from proxy_models.device.step import DeviceOptions, DeviceStep
from proxy_models.evaluate import EvaluationSpec
from proxy_models.pack_step import PackStep, step_type_for
from proxy_models.products import product_library
from proxy_models.sampler import DomainStream
from proxy_models.token_store import TokenWriter
from proxy_models.train import MemberFailure, MemberOutcome, MemberResult, MemberSpec, MemberStopped, TrainSettings, train_pack

VOCAB, WINDOW, STEP, STEPS = 32, 8, 16, 12
CONFIG = ProxyConfig("tiny", VOCAB, 16, 1, 2, n_experts=4, top_k=2, n_shared_experts=1, d_expert=8)
SETTINGS = TrainSettings(tokens=STEPS * STEP, window=WINDOW, tokens_per_step=STEP, checkpoint_seconds=1e9)


class EveryStep(DeviceStep):
    options = DeviceOptions(compute=Compute(loss_bytes=2**16), read_every=1)


class EveryFive(DeviceStep):
    options = DeviceOptions(compute=Compute(loss_bytes=2**16), read_every=5)


class Half(DeviceStep):
    options = DeviceOptions(compute=Compute(torch.bfloat16, experts="capacity"), read_every=50)


@dataclasses.dataclass(frozen=True)
class Scene:
    streams: tuple[DomainStream, ...]
    evaluations: list[EvaluationSpec]

    def member(self, name: str, seed: int, rate: float = 3e-3) -> MemberSpec:
        return MemberSpec(name, seed, rate, self.streams, ((0.25 + seed / 16, 0.75 - seed / 16),))

    def train(self, members: list[MemberSpec], folder: Path, **options: object) -> dict[str, MemberOutcome]:
        folders = {member.member_id: folder / member.member_id for member in members}
        outcomes = train_pack(CONFIG, SETTINGS, members, self.evaluations, folders, **options)  # type: ignore[arg-type]
        return {outcome.member_id: outcome for outcome in outcomes}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    folder = tmp_path_factory.mktemp("scene")

    def write(name: str, seed: int) -> Path:
        generator = np.random.default_rng(seed)
        with TokenWriter(folder / name, VOCAB, "tok") as writer:
            for _ in range(40):
                ids = (generator.integers(VOCAB) + (seed + 1) * np.arange(20)) % (VOCAB - 1) + 1
                writer.add([*ids.tolist(), 0], text_bytes=50)
            writer.close(name)
        return folder / name

    streams = tuple(DomainStream(name, write(name, seed), 300) for seed, name in enumerate(("one", "two")))
    return Scene(streams, [EvaluationSpec("held out", write("held-out", 5), "text", 60, 30)])


@pytest.fixture(autouse=True)
def engines(monkeypatch: pytest.MonkeyPatch) -> EnginePool:
    pool = EnginePool()
    monkeypatch.setattr(device_step, "ENGINES", pool)
    return pool


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures of engines, by their number of places: `run` is called as warming up would, and replayed by running it."""
    captures: list[int] = []

    def capture(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        captures.append(run.__self__.shape.places)  # type: ignore[attr-defined]
        for _ in range(4):
            run()
        return run

    monkeypatch.setattr(device_engine, "capture", capture)
    monkeypatch.setattr(device_engine, "reason_against", lambda device, wanted: None)
    return captures


def weights(folder: Path, name: str) -> Mapping[str, torch.Tensor]:
    return load_checkpoint(folder / name / WEIGHTS_NAME).tensors


def assert_near(got: MemberOutcome, want: MemberOutcome, nats: float) -> None:
    assert isinstance(got, MemberResult)
    assert isinstance(want, MemberResult)
    assert (got.tokens, got.realized, got.flops) == (want.tokens, want.realized, want.flops)
    assert [point[:2] for point in got.measurements] == [point[:2] for point in want.measurements]
    assert [point[2] for point in got.measurements] == pytest.approx([point[2] for point in want.measurements], abs=nats)
    for one, other in zip(got.diagnostics["training_loss"], want.diagnostics["training_loss"], strict=True):
        assert one == pytest.approx(other, abs=nats)


@pytest.mark.parametrize(("step_type", "nats"), [(EveryStep, 1e-5), (EveryFive, 1e-5), (Half, 5e-3)])
def test_a_run_ends_as_on_a_cpu(scene: Scene, tmp_path: Path, step_type: type[PackStep], nats: float) -> None:
    """Five members in places for four, so that one waits for a free place; one of them diverges, which does not touch the others."""
    members = [scene.member(name, seed) for seed, name in enumerate("abcd")] + [scene.member("x", 7, rate=1e30)]
    expected = scene.train(members, tmp_path / "cpu")
    outcomes = scene.train(members, tmp_path / "device", places=4, step_type=step_type)
    for name in "abcd":
        assert_near(outcomes[name], expected[name], nats)
        if nats < 1e-4:
            for key, tensor in weights(tmp_path / "cpu", name).items():
                torch.testing.assert_close(weights(tmp_path / "device", name)[key], tensor, rtol=0, atol=5e-6)
    assert isinstance(outcomes["x"], MemberFailure)
    assert isinstance(expected["x"], MemberFailure)
    assert (outcomes["x"].kind, outcomes["x"].tokens) == (expected["x"].kind, expected["x"].tokens)


def test_a_run_says_how_it_was_computed(scene: Scene, tmp_path: Path) -> None:
    outcomes = scene.train([scene.member("a", 0)], tmp_path, step_type=Half)
    assert isinstance(outcomes["a"], MemberResult)
    computed = outcomes["a"].diagnostics["compute"]
    assert computed == {"device": "cpu", "products": "bfloat16", "expert_products": "capacity", "dropped_rows": 0, "cuda_graph": False}
    usual = scene.train([scene.member("b", 0)], tmp_path)["b"]
    assert isinstance(usual, MemberResult)
    assert usual.diagnostics["compute"] == {"products": product_library()}


def test_dropped_rows_are_counted(scene: Scene, tmp_path: Path) -> None:
    class Tight(DeviceStep):
        options = DeviceOptions(compute=Compute(experts="capacity", capacity_factor=0.5))

    outcome = scene.train([scene.member("a", 0)], tmp_path, step_type=Tight)["a"]
    assert isinstance(outcome, MemberResult)
    rows, kept = 2 * STEP * STEPS, 4 * 8 * STEPS  # 4 experts with room for 8
    assert rows - kept <= outcome.diagnostics["compute"]["dropped_rows"] < rows / 2


def test_a_member_does_not_depend_on_its_company(scene: Scene, tmp_path: Path) -> None:
    """Bit for bit among packs of the device path on one machine's CPU, vacant places and a diverging member included."""
    scene.train([scene.member("a", 0), scene.member("b", 1)], tmp_path / "two", step_type=EveryFive)
    members = [scene.member("x", 7, rate=1e30), scene.member("b", 1), scene.member("a", 0)]
    scene.train(members, tmp_path / "three", step_type=EveryFive)
    for name in "ab":
        assert all(torch.equal(tensor, weights(tmp_path / "three", name)[key]) for key, tensor in weights(tmp_path / "two", name).items())


@pytest.mark.parametrize("after", [4, 7])  # within and between the steps that are read together
def test_interrupted_and_gone_on_with_is_the_same_run(scene: Scene, tmp_path: Path, after: int) -> None:
    """Bit for bit on the device path; and a checkpoint of the device path is one of the CPU's, which ends near."""
    members = [scene.member("a", 0), scene.member("b", 1)]
    whole = scene.train(members, tmp_path / "whole", step_type=EveryFive)
    for folder, then in (("device", EveryFive), ("cpu", PackStep)):
        asked = 0

        def stop(ids: object) -> list[str]:
            nonlocal asked
            asked += 1
            return ["a", "b"] if asked > after else []

        stopped = scene.train(members, tmp_path / folder, step_type=EveryFive, should_stop=stop)
        assert all(isinstance(outcome, MemberStopped) for outcome in stopped.values())
        assert load_checkpoint(tmp_path / folder / "a" / CHECKPOINT_NAME).facts["step"] == after
        outcomes = scene.train(members, tmp_path / folder, step_type=then)
        for name in "ab":
            assert_near(outcomes[name], whole[name], 0.0 if folder == "device" else 1e-5)
            if folder == "device":
                assert all(
                    torch.equal(one, weights(tmp_path / folder, name)[key]) for key, one in weights(tmp_path / "whole", name).items()
                )


def test_engines_are_captured_once_per_size(scene: Scene, tmp_path: Path, engines: EnginePool, capturing: list[int]) -> None:
    """A pack of four, of which two diverge, steps down to two; the next pack, and a later single, use the same engines."""
    members = [scene.member("a", 0), scene.member("b", 1), scene.member("x", 7, rate=1e30), scene.member("y", 6, rate=1e30)]
    first = scene.train(members, tmp_path / "first", step_type=EveryFive)
    assert capturing == [4, 2]
    assert sorted(engine.shape.places for engine in engines.idle()) == [2, 4]
    second = scene.train(members, tmp_path / "second", step_type=EveryFive)
    assert capturing == [4, 2]
    for name in "ab":
        assert dataclasses.replace(first[name], seconds=0.0) == dataclasses.replace(second[name], seconds=0.0)  # type: ignore[type-var]
        assert all(torch.equal(one, weights(tmp_path / "second", name)[key]) for key, one in weights(tmp_path / "first", name).items())
        assert first[name].diagnostics["compute"]["cuda_graph"]  # type: ignore[union-attr]
    assert isinstance(second["x"], MemberFailure)
    scene.train([scene.member("c", 3)], tmp_path / "third", step_type=EveryFive)
    assert capturing == [4, 2, 1]


def test_memory_held_by_idle_engines_is_given_up_for_a_step(
    scene: Scene, tmp_path: Path, engines: EnginePool, capturing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    scene.train([scene.member("a", 0), scene.member("b", 1)], tmp_path, step_type=EveryFive)
    capture = device_engine.capture

    def crowded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        if engines.idle():
            raise torch.OutOfMemoryError("full")
        return capture(run, device)

    monkeypatch.setattr(device_engine, "capture", crowded)
    assert isinstance(scene.train([scene.member("c", 2)], tmp_path, step_type=EveryFive)["c"], MemberResult)
    assert capturing == [2, 1]
    monkeypatch.setattr(device_engine, "capture", lambda run, device: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        scene.train([scene.member(name, seed) for seed, name in enumerate("defg")], tmp_path, step_type=EveryFive)


def test_memory_held_by_idle_engines_is_given_up_for_the_first_step_of_a_kind(
    engines: EnginePool, capturing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place is taken by somebody who has prompts after others have trained: that step allocates, too."""
    step = EveryFive(CONFIG, SETTINGS, [0, 1], [1e-3] * 2, "cpu")
    tokens, scored = torch.ones(2, 2, WINDOW + 1, dtype=torch.int64), torch.ones(2, 2, WINDOW, dtype=torch.bool)
    step.step(tokens, [1.0] * 2, [True] * 2)
    step.select([0])  # into an engine of one place; that of two is idle
    capture = device_engine.capture
    step.step(tokens[:1], [1.0], [True])
    assert len(engines.idle()) == 1

    def crowded(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        if engines.idle():
            raise torch.OutOfMemoryError("full")
        return capture(run, device)

    monkeypatch.setattr(device_engine, "capture", crowded)
    step.step(tokens[:1], [1.0], [True], scored[:1])
    assert engines.idle() == []
    assert capturing == [2, 1, 1]
    assert [report.stepped_K for report in step.reports(wait=True)] == [[True], [True]]


def test_which_step_a_device_gets() -> None:
    assert step_type_for("cpu") is PackStep
    assert step_type_for(torch.device("cuda", 1)) is DeviceStep
    assert step_type_for("cuda") is DeviceStep


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="read_every is 0"):
        DeviceOptions(read_every=0)
    with pytest.raises(ValueError, match="above 0"):
        Compute(capacity_factor=0.0)
