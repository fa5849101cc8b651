"""A small search over text of our own that tests run again and again, disturb, and compare with one that nobody disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History, TrialRecord
from workers.compose import record_location
from workers.trial_folder import TrialFolder

ROOT = Path(__file__).resolve().parents[2]
FAILPOINTS = Path(__file__).with_name("failpoints")
WORDS = {
    "code": "def return if else for while import class self none true x y z print",
    "prose": "the river ran past an old house where nobody had lived for years and grass grew",
}
STEP, TRIALS, PACK = 128, 6, 2
PATIENCE_SECONDS = 600.0


class Nursery:
    """A process that runs commands of mixopt, each in a process of its own that it forks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, str(FAILPOINTS / "sitecustomize.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment() | {"MIXOPT_TEST_KILL_MARK": str(folder / "nobody")},
        )
        assert self._read() == "ready"

    def run(self, arguments: list[str], changes: dict[str, str]) -> Ended:
        output, errors = self.folder / "output", self.folder / "errors"
        command = {"arguments": arguments, "environment": changes, "output": str(output), "errors": str(errors)}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return Ended(int(self._read()), output.read_text(), errors.read_text())

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


@dataclass(frozen=True)
class Ended:
    code: int
    output: str
    errors: str


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")}
    return kept | {"PYTHONPATH": os.pathsep.join([str(FAILPOINTS), str(ROOT)]), "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}


class Place:
    """An output folder and the experiment file of a search in it.

    Args:
        nursery: where commands run; None: in a fresh Python each, as users start it.
    """

    def __init__(self, folder: Path, raw: dict[str, Any], nursery: Nursery | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.nursery = nursery
        self.output = folder / "run"
        self.mark = folder / "killed.json"
        self.file = folder / "experiment.yaml"
        self.file.write_text(yaml.safe_dump(raw | {"output": str(self.output)}))

    def search(self, kill_at: str | None = None, code: int = 0) -> Ended:
        """`mixopt search` to its end, or to its death at a point."""
        return self.run("search", str(self.file), kill_at=kill_at, code=code)

    def run(self, *arguments: str, kill_at: str | None = None, code: int = 0) -> Ended:
        changes = {"MIXOPT_TEST_KILL_MARK": str(self.mark)} | ({"MIXOPT_TEST_KILL_AT": kill_at} if kill_at is not None else {})
        if self.nursery is not None:
            ended = self.nursery.run(list(arguments), changes)
        else:
            command = [sys.executable, "-c", "from mixopt.cli import main; main()", *arguments]
            done = subprocess.run(
                command, capture_output=True, text=True, env=environment() | changes, timeout=PATIENCE_SECONDS, check=False
            )
            ended = Ended(done.returncode, done.stdout, done.stderr)
        assert ended.code == code, ended.errors[-3000:]
        return ended

    def killed(self) -> dict[str, Any]:
        """What the process that died was about."""
        body: dict[str, Any] = json.loads(self.mark.read_text())
        return body

    def records(self) -> list[TrialRecord]:
        with History.open(record_location(self.output)) as history:
            return history.trials(self.search_id(history))

    def search_id(self, history: History) -> str:
        (search,) = history.searches()
        return search.search_id

    def answer(self) -> dict[str, Any]:
        """Proposal, verification and every loss, as the record has them."""
        with History.open(record_location(self.output)) as history:
            search_id = self.search_id(history)
            losses = {
                (r.stage, r.trial.trial_id, m.evaluation_key, m.tokens): m.loss_nats
                for r in history.trials(search_id)
                if r.outcome
                for m in r.outcome.measurements
            }
            documents = {kind: history.document(search_id, kind) for kind in ("proposal", "verification")}
        return {"asked": [(r.stage, r.trial.trial_id) for r in self.records()], "losses": losses, **documents}

    def work(self) -> dict[str, list[dict[str, Any]]]:
        """Trial id -> what was done in its folder."""
        trials = self.output / "trials"
        return {path.name: TrialFolder(self.output, path.name).read_log() for path in trials.iterdir()} if trials.exists() else {}

    def finished(self) -> dict[str, tuple[str, int, str]]:
        """Trial id -> its weights and result, of trials that are finished on disk."""
        found = {}
        for trial_id in self.work():
            folder = TrialFolder(self.output, trial_id)
            if folder.read_outcome() is not None:
                weights = hashlib.sha256(folder.weights_path.read_bytes()).hexdigest()
                found[trial_id] = (weights, folder.weights_path.stat().st_mtime_ns, folder.result_path.read_text())
        return found

    def mirrored(self, uri: str | None = None) -> dict[str, Any]:
        """What MLflow shows of the search, by key, without times; each run once."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=uri or f"sqlite:///{self.output / 'mlflow.db'}")
        runs = client.search_runs([client.get_experiment_by_name("mixopt").experiment_id])
        assert len({run.data.tags["mixopt.key"] for run in runs}) == len(runs), "a run is there twice"
        return {
            run.data.tags["mixopt.key"]: (
                run.info.run_name,
                run.info.status,
                {name: value for name, value in run.data.metrics.items() if name != "cost/seconds"},
                run.data.params,
            )
            for run in runs
        }


@pytest.fixture(scope="session")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    started = Nursery(tmp_path_factory.mktemp("nursery"))
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="session")
def small_experiment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """An experiment over documents that stay where they are."""
    folder = tmp_path_factory.mktemp("documents")
    for name, words in WORDS.items():
        for file, count in ((name, 150), (f"more-{name}", 30)):
            chosen = random.Random(file)
            texts = [" ".join(chosen.choices(words.split(), k=60)) + ".\n" for _ in range(count)]
            (folder / f"{file}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {
        "name": "killed",
        "budget_tokens": "10B",
        "domains": [
            {"name": name, "path": str(folder / f"{name}.jsonl"), "tokens": tokens, "held_out": 0.2}
            for name, tokens in (("code", "4B"), ("prose", "8B"))
        ],
        "targets": [{"name": "more-code", "path": str(folder / "more-code.jsonl")}],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 16 * STEP, "window": 64, "tokens_per_step": STEP, "seeds": 2},
        "search": {"trials": TRIALS, "batch": PACK},
        "verification": {"size": "nano", "tokens": 24 * STEP, "seeds": 2},
        "ray": {"address": "in-process", "pack_size": PACK},
        "tracking": {"enabled": False},
    }


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database whose migrations, which take some seconds, have been run."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="session")
def undisturbed(
    small_experiment: dict[str, Any], empty_database: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Place:
    place = Place(tmp_path_factory.mktemp("undisturbed"), small_experiment | {"tracking": {"enabled": True}}, nursery)
    place.output.mkdir()
    shutil.copy(empty_database, place.output / "mlflow.db")
    place.search()
    return place


@pytest.fixture
def make_place(small_experiment: dict[str, Any], undisturbed: Place, tmp_path: Path) -> Callable[..., Place]:
    """A place with the prepared corpus of the undisturbed search and nothing else."""

    def make(fresh: bool = False, **changes: Any) -> Place:
        place = Place(tmp_path / "place", small_experiment | changes, None if fresh else undisturbed.nursery)
        shutil.copytree(undisturbed.output / "tokens", place.output / "tokens")
        return place

    return make
