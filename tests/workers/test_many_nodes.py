"""The runner on a cluster of several nodes: a node that is lost takes nothing with it that had been trained."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_is_lost_costs_no_trial(tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ended = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("many_nodes_driver.py")), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
        env=kept | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    body = json.loads(ended.stdout.splitlines()[-1])
    assert body["removed"], "both trials ended before the node was lost"
    assert body["slots"] == [2, 1]
    assert body["failed"] == []
    assert sorted(body["completed"]) == sorted(body["starts"])
    begun = sorted(body["starts"].values(), key=len)
    assert [len(starts) for starts in begun] == [1, 2], "one of the two was lost with its node, and went on elsewhere"
    assert begun[1][1] > begun[1][0] == 128, "it went on from its checkpoint"
