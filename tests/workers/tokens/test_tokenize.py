"""`prepare` makes what is missing, changed or damaged, nothing else, and says what is wrong with documents before anything trains."""

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workers.tokens.files
import workers.tokens.prepare
import workers.tokens.tokenizer
from mixopt.config import Experiment
from mixopt.corpus.manifest import Manifest, TokenFile
from mixopt.corpus.splits import Side, side_of
from mixopt.corpus.tokenizer import END_TOKEN, load_tokenizer
from mixopt.errors import ConfigError, DataError, MixoptError
from mixopt.experiment_file import parse_experiment
from mixopt.progress import Silent
from proxy_models.token_store import TokenStore
from workers.tokens.prepare import prepare

WINDOW = 64
CODE = [f"def f{index}(x):\n    return x * {index}\n" for index in range(200)]
PROSE = [f"Sentence {index} says <|end|> and naïve 数据 about {hashlib.sha256(bytes([index])).hexdigest()}." for index in range(200)]
HELD_OUT_PROSE = [f"A held-out sentence, the {index}th of its kind." for index in range(30)]
PAIRS = [("Add 1 and 2.\n", "The answer is 3."), ("", "No prompt at all."), ("Too long:", "word " * 400), ("Empty:", "")]


class Notes(Silent):
    """Keeps notes and the bytes reported per stage."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.done: dict[str, float] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextmanager
    def stage(self, title: str, total: float | None, unit: str) -> Any:
        done = self.done

        class Stage:
            def advance(self, amount: float) -> None:
                done[title] = done.get(title, 0.0) + amount

        yield Stage()


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for name in ("code.jsonl", "code-valid.jsonl"):
        write_jsonl(tmp_path / name, [{"text": text} for text in CODE])
    write_jsonl(tmp_path / "prose.jsonl", [{"body": text} for text in [*PROSE, ""]])
    write_jsonl(tmp_path / "prose-valid.jsonl", [{"body": text} for text in HELD_OUT_PROSE])
    write_jsonl(tmp_path / "pairs.jsonl", [{"q": prompt, "a": completion} for prompt, completion in PAIRS])
    (tmp_path / "plain.txt").write_text("A plain text target.", encoding="utf-8")
    return tmp_path


def experiment(folder: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "test",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [
            {"name": "code", "path": "code.jsonl", "tokens": "1B", "held_out": 0.2},
            {"name": "prose", "path": "prose.jsonl", "text_column": "body", "tokens": "1B", "valid": "prose-valid.jsonl"},
        ],
        "targets": [
            {"name": "qa", "path": "pairs.jsonl", "prompt_column": "q", "completion_column": "a"},
            {"name": "plain", "path": "plain.txt"},
        ],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"window": WINDOW, "tokens_per_step": 1024},
    }
    return parse_experiment(raw | changes, folder)


def with_domain(folder: Path, **changes: Any) -> Experiment:
    domains = [
        {"name": "code", "path": "code.jsonl", "tokens": "1B", "held_out": 0.2} | changes,
        {"name": "plain", "path": "code.jsonl", "tokens": 1},
    ]
    return experiment(folder, domains=domains, targets=[])


def token_file(folder: Path, name: str) -> Path:
    """The one token file of that name; names end with a digest."""
    (path,) = (folder / "run" / "tokens").glob(f"{name}.{'[0-9a-f]' * 12}.tokens")
    return path


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in sorted((folder / "run" / "tokens").iterdir())}


def decoded(manifest: Manifest, file: TokenFile) -> list[str]:
    """Documents of a token file as text."""
    tokenizer = load_tokenizer(manifest.root / manifest.tokenizer_path)
    store = TokenStore.open(manifest.absolute(file))
    return [tokenizer.decode(ids.tolist()) for ids in np.split(store.tokens, store.document_ends[:-1])]


def test_tokens_decode_to_the_documents(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    code, prose = manifest.domains["code"], manifest.domains["prose"]
    train, valid = decoded(manifest, code.train), decoded(manifest, code.valid)
    assert train == [f"{text}{END_TOKEN}" for text in CODE if side_of(text, 0.2) is Side.TRAIN]
    assert valid == [f"{text}{END_TOKEN}" for text in CODE if side_of(text, 0.2) is Side.VALID]
    assert decoded(manifest, prose.train) == [f"{text}{END_TOKEN}" for text in PROSE]  # the empty document is skipped
    assert decoded(manifest, prose.valid) == [f"{text}{END_TOKEN}" for text in HELD_OUT_PROSE]
    assert decoded(manifest, manifest.targets["plain"].file) == [f"A plain text target.{END_TOKEN}"]


def test_an_end_token_in_text_is_text(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    store = TokenStore.open(manifest.absolute(manifest.domains["prose"].train))
    end = load_tokenizer(manifest.root / manifest.tokenizer_path).end_id
    assert np.flatnonzero(store.tokens == end).tolist() == (store.document_ends - 1).tolist()


def test_the_manifest_counts_what_is_there(corpus: Path) -> None:
    manifest = prepare(experiment(corpus))
    assert Manifest.load(manifest.root) == manifest
    prose = manifest.domains["prose"].train
    assert (prose.documents, prose.bytes) == (len(PROSE), sum(len(text.encode()) for text in PROSE))
    assert prose.tokens == TokenStore.open(manifest.absolute(prose)).info.tokens
    assert [manifest.targets[name].kind for name in ("qa", "plain")] == ["completion", "text"]


def test_completions_are_scored_after_their_prompt(corpus: Path) -> None:
    notes = Notes()
    manifest = prepare(experiment(corpus), notes)
    file = manifest.targets["qa"].file
    store = TokenStore.open(manifest.absolute(file))
    tokenizer = load_tokenizer(manifest.root / manifest.tokenizer_path)
    documents = np.split(store.tokens, store.document_ends[:-1])
    scored = [tokenizer.decode(ids[start:].tolist()) for ids, start in zip(documents, store.scored_from, strict=True)]
    context = [tokenizer.decode(ids[:start].tolist()) for ids, start in zip(documents, store.scored_from, strict=True)]
    assert scored == [f"{completion}{END_TOKEN}" for _, completion in PAIRS[:2]]
    assert context == ["Add 1 and 2.\n", END_TOKEN]  # an empty prompt: the end of the document before it is all there is to go by
    assert file.bytes == sum(len(completion) for _, completion in PAIRS[:2])
    assert any("2 of 4 completions" in note for note in notes.notes)


def test_a_second_run_does_nothing(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = prepare(experiment(corpus))
    before = snapshot(corpus)
    monkeypatch.setattr(workers.tokens.prepare, "build", pytest.fail)
    monkeypatch.setattr(workers.tokens.tokenizer, "train_tokenizer", pytest.fail)
    notes = Notes()
    assert prepare(experiment(corpus), notes) == first
    assert snapshot(corpus) == before
    assert notes.notes == []


def test_the_same_documents_give_the_same_files_anywhere(corpus: Path) -> None:
    first = prepare(experiment(corpus))
    shutil.copytree(corpus, corpus / "copy", ignore=shutil.ignore_patterns("run"))
    second = prepare(experiment(corpus / "copy"))
    assert second.tokenizer_hash == first.tokenizer_hash
    pairs = [(first.domains[name].train, files.train) for name, files in second.domains.items()]
    pairs += [(first.targets[name].file, target.file) for name, target in second.targets.items()]
    for before, after in pairs:
        assert second.absolute(after).read_bytes() == first.absolute(before).read_bytes()
        assert after.content_hash == before.content_hash


def test_an_interrupted_run_goes_on(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare(experiment(corpus))
    files = {name: content for name, (_, content) in snapshot(corpus).items() if name.endswith(".tokens")}
    shutil.rmtree(corpus / "run")
    built: list[str] = []
    original = workers.tokens.prepare.build

    def stop_at_third(job: Any, *arguments: Any) -> Any:
        if len(built) == 2:
            raise KeyboardInterrupt
        built.append(job.name)
        return original(job, *arguments)

    monkeypatch.setattr(workers.tokens.prepare, "build", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        prepare(experiment(corpus))
    assert not (corpus / "run" / "tokens" / "manifest.json").exists()

    def count(job: Any, *arguments: Any) -> Any:
        built.append(job.name)
        return original(job, *arguments)

    monkeypatch.setattr(workers.tokens.prepare, "build", count)
    monkeypatch.setattr(workers.tokens.tokenizer, "train_tokenizer", pytest.fail)
    assert prepare(experiment(corpus)) == whole
    assert sorted(built) == sorted(name.rsplit(".", 2)[0] for name in files)  # each file once, over both runs
    assert {name: content for name, (_, content) in snapshot(corpus).items() if name.endswith(".tokens")} == files


def test_an_interruption_within_a_file_leaves_no_file(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(workers.tokens.files, "_fits", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(experiment(corpus))
    assert not list((corpus / "run" / "tokens").glob("*target-qa*"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[40] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def replace_with_other(path: Path) -> None:
    shutil.copy(next(path.parent.glob("prose.train.*.tokens")), path)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, replace_with_other])
def test_a_damaged_file_is_found_said_and_made_again(corpus: Path, damage: Callable[[Path], None]) -> None:
    whole = prepare(experiment(corpus))
    before = snapshot(corpus)
    damaged = token_file(corpus, "code.train")
    damage(damaged)
    notes = Notes()
    assert prepare(experiment(corpus), notes) == whole
    after = snapshot(corpus)
    assert any(damaged.name in note and "made again" in note for note in notes.notes)
    assert {name: content for name, (_, content) in after.items()} == {name: content for name, (_, content) in before.items()}
    redone = {name for name in after if after[name][0] != before[name][0]}
    assert redone == {damaged.name, f"{damaged.name}.record"}


@pytest.mark.parametrize("damage", [b"{", b"\xff\x00", b"[]", b'{"version": 1, "domains": []}', b'{"version": 1, "domains": {"a": 3}}'])
def test_a_damaged_tokenizer_or_manifest_is_made_again(corpus: Path, damage: bytes) -> None:
    whole = prepare(experiment(corpus))
    tokens = corpus / "run" / "tokens"
    (tokens / "manifest.json").write_bytes(damage)
    tokenizer = tokens / whole.tokenizer_path
    tokenizer.write_text(tokenizer.read_text()[:-5])
    notes = Notes()
    assert prepare(experiment(corpus), notes) == whole
    assert any(f"{tokenizer.name} is damaged" in note for note in notes.notes)
    assert Manifest.load(tokens) == whole


def test_changed_documents_are_tokenized_again_with_the_same_tokenizer(corpus: Path) -> None:
    first = prepare(experiment(corpus))
    before = snapshot(corpus)
    write_jsonl(corpus / "prose.jsonl", [{"body": f"{text} Changed."} for text in PROSE])
    notes = Notes()
    second = prepare(experiment(corpus), notes)
    assert second.tokenizer_hash == first.tokenizer_hash
    assert second.domains["prose"].train.content_hash != first.domains["prose"].train.content_hash
    assert second.domains["code"] == first.domains["code"]
    assert snapshot(corpus).items() >= {name: file for name, file in before.items() if name != "manifest.json"}.items()
    assert [note for note in notes.notes if note.startswith("prose.train: other documents")]
    assert not [note for note in notes.notes if note.startswith("code.")]
    assert any("tokenizer is kept" in note for note in notes.notes)
    assert decoded(second, second.domains["prose"].train)[0] == f"{PROSE[0]} Changed.{END_TOKEN}"


def test_a_change_that_keeps_the_size_is_seen(corpus: Path) -> None:
    first = prepare(experiment(corpus))
    path = corpus / "code.jsonl"
    before = path.stat()
    path.write_text(path.read_text().replace("return x", "return y"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert path.stat().st_size == before.st_size
    assert prepare(experiment(corpus)).domains["code"].train.content_hash != first.domains["code"].train.content_hash


def test_a_changed_setting_is_seen(corpus: Path) -> None:
    """Column, split and window: each changes what a file holds, and the file of before is not taken for it."""
    write_jsonl(corpus / "code.jsonl", [{"text": text, "other": f"other {text}"} for text in CODE])

    def train(**changes: Any) -> TokenFile:
        domains = [{"name": "code", "path": "code.jsonl", "tokens": 1, "held_out": 0.2} | changes]
        domains += [{"name": "prose", "path": "prose.jsonl", "text_column": "body", "tokens": 1, "valid": "prose-valid.jsonl"}]
        return prepare(experiment(corpus, domains=domains)).domains["code"].train

    assert train(text_column="other").content_hash != train().content_hash
    assert train(held_out=0.4).documents < train().documents
    write_jsonl(corpus / "pairs.jsonl", [{"q": "Short:", "a": "yes"}, {"q": "A hundred tokens:", "a": "\x01" * 100}])
    kept = [prepare(experiment(corpus, proxy={"window": window, "tokens_per_step": 1024})).targets["qa"].file for window in (64, 128)]
    assert [file.documents for file in kept] == [1, 2]


def test_the_border_between_prompt_and_completion_is_content(corpus: Path) -> None:
    hashes = set()
    for pairs in ([("ab", "c")], [("a", "bc")], [("a", "b"), ("", "c")]):
        write_jsonl(corpus / "pairs.jsonl", [{"q": prompt, "a": completion} for prompt, completion in pairs])
        hashes.add(prepare(experiment(corpus)).targets["qa"].file.content_hash)
    assert len(hashes) == 3


def test_another_vocabulary_makes_everything_again(corpus: Path) -> None:
    first = prepare(experiment(corpus))
    second = prepare(experiment(corpus, tokenizer={"vocab_size": 600}))
    assert second.tokenizer_hash != first.tokenizer_hash
    assert {name: files.train.content_hash for name, files in second.domains.items()} == {
        name: files.train.content_hash for name, files in first.domains.items()
    }  # content does not depend on the tokenizer
    assert TokenStore.open(second.absolute(second.domains["code"].train)).info.tokenizer_hash == second.tokenizer_hash


def test_a_given_tokenizer_is_used_and_its_end_token_said(corpus: Path) -> None:
    trained = prepare(experiment(corpus))
    given = corpus / "given.json"
    given.write_text((trained.root / trained.tokenizer_path).read_text().replace(END_TOKEN, "<|endoftext|>"))
    notes = Notes()
    manifest = prepare(experiment(corpus, tokenizer={"path": "given.json"}, output="other"), notes)
    assert manifest.tokenizer_hash == load_tokenizer(given).hash
    assert any("'<|endoftext|>' ends a document" in note for note in notes.notes)


def test_progress_is_in_bytes_of_text(corpus: Path) -> None:
    notes = Notes()
    prepare(experiment(corpus), notes)
    everything = [*CODE, *PROSE, *HELD_OUT_PROSE, *(part for pair in PAIRS for part in pair), "A plain text target."]
    assert notes.done["Tokenizing"] == sum(len(text.encode()) for text in everything)
    assert notes.done["Training the tokenizer"] > 0


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"path": "cod.jsonl"}, DataError, r"cod\.jsonl of domain 'code' does not exist.*code\.jsonl"),
        ({"path": "none/*.jsonl"}, DataError, "matches no file"),
        ({"text_column": "txt"}, ConfigError, "no column 'txt'.*'text'"),
        ({"path": "empty.jsonl"}, DataError, "Domain 'code' holds no text"),
        ({"path": "blank.jsonl"}, DataError, "Domain 'code' holds no text"),
        ({"valid": "empty.jsonl"}, DataError, "Held-out set of domain 'code' holds no text"),
        (
            {"path": "short.jsonl", "valid": "code-valid.jsonl"},
            DataError,
            f"Domain 'code' has .* training tokens, too few for one window of {WINDOW}",
        ),
        ({"valid": "short.jsonl"}, DataError, f"domain 'code' has .* held-out tokens, too few for one window of {WINDOW}"),
        (
            {"path": "code*.jsonl", "valid": "./code-valid.jsonl"},
            ConfigError,
            r"code-valid\.jsonl is in the held-out set of domain 'code', and domain 'code' trains on it",
        ),
        ({"path": "single.jsonl"}, DataError, "leaves no (training|held-out) document"),
        ({"path": "broken.jsonl"}, DataError, r"broken\.jsonl of domain 'code' cannot be read"),
    ],
)
def test_bad_domains_are_told_before_anything_trains(corpus: Path, changes: dict[str, str], kind: type[MixoptError], message: str) -> None:
    (corpus / "empty.jsonl").write_text("")
    (corpus / "broken.jsonl").write_bytes(b'{"text": "\xff"}\n')
    write_jsonl(corpus / "blank.jsonl", [{"text": ""}] * 50)
    write_jsonl(corpus / "short.jsonl", [{"text": "short"}])
    write_jsonl(corpus / "single.jsonl", [{"text": "long enough for a window, though all of it is one document " * 20}])
    with pytest.raises(kind, match=message):
        prepare(with_domain(corpus, **changes))
    assert not (corpus / "run" / "tokens" / "manifest.json").exists()


@pytest.mark.parametrize(("spare", "enough"), [(0, False), (1, True)])
def test_a_training_window_needs_the_token_after_it(corpus: Path, spare: int, enough: bool) -> None:
    """As many tokens as the window are one too few for the sampler, which would only find out in a trial."""
    write_jsonl(corpus / "long.jsonl", [{"text": " ".join(f"word{index}" for index in range(80))}])
    domains = [
        {"name": "long", "path": "long.jsonl", "tokens": "1B", "valid": "code-valid.jsonl"},
        {"name": "code", "path": "code.jsonl", "tokens": "1B", "valid": "code-valid.jsonl"},
    ]
    exact = experiment(corpus, domains=domains, targets=[])
    tokens = prepare(exact).domains["long"].train.tokens
    window = tokens - spare
    exact = exact.model_copy(update={"proxy": exact.proxy.model_copy(update={"window": window})})
    if enough:
        prepare(exact)
    else:
        with pytest.raises(DataError, match=f"has {tokens} training tokens, too few for one window of {window}"):
            prepare(exact)


def test_a_target_that_is_trained_on_is_told(corpus: Path) -> None:
    notes = Notes()
    prepare(experiment(corpus, targets=[{"name": "seen", "path": "code.jsonl"}, {"name": "plain", "path": "plain.txt"}]), notes)
    told = [note for note in notes.notes if "trains on" in note]
    assert len(told) == 1
    assert "target 'seen' reads" in told[0]
    assert "domain 'code' trains on" in told[0]


def test_a_target_whose_completions_all_fail_is_an_error(corpus: Path) -> None:
    write_jsonl(corpus / "pairs.jsonl", [{"q": "Too long:", "a": "word " * 400}])
    with pytest.raises(DataError, match=f"Target 'qa': all 1 completions .* window of {WINDOW}"):
        prepare(experiment(corpus))


@pytest.mark.parametrize(("length", "fits"), [(WINDOW - 2, True), (WINDOW - 1, False)])
def test_the_longest_completion_leaves_room_for_its_end_and_one_token_before(corpus: Path, length: int, fits: bool) -> None:
    manifest = prepare(experiment(corpus))
    tokenizer = load_tokenizer(manifest.root / manifest.tokenizer_path)
    completion = tokenizer.decode(tokenizer.encode_batch(["\x01" * length])[0])
    assert len(tokenizer.encode_batch([completion])[0]) == length
    write_jsonl(corpus / "pairs.jsonl", [{"q": "p", "a": "ok"}, {"q": "p", "a": completion}])
    assert prepare(experiment(corpus)).targets["qa"].file.documents == (2 if fits else 1)


def test_experiments_that_share_an_output_keep_their_own_files(corpus: Path) -> None:
    """The same name for other documents, and another vocabulary: neither takes what the other trains on, nor makes it again."""
    first = prepare(experiment(corpus))
    kept = snapshot(corpus)
    others = [
        experiment(corpus, domains=[{"name": name, "path": "prose.jsonl", "text_column": "body", "tokens": 1} for name in ("code", "b")]),
        experiment(corpus, tokenizer={"vocab_size": 600}),
    ]
    for other in others:
        assert prepare(other).domains["code"].train.path != first.domains["code"].train.path
    del kept["manifest.json"]
    assert snapshot(corpus).items() >= kept.items()
    notes = Notes()
    assert prepare(experiment(corpus), notes) == first
    assert "Tokenizing" not in notes.done
    assert "Training the tokenizer" not in notes.done


def test_what_a_killed_run_left_half_written_goes(corpus: Path) -> None:
    """Killed while it writes a token file: the next run removes the half and makes the file."""
    script = (
        "import os, sys, pathlib, proxy_models.token_store as store, workers.tokens.prepare as tokenize, mixopt.experiment_file as config\n"
        "store.os.replace = lambda *_: os.kill(os.getpid(), 9)\n"
        "tokenize.prepare(config.load_experiment(pathlib.Path(sys.argv[1])))\n"
    )
    file = corpus / "experiment.yaml"
    file.write_text(experiment(corpus).to_yaml())
    # `os` is one module for all, so the first replacement dies already: the tokenizer's. Then with a tokenizer: the first token file.
    for expected in ("tokenizer", "code.train"):
        assert subprocess.run([sys.executable, "-c", script, str(file)], check=False).returncode == -9
        left = [path.name for path in (corpus / "run" / "tokens").glob("*.tmp")]
        assert len(left) == 1
        assert left[0].startswith(f".{expected}.")
        if expected == "tokenizer":
            prepare(experiment(corpus))
            token_file(corpus, "code.train").with_name(f"{token_file(corpus, 'code.train').name}.record").unlink()
    prepare(experiment(corpus))
    assert list((corpus / "run" / "tokens").glob("*.tmp")) == []


def test_two_runs_at_once_take_turns(corpus: Path) -> None:
    """The second waits for the first, says so, and then finds everything made."""
    tokens = corpus / "run" / "tokens"
    first = prepare(experiment(corpus))
    notes = Notes()
    with (tokens / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (tokens / ".half.1.tmp").write_text("of the run that holds the lock")
        with ThreadPoolExecutor(1) as pool:
            second = pool.submit(prepare, experiment(corpus), notes)
            while not notes.notes:
                assert not second.done()
                time.sleep(0.01)
            assert (tokens / ".half.1.tmp").exists()
            assert "waiting" in notes.notes[0]
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert second.result(timeout=60) == first
