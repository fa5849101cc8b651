"""A tool under comparison is a process that answers jobs, one line of JSON each: this side of it, for any interpreter with numpy.

Both tools are asked by the same means, read the same CSV files and are charged by the same clock, their own CPU time and that of the processes they end:
some fit in a pool.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

ID = "run"


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def read_table(path: str) -> tuple[list[str], list[str], np.ndarray]:
    """Column names without the first, which is `ID`; ids; and the numbers, shape (rows, columns)."""
    with open(path, encoding="utf-8") as file:
        first, *names = file.readline().rstrip("\n").split(",")
        assert first == ID, f"{path} does not begin with '{ID}'"
        rows = [line.rstrip("\n").split(",") for line in file]
    return names, [row[0] for row in rows], np.array([[float(cell) for cell in row[1:]] for row in rows])


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Answers the jobs on stdin until it closes. What libraries print goes to stderr, so that replies stay one line of JSON each.

    On one core: some libraries count cores instead of reading OMP_NUM_THREADS, and threads that wait for each other are charged for it.
    """
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            reply = answer(json.loads(line))
        except Exception as error:  # noqa: BLE001  # what a tool cannot do is a row of the table, whatever it raises
            reply = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(reply), file=replies, flush=True)
