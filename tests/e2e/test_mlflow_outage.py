"""kill -9 of the MLflow server in the middle of a search, and a server that is not there at all: the search goes on, the mirror is completed."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mixopt.experiment_file import load_experiment
from mixopt.history import TrialRecord
from mixopt.progress import Silent
from mixopt.runner import TrialEvent
from mixopt.trial import Trial

pytestmark = pytest.mark.slow

PATIENCE_SECONDS = 240.0
BEHIND, NOT_COMPLETE = "The MLflow mirror is behind, the search goes on.", "is not complete; `mixopt mirror"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """A search in this process leaves short waits for MLflow in its environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


class Notes(Silent):
    """Remembers notes, and lets a test wait until the mirror has failed."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.behind = threading.Event()

    def note(self, text: str) -> None:
        self.texts.append(text)
        if BEHIND in text:
            self.behind.set()


class Outage:
    """Observer that kills the server when two trials have finished and some run is mirrored, and starts it again when five have.

    At the third it waits until the mirror has met the outage, so the outage is as long as it has to be, on any machine.
    """

    def __init__(self, server: Any, notes: Notes) -> None:
        self._server, self._notes, self.done = server, notes, 0
        self.steps: list[str] = []

    def asked(self, trials: list[Trial]) -> None:
        pass

    def event(self, event: TrialEvent) -> None:
        pass

    def finished(self, record: TrialRecord) -> None:
        self.done += 1
        try:
            self._step()
        except BaseException as error:  # noqa: BLE001 - the loop only logs what an observer raises
            self.steps.append(f"failed: {error}")

    def _step(self) -> None:
        if self.done == 2:
            deadline = time.monotonic() + PATIENCE_SECONDS
            while len(runs_at(self._server.uri)) < 1:
                assert time.monotonic() < deadline, "nothing was mirrored"
                time.sleep(0.2)
            self._server.kill()
            assert not self._server.answers()
            self.steps.append("killed")
        if self.done == 3:
            assert self._notes.behind.wait(PATIENCE_SECONDS), "the mirror did not meet the outage"
            self.steps.append("met")
        if self.done == 5:
            self._server.start()
            self.steps.append("started")


def runs_at(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name("mixopt")
    return [] if found is None else list(client.search_runs([found.experiment_id]))


def test_a_server_killed_in_the_middle_is_caught_up_with(
    make_place: Callable[..., Any], undisturbed: Any, tracking_server: Callable[[Path], Any], tmp_path: Path, empty_database: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    server = tracking_server(tmp_path / "mlflow.db")
    server.start()
    place, notes = make_place(tracking={"enabled": True, "uri": server.uri}), Notes()
    outage = Outage(server, notes)
    from workers.run import run

    run(load_experiment(place.file), notes, observers=(outage,))
    assert outage.steps == ["killed", "met", "started"]
    assert place.answer() == undisturbed.answer()
    assert len([text for text in notes.texts if BEHIND in text]) == 1, "told once"
    if any(NOT_COMPLETE in text for text in notes.texts):  # a machine so busy that a minute was too short
        place.run("mirror", str(place.output))
    assert place.mirrored(server.uri) == undisturbed.mirrored()


def test_a_server_that_is_away_from_the_start_is_told_first_and_completed_later(
    make_place: Callable[..., Any], undisturbed: Any, tracking_server: Callable[[Path], Any], tmp_path: Path, empty_database: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_database.read_bytes())
    server = tracking_server(tmp_path / "mlflow.db")
    place = make_place(tracking={"enabled": True, "uri": server.uri})
    ended = place.search()
    lines = ended.errors.splitlines()
    assert lines[0].startswith(f"MLflow at {server.uri} does not answer (Connection refused): the search goes on without it"), lines[:3]
    assert [line for line in lines if NOT_COMPLETE in line], "how to complete it stands at the end, too"
    assert "Traceback" not in ended.errors
    assert place.answer() == undisturbed.answer()
    server.start()
    place.run("mirror", str(place.output))
    assert place.mirrored(server.uri) == undisturbed.mirrored()
    before = {run.info.run_id for run in runs_at(server.uri)}
    place.run("mirror", str(place.output))
    assert {run.info.run_id for run in runs_at(server.uri)} == before
