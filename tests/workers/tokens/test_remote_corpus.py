"""`prepare` over documents that are elsewhere: fetched once, limited, pinned, kept; a hub on loopback answers, or does not."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import workers.tokens.sources
from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest
from mixopt.corpus.tokenizer import load_tokenizer, train_tokenizer
from mixopt.errors import DataError
from mixopt.experiment_file import parse_experiment
from proxy_models.token_store import TokenStore
from workers.tokens.prepare import prepare

STAND_IN = Path(__file__).with_name("hub_stand_in.py")
COMMAND = [sys.executable, "-c", "from mixopt.cli import main; main()"]


def sentences(name: str, count: int) -> list[str]:
    chosen = random.Random(name)
    return [f"{name} {n}: " + " ".join(chosen.choices(["river", "house", "naïve", "数据", "grass"], k=20)) for n in range(count)]


def lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def decoded(manifest: Manifest, name: str) -> list[str]:
    tokenizer = load_tokenizer(manifest.root / manifest.tokenizer_path)
    found = []
    for file in (manifest.domains[name].train, manifest.domains[name].valid):
        store = TokenStore.open(manifest.absolute(file))
        start = 0
        for end in store.document_ends.tolist():
            found.append(tokenizer.decode(store.tokens[start : end - 1].tolist()))
            start = end
    return sorted(found)


# An object store


@pytest.fixture
def bucket() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pipe("/bucket/web-0.jsonl", lines(sentences("web", 100)))
    system.pipe("/bucket/web-1.jsonl", lines(sentences("more", 100)))
    yield system
    system.store.clear()


def stored(folder: Path, **changes: Any) -> Experiment:
    if not (folder / "local.jsonl").exists():  # its time is part of what is prepared
        (folder / "local.jsonl").write_bytes(lines(sentences("local", 100)))
    raw: dict[str, Any] = {
        "name": "stored",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [
            {"name": "web", "path": "memory://bucket/web-*.jsonl", "tokens": "1B", "held_out": 0.2, **changes},
            {"name": "local", "path": "local.jsonl", "tokens": "1B", "held_out": 0.2},
        ],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"window": 64, "tokens_per_step": 1024},
        "ray": {"address": "in-process"},
    }
    return parse_experiment(raw, folder)


@pytest.fixture
def fetches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Owners of what was copied."""
    seen: list[str] = []
    original = workers.tokens.sources._write

    def noting(path: Path, job: Any, stage: Any) -> None:
        seen.append(job.owner)
        original(path, job, stage)

    monkeypatch.setattr(workers.tokens.sources, "_write", noting)
    return seen


def test_documents_of_a_store_are_those_of_the_same_files_here(tmp_path: Path, bucket: Any, fetches: list[str]) -> None:
    remote = prepare(stored(tmp_path))
    assert fetches == ["domain 'web'"], "read once, for the tokenizer and both sides"
    for name in ("web-0", "web-1"):
        (tmp_path / f"{name}.jsonl").write_bytes(bucket.cat(f"/bucket/{name}.jsonl"))
    local = prepare(stored(tmp_path, path="web-*.jsonl").model_copy(update={"output": str(tmp_path / "other")}))
    assert local.domains["web"].train.content_hash == remote.domains["web"].train.content_hash
    assert local.tokenizer_hash == remote.tokenizer_hash


def test_a_second_run_reads_nothing_from_the_store(tmp_path: Path, bucket: Any, fetches: list[str]) -> None:
    first = prepare(stored(tmp_path))
    for copy in (tmp_path / "run" / "tokens" / "fetched").iterdir():
        copy.unlink()  # what is prepared needs no copy any more
    assert prepare(stored(tmp_path)) == first
    assert len(fetches) == 1
    bucket.pipe("/bucket/web-0.jsonl", lines(sentences("changed", 100)))
    assert prepare(stored(tmp_path)).domains["web"].train.content_hash != first.domains["web"].train.content_hash
    assert len(fetches) == 2


@pytest.mark.usefixtures("bucket")
@pytest.mark.parametrize(("limits", "count"), [({"max_documents": 120}, 120), ({"max_documents": 40}, 40)])
def test_a_limit_takes_the_first_documents_before_the_split(tmp_path: Path, limits: dict[str, int], count: int) -> None:
    manifest = prepare(stored(tmp_path, **limits))
    assert decoded(manifest, "web") == sorted([*sentences("web", 100), *sentences("more", 100)][:count])
    every = sum(len(text.encode()) for text in [*sentences("web", 100), *sentences("more", 100)][:count])
    same = prepare(stored(tmp_path, max_bytes=every))
    assert decoded(same, "web") == decoded(manifest, "web")
    assert same.domains["web"].train.content_hash == manifest.domains["web"].train.content_hash


