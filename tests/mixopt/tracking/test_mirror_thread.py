"""The mirror's thread: whatever MLflow does, the search neither fails nor waits."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from mixopt.errors import RunError
from mixopt.progress import Silent
from mixopt.tracking.mlflow_mirror import MirrorThread, MlflowMirror
from mixopt.tracking.mlflow_server import HTTP_ENVIRONMENT, PRIVACY_ENVIRONMENT, MlflowServer

SEARCH_ID = "5ea7c4" + "0" * 14


class Notes(Silent):
    """Remembers notes, and lets a test wait for the first."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.first = threading.Event()

    def note(self, text: str) -> None:
        self.texts.append(text)
        self.first.set()


class Record:
    """A record of which only the counter matters."""

    counter = 1

    def change_counter(self) -> int:
        return self.counter


class FakeMirror(MlflowMirror):
    """Counts syncs; each does what `act` does."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        self.history = Record()  # type: ignore[assignment]
        self.act = act
        self.syncs = 0
        self.synced = threading.Semaphore(0)

    def sync(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        self.syncs += 1
        try:
            self.act()
        finally:
            self.synced.release()
        return not should_stop()


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@contextmanager
def running(thread: MirrorThread) -> Iterator[MirrorThread]:
    try:
        yield thread
    finally:
        thread.stop(timeout_seconds=10)


def test_it_syncs_when_the_record_moved_and_only_then() -> None:
    mirror = FakeMirror()
    with running(MirrorThread(mirror, interval_seconds=0.001)) as thread:
        assert mirror.synced.acquire(timeout=30)
        mirror.history.counter += 1  # type: ignore[attr-defined]
        assert mirror.synced.acquire(timeout=30)
        assert thread.stop(timeout_seconds=30)
    assert mirror.syncs == 2


def test_stop_mirrors_what_happened_last() -> None:
    mirror = FakeMirror()
    with running(MirrorThread(mirror, interval_seconds=3600)) as thread:
        assert mirror.synced.acquire(timeout=30)
        mirror.history.counter += 1  # type: ignore[attr-defined]
        assert thread.stop(timeout_seconds=30)
    assert mirror.syncs == 2


class StoppableMirror(FakeMirror):
    """A mirror of a search whose state is `state`; what a sync has read of it is shown."""

    def __init__(self, act: Callable[[], object] = lambda: None) -> None:
        super().__init__(act)
        self.state = "running"
        self.search_id = SEARCH_ID
        self.shown_state = "running"
        self.history.search = lambda search_id: SimpleNamespace(state=self.state)  # type: ignore[method-assign, assignment, return-value]

    def sync(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        self.shown_state = self.state
        return super().sync(should_stop)


def test_a_search_that_is_stopped_is_shown_at_once_and_not_at_the_next_look() -> None:
    """A cluster kills a stopped job after seconds; the usual interval may be longer, and `stop` may never be called."""
    mirror = StoppableMirror()
    with running(MirrorThread(mirror, interval_seconds=3600)):
        assert mirror.synced.acquire(timeout=30)
        mirror.history.counter += 1  # type: ignore[attr-defined]
        mirror.state = "interrupted"
        assert mirror.synced.acquire(timeout=30), "it waited for the next look"
        assert mirror.shown_state == "interrupted"


def test_a_sync_under_way_gives_way_to_a_stop() -> None:
    """Hundreds of trials take longer to write than a cluster waits."""
    gave_way = []

    def sync(should_stop: Callable[[], bool]) -> bool:
        if not gave_way:
            mirror.state = "interrupted"  # after this sync had read the record
        gave_way.append(should_stop())
        mirror.synced.release()
        return not gave_way[-1]

    mirror = StoppableMirror()
    mirror.sync = sync  # type: ignore[method-assign, assignment]
    with running(MirrorThread(mirror, interval_seconds=3600)):
        assert mirror.synced.acquire(timeout=30)
        assert gave_way[0]


def test_a_failure_is_told_once_and_mended_by_a_later_sync() -> None:
    down = True

    def act() -> None:
        if down:
            raise RunError("MLflow does not answer.")

    mirror, notes = FakeMirror(act), Notes()
    with running(MirrorThread(mirror, 0.001, notes)) as thread:
        for _ in range(3):
            assert mirror.synced.acquire(timeout=30)
        down = False
        assert thread.stop(timeout_seconds=30)
    assert len(notes.texts) == 1
    assert "MLflow does not answer." in notes.texts[0]


def test_stop_returns_although_a_call_never_does() -> None:
    answer = threading.Event()
    mirror = FakeMirror(answer.wait)
    thread = MirrorThread(mirror, 0.001)
    assert not thread.stop(timeout_seconds=0.1)  # would hang here if it waited
    answer.set()


def test_a_server_that_hangs_is_not_waited_for_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixopt.tracking.mlflow_mirror.HUNG_SECONDS", 0.0)
    answer = threading.Event()

    def act() -> None:
        answer.wait()
        raise RunError("MLflow does not answer.")

    mirror = FakeMirror(act)
    thread = MirrorThread(mirror, 3600)
    assert not thread.stop(timeout_seconds=0.05)
    answer.set()
    assert not thread.stop(timeout_seconds=30)
    assert mirror.syncs == 1


def test_a_sync_past_its_deadline_is_not_complete() -> None:
    mirror = FakeMirror()
    thread = MirrorThread(mirror, 3600)
    assert mirror.synced.acquire(timeout=30)
    mirror.history.counter += 1  # type: ignore[attr-defined]
    assert not thread.stop(timeout_seconds=-1)


@pytest.mark.slow
def test_a_server_that_is_down_stops_nothing(recorded: Any) -> None:
    search, notes = recorded().finish(5, seeds=2), Notes()
    mirror = MlflowMirror(search.history, SEARCH_ID, "http://ann:secret@127.0.0.1:9", "mixopt")  # port 9 is discard; nobody listens
    thread = MirrorThread(mirror, 0.001, notes)
    assert notes.first.wait(timeout=120)
    assert not thread.stop(timeout_seconds=0.1)
    assert len(notes.texts) == 1
    assert "mixopt mirror DIR" in notes.texts[0]
    assert "secret" not in notes.texts[0]


def test_the_environment_is_changed_only_where_it_must_and_the_user_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in HTTP_ENVIRONMENT | PRIVACY_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    MlflowServer("sqlite:///some.db", "mixopt")
    assert not set(HTTP_ENVIRONMENT) - {"MLFLOW_HTTP_REQUEST_TIMEOUT"} & set(os.environ)
    MlflowServer("http://127.0.0.1:9", "mixopt")
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_passwords_are_not_shown() -> None:
    assert MlflowServer("https://ann:secret@mlflow.example:5000/x", "mixopt").shown_uri == "https://mlflow.example:5000/x"
    assert MlflowServer("sqlite:////a/b@c/mlflow.db", "mixopt").shown_uri == "sqlite:////a/b@c/mlflow.db"
