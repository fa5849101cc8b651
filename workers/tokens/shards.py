"""Tokenizes the text of a large domain in shards: in parallel Ray tasks, or one after another in this process.

One reader cuts the stream of documents into shards of fixed size and hands their text to a pool. It has to see all text in order anyway, for
the content hash of a domain is over its documents in order, and reading is far faster than tokenizing. So every format, address and split is
read alike, and workers need to see nothing but the output folder.

A shard's file is named by its number and the digest of its text, and appears under that name only when it is whole, so its name is its
completion marker: after a kill the reader cuts the same shards and finds those that are done. Joining is in their order and ignores who made
them. The trade-off: while a domain is made, its tokens lie on disk twice.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mixopt.corpus.tokenizer import CorpusTokenizer, load_tokenizer
from mixopt.errors import DataError
from proxy_models.token_store import DamagedTokenFile, TokenStore, TokenWriter

# Text per shard: a few seconds of tokenizing on one core, so that little is lost to a kill and bars move; enough to make a task's own cost
# (milliseconds) vanish.
SHARD_BYTES = 8 << 20
# From this much text on a job is cut into shards: below, one process is done in about half a minute, and a cluster takes seconds to start.
SHARDED_FROM_BYTES = 64 << 20
# Documents encoded at once within a shard.
BATCH_BYTES = 1 << 20


@dataclass(frozen=True)
class ShardTask:
    """One shard to tokenize; goes to a worker process as it is.

    Attributes:
        path: where its token file goes; in a folder that workers share.
        content_hash: digest of the texts.
    """

    path: Path
    texts: tuple[str, ...]
    content_hash: str
    tokenizer_path: Path
    tokenizer_hash: str


class Pool(Protocol):
    """Runs shards."""

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[int]:
        """Tokenizes every shard, taking the next only when one can start soon; yields the bytes of text of each that ended, in any order.

        Raises:
            RunError: a worker was lost more often than it is tried again.
        """
        ...


class InProcess:
    """One shard after another; the tokenizer's own threads use the cores."""

    def run(self, tasks: Iterable[ShardTask]) -> Iterator[int]:
        return map(tokenize_shard, tasks)


class ShardedText:
    """The shards of one token file, in a folder of their own."""

    def __init__(self, folder: Path, tokenizer: CorpusTokenizer) -> None:
        self._folder = folder
        self._tokenizer = tokenizer

    def write(self, texts: Iterable[str], pool: Pool, writer: TokenWriter, advance: Callable[[float], None]) -> tuple[int, str]:
        """Tokenizes non-empty `texts` and writes them in order; returns the number of documents and their content hash."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        digest = hashlib.sha256(b"text")
        shards: list[Path] = []
        for size in pool.run(self._missing(texts, digest, shards, advance)):
            advance(size)
        documents = 0
        for path in shards:
            store = TokenStore.open(path)
            start = 0
            for end, size in zip(store.document_ends.tolist(), store.document_bytes.tolist(), strict=True):
                writer.add(store.tokens[start:end], size)
                start = end
            documents += store.info.documents
        return documents, digest.hexdigest()

    def remove(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _missing(self, texts: Iterable[str], digest: Any, shards: list[Path], advance: Callable[[float], None]) -> Iterator[ShardTask]:
        """The shards that are yet to be made; fills in the content hash and the list of all as it goes."""
        tokenizer = self._tokenizer
        for number, shard in enumerate(_cut(texts)):
            own = hashlib.sha256()
            size = 0
            for text in shard:
                update_digest(digest, text)
                size += update_digest(own, text)
            path = self._folder / f"{number:06d}.{own.hexdigest()[:16]}.tokens"
            shards.append(path)
            if _is_whole(path, own.hexdigest(), tokenizer.hash):
                advance(size)
            else:
                yield ShardTask(path, tuple(shard), own.hexdigest(), tokenizer.path.resolve(), tokenizer.hash)


def tokenize_shard(task: ShardTask) -> int:
    """Makes one shard's token file; returns the bytes of its text. Idempotent: the file appears whole or not at all.

    Raises:
        DataError: the tokenizer is not the one that the shard was made for.
    """
    tokenizer = _tokenizer(task.tokenizer_path)
    if tokenizer.hash != task.tokenizer_hash:
        raise DataError(f"{task.tokenizer_path} changed while documents were tokenized.", "Run `mixopt prepare FILE` again.")
    total = 0
    with TokenWriter(task.path, tokenizer.vocab_size, tokenizer.hash) as writer:
        for batch in _cut(task.texts, BATCH_BYTES):
            for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
                size = len(text.encode("utf-8"))
                writer.add([*ids, tokenizer.end_id], size)
                total += size
        writer.close(task.content_hash)
    return total


def update_digest(digest: Any, text: str) -> int:
    """Adds one text to a content hash, with its length, so that where texts end is content too; returns its bytes."""
    encoded = text.encode("utf-8")
    digest.update(len(encoded).to_bytes(8, "little") + encoded)
    return len(encoded)


@functools.lru_cache(maxsize=2)
def _tokenizer(path: Path) -> CorpusTokenizer:
    return load_tokenizer(path)


def _cut(texts: Iterable[str], limit: int | None = None) -> Iterator[list[str]]:
    limit = SHARD_BYTES if limit is None else limit
    shard: list[str] = []
    size = 0
    for text in texts:
        shard.append(text)
        size += len(text)
        if size >= limit:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _is_whole(path: Path, content_hash: str, tokenizer_hash: str) -> bool:
    """Whether a shard was made from this text with this tokenizer, and is not damaged."""
    try:
        store = TokenStore.open(path)
        store.verify()
    except (FileNotFoundError, DamagedTokenFile):
        return False
    return (store.info.content_hash, store.info.tokenizer_hash) == (content_hash, tokenizer_hash)
