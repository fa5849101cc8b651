"""What each check of the doctor says about machines, containers and installations that the tests make up."""

from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from mixopt import __version__
from mixopt.config import Experiment
from mixopt.experiment_file import parse_experiment
from workers.doctor import accelerators, checks, examine, installation, machine, services
from workers.doctor import experiment as experiments
from workers.doctor.findings import Check, Finding, Status, run_checks
from workers.machine import cpu_quota
from workers.ray_runner import WORKER_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[3]


def experiment(folder: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "x",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("a", "b")],
        "ray": {"address": "in-process"},
    }
    return parse_experiment(raw | changes, folder)


def only(findings: list[Finding], topic: str) -> Finding:
    (finding,) = [finding for finding in findings if finding.topic == topic]
    assert bool(finding.remedy) == (finding.status is not Status.OK), "a remedy beside everything that is not in order"
    return finding


def put(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


# Versions


def test_the_pins_are_those_of_the_repository() -> None:
    """One list: the package carries a link to it, in the checkout and in what is built from it."""
    carried = ROOT / "workers" / "doctor" / "constraints.txt"
    assert carried.is_symlink()
    assert carried.resolve() == ROOT / "constraints.txt"
    lines = (ROOT / "constraints.txt").read_text().split()
    assert [f"{name}=={version}" for name, version in installation.tested_versions().items()] == lines


@pytest.mark.slow
def test_an_installed_mixopt_carries_the_pins(tmp_path: Path) -> None:
    """Links do not survive in wheels; their content has to."""
    import shutil
    import zipfile

    source = tmp_path / "source"
    shutil.copytree(
        ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(".git", ".venv", "runs", "tests", "docs", "*.egg-info", "build")
    )
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        assert content.read("workers/doctor/constraints.txt").decode() == (ROOT / "constraints.txt").read_text()


def test_versions_are_compared() -> None:
    pins = {"torch": "2.13.0", "ray": "2.60.0", "ruff": "0.17.6"}
    asked = ["torch==2.13.0", "pydantic>=2", "ray"]
    (fine,) = installation.compare(pins, asked, {"torch": "2.13.0+cpu", "ray": "2.60.0", "pydantic": "2.14.3"})
    assert (fine.status, fine.found) == (Status.OK, "All 2 pinned packages are the tested versions.")
    found = list(installation.compare(pins, asked, {"torch": "2.12.0", "ray": "2.61.0"}))
    assert [finding.status for finding in found] == [Status.PROBLEM, Status.PROBLEM, Status.WARNING]
    assert [finding.found for finding in found] == [
        "Not installed: pydantic.",
        "torch is 2.12.0, not ==2.13.0.",
        "2 of 2 packages are not the tested version: torch 2.12.0 (tested: 2.13.0), ray 2.61.0 (tested: 2.60.0).",
    ]
    assert all("pip install -c constraints.txt" in finding.remedy for finding in found)


# Machine


@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_of_the_container_counts(version: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    assert only(machine.cores(root=tmp_path), "cores").status is Status.OK
    if version == 2:
        put(tmp_path, "sys/fs/cgroup/cpu.max", "350000 100000\n")
    else:
        put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "350000\n")
        put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    found = only(machine.cores(root=tmp_path), "cores")
    assert found.status is Status.WARNING
    assert "3 of 16 cores may be used (a quota of 3.5)" in found.found
    assert found.remedy == "Set `ray.cpus: 3` in the experiment file."
    assert only(machine.cores(experiment(tmp_path, ray={"cpus": 3}), tmp_path), "cores").status is Status.OK


def test_no_quota_is_no_limit(tmp_path: Path) -> None:
    put(tmp_path, "sys/fs/cgroup/cpu.max", "max 100000\n")
    assert cpu_quota(tmp_path) is None
    put(tmp_path, "sys/fs/cgroup/cpu.max", "")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n")
    put(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")
    assert cpu_quota(tmp_path) is None


def test_a_machine_that_others_use_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1000.0, 0.0, 0.0))
    assert only(machine.cores(root=tmp_path), "load").status is Status.WARNING


