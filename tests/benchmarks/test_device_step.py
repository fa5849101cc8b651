"""The benchmark of the device step runs from the command line; its numbers mean nothing on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_it_prints_and_writes_a_row_per_variant(tmp_path: Path) -> None:
    options = "--device cpu --size nano --members 2 --tokens 64 --window 32 --vocab 64 --steps 1 --repeats 2 --variants default capacity"
    command = [sys.executable, "benchmarks/device_step.py", *options.split(), "--json", str(tmp_path / "rows.json")]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}).stdout
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = [row["variant"] for row in rows]
    assert names[0] == "default"
    assert names[-1] == "default again"
    assert any("capacity" in name for name in names)
    assert all(name in shown for name in names)
    assert all(row["least"] <= row["milliseconds"] <= row["most"] and not row["captured"] for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--size giant", "Unknown size giant; known sizes: nano"),
        ("--device tpu", "--device is cpu, cuda or cuda:N, not tpu."),
        ("--device cuda:99", "No GPU cuda:99 is here"),
        ("--device cpu --tokens 100", "--tokens 100 is not a multiple of --window 128."),
        ("--device cpu --steps 0", "are at least 1."),
        ("--device cpu --variants nothing", "variants are default, no graph"),
        ("--device cpu --json .", "--json . is a folder."),
    ],
)
def test_a_slip_is_told_in_a_sentence(benchmark_module: Any, arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark_module("device_step").main(arguments.split()) == 2
    assert message in capsys.readouterr().err
