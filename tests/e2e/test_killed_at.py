"""kill -9 at named points of the real command: afterwards it completes, trains nothing finished again, counts nothing twice, answers the same.

The points are hit by number, not by luck: a process kills itself when it passes one (`failpoints/sitecustomize.py`). One search that nobody
disturbs is the reference for all.
"""

from __future__ import annotations

import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixopt.history import History
from mixopt.trial import TrialState
from workers.compose import record_location

pytestmark = pytest.mark.slow

# As in conftest.py: tokens per step, trials of the search, trials asked for at once.
STEP, TRIALS, PACK = 128, 6, 2


def starts(lines: list[dict[str, Any]]) -> list[int]:
    """Tokens after the first step, each time that a trial was taken up."""
    return [line["tokens"] for line in lines if line["event"] == "training"]


def check_completed(place: Any, undisturbed: Any) -> None:
    """Everything is there once, and as if nothing had happened."""
    assert place.answer() == undisturbed.answer()
    records = place.records()
    assert {record.state for record in records} == {TrialState.COMPLETED}
    trained = {record.trial.trial_id for record in records}
    with sqlite3.connect(record_location(place.output)) as connection:
        counted = Counter(row[0] for row in connection.execute("select subject from events where kind = 'completed'"))
    connection.close()
    assert counted == dict.fromkeys(trained, 1)
    with History.open(record_location(place.output)) as history:
        context = history.document(place.search_id(history), "context")
        assert context is not None
        names = [domain["name"] for domain in context["domains"]]
        table = history.swarm(place.search_id(history), names, context["metrics"]).table
    assert len(table) == len(table.unique(["trial_id", "metric", "tokens"])) > 0
    assert set(place.work()) == trained
    assert all([line["event"] for line in lines].count("finished") <= 1 for lines in place.work().values())
    assert not list((place.output / "trials").rglob("*.tmp"))


# What a driver is killed at, and how often the process has passed the point then. Trials are asked for two at a time.
DRIVER_POINTS = {
    "after it asked, before the record": "driver-after-ask:2",
    "after the record, before it submits": "driver-after-record:2",
    "after an outcome arrived, before it is recorded": "driver-before-outcome:3",
    "after an outcome is recorded": "driver-after-outcome:3",
    "before the first verification is recorded": f"driver-after-ask:{TRIALS // PACK + 1}",
    "in the middle of the verification": f"driver-before-outcome:{TRIALS + 2}",
    "before its calibration is recorded": "driver-before-proposal:2",
    "before the proposal is recorded": "driver-before-proposal:4",
}


@pytest.mark.parametrize("when", DRIVER_POINTS)
def test_a_driver_killed(when: str, make_place: Callable[..., Any], undisturbed: Any) -> None:
    place = make_place()
    place.search(kill_at=DRIVER_POINTS[when], code=-signal.SIGKILL)
    assert place.killed()["point"] == DRIVER_POINTS[when].partition(":")[0]
    finished, work = place.finished(), place.work()
    assert finished, "the point is in the middle of the search"
    place.search()
    check_completed(place, undisturbed)
    assert {trial_id: place.finished()[trial_id] for trial_id in finished} == finished, "trained or scored again"
    assert {trial_id: starts(place.work()[trial_id]) for trial_id in finished} == {t: starts(work[t]) for t in finished}
    assert all(len(starts(lines)) == 1 for trial_id, lines in place.work().items() if trial_id in finished)


# What a mirror is killed at: 1 is the run of the search, 4 the third of its trials.
MIRROR_POINTS = {
    "having made the search's run, before it is noted": "mirror-after-run:1",
    "having made a trial's run, before it is noted": "mirror-after-run:4",
    "in the middle of the trials": "mirror-before-note:5",
    "having uploaded tables and figures, before it is noted": "mirror-in-artifacts:1",
}


@pytest.mark.parametrize("when", MIRROR_POINTS)
def test_a_process_killed_inside_the_mirror(when: str, make_place: Callable[..., Any], undisturbed: Any, empty_database: Path) -> None:
    place = make_place(tracking={"enabled": True})
    shutil.copy(empty_database, place.output / "mlflow.db")
    place.search(kill_at=MIRROR_POINTS[when], code=-signal.SIGKILL)
    assert place.killed()["point"] == MIRROR_POINTS[when].partition(":")[0]
    finished = place.finished()
    place.search()
    check_completed(place, undisturbed)
    assert {trial_id: place.finished()[trial_id] for trial_id in finished} == finished

    assert place.mirrored() == undisturbed.mirrored()


# What a worker is killed at: the checkpoint's place in its process, and tokens after the first step of each start of its trials.
WORKER_POINTS = {
    "before its checkpoint": ("worker-before-checkpoint:1", [STEP, STEP]),
    "during its checkpoint": ("worker-during-checkpoint:4", [STEP, 2 * STEP]),
    "after its checkpoint": ("worker-after-checkpoint:2", [STEP, 3 * STEP]),
}


@pytest.mark.ray
@pytest.mark.parametrize("when", WORKER_POINTS)
def test_a_worker_killed(when: str, make_place: Callable[..., Any], undisturbed: Any) -> None:
    """A real worker of Ray; the driver lives, and Ray runs the pack again."""
    point, resumed = WORKER_POINTS[when]
    place = make_place(fresh=True, ray={"cpus": 1, "pack_size": PACK})
    place.search(kill_at=point)
    check_completed(place, undisturbed)
    dead = place.killed()["pid"]
    hit = {trial_id: lines for trial_id, lines in place.work().items() if any(line["pid"] == dead for line in lines)}
    assert len(hit) == PACK
    assert {trial_id: starts(lines) for trial_id, lines in hit.items()} == dict.fromkeys(hit, resumed)
    others = {trial_id: starts(lines) for trial_id, lines in place.work().items() if trial_id not in hit}
    assert set(map(len, others.values())) == {1}
    left = place.killed()["files"]
    if "before" in when:
        assert all("checkpoint.safetensors" not in names for names in left.values())
    elif "during" in when:
        assert any(".tmp" in name for names in left.values() for name in names), "half a file was there"
        assert all("checkpoint.safetensors" in names for names in left.values())
    else:
        assert len(left) == PACK
        assert all("checkpoint.safetensors" in names and not any(".tmp" in n for n in names) for names in left.values())


@pytest.mark.parametrize("point", ["worker-before-result:1", "worker-after-result:1"])
def test_a_process_killed_between_the_end_of_training_and_the_driver(point: str, make_place: Callable[..., Any], undisturbed: Any) -> None:
    """Trained, and nobody knows yet: the last checkpoint, or the result on disk, says so to the next process."""
    place = make_place()
    place.search(kill_at=point, code=-signal.SIGKILL)
    place.search()
    check_completed(place, undisturbed)
    assert all(len(starts(lines)) == 1 for lines in place.work().values()), "a trained trial was trained again"
