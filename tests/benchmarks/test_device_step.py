"""The benchmark of the device step runs from the command line; its numbers mean nothing on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_it_prints_and_writes_a_row_per_variant(tmp_path: Path) -> None:
    options = [
        "--device",
        "cpu",
        "--size",
        "nano",
        "--members",
        "2",
        "--tokens",
        "64",
        "--window",
        "32",
        "--vocab",
        "64",
        "--steps",
        "1",
        "--repeats",
        "2",
    ]
    command = [
        sys.executable,
        "benchmarks/device_step.py",
        *options,
        "--variants",
        "default",
        "capacity",
        "--json",
        str(tmp_path / "rows.json"),
    ]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env={"PYTHONPATH": str(ROOT)}).stdout
    rows = json.loads((tmp_path / "rows.json").read_text())
    names = [row["variant"] for row in rows]
    assert names[0] == "default"
    assert names[-1] == "default again"
    assert any("capacity" in name for name in names)
    assert all(name in shown for name in names)
    assert all(row["least"] <= row["milliseconds"] <= row["most"] and not row["captured"] for row in rows)