@pytest.mark.parametrize(
    ("available", "limit", "used", "status"),
    [
        (64e9, None, 0, Status.OK),
        (64e9, 2e9, 1.9e9, Status.PROBLEM),
        (64e9, 20e9, 18.5e9, Status.WARNING),
        (0.1e9, 20e9, 0, Status.PROBLEM),
    ],
)
def test_memory_is_compared_with_what_packs_need(
    available: float, limit: float | None, used: float, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    put(tmp_path, "proc/meminfo", f"MemTotal: 1 kB\nMemAvailable: {int(available / 1024)} kB\n")
    if limit is not None:
        put(tmp_path, "sys/fs/cgroup/memory.max", f"{int(limit)}\n")
        put(tmp_path, "sys/fs/cgroup/memory.current", f"{int(used)}\n")
    found = only(machine.memory(experiment(tmp_path, ray={}), tmp_path), "memory")
    assert found.status is status, found.found
    assert "8 packs of" in found.found
    in_process = only(machine.memory(experiment(tmp_path), tmp_path), "memory")
    assert "; 1 packs of" in in_process.found


def test_memory_of_unknown_size_is_no_crash(tmp_path: Path) -> None:
    assert only(machine.memory(root=tmp_path), "memory").status is Status.WARNING


def test_the_need_for_memory_is_that_of_the_cost_model(tmp_path: Path) -> None:
    from proxy_models.config import proxy_config
    from workers.memory import pack_memory_bytes

    found = only(machine.memory(experiment(tmp_path, verification={"size": "small"})), "memory")
    assert f"{pack_memory_bytes(proxy_config('small', 8192), 512, 1024, 4) / 1e9:.1f} GB" in found.found
    assert "4 small proxies" in found.found


def test_an_output_folder_is_looked_at_and_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a" / "b"
    assert only(machine.output_disk(folder), "output").status is Status.OK
    assert not (tmp_path / "a").exists()
    (tmp_path / "a").write_text("a file")
    assert "is a file" in only(machine.output_disk(folder), "output").found
    assert only(machine.output_disk(Path("/proc/mixopt")), "output").status is Status.PROBLEM
    monkeypatch.setattr("workers.output_folder.SMALLEST_FREE_BYTES", 1 << 62)
    assert "MB are free, less than" in only(machine.output_disk(tmp_path), "output").found


def test_a_long_folder_for_temporary_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    assert only(machine.temporary_disk(), "temporary files").status is not Status.PROBLEM
    long = tmp_path / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert "too long a path for Ray's sockets" in only(machine.temporary_disk(), "temporary files").found


def test_shared_memory(tmp_path: Path) -> None:
    assert only(machine.shared_memory(tmp_path / "none"), "shared memory").status is Status.WARNING
    assert only(machine.shared_memory(tmp_path), "shared memory").status is Status.OK


def test_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    assert only(machine.open_files(), "open files").remedy == "Raise it: `ulimit -n 65536`."
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    assert only(machine.open_files(), "open files").status is Status.OK


def test_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    assert only(machine.threads(), "threads").status is Status.OK
    monkeypatch.setenv("MKL_NUM_THREADS", "8")
    assert only(machine.threads(), "threads").found.startswith("MKL_NUM_THREADS=8")


# Torch


def torch_says(**changes: Any) -> dict[str, Any]:
    said: dict[str, Any] = {
        "version": "2.13.0+cpu",
        "cuda": None,
        "available": False,
        "reason": "",
        "devices": [],
        "driver": "",
        "threads": 1,
        "libc": "glibc 2.36",
        "returned_share": 0.0,
    }
    return said | changes


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        (torch_says(), Status.OK, "None; trials run on cores"),
        (torch_says(driver="550.54"), Status.WARNING, "is a CPU build: the GPU stays idle"),
        (
            torch_says(driver="450.1", version="2.13.0", cuda="12.8", reason="driver too old"),
            Status.PROBLEM,
            "cannot use a GPU: driver too old",
        ),
        (
            torch_says(version="2.13.0", cuda="12.8", driver="550.54", devices=[{"name": "H100", "bytes": 80 * 2**30}]),
            Status.OK,
            "H100 (80 GiB); driver 550.54",
        ),
    ],
)
def test_accelerators(said: dict[str, Any], status: Status, words: str) -> None:
    found = only(list(accelerators.of_torch(said, "")), "accelerators")
    assert found.status is status
    assert words in found.found


