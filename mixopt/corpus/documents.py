"""Reads documents and prompt/completion pairs from json, jsonl, Parquet, Arrow and text files, compressed or not, and from the Hugging Face hub.

Parquet, Arrow and the hub are streamed through Hugging Face `datasets`, one file at a time, so that a corpus larger than memory is no problem
and an error can name the file. The main trade-off: nothing is repaired. A broken line, a missing column or a number where text should be ends
the reading with a sentence that says where, because a silently shortened domain would change what the search concludes about it.
"""

from __future__ import annotations

import difflib
import glob
import io
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mixopt.corpus.files import (
    InputFile,
    compression_of,
    decompressed,
    format_of,
    open_content,
    open_file,
    size_of,
)
from mixopt.corpus.hub import HubDataset, hub_rows, quiet_datasets
from mixopt.corpus.json_rows import json_rows
from mixopt.errors import ConfigError, DataError, MixoptError

Source = Sequence[InputFile] | HubDataset
# What the readers raise for broken content (pyarrow's errors are ValueErrors, a bad gzip header is an OSError).
UNREADABLE = (ValueError, OSError, EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class Document:
    """A document; `source` tells where it was read, as `file.jsonl:3` (row 3, counted from 1) or `file.txt`."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the completion that is scored after it; `source` as of a document."""

    prompt: str
    completion: str
    source: str = field(default="", compare=False)

    def document(self) -> Document:
        """Both as one text, joined as they are."""
        return Document(self.prompt + self.completion, self.source)


@dataclass(frozen=True)
class Limits:
    """How much of a source is read: the first documents, up to a number of them and of bytes of their text. None: all."""

    documents: int | None = None
    bytes: int | None = None

    def __bool__(self) -> bool:
        return self.documents is not None or self.bytes is not None


NO_LIMITS = Limits()
# What compression hides is guessed from the beginnings of a few files.
SAMPLED_FILES = 3
SAMPLED_BYTES = 4 << 20


def read_documents(source: Source, column: str, owner: str, limits: Limits = NO_LIMITS) -> Iterator[Document]:
    """The documents of files or of a hub data set, in order; `column` holds the text where there are rows.

    Raises:
        ConfigError: a file has no such column.
        DataError: a file cannot be read, or a text is not a string.
    """
    for place, (text,) in _limited(_rows_of(source, (column,), owner), limits):
        yield Document(text, place)


def read_pairs(source: Source, prompt_column: str, completion_column: str, owner: str, limits: Limits = NO_LIMITS) -> Iterator[Pair]:
    """The prompt/completion pairs of files or of a hub data set, in order.

    Raises:
        ConfigError: a file lacks a column, or is a text file, which has none.
        DataError: a file cannot be read, or a field is not a string.
    """
    for place, (prompt, completion) in _limited(_rows_of(source, (prompt_column, completion_column), owner), limits):
        yield Pair(prompt, completion, place)


def read_items(source: Source, columns: Sequence[str], owner: str, limits: Limits = NO_LIMITS) -> Iterator[Document | Pair]:
    """Documents of one column, or pairs of two: `read_documents` or `read_pairs`."""
    if len(columns) == 1:
        return read_documents(source, columns[0], owner, limits)
    return read_pairs(source, columns[0], columns[1], owner, limits)


def estimated_text_bytes(files: Sequence[InputFile], *columns: str) -> float | None:
    """About how many bytes of text `files` hold in these columns, almost without reading them, for progress bars; None where an address hides its
    size."""
    total = 0.0
    factors: dict[str, list[float]] = {}
    for file in files:
        size, compression = size_of(file), compression_of(file)
        if size is None:
            return None
        if compression is not None:
            known = factors.setdefault(compression, [])
            if len(known) < SAMPLED_FILES:
                known.append(_expansion(file))
            total += size * sum(known) / len(known)
        else:
            is_parquet = file.name.lower().endswith(".parquet")
            total += sum(_parquet_column_bytes(file, column) for column in columns) if is_parquet else size
    return total


def _expansion(file: InputFile) -> float:
    """How many bytes a stored byte of a compressed file stands for, by its beginning."""
    try:
        with open_file(file) as raw, decompressed(raw, compression_of(file)) as stream:
            read = len(stream.read(SAMPLED_BYTES))
            return read / max(raw.tell(), 1)
    except UNREADABLE:
        return 1.0  # reading it will say why


def _limited(rows: Iterator[tuple[str, tuple[str, ...]]], limits: Limits) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The rows before the first that is beyond a limit."""
    if not limits:
        yield from rows
        return
    taken = taken_bytes = 0
    for place, texts in rows:
        taken, taken_bytes = taken + 1, taken_bytes + sum(len(text.encode("utf-8")) for text in texts)
        if limits.bytes is not None and taken_bytes > limits.bytes:
            return
        yield place, texts
        if taken == limits.documents:  # before the next is asked for, which may cost a request
            return


def _rows_of(source: Source, columns: tuple[str, ...], owner: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(place, texts) of every row: `file.jsonl:3` (row 3, counted from 1), `file.txt`, or `organization/name:3`."""
    if isinstance(source, HubDataset):
        for count, row in enumerate(hub_rows(source, columns, owner), start=1):
            where = f"Row {count} of {source}"
            yield f"{source.dataset}:{count}", tuple(_checked(row.get(column), column, where, owner) for column in columns)
        return
    for file in source:
        for number, texts in _rows(file, columns, owner):
            yield file.name if number is None else f"{file.name}:{number}", texts


def _rows(file: InputFile, columns: tuple[str, ...], owner: str) -> Iterator[tuple[int | None, tuple[str, ...]]]:
    """(row number from 1, or None for a text file; texts) of every row of one file."""
    kind = format_of(file, owner)
    if kind == "text" and len(columns) > 1:
        raise ConfigError(
            f"Text file {file} of {owner} has no columns for prompt and completion.", "Use jsonl or Parquet for prompt/completion pairs."
        )
    with _readable(file, owner):
        if kind == "text":
            with io.TextIOWrapper(open_content(file), encoding="utf-8") as stream:
                yield None, (stream.read(),)
            return
        rows = _json(file, columns, owner) if kind == "json" else enumerate(_table_rows(file, kind, columns, owner), start=1)
        for number, row in rows:
            yield number, tuple(_checked(row.get(column), column, f"Row {number} of {file}", owner) for column in columns)


@contextmanager
def _readable(file: InputFile, owner: str) -> Iterator[None]:
    """Makes what the readers raise an error that names the file."""
    try:
        yield
    except (MixoptError, GeneratorExit):
        raise
    except Exception as error:
        if isinstance(file, Path) and not isinstance(error, UNREADABLE):
            raise  # a fault of ours; drivers of addresses have errors of their own
        reason = " ".join(str(error).split())[:200].rstrip(".") or type(error).__name__
        remedy = "Convert the file to UTF-8." if isinstance(error, UnicodeError) else "Mend or leave out the file."
        raise DataError(f"{file} of {owner} cannot be read: {reason}.", remedy) from error


def _json(file: InputFile, columns: tuple[str, ...], owner: str) -> Iterator[tuple[int, dict[str, Any]]]:
    first = True
    for number, row in json_rows(file):
        if not isinstance(row, dict):
            raise DataError(
                f"Row {number} of {file} ({owner}) is {row!r:.40}, not an object with columns.",
                'Write one object per line, as {"text": "..."}.',
            )
        if first:
            _check_columns(file, columns, list(row), owner)
        first = False
        yield number, row


def _table_rows(file: InputFile, kind: str, columns: tuple[str, ...], owner: str) -> Iterator[dict[str, Any]]:
    """Rows of one Parquet or Arrow file; empty files have none."""
    import datasets

    options: dict[str, Any] = {}
    if kind == "parquet":
        import pyarrow.parquet as pq

        with open_file(file) as stream:
            facts = pq.ParquetFile(stream)
            _check_columns(file, columns, facts.schema_arrow.names, owner)
            if facts.metadata.num_rows == 0:
                return
        options["columns"] = list(columns)
    location = glob.escape(str(file)) if isinstance(file, Path) else file.address
    with quiet_datasets():
        try:
            rows = datasets.load_dataset(kind, data_files=[location], split="train", streaming=True, **options)
        except StopIteration:  # how a reader may say that there is no row
            return
        if kind == "arrow" and rows.column_names is not None:
            _check_columns(file, columns, rows.column_names, owner)
            rows = rows.select_columns(list(columns))
        yield from rows


def _check_columns(path: InputFile, wanted: tuple[str, ...], present: Sequence[str], owner: str) -> None:
    for column in wanted:
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            remedy = f"Did you mean '{near[0]}'?" if near else f"Its columns are {', '.join(present)}."
            raise ConfigError(f"{path} of {owner} has no column '{column}'.", remedy)


def _checked(value: object, column: str, where: str, owner: str) -> str:
    if not isinstance(value, str):
        kind = "nothing" if value is None else f"the {type(value).__name__} {value!r:.40}"
        raise DataError(f"{where} ({owner}) has {kind} in column '{column}', not text.", "Name a column of text, or leave that row out.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{where} ({owner}) has half of a surrogate pair in column '{column}', which is no text.", "Mend or leave out that row."
            ) from error
    return value


def _parquet_column_bytes(file: InputFile, column: str) -> int:
    import pyarrow.parquet as pq

    try:
        with open_file(file) as stream:
            facts = pq.ParquetFile(stream).metadata
            names = [facts.row_group(0).column(index).path_in_schema for index in range(facts.num_columns)] if facts.num_row_groups else []
            if column not in names:
                return 0
            index = names.index(column)
            return sum(int(facts.row_group(group).column(index).total_uncompressed_size) for group in range(facts.num_row_groups))
    except UNREADABLE:
        return 0  # reading it will say why
