"""A domain that is tokenized in shards is the domain tokenized at once, whoever did the work and however often it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workers.tokens.shards
from mixopt.config import Experiment, RayConfig
from mixopt.corpus.manifest import Manifest
from mixopt.errors import DataError
from mixopt.experiment_file import parse_experiment
from mixopt.progress import Silent
from proxy_models.token_store import TokenStore
from workers.tokens.pool import LazyPool
from workers.tokens.prepare import prepare
from workers.tokens.shards import InProcess, ShardedText, ShardTask, tokenize_shard

SHARD_BYTES = 4_000
PATIENCE_SECONDS = 180.0


class Notes(Silent):
    """Keeps the bytes reported per stage."""

    def __init__(self) -> None:
        self.done: dict[str, float] = {}

    @contextmanager
    def stage(self, title: str, total: float | None, unit: str) -> Any:
        done = self.done

        class Stage:
            def advance(self, amount: float) -> None:
                done[title] = done.get(title, 0.0) + amount

        yield Stage()


def experiment(folder: Path, output: str, **changes: Any) -> Experiment:
    domains = [{"name": name, "path": f"{name}.jsonl", "tokens": "1B", "held_out": 0.1} for name in ("prose", "code")]
    raw: dict[str, Any] = {
        "name": "test",
        "output": output,
        "budget_tokens": "1B",
        "domains": domains,
        "targets": [{"name": "qa", "path": "qa.jsonl", "prompt_column": "text", "completion_column": "text"}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"window": 64, "tokens_per_step": 1024},
        "ray": {"address": "in-process"},
    }
    return parse_experiment(raw | changes, folder)


def write_documents(folder: Path, name: str, count: int) -> None:
    chosen = random.Random(name)
    words = ["naïve", "数据", "return", "<|end|>", "x = 1\n", "word", "👩‍🚀"]
    rows = [{"text": " ".join(chosen.choices(words, k=chosen.randrange(0, 60)))} for _ in range(count)]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name, count in (("prose", 300), ("code", 150), ("qa", 20)):
        write_documents(tmp_path, name, count)
    return tmp_path


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.tokens.shards, "SHARD_BYTES", SHARD_BYTES)
    monkeypatch.setattr(workers.tokens.shards, "SHARDED_FROM_BYTES", 1)


@pytest.fixture
def tokenized(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the shards that were tokenized in this process."""
    names: list[str] = []

    def noting(task: ShardTask) -> int:
        names.append(task.path.name)
        return tokenize_shard(task)

    monkeypatch.setattr(workers.tokens.shards, "tokenize_shard", noting)
    return names


def contents(manifest: Manifest) -> dict[str, bytes]:
    files = [part for files in manifest.domains.values() for part in (files.train, files.valid)]
    files += [target.file for target in manifest.targets.values()]
    return {file.path: manifest.absolute(file).read_bytes() for file in files}


