"""A process that imported Ray before it asked for a cluster of its own gets the same one: with a token, on loopback only."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import os, sys
from pathlib import Path
import ray
from workers.ray_runner import RayRunner

runner = RayRunner(Path(sys.argv[1]), {}, {}, cpus=1)
print(os.environ["RAY_AUTH_MODE"], ray.get_runtime_context().gcs_address, ray.get(ray.remote(lambda: "ran").remote()))
runner.close()
"""


@pytest.mark.ray
def test_settings_hold_where_ray_was_imported_before_them(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    ended = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-2000:]
    mode, address, answer = ended.stdout.split()[-3:]
    assert (mode, answer) == ("token", "ran")
    assert address.startswith("127.0.0.1:")
