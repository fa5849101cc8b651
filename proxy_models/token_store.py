"""One memory-mapped file per domain or held-out set: token ids, where documents end, how many bytes of text they stand for.

Why a file of our own: a training window is then one slice of a memory map, and a damaged file is found before a trial depends on it. The
file is written in one pass, so everything that is known only at the end stands at the end. Trade-off: documents cannot be added later; a
changed domain is written anew.

    offset 0     magic, version                16 bytes
    16           tokens                        uint16 where the vocabulary fits, else uint32
                 zeros up to a multiple of 8
                 document_ends                 int64 per document: index one past its last token
                 document_bytes                int64 per document
                 scored_from                   int64 per document
                 facts                         JSON: counts, vocabulary, hashes
    end - 48     SHA-256 of all before, length of the facts (uint64), closing magic

All numbers are little-endian.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import struct
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

VERSION = 1
PREAMBLE = struct.pack("<8sQ", b"MIXTOKEN", VERSION)
TRAILER = struct.Struct("<32sQ8s")
CLOSING_MAGIC = b"NEKOTXIM"
ALIGNMENT = 8
BUFFER_BYTES = 1 << 20

Int64Array = NDArray[np.int64]


class DamagedTokenFile(ValueError):
    """The file is truncated, is not a token file, or its content does not match its checksum."""


@dataclass(frozen=True)
class TokenFileInfo:
    """What a token file holds.

    Attributes:
        tokens, documents: totals.
        bytes: UTF-8 bytes of text that the scored tokens stand for: whole documents, or completions only.
        content_hash: the caller's hash of the text; independent of the tokenizer.
        checksum: SHA-256 of the file's content, hexadecimal.
    """

    tokens: int
    bytes: int
    documents: int
    vocab_size: int
    tokenizer_hash: str
    content_hash: str
    checksum: str


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds ids below `vocab_size`."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenWriter:
    """Writes one token file: `add` documents, then `close`. Nothing appears under `path` before `close` has succeeded.

    A context manager: leaving the block without `close`, by an exception or not, removes what was written.

    Raises:
        ValueError: vocab_size is not between 1 and 2^32.
    """

    def __init__(self, path: Path, vocab_size: int, tokenizer_hash: str) -> None:
        if not 1 <= vocab_size <= 1 << 32:
            raise ValueError(f"vocab_size is {vocab_size}; token files hold vocabularies of 1 to 2^32 entries.")
        self.path = Path(path)
        self.vocab_size = vocab_size
        self.tokenizer_hash = tokenizer_hash
        self._dtype = token_dtype(vocab_size)
        self._ends, self._bytes, self._scored = array("q"), array("q"), array("q")
        self._tokens = 0
        self._digest = hashlib.sha256()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # The process id keeps two writers of the same file apart; the later rename wins with an equally good file.
        self._temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        self._file = self._temporary.open("wb", buffering=BUFFER_BYTES)
        self._write(PREAMBLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def add(self, ids: Sequence[int] | NDArray[Any], text_bytes: int, scored_from: int = 0) -> None:
        """Appends one document.

        Args:
            ids: its tokens, with its end token.
            text_bytes: UTF-8 bytes of its text; of the completion only, for a completion target.
            scored_from: index of the first token that is scored: 0 for text, the length of the prompt for a completion.

        Raises:
            ValueError: no ids, an id outside the vocabulary, negative bytes, or nothing left to score.
        """
        wide = np.asarray(ids, dtype=np.int64)
        if wide.ndim != 1 or wide.size == 0:
            raise ValueError(f"A document is a non-empty list of ids, got shape {wide.shape}.")
        if wide.min() < 0 or wide.max() >= self.vocab_size:
            raise ValueError(f"Ids from {wide.min()} to {wide.max()} do not fit a vocabulary of {self.vocab_size} entries.")
        if text_bytes < 0 or not 0 <= scored_from < wide.size:
            raise ValueError(f"text_bytes is {text_bytes}, scored_from {scored_from}, for a document of {wide.size} tokens.")
        self._write(wide.astype(self._dtype).tobytes())
        self._tokens += wide.size
        self._ends.append(self._tokens)
        self._bytes.append(text_bytes)
        self._scored.append(scored_from)

    def close(self, content_hash: str) -> TokenFileInfo:
        """Completes the file and moves it to its name; `content_hash` is the hash of the documents' text."""
        self._write(bytes(-self._tokens * self._dtype.itemsize % ALIGNMENT))
        for table in (self._ends, self._bytes, self._scored):
            self._write(np.array(table, dtype="<i8").tobytes())
        facts: dict[str, Any] = {
            "tokens": self._tokens,
            "bytes": sum(self._bytes),
            "documents": len(self._ends),
            "vocab_size": self.vocab_size,
            "tokenizer_hash": self.tokenizer_hash,
            "content_hash": content_hash,
        }
        encoded = json.dumps(facts, sort_keys=True).encode("ascii")
        self._write(encoded)
        self._file.write(TRAILER.pack(self._digest.digest(), len(encoded), CLOSING_MAGIC))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._temporary, self.path)
        return TokenFileInfo(**facts, checksum=self._digest.hexdigest())

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)


