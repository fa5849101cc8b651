"""`prepare`: documents become token files, one per domain and side and one per target, and a manifest that names them.

The name of a token file ends with a digest of all that determines it: input files with size and time, settings, tokenizer. So under one name
there is ever one content, experiments that share an output never take each other's files, and a search that runs keeps its tokens when its
documents change. Beside it lies a record of what was written; a file that agrees with it and whose checksum is right is kept, so a second
run only reads checksums, an interrupted one goes on, and a damaged file is made again. The trade-off: files of documents as they were before
stay until someone deletes them. The tokenizer is named by its settings and kept while documents change: every trained proxy depends on it,
and adding a domain must not retire them. So it may be a little behind the corpus; deleting it trains it anew.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from mixopt.config import DomainConfig, Experiment, TargetConfig
from mixopt.corpus.documents import Document, Pair, estimated_text_bytes, read_documents, read_pairs, resolve_files
from mixopt.corpus.manifest import MANIFEST_NAME, DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.corpus.splits import Side, take_side
from mixopt.corpus.tokenizer import CorpusTokenizer, load_tokenizer, sample_by_bytes, train_tokenizer, write_atomically
from mixopt.errors import ConfigError, DataError
from mixopt.progress import Reporter, Silent
from mixopt.trial import content_digest
from proxy_models.token_store import DamagedTokenFile, TokenFileInfo, TokenStore, TokenWriter

# Raise it when the same input would give other token files; files of an older version are then made again.
PREPARE_VERSION = 1
# Of the digests in names of files; a record tells the two apart that would be alike, one pair in 2^48.
DIGEST_LETTERS = 12
# Text handed to the tokenizer at once: enough to keep its threads busy, little enough to hold in memory many times over.
BATCH_BYTES = 1 << 20
# A completion needs a token before it, or its first token has nothing to be predicted from.
CONTEXT_TOKENS = 1

Advance = Callable[[float], None]


@dataclass(frozen=True)
class Job:
    """One token file to make; the unit of work.

    Attributes:
        owner: who it is for, in messages: "domain 'code'".
        name: how the names of its files begin: "code.train".
        kind: "text", or "completion".
        columns: the text column, or prompt and completion columns.
        side: the side of the hash split to keep; None keeps all documents.
        window: tokens that a completion must fit into; 0 for text, which has no limit.
    """

    owner: str
    name: str
    kind: str
    files: tuple[Path, ...]
    columns: tuple[str, ...]
    side: Side | None = None
    held_out: float = 0.0
    window: int = 0

    def specification(self, tokenizer_hash: str) -> dict[str, Any]:
        """Everything the token file depends on, as JSON values; input files by size and time, not by content."""
        stats = [(path, path.stat()) for path in self.files]
        return {
            "version": PREPARE_VERSION,
            "kind": self.kind,
            "files": [[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats],
            "columns": list(self.columns),
            "split": [self.side.value, self.held_out] if self.side else None,
            "window": self.window,
            "tokenizer": tokenizer_hash,
        }


@dataclass(frozen=True)
class Built:
    """A token file that was made; `dropped` pairs had an empty completion or one longer than a window."""

    file: TokenFile
    dropped: int = 0


def prepare(experiment: Experiment, reporter: Reporter | None = None) -> Manifest:
    """Makes what is missing of an experiment's token files under `<output>/tokens`; returns the manifest.

    Raises:
        DataError: documents are missing, unreadable or not text; a domain is empty, shorter than a window, or has an empty side; no completion
            of a target fits a window; a tokenizer cannot be read.
        ConfigError: a file lacks the column, has an unsupported suffix, is both trained on and held out, or the tokenizer does not fit.
    """
    reporter = reporter or Silent()
    folder = experiment.output_dir / "tokens"
    domains = {domain.name: _domain_jobs(domain) for domain in experiment.domains}
    targets = {target.name: _target_job(target, experiment.proxy.window) for target in experiment.targets}
    _check_held_out(list(domains.values()), list(targets.values()), reporter)
    with _alone_in(folder, reporter):
        tokenizer, kept = _prepare_tokenizer(experiment, folder, [train for train, _ in domains.values()], reporter)
        files = _all_files([*chain.from_iterable(domains.values()), *targets.values()], folder, tokenizer, kept, reporter)
        for train, valid in domains.values():
            _require_window(train, files[train], "training", experiment.proxy.window)
            _require_window(valid, files[valid], "held-out", experiment.proxy.window)
        manifest = Manifest(
            root=folder,
            tokenizer_path=tokenizer.path.name,
            tokenizer_hash=tokenizer.hash,
            vocab_size=tokenizer.vocab_size,
            domains={name: DomainFiles(files[train], files[valid]) for name, (train, valid) in domains.items()},
            targets={name: TargetFile(job.kind, files[job]) for name, job in targets.items()},
        )
        if not _is_saved(manifest):
            manifest.save()
    return manifest


def check_inputs(experiment: Experiment) -> None:
    """Finds every file that `prepare` would read, without reading documents; says with its error what is missing.

    Raises:
        DataError, ConfigError: as `prepare`.
    """
    domains = [_domain_jobs(domain) for domain in experiment.domains]
    targets = [_target_job(target, experiment.proxy.window) for target in experiment.targets]
    _check_held_out(domains, targets, Silent())
    for job in [*chain.from_iterable(domains), *targets]:
        for file in job.files:
            if not os.access(file, os.R_OK):
                raise DataError(f"{file} of {job.owner} cannot be read.", "Mend its permissions.")
    if experiment.tokenizer.path is not None:
        load_tokenizer(Path(experiment.tokenizer.path))


def build(job: Job, folder: Path, tokenizer: CorpusTokenizer, advance: Advance) -> Built:
    """Makes one token file under `folder`, and its record; `advance` is called with the bytes of text that were tokenized.

    Raises:
        DataError, ConfigError: as `prepare`.
    """
    specification = job.specification(tokenizer.hash)  # before reading: a file that changes meanwhile is made anew next time
    output = _output(job, folder, specification)
    digest = hashlib.sha256(job.kind.encode("ascii"))
    dropped = documents = 0
    with TokenWriter(output, tokenizer.vocab_size, tokenizer.hash) as writer:
        for item, ids, scored_from in _encoded(job, tokenizer):
            parts = _parts(item)
            sizes = [len(part.encode("utf-8")) for part in parts]
            advance(sum(sizes))
            if job.window and not _fits(ids, scored_from, job.window):
                dropped += 1
                continue
            if len(ids) == 1:
                continue  # nothing but the end token: an empty document
            for part, size in zip(parts, sizes, strict=True):
                digest.update(size.to_bytes(8, "little") + part.encode("utf-8"))
            writer.add(ids, sizes[-1], scored_from)
            documents += 1
        if not documents:
            raise _nothing_left(job, dropped)
        info = writer.close(digest.hexdigest())
    record = {"specification": specification, "info": dataclasses.asdict(info)}
    write_atomically(_record_path(output), json.dumps(record, indent=1).encode("utf-8"))
    return Built(_entry(output, info), dropped)


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
        for leftover in folder.glob("*.tmp"):
            leftover.unlink(missing_ok=True)
        yield


def _domain_jobs(domain: DomainConfig) -> tuple[Job, Job]:
    """Training and held-out file of a domain."""
    owner = f"domain '{domain.name}'"
    train = Job(
        owner=owner,
        name=f"{domain.name}.train",
        kind="text",
        files=resolve_files(domain.path, owner),
        columns=(domain.text_column,),
        side=Side.TRAIN if domain.valid is None else None,
        held_out=domain.held_out if domain.valid is None else 0.0,
    )
    name = f"{domain.name}.valid"
    if domain.valid is None:
        return train, dataclasses.replace(train, name=name, side=Side.VALID)
    held_out_owner = f"held-out set of {owner}"
    return train, dataclasses.replace(train, owner=held_out_owner, name=name, files=resolve_files(domain.valid, held_out_owner))


def _target_job(target: TargetConfig, window: int) -> Job:
    owner = f"target '{target.name}'"
    name, files = f"target-{target.name}", resolve_files(target.path, owner)
    if target.prompt_column is not None and target.completion_column is not None:
        return Job(owner, name, "completion", files, (target.prompt_column, target.completion_column), window=window)
    return Job(owner, name, "text", files, (target.text_column or "text",))


def _check_held_out(domains: list[tuple[Job, Job]], targets: list[Job], reporter: Reporter) -> None:
    """Refuses held-out files that a domain trains on, as a pattern takes them in by mistake; of targets it only tells, for their columns
    may be others.

    Raises:
        ConfigError: some are.
    """
    trained = {file.resolve(): train.owner for train, _ in domains for file in train.files}
    for job in [*(valid for _, valid in domains if valid.side is None), *targets]:
        shared = [file for file in job.files if file.resolve() in trained]
        if shared and job in targets:
            reporter.note(f"{job.owner} reads {shared[0]}, which {trained[shared[0].resolve()]} trains on: its losses may measure memory.")
        elif shared:
            raise ConfigError(
                f"{shared[0]} is in the {job.owner}, and {trained[shared[0].resolve()]} trains on it.",
                "Take it out of `path`, or leave `valid` out to hold a share of the documents out.",
            )


def _prepare_tokenizer(experiment: Experiment, folder: Path, training: list[Job], reporter: Reporter) -> tuple[CorpusTokenizer, bool]:
    """The tokenizer of these settings under `folder`, and whether it was there already; trained or copied if missing or damaged."""
    settings = experiment.tokenizer
    given = load_tokenizer(Path(settings.path)) if settings.path is not None else None
    wanted: dict[str, Any] = {"given": given.hash} if given else {"vocab_size": settings.vocab_size, "sample_bytes": settings.sample_bytes}
    wanted["version"] = PREPARE_VERSION
    path = folder / f"tokenizer.{_digest(wanted)}.json"
    record_path = _record_path(path)
    record = _read_json(record_path)
    if path.exists() and record is not None and record.get("settings") == wanted:
        if hashlib.sha256(path.read_bytes()).hexdigest() == record.get("hash"):
            return load_tokenizer(path), True
        reporter.note(f"{path} is damaged and is made again.")
    if given is not None:
        write_atomically(path, given.path.read_bytes())
        reporter.note(f"Tokenizer {given.path}: {given.vocab_size:,} entries, '{given.end_token}' ends a document.")
    else:
        _train_on_sample(training, settings.vocab_size, settings.sample_bytes, path, reporter)
    tokenizer = load_tokenizer(path)
    write_atomically(record_path, json.dumps({"settings": wanted, "hash": tokenizer.hash}, indent=1).encode("utf-8"))
    return tokenizer, False


def _train_on_sample(training: list[Job], vocab_size: int, sample_bytes: int, path: Path, reporter: Reporter) -> None:
    """Trains on the same number of bytes of each domain's training text, or all of it where there is less."""
    sample: list[str] = []
    with reporter.stage("Reading text for the tokenizer", _total_bytes(training), "bytes") as stage:
        for job in training:
            texts = sample_by_bytes(_counted((document.text for document in _documents(job)), stage.advance), sample_bytes // len(training))
            if not texts:
                raise _nothing_left(job, 0)
            sample.extend(texts)
    with reporter.stage("Training the tokenizer", None, "bytes") as stage:
        train_tokenizer(_counted(sample, stage.advance), vocab_size, path)


def _all_files(
    jobs: list[Job], folder: Path, tokenizer: CorpusTokenizer, tokenizer_is_kept: bool, reporter: Reporter
) -> dict[Job, TokenFile]:
    """The token file of every job: those that are there and whole, and the others made."""
    files = {job: file for job in jobs if (file := _finished(job, folder, tokenizer.hash, reporter)) is not None}
    pending = [job for job in jobs if job not in files]
    if not pending:
        return files
    if tokenizer_is_kept and (folder / MANIFEST_NAME).exists():
        reporter.note(f"The tokenizer is kept; delete {tokenizer.path} to train it on the changed documents.")
    with reporter.stage("Tokenizing", _total_bytes(pending), "bytes") as stage:
        for job in pending:
            built = build(job, folder, tokenizer, stage.advance)
            if built.dropped:
                total = built.dropped + built.file.documents
                reporter.note(f"{job.owner}: {built.dropped} of {total} completions are empty or longer than a window; left out.")
            files[job] = built.file
    return files


def _finished(job: Job, folder: Path, tokenizer_hash: str, reporter: Reporter) -> TokenFile | None:
    """What the token file holds, if it is whole and made from what the job names; else None, with a note if there had been one."""
    specification = job.specification(tokenizer_hash)
    output = _output(job, folder, specification)
    record = _read_json(_record_path(output))
    if record is None or record.get("specification") != specification:
        if set(folder.glob(f"{job.name}.{'[0-9a-f]' * DIGEST_LETTERS}.tokens")) - {output}:
            reporter.note(f"{job.name}: other documents, settings or tokenizer than before; it is made anew, and the old file stays.")
        return None
    try:
        store = TokenStore.open(output)
        store.verify()
    except FileNotFoundError:
        reporter.note(f"{output.name} is missing and is made again.")
        return None
    except DamagedTokenFile as error:
        reporter.note(f"{output.name} is damaged and is made again: {error}")
        return None
    if dataclasses.asdict(store.info) != record.get("info"):
        reporter.note(f"{output.name} is not the file that was prepared and is made again.")
        return None
    return _entry(output, store.info)


def _documents(job: Job) -> Iterator[Document]:
    documents = read_documents(job.files, job.columns[0], job.owner)
    return take_side(documents, job.held_out, job.side, job.owner) if job.side is not None else documents


def _encoded(job: Job, tokenizer: CorpusTokenizer) -> Iterator[tuple[Document | Pair, list[int], int]]:
    """Every document or pair of a job with its ids, end token included, and the index of its first scored token."""
    items: Iterable[Document | Pair]
    items = _documents(job) if job.kind == "text" else read_pairs(job.files, job.columns[0], job.columns[1], job.owner)
    for batch in _batches(items):
        ids = iter(tokenizer.encode_batch([part for item in batch for part in _parts(item)]))
        for item in batch:
            if isinstance(item, Document):
                yield item, [*next(ids), tokenizer.end_id], 0
            else:
                # Encoded apart, so that where scoring starts does not depend on what the tokenizer would merge across the border.
                prompt = next(ids) or [tokenizer.end_id]
                yield item, [*prompt, *next(ids), tokenizer.end_id], len(prompt)


def _batches(items: Iterable[Document | Pair]) -> Iterator[list[Document | Pair]]:
    batch: list[Document | Pair] = []
    size = 0
    for item in items:
        batch.append(item)
        size += sum(map(len, _parts(item)))
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _parts(item: Document | Pair) -> tuple[str, ...]:
    """The texts of an item; the last one is scored."""
    return (item.text,) if isinstance(item, Document) else (item.prompt, item.completion)


def _fits(ids: list[int], scored_from: int, window: int) -> bool:
    """Whether a completion is not empty and fits a window after one token of context."""
    scored = len(ids) - scored_from
    return 1 < scored <= window - CONTEXT_TOKENS


def _nothing_left(job: Job, dropped: int) -> DataError:
    owner = f"{job.owner[0].upper()}{job.owner[1:]}"
    if dropped:
        return DataError(
            f"{owner}: all {dropped} completions are empty or longer than a window of {job.window} tokens.",
            "Raise `proxy.window` or shorten the completions.",
        )
    return DataError(f"{owner} holds no text.", f"Check {', '.join(str(path) for path in job.files[:3])}.")


def _require_window(job: Job, file: TokenFile, what: str, window: int) -> None:
    # A training window needs the token after it, too.
    if file.tokens < window + (what == "training"):
        owner = f"{job.owner[0].upper()}{job.owner[1:]}"
        remedy = (
            "Add documents or lower `proxy.window`." if what == "training" else "Raise `held_out`, add documents or lower `proxy.window`."
        )
        raise DataError(f"{owner} has {file.tokens} {what} tokens, too few for one window of {window}.", remedy)


def _total_bytes(jobs: Iterable[Job]) -> float | None:
    """About how many bytes of text the jobs read; two sides of one split read the same files once."""
    sources = {(job.files, column): None for job in jobs for column in job.columns}
    estimates = [estimated_text_bytes(files, column) for files, column in sources]
    return None if any(estimate is None for estimate in estimates) else sum(estimate or 0 for estimate in estimates)


def _counted(texts: Iterable[str], advance: Advance) -> Iterator[str]:
    for text in texts:
        advance(len(text.encode("utf-8")))
        yield text


def _entry(output: Path, info: TokenFileInfo) -> TokenFile:
    return TokenFile(output.name, info.content_hash, info.tokens, info.bytes, info.documents)


def _is_saved(manifest: Manifest) -> bool:
    try:
        return Manifest.load(manifest.root) == manifest
    except DataError:
        return False


def _digest(value: dict[str, Any]) -> str:
    return content_digest(value)[:DIGEST_LETTERS]


def _output(job: Job, folder: Path, specification: dict[str, Any]) -> Path:
    return folder / f"{job.name}.{_digest(specification)}.tokens"


def _record_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.record")


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a record file; None if it is missing or damaged, which is the same here: the work is done again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