@pytest.mark.parametrize(
    ("said", "preloaded", "words"),
    [
        (torch_says(returned_share=1.0, libc=""), "", "has no glibc"),
        (torch_says(returned_share=1.0), "libjemalloc.so.2", "LD_PRELOAD is libjemalloc.so.2"),
        (torch_says(returned_share=1.0), "", "GLIBC_TUNABLES"),
    ],
)
def test_an_allocator_that_gives_memory_back(said: dict[str, Any], preloaded: str, words: str) -> None:
    found = only(list(accelerators.of_torch(said, preloaded)), "allocator")
    assert found.status is Status.WARNING
    assert words in found.found + found.remedy


@pytest.mark.slow
def test_our_settings_of_the_allocator_do_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """In real processes, with and without them."""
    if not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("no glibc here")
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = accelerators.torch_here()
    assert only(found, "allocator").status is Status.OK, found
    assert not [finding for finding in found if finding.topic == "worker threads"]
    monkeypatch.setattr(accelerators, "WORKER_ENVIRONMENT", {"OMP_NUM_THREADS": "1"})
    assert only(accelerators.torch_here(), "allocator").status is Status.WARNING


# Ray


def test_authentication_of_ray(tmp_path: Path) -> None:
    def status(address: str | None, **environment: str) -> list[str]:
        return [finding.status.value for finding in services.authentication(address, environment, tmp_path)]

    assert status(None) == ["ok"]
    assert status(None, RAY_AUTH_MODE="disabled") == ["warning"]
    assert status("head:6379") == ["warning"]
    assert status("head:6379", RAY_AUTH_MODE="token") == ["problem"], "no token"
    assert status("head:6379", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="x") == ["ok"]
    put(tmp_path, ".ray/auth_token", "x")
    file = tmp_path / ".ray" / "auth_token"
    file.parent.chmod(0o755)
    file.chmod(0o644)
    assert status("head:6379", RAY_AUTH_MODE="token") == ["problem", "ok"], "others may read it"
    (found, _) = services.authentication(None, {}, tmp_path)
    assert found.remedy == f"Run `chmod 600 {file}`."
    file.parent.chmod(0o700)
    assert status("head:6379", RAY_AUTH_MODE="token") == ["ok"], "nobody else gets into its folder, as that of infra/secrets.sh"
    file.parent.chmod(0o755)
    file.chmod(0o600)
    assert status("head:6379", RAY_AUTH_MODE="token") == ["ok"]


def ray_says(**changes: Any) -> dict[str, Any]:
    import platform

    seen = {"environment": dict(WORKER_ENVIRONMENT), "python": platform.python_version(), "mixopt": __version__, "missing": []}
    return {"seen": seen | changes, "cores": 2.0, "gpus": 0, "ray": "2.60.0"}


def test_what_a_worker_sees_is_judged() -> None:
    assert [finding.status for finding in services.of_ray("It", ray_says())] == [Status.OK]
    for changes, status, words in (
        ({"environment": {**WORKER_ENVIRONMENT, "MALLOC_TOP_PAD_": None}}, Status.PROBLEM, "did not get MALLOC_TOP_PAD_"),
        ({"mixopt": "0.0.1"}, Status.PROBLEM, "A worker has mixopt 0.0.1"),
        ({"python": "3.12.1"}, Status.WARNING, "Workers run Python 3.12.1"),
        ({"missing": ["/runs"]}, Status.PROBLEM, "does not see /runs"),
    ):
        found = only(list(services.of_ray("It", ray_says(**changes))), "ray workers")
        assert found.status is status
        assert words in found.found


