"""What the command line shows fits 80 columns and leaves nothing out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from mixopt.groups.rules import weights_per_level
from mixopt.terminal import answer_table, levels_table, quantity, rows_table


def shown(table: Table, width: int = 80) -> list[str]:
    """Lines of a table on a terminal of `width` columns."""
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def answer(names: list[str]) -> Table:
    """A table with the widest numbers there are."""
    shares = dict.fromkeys(names, 1 / len(names))
    baselines = {"natural": dict.fromkeys(names, 1.0), "uniform": shares, "UniMax": shares}
    epochs = dict.fromkeys(names, 16.0)
    return answer_table(dict.fromkeys(names, 1.0), baselines, epochs, dict.fromkeys(names, (0.1, 1.0)), epochs)


def test_names_of_domains_are_whole_at_80_columns() -> None:
    names = ["javascript", "docstrings", "web_crawl_en", "a-quite-long-domain-name"]
    lines = shown(answer(names))
    assert all(len(line) <= 80 for line in lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in "".join(lines)
    for name in names[:3]:
        (row,) = [line for line in lines if name in line]
        assert "100.0" in row
        assert "10.0\N{EN DASH}100.0" in row
        assert "16.00 cap" in row
    # A longer name goes on in the next line.
    assert "a-quite-long-domain-name" in "".join(line[:20].strip() for line in lines)


def test_brackets_are_no_markup() -> None:
    """Files are called so, and the words of a failed job may hold a path in brackets."""
    lines = shown(rows_table("Tokens in /data/[/old]", ["file", "said"], [["part[red].jsonl:7", "no such file [/usr/lib]"]]), width=80)
    assert lines[0].strip() == "Tokens in /data/[/old]"
    assert any("part[red].jsonl:7" in line and "[/usr/lib]" in line for line in lines)


def test_rows_keep_every_character_however_narrow() -> None:
    lines = shown(rows_table("Trials", ["trial", "source"], [["0123456789abcdef", "trained/nano/150000"]]), width=30)
    text = "".join("".join(line.split()) for line in lines)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert set("0123456789abcdef") <= set(text)


@pytest.mark.parametrize(("value", "text"), [(950, "950"), (12_345, "12.3K"), (4.56e6, "4.56M"), (30e9, "30B"), (0.25, "0.25")])
def test_quantities_read_as_people_write_them(value: float, text: str) -> None:
    assert quantity(value) == text


def test_weights_per_level_stand_under_their_group() -> None:
    paths = {"news": "web/news/high", "blogs": "web", "law": ""}
    weights = {"news": 0.3, "blogs": 0.1, "law": 0.6}
    lines = [line.rstrip() for line in shown(levels_table(weights_per_level(paths, weights, weights), ["source", "topic", "quality"]))]
    assert lines[0] == "Weights per level (share of tokens, %)"
    assert "source / topic / quality" in "".join(lines)
    assert [line.split() for line in lines if "web" in line] == [
        ["web", "40.0", "40.0", "40.0"],
        ["web/news", "30.0", "75.0", "30.0"],
        ["web/news/high", "30.0", "100.0", "30.0"],
    ]
    assert [line.index("web") for line in lines if "web" in line] == [1, 3, 5]
