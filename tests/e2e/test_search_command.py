"""The real `mixopt search` as a user runs it: a process, files on disk, signals; on text that the test writes."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History, TrialRecord
from mixopt.trial import TrialState
from workers.compose import record_location
from workers.trial_folder import TrialFolder

pytestmark = pytest.mark.slow

COMMAND = [sys.executable, "-c", "from mixopt.cli import main; main()"]
TEXTS = {
    "code": "def return if else for while import class self none true x y z print",
    "prose": "the river ran past an old house where nobody had lived for years and grass grew",
    "tables": "one two three four five six seven eight nine ten sum mean total row column",
}
TRIALS = 8
PATIENCE_SECONDS = 120.0


def documents(name: str, count: int, seed: int) -> list[str]:
    chosen = random.Random(f"{name}{seed}")
    return [" ".join(chosen.choices(TEXTS[name].split(), k=60)) + ".\n" for _ in range(count)]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    (folder / "code").mkdir()
    for number, text in enumerate(documents("code", 150, 0)):
        (folder / "code" / f"{number:03d}.txt").write_text(text)
    for name in ("prose", "tables"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(name, 150, 0)))
    for name in TEXTS:
        (folder / f"more-{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents(name, 30, 1)))
    return folder


def write_experiment(folder: Path, name: str, **changes: Any) -> Path:
    raw: dict[str, Any] = {
        "name": name,
        "output": "run",
        "budget_tokens": "10B",
        "domains": [
            {"name": "code", "path": "code/*.txt", "tokens": "1B", "held_out": 0.2},
            {"name": "prose", "path": "prose.jsonl", "tokens": "6B", "held_out": 0.2},
            {"name": "tables", "path": "tables.jsonl", "tokens": "4B", "held_out": 0.2},
        ],
        "targets": [{"name": "more-code", "path": "more-code.jsonl"}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 2048, "window": 64, "tokens_per_step": 128, "seeds": 2},
        "search": {"trials": TRIALS},
        "verification": {"size": "nano", "tokens": 4096, "seeds": 2},
        "ray": {"address": "in-process"},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw | changes))
    return path


def mixopt(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Runs a command of mixopt to its end, without a terminal."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    ended = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=PATIENCE_SECONDS, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    return ended


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(start)]
    return line


def records(folder: Path, name: str) -> list[TrialRecord]:
    """Trials of the search with this name."""
    with History.open(record_location(folder / "run")) as history:
        (search,) = [search for search in history.searches() if search.name == name]
        return history.trials(search.search_id)


def work_done(folder: Path) -> dict[str, list[str]]:
    """Trial id -> what was done in its folder, in order."""
    return {
        path.name: [line["event"] for line in TrialFolder(folder / "run", path.name).read_log()]
        for path in (folder / "run" / "trials").iterdir()
    }


@pytest.fixture(scope="module")
def first(corpus: Path) -> subprocess.CompletedProcess[str]:
    return mixopt("search", write_experiment(corpus, "first"))


def test_it_goes_from_text_to_a_verified_mixture(first: subprocess.CompletedProcess[str], corpus: Path) -> None:
    trials = records(corpus, "first")
    assert {record.state for record in trials} == {TrialState.COMPLETED}
    assert line_of(first.stdout, "Trials: ") == f"Trials: {len(trials)} trained now, 0 already in the record."
    assert "At a larger source (nano, 4,096 tokens, 2 paired seeds) the proposal" in first.stdout
    assert all(name in first.stdout for name in TEXTS)
    answer = Path(line_of(first.stdout, "Answer: ").removeprefix("Answer: "))
    assert "## Verification" in answer.read_text()
    figures = Path(line_of(first.stdout, "Figures: ").removeprefix("Figures: "))
    assert len(list(figures.glob("*.png"))) >= 4
    # Without a terminal: no bars, no empty lines, one line per trial.
    assert all(first.stderr.splitlines())
    assert len([line for line in first.stderr.splitlines() if line.startswith("Trial ") and " is completed: " in line]) == len(trials)


def test_the_same_command_again_trains_nothing(first: subprocess.CompletedProcess[str], corpus: Path) -> None:
    before = work_done(corpus)
    again = mixopt("search", corpus / "first.yaml")
    assert line_of(again.stdout, "Trials: ") == f"Trials: 0 trained now, {len(records(corpus, 'first'))} already in the record."
    assert again.stdout.split("Trials: ")[0] == first.stdout.split("Trials: ")[0], "another answer"
    assert work_done(corpus) == before


@pytest.mark.usefixtures("first")
def test_it_exports_every_format(corpus: Path) -> None:
    formats = line_of(mixopt("list").stdout, "formats: ").removeprefix("formats: ").split(", ")
    assert {"yaml", "json", "megatron", "datasets"} <= set(formats)
    search_id = records_search_id(corpus, "first")
    for name in formats:
        written = mixopt(
            "export", corpus / "run", "--to", name, "--search", search_id, "--out", corpus / "exports" / name
        ).stdout.splitlines()
        assert written
        text = "".join(Path(path).read_text() for path in written)
        assert search_id in text, f"{name} lacks its provenance"


def records_search_id(folder: Path, name: str) -> str:
    with History.open(record_location(folder / "run")) as history:
        return next(search.search_id for search in history.searches() if search.name == name)


@pytest.mark.usefixtures("first")
def test_mlflow_holds_the_search_and_its_trials(corpus: Path) -> None:
    from mlflow import MlflowClient

    # In a database of its own, completed from the record; the one that was written along the way has to hold the same.
    mixopt("mirror", corpus / "run", "--uri", f"sqlite:///{corpus / 'other.db'}", "--search", records_search_id(corpus, "first"))
    seen = []
    for database in (corpus / "run" / "mlflow.db", corpus / "other.db"):
        client = MlflowClient(tracking_uri=f"sqlite:///{database}")
        experiment = client.get_experiment_by_name("mixopt")
        runs = client.search_runs([experiment.experiment_id], f"tags.`mixopt.search_id` = '{records_search_id(corpus, 'first')}'")
        (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(children) == len(runs) - 1 == len(records(corpus, "first"))
        assert {run.info.status for run in runs} == {"FINISHED"}
        assert "## Mixture" in parent.data.tags["mlflow.note.content"]
        assert {file.path for file in client.list_artifacts(parent.info.run_id)} >= {"answer.md", "experiment.yaml", "figures"}
        for child in children:
            assert {f"weight/{name}" for name in TEXTS} | {"objective", "mean_bits_per_byte"} <= set(child.data.metrics)
            points = client.get_metric_history(child.info.run_id, "bits_per_byte/target/more-code")
            assert max(point.step for point in points) == int(child.data.params["tokens"])
        seen.append(sorted((run.info.run_name, run.data.metrics["cost/flops"]) for run in runs))
    assert seen[0] == seen[1]


@pytest.mark.usefixtures("first")
def test_another_objective_and_a_later_target_use_the_same_trials(corpus: Path) -> None:
    before = work_done(corpus)
    targets = [{"name": "more-code", "path": "more-code.jsonl"}, {"name": "more-prose", "path": "more-prose.jsonl", "weight": 2}]
    off = {"verification": {"enabled": False}, "tracking": {"enabled": False}}
    other = mixopt("search", write_experiment(corpus, "other", objective={"kind": "mean", "over": "all"}, **off))
    assert line_of(other.stdout, "Trials: ") == f"Trials: 0 trained now, {TRIALS} already in the record."
    assert work_done(corpus) == before, "nothing is scored that was scored before"
    later = mixopt("search", write_experiment(corpus, "later", targets=targets, **off))
    assert line_of(later.stdout, "Trials: ") == f"Trials: 0 trained now, {TRIALS} already in the record."
    for record in records(corpus, "later"):
        assert work_done(corpus)[record.trial.trial_id] == [*before[record.trial.trial_id], "scoring"]


@pytest.mark.usefixtures("first")
def test_after_a_driver_that_died_abandoned_trials_are_tried_again(corpus: Path) -> None:
    """As a full disk leaves a record: trials given up, and nothing that says that the search failed."""
    gone = next(record.trial.trial_id for record in records(corpus, "first") if record.stage == "verification")
    search_id = records_search_id(corpus, "first")
    with sqlite3.connect(record_location(corpus / "run")) as connection:
        failure = json.dumps({"kind": "error", "message": "No space left on device", "tokens": 0})
        connection.execute("update trials set state = 'abandoned', attempts = 1, failure = ? where trial_id = ?", (failure, gone))
        connection.execute("delete from outcomes where trial_id = ?", (gone,))
        connection.execute("update searches set state = 'running' where search_id = ?", (search_id,))
    connection.close()
    mixopt("search", corpus / "first.yaml")
    assert {record.state for record in records(corpus, "first")} == {TrialState.COMPLETED}


def wait_for(look: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        assert process.poll() is None, "it ended early"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_in_the_middle_it_goes_on_and_trains_nothing_twice(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    (tmp_path / "run").mkdir()
    domains = [
        {"name": "prose", "path": str(corpus / "prose.jsonl"), "tokens": "6B", "held_out": 0.2},
        {"name": "tables", "path": str(corpus / "tables.jsonl"), "tokens": "4B", "held_out": 0.2},
    ]
    file = write_experiment(
        tmp_path,
        "stopped",
        domains=domains,
        targets=[],
        proxy={"tokens": 40_960, "window": 64, "tokens_per_step": 128, "seeds": 2},
        search={"trials": 6},
        verification={"enabled": False},
        tracking={"enabled": False},
        ray={"address": "in-process", "pack_size": 2},
    )

    def in_the_second_pack() -> bool:
        work = list(work_done(tmp_path).values()) if (tmp_path / "run" / "trials").exists() else []
        return work.count(["training", "finished"]) == 2 and ["training"] in work

    # A session of its own, so that its process group can be signalled as a terminal does.
    process = subprocess.Popen(
        [*COMMAND, "search", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        wait_for(in_the_second_pack, process)
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert process.returncode == 130
    assert errors.splitlines()[-2:] == [
        "interrupted: Search stopped: 2 of the 4 trials asked for so far are finished.",
        "The same command goes on from here; nothing is trained twice.",
    ]
    assert "Traceback" not in errors
    shown = mixopt("show", tmp_path / "run").stdout
    assert "(interrupted)" in shown
    assert "No proposal yet" in shown
    mixopt("export", tmp_path / "run", "--to", "yaml", code=3)

    ended = mixopt("search", file)
    assert line_of(ended.stdout, "Trials: ") == "Trials: 4 trained now, 2 already in the record."
    work = sorted(work_done(tmp_path).values())
    assert work.count(["training", "finished"]) == 4
    assert work.count(["training", "stopped", "training", "finished"]) == 2
    for trial_id in work_done(tmp_path):
        starts = [line["tokens"] for line in TrialFolder(tmp_path / "run", trial_id).read_log() if line["event"] == "training"]
        assert starts[0] == 128
        assert all(tokens > 128 for tokens in starts[1:]), "began anew instead of going on from its checkpoint"
