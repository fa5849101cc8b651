"""The services start with exactly the commands of the compose file, and refuse who has no login or token.

Only addresses, ports and folders are replaced. PostgreSQL gives way to SQLite: CI has no server.
"""

from __future__ import annotations

import base64
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).resolve().parents[2] / "infra"
SERVICES: dict[str, Any] = yaml.safe_load((INFRA / "compose.yaml").read_text(encoding="utf-8"))["services"]
PATIENCE_SECONDS = 500.0
"""For a slow, shared machine; each service needs 15 to 30 seconds on an idle one."""
SECRETS = {
    "ray_token": "0123456789abcdef" * 4,
    "postgres_password": "unused",
    "mlflow_password": "a long password",
    "mlflow_secret_key": "key",
}


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: Ray's sockets lie below it, and theirs may have 107 characters."""
    with tempfile.TemporaryDirectory(prefix="mixopt-", ignore_cleanup_errors=True) as name:
        (Path(name) / "secrets").mkdir()
        for secret, value in SECRETS.items():
            (Path(name) / "secrets" / secret).write_text(value, encoding="ascii")
        yield Path(name)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that Ray gives to its workers and those that the kernel gives to clients."""
    found: list[int] = []
    for port in range(7000 + os.getpid() % 1000, 10000):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free port between 7000 and 10000")


def script(service: str, replaced: Mapping[str, str]) -> str:
    """The command of a service for `sh -ceu`, with what belongs to the container replaced; every replacement must match."""
    command = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in SERVICES[service]["command"]]
    text = command[2].replace("$$", "$") if command[:2] == ["sh", "-ceu"] else shlex.join(command)
    for old, new in replaced.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


# As `restart: unless-stopped` does it: Ray gives a node thirty seconds to start, which a busy machine may exceed.
RESTARTING = 'for attempt in 1 2 3 4 5; do sh -ceu "$0"; sleep 1; done'


@contextmanager
def started(service: str, replaced: Mapping[str, str], folder: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A service as a process group of its own, ended afterwards; its output goes to a file that is shown when something fails."""
    own = {name: str(value).replace("/run/secrets", str(folder / "secrets")) for name, value in SERVICES[service]["environment"].items()}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    log = folder / f"{service}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", RESTARTING, script(service, replaced)],
            env={**inherited, **own, "PATH": path, "HOME": str(folder), **environment},
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    except BaseException:
        print(log.read_text(errors="replace")[-3000:])
        raise
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Asks the group to end, and ends what is left of it after a while."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
        for _ in range(60):
            os.killpg(process.pid, 0)
            time.sleep(0.5)
        os.killpg(process.pid, signal.SIGKILL)


def answer(url: str, **headers: str) -> int:
    """HTTP status of an address; 0: nobody answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def wait_for(process: subprocess.Popen[bytes], service: str, port: int, replaced_port: str) -> None:
    """Waits until the health check of a service, as the compose file has it, succeeds."""
    url = SERVICES[service]["healthcheck"]["test"][-1]
    assert f":{replaced_port}/" in url
    deadline = time.monotonic() + PATIENCE_SECONDS
    while answer(url.replace(f"localhost:{replaced_port}", f"127.0.0.1:{port}")) != 200:
        assert process.poll() is None, f"{service} ended"
        assert time.monotonic() < deadline, f"{service} is not healthy"
        time.sleep(0.5)


def login(password: str) -> str:
    return "Basic " + base64.b64encode(f"mixopt:{password}".encode()).decode()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_mlflow_starts_and_asks_for_a_login(folder: Path) -> None:
    (port,) = free_ports(1)
    settings = (INFRA / "mlflow-auth.ini").read_text(encoding="utf-8")
    address = SERVICES["mlflow"]["command"][2].split("--backend-store-uri ")[1].split()[0]
    assert f"database_uri = {address}" in settings, "logins and runs lie in one database"
    (folder / "auth.ini").write_text(settings.replace(address, f"sqlite:///{folder}/logins.db"), encoding="utf-8")
    replaced = {
        "/run/secrets": str(folder / "secrets"),
        "--host 0.0.0.0": "--host 127.0.0.1",
        "--port 5000": f"--port {port}",
        address: f"sqlite:///{folder}/runs.db",
        "/artifacts": str(folder / "artifacts"),
    }
    with started("mlflow", replaced, folder, MLFLOW_AUTH_CONFIG_PATH=str(folder / "auth.ini")) as server:
        wait_for(server, "mlflow", port, "5000")
        url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        assert answer(url) == 401
        assert answer(url, Authorization=login("wrong")) == 401
        right = login(SECRETS["mlflow_password"])
        assert answer(url, Authorization=right) == 200
        # By the name that other containers use, and by one that nobody gave it.
        assert answer(url, Authorization=right, Host="mlflow:5000") == 200
        assert answer(url, Authorization=right, Host="elsewhere.example") == 403


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.ray
def test_head_and_worker_start_and_ask_for_the_token(folder: Path) -> None:
    gcs, dashboard, head_agent, worker_agent, client = free_ports(5)
    # Two nodes on one machine need two agents. Ray's switch for loopback only admits no second node, so these listen on the machine's
    # address for a moment, behind a token that nobody knows.
    replaced = {
        "/run/secrets": str(folder / "secrets"),
        "--port=6379": f"--port={gcs} --ray-client-server-port={client}",
        "--dashboard-host=0.0.0.0": "--dashboard-host=127.0.0.1",
        "--dashboard-port=8265": f"--dashboard-port={dashboard} --dashboard-agent-listen-port={head_agent} --temp-dir={folder}/ray",
    }
    joining = {"head:6379": f"127.0.0.1:{gcs} --dashboard-agent-listen-port={worker_agent}", "--num-cpus=4": "--num-cpus=1"}
    with started("head", replaced, folder) as head:
        wait_for(head, "head", dashboard, "8265")
        with started("worker", joining, folder) as worker:
            wait_for(worker, "worker", worker_agent, "52365")
            url = f"http://127.0.0.1:{dashboard}/api/jobs/"
            assert answer(url) == 401
            assert answer(url, Authorization="Bearer wrong") == 403
            assert answer(url, Authorization=f"Bearer {SECRETS['ray_token']}") == 200
            assert _cores(gcs, folder) == 1.0, "the head offers none, the worker one"


def _cores(gcs: int, folder: Path) -> float:
    """Cores of the cluster, as a client with the token sees them."""
    code = f"import ray; ray.init('127.0.0.1:{gcs}', logging_level='ERROR'); print(ray.cluster_resources().get('CPU'))"
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "secrets" / "ray_token"),
        "HOME": str(folder),
    }
    ran = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
    )
    assert ran.returncode == 0, ran.stderr
    return float(ran.stdout.split()[-1])
