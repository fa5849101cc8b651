"""One table as people write it: every dialect that is read, and every one that is refused, with what the message says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixopt.errors import DataError
from mixopt.fitting.tables import Table, named, nearest, read_table, table_of

Write = Callable[[str, str | bytes], Path]


@pytest.mark.parametrize("id_column", ["run", "run_id", "index"])
def test_three_names_identify_runs(id_column: str, write: Write) -> None:
    table = read_table(write("t.csv", f"web,{id_column},code\n.5,a,.5\n1,b,0\n"))
    assert (table.id_column, table.ids, table.contents) == (id_column, ("a", "b"), ("web", "code"))
    np.testing.assert_array_equal(table.matrix(("code", "web")), [[0.5, 0.5], [0, 1]])


def test_columns_of_sources_and_names_are_no_contents(write: Write) -> None:
    table = read_table(write("t.csv", "run,name,size,tokens,seed,cost,web\na,first,70M,3B,0,1e18,1\n"))
    assert table.contents == ("web",)


@pytest.mark.parametrize("written", ["7", " 7 ", "7.0", "7.000"])
def test_a_number_is_one_id_however_it_is_written(written: str, write: Write) -> None:
    table = read_table(write("t.csv", f"run,web\n{written},1\n"))
    assert table.ids == ("7",)
    assert table.given_ids == (written,)


@pytest.mark.parametrize("text", ["007", "1e3", "7.5", "a.0", "-3", "1,000"])
def test_other_ids_stay_as_they_are(text: str, write: Write) -> None:
    assert read_table(write("t.csv", f'run,web\n"{text}",1\n')).ids == (text,)


def test_ids_of_csv_and_parquet_meet(tmp_path: Path, write: Write) -> None:
    frame = pl.DataFrame({"index": [7, 8], "web": [0.25, 1.0]})
    frame.write_parquet(tmp_path / "t.parquet")
    frame.with_columns(pl.col("index").cast(pl.Float64)).write_parquet(tmp_path / "floats.parquet")
    text = read_table(write("t.csv", "index,web\n7,0.25\n8,1.0\n"))
    for name in ("t.parquet", "floats.parquet"):
        table = read_table(tmp_path / name)
        assert table.ids == text.ids
        np.testing.assert_array_equal(table.numbers("web"), text.numbers("web"))


def test_a_file_is_told_by_its_content_and_not_its_name(tmp_path: Path) -> None:
    pl.DataFrame({"run": ["a"], "web": [1.0]}).write_parquet(tmp_path / "really.csv")
    assert read_table(tmp_path / "really.csv").ids == ("a",)


def test_an_excel_export_is_read(write: Write) -> None:
    """A byte order mark, carriage returns, quotes around commas, blank lines."""
    content = b'\xef\xbb\xbfrun,"train, web/pile-cc",code\r\n\r\n"a, first",.25,.75\r\n'
    table = read_table(write("t.csv", content))
    assert table.contents == ("train, web/pile-cc", "code")
    assert table.ids == ("a, first",)
    assert table.numbers("code").tolist() == [0.75]


def test_long_column_names_are_kept(write: Write) -> None:
    name = "metric/the_pile_pile_cc_val/bits_per_byte"
    assert read_table(write("t.csv", f"index,{name}\n1,2.5\n")).contents == (name,)


@pytest.mark.parametrize("text", ["", "NA", "n/a", "NaN", "null", "None"])
def test_words_for_no_value(text: str, write: Write) -> None:
    assert np.isnan(read_table(write("t.csv", f"run,loss\na,{text}\n")).numbers("loss")[0])


def test_missing_cells_of_parquet_are_no_values(tmp_path: Path) -> None:
    pl.DataFrame({"run": ["a", "b"], "loss": [None, 1.5]}).write_parquet(tmp_path / "t.parquet")
    assert str(read_table(tmp_path / "t.parquet").numbers("loss").tolist()) == "[nan, 1.5]"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=8))
def test_numbers_are_read_exactly(values: list[float], write: Write) -> None:
    rows = "".join(f"r{row},{value!r}\n" for row, value in enumerate(values))
    assert read_table(write("t.csv", "run,loss\n" + rows)).numbers("loss").tolist() == values


@pytest.mark.parametrize(
    ("content", "message", "hint"),
    [
        ("", "t.csv is empty", "a header and one row per run"),
        ("\n\n", "t.csv is empty", "a header and one row per run"),
        ("run,web\n", "t.csv holds a header and no runs", "one row per run"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "not CSV in UTF-8, and not Parquet", "Save it as one of the two"),
        (b"run,web\na\0b,1\n", "holds bytes that are no text", "Save it as one of the two"),
        (b"PAR1 and then nothing that it should be", "cannot be read as Parquet", "Write it again"),
        ('run,web\n"a,1\n', "not valid CSV", "Mend the quotes"),
        ("run;web\na;1\n", "separates columns by semicolons", "with commas"),
        ("run\tweb\na\t1\n", "separates columns by tabs", "with commas"),
        ("run,web\na,1\nb,1,2\n", "line 3 has 3 cells, the header has 2", "Mend the line"),
        ('run,web\n"a\nb",1\nc\n', "line 4 has 1 cells, the header has 2", "Mend the line"),
        ("web,code\n.5,.5\n", "t.csv has no column `run`, `run_id` or `index`", "Its first columns are web, code; rows are joined by id"),
        ("ID,web\na,1\n", "has no column `run`, `run_id` or `index`", "Call 'ID' `run`"),
        ("run,index,web\na,0,1\n", "has the columns `run` and `index`", "Keep the one that both tables share"),
        (",web\n0,1\n", "column 1 has no name", "Call it `index`"),
        ("run,Unnamed: 1\na,1\n", "column 2 has no name", "Call it `index`"),
        ("run,web,web\na,.5,.5\n", "column 'web' occurs twice", "a name of its own"),
        ("run,web\na,1\n,1\n", "row 2 has no id in column 'run'", "Give every run an id"),
        ("run,web\nNA,1\n", "row 1 has no id in column 'run'", "Give every run an id"),
    ],
)
def test_what_is_no_table_of_runs(content: str | bytes, message: str, hint: str, write: Write) -> None:
    with pytest.raises(DataError) as failed:
        read_table(write("t.csv", content))
    assert message in failed.value.message
    assert hint in failed.value.hint


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv does not exist"):
        read_table(tmp_path / "absent.csv")
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path)


@pytest.mark.parametrize(
    ("cell", "hint"),
    [("high", "Mend the cell"), ('"0,5"', "Write decimals with a point, as 0.5"), ("50%", "Write shares out of 1")],
)
def test_text_among_numbers_is_named_with_its_run(cell: str, hint: str, write: Write) -> None:
    with pytest.raises(DataError) as failed:
        read_table(write("t.csv", f"run,web\na,1\nb,{cell}\n")).numbers("web")
    text = cell.strip('"')
    assert failed.value.message == f"t.csv: '{text}' in column 'web' of run b is no number."
    assert hint in failed.value.hint


def test_a_frame_has_the_checks_of_a_file() -> None:
    with pytest.raises(DataError, match=r"given has no column `run`"):
        table_of(pl.DataFrame({"web": [1.0]}), "given")
    table = table_of(pl.DataFrame({"run": [1, 2], "loss": ["high", "2"]}), "given")
    assert isinstance(table, Table)
    with pytest.raises(DataError, match="'high' in column 'loss' of run 1"):
        table.numbers("loss")


def test_messages_name_a_few_and_count_the_others() -> None:
    assert named(["a", "b"]) == "a, b"
    assert named([*"abcdefg"]) == "a, b, c, d, e and 2 more"
    assert nearest("boks", ("web", "books")) == "Did you mean 'books'?"
    assert nearest("zzz", ("web", "books")) == "There are: web, books."
    assert nearest("zzz", [f"d{number}" for number in range(22)]).endswith("and 2 more.")
