"""Bad input at the real command line: one clear sentence and its remedy, the right exit code, before anything is trained, and no traceback.

The commands run in this process; starting one costs seconds.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from mixopt.cli import main
from workers.jobs.api import ATTEMPT, KEY, Job

WINDOW = 64
TEXTS = [f"Sentence {number} of a text that is long enough, with {number * 7} in it." for number in range(60)]


def lines(texts: list[Any], column: str = "text") -> bytes:
    return "".join(json.dumps({column: text}) + "\n" for text in texts).encode()


def truncated_zst(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    with pa.CompressedOutputStream(stream, "zstd") as writer:
        writer.write(content)
    return stream.getvalue().to_pybytes()[:-30]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-input")
    (folder / "good.jsonl").write_bytes(lines(TEXTS))
    (folder / "other.jsonl").write_bytes(lines([f"Other: {text}" for text in TEXTS]))
    (folder / "empty.jsonl").write_bytes(b"")
    (folder / "blank.jsonl").write_bytes(lines([""] * 40))
    (folder / "short.jsonl").write_bytes(lines(["short"]))
    (folder / "numbers.jsonl").write_bytes(lines([*TEXTS, 3]))
    (folder / "broken.jsonl").write_bytes(lines(TEXTS) + b'{"text": \n')
    (folder / "latin.jsonl").write_bytes(lines(TEXTS) + b'{"text": "na\xefve"}\n')
    (folder / "latin.txt").write_bytes(b"na\xefve")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(lines(TEXTS))[:-20])
    (folder / "cut.jsonl.zst").write_bytes(truncated_zst(lines(TEXTS)))
    pq.write_table(pa.table({"content": TEXTS}), folder / "table.parquet")
    (folder / "cut.parquet").write_bytes((folder / "table.parquet").read_bytes()[:-50])
    (folder / "data.csv").write_text("text\n")
    (folder / "lossy.json").write_text('{"model": 1}')
    return folder


def good(name: str = "good", file: str = "good.jsonl", **changes: Any) -> dict[str, Any]:
    return {"name": name, "path": file, "tokens": "1B", "held_out": 0.2} | changes


def experiment(corpus: Path, output: Path, **changes: Any) -> Path:
    raw: dict[str, Any] = {
        "name": "bad",
        "output": str(output),
        "budget_tokens": "1B",
        "domains": [good(), good("other", "other.jsonl")],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"window": WINDOW, "tokens_per_step": 128, "tokens": 2048},
        "verification": {"enabled": False},
        "tracking": {"enabled": False},
        "ray": {"address": "in-process"},
    }
    file = corpus / f"{output.name}.yaml"
    file.write_text(yaml.safe_dump(raw | changes))
    return file


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: list[str]


@pytest.fixture
def mixopt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    handler = signal.getsignal(signal.SIGTERM)

    def run(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["mixopt", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
        shown = capsys.readouterr()
        assert "Traceback" not in shown.err
        return Ended(code, shown.out, [line for line in shown.err.splitlines() if line.strip()])

    yield run
    signal.signal(signal.SIGTERM, handler)


def with_first(**changes: Any) -> dict[str, Any]:
    """An experiment whose first domain is changed."""
    return {"domains": [{key: value for key, value in (good() | changes).items() if value is not None}, good("other", "other.jsonl")]}


DATA, CONFIG, INFEASIBLE = 3, 2, 4
CASES: dict[str, tuple[dict[str, Any], int, str, str]] = {
    "missing file": (with_first(path="god.jsonl"), DATA, "god.jsonl of domain 'good' does not exist", "Did you mean good.jsonl?"),
    "glob without match": (with_first(path="none/*.jsonl"), DATA, "none/*.jsonl of domain 'good' matches no file", "Mend the pattern"),
    "folder": (with_first(path="."), CONFIG, "of domain 'good' is a folder", "Name its files"),
    "suffix": (with_first(path="data.csv"), CONFIG, "data.csv of domain 'good' has the unsupported suffix '.csv'", "Use json, jsonl"),
    "empty domain": (with_first(path="empty.jsonl"), DATA, "Domain 'good' holds no text", "Check "),
    "blank domain": (with_first(path="blank.jsonl"), DATA, "Domain 'good' holds no text", "Check "),
    "limits that leave nothing": (with_first(max_bytes=3), DATA, "Domain 'good' holds no text within its limits", "Raise `max_documents`"),
    "broken held-out set": (
        with_first(path="short.jsonl", valid="latin.jsonl"),
        DATA,
        "latin.jsonl of held-out set of domain 'good' cannot be read",
        "Convert the file to UTF-8",
    ),
    "shorter than a window": (
        {"domains": [good(file="short.jsonl", valid="other.jsonl"), good("third", "good.jsonl")]},
        DATA,
        f"training tokens, too few for one window of {WINDOW}",
        "Add documents or lower `proxy.window`",
    ),
    "one document": (with_first(path="short.jsonl"), DATA, "leaves no ", "Name held-out documents under `valid`"),
    "wrong column": (
        with_first(path="table.parquet"),
        CONFIG,
        "table.parquet of domain 'good' has no column 'text'",
        "Its columns are content",
    ),
    "wrong column of lines": (
        with_first(text_column="txt"),
        CONFIG,
        "good.jsonl of domain 'good' has no column 'txt'",
        "Did you mean 'text'?",
    ),
    "no text": (with_first(path="numbers.jsonl"), DATA, "Row 61 of ", "Name a column of text"),
    "broken JSON": (
        with_first(path="broken.jsonl"),
        DATA,
        "broken.jsonl of domain 'good' cannot be read: line 61",
        "Mend or leave out the file",
    ),
    "broken encoding": (with_first(path="latin.jsonl"), DATA, "latin.jsonl of domain 'good' cannot be read", "Convert the file to UTF-8"),
    "broken encoding of text": (
        with_first(path="latin.txt"),
        DATA,
        "latin.txt of domain 'good' cannot be read",
        "Convert the file to UTF-8",
    ),
    "truncated gzip": (with_first(path="cut.jsonl.gz"), DATA, "cut.jsonl.gz of domain 'good' cannot be read", "Mend or leave out the file"),
    "truncated zst": (
        with_first(path="cut.jsonl.zst"),
        DATA,
        "cut.jsonl.zst of domain 'good' cannot be read",
        "Mend or leave out the file",
    ),
    "truncated Parquet": (
        with_first(path="cut.parquet"),
        DATA,
        "cut.parquet of domain 'good' cannot be read",
        "Mend or leave out the file",
    ),
    "held out what is trained on": (with_first(valid="good.jsonl"), CONFIG, "and domain 'good' trains on it", "Take it out of `path`"),
    "the same documents twice": ({"domains": [good(), good("twin")]}, CONFIG, "'good' and 'twin' hold the same documents", "Remove one"),
    "duplicate names": ({"domains": [good(), good(file="other.jsonl")]}, CONFIG, "Domain names repeat: good", "mixopt schema"),
    "unknown key": (with_first(text_colum="text"), CONFIG, "Unknown key 'domains[0].text_colum'", "Did you mean 'text_column'?"),
    "unknown strategy": ({"search": {"strategy": "regresion"}}, CONFIG, "no strategy 'regresion'", "regression"),
    "no source": (with_first(path=None), CONFIG, "domain 'good' has neither path nor hub", "mixopt schema"),
    "no driver": (with_first(path="s3://bucket/*.jsonl"), CONFIG, "Nothing here reads s3:// ", "Run `pip install s3fs`"),
    "no address": (
        with_first(path="memory://none/a.jsonl"),
        DATA,
        "memory://none/a.jsonl of domain 'good' does not exist",
        "Mend the address",
    ),
    "bytes that could be billions": (with_first(tokens=None, bytes="900B"), CONFIG, "'domains[0].bytes' is '900B'", "mixopt schema"),
    "bounds below 1": (
        {"domains": [good(bounds=[0, 0.3]), good("other", "other.jsonl", bounds=[0, 0.5])]},
        INFEASIBLE,
        "the largest weights sum to 0.8, 0.2 short of 1",
        "Raise the largest weight of 'other'",
    ),
    "bounds above 1": (
        {"domains": [good(bounds=[0.7, 1]), good("other", "other.jsonl", bounds=[0.5, 1])]},
        INFEASIBLE,
        "the least weights sum to 1.2, 0.2 too much",
        "Lower that of 'good' to 0.5",
    ),
    "caps below the budget": (
        {"budget_tokens": "10B"},
        INFEASIBLE,
        "the largest weights sum to 0.8, 0.2 short of 1 (good 0.4, other 0.4), which is 2e+09 of the 1e+10 budget tokens",
        "Raise `max_epochs` of 'good' from 4 to 6",
    ),
    "repeats that leave too little": (
        {"domains": [good(repeats=4), good("other", "other.jsonl", repeats=4)], "budget_tokens": "4B"},
        INFEASIBLE,
        "the largest weights sum to 0.5, 0.5 short of 1",
        "Raise `max_epochs` of 'good' from 4 to 12",
    ),
    "counted tokens below the budget": (
        {"domains": [good(tokens="count"), good("other", "other.jsonl", tokens="count")]},
        INFEASIBLE,
        "No mixture is feasible: the largest weights sum to ",
        "Raise `max_epochs` of ",
    ),
    "the same target twice": (
        {"targets": [{"name": "one", "path": "table.parquet", "text_column": "content"}, {"name": "two", "path": "good.jsonl"}]},
        CONFIG,
        "Target 'one' and target 'two' hold the same text",
        "leave the target out",
    ),
    "missing tokenizer": ({"tokenizer": {"path": "none.json"}}, DATA, "none.json does not exist", "Name a tokenizer.json"),
    "no tokenizer": ({"tokenizer": {"path": "lossy.json"}}, DATA, "lossy.json is not a tokenizer", "Name a tokenizer.json"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_sentence_with_its_remedy(corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended], name: str) -> None:
    changes, code, message, remedy = CASES[name]
    ended = mixopt("prepare", experiment(corpus, tmp_path / "run", **changes))
    assert ended.code == code, ended.errors
    *_, problem, hint = ended.errors
    assert problem.startswith("error: ")
    assert problem.endswith(".")
    assert message in problem
    assert remedy in hint
    assert sum(line.startswith("error: ") for line in ended.errors) == 1


@pytest.mark.parametrize(
    "name", ["missing file", "empty domain", "truncated zst", "caps below the budget", "counted tokens below the budget"]
)
def test_a_search_says_the_same_before_it_trains(corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended], name: str) -> None:
    changes, code, message, _ = CASES[name]
    ended = mixopt("search", experiment(corpus, tmp_path / "run", **changes))
    assert ended.code == code, ended.errors
    assert message in ended.errors[-2]
    assert not (tmp_path / "run" / "trials").exists()
    assert not (tmp_path / "run" / "record.sqlite").exists()


def test_a_file_that_changed_since_it_was_tokenized_is_noticed(corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended]) -> None:
    """Its tokens are made anew and the old ones stay, for a search over them may be running."""
    changing = tmp_path / "changing.jsonl"
    changing.write_bytes(lines(TEXTS))
    file = experiment(corpus, tmp_path / "run", domains=[good("changing", str(changing)), good("other", "other.jsonl")])
    assert mixopt("prepare", file).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run" / "tokens").glob("changing.train.*.tokens")}
    changing.write_bytes(lines([text.replace("Sentence", "sentence") for text in TEXTS]))
    stat = changing.stat()
    os.utime(changing, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    ended = mixopt("prepare", file)
    assert ended.code == 0
    assert [line for line in ended.errors if line.startswith("changing.train: other documents")]
    after = {path.name: path.read_bytes() for path in (tmp_path / "run" / "tokens").glob("changing.train.*.tokens")}
    assert after.items() > before.items()


def test_a_tokenizer_that_would_not_fit_the_stored_tokens_is_refused(corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended]) -> None:
    """Damaged, and its documents have changed: what could be trained now is another one, under which no stored token means the same."""
    changing = tmp_path / "changing.jsonl"
    changing.write_bytes(lines(TEXTS))
    file = experiment(corpus, tmp_path / "run", domains=[good("changing", str(changing)), good("other", "other.jsonl")])
    assert mixopt("prepare", file).code == 0
    (tokenizer,) = (tmp_path / "run" / "tokens").glob("tokenizer.*.json")
    whole = tokenizer.read_bytes()
    tokenizer.write_bytes(whole[:-9])
    changing.write_bytes(lines([f"{text} Quite other words, many of them." for text in TEXTS]))
    ended = mixopt("prepare", file)
    assert ended.code == DATA
    assert "is damaged, and the one that today's documents give does not fit the stored tokens" in ended.errors[-2]
    assert "Restore the file, or delete it" in ended.errors[-1]
    tokenizer.write_bytes(whole)
    assert mixopt("prepare", file).code == 0
    tokenizer.unlink()  # as the remedy says
    assert mixopt("prepare", file).code == 0


def test_a_cluster_that_does_not_answer_is_told_before_a_document_is_read(
    corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"  # bound and not listening: nobody else can answer there
        ended = mixopt("search", experiment(corpus, tmp_path / "run", ray={"address": address}))
    assert ended.code == 5
    *_, problem, hint = ended.errors
    assert problem.startswith(f"error: No Ray cluster answers at {address}: ")
    assert "`ray.address`" in hint
    assert not (tmp_path / "run" / "tokens").exists()


@pytest.mark.parametrize(
    "target",
    [
        {"path": "table.parquet"},
        {"path": "numbers.jsonl", "text_column": "txt"},
        {"path": "latin.txt"},
    ],
)
def test_a_target_that_cannot_be_read_is_told_before_a_domain_is_read(
    corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended], target: dict[str, str]
) -> None:
    ended = mixopt("prepare", experiment(corpus, tmp_path / "run", targets=[{"name": "last", **target}]))
    assert ended.code in (CONFIG, DATA)
    assert "target 'last'" in ended.errors[0], "the first line is the error: nothing was read for the tokenizer, nothing tokenized"
    prepared = mixopt("prepare", experiment(corpus, tmp_path / "run"))
    assert prepared.code == 0
    again = mixopt("prepare", experiment(corpus, tmp_path / "run", targets=[{"name": "last", **target}]))
    assert not any("Tokenizing" in line for line in again.errors)


def test_more_trials_than_a_file_may_ask_for_are_refused(corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended]) -> None:
    file = experiment(corpus, tmp_path / "many")
    for arguments in (("search", file, "--trials", "10000000"), ("submit", file, "--trials", "10000000")):
        ended = mixopt(*arguments)
        assert (ended.code, len(ended.errors)) == (CONFIG, 2)
        assert "--trials 10000000 is more than 10,000" in ended.errors[0]
    ended = mixopt("plan", experiment(corpus, tmp_path / "file", search={"trials": 10_000_000}), "--no-probe")
    assert ended.code == CONFIG
    assert "'search.trials' is 10000000" in ended.errors[0]


def test_a_plan_that_cannot_be_written_is_one_sentence(corpus: Path, tmp_path: Path, mixopt: Callable[..., Ended]) -> None:
    ended = mixopt("plan", experiment(corpus, tmp_path / "plan"), "--no-probe", "--json", tmp_path)
    assert (ended.code, len(ended.errors)) == (CONFIG, 2)
    assert "cannot be written" in ended.errors[0]


@pytest.mark.parametrize("command", ["status", "logs", "stop"])
def test_an_empty_name_is_no_job(command: str, mixopt: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every id begins with it: `mixopt stop "$JOB"` must not stop the only search of a cluster where the variable is not set."""
    monkeypatch.setattr("workers.jobs.api.JobsApi", _OneJob)
    ended = mixopt(command, "")
    assert ended.code == CONFIG
    assert "The name of the job is empty" in ended.errors[0]
    assert _OneJob.stopped == []


class _OneJob:
    """A cluster with one job that runs."""

    address = "http://127.0.0.1:8265"
    stopped: ClassVar[list[str]] = []

    def __init__(self, address: str) -> None:
        pass

    def jobs(self) -> list[Job]:
        return [Job("abc-1", "running", 0.0, None, "", None, {KEY: "abc", ATTEMPT: "1"})]

    def logs(self, job_id: str) -> str:
        return ""

    def stop(self, job_id: str) -> None:
        self.stopped.append(job_id)

    def wait(self, job_id: str, seconds: float) -> Job:
        return self.jobs()[0]
