"""One run of a user's program: started without a shell, watched, and ended with all its children.

The program gets a session of its own, so that a time limit or a cancellation reaches whatever it started. And it inherits a lock on the trial, which
the kernel keeps until the program has ended, whatever becomes of the process that started it: who comes next to a trial whose driver died waits for
the program that still trains instead of starting a second one. The trade-off: a program that leaves a daemon behind in a session of its own holds
that lock for as long as the daemon lives.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from workers.control import LOOK_SECONDS

GRACE_SECONDS = 5.0
"""Between the request to end and the end, for a program to write a checkpoint."""
SHOWN_LINES = 5
READ_BYTES = 65_536

Ended = Literal["exited", "cancelled", "time limit"]


@dataclass(frozen=True)
class End:
    """How a run ended; `code` as of `subprocess`, None where nobody could see it."""

    how: Ended
    code: int | None = None
    seconds: float = 0.0


class StillRunningError(Exception):
    """A program of an earlier attempt that should end cannot be ended from here."""


class ProgramFolder:
    """Files of a trial's program: `request.json` for it, `result.json` from it, what it printed, and `files`, which is its own.

    `running.json` says which process it is, while it runs.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.request = path / "request.json"
        self.result = path / "result.json"
        self.stdout = path / "stdout.txt"
        self.stderr = path / "stderr.txt"
        self.files = path / "files"
        self.running = path / "running.json"
        self.alive = path / "alive"

    def put_aside(self, suffix: str) -> None:
        """Keeps a result that is not to be used under another name."""
        with suppress(FileNotFoundError):
            os.replace(self.result, self.result.with_suffix(f".{suffix}.json"))

    def lock(self) -> IO[str] | None:
        """The open file that holds the program's lock, or None while a program runs."""
        self.path.mkdir(parents=True, exist_ok=True)
        file = self.alive.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return None
        return file

    def last_lines(self, start: int) -> str:
        """What the program said last on standard error, from byte `start` on; else what it printed."""
        for path, begin in ((self.stderr, start), (self.stdout, 0)):
            try:
                with path.open("rb") as file:
                    size = file.seek(0, os.SEEK_END)
                    file.seek(max(begin, size - READ_BYTES))
                    lines = [line.strip() for line in file.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
            except FileNotFoundError:
                continue
            if lines:
                return " | ".join(lines[-SHOWN_LINES:])
        return ""


def run_program(
    folder: ProgramFolder,
    lock: IO[str],
    arguments: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    time_limit: float | None,
    cancelled: Callable[[], bool],
) -> End:
    """Runs a program to its end, or ends it.

    Args:
        lock: what `folder.lock` gave; the program holds it too.

    Raises:
        OSError: it cannot be started.
    """
    began = time.time()
    with folder.stdout.open("ab") as stdout, folder.stderr.open("ab") as stderr:
        process = subprocess.Popen(
            list(arguments),
            cwd=directory,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            pass_fds=(lock.fileno(),),
        )
    how: Ended = "cancelled"
    try:
        mark = {"pid": process.pid, "start": start_of(process.pid), "host": socket.gethostname(), "began": began}
        folder.running.write_text(json.dumps(mark), encoding="utf-8")
        how = _watch(lambda: _has_ended(process.pid), began, time_limit, cancelled)
    finally:
        # Before the program is reaped: until then nobody else can have its number, and what it left behind goes, too.
        _end_group(process.pid, at_once=how == "exited", ended=lambda: _has_ended(process.pid))
        code = process.wait()
        folder.running.unlink(missing_ok=True)
    return End(how, code, time.time() - began)


def wait_for_program(folder: ProgramFolder, time_limit: float | None, cancelled: Callable[[], bool]) -> tuple[IO[str], End | None]:
    """Waits until no program of an earlier process holds the trial; one that may run no longer is ended.

    Returns:
        The lock, and how that program ended; None: there was none. That it exited does not say whether it was done.

    Raises:
        StillRunningError: it should end, but runs on another machine, or left something behind that holds the trial.
    """
    lock = folder.lock()
    if lock is not None:
        folder.running.unlink(missing_ok=True)
        return lock, None
    mark = _read_mark(folder)
    began = float(mark.get("began", time.time()))
    held: list[IO[str]] = []

    def is_free() -> bool:
        found = folder.lock()
        held.extend([] if found is None else [found])
        return found is not None

    how = _watch(is_free, began, time_limit, cancelled)
    if how != "exited":
        pid, host = int(mark.get("pid", 0)), str(mark.get("host"))
        if pid and host == socket.gethostname() and mark.get("start") is not None and mark["start"] == start_of(pid):
            _end_group(pid, at_once=False, ended=is_free)
        deadline = time.monotonic() + GRACE_SECONDS
        while not held and not is_free():
            if time.monotonic() > deadline:
                raise StillRunningError(f"The program of an earlier attempt still runs as process {pid} on {host}; end it there.")
            time.sleep(0.02)
    folder.running.unlink(missing_ok=True)
    return held[0], End(how, None, time.time() - began)


def start_of(pid: int) -> str | None:
    """When a process started, in clock ticks: tells it from a later one of the same number. None: it has ended, or this is no Linux."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if len(fields) > 19 else None


def _watch(ended: Callable[[], bool], began: float, time_limit: float | None, cancelled: Callable[[], bool]) -> Ended:
    pause = 0.01
    while not ended():
        if cancelled():
            return "cancelled"
        if time_limit is not None and time.time() - began > time_limit:
            return "time limit"
        time.sleep(pause)
        pause = min(1.5 * pause, LOOK_SECONDS)
    return "exited"


def _has_ended(pid: int) -> bool:
    """Whether a child has ended; leaves it to be reaped."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end_group(pid: int, at_once: bool, ended: Callable[[], bool]) -> None:
    """Ends the group that `pid` leads: asked first, unless `at_once`, then killed."""
    with suppress(ProcessLookupError, PermissionError):
        if not at_once:
            os.killpg(pid, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_SECONDS
            while not ended() and time.monotonic() < deadline:
                time.sleep(0.02)
        os.killpg(pid, signal.SIGKILL)


def _read_mark(folder: ProgramFolder) -> dict[str, Any]:
    try:
        body = json.loads(folder.running.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}
