"""Where shards of text are tokenized: Ray tasks on the cluster that the experiment names, or this process.

The connection is the one of `RayRunner`, with its checks and its authentication. A cluster is started or joined when the first shard asks for
it, so a corpus that is small or prepared costs none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mixopt.config import RayConfig
from mixopt.errors import RunError
from workers.tokens.shards import InProcess, Pool, ShardTask, tokenize_shard

# One per core is at work, and as many again wait, so that no core waits for the reader; their text lies in memory.
QUEUED_PER_CORE = 1
MAX_RETRIES = 3
TASK_ENVIRONMENT = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
"""One thread per task: there is a task per core."""


class LazyPool:
    """The pool that the `ray` section of an experiment asks for, opened by its first shard. A context manager."""

    def __init__(self, settings: RayConfig, store: Path) -> None:
        self._settings = settings
        self._store = store
        self._pool: Pool | None = None
        self._runner: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._runner is not None:
            self._runner.close()

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[int]:
        for task in (waiting := iter(tasks)):  # opened when there is a first one
            yield from self._opened().run(_chain(task, waiting))

    def _opened(self) -> Pool:
        if self._pool is None:
            if self._settings.address == "in-process":
                self._pool = InProcess()
            else:
                from workers.ray_runner import RayRunner

                self._runner = RayRunner(self._store, {}, {}, address=self._settings.address, cpus=self._settings.cpus)
                self._pool = RayPool()
        return self._pool


class RayPool:
    """Shards as plain Ray tasks on the cluster that this process is connected to; a task whose worker is lost runs again."""

    def __init__(self) -> None:
        import ray

        self._ray = ray
        environment = {"env_vars": TASK_ENVIRONMENT}
        self._task = ray.remote(num_cpus=1, max_retries=MAX_RETRIES, retry_exceptions=False, runtime_env=environment)(tokenize_shard)

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[int]:
        running: list[Any] = []
        try:
            for task in tasks:
                running.append(self._task.remote(task))
                # Asked each time: nodes join and leave.
                most = max(int(self._ray.cluster_resources().get("CPU", 1)), 1) * (1 + QUEUED_PER_CORE)
                while len(running) >= most:
                    yield self._one(running)
            while running:
                yield self._one(running)
        finally:
            for handle in running:  # after an error or an interruption; shards that end nevertheless are whole, and found next time
                self._ray.cancel(handle)

    def _one(self, running: list[Any]) -> int:
        """Waits for one of `running` and removes it."""
        (ended,), _ = self._ray.wait(running, num_returns=1)
        running.remove(ended)
        try:
            size: int = self._ray.get(ended)
        except self._ray.exceptions.RayTaskError:
            raise  # an error of ours, as it was raised there
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            raise RunError(
                f"A worker that tokenized documents was lost: {reason}", "Run the same command again; finished shards are kept."
            ) from error
        return size


def _chain(first: ShardTask, rest: Iterator[ShardTask]) -> Iterator[ShardTask]:
    yield first
    yield from rest
