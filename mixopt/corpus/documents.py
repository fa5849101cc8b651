"""Reads documents and prompt/completion pairs from jsonl, jsonl.gz, Parquet and text files.

Files are streamed through Hugging Face `datasets`, one file at a time, so that a corpus larger than memory is no problem and an error can name
the file. Patterns are resolved here and not by `datasets`, whose answer to a pattern without a match is a bare `StopIteration`. The main
trade-off: nothing is repaired. A broken line, a missing column or a number where text should be ends the reading with a sentence that says
where, because a silently shortened domain would change what the search concludes about it.
"""

from __future__ import annotations

import difflib
import glob
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError, DataError

# Suffix -> reader of `datasets`. One document per row, except text: one document per file.
READERS = {
    ".jsonl": "json",
    ".jsonl.gz": "json",
    ".parquet": "parquet",
    ".txt": "text",
    ".txt.gz": "text",
    ".md": "text",
    ".rst": "text",
}
SUPPORTED = "jsonl, jsonl.gz, parquet, txt, txt.gz, md or rst"
# What the readers raise for broken content (pyarrow's errors are ValueErrors, a bad gzip header is an OSError).
UNREADABLE = (ValueError, OSError, EOFError, zlib.error)


@dataclass(frozen=True, slots=True)
class Document:
    """A document; `source` tells where it was read, as `file.jsonl:3` (row 3, counted from 1) or `file.txt`."""

    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt with the completion that is scored after it."""

    prompt: str
    completion: str


def resolve_files(patterns: Sequence[str], owner: str) -> tuple[Path, ...]:
    """The files that paths and globs name: in the order given, sorted within a glob, each once.

    Args:
        owner: who reads them, for messages: "domain 'code'".

    Raises:
        DataError: a path does not exist or a pattern matches nothing.
        ConfigError: a path is a folder, or a file has a suffix that no reader knows.
    """
    files: dict[Path, None] = {}
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise _nothing_found(pattern, owner)
        for path in found:
            _reader_of(path, owner)
        files.update(dict.fromkeys(found))
    return tuple(files)


def read_documents(files: Sequence[Path], column: str, owner: str) -> Iterator[Document]:
    """The documents of `files`, in order; `column` holds the text of jsonl and Parquet rows.

    Raises:
        ConfigError: a file has no such column.
        DataError: a file cannot be read, or a text is not a string.
    """
    for path in files:
        for number, (text,) in _rows(path, (column,), owner):
            yield Document(text, path.name if number is None else f"{path.name}:{number}")


def read_pairs(files: Sequence[Path], prompt_column: str, completion_column: str, owner: str) -> Iterator[Pair]:
    """The prompt/completion pairs of `files`, in order.

    Raises:
        ConfigError: a file lacks a column, or is a text file, which has none.
        DataError: a file cannot be read, or a field is not a string.
    """
    for path in files:
        if _reader_of(path, owner) == "text":
            raise ConfigError(
                f"Text file {path} of {owner} has no columns for prompt and completion.",
                "Use jsonl or Parquet for prompt/completion pairs.",
            )
        for _, (prompt, completion) in _rows(path, (prompt_column, completion_column), owner):
            yield Pair(prompt, completion)


def estimated_text_bytes(files: Sequence[Path], column: str) -> float | None:
    """About how many bytes of text `files` hold, without reading them, for progress bars; None where compression hides it."""
    total = 0
    for path in files:
        if path.name.lower().endswith(".gz"):
            return None
        total += _parquet_column_bytes(path, column) if path.suffix.lower() == ".parquet" else path.stat().st_size
    return float(total)


def _nothing_found(pattern: str, owner: str) -> DataError | ConfigError:
    path = Path(pattern)
    if path.is_dir():
        return ConfigError(f"Path {pattern} of {owner} is a folder.", f"Name its files, as {pattern.rstrip('/')}/*.jsonl.")
    if glob.has_magic(pattern):
        return DataError(
            f"Pattern {pattern} of {owner} matches no file.", "Mend the pattern; relative ones are relative to the experiment file."
        )
    siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    remedy = f"Did you mean {near[0]}?" if near else "Mend the path; relative ones are relative to the experiment file."
    return DataError(f"File {pattern} of {owner} does not exist.", remedy)


def _reader_of(path: Path, owner: str) -> str:
    name = path.name.lower()
    for suffix in sorted(READERS, key=len, reverse=True):
        if name.endswith(suffix):
            return READERS[suffix]
    raise ConfigError(f"File {path} of {owner} has the unsupported suffix '{path.suffix}'.", f"Use {SUPPORTED}.")


def _rows(path: Path, columns: tuple[str, ...], owner: str) -> Iterator[tuple[int | None, tuple[str, ...]]]:
    """(row number from 1, or None for a text file; texts) of every row of one file."""
    reader = _reader_of(path, owner)
    try:
        if reader == "text":
            yield from ((None, (str(row["text"]),)) for row in _stream(path, reader, columns, owner))
            return
        for number, row in enumerate(_stream(path, reader, columns, owner), start=1):
            yield number, tuple(_checked(row.get(column), column, f"Row {number} of {path}", owner) for column in columns)
    except UNREADABLE as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "Convert the file to UTF-8." if isinstance(error, UnicodeError) else "Mend or leave out the file."
        raise DataError(f"{path} of {owner} cannot be read: {reason}.", remedy) from error


def _stream(path: Path, reader: str, columns: tuple[str, ...], owner: str) -> Iterator[dict[str, Any]]:
    """Rows of one file; empty files have none."""
    import datasets

    options: dict[str, Any] = {"sample_by": "document"} if reader == "text" else {}
    if reader == "parquet":
        import pyarrow.parquet as pq

        facts = pq.ParquetFile(path)
        _check_columns(path, columns, facts.schema_arrow.names, owner)
        if facts.metadata.num_rows == 0:
            return
        options["columns"] = list(columns)
    # It counts loads, even of local files, with a request to its hub that takes seconds where there is no network.
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False
    verbosity = datasets.logging.get_verbosity()
    # Its readers log a broken file before they raise; the error says the same better.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        try:
            stream = datasets.load_dataset(reader, data_files=[glob.escape(str(path))], split="train", streaming=True, **options)
        except StopIteration:  # how the json reader says that there is no row
            return
        if reader == "json" and stream.column_names is not None:
            _check_columns(path, columns, stream.column_names, owner)
            stream = stream.select_columns(list(columns))
        yield from stream
    finally:
        datasets.logging.set_verbosity(verbosity)


def _check_columns(path: Path, wanted: tuple[str, ...], present: Sequence[str], owner: str) -> None:
    for column in wanted:
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1)
            remedy = f"Did you mean '{near[0]}'?" if near else f"Its columns are {', '.join(present)}."
            raise ConfigError(f"{path} of {owner} has no column '{column}'.", remedy)


def _checked(value: object, column: str, where: str, owner: str) -> str:
    if not isinstance(value, str):
        kind = "nothing" if value is None else f"the {type(value).__name__} {value!r:.40}"
        raise DataError(f"{where} ({owner}) has {kind} in column '{column}', not text.", "Name a column of text, or leave that row out.")
    return value


def _parquet_column_bytes(path: Path, column: str) -> int:
    import pyarrow.parquet as pq

    try:
        facts = pq.ParquetFile(path)
    except UNREADABLE:
        return 0  # reading it will say why
    index = facts.schema_arrow.names.index(column) if column in facts.schema_arrow.names else None
    if index is None:
        return 0
    return sum(facts.metadata.row_group(group).column(index).total_uncompressed_size for group in range(facts.metadata.num_row_groups))
