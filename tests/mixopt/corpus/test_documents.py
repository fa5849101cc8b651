"""Reading documents: every format, and a telling error for every way a file can be wrong."""

import gzip
import hashlib
import json
import socket
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixopt.corpus.documents import Limits, Pair, estimated_text_bytes, read_documents, read_pairs
from mixopt.corpus.files import Url, resolve_files
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


def test_text_size_is_estimated_unless_an_address_hides_it(tmp_path: Path) -> None:
    words = [f"document {index} " * 50 for index in range(200)]
    size = sum(map(len, words))
    assert estimated_text_bytes([parquet(tmp_path / "a.parquet", {"text": words})], "text") == pytest.approx(size, rel=0.1)  # type: ignore[dict-item]
    assert estimated_text_bytes([jsonl(tmp_path / "a.jsonl", [{"text": word} for word in words])], "text") == pytest.approx(size, rel=0.1)
    for name in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl.gz", "d.jsonl.gz"):
        jsonl(tmp_path / name, [{"text": word} for word in words])
    compressed = [tmp_path / f"{letter}.jsonl.gz" for letter in "abcd"]
    assert estimated_text_bytes(compressed, "text") == pytest.approx(4 * size, rel=0.1)
    assert estimated_text_bytes([Url("memory://a.jsonl")], "text") is None


def compressed(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content))
    elif path.suffix == ".zst":
        stream = pa.BufferOutputStream()
        with pa.CompressedOutputStream(stream, "zstd") as writer:
            writer.write(content)
        path.write_bytes(stream.getvalue().to_pybytes())
    else:
        path.write_bytes(content)
    return path


LINES = "".join(json.dumps({"n": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)).encode()
ARRAY = json.dumps([{"n": n, "text": text} for n, text in enumerate(TEXTS)], indent=1).encode()


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.json.zst", "a.jsonl", "a.jsonl.zst", "a.JSONL.ZST"])
@pytest.mark.parametrize(
    "content", [LINES, ARRAY, b"\xef\xbb\xbf" + LINES, b"\n" + LINES + b"\n \n"], ids=["lines", "array", "mark", "blank"]
)
def test_json_is_lines_or_an_array_compressed_or_not(tmp_path: Path, name: str, content: bytes) -> None:
    assert texts(compressed(tmp_path / name.replace("ZST", "zst"), content).rename(tmp_path / name)) == TEXTS


def test_one_object_over_several_lines_is_one_document(tmp_path: Path) -> None:
    assert texts(compressed(tmp_path / "a.json", b'{\n "text": "one"\n}\n')) == ["one"]


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow_files_and_streams_are_read(tmp_path: Path, kind: str) -> None:
    table = pa.table({"n": [1, 2, 3, 4], "text": TEXTS})
    path = tmp_path / "a.arrow"
    with path.open("wb") as file, (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert texts(path) == TEXTS
    with pytest.raises(ConfigError, match=r"a\.arrow of domain 'code' has no column 'txt'. Did you mean 'text'"):
        texts(path, "txt")
    path.write_bytes(path.read_bytes()[:-60])
    with pytest.raises(DataError, match=r"a\.arrow of domain 'code' cannot be read"):
        texts(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.zst", "a.md.zst", "a.rst.gz"])
def test_compressed_text_files_are_documents(tmp_path: Path, name: str) -> None:
    assert texts(compressed(tmp_path / name, "naïve\n数据\n".encode())) == ["naïve\n数据\n"]


@pytest.mark.parametrize("name", ["a.parquet.gz", "a.csv.gz", "a.zst", "a", "json"])
def test_other_suffixes_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match="unsupported suffix"):
        resolve_files([str(tmp_path / name)], OWNER)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.txt.gz", "a.txt.zst"])
def test_a_compressed_file_that_ends_early_is_told_not_shortened(tmp_path: Path, name: str) -> None:
    content = b"".join(json.dumps({"text": hashlib.sha256(bytes([n])).hexdigest()}).encode() + b"\n" for n in range(250))
    path = compressed(tmp_path / name, content)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match=rf"{name} of domain 'code' cannot be read: .*(ended before|Truncated)"):
        texts(path)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_files_of_several_compressed_parts_are_read_to_their_end(tmp_path: Path, name: str) -> None:
    """As parallel compressors and `cat` leave them; readers that stop after the first part would shorten a domain."""
    path = compressed(tmp_path / name, LINES)
    path.write_bytes(path.read_bytes() * 3)
    assert texts(path) == TEXTS * 3


def test_a_number_late_in_a_large_file_is_no_text(tmp_path: Path) -> None:
    """`datasets` takes a column's type from the first ten megabytes, and would make this number the text "3"."""
    path = tmp_path / "a.jsonl"
    with path.open("w") as file:
        for _ in range(110):
            file.write(json.dumps({"text": "x" * 100_000}) + "\n")
        file.write('{"text": 3}\n')
    with pytest.raises(DataError, match=r"Row 111 of .*a\.jsonl .* has the int 3"):
        texts(path)


def test_texts_that_look_like_dates_stay_text(tmp_path: Path) -> None:
    assert texts(jsonl(tmp_path / "a.jsonl", [{"text": "2020-01-01 00:00:00"}])) == ["2020-01-01 00:00:00"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n["b"]\n', r"Row 2 of .* is \['b'\], not an object"),
        (b'["a", "b"]', "Row 1 of .* is 'a', not an object"),
        (b'{"text": "a"}\n{"text": "b"\n', "line 2 is broken JSON"),
        (b'{"text": "a"}\n\n{"text": "\xff"}\n', "line 3"),
        (b'{"text": "\\ud800"}\n', "Row 1 of .* half of a surrogate pair"),
        (b'[{"text": "a"},', "the array is broken JSON"),
    ],
)
def test_broken_json_is_told_with_its_line(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        texts(compressed(tmp_path / "a.jsonl", content))


@pytest.mark.parametrize(
    ("limits", "count"),
    [(Limits(), 9), (Limits(documents=4), 4), (Limits(documents=99), 9), (Limits(bytes=30), 3), (Limits(bytes=29), 2), (Limits(2, 30), 2)],
)
def test_limits_take_the_first_documents_across_files(tmp_path: Path, limits: Limits, count: int) -> None:
    """Documents of ten bytes; one that would go beyond the limit is left out, and all after it."""
    files = [jsonl(tmp_path / f"{part}.jsonl", [{"text": f"ünique {part}{n}"[:9]} for n in range(3)]) for part in range(3)]
    read = [document.source for document in read_documents(files, "text", OWNER, limits)]
    assert read == [f"{part}.jsonl:{n + 1}" for part in range(3) for n in range(3)][:count]


def test_a_limit_asks_for_no_document_beyond_it(tmp_path: Path) -> None:
    """The row after it is broken, and nobody looks."""
    path = compressed(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": 1}\n')
    assert [document.text for document in read_documents([path], "text", OWNER, Limits(documents=1))] == ["a"]
