"""A tool under comparison, from the asking side: a process in its own interpreter, on one thread."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

ROOT = Path(__file__).resolve().parents[2]
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Tool:
    """Started at once, so that a tool that cannot be imported is found before anything is measured; use it as a context."""

    def __init__(self, name: str, python: str, script: str, search_path: Sequence[Path], log: Path) -> None:
        """`script` is of this folder; what the tool prints goes to `log`."""
        self.name, self.log = name, log
        path = os.pathsep.join([str(folder) for folder in search_path] + [part for part in [os.environ.get("PYTHONPATH")] if part])
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [python, str(Path(__file__).with_name(script))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
                cwd=log.parent,
                env=os.environ | ONE_THREAD | {"PYTHONPATH": path},
            )

    def ask(self, **job: Any) -> dict[str, Any]:
        """The reply to one job; with `error` where the tool could not do it.

        Raises:
            RuntimeError: the process has ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            print(json.dumps(job), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            said = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"]
            raise RuntimeError(f"{self.name} ended with status {self._process.returncode} and said: {said[-1]}")
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
