"""Whatever is killed, and whenever: the same command completes, goes on from checkpoints, and trains nothing finished again."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.trial_folder import TrialFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DRIVER = Path(__file__).with_name("recovery_driver.py")
STEP = 256
PATIENCE_SECONDS = 240.0


class Driver:
    """The driver process and what it printed."""

    def __init__(self, store: Path, log: Path, temporary: str) -> None:
        self._log = log
        environment = {**os.environ, "HOME": str(store), "OMP_NUM_THREADS": "1", "TMPDIR": temporary}
        environment.pop("RAY_ADDRESS", None)
        with log.open("w") as output, log.with_suffix(".err").open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(DRIVER), str(store)], stdout=output, stderr=errors, cwd=DRIVER.parents[2], env=environment
            )

    def lines(self) -> list[dict[str, Any]]:
        """What it printed; a line of anybody else, such as Ray's notice of a lost worker, is an error here."""
        return [json.loads(line) for line in self._log.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def trials(self) -> tuple[list[str], list[str]]:
        """Ids of the short and of the long trials."""
        first = wait_for(lambda: next(iter(self.lines()), None), self)
        return first["short"], first["long"]

    def finish(self) -> dict[str, dict[str, Any]]:
        """Waits for the end; the completed trials' events by id, each exactly once."""
        assert self.process.wait(PATIENCE_SECONDS) == 0, self._log.with_suffix(".err").read_text()[-2000:]
        ends = [line for line in self.lines() if line.get("event") in ("Completed", "Failed")]
        assert [line for line in ends if line["event"] == "Failed"] == []
        assert len({line["trial_id"] for line in ends}) == len(ends)
        return {line["trial_id"]: line for line in ends}

    def kill(self) -> None:
        """kill -9 of the driver; its Ray dies with it, except for what is ended here, by process id."""
        family = descendants(self.process.pid)
        self.process.kill()
        self.process.wait()
        # Ray's agents notice the loss after a while only; its workers hold trials until they are gone.
        time.sleep(1.0)
        for pid, started in family.items():
            if start_time(pid) == started:
                os.kill(pid, signal.SIGKILL)


def start_time(pid: int) -> str | None:
    """When a process started, in clock ticks; tells it from a later one of the same id. None: it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


def descendants(pid: int) -> dict[int, str]:
    """Process id -> start time of all children of a process, and theirs."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found: dict[int, str] = {}
    frontier = {pid}
    while frontier:
        frontier = {child for child, parent in parents.items() if parent in frontier}
        found |= {child: started for child in frontier if (started := start_time(child)) is not None}
    return found


def wait_for(look: Callable[[], Any], driver: Driver) -> Any:
    """The first true answer of `look`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        answer = look()
        if answer:
            return answer
        assert driver.process.poll() is None, "the driver ended early"
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[], Driver]]:
    """Starts drivers over one store; ends them and theirs."""
    drivers: list[Driver] = []
    # A killed Ray leaves its session behind. Not below tmp_path, whose names are too long for its sockets.
    with tempfile.TemporaryDirectory(prefix="mx-") as temporary:

        def make() -> Driver:
            drivers.append(Driver(tmp_path / "store", tmp_path / f"driver-{len(drivers)}.log", temporary))
            return drivers[-1]

        yield make
        for driver in drivers:
            if driver.process.poll() is None:
                driver.kill()


def mid_pack(folders: list[TrialFolder]) -> bool:
    """Every one of these trials has a checkpoint, and none is finished."""
    return all((folder.path / "checkpoint.safetensors").exists() and folder.read_outcome() is None for folder in folders)


def training_starts(folder: TrialFolder) -> list[tuple[int, int]]:
    """(process, tokens after its first step) each time the trial was taken up."""
    return [(line["pid"], line["tokens"]) for line in folder.read_log() if line["event"] == "training"]


def assert_resumed(folder: TrialFolder) -> None:
    starts = training_starts(folder)
    assert len(starts) == 2, starts
    assert starts[0][1] == STEP
    assert starts[1][1] > 2 * STEP, "began anew instead of going on from its checkpoint"
    assert starts[0][0] != starts[1][0]


def test_a_killed_worker_is_replaced_and_goes_on_from_the_checkpoint(start: Callable[[], Driver], tmp_path: Path) -> None:
    driver = start()
    short, long = driver.trials()
    folders = [TrialFolder(tmp_path / "store", trial_id) for trial_id in long]
    wait_for(lambda: mid_pack(folders), driver)
    worker = json.loads(folders[0].lock_path.read_text())["pid"]
    assert worker in descendants(driver.process.pid)
    os.kill(worker, signal.SIGKILL)
    ended = driver.finish()
    assert set(ended) == {*short, *long}
    for folder in folders:
        assert training_starts(folder)[0][0] == worker
        assert_resumed(folder)


def test_a_killed_driver_leaves_everything_for_the_next(start: Callable[[], Driver], tmp_path: Path) -> None:
    first = start()
    short, long = first.trials()
    done = TrialFolder(tmp_path / "store", short[0])
    folders = [TrialFolder(tmp_path / "store", trial_id) for trial_id in long]
    wait_for(lambda: mid_pack(folders) and done.read_outcome() is not None, first)
    first.kill()
    kept = hashlib.sha256(done.weights_path.read_bytes()).hexdigest(), done.weights_path.stat().st_mtime_ns, done.read_log()

    second = start()
    ended = second.finish()
    assert set(ended) == {*short, *long}
    assert (hashlib.sha256(done.weights_path.read_bytes()).hexdigest(), done.weights_path.stat().st_mtime_ns, done.read_log()) == kept
    for folder in folders:
        assert_resumed(folder)

    third = start()
    again = third.finish()
    assert {key: line["losses"] for key, line in again.items()} == {key: line["losses"] for key, line in ended.items()}
    assert len(training_starts(folders[0])) == 2, "a finished trial was trained again"
