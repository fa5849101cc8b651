"""The client of Ray's Jobs API against servers that answer, refuse, hang and are not Ray; a real head is in tests/e2e."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mixopt.errors import ConfigError, RunError
from workers.jobs import api as jobs_api
from workers.jobs.api import ATTEMPT, KEY, JobsApi


class Dashboard(ThreadingHTTPServer):
    """A server that gives prepared answers: path -> (status, text)."""

    daemon_threads = True

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {
            "/api/version": (200, json.dumps({"version": "4", "ray_version": "2.60.0", "ray_commit": ""}))
        }
        self.asked: list[str] = []
        self.hang = threading.Event()
        self.hang.set()
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Dashboard

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.server.hang.wait(30)
        status, text = self.server.answers.get(self.path, (404, "Not found"))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_PUT = do_DELETE = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    server = Dashboard()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.hang.set()
    server.shutdown()
    thread.join()
    server.server_close()


def details(job_id: str, status: str = "RUNNING", metadata: dict[str, str] | None = None, **more: Any) -> dict[str, Any]:
    return {
        "type": "SUBMISSION",
        "submission_id": job_id,
        "status": status,
        "entrypoint": "true",
        "start_time": 2_000,
        "metadata": metadata or {},
        **more,
    }


@pytest.mark.parametrize("address", ["ray://host:10001", "auto://", "http://", "http://host:port", "", "http://host:0"])
def test_what_is_not_the_address_of_a_dashboard(address: str) -> None:
    with pytest.raises(ConfigError, match="is not the address of a Ray dashboard"):
        JobsApi(address)


def test_nothing_answers(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "CONNECT_SECONDS", 0.2)
    dashboard.hang.clear()
    began = time.monotonic()
    with pytest.raises(RunError, match=r"No Ray cluster answers at http://127.0.0.1:\d+ \(timed out\)."):
        JobsApi(dashboard.address)
    assert time.monotonic() - began < 20, "waited for a server that hangs"


def test_something_else_answers(dashboard: Dashboard) -> None:
    for answer in ((200, "<html>hello</html>"), (404, "no"), (500, "oh")):
        dashboard.answers["/api/version"] = answer
        with pytest.raises(RunError, match="is not the dashboard of a Ray head"):
            JobsApi(dashboard.address)


def test_the_given_address_counts_not_that_of_the_environment(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.255.255.1:6379")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://10.255.255.1:8265")
    dashboard.answers["/api/jobs/"] = (200, "[]")
    for address in (dashboard.address, dashboard.address + "/", dashboard.address.removeprefix("http://")):
        assert JobsApi(address).jobs() == []
    assert jobs_api.os.environ["RAY_API_SERVER_ADDRESS"] == "http://10.255.255.1:8265", "the environment is as before"


def test_jobs_of_others_are_left_out_and_times_are_seconds(dashboard: Dashboard) -> None:
    ours = {KEY: "abc", ATTEMPT: "2"}
    dashboard.answers["/api/jobs/"] = (
        200,
        json.dumps([details("theirs"), details("abc-2", "FAILED", ours, end_time=65_000, driver_exit_code=3, message="last words")]),
    )
    (job,) = JobsApi(dashboard.address).jobs()
    assert (job.job_id, job.state, job.key, job.attempt, job.exit_code) == ("abc-2", "failed", "abc", 2, 3)
    assert (job.started, job.seconds, job.is_over) == (2.0, 63.0, True)


def test_an_id_that_is_taken_is_no_error_and_others_are(dashboard: Dashboard) -> None:
    api = JobsApi(dashboard.address)
    trace = "Traceback (most recent call last):\n  File x\nValueError: Job with submission_id abc-1 already exists. Please use a different submission_id.\n"

    def submit(text: str = "name: x") -> bool:
        return api.submit("abc-1", "true", {"experiment.yaml": text}, {}, {})

    dashboard.answers["/api/jobs/"] = (500, trace)
    with pytest.raises(RunError, match="refuses"):
        submit()  # the upload is refused already
    package = next(path for path in dashboard.asked if "/api/packages/" in path).partition(" ")[2]
    dashboard.answers[package] = (200, "")
    assert submit() is False
    dashboard.answers["/api/jobs/"] = (500, "Traceback\nRuntimeError: no agent is there\n")
    with pytest.raises(RunError, match=r"refuses: RuntimeError: no agent is there"):
        submit()
    dashboard.answers["/api/jobs/"] = (200, json.dumps({"job_id": "abc-1", "submission_id": "abc-1"}))
    assert submit() is True
    before = len(dashboard.asked)
    with pytest.raises(ConfigError, match="more than the 1,048,576 that are uploaded"):
        submit("#" * (1 << 20) + "\n")
    assert len(dashboard.asked) == before, "nothing was sent"


def test_a_follower_sees_each_line_once_and_survives_a_cluster_that_is_away(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_api, "LOOK_SECONDS", 0.01)
    api = JobsApi(dashboard.address)
    path = "/api/jobs/abc-1"
    dashboard.answers[path] = (200, json.dumps(details("abc-1")))
    dashboard.answers[f"{path}/logs"] = (200, json.dumps({"logs": "one\n"}))
    pieces = api.follow("abc-1")
    assert next(pieces) == "one\n"
    dashboard.answers[path] = (500, "away")
    threading.Timer(0.3, lambda: dashboard.answers.update({path: (200, json.dumps(details("abc-1", "SUCCEEDED")))})).start()
    dashboard.answers[f"{path}/logs"] = (200, json.dumps({"logs": "one\ntwo\nthree\n"}))
    assert list(pieces) == ["two\nthree\n"]
    monkeypatch.setattr(jobs_api, "LOST_SECONDS", 0.2)
    dashboard.answers[path] = (500, "away")
    with pytest.raises(RunError, match="away"):
        list(api.follow("abc-1"))
