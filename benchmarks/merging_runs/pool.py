"""Runs tasks that need one another in two processes of one thread each, in the order given as far as what they need is there.

Tasks are functions of the benchmark's modules with plain arguments. What they leave lies in files, and a task that finds its files does nothing: an interrupted
benchmark goes on. The trade-off: a task that fails takes those that need it with it, and the others go on.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """`work(*given)`, once all tasks named in `needs` are done."""

    name: str
    work: Callable[..., Any]
    given: tuple[Any, ...]
    needs: frozenset[str] = frozenset()


def run_all(tasks: Sequence[Task], processes: int) -> Iterator[tuple[Task, Any]]:
    """Tasks with their results, as they end."""
    waiting, done = list(tasks), set[str]()
    running: dict[Future[Any], Task] = {}
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        while True:
            while len(running) < processes and (ready := next((task for task in waiting if task.needs <= done), None)) is not None:
                waiting.remove(ready)
                running[pool.submit(ready.work, *ready.given)] = ready
            if not running:
                for task in waiting:
                    print(f"{task.name} needs what failed: {', '.join(sorted(task.needs - done))}.", file=sys.stderr)
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                error = future.exception()
                if error is not None:
                    print(f"{task.name} failed: {error}", file=sys.stderr, flush=True)
                    continue
                done.add(task.name)
                yield task, future.result()
