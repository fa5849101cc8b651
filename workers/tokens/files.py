"""Makes token files: documents of a job to ids, in one pass or in shards, and a record beside each file of what was written.

A file that agrees with its record and whose checksum is right is kept; anything else is made again. A large job is cut into shards that are
tokenized by a pool and then joined: the result is byte for byte that of one pass, however many workers there were.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.corpus.documents import Document, Pair
from mixopt.corpus.manifest import TokenFile
from mixopt.corpus.tokenizer import CorpusTokenizer, write_atomically
from mixopt.progress import Reporter
from mixopt.trial import content_digest
from proxy_models.token_store import DamagedTokenFile, TokenFileInfo, TokenStore, TokenWriter
from workers.tokens.jobs import Job, nothing_left, parts_of
from workers.tokens.shards import Pool, ShardedText, update_digest

# Of the digests in names of files; a record tells the two apart that would be alike, one pair in 2^48.
DIGEST_LETTERS = 12
# Text handed to the tokenizer at once: enough to keep its threads busy, little enough to hold in memory many times over.
BATCH_BYTES = 1 << 20
# A completion needs a token before it, or its first token has nothing to be predicted from.
CONTEXT_TOKENS = 1

Advance = Callable[[float], None]
Items = Iterable[Document | Pair]


@dataclass(frozen=True)
class Built:
    """A token file that was made.

    Attributes:
        dropped: pairs that had an empty completion or one longer than a window.
        cut: pairs whose prompt is cut on the left, because a window does not hold it and its completion.
    """

    file: TokenFile
    dropped: int = 0
    cut: int = 0


def build(job: Job, items: Items, folder: Path, tokenizer: CorpusTokenizer, advance: Advance, pool: Pool | None = None) -> Built:
    """Makes one token file under `folder`, and its record; `advance` is called with the bytes of text that were tokenized.

    Args:
        items: the job's documents or pairs.
        pool: tokenizes the text of the job in shards that survive a killed process; None: in this process, in one pass.

    Raises:
        DataError, ConfigError: nothing is left of the items, or reading them fails.
    """
    specification = job.specification(tokenizer.hash)  # before reading: a file that changes meanwhile is made anew next time
    output = output_of(job, folder, specification)
    shards = ShardedText(folder / "shards" / output.stem, tokenizer) if pool is not None and job.kind == "text" else None
    with TokenWriter(output, tokenizer.vocab_size, tokenizer.hash) as writer:
        if shards is not None and pool is not None:
            documents, content_hash = shards.write(_texts(items), pool, writer, advance)
            dropped = cut = 0
        else:
            documents, dropped, cut, content_hash = _write(job, items, tokenizer, writer, advance)
        if not documents:
            raise nothing_left(job, dropped)
        info = writer.close(content_hash)
    record = {"specification": specification, "info": dataclasses.asdict(info)}
    write_atomically(record_path(output), json.dumps(record, indent=1).encode("utf-8"))
    if shards is not None:
        shards.remove()
    return Built(_entry(output, info), dropped, cut)


def finished(job: Job, folder: Path, tokenizer_hash: str, reporter: Reporter) -> TokenFile | None:
    """What the token file holds, if it is whole and made from what the job names; else None, with a note if there had been one."""
    specification = job.specification(tokenizer_hash)
    output = output_of(job, folder, specification)
    record = read_json(record_path(output))
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


def digest_of(value: dict[str, Any]) -> str:
    """The digest in the name of a file, of what determines it."""
    return content_digest(value)[:DIGEST_LETTERS]


def output_of(job: Job, folder: Path, specification: dict[str, Any]) -> Path:
    return folder / f"{job.name}.{digest_of(specification)}.tokens"


def record_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.record")


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a record file; None if it is missing or damaged, which is the same here: the work is done again."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write(job: Job, items: Items, tokenizer: CorpusTokenizer, writer: TokenWriter, advance: Advance) -> tuple[int, int, int, str]:
    """Tokenizes and writes in one pass; returns documents, dropped pairs, cut prompts and the content hash."""
    digest = hashlib.sha256(job.kind.encode("ascii"))
    dropped = cut = documents = 0
    for item, ids, scored_from in _encoded(items, tokenizer):
        parts = parts_of(item)
        advance(sum(len(part.encode("utf-8")) for part in parts))
        if job.window and not _fits(ids, scored_from, job.window):
            dropped += 1
            continue
        if not any(parts):
            continue  # nothing but the end token: an empty document
        sizes = [update_digest(digest, part) for part in parts]
        writer.add(ids, sum(sizes) if job.counts_prompts else sizes[-1], scored_from)
        cut += bool(job.window) and len(ids) > job.window + CONTEXT_TOKENS
        documents += 1
    return documents, dropped, cut, digest.hexdigest()


def _texts(items: Items) -> Iterator[str]:
    for item in items:
        assert isinstance(item, Document), "only text is cut into shards"
        if item.text:
            yield item.text


def _encoded(items: Items, tokenizer: CorpusTokenizer) -> Iterator[tuple[Document | Pair, list[int], int]]:
    """Every document or pair with its ids, end token included, and the index of its first scored token."""
    for batch in _batches(items):
        ids = iter(tokenizer.encode_batch([part for item in batch for part in parts_of(item)]))
        for item in batch:
            if isinstance(item, Document):
                yield item, [*next(ids), tokenizer.end_id], 0
            else:
                # Encoded apart, so that where scoring starts does not depend on what the tokenizer would merge across the border.
                prompt = next(ids) or [tokenizer.end_id]
                yield item, [*prompt, *next(ids), tokenizer.end_id], len(prompt)


def _batches(items: Items) -> Iterator[list[Document | Pair]]:
    batch: list[Document | Pair] = []
    size = 0
    for item in items:
        batch.append(item)
        size += sum(map(len, parts_of(item)))
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _fits(ids: list[int], scored_from: int, window: int) -> bool:
    """Whether a completion is not empty and fits a window after one token of context."""
    scored = len(ids) - scored_from
    return 1 < scored <= window - CONTEXT_TOKENS


def _entry(output: Path, info: TokenFileInfo) -> TokenFile:
    return TokenFile(output.name, info.content_hash, info.tokens, info.bytes, info.documents)
