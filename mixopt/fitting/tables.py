"""Reads one table of runs: CSV or Parquet, one row per run, with a column that identifies it.

Cells stay as they were written until somebody asks for numbers, so that an id of "007" is itself and a word in a column of weights is found with
its row. Files are told apart by content, not by name. The main trade-off: CSV is read by the standard library's reader, cell by cell, which takes a
second for a million cells and in return knows the file's own header, in which polars would rename what occurs twice.
"""

from __future__ import annotations

import csv
import difflib
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from mixopt.errors import DataError
from mixopt.mixture import FloatArray

ID_COLUMNS = ("run", "run_id", "index")
"""Names of the column by which tables are joined; a table has one of them."""
NAME_COLUMN = "name"
"""What people call a run, beside its id: shown, never joined on."""
SIZE, TOKENS, SEED, COST = "size", "tokens", "seed", "cost"
SOURCE_COLUMNS = (SIZE, TOKENS, SEED, COST)
"""Columns that say where a run comes from; all others are domains in one table and metrics in the other."""
MISSING = frozenset({"", "na", "n/a", "nan", "null", "none"})
"""How tables write that there is no value, in small letters."""
# Messages name so many rows and count the others.
MOST_NAMED = 5

Cell = str | float | None


@dataclass(frozen=True)
class Table:
    """A table as it was written.

    Attributes:
        name: of the file, for messages.
        columns: name -> cells; texts as in the file, numbers where the file has types, None where it has no value.
        id_column: which of them identifies runs.
    """

    name: str
    columns: Mapping[str, Sequence[Cell]]
    id_column: str

    @cached_property
    def given_ids(self) -> tuple[str, ...]:
        """As written."""
        return tuple(_text(cell) for cell in self.columns[self.id_column])

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """To join by: 7, "7" and 7.0 are one id."""
        return tuple(re.sub(r"^([+-]?\d+)\.0+$", r"\1", given.strip()) for given in self.given_ids)

    @property
    def contents(self) -> tuple[str, ...]:
        """The columns that are domains or metrics."""
        apart = {self.id_column, NAME_COLUMN, *SOURCE_COLUMNS}
        return tuple(column for column in self.columns if column not in apart)

    def __len__(self) -> int:
        return len(self.columns[self.id_column])

    def texts(self, column: str) -> tuple[str, ...]:
        return tuple(_text(cell).strip() for cell in self.columns[column])

    def numbers(self, column: str) -> FloatArray:
        """The column as numbers, shape (rows,); NaN where there is no value, infinities as they are.

        Raises:
            DataError: a cell is no number.
        """
        values = np.empty(len(self))
        for row, cell in enumerate(self.columns[column]):
            try:
                values[row] = _number(cell)
            except ValueError:
                raise self._not_a_number(column, row, cell) from None
        return values

    def matrix(self, columns: Sequence[str]) -> FloatArray:
        """Several columns as numbers, shape (rows, columns)."""
        return np.array([self.numbers(column) for column in columns], dtype=np.float64).reshape(len(columns), len(self)).T

    def _not_a_number(self, column: str, row: int, cell: Cell) -> DataError:
        hint = f"Mend the cell; a column that holds no numbers is left out of the file, or called `{NAME_COLUMN}` if it names the runs."
        if isinstance(cell, str) and re.fullmatch(r"\s*-?\d+,\d+\s*", cell):
            hint = f"Write decimals with a point, as {cell.strip().replace(',', '.')}."
        elif isinstance(cell, str) and re.fullmatch(r"\s*-?[\d.]+\s*%\s*", cell):
            hint = "Write shares out of 1, without a percent sign."
        return DataError(f"{self.name}: '{cell}' in column '{column}' of run {self.ids[row]} is no number.", hint)


def read_table(path: Path) -> Table:
    """Reads a CSV or Parquet file.

    Raises:
        DataError: the file is absent, empty or neither of the two; a column name is missing or repeated; there is no id column, or two; an id is missing.
    """
    if not path.is_file():
        raise DataError(
            f"{path} {'is a folder' if path.is_dir() else 'does not exist'}.", "Name a CSV or Parquet file with one row per run."
        )
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise DataError(f"{path} is empty.", "It should hold a header and one row per run.")
    return _checked(path.name, *(_read_parquet(path) if start == b"PAR1" else _read_csv(path)))


def table_of(frame: pl.DataFrame, name: str) -> Table:
    """A table that is in memory, with the checks of `read_table`.

    Raises:
        DataError: as `read_table`.
    """
    return _checked(name, frame.columns, [_typed(frame[column]) for column in frame.columns])


