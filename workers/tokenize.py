"""`prepare`: documents become token files, one per domain and side and one per target, and a manifest that names them.

Beside each token file lies a record of what it was made from (input files with size and time, settings, tokenizer). A file whose record still
holds and whose checksum is right is kept, so a second run only reads checksums, an interrupted one goes on, and a changed or damaged file is
made again. The tokenizer, once trained, is kept while its settings stay, even when documents change: every trained proxy depends on it, and
adding a domain must not retire them. The trade-off is a tokenizer that may be a little behind the corpus; deleting it trains it anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
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
from proxy_models.token_store import DamagedTokenFile, TokenFileInfo, TokenStore, TokenWriter

# Raise it when the same input would give other token files; files of an older version are then made again.
PREPARE_VERSION = 1
TOKENIZER_NAME = "tokenizer.json"
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
        kind: "text", or "completion".
        columns: the text column, or prompt and completion columns.
        side: the side of the hash split to keep; None keeps all documents.
        window: tokens that a completion must fit into; 0 for text, which has no limit.
    """

    owner: str
    output: Path
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

    info: TokenFileInfo
    dropped: int = 0


def prepare(experiment: Experiment, reporter: Reporter | None = None) -> Manifest:
    """Makes what is missing of an experiment's token files under `<output>/tokens`; returns the manifest.

    Raises:
        DataError: documents are missing, unreadable or not text; a domain is empty, shorter than a window, or has an empty side; no completion
            of a target fits a window; a tokenizer cannot be read.
        ConfigError: a file lacks the column, has an unsupported suffix, or the tokenizer does not fit.
    """
    reporter = reporter or Silent()
    folder = experiment.output_dir / "tokens"
    domains = {domain.name: _domain_jobs(domain, folder) for domain in experiment.domains}
    targets = {target.name: _target_job(target, folder, experiment.proxy.window) for target in experiment.targets}
    jobs = [*chain.from_iterable(domains.values()), *targets.values()]
    if len({job.output for job in jobs}) < len(jobs):
        raise ConfigError("A target and a domain would share a token file.", "Rename the domain that starts with 'target-'.")
    tokenizer, kept = _prepare_tokenizer(experiment, folder, [train for train, _ in domains.values()], reporter)

    infos = {job.output: info for job in jobs if (info := _finished(job, tokenizer.hash, reporter)) is not None}
    pending = [job for job in jobs if job.output not in infos]
    if kept and pending and (folder / MANIFEST_NAME).exists():
        reporter.note(f"The tokenizer is kept; delete {folder / TOKENIZER_NAME} to train it on the changed documents.")
    if pending:
        infos |= _build_all(pending, tokenizer, reporter)

    window = experiment.proxy.window
    for train, valid in domains.values():
        _require_window(train, infos[train.output], "training", window)
        _require_window(valid, infos[valid.output], "held-out", window)
    manifest = Manifest(
        root=folder,
        tokenizer_path=TOKENIZER_NAME,
        tokenizer_hash=tokenizer.hash,
        vocab_size=tokenizer.vocab_size,
        domains={
            name: DomainFiles(_entry(train, infos[train.output]), _entry(valid, infos[valid.output]))
            for name, (train, valid) in domains.items()
        },
        targets={name: TargetFile(job.kind, _entry(job, infos[job.output])) for name, job in targets.items()},
    )
    if not _is_saved(manifest):
        manifest.save()
    return manifest


def build(job: Job, tokenizer: CorpusTokenizer, advance: Advance) -> Built:
    """Makes one token file and its record; `advance` is called with the bytes of text that were tokenized.

    Raises:
        DataError, ConfigError: as `prepare`.
    """
    specification = job.specification(tokenizer.hash)  # before reading: a file that changes meanwhile is made again next time
    digest = hashlib.sha256(job.kind.encode("ascii"))
    dropped = documents = 0
    with TokenWriter(job.output, tokenizer.vocab_size, tokenizer.hash) as writer:
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
    write_atomically(_record_path(job), json.dumps(record, indent=1).encode("utf-8"))
    return Built(info, dropped)


def _domain_jobs(domain: DomainConfig, folder: Path) -> tuple[Job, Job]:
    """Training and held-out file of a domain."""
    owner = f"domain '{domain.name}'"
    train = Job(
        owner=owner,
        output=folder / f"{domain.name}.train.tokens",
        kind="text",
        files=resolve_files(domain.path, owner),
        columns=(domain.text_column,),
        side=Side.TRAIN if domain.valid is None else None,
        held_out=domain.held_out if domain.valid is None else 0.0,
    )
    output = folder / f"{domain.name}.valid.tokens"
    if domain.valid is None:
        return train, dataclasses.replace(train, output=output, side=Side.VALID)
    held_out_owner = f"held-out set of {owner}"
    return train, dataclasses.replace(train, owner=held_out_owner, output=output, files=resolve_files(domain.valid, held_out_owner))


