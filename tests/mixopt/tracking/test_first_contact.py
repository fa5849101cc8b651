"""A tracking address that is wrong, refused or away: one sentence before anything is spent."""

from __future__ import annotations

import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mixopt.errors import ConfigError, MixoptError, RunError
from mixopt.tracking.first_contact import check_address, first_contact

Serve = Callable[[int, str], str]


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """MlflowServer leaves short waits in the environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts a server that answers every request in one way; returns its address."""
    servers: list[HTTPServer] = []

    def start(status: int, body: str) -> str:
        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, format: str, *args: object) -> None:
                return None

        servers.append(HTTPServer(("127.0.0.1", 0), Answer))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def experiment(stage: str) -> str:
    return json.dumps({"experiment": {"experiment_id": "1", "name": "mixopt", "artifact_location": "x", "lifecycle_stage": stage}})


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("localhost:5000", "no address of an MLflow server"),
        ("mlflow.db", "no address of an MLflow server"),
        ("/data/mlflow.db", "no address of an MLflow server"),
        ("ftp://host/x", "no address of an MLflow server"),
        ("file:///data/mlruns", "no address of an MLflow server"),
        ("http://", "names no host"),
        ("http://host:fivethousand", "no address"),
        ("http://host:99999999", "no address"),
        ("sqlite://mlflow.db", "names no file"),
        ("", "no address of an MLflow server"),
    ],
)
def test_what_is_no_address_is_refused_without_asking_anybody(uri: str, problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"looked for {args}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(ConfigError) as caught:
        first_contact(uri, "mixopt")
    assert problem in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "uri",
    [
        "http://host",
        "https://user:secret@host:8443/path",
        "sqlite:////data/mlflow.db",
        "sqlite:///mlflow.db",
        "postgresql+psycopg2://u@h/d",
    ],
)
def test_addresses_that_may_be_right_pass(uri: str) -> None:
    check_address(uri)


def test_a_password_is_not_shown_with_the_address() -> None:
    with pytest.raises(ConfigError) as caught:
        check_address("ftp://user:secret@host/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "kind", "problem"),
    [
        (401, "You are not authenticated. Please see the documentation.", RunError, "refuses the login (401)"),
        (401, json.dumps({"error_code": "UNAUTHENTICATED", "message": "who are you"}), RunError, "refuses the login (401)"),
        (403, "Permission denied", RunError, "not read experiments (403)"),
        (403, json.dumps({"error_code": "PERMISSION_DENIED", "message": "no"}), RunError, "not read experiments (403)"),
        (404, "<html>nothing here</html>", ConfigError, "is no MLflow tracking server"),
        (200, "<html>welcome</html>", ConfigError, "is no MLflow tracking server"),
        (200, experiment("deleted"), RunError, "was deleted"),
    ],
)
def test_what_never_mends_itself_is_an_error(serve: Serve, status: int, body: str, kind: type[MixoptError], problem: str) -> None:
    with pytest.raises(kind) as caught:
        first_contact(serve(status, body), "mixopt")
    assert problem in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


def test_a_server_that_answers_needs_no_words(serve: Serve) -> None:
    assert first_contact(serve(200, experiment("active")), "mixopt") is None
    missing = json.dumps({"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"})
    assert first_contact(serve(404, missing), "mixopt") is None, "the mirror makes it"


def test_a_server_that_is_away_is_told_and_waited_for_by_nobody(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    away = first_contact(f"http://user:secret@127.0.0.1:{port}", "mixopt")
    assert away is not None
    assert away.startswith(f"MLflow at http://127.0.0.1:{port} does not answer (Connection refused): the search goes on without it")
    assert "`mixopt mirror` completes it" in away
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert "HTTP 503" in str(first_contact(serve(503, "starting"), "mixopt"))


def test_a_database_that_cannot_be_one_is_told(tmp_path: Path) -> None:
    assert first_contact(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", "mixopt") is None
    assert list((tmp_path / "new").iterdir()) == [], "nothing is made by looking"
    (tmp_path / "notes.txt").write_text("not a database at all, but long enough to have a header " * 20)
    with pytest.raises(ConfigError, match="is not a database"):
        first_contact(f"sqlite:///{tmp_path / 'notes.txt'}", "mixopt")
    with pytest.raises(ConfigError, match="cannot be written"):
        first_contact(f"sqlite:///{tmp_path / 'notes.txt' / 'mlflow.db'}", "mixopt")
    sqlite3.connect(tmp_path / "good.db").close()
    assert first_contact(f"sqlite:///{tmp_path / 'good.db'}", "mixopt") is None


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code"), [(None, 2), (401, 5)])
def test_the_search_command_says_it_before_any_work(serve: Serve, tmp_path: Path, status: int | None, code: int) -> None:
    uri = "localhost:5000" if status is None else serve(status, "no")
    file = tmp_path / "experiment.yaml"
    domains = "".join(f"\n  - {{name: {name}, path: {name}.jsonl, tokens: 1B}}" for name in "ab")
    file.write_text(f"name: x\noutput: run\nbudget_tokens: 1B\ntracking: {{uri: '{uri}'}}\ndomains:{domains}\n")
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"text": name}) + "\n")
    command = [sys.executable, "-c", "from mixopt.cli import main; main()", "search", str(file)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == code, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 2, ended.stderr
    assert ended.stderr.startswith("error: ")
    assert not (tmp_path / "run" / "tokens").exists()
    assert not (tmp_path / "run" / "record.sqlite").exists()
