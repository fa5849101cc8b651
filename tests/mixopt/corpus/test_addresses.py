"""Documents at addresses: found, told from what they were, read like local files, and every trouble said."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mixopt.corpus.documents import Pair, read_documents, read_pairs
from mixopt.corpus.files import Url, identity, resolve_files
from mixopt.errors import ConfigError, DataError, MixoptError

OWNER = "domain 'web'"
TEXTS = ["one\ntwo", "naïve 数据", "three"]
LINES = "".join(json.dumps({"q": "?", "text": text}, ensure_ascii=False) + "\n" for text in TEXTS).encode()


@pytest.fixture
def memory() -> Iterator[Any]:
    """fsspec's store in this process, empty before and after."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


class Tagging(http.server.SimpleHTTPRequestHandler):
    """Gives an entity tag, as object stores do, unless the file is in `untagged`."""

    def end_headers(self) -> None:
        path = Path(self.translate_path(self.path))
        if path.is_file() and "untagged" not in path.parts:
            self.send_header("ETag", f'"{hash(path.read_bytes()) & 0xFFFFFFFF:x}"')
        super().end_headers()

    def send_header(self, keyword: str, value: str) -> None:
        if not (keyword == "Last-Modified" and "untagged" in self.path):
            super().send_header(keyword, value)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the loopback address that serves it."""
    folder = tmp_path / "served"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Tagging, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def texts(address: str, column: str = "text") -> list[str]:
    return [document.text for document in read_documents(resolve_files([address], OWNER), column, OWNER)]


def every_format(folder: Path) -> list[str]:
    """One file per format; returns their names."""
    (folder / "a.jsonl").write_bytes(LINES)
    (folder / "b.json").write_text(json.dumps([{"text": text} for text in TEXTS]))
    table = pa.table({"n": [1, 2, 3], "text": TEXTS})
    pq.write_table(table, folder / "c.parquet")
    with (folder / "d.arrow").open("wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    with pa.CompressedOutputStream(str(folder / "e.jsonl.zst"), "zstd") as stream:
        stream.write(LINES)
    return sorted(path.name for path in folder.iterdir())


def test_every_format_is_read_from_a_store_as_from_disk(memory: Any, tmp_path: Path) -> None:
    for name in every_format(tmp_path):
        memory.pipe(f"/bucket/{name}", (tmp_path / name).read_bytes())
        assert texts(f"memory://bucket/{name}") == TEXTS, name
    memory.pipe("/bucket/t.txt", b"a text")
    assert texts("memory://bucket/t.txt") == ["a text"]


def test_every_format_is_read_from_a_web_server(web: tuple[Path, str]) -> None:
    folder, address = web
    for name in every_format(folder):
        assert texts(f"{address}/{name}") == TEXTS, name
    assert texts(f"{address}/a.jsonl?signature=secret") == TEXTS


def test_pairs_come_from_addresses_too(memory: Any) -> None:
    memory.pipe("/t/pairs.jsonl", LINES)
    assert next(read_pairs(resolve_files(["memory://t/pairs.jsonl"], OWNER), "q", "text", OWNER)) == Pair("?", TEXTS[0])


def test_patterns_match_in_stores_sorted_and_each_once(memory: Any) -> None:
    for name in ("b", "a", "c"):
        memory.pipe(f"/bucket/deep/{name}.jsonl", LINES)
    memory.pipe("/bucket/deep/readme.csv", b"no")
    files = resolve_files(["memory://bucket/deep/c.jsonl", "memory://bucket/**/*.jsonl"], OWNER)
    assert [file.name for file in files] == ["c.jsonl", "a.jsonl", "b.jsonl"]
    assert all(str(file).startswith("memory://") for file in files)


def test_patterns_match_in_listings_of_web_servers(web: tuple[Path, str]) -> None:
    folder, address = web
    for name in ("b", "a"):
        (folder / f"{name}.jsonl").write_bytes(LINES)
    assert [file.name for file in resolve_files([f"{address}/*.jsonl"], OWNER)] == ["a.jsonl", "b.jsonl"]


def test_a_file_address_is_a_file_of_this_machine(tmp_path: Path) -> None:
    """With the identity of one, so that writing it this way prepares nothing anew."""
    (tmp_path / "with space.jsonl").write_bytes(LINES)
    (file,) = resolve_files([(tmp_path / "with space.jsonl").as_uri()], OWNER)
    assert file == tmp_path / "with space.jsonl"


def test_a_change_is_seen_by_tag_or_time(memory: Any, web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "a.jsonl").write_bytes(LINES)
    os.utime(folder / "a.jsonl", (1e9, 1e9))

    def both() -> list[list[Any]]:
        return [identity(file) for file in resolve_files([f"{address}/a.jsonl", "memory://b/a.jsonl"], OWNER)]

    memory.pipe("/b/a.jsonl", LINES)
    before = both()
    assert both() == before
    assert before[0][1] == before[1][1] == len(LINES)
    (folder / "a.jsonl").write_bytes(LINES[::-1])
    os.utime(folder / "a.jsonl", (1e9, 1e9))
    memory.pipe("/b/a.jsonl", LINES[::-1])
    after = both()
    assert after[0] != before[0]
    assert after[1] != before[1]


def test_a_server_without_tag_or_time_is_known_as_one(web: tuple[Path, str]) -> None:
    folder, address = web
    (folder / "untagged").mkdir()
    (folder / "untagged" / "a.jsonl").write_bytes(LINES)
    (file,) = resolve_files([f"{address}/untagged/a.jsonl"], OWNER)
    assert isinstance(file, Url)
    assert (file.size, file.version) == (len(LINES), "")


@pytest.mark.parametrize(
    ("address", "kind", "message", "hint"),
    [
        ("s3://bucket/a.jsonl", ConfigError, "Nothing here reads s3:// .* its driver is not installed", "pip install s3fs"),
        ("gs://bucket/*.jsonl", ConfigError, "Nothing here reads gs://", "pip install gcsfs"),
        ("abfs://bucket/a.jsonl", ConfigError, "Nothing here reads abfs://", "pip install adlfs"),
        ("nowhere://bucket/a.jsonl", ConfigError, "Nothing reads nowhere://", "another file system of fsspec"),
        ("memory://bucket/none.jsonl", DataError, r"none\.jsonl of domain 'web' does not exist", "Mend the address"),
        ("memory://bucket/*.parquet", DataError, r"\*\.parquet of domain 'web' matches no file", "Mend the pattern"),
        ("memory://bucket", ConfigError, "memory://bucket of domain 'web' is a folder", r"memory://bucket/*.jsonl"),
        ("memory://bucket/a.csv", ConfigError, r"a\.csv of domain 'web' has the unsupported suffix", "jsonl"),
        ("http://127.0.0.1:9/a.jsonl", DataError, r"http://127.0.0.1:9/a\.jsonl of domain 'web' cannot be reached: .*onnect", "network"),
    ],
)
def test_addresses_that_lead_nowhere_are_told(memory: Any, address: str, kind: type[MixoptError], message: str, hint: str) -> None:
    memory.pipe("/bucket/a.jsonl", LINES)
    memory.pipe("/bucket/a.csv", LINES)
    with pytest.raises(kind, match=message) as caught:
        resolve_files([address], OWNER)
    assert hint in caught.value.hint
    assert OWNER in caught.value.message


def test_what_is_missing_at_a_server_is_told_without_its_signature(web: tuple[Path, str]) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl of domain 'web' does not exist") as caught:
        resolve_files([f"{web[1]}/none.jsonl?signature=secret"], OWNER)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message"), [(403, "cannot be reached: HTTP 403"), (503, "cannot be reached: HTTP 503"), (410, "does not exist")]
)
def test_what_a_server_refuses_is_not_called_missing(status: int, message: str) -> None:
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            resolve_files([f"http://127.0.0.1:{server.server_port}/a.jsonl?signature=secret"], OWNER)
    finally:
        server.shutdown()
        server.server_close()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b'{"text": 1}\n', DataError, "Row 1 of memory://.*a.jsonl .* the int 1"),
        (b'{"texts": "x"}\n', ConfigError, "memory://.*a.jsonl of domain 'web' has no column 'text'"),
        (b"\xff", DataError, "memory://.*a.jsonl of domain 'web' cannot be read: .*utf-8"),
    ],
)
def test_broken_files_at_addresses_are_told(memory: Any, content: bytes, kind: type[MixoptError], message: str) -> None:
    memory.pipe("/bucket/a.jsonl", content)
    with pytest.raises(kind, match=message):
        texts("memory://bucket/a.jsonl")