@pytest.mark.ray
@pytest.mark.slow
def test_ray_is_started_and_a_worker_gets_our_environment() -> None:
    found = services.ray_here(None)
    assert [finding.topic for finding in found if finding.status is not Status.OK] == [], found
    assert "A cluster of its own answers and ran a task" in only(found, "ray").found


@pytest.mark.slow
def test_an_address_where_nothing_listens_is_a_problem(tmp_path: Path) -> None:
    found = services.ray_here(experiment(tmp_path, ray={"address": f"127.0.0.1:{free_port()}"}))
    assert "No Ray cluster answers at 127.0.0.1:" in only(found, "ray").found
    wrong = services.ray_here(experiment(tmp_path, ray={"address": "nonsense"}))
    assert "is not 'auto', 'host:port'" in only(wrong, "ray").found


# MLflow


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def server(answers: dict[str, tuple[int, str]]) -> Iterator[str]:
    """Answers on loopback: start of a path -> status and body."""

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, body = next((answer for path, answer in answers.items() if self.path.startswith(path)), (404, "no"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = _answer

        def log_message(self, *_: object) -> None:
            pass

    listener = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        listener.server_close()


SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"/version": (200, "3.17.2"), SEARCH: (200, "{}")}, {"mlflow": "answers: MLflow 3.17.2", "mlflow login": "takes our requests"}),
        (
            {"/version": (200, "2.9.0"), SEARCH: (200, "{}")},
            {"mlflow": "is MLflow 2.9.0, here it is", "mlflow login": "takes our requests"},
        ),
        ({"/version": (200, "3.17.2"), SEARCH: (401, "You are not authenticated.")}, {"mlflow": "answers", "mlflow login": "(401)"}),
        ({"/version": (401, "You are not authenticated."), SEARCH: (401, "You are not authenticated.")}, {"mlflow login": "(401)"}),
        ({"/version": (200, "3.17.2"), SEARCH: (403, "Permission denied")}, {"mlflow": "answers", "mlflow login": "(403)"}),
        ({"/version": (200, "<html>Grafana</html>")}, {"mlflow": "is no MLflow server"}),
        ({}, {"mlflow": "answers /version with HTTP 404"}),
    ],
)
def test_a_tracking_server(
    answers: dict[str, tuple[int, str]], expected: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with server(answers) as uri:
        found = services.mlflow(experiment(tmp_path, tracking={"uri": uri.replace("http://", "http://me:secret@")}))
    assert {finding.topic for finding in found} == set(expected)
    for topic, words in expected.items():
        assert words in only(found, topic).found
        assert "secret" not in only(found, topic).found


def test_a_tracking_server_that_is_down(tmp_path: Path) -> None:
    found = services.mlflow(experiment(tmp_path, tracking={"uri": f"http://127.0.0.1:{free_port()}"}))
    assert "No MLflow server answers at http://127.0.0.1:" in only(found, "mlflow").found


def test_a_tracking_database(tmp_path: Path) -> None:
    fresh = only(services.mlflow(experiment(tmp_path)), "mlflow")
    assert (fresh.status, fresh.found) == (Status.OK, f"{tmp_path / 'run' / 'mlflow.db'} will be made by the first search.")
    assert not (tmp_path / "run").exists()
    file = tmp_path / "mine.db"
    file.write_text("not a database at all, but long enough to be looked at " * 20)
    assert "cannot be used" in only(services.sqlite_database(file), "mlflow").found
    file.unlink()
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE other (x)")
    connection.close()
    assert "not one of MLflow" in only(services.sqlite_database(file), "mlflow").found
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE alembic_version (version_num)")
    connection.close()
    assert only(services.sqlite_database(file), "mlflow").status is Status.OK


def test_a_database_server_that_is_down_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own client tries for two minutes, and makes its tables in a database that it finds empty."""
    monkeypatch.setattr(services, "logged_in", lambda uri: pytest.fail(f"asked MLflow about {uri}"))
    uri = f"postgresql+psycopg://me:secret@127.0.0.1:{free_port()}/runs"
    found = only(services.mlflow(experiment(tmp_path, tracking={"uri": uri})), "mlflow")
    assert found.status is Status.PROBLEM
    assert "does not answer" in found.found
    assert "secret" not in found.found


def test_a_database_server_that_answers_is_only_connected_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "first_contact", lambda uri, name: None)
    monkeypatch.setattr(services, "logged_in", lambda uri: pytest.fail(f"asked MLflow about {uri}"))
    found = only(services.mlflow(experiment(tmp_path, tracking={"uri": "postgresql+psycopg://me:secret@db/runs"})), "mlflow")
    assert (found.status, found.found) == (Status.OK, "postgresql+psycopg://db/runs lets us in.")


def test_an_error_of_ours_keeps_its_remedy(tmp_path: Path) -> None:
    wrong = experiment(tmp_path, tracking={"uri": "file:///data/mlruns"})
    found = only(run_checks([Check("mlflow", lambda: services.mlflow(wrong))]), "mlflow")
    assert found.found.startswith("'tracking.uri' is 'file:///data/mlruns', which is no address")
    assert "sqlite:///" in found.remedy


def test_a_locked_tracking_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "DATABASE_SECONDS", 0.05)
    file = tmp_path / "mine.db"
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    found = only(services.sqlite_database(file), "mlflow")
    holder.execute("ROLLBACK")
    holder.close()
    assert (found.status, found.found) == (Status.WARNING, f"{file} is locked by another process.")


# The whole


def test_an_experiment_is_looked_at(tmp_path: Path) -> None:
    missing = experiments.inputs(experiment(tmp_path))
    assert [finding.found for finding in missing] == [f"File {tmp_path / name}.jsonl of domain '{name}' does not exist." for name in "ab"]
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"text": "x"}\n')
    assert only(experiments.inputs(experiment(tmp_path)), "inputs").status is Status.OK
    hub = {"name": "c", "hub": {"dataset": "org/data"}, "max_bytes": "1MB", "tokens": "1B"}
    domains = [*({"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in "ab"), hub]
    said = only(experiments.inputs(experiment(tmp_path, domains=domains)), "inputs").found
    assert said.startswith("The files of 2 domains and 0 targets are there. The hub was not asked for its 1 data set")
    absent = experiment(tmp_path, tokenizer={"path": "tokenizer.json"})
    assert "tokenizer.json does not exist" in only(experiments.inputs(absent), "inputs").found
    assert only(experiments.settings(experiment(tmp_path)), "experiment").status is Status.OK
    infeasible = experiment(tmp_path, budget_tokens="30B")
    assert "No mixture is feasible" in only(experiments.settings(infeasible), "experiment").found


def test_every_check_has_a_limit_and_nothing_is_left_out(tmp_path: Path) -> None:
    topics = [check.topic for check in checks(experiment(tmp_path), start_ray=True)]
    assert {"packages", "cores", "memory", "accelerators", "ray", "mlflow", "output", "inputs", "experiment"} <= set(topics)
    assert all(0 < check.seconds <= 300 for check in checks(None, start_ray=True))


@pytest.mark.slow
def test_the_doctor_changes_nothing(tmp_path: Path) -> None:
    before = experiment(tmp_path)
    found = examine(before)
    assert list(tmp_path.iterdir()) == []
    assert only(found, "experiment").status is Status.OK
    assert len([finding for finding in found if finding.topic == "inputs"]) == 2