def test_shards_join_to_the_file_of_one_pass(corpus: Path, tokenized: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    at_once = prepare(experiment(corpus, "at-once"))
    assert tokenized == [], "small domains are tokenized at once"
    monkeypatch.setattr(workers.tokens.shards, "SHARD_BYTES", SHARD_BYTES)
    monkeypatch.setattr(workers.tokens.shards, "SHARDED_FROM_BYTES", 1)
    in_shards = prepare(experiment(corpus, "in-shards"))
    assert len(tokenized) > 10
    assert contents(in_shards) == contents(at_once)
    assert in_shards.domains == at_once.domains
    assert list((corpus / "in-shards" / "tokens" / "shards").iterdir()) == [], "a joined shard is deleted"


@pytest.mark.usefixtures("small_shards")
def test_progress_counts_every_byte_once(corpus: Path) -> None:
    notes = Notes()
    manifest = prepare(experiment(corpus, "run"), notes)
    texts = sum(files.train.bytes + files.valid.bytes for files in manifest.domains.values())
    rows = [json.loads(line)["text"] for line in (corpus / "qa.jsonl").read_text().splitlines()]
    assert notes.done["Tokenizing"] == texts + 2 * sum(len(row.encode()) for row in rows)


@pytest.mark.usefixtures("small_shards")
def test_an_interrupted_domain_goes_on_with_its_next_shard(corpus: Path, monkeypatch: pytest.MonkeyPatch, tokenized: list[str]) -> None:
    whole = contents(prepare(experiment(corpus, "whole")))
    in_all = list(tokenized)
    tokenized.clear()
    counting = workers.tokens.shards.tokenize_shard

    def stop_at_sixth(task: ShardTask) -> int:
        if len(tokenized) == 5:
            raise KeyboardInterrupt
        return counting(task)

    monkeypatch.setattr(workers.tokens.shards, "tokenize_shard", stop_at_sixth)
    with pytest.raises(KeyboardInterrupt):
        prepare(experiment(corpus, "run"))
    monkeypatch.setattr(workers.tokens.shards, "tokenize_shard", counting)
    assert contents(prepare(experiment(corpus, "run"))) == whole
    assert sorted(tokenized) == sorted(in_all), "each shard once, over both runs"


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("damage", ["flip", "truncate", "other tokenizer"])
def test_a_shard_that_is_not_what_it_was_is_made_again(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tokenized: list[str], damage: str
) -> None:
    whole = contents(prepare(experiment(corpus, "whole")))
    in_all = len(tokenized)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardedText, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(experiment(corpus, "run"))
    tokens = corpus / "run" / "tokens"
    next(tokens.glob("prose.train.*.tokens.record")).unlink()
    shard = sorted(next((tokens / "shards").iterdir()).iterdir())[1]
    content = bytearray(shard.read_bytes())
    if damage == "flip":
        content[40] ^= 1
    elif damage == "truncate":
        del content[-10:]
    else:
        content = bytearray(bytes(content).replace(TokenStore.open(shard).info.tokenizer_hash.encode(), b"f" * 64))
    shard.write_bytes(content)
    tokenized.clear()
    assert contents(prepare(experiment(corpus, "run"))) == whole
    assert tokenized[0] == shard.name
    assert len(tokenized) < in_all, "the other shards of that domain are kept"


@pytest.mark.usefixtures("small_shards")
def test_documents_that_changed_meanwhile_are_not_taken_from_old_shards(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tokenized: list[str]
) -> None:
    prepare(experiment(corpus, "first"))  # its tokenizer is the one that is kept

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ShardedText, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            prepare(experiment(corpus, "run"))
    write_documents(corpus, "prose", 290)
    stat = (corpus / "prose.jsonl").stat()
    os.utime(corpus / "prose.jsonl", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    again = prepare(experiment(corpus, "run"))
    store = TokenStore.open(again.absolute(again.domains["prose"].train))
    assert store.info.documents < 290
    # A tokenizer of its own would differ, so the count of documents and bytes is what is compared with a fresh run.
    fresh = prepare(experiment(corpus, "fresh"))
    assert fresh.domains["prose"].train.content_hash == again.domains["prose"].train.content_hash


def test_a_tokenizer_that_changes_under_the_workers_is_told(corpus: Path) -> None:
    manifest = prepare(experiment(corpus, "run"))
    task = ShardTask(corpus / "shard.tokens", ("text",), "0" * 64, manifest.root / manifest.tokenizer_path, "another hash")
    with pytest.raises(DataError, match="changed while documents were tokenized"):
        tokenize_shard(task)
    assert not list(corpus.glob("*shard*"))


SCRIPT = """
import os, pathlib, sys, time
import mixopt.experiment_file, workers.tokens.pool as pool, workers.tokens.shards as shards, workers.tokens.prepare as tokenize
shards.SHARD_BYTES, shards.SHARDED_FROM_BYTES = int(sys.argv[2]), 1
made, original, waiting = [], shards.tokenize_shard, pool.RayPool._one
def dying(task):
    if len(made) == 7:
        writer = shards.TokenWriter
        writer.close = lambda *_: os.kill(os.getpid(), 9)  # in the middle of a shard
    made.append(task)
    return original(task)
shards.tokenize_shard = dying
def slow(self, running):
    time.sleep(0.1)
    return waiting(self, running)
pool.RayPool._one = slow
tokenize.prepare(mixopt.experiment_file.load_experiment(pathlib.Path(sys.argv[1])))
"""


def start(corpus: Path, prepared: Experiment) -> subprocess.Popen[str]:
    file = corpus / "experiment.yaml"
    file.write_text(prepared.to_yaml())
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(file), str(SHARD_BYTES)], text=True, start_new_session=True)


