"""Prepared corpora outlive versions of mixopt: the same documents give the same content hashes, token files and specifications as in part 1.

A content hash is part of every trial's identity; if one of these numbers moves, every search over a prepared corpus starts anew.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from mixopt.corpus.splits import Side
from mixopt.experiment_file import parse_experiment
from workers.tokens.files import digest_of
from workers.tokens.jobs import Job
from workers.tokens.prepare import prepare

# Made by the code of part 1, which read all of these through `datasets`: first digits of content hash and of the file's SHA-256, tokens, documents.
TOKENIZER = "50ae257f5105035f334b092622d840ae88bcd1753c55c8a7475af099bf9b77ee"
FILES = {
    "rows.train": ("65f1e8957eeedabc", 2059, 98, "f51d63f579d51bf9"),
    "rows.valid": ("6e3283456a387dcb", 442, 22, "e4a0e1355fe3ad5f"),
    "text.train": ("97e3c47941e8a001", 363, 2, "143d7200beecd568"),
    "text.valid": ("9c1b17d12104ba04", 721, 1, "3355ffc399a36408"),
    "target-qa": ("617e28a534e5f094", 977, 29, "69f4c00ba717957b"),
}


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": n, "text": text}, ensure_ascii=bool(n % 2)) + "\n" for n, text in enumerate(texts)).encode()


def write_corpus(folder: Path) -> None:
    texts = [f'Text {n}: naïve 数据 \U0001f469\u200d\U0001f680 \\ " \t / {"word " * (n % 17)}\n' for n in range(120)]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines(texts[:40]) + b"\n")
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(lines(texts[40:80])))
    pq.write_table(pa.table({"text": texts[80:], "n": list(range(40))}), folder / "c.parquet")
    (folder / "d.txt").write_bytes("line one\r\nline two\rthree\né end".encode() * 20)
    (folder / "e.txt").write_bytes(b"other\r\n" * 90)
    (folder / "g.txt").write_bytes(b"")
    (folder / "v.txt").write_bytes("held out naïve words\r\n".encode() * 60)
    (folder / "t.jsonl").write_text("".join(json.dumps({"q": f"q{n}", "a": "a " * n}) + "\n" for n in range(30)))


def test_documents_of_every_old_format_give_the_files_of_part_1(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    raw = {
        "name": "golden",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [
            {"name": "rows", "path": ["a.jsonl", "b.jsonl.gz", "c.parquet"], "tokens": "1B", "held_out": 0.2},
            {"name": "text", "path": "[deg].txt", "tokens": "1B", "valid": "v.txt"},
        ],
        "targets": [{"name": "qa", "path": "t.jsonl", "prompt_column": "q", "completion_column": "a"}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"window": 64, "tokens_per_step": 1024},
    }
    manifest = prepare(parse_experiment(raw, tmp_path))
    assert manifest.tokenizer_hash == TOKENIZER
    files = {f"{name}.{side}": getattr(pair, side) for name, pair in manifest.domains.items() for side in ("train", "valid")}
    files["target-qa"] = manifest.targets["qa"].file
    assert {
        name: (file.content_hash[:16], file.tokens, file.documents, hashlib.sha256(manifest.absolute(file).read_bytes()).hexdigest()[:16])
        for name, file in files.items()
    } == FILES


class Unchanging(type(Path())):  # type: ignore[misc]
    """A path whose file has a fixed size and time."""

    def stat(self, **_: object) -> object:  # type: ignore[override]
        return type("Stat", (), {"st_size": 4839, "st_mtime_ns": 1795553119484896623})()


def test_the_specification_of_part_1_names_the_same_file() -> None:
    """New keys come in only where they say something, so that existing token files are found."""
    job = Job("domain 'rows'", "rows.train", "text", (Unchanging("/data/a.jsonl"),), ("text",), Side.TRAIN, 0.2)
    specification = job.specification("hash")
    assert specification == {
        "version": 1,
        "kind": "text",
        "files": [["/data/a.jsonl", 4839, 1795553119484896623]],
        "columns": ["text"],
        "split": ["train", 0.2],
        "window": 0,
        "tokenizer": "hash",
    }
    assert digest_of(specification) == "9f23c4881f77"