def nearest(name: str, known: Sequence[str]) -> str:
    """A remedy that names the nearest of what there is."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    shown = ", ".join(known[:20]) + (f" and {len(known) - 20} more" if len(known) > 20 else "")
    return f"Did you mean '{close[0]}'?" if close else f"There are: {shown}."


def named(ids: Sequence[str]) -> str:
    """Ids as a message names them: the first few, and how many more."""
    shown = ", ".join(ids[:MOST_NAMED])
    return shown if len(ids) <= MOST_NAMED else f"{shown} and {len(ids) - MOST_NAMED} more"


def listed(what: str, names: Sequence[str]) -> str:
    return f"{what}{'' if len(names) == 1 else 's'} {named(names)}"


def has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _read_csv(path: Path) -> tuple[list[str], list[list[Cell]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")  # line ends as they are: a quoted cell may hold some
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name} is not CSV in UTF-8, and not Parquet ({error.reason}).", "Save it as one of the two.") from error
    if "\0" in text:
        raise DataError(f"{path.name} is not CSV, and not Parquet: it holds bytes that are no text.", "Save it as one of the two.")
    try:
        rows = [(number, row) for number, row in _numbered(csv.reader(io.StringIO(text, newline=""), strict=True)) if row]
    except csv.Error as error:
        raise DataError(f"{path.name} is not valid CSV: {error}.", "Mend the quotes, or save it as Parquet.") from error
    if not rows:
        raise DataError(f"{path.name} is empty.", "It should hold a header and one row per run.")
    header = [column.strip() for column in rows[0][1]]
    separator = next((mark for mark in (";", "\t") if len(header) == 1 and mark in header[0]), None)
    if separator is not None:
        called = "tabs" if separator == "\t" else "semicolons"
        raise DataError(f"{path.name} separates columns by {called}.", "Save it with commas, or as Parquet.")
    for number, row in rows[1:]:
        if len(row) != len(header):
            raise DataError(f"{path.name}: line {number} has {len(row)} cells, the header has {len(header)}.", "Mend the line.")
    columns: list[list[Cell]] = [list(column) for column in zip(*(row for _, row in rows[1:]), strict=True)] or [[] for _ in header]
    return header, columns


def _numbered(reader: Any) -> list[tuple[int, list[str]]]:
    """Rows with the line of the file at which each ends; a quoted cell may hold several."""
    return [(reader.line_num, row) for row in reader]


def _read_parquet(path: Path) -> tuple[list[str], list[list[Cell]]]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path.name} cannot be read as Parquet: {' '.join(str(error).split())}.", "Write it again, or as CSV.") from error
    return frame.columns, [_typed(frame[column]) for column in frame.columns]


def _typed(series: pl.Series) -> list[Cell]:
    if series.dtype.is_numeric() or series.dtype == pl.Boolean:
        return [None if value is None else str(value) if isinstance(value, int) else float(value) for value in series.to_list()]
    return [None if value is None else str(value) for value in series.to_list()]


def _checked(name: str, header: Sequence[str], columns: Sequence[Sequence[Cell]]) -> Table:
    unnamed = [place for place, column in enumerate(header, start=1) if not column or re.fullmatch(r"Unnamed: \d+", column)]
    if unnamed:
        hint = "Call it `index` if it identifies runs; otherwise leave it out: it would be a domain or a metric without a name."
        raise DataError(f"{name}: column {unnamed[0]} has no name.", hint)
    repeated = sorted({column for column in header if list(header).count(column) > 1})
    if repeated:
        raise DataError(f"{name}: column '{repeated[0]}' occurs twice.", "Give every column a name of its own.")
    found = [column for column in header if column in ID_COLUMNS]
    if not found:
        listed = ", ".join(f"`{column}`" for column in ID_COLUMNS[:-1])
        close = [column for column in header if column.lower() in (*ID_COLUMNS, "id", "runid", "run id", "run_name")]
        hint = (
            f"Call '{close[0]}' `run`."
            if close
            else f"Its first columns are {', '.join(header[:3])}; rows are joined by id, never by position."
        )
        raise DataError(f"{name} has no column {listed} or `{ID_COLUMNS[-1]}` that identifies runs.", hint)
    if len(found) > 1:
        listed = " and ".join(f"`{column}`" for column in found)
        raise DataError(f"{name} has the columns {listed}, either of which could identify runs.", "Keep the one that both tables share.")
    table = Table(name, dict(zip(header, columns, strict=True)), found[0])
    absent = [row for row, text in enumerate(table.ids, start=1) if text.lower() in MISSING]
    if absent:
        raise DataError(f"{name}: row {absent[0]} has no id in column '{found[0]}'.", "Give every run an id.")
    if not len(table):
        raise DataError(f"{name} holds a header and no runs.", "It should hold one row per run.")
    return table


def _text(cell: Cell) -> str:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return repr(cell) if isinstance(cell, float) else cell


def _number(cell: Cell) -> float:
    if cell is None:
        return math.nan
    if isinstance(cell, float):
        return cell
    return math.nan if cell.strip().lower() in MISSING else float(cell)
