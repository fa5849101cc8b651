"""SIGTERM is how schedulers stop a job; it has to reach mixopt's handler, also after Ray has put its own in place."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

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


@pytest.mark.ray
def test_a_start_that_is_interrupted_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from workers.ray_runner import RayRunner

    ended = []

    def interrupted(**_: object) -> None:
        assert list((tmp_path / "temporary").iterdir()), "Ray's folder is made before"
        raise KeyboardInterrupt

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", interrupted)
    monkeypatch.setattr(ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(KeyboardInterrupt):
        RayRunner(tmp_path / "store", {}, {}, cpus=1)
    assert ended
    assert list((tmp_path / "temporary").iterdir()) == []
