"""SIGTERM is how schedulers stop a job; it has to reach mixopt's handler, also after Ray has put its own in place."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
from workers.ray_runner import RayRunner

runner = RayRunner(Path(sys.argv[1]), {}, {}, cpus=1)
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
    print("not heard")
except KeyboardInterrupt:
    print("interrupted")
finally:
    runner.close()
"""


@pytest.mark.ray
def test_a_handler_of_sigterm_survives_the_start_of_a_cluster() -> None:
    # Not below tmp_path, whose names are too long for Ray's sockets.
    with tempfile.TemporaryDirectory(prefix="mx-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"TMPDIR": folder, "HOME": folder}
        command = [sys.executable, "-c", PROGRAM, f"{folder}/store"]
        ended = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
    assert (ended.returncode, ended.stdout.split()) == (0, ["interrupted"]), ended.stderr[-2000:]
