"""The processes of `throughput.py`, seen from the one that gives them turns.

Every line of the table is a process of its own (or one per core), started as a worker of a search is: one thread, and glibc's allocator set before
it starts. Processes wait for their turn without using the processor. Trade-off: all those of a comparison are in memory at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workers.ray_runner import WORKER_ENVIRONMENT

WORKER = Path(__file__).with_name("worker.py")

START_SECONDS = 180.0
"""Patience with a process that starts: torch, transformers and, on a GPU, compilation (`COMPILE_SECONDS` more)."""

COMPILE_SECONDS = 600.0
END_SECONDS = 60.0
ERROR_CHARACTERS = 600


class ProcessError(Exception):
    """A process ended, or did not answer in time; the message says which and what it printed last."""


@dataclass(frozen=True)
class Stretch:
    """What one process did when it had its turn."""

    tokens: int
    steps: int
    wall_seconds: float
    cpu_seconds: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.wall_seconds

    @property
    def tokens_per_cpu_second(self) -> float:
        return self.tokens / max(self.cpu_seconds, 1e-9)


class Worker:
    """A process that trains when it is told to.

    Args:
        job: what `speed.worker` is given.
        engine: the checkout whose packages it uses.
        allocator: "workers": glibc's allocator is set as for workers of a search; "default": it is not.
        patience_seconds: how long a step may take.
    """

    def __init__(self, job: Mapping[str, Any], engine: Path, allocator: str, patience_seconds: float) -> None:
        self._name = f"{job['kind']} with {job.get('members', 1)} members of {job.get('size', 'no size')}"
        self._patience_seconds = patience_seconds
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115  # closed by `kill`
        self._answers: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, str(WORKER), json.dumps(job)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=_environment(engine, allocator),
            text=True,
            bufsize=1,
        )
        threading.Thread(target=self._listen, daemon=True).start()
        self._start_seconds = START_SECONDS + 2 * patience_seconds + (COMPILE_SECONDS if job.get("compile") else 0.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put(None)

    def wait_ready(self) -> None:
        """Returns when it has taken its first steps."""
        self._answer(self._start_seconds)

    def begin(self, seconds: float) -> None:
        """Lets it train for `seconds`; `result` tells what came of it."""
        self._command({"measure": seconds})

    def result(self, seconds: float) -> Stretch:
        """What it did since `begin(seconds)`."""
        body = self._answer(END_SECONDS + 20 * seconds + 3 * self._patience_seconds)
        return Stretch(body["tokens"], body["steps"], body["wall_seconds"], body["cpu_seconds"])

    def end(self) -> dict[str, Any]:
        """Ends it and returns its last words: losses and the most memory that it held."""
        self._command({"end": True})
        return self._answer(END_SECONDS)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._errors):
            if stream is not None:
                with contextlib.suppress(OSError):  # what was still to be written to a process that is gone
                    stream.close()

    def _command(self, body: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(body) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise ProcessError(f"{self._name} ended: {self._last_words()}") from error

    def _answer(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise ProcessError(f"{self._name} did not answer within {seconds:.0f} seconds.") from None
        if line is None:
            self._process.wait()
            raise ProcessError(f"{self._name} ended with {self._process.returncode}: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _last_words(self) -> str:
        self._errors.flush()
        self._errors.seek(0)
        return self._errors.read()[-ERROR_CHARACTERS:].strip() or "it printed nothing"


def take_turn(workers: Sequence[Worker], seconds: float) -> list[Stretch]:
    """Lets workers train at the same time, all others waiting."""
    for worker in workers:
        worker.begin(seconds)
    return [worker.result(seconds) for worker in workers]


def _environment(engine: Path, allocator: str) -> dict[str, str]:
    """Of a process that uses the packages of `engine`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    settings = WORKER_ENVIRONMENT if allocator == "workers" else {"OMP_NUM_THREADS": "1"}
    # Nothing here may ask a network for a model.
    return {**environment, **settings, "PYTHONPATH": str(engine), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
