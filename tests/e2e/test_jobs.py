"""Searches as jobs on a Ray head, by the commands of docs/jobs.md: submitted, followed, stopped, submitted again, completed."""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History
from mixopt.trial import TrialState
from workers.compose import record_location
from workers.trial_folder import TrialFolder

# Under a minute and a half on a quiet machine; a head on a busy one takes minutes for each of a dozen commands.
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(2400)]

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8"), flags=re.DOTALL)
TRIALS = 6
PATIENCE_SECONDS = 900.0


@dataclass(frozen=True)
class Head:
    """A head that runs, and how the commands of this machine reach it.

    Attributes:
        address, cluster: of its dashboard, and where processes join it.
    """

    address: str
    cluster: str
    environment: dict[str, str]
    folder: Path

    def mixopt(self, *arguments: str | Path, code: int = 0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        command = [sys.executable, "-m", "mixopt", *map(str, arguments)]
        ended = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env=self.environment | variables,
            timeout=PATIENCE_SECONDS,
            check=False,
            cwd=self.folder,
        )
        assert ended.returncode == code, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mixopt", *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environment,
            cwd=self.folder,
        )


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"  # of a process that nobody waits for
    except FileNotFoundError:
        return True


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """Started by the first block of docs/jobs.md, with ports and folders of its own."""
    home = Path(tempfile.mkdtemp(prefix="mixopt-"))  # short, for the sockets of Ray
    folder = tmp_path_factory.mktemp("jobs")
    (folder / ".venv").symlink_to(sys.prefix)
    dashboard, client, agent = free_ports(3)
    own = f"--temp-dir {home / 'ray'} --port 0 --dashboard-port {dashboard} --ray-client-server-port {client}"
    own += f" --dashboard-agent-listen-port {agent} --min-worker-port 0 --max-worker-port 0 --num-cpus 2 --object-store-memory 100000000"
    script = BLOCKS[0].replace("ray start --head", f"ray start --head {own}").replace("mixopt jobs", f"{sys.executable} -m mixopt jobs")
    script = script.replace("head=$!", "head=$!; echo $head > head.pid")
    assert own in script
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    environment = kept | {"HOME": str(home), "PYTHONPATH": str(ROOT), "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}"}
    try:
        command = ["bash", "-ec", script]
        started = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, timeout=PATIENCE_SECONDS, check=False
        )
        assert started.returncode == 0, started.stderr + (folder / "head.log").read_text()
        named = home / "ray" / "ray_current_cluster"
        cluster = wait_for(lambda: named.exists() and named.read_text().strip(), "the head to write where it can be joined")
        yield Head(environment["RAY_API_SERVER_ADDRESS"], cluster, environment | {"RAY_AUTH_MODE": "token"}, folder)
    finally:
        if (folder / "head.pid").exists():
            pid = int((folder / "head.pid").read_text())
            os.kill(pid, signal.SIGTERM)  # as `kill $head` does
            wait_for(lambda: has_ended(pid), "the head to end")
        shutil.rmtree(home, ignore_errors=True)


def wait_for(look: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (found := look()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)
    return found


def write_experiment(folder: Path, name: str, tokens: int, **changes: Any) -> Path:
    words = {"prose": "the river ran past an old house where grass grew", "tables": "one two three four five six row column"}
    for domain, text in words.items():
        chosen = random.Random(domain)
        lines = (json.dumps({"text": " ".join(chosen.choices(text.split(), k=60))}) for _ in range(120))
        (folder / f"{domain}.jsonl").write_text("\n".join(lines))
    raw: dict[str, Any] = {
        "name": name,
        "output": f"{name}-run",
        "budget_tokens": "10B",
        "domains": [{"name": domain, "path": f"{domain}.jsonl", "tokens": "5B", "held_out": 0.2} for domain in words],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": tokens, "window": 64, "tokens_per_step": 128, "seeds": 2},
        "search": {"trials": TRIALS},
        "verification": {"enabled": False},
        "ray": {"pack_size": 1},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw | changes))
    return path


def work_done(output: Path) -> dict[str, list[str]]:
    """Trial id -> what was done in its folder, in order."""
    trials = output / "trials"
    return {path.name: [line["event"] for line in TrialFolder(output, path.name).read_log()] for path in trials.glob("*")}


def mlflow_runs(output: Path) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}")
    return list(client.search_runs([client.get_experiment_by_name("mixopt").experiment_id]))