@dataclass(frozen=True)
class TokenStore:
    """A token file, memory-mapped.

    Attributes:
        tokens: shape (tokens,), uint16 or uint32.
        document_ends: shape (documents,); document d is `tokens[document_ends[d - 1]:document_ends[d]]`, starting at 0.
        document_bytes: shape (documents,); bytes of text that its scored tokens stand for.
        scored_from: shape (documents,); index within the document of its first scored token.
    """

    path: Path
    info: TokenFileInfo
    tokens: NDArray[Any]
    document_ends: Int64Array
    document_bytes: Int64Array
    scored_from: Int64Array

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        """Maps the file and checks its frame, in time independent of its size; `verify` checks its content.

        Raises:
            DamagedTokenFile: truncated, not a token file, or inconsistent.
            FileNotFoundError: there is no such file.
        """
        path = Path(path)
        size = path.stat().st_size
        if size < len(PREAMBLE) + TRAILER.size:
            raise DamagedTokenFile(f"{path} holds {size} bytes, too few for a token file.")
        raw = np.memmap(path, dtype=np.uint8, mode="r")
        if raw[: len(PREAMBLE)].tobytes() != PREAMBLE:
            raise DamagedTokenFile(f"{path} does not begin as a token file of version {VERSION}.")
        digest, facts_bytes, closing = TRAILER.unpack(raw[-TRAILER.size :].tobytes())
        if closing != CLOSING_MAGIC:
            raise DamagedTokenFile(f"{path} does not end as a token file; it is truncated or was appended to.")
        info = _read_info(path, raw, digest, facts_bytes)
        dtype = token_dtype(info.vocab_size)
        tokens_end = len(PREAMBLE) + info.tokens * dtype.itemsize
        tables_start = -(-tokens_end // ALIGNMENT) * ALIGNMENT
        table_bytes = 8 * info.documents
        if tables_start + 3 * table_bytes + facts_bytes + TRAILER.size != size:
            raise DamagedTokenFile(f"{path} holds {size} bytes, which do not match its {info.tokens} tokens in {info.documents} documents.")
        tables = [raw[tables_start + i * table_bytes : tables_start + (i + 1) * table_bytes].view("<i8") for i in range(3)]
        return cls(path, info, raw[len(PREAMBLE) : tokens_end].view(dtype), *tables)

    def verify(self) -> None:
        """Reads the whole file and compares its checksum.

        Raises:
            DamagedTokenFile: the content is not what was written.
        """
        digest = hashlib.sha256()
        remaining = self.path.stat().st_size - TRAILER.size
        with self.path.open("rb") as file:
            while remaining > 0 and (block := file.read(min(remaining, BUFFER_BYTES))):
                digest.update(block)
                remaining -= len(block)
        if digest.hexdigest() != self.info.checksum:
            raise DamagedTokenFile(f"{self.path} does not match its checksum.")


def _read_info(path: Path, raw: NDArray[np.uint8], digest: bytes, facts_bytes: int) -> TokenFileInfo:
    if facts_bytes > raw.size - len(PREAMBLE) - TRAILER.size:
        raise DamagedTokenFile(f"{path} has a damaged trailer.")
    encoded = raw[raw.size - TRAILER.size - facts_bytes : raw.size - TRAILER.size].tobytes()
    try:
        facts = json.loads(encoded)
        info = TokenFileInfo(**facts, checksum=digest.hex())
    except (ValueError, TypeError) as error:
        raise DamagedTokenFile(f"{path} has damaged facts ({error}).") from error
    for field in dataclasses.fields(info):
        value: Any = getattr(info, field.name)
        # Field types are strings here because annotations are postponed.
        if type(value).__name__ != field.type or (field.type == "int" and value < 0):
            raise DamagedTokenFile(f"{path} has damaged facts: {field.name} is {value!r}.")
    return info
