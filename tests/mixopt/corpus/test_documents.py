"""Reading documents: every format, and a telling error for every way a file can be wrong."""

import gzip
import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixopt.corpus.documents import Pair, estimated_text_bytes, read_documents, read_pairs, resolve_files
from mixopt.errors import ConfigError, DataError, MixoptError

OWNER = "domain 'code'"
TEXTS = ["one\ntwo", "naïve 数据", "", '{"json": "inside"}']


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return path


def parquet(path: Path, columns: dict[str, list[object]]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def texts(path: Path, column: str = "text") -> list[str]:
    return [document.text for document in read_documents([path], column, OWNER)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.parquet", "[a] b*.jsonl", "__a.JSONL"])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, {"text": TEXTS, "extra": [1, 2, 3, 4]})
    else:
        jsonl(path, [{"extra": index, "text": text} for index, text in enumerate(TEXTS)])
    documents = list(read_documents([path], "text", OWNER))
    assert [document.text for document in documents] == TEXTS
    assert documents[1].source == f"{name}:2"


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    for name in (".hidden.txt", "__b.md", "[c].rst"):
        (tmp_path / name).write_text(f"first\n\nsecond of {name}\n", encoding="utf-8")
        assert texts(tmp_path / name) == [f"first\n\nsecond of {name}\n"]


def test_files_are_read_in_the_order_given_each_once(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        jsonl(tmp_path / f"{name}.jsonl", [{"text": name}])
    files = resolve_files([str(tmp_path / "c.jsonl"), str(tmp_path / "*.jsonl")], OWNER)
    assert [path.name for path in files] == ["c.jsonl", "a.jsonl", "b.jsonl"]
    assert [document.text for document in read_documents(files, "text", OWNER)] == ["c", "a", "b"]


def test_a_recursive_pattern_finds_nested_files(tmp_path: Path) -> None:
    (tmp_path / "x" / "y").mkdir(parents=True)
    jsonl(tmp_path / "x" / "y" / "a.jsonl", [{"text": "deep"}])
    assert [path.name for path in resolve_files([str(tmp_path / "**" / "*.jsonl")], OWNER)] == ["a.jsonl"]


def test_pairs_come_from_two_columns(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"answer": ["A", "B"], "question": ["a?", "b?"]})
    assert list(read_pairs([path], "question", "answer", OWNER)) == [Pair("a?", "A"), Pair("b?", "B")]


def test_pairs_cannot_come_from_text_files(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("text")
    with pytest.raises(ConfigError, match="no columns"):
        list(read_pairs([tmp_path / "t.txt"], "prompt", "completion", OWNER))


@pytest.mark.parametrize(
    ("pattern", "kind", "message", "hint"),
    [
        ("corpus.jsnl", DataError, "does not exist", "corpus.jsonl"),
        ("none/*.jsonl", DataError, "matches no file", "Mend the pattern"),
        ("folder", ConfigError, "is a folder", "folder/*.jsonl"),
        ("data.csv", ConfigError, "unsupported suffix '.csv'", "parquet"),
        ("*.csv", ConfigError, "unsupported suffix '.csv'", "parquet"),
    ],
)
def test_paths_that_lead_nowhere_are_told(tmp_path: Path, pattern: str, kind: type[MixoptError], message: str, hint: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "data.csv").write_text("text\n")
    jsonl(tmp_path / "corpus.jsonl", [{"text": "a"}])
    with pytest.raises(kind) as caught:
        resolve_files([str(tmp_path / pattern)], OWNER)
    assert message in caught.value.message
    assert OWNER in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_wrong_column_names_the_nearest(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("parquet"):
        parquet(path, {"texts": ["a"], "id": [1]})
    else:
        jsonl(path, [{"texts": "a", "id": 1}])
    with pytest.raises(ConfigError) as caught:
        texts(path)
    assert "no column 'text'" in caught.value.message
    assert caught.value.hint == "Did you mean 'texts'?"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": 3}\n', "Row 2 .* the int 3 in column 'text'"),
        (b'{"text": "a"}\n{"text": null}\n', "Row 2 .* nothing in column 'text'"),
        (b'{"text": "a"}\n{"other": "b"}\n', "Row 2 .* nothing in column 'text'"),
        (b'{"text": ["a"]}\n', "Row 1 .* the list .* in column 'text'"),
        (b'{"text": "a"}\n{"text": \n', "cannot be read"),
        (b'{"text": "\xff"}\n', "cannot be read: .*utf-8.* Convert the file to UTF-8"),
    ],
)
def test_broken_rows_are_told_with_file_and_owner(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        texts(path)
    assert str(path) in caught.value.message
    assert OWNER in caught.value.message


def test_numbers_in_parquet_are_not_text(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Row 1 .* the int 1 in"):
        texts(parquet(tmp_path / "a.parquet", {"text": [1, 2]}))


@pytest.mark.parametrize(("name", "content"), [("a.parquet", b"PAR1 no"), ("a.txt", b"\xff\xfe"), ("a.jsonl.gz", b"\x1f\x8b\x08\x00")])
def test_files_of_broken_encoding_are_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match="cannot be read"):
        texts(tmp_path / name)


def test_empty_files_hold_no_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("")
    parquet(tmp_path / "a.parquet", {"text": pa.array([], pa.string())})  # type: ignore[dict-item]
    assert texts(tmp_path / "a.jsonl") == []
    assert texts(tmp_path / "a.parquet") == []


def test_reading_local_files_asks_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise OSError("no network")

    asked: list[int] = []
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert texts(jsonl(tmp_path / "a.jsonl", [{"text": "a"}])) == ["a"]
    assert texts(parquet(tmp_path / "a.parquet", {"text": ["a"]})) == ["a"]
    assert asked == []


def test_text_size_is_estimated_unless_compression_hides_it(tmp_path: Path) -> None:
    words = [f"document {index} " * 50 for index in range(200)]
    size = sum(map(len, words))
    assert estimated_text_bytes([parquet(tmp_path / "a.parquet", {"text": words})], "text") == pytest.approx(size, rel=0.1)  # type: ignore[dict-item]
    assert estimated_text_bytes([jsonl(tmp_path / "a.jsonl", [{"text": word} for word in words])], "text") == pytest.approx(size, rel=0.1)
    assert estimated_text_bytes([jsonl(tmp_path / "a.jsonl.gz", [{"text": "a"}])], "text") is None