def test_submitted_followed_stopped_submitted_again_completed(head: Head) -> None:
    file = write_experiment(head.folder, "search", tokens=64_000)
    output = head.folder / "search-run"
    commands = {line.split()[1]: line.partition("#")[0].split()[1:] for line in BLOCKS[1].splitlines()}
    assert set(commands) == {"submit", "jobs", "status", "logs", "stop"}

    follower = head.start(*commands["submit"])
    try:
        wait_for(lambda: (output / "tokens").exists() or follower.poll() is not None, "the job to run")
        assert follower.poll() is None, follower.communicate()
        attached = head.mixopt("submit", file, "--trials", str(TRIALS + 2))
        (first,) = re.findall(r"\b([0-9a-f]{12}-1)\b", head.mixopt(*commands["jobs"]).stdout)
        assert attached.stdout.split() == [first]
        assert f"Attached to job {first}, which is running." in attached.stderr
        assert "It runs the file as it was then" in attached.stderr
        assert "State: running" in head.mixopt(*commands["status"]).stdout

        wait_for(lambda: ["training", "finished"] in work_done(output).values(), "the first trial")
        stopped = head.mixopt(*commands["stop"])
        assert f"Job {first} is stopped. What it has finished is kept in {output}." in stopped.stdout
        out, errors = follower.communicate(timeout=PATIENCE_SECONDS)
    finally:
        follower.kill()
        follower.wait()
    assert follower.returncode == 130
    assert f"interrupted: Job {first} was stopped." in errors
    assert "interrupted: Search stopped: " in out, "it came to its end before Ray killed it"
    with History.open(record_location(output)) as history:
        (search,) = history.searches()
        assert search.state == "interrupted"
        finished = {record.trial.trial_id for record in history.trials(search.search_id) if record.outcome is not None}
    assert 0 < len(finished) < TRIALS
    before = work_done(output)
    runs = mlflow_runs(output)
    assert {run.info.status for run in runs} == {"KILLED", "FINISHED"}
    assert [run.info.status for run in runs if "mlflow.parentRunId" not in run.data.tags] == ["KILLED"]

    again = head.mixopt(*commands["submit"])
    second = first.removesuffix("-1") + "-2"
    assert f"Submitted job {second}." in again.stderr
    assert f"Trials: {TRIALS - len(finished)} trained now, {len(finished)} already in the record." in again.stdout
    assert {key: work_done(output)[key] for key in finished} == {key: before[key] for key in finished}
    with History.open(record_location(output)) as history:
        (search,) = history.searches()
        records = history.trials(search.search_id)
    assert search.state == "finished"
    assert [record.state for record in records] == [TrialState.COMPLETED] * TRIALS
    (parent,) = [run for run in mlflow_runs(output) if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in mlflow_runs(output) if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert {run.info.status for run in (parent, *children)} == {"FINISHED"}
    assert {run.data.tags["mixopt.trial_id"] for run in children} == {record.trial.trial_id for record in records}

    listed = head.mixopt("jobs").stdout
    assert first in listed
    assert second in listed
    assert "check" not in listed
    assert "exit code 0" in head.mixopt("status", second).stdout
    assert head.mixopt(*commands["logs"]).stdout.count("Trials: ") == 1
    assert "is over: succeeded" in head.mixopt("stop", file).stdout


def test_what_is_wrong_is_said_before_anything_runs(head: Head, tmp_path: Path) -> None:
    file = write_experiment(tmp_path, "wrong", tokens=2048)
    output = tmp_path / "wrong-run"

    def error(*arguments: str | Path, code: int = 5, **variables: str) -> str:
        (line,) = [line for line in head.mixopt(*arguments, code=code, **variables).stderr.splitlines() if line.startswith("error: ")]
        return line

    assert f"{head.address} refuses the token." in error("submit", file, RAY_AUTH_TOKEN=secrets.token_hex(32))
    assert f"{head.address} asks for a token, and there is none." in error("submit", file, RAY_AUTH_MODE="disabled")
    assert f"{head.address} asks for a token, and there is none." in error("jobs", HOME=str(tmp_path))
    assert "holds no token" in error("jobs", RAY_AUTH_TOKEN_PATH="/no/such/file")
    (port,) = free_ports(1)
    assert error("submit", file, "--address", f"http://127.0.0.1:{port}").endswith("(connection refused).")
    assert not output.exists()
    joined = write_experiment(tmp_path, "joined", 2048, ray={"address": head.cluster})
    # The switch keeps loopback addresses as they are, on this side too.
    other = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    assert f"The Ray cluster at {head.cluster} refuses this process" in error("search", joined, **other)
    assert not (tmp_path / "joined-run" / "tokens").exists(), "the token is looked at before documents are"

    (tmp_path / "tables.jsonl").rename(tmp_path / "gone.jsonl")
    missing = f"Seen from the cluster: File {tmp_path / 'tables.jsonl'} of domain 'tables' does not exist."
    assert error("submit", file, code=3) == f"error: {missing}"
    (tmp_path / "gone.jsonl").rename(tmp_path / "tables.jsonl")
    (tmp_path / "a-file").touch()
    assert "Seen from the cluster: 'output' is" in error("submit", write_experiment(tmp_path, "full", 2048, output="a-file/run"), code=2)
    # The version of the cluster is that of its checkout; this side's is made another.
    script = "import mixopt; mixopt.__version__ = '99.0'; from mixopt.cli import main; main()"
    other = subprocess.run(
        [sys.executable, "-c", script, "submit", str(file)],
        capture_output=True,
        text=True,
        env=head.environment,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    assert other.returncode == 5
    assert re.search(
        r"^error: The cluster at \S+ runs mixopt 0\S+ \(engine 1\), this machine mixopt 99.0", other.stderr, flags=re.MULTILINE
    )
    assert not (output / "record.sqlite").exists()
    assert "wrong" not in head.mixopt("jobs").stdout
