"""Rows of JSON files: one object per line, or one array of objects.

Read here and not through `datasets`, which takes a column's type from the first ten megabytes: a number after them silently became text, and
texts that look like dates became dates. Python's reader is no bottleneck: 540 MB per CPU-second, where tokenization does 2.7. The
trade-off: an array is read as a whole, so a large corpus belongs into lines.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from typing import Any

from mixopt.corpus.files import InputFile, open_content


def json_rows(file: InputFile) -> Iterator[tuple[int, Any]]:
    """(row number from 1, value) of every row; blank lines are none. Numbers of rows in lines are numbers of lines.

    Raises:
        ValueError: broken JSON or encoding, naming the line or row.
        OSError, EOFError: the file cannot be read, or is compressed and ends early.
    """
    first = True
    with open_content(file) as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if not line.strip():
                continue
            if first and line.lstrip().startswith(b"["):
                yield from enumerate(_array(line + stream.read()), start=1)
                return
            try:
                row = _parsed(line, f"line {number}")
            except json.JSONDecodeError:
                if not first or ".json" not in file.name.lower() or ".jsonl" in file.name.lower():
                    raise
                # One object over several lines.
                yield 1, _parsed(line + stream.read(), "the object")
                return
            first = False
            yield number, row


def _array(content: bytes) -> list[Any]:
    rows: list[Any] = _parsed(content, "the array")
    return rows


def _parsed(content: bytes, place: str) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise json.JSONDecodeError(f"{place} is broken JSON: {error.msg}", error.doc, error.pos) from error
    except UnicodeDecodeError as error:
        raise UnicodeDecodeError(error.encoding, error.object, error.start, error.end, f"{error.reason}, {place}") from error
