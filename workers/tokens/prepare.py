"""`prepare`: documents become token files, one per domain and side and one per target, and a manifest that names them.

The name of a token file ends with a digest of all that determines it: input files with size and time, settings, tokenizer. So under one name
there is ever one content, experiments that share an output never take each other's files, and a search that runs keeps its tokens when its
documents change. Beside it lies a record of what was written; a file that agrees with it and whose checksum is right is kept, so a second
run only reads checksums, an interrupted one goes on, and a damaged file is made again. The trade-off: files of documents as they were before
stay until someone deletes them.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mixopt.config import Experiment
from mixopt.corpus.hub import Commits
from mixopt.corpus.manifest import MANIFEST_NAME, DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.corpus.tokenizer import CorpusTokenizer, load_tokenizer
from mixopt.errors import DataError
from mixopt.progress import Reporter, Silent
from proxy_models.windows import windows_of
from workers.tokens import shards as token_shards
from workers.tokens.files import build, finished
from workers.tokens.jobs import Job, experiment_jobs, job_items, text_bytes
from workers.tokens.pool import LazyPool
from workers.tokens.shards import Pool
from workers.tokens.sources import Sources
from workers.tokens.tokenizer import prepare_tokenizer


def prepare(experiment: Experiment, reporter: Reporter | None = None) -> Manifest:
    """Makes what is missing of an experiment's token files under `<output>/tokens`; returns the manifest.

    Raises:
        DataError: documents are missing, unreadable or not text; a domain is empty, shorter than a window, or has an empty side; no completion
            of a target fits a window; a tokenizer cannot be read; the hub or an address does not answer.
        ConfigError: a file lacks the column, has an unsupported suffix, is both trained on and held out, or the tokenizer does not fit.
        RunError: the Ray cluster that should tokenize a large corpus cannot be reached.
    """
    reporter = reporter or Silent()
    folder = experiment.output_dir / "tokens"
    with _alone_in(folder, reporter), LazyPool(experiment.ray, experiment.output_dir) as pool:
        commits = Commits(folder)
        jobs = experiment_jobs(experiment, commits, reporter)
        if not (folder / MANIFEST_NAME).exists():
            _look_at_beginnings(jobs.all())
        sources = Sources(folder / "fetched", reporter)
        tokenizer, kept = prepare_tokenizer(experiment.tokenizer, folder, jobs.training(), sources, commits, reporter)
        files = _all_files(jobs.all(), folder, tokenizer, kept, sources, pool, reporter)
        for train, valid in jobs.domains.values():
            if train.kind == "text":  # a pair fills a window of its own, if it must
                _require_window(train, files[train], "training", experiment.proxy.window)
                _require_window(valid, files[valid], "held-out", experiment.proxy.window)
        manifest = Manifest(
            root=folder,
            tokenizer_path=tokenizer.path.name,
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            domains={
                name: DomainFiles(files[train], files[valid], train.kind, _packed_tokens(train, files[train], folder))
                for name, (train, valid) in jobs.domains.items()
            },
            targets={name: TargetFile(job.kind, files[job]) for name, job in jobs.targets.items()},
        )
        if not _is_saved(manifest):
            manifest.save()
    return manifest


def check_inputs(experiment: Experiment) -> None:
    """Finds every file and data set that `prepare` would read, without reading documents; says with its error what is missing.

    Raises:
        ConfigError, DataError: as `prepare`.
    """
    if experiment.trainer is not None:
        return  # which reads its data itself
    with tempfile.TemporaryDirectory(prefix="mixopt-") as folder:  # nothing is pinned before the search itself starts
        jobs = experiment_jobs(experiment, Commits(Path(folder)), Silent())
    for job in jobs.all():
        for file in job.files:
            if isinstance(file, Path) and not os.access(file, os.R_OK):
                raise DataError(f"{file} of {job.owner} cannot be read.", "Mend its permissions.")
    if experiment.tokenizer.path is not None:
        load_tokenizer(Path(experiment.tokenizer.path))


@contextmanager
def _alone_in(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Holds the folder's lock, so that what is half-written there was left by a killed run; removes it. The kernel frees the lock of the dead."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            reporter.note(f"Another process prepares {folder}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        for leftover in [*folder.glob("*.tmp"), *(folder / "fetched").glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        yield


def _look_at_beginnings(jobs: list[Job]) -> None:
    """Reads the first item of every job of this machine, so that a wrong column of the last target is told before the first domain is read.

    Raises:
        DataError, ConfigError: it cannot be read, or is not text.
    """
    for job in jobs:
        if not job.is_remote:
            next(job_items(dataclasses.replace(job, side=None)), None)


def _all_files(
    jobs: list[Job],
    folder: Path,
    tokenizer: CorpusTokenizer,
    tokenizer_is_kept: bool,
    sources: Sources,
    pool: Pool,
    reporter: Reporter,
) -> dict[Job, TokenFile]:
    """The token file of every job: those that are there and whole, and the others made."""
    files = {job: file for job in jobs if (file := finished(job, folder, tokenizer.hash, reporter)) is not None}
    pending = [job for job in jobs if job not in files]
    if not pending:
        return files
    if tokenizer_is_kept and (folder / MANIFEST_NAME).exists():
        reporter.note(f"The tokenizer is kept; delete {tokenizer.path} to train it on the changed documents.")
    _look_at_beginnings(pending)
    copies = sources.copies(pending)
    with reporter.stage("Tokenizing", text_bytes(pending, copies), "bytes") as stage:
        for job in pending:
            size = text_bytes([job], copies)
            is_large = size is None or size >= token_shards.SHARDED_FROM_BYTES
            built = build(job, sources.items(job), folder, tokenizer, stage.advance, pool if is_large else None)
            if built.dropped:
                total = built.dropped + built.file.documents
                reporter.note(f"{job.owner}: {built.dropped} of {total} completions are empty or longer than a window; left out.")
            if built.cut:
                reporter.note(
                    f"{job.owner}: {built.cut} of {built.file.documents} prompts do not fit a window with their completions; cut on the left."
                )
            files[job] = built.file
    return files


def _packed_tokens(train: Job, file: TokenFile, folder: Path) -> int:
    """Tokens of all windows that pairs fill; 0 for text."""
    return windows_of(folder / file.path, train.window).count * train.window if train.kind == "completion" else 0


def _require_window(job: Job, file: TokenFile, what: str, window: int) -> None:
    # A training window needs the token after it, too.
    if file.tokens < window + (what == "training"):
        owner = f"{job.owner[0].upper()}{job.owner[1:]}"
        remedy = (
            "Add documents or lower `proxy.window`." if what == "training" else "Raise `held_out`, add documents or lower `proxy.window`."
        )
        raise DataError(f"{owner} has {file.tokens} {what} tokens, too few for one window of {window}.", remedy)


def _is_saved(manifest: Manifest) -> bool:
    try:
        return Manifest.load(manifest.root) == manifest
    except DataError:
        return False