def _target_job(target: TargetConfig, folder: Path, window: int) -> Job:
    owner = f"target '{target.name}'"
    output, files = folder / f"target-{target.name}.tokens", resolve_files(target.path, owner)
    if target.prompt_column is not None and target.completion_column is not None:
        return Job(owner, output, "completion", files, (target.prompt_column, target.completion_column), window=window)
    return Job(owner, output, "text", files, (target.text_column or "text",))


def _prepare_tokenizer(experiment: Experiment, folder: Path, training: list[Job], reporter: Reporter) -> tuple[CorpusTokenizer, bool]:
    """The tokenizer under `folder`, and whether it was there already; trained or copied if missing, damaged or of other settings."""
    path, record_path = folder / TOKENIZER_NAME, folder / "tokenizer.record.json"
    settings = experiment.tokenizer
    given = load_tokenizer(Path(settings.path)) if settings.path is not None else None
    wanted: dict[str, Any] = {"given": given.hash} if given else {"vocab_size": settings.vocab_size, "sample_bytes": settings.sample_bytes}
    wanted["version"] = PREPARE_VERSION
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


def _build_all(jobs: list[Job], tokenizer: CorpusTokenizer, reporter: Reporter) -> dict[Path, TokenFileInfo]:
    infos = {}
    with reporter.stage("Tokenizing", _total_bytes(jobs), "bytes") as stage:
        for job in jobs:
            built = build(job, tokenizer, stage.advance)
            if built.dropped:
                total = built.dropped + built.info.documents
                reporter.note(f"{job.owner}: {built.dropped} of {total} completions are empty or longer than a window; left out.")
            infos[job.output] = built.info
    return infos


def _finished(job: Job, tokenizer_hash: str, reporter: Reporter) -> TokenFileInfo | None:
    """What the token file holds, if it is whole and made from what the job names; else None, with a note if it had been there."""
    record = _read_json(_record_path(job))
    if record is None:
        return None
    if record.get("specification") != job.specification(tokenizer_hash):
        reporter.note(f"{job.output.name}: its documents, settings or tokenizer changed; it is made again.")
        return None
    try:
        store = TokenStore.open(job.output)
        store.verify()
    except FileNotFoundError:
        reporter.note(f"{job.output.name} is missing and is made again.")
        return None
    except DamagedTokenFile as error:
        reporter.note(f"{job.output.name} is damaged and is made again: {error}")
        return None
    if dataclasses.asdict(store.info) != record.get("info"):
        reporter.note(f"{job.output.name} is not the file that was prepared and is made again.")
        return None
    return store.info


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


def _require_window(job: Job, info: TokenFileInfo, what: str, window: int) -> None:
    if info.tokens < window:
        owner = f"{job.owner[0].upper()}{job.owner[1:]}"
        remedy = (
            "Add documents or lower `proxy.window`." if what == "training" else "Raise `held_out`, add documents or lower `proxy.window`."
        )
        raise DataError(f"{owner} has {info.tokens} {what} tokens, fewer than one window of {window}.", remedy)


def _total_bytes(jobs: Iterable[Job]) -> float | None:
    """About how many bytes of text the jobs read; two sides of one split read the same files once."""
    sources = {(job.files, column): None for job in jobs for column in job.columns}
    estimates = [estimated_text_bytes(files, column) for files, column in sources]
    return None if any(estimate is None for estimate in estimates) else sum(estimate or 0 for estimate in estimates)


def _counted(texts: Iterable[str], advance: Advance) -> Iterator[str]:
    for text in texts:
        advance(len(text.encode("utf-8")))
        yield text


def _entry(job: Job, info: TokenFileInfo) -> TokenFile:
    return TokenFile(job.output.name, info.content_hash, info.tokens, info.bytes, info.documents)


def _is_saved(manifest: Manifest) -> bool:
    try:
        return Manifest.load(manifest.root) == manifest
    except DataError:
        return False


def _record_path(job: Job) -> Path:
    return job.output.with_name(f"{job.output.name}.json")


def _read_json(path: Path) -> dict[str, Any] | None:
    """The object in a record file; None if it is missing or damaged, which is the same here: the work is done again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
