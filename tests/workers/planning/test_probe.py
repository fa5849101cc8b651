"""The probe trains for real, in processes of their own, and leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mixopt.cost import Shape
from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Schedule
from mixopt.progress import Silent
from mixopt.trial import Source
from proxy_models.config import proxy_config
from workers.convert import CostModel
from workers.planning import probe
from workers.planning.probe import ProbeShape, probe_speed, train_for_a_while

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
    assert seconds > 0


def test_packs_of_the_probe_shrink_with_the_size_of_a_proxy() -> None:
    members = [probe._members(Shape(size, 4096, 512, 1024), 4) for size in ("nano", "micro", "small")]
    assert members == [4, 1, 1]


@pytest.mark.slow
def test_memory_of_a_pack_is_estimated_to_a_third(tmp_path: Path) -> None:
    """Peak of a process that trains 4 nano proxies, as the kernel saw it, against what a plan says."""
    code = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        "from mixopt.cost import Shape; from workers.planning.probe import ProbeShape, train_for_a_while\n"
        "train_for_a_while(ProbeShape(Shape('nano', 4096, 512, 1024), 4), Path(sys.argv[1]), 'cpu', 0.0)\n"
        # Not ru_maxrss, which begins at that of the process that forked this one.
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "pack")], capture_output=True, text=True, env=environment, check=True
    )
    domains = DomainSet(tuple(Domain(name, f"content-{name}", 10**6, 1e9) for name in "ab"), 1e9)
    recipe = {"window": 512, "tokens_per_step": 1024, "vocab_size": 4096}
    factory = TrialFactory(domains, Source("trained", "nano", 10**6), recipe, "tokenizer", "1")
    estimate = CostModel(1e9).memory_bytes(factory.make(Schedule.constant(domains.natural()), 0, ""), 4)
    assert estimate == pytest.approx(1024.0 * int(ended.stdout), rel=1 / 3)