def test_limits_hold_for_files_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "web.jsonl").write_bytes(lines(sentences("web", 100)))
    manifest = prepare(stored(tmp_path, path="web.jsonl", max_documents=60))
    assert decoded(manifest, "web") == sorted(sentences("web", 60))
    with pytest.raises(DataError, match=r"Domain 'web' holds no text within its limits. Raise `max_documents` or `max_bytes`"):
        prepare(stored(tmp_path, path="web.jsonl", max_bytes=1))


def test_a_broken_fetch_leaves_no_copy(tmp_path: Path, bucket: Any) -> None:
    bucket.pipe("/bucket/web-1.jsonl", b'{"text": 1}\n')
    with pytest.raises(DataError, match=r"Row 1 of memory://.*web-1\.jsonl"):
        prepare(stored(tmp_path))
    assert list((tmp_path / "run" / "tokens" / "fetched").iterdir()) == []


# A hub


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment in which a stand-in on loopback is the hub."""
    root = tmp_path / "hub"
    data = root / "datasets" / "org" / "web" / "data"
    data.mkdir(parents=True)
    pq.write_table(pa.table({"body": sentences("web", 400), "n": list(range(400))}), data / "train-00000.parquet")
    (root / "datasets" / "org" / "qa").mkdir()
    (root / "datasets" / "org" / "qa" / "test.jsonl").write_text('{"q": "1 + 1 =", "a": " 2"}\n' * 30)
    train_tokenizer(sentences("web", 300), 600, root / "models" / "org" / "tok" / "tokenizer.json")
    server = subprocess.Popen([sys.executable, str(STAND_IN), str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = f"http://127.0.0.1:{int(server.stdout.readline())}"
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        yield kept | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "REQUESTS": str(root / "requests")}
    finally:
        server.kill()
        server.wait()


def hub_experiment(folder: Path, **domain: Any) -> Path:
    (folder / "local.jsonl").write_bytes(lines(sentences("local", 100)))
    web = {"name": "web", "hub": {"dataset": "org/web"}, "text_column": "body", "max_documents": 150, "bytes": "3GB", "held_out": 0.2}
    raw = {
        "name": "hub",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [web | domain, {"name": "local", "path": "local.jsonl", "tokens": "1B", "held_out": 0.2}],
        "targets": [
            {
                "name": "qa",
                "hub": {"dataset": "org/qa", "split": "test"},
                "prompt_column": "q",
                "completion_column": "a",
                "max_documents": 20,
            }
        ],
        "tokenizer": {"hub": "org/tok"},
        "proxy": {"window": 64, "tokens_per_step": 1024},
        "ray": {"address": "in-process"},
    }
    file = folder / "hub.yaml"
    file.write_text(json.dumps(raw))
    return file


def mixopt(environment: dict[str, str], *arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


@pytest.mark.slow
def test_prepare_reads_a_hub_once_and_needs_it_no_more(tmp_path: Path, hub: dict[str, str]) -> None:
    first = mixopt(hub, "prepare", hub_experiment(tmp_path))
    assert "org/web is read at commit c0ffee000000 of the main branch, from now on" in first.stderr
    assert "Tokenizer org/tok at c0ffee000000: " in first.stderr
    manifest = Manifest.load(tmp_path / "run" / "tokens")
    assert decoded(manifest, "web") == sorted(sentences("web", 150))
    assert manifest.targets["qa"].file.documents == 20
    asked = Path(hub["REQUESTS"]).read_text()
    assert asked.count("GET /datasets/org/web/resolve/c0ffee") <= 2, "the file is read once (its schema and its rows)"
    # The estimate is said to be one.
    (row,) = [line for line in first.stdout.splitlines() if line.strip().startswith("web ") and "estimated" in line]
    assert "about" in row
    # The same again, with a hub that is gone.
    Path(hub["REQUESTS"]).unlink()
    again = mixopt(hub | {"HF_ENDPOINT": "http://127.0.0.1:9"}, "prepare", tmp_path / "hub.yaml")
    assert again.stdout == first.stdout
    assert Manifest.load(tmp_path / "run" / "tokens") == manifest
    assert not Path(hub["REQUESTS"]).exists()


@pytest.mark.slow
def test_a_hub_that_does_not_answer_is_told_in_a_sentence(tmp_path: Path) -> None:
    """The other ways in which it can fail are in tests/mixopt/corpus/test_hub.py."""
    gone = dict(os.environ) | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    errors = mixopt(gone, "prepare", hub_experiment(tmp_path), code=3).stderr.strip().splitlines()
    assert len(errors) == 2, "one sentence and its remedy"
    assert errors[0].startswith("error: The Hugging Face hub does not answer for org/web (domain 'web')")
