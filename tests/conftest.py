"""What tests of several folders need: a real MLflow server that can be killed, and who runs beside whom."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# A terminal's width, which the processes of pytest-xdist are given, folds the tables whose text is compared.
os.environ.pop("COLUMNS", None)
PATIENCE_SECONDS = 240.0
GROUPS = {
    "processes": ("benchmarks", "browser", "contracts/test_runners.py", "e2e", "infra"),
    "contracts": ("contracts",),
    "mixopt": ("house", "mixopt"),
    "proxies": ("proxy_models",),
    "workers": ("workers",),
}
"""Where tests run in two processes, those of one group run in one of them, in their usual order: what starts Ray, MLflow and browsers waits most of
its time, beside what computes."""


class Together(LoadScopeScheduling):
    """Deals groups of folders to the processes, in the order in which they are collected."""

    def _split_scope(self, nodeid: str) -> str:
        place = nodeid.removeprefix("tests/")
        return next(name for name, folders in GROUPS.items() if place.startswith(folders))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Together:
    return Together(config, log)


class TrackingServer:
    """`mlflow server` on loopback over a database; the same address each time that it is started."""

    def __init__(self, database: Path) -> None:
        self._database = database
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns when it answers."""
        folder = self._database.parent
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self._database}", "--artifacts-destination", str(folder / "mlflow-artifacts")]
        settings = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true", "OMP_NUM_THREADS": "1"}
        with (folder / "mlflow-server.log").open("ab") as log:
            # A session of its own: the server is a family of processes.
            self._process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **settings}, start_new_session=True)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not self.answers():
            assert self._process.poll() is None, (folder / "mlflow-server.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@pytest.fixture
def tracking_server() -> Iterator[Callable[[Path], TrackingServer]]:
    """Servers over databases, not started: `tracking_server(folder / "mlflow.db")`. Killed when the test ends."""
    servers: list[TrackingServer] = []

    def make(database: Path) -> TrackingServer:
        servers.append(TrackingServer(database))
        return servers[-1]

    yield make
    for server in servers:
        server.kill()
