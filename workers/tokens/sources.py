"""Local copies of what jobs read over a network: documents are fetched once, limited, and kept as Parquet beside the token files.

The tokenizer, the training and the held-out side all read the same documents, so streaming them from the hub or an object store each time
would cost three downloads and, where a limit cuts, could give three different cuts if the source moved. The trade-off: a copy takes disk. It
may be deleted when the token files are made; only a new tokenizer would ask for it again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mixopt.corpus.documents import Document, Pair
from mixopt.progress import Reporter
from mixopt.trial import content_digest
from workers.tokens.jobs import Job, copied_columns, job_items, nothing_left, parts_of

# Text per row group of a copy: what is held in memory at once while it is written.
GROUP_BYTES = 16 << 20
DIGEST_LETTERS = 16


class Sources:
    """Reads jobs; what is remote is copied to `folder` when it is first read."""

    def __init__(self, folder: Path, reporter: Reporter) -> None:
        self._folder = folder
        self._reporter = reporter

    def copies(self, jobs: list[Job]) -> dict[Job, Path]:
        """The copy of every remote job, made where it is missing."""
        return {job: self._copy(job) for job in jobs if job.is_remote}

    def items(self, job: Job) -> Iterator[Document | Pair]:
        """The documents on the job's side, or its pairs."""
        return job_items(job, (self._copy(job),) if job.is_remote else None)

    def _copy(self, job: Job) -> Path:
        path = self._folder / f"{content_digest(job.source_identity())[:DIGEST_LETTERS]}.parquet"
        if not path.exists():
            whole = dataclasses.replace(job, side=None)
            with self._reporter.stage(f"Fetching {job.owner}", job.limits.bytes, "bytes") as stage:
                _write(path, whole, stage)
        return path


def _write(path: Path, job: Job, stage: Any) -> None:
    """Writes all items of a job, whatever their side, atomically."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    schema = pa.schema([(name, pa.large_string()) for name in copied_columns(job)])
    rows = 0
    try:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in _groups(job):
                writer.write_table(pa.table([list(column) for column in zip(*group, strict=True)], schema=schema))
                rows += len(group)
                stage.advance(sum(len(text.encode("utf-8")) for texts in group for text in texts))
        if not rows:
            raise nothing_left(job, 0)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _groups(job: Job) -> Iterator[list[tuple[str, ...]]]:
    group: list[tuple[str, ...]] = []
    size = 0
    for item in job_items(job):
        group.append(parts_of(item))
        size += sum(map(len, group[-1]))
        if size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
