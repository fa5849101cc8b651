"""Looks at what may crash or hang a process (a broken GPU driver, a cluster that does not answer) from a process of its own.

The probe is a module of this package that prints one JSON object as its last line. It runs in a process group that is ended as a whole, so
that nothing it started stays. The trade-off: a second or more to start each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GRACE_SECONDS = 5.0


@dataclass(frozen=True)
class Probed:
    """What a probe said, or `trouble`: why it said nothing."""

    said: dict[str, Any]
    trouble: str = ""


def probe_process(module: str, arguments: Sequence[str], environment: Mapping[str, str], seconds: float) -> Probed:
    """Runs `python -m module` with additions to the environment; ends it after `seconds`."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **environment},
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return Probed({}, f"no answer within {seconds:.0f} seconds")
    finally:
        _end(process)
    lines = [line for line in output.splitlines() if line.startswith("{")]
    if lines:
        return Probed(json.loads(lines[-1]))
    if process.returncode < 0:
        return Probed({}, f"the process was ended by {signal.Signals(-process.returncode).name}")
    return Probed({}, (errors.strip().splitlines() or ["no reason given"])[-1][:300])


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is not None:
        return
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.communicate(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
