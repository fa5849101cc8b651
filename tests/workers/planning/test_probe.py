"""The probe trains for real, in processes of their own, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from mixopt.cost import Machine, Shape
from mixopt.progress import Silent
from proxy_models.config import proxy_config
from workers.memory import pack_memory_bytes
from workers.planning import probe
from workers.planning.probe import ProbeShape, fitting, probe_for, probe_speed, train_for_a_while
from workers.planning.speed import choose_speed

SHAPE = Shape("nano", 512, 64, 128)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders are made, so that what is left of them is seen."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_two_processes_measure_the_speed_of_a_slot(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "START_SECONDS", 120.0)  # a test machine may be very busy
    started = []
    popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: started.append(popen(*arguments, **options)) or started[-1])
    speeds = probe_speed({SHAPE: 2}, 2, "cpu", Silent(), seconds=2.0)
    flops_per_second, seconds = speeds[SHAPE]
    assert 1e6 < flops_per_second < 1e12
    assert seconds > 0
    assert len(started) == 2
    assert all(process.returncode is not None for process in started), "a process outlived its probe"
    assert list(temporary.iterdir()) == []


def test_what_cannot_be_measured_is_left_out(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies measures nothing, and the others' numbers would be those of an emptier machine."""
    monkeypatch.setattr(sys, "executable", "false")
    assert probe_speed({SHAPE: 2}, 2, "cpu", Silent(), seconds=1.0) == {}
    assert list(temporary.iterdir()) == []


def test_flops_are_those_of_the_steps_after_the_first(tmp_path: Path) -> None:
    wanted = ProbeShape(SHAPE, 2)
    flops, seconds = train_for_a_while(wanted, tmp_path / "pack", "cpu", 0.0)
    assert wanted.flops_per_step == 2 * 128 * proxy_config("nano", 512).training_flops_per_token(64)
    assert flops == wanted.flops_per_step, "at the least one step after the first is timed"
    assert not list(tmp_path.rglob("*.safetensors")), "a probe writes no gigabytes"
    train_for_a_while(wanted, tmp_path / "other", "cpu", 0.0, checkpoint=True)
    assert len(list(tmp_path.rglob("checkpoint.safetensors"))) == 2
    assert seconds > 0


def test_packs_of_the_probe_shrink_with_the_size_of_a_proxy() -> None:
    members = [probe._members(Shape(size, 4096, 512, 1024), 4) for size in ("nano", "micro", "small")]
    assert members == [4, 3, 1]


def test_a_probe_fills_no_memory_that_is_not_there() -> None:
    here = Machine("this machine", "cpu", 2, 16e9, None)
    nano, medium = (Shape(size, 8192, 512, 512) for size in ("nano", "medium"))
    shapes = {medium: 1, nano: 4}
    assert fitting(shapes, here) == (shapes, 2)
    assert next(iter(fitting(shapes, here)[0])) == nano, "the quickest first"
    one = pack_memory_bytes(proxy_config("medium", 8192), 512, 512, 1)
    assert fitting(shapes, replace(here, memory_bytes=1.5 * one)) == ({nano: 4}, 2)
    assert fitting({medium: 1}, replace(here, memory_bytes=1.5 * one)) == ({medium: 1}, 1)
    assert fitting({medium: 1}, replace(here, memory_bytes=0.9 * one))[0] == {}
    assert fitting(shapes, replace(here, memory_bytes=1e6))[0] == {}
    assert fitting(shapes, replace(here, memory_bytes=None)) == (shapes, 2)


def test_steps_that_take_too_long_are_shortened_to_whole_windows() -> None:
    here = Machine("this machine", "cpu", 2, None, None)
    wanted, _ = fitting({Shape("medium", 8192, 512, 8192): 1, Shape("large", 8192, 512, 1024): 1, Shape("nano", 8192, 512, 4096): 4}, here)
    assert Shape("nano", 8192, 512, 4096) in wanted
    (medium,) = (shape for shape in wanted if shape.size == "medium")
    assert medium.tokens_per_step in range(512, 8192, 512)
    assert ProbeShape(medium, 1).expected_seconds <= probe.PATIENCE_SECONDS
    assert "large" not in {shape.size for shape in wanted}


def test_what_is_measured_here_is_not_said_of_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU of a cluster has nothing to do with a core of this machine; a core of it has at least something."""
    asked: list[tuple[int, str]] = []

    def probe_speed(shapes: dict[Shape, int], slots: int, device: str, reporter: object) -> dict[Shape, tuple[float, float]]:
        asked.append((slots, device))
        return dict.fromkeys(shapes, (2e9, 3.0))

    monkeypatch.setattr(probe, "probe_speed", probe_speed)
    monkeypatch.setattr(probe, "this_machine", lambda: Machine("this machine", "cuda", 3, None, None))
    monkeypatch.setattr("os.getloadavg", lambda: (2.0, 0.0, 0.0))
    there = Machine("the Ray cluster at 10.0.0.1:6379", "cuda", 8, None, None)
    assert probe_for(there, {SHAPE: 2}, Silent()) == ({}, [])
    probed, notes = probe_for(replace(there, device="cpu"), {SHAPE: 2}, Silent())
    assert asked == [(3, "cpu")]
    assert notes[0].startswith("This machine was busy while its speed was measured (load 2.0 on 3 slots)")
    assert notes[1] == "Speed was measured on this machine, not on the Ray cluster at 10.0.0.1:6379."
    sentence = choose_speed(SHAPE, {}, probed, "cpu", there.where).sentence
    assert sentence.endswith("on all slots at once of this machine, not of the Ray cluster at 10.0.0.1:6379")
    _, notes = probe_for(Machine("this machine", "cpu", 8, 1.0, None), {SHAPE: 2}, Silent())
    assert notes == ["The speed of nano was not measured: a few steps would take too long, or too much memory."]
    monkeypatch.setattr(probe, "probe_speed", lambda *_: {})
    assert "came to no result in its time" in probe_for(Machine("this machine", "cpu", 8, None, None), {SHAPE: 2}, Silent())[1][0]