@pytest.mark.usefixtures("small_shards")
def test_after_kill_9_finished_shards_are_not_tokenized_again(corpus: Path, tokenized: list[str]) -> None:
    whole = contents(prepare(experiment(corpus, "whole")))
    in_all = list(tokenized)
    assert start(corpus, experiment(corpus, "run")).wait(timeout=PATIENCE_SECONDS) == -signal.SIGKILL
    (folder,) = (corpus / "run" / "tokens" / "shards").iterdir()
    made = sorted(path.name for path in folder.glob("[0-9]*.tokens"))
    assert len(made) == 7
    assert len(list(folder.glob(".*.tmp"))) == 1
    tokenized.clear()
    assert contents(prepare(experiment(corpus, "run"))) == whole
    assert sorted([*made, *tokenized]) == sorted(in_all)


def wait_for(look: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
def test_ray_tasks_make_the_same_files_and_survive_kill_9_of_the_driver(corpus: Path, tokenized: list[str]) -> None:
    whole = contents(prepare(experiment(corpus, "whole")))
    in_all = list(tokenized)
    on_ray = experiment(corpus, "run", ray={"cpus": 2})
    folder = corpus / "run" / "tokens" / "shards"
    process = start(corpus, on_ray)
    try:
        wait_for(lambda: len(list(folder.glob("prose.train.*/[0-9]*.tokens"))) >= 3, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not list((corpus / "run" / "tokens").glob("prose.train.*.tokens"))
    made = {path.name: path.stat().st_mtime_ns for path in folder.glob("*/[0-9]*.tokens")}
    assert 3 <= len(made) < len(in_all)
    tokenized.clear()
    # Other tests of this process may share a cluster, which is then used. Ray is not imported here: it reads its settings when it is.
    connected = "ray" in sys.modules and sys.modules["ray"].is_initialized()
    kept: dict[str, int] = {}
    remove = ShardedText.remove

    def noting(self: ShardedText) -> None:
        kept.update({path.name: path.stat().st_mtime_ns for path in self._folder.glob("[0-9]*.tokens")})
        remove(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardedText, "remove", noting)
        assert contents(prepare(on_ray)) == whole
    assert tokenized == [], "tokenized in Ray tasks, not here"
    assert sorted(kept) == sorted(in_all)
    assert made.items() <= kept.items(), "a finished shard was made again"
    assert sys.modules["ray"].is_initialized() == connected, "a cluster of its own is ended"


def test_a_pool_that_is_asked_for_nothing_starts_nothing(tmp_path: Path) -> None:
    with LazyPool(RayConfig(address="127.0.0.1:1"), tmp_path) as pool:
        assert list(pool.run([])) == []


def test_the_pool_takes_no_more_text_than_it_can_work_on(corpus: Path) -> None:
    """A corpus larger than memory passes through: the next shard is cut when the one before is done."""
    manifest = prepare(experiment(corpus, "run"))
    cut: list[int] = []

    def tasks() -> Any:
        for number in range(5):
            cut.append(number)
            path = corpus / f"{number}.tokens"
            yield ShardTask(path, ("text",), "0" * 64, manifest.root / manifest.tokenizer_path, manifest.tokenizer_hash)

    for done, size in enumerate(InProcess().run(tasks()), start=1):
        assert size == 4
        assert len(cut) == done
    assert np.array_equal(TokenStore.open(corpus / "0.tokens").tokens, TokenStore.open(corpus / "4.tokens").tokens)
