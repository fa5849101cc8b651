"""The folder of one trial in the store: its lock, checkpoint, weights and result.

    trials/<trial_id>/
        lock                     held while a process works on the trial; names that process
        checkpoint.safetensors   where training goes on; removed once the result is written
        weights.safetensors      the trained proxy; targets added later are scored on it
    token_losses.safetensors of a component that was ensembled: its loss of every scored token, by held-out set
        folds.json               of an average of components: its bits on parts of every held-out set, for the errors of differences
    result.json              the outcome; appears at once or not at all
        log.jsonl                what was done here, one line per event
        error.txt                traceback of the last failure

The result is written by the process that trained, before anybody hears of it, so a finished trial survives the loss of everything else. The
trade-off: workers and driver must share the store (one machine, or a network file system with working flock).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixopt.errors import MixoptError
from mixopt.trial import Outcome

RESULT_VERSION = 1


class TrialFolder:
    """Reads and writes the folder of one trial; creates nothing until something is written."""

    def __init__(self, store: Path, trial_id: str) -> None:
        self.trial_id = trial_id
        self.path = Path(store) / "trials" / trial_id
        self.lock_path = self.path / "lock"
        self.weights_path = self.path / "weights.safetensors"
        self.token_losses_path = self.path / "token_losses.safetensors"
        self.folds_path = self.path / "folds.json"
        self.result_path = self.path / "result.json"

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Tries to take the trial; yields whether it was free. Released at the end, or by the kernel when the process dies.

        `flock` rather than `lockf`: it also keeps two threads of one process apart.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.lock_path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
            file.flush()
            yield True

    def holder(self) -> str:
        """Who holds or last held the lock, for messages."""
        try:
            body = json.loads(self.lock_path.read_text(encoding="utf-8"))
            return f"process {body['pid']} on {body['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "an unknown process"

    def last_change(self) -> float:
        """Time (seconds since the epoch) at which something in the folder was last written."""
        times = [entry.stat().st_mtime for entry in self.path.glob("*")]
        return max(times, default=0.0)

    def read_outcome(self) -> Outcome | None:
        """The outcome, or None if there is none or it cannot be trusted (then it is trained again)."""
        try:
            body = json.loads(self.result_path.read_text(encoding="utf-8"))
            if body["version"] != RESULT_VERSION or body["trial"]["trial_id"] != self.trial_id:
                return None
            outcome = Outcome.from_json(body["outcome"])
        except (OSError, ValueError, KeyError, TypeError, MixoptError):
            return None
        return outcome if outcome.trial_id == self.trial_id else None

    def write_outcome(self, trial_spec: dict[str, Any], outcome: Outcome) -> None:
        """Writes `result.json` so that it is complete on disk before it has its name."""
        body = {"version": RESULT_VERSION, "trial": trial_spec, "outcome": outcome.to_json()}
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.result_path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(body, file, allow_nan=False, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.result_path)

    def read_folds(self) -> dict[str, Any]:
        """Held-out set -> bits and bytes by fold, of an average of components; empty where there are none."""
        try:
            body: dict[str, Any] = json.loads(self.folds_path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return body

    def add_folds(self, folds: dict[str, Any]) -> None:
        """Keeps these beside those of other held-out sets, whole or not at all."""
        self.path.mkdir(parents=True, exist_ok=True)
        temporary = self.folds_path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps({**self.read_folds(), **folds}, sort_keys=True), encoding="utf-8")
        os.replace(temporary, self.folds_path)

    def log(self, event: str, **facts: Any) -> None:
        """Appends one line to `log.jsonl`."""
        self.path.mkdir(parents=True, exist_ok=True)
        line = {"time": round(time.time(), 3), "pid": os.getpid(), "event": event, **facts}
        with (self.path / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`; a last line cut short by a crash is left out."""
        try:
            lines = (self.path / "log.jsonl").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        events = []
        for line in lines:
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def save_traceback(self, text: str) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "error.txt").write_text(text, encoding="utf-8")


def measured_at_end(outcome: Outcome) -> frozenset[str]:
    """Keys of the evaluations that the finished proxy was scored on."""
    return frozenset(m.evaluation_key for m in outcome.measurements if m.tokens == outcome.tokens)
