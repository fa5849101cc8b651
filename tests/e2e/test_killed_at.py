"""kill -9 at named points of the real command: afterwards it completes, trains nothing finished again, counts nothing twice, answers the same.

The points are hit by number, not by luck: a process kills itself when it passes one (`failpoints/sitecustomize.py`). One search that nobody
disturbs is the reference for all.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History, TrialRecord
from mixopt.trial import TrialState
from workers.compose import record_location
from workers.trial_folder import TrialFolder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
FAILPOINTS = Path(__file__).with_name("failpoints")
WORDS = {
    "code": "def return if else for while import class self none true x y z print",
    "prose": "the river ran past an old house where nobody had lived for years and grass grew",
}
STEP, TRIALS, PACK = 128, 6, 2
PATIENCE_SECONDS = 240.0


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

    def mirrored(self) -> list[Any]:
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=f"sqlite:///{self.output / 'mlflow.db'}")
        return list(client.search_runs([client.get_experiment_by_name("mixopt").experiment_id]))


def starts(lines: list[dict[str, Any]]) -> list[int]:
    """Tokens after the first step, each time that a trial was taken up."""
    return [line["tokens"] for line in lines if line["event"] == "training"]


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    started = Nursery(tmp_path_factory.mktemp("nursery"))
    yield started
    started.process.kill()
    started.process.communicate()


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
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


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database whose migrations, which take some seconds, have been run."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture(scope="module")
def undisturbed(raw: dict[str, Any], empty_database: Path, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("undisturbed"), raw | {"tracking": {"enabled": True}}, nursery)
    place.output.mkdir()
    shutil.copy(empty_database, place.output / "mlflow.db")
    place.search()
    return place


@pytest.fixture
def make_place(raw: dict[str, Any], undisturbed: Place, tmp_path: Path) -> Callable[..., Place]:
    """A place with the prepared corpus of the undisturbed search and nothing else."""

    def make(fresh: bool = False, **changes: Any) -> Place:
        place = Place(tmp_path / "place", raw | changes, None if fresh else undisturbed.nursery)
        shutil.copytree(undisturbed.output / "tokens", place.output / "tokens")
        return place

    return make


def check_completed(place: Place, undisturbed: Place) -> None:
    """Everything is there once, and as if nothing had happened."""
    assert place.answer() == undisturbed.answer()
    records = place.records()
    assert {record.state for record in records} == {TrialState.COMPLETED}
    trained = {record.trial.trial_id for record in records}
    with sqlite3.connect(record_location(place.output)) as connection:
        counted = Counter(row[0] for row in connection.execute("select subject from events where kind = 'completed'"))
    connection.close()
    assert counted == dict.fromkeys(trained, 1)
    with History.open(record_location(place.output)) as history:
        context = history.document(place.search_id(history), "context")
        assert context is not None
        names = [domain["name"] for domain in context["domains"]]
        table = history.swarm(place.search_id(history), names, context["metrics"]).table
    assert len(table) == len(table.unique(["trial_id", "metric", "tokens"])) > 0
    assert set(place.work()) == trained
    assert all([line["event"] for line in lines].count("finished") <= 1 for lines in place.work().values())
    assert not list((place.output / "trials").rglob("*.tmp"))


# What a driver is killed at, and how often the process has passed the point then. Trials are asked for two at a time.
DRIVER_POINTS = {
    "after it asked, before the record": "driver-after-ask:2",
    "after the record, before it submits": "driver-after-record:2",
    "after an outcome arrived, before it is recorded": "driver-before-outcome:3",
    "after an outcome is recorded": "driver-after-outcome:3",
    "before the first verification is recorded": f"driver-after-ask:{TRIALS // PACK + 1}",
    "in the middle of the verification": f"driver-before-outcome:{TRIALS + 2}",
    "before the proposal is recorded": "driver-before-proposal:2",
}


@pytest.mark.parametrize("when", DRIVER_POINTS)
def test_a_driver_killed(when: str, make_place: Callable[..., Place], undisturbed: Place) -> None:
    place = make_place()
    place.search(kill_at=DRIVER_POINTS[when], code=-signal.SIGKILL)
    assert place.killed()["point"] == DRIVER_POINTS[when].partition(":")[0]
    finished, work = place.finished(), place.work()
    assert finished, "the point is in the middle of the search"
    place.search()
    check_completed(place, undisturbed)
    assert {trial_id: place.finished()[trial_id] for trial_id in finished} == finished, "trained or scored again"
    assert {trial_id: starts(place.work()[trial_id]) for trial_id in finished} == {t: starts(work[t]) for t in finished}
    assert all(len(starts(lines)) == 1 for trial_id, lines in place.work().items() if trial_id in finished)


# What a mirror is killed at: 1 is the run of the search, 4 the third of its trials.
MIRROR_POINTS = {
    "having made the search's run, before it is noted": "mirror-after-run:1",
    "having made a trial's run, before it is noted": "mirror-after-run:4",
    "in the middle of the trials": "mirror-before-note:5",
    "having uploaded tables and figures, before it is noted": "mirror-in-artifacts:1",
}


@pytest.mark.parametrize("when", MIRROR_POINTS)
def test_a_process_killed_inside_the_mirror(when: str, make_place: Callable[..., Place], undisturbed: Place, empty_database: Path) -> None:
    place = make_place(tracking={"enabled": True})
    shutil.copy(empty_database, place.output / "mlflow.db")
    place.search(kill_at=MIRROR_POINTS[when], code=-signal.SIGKILL)
    assert place.killed()["point"] == MIRROR_POINTS[when].partition(":")[0]
    finished = place.finished()
    place.search()
    check_completed(place, undisturbed)
    assert {trial_id: place.finished()[trial_id] for trial_id in finished} == finished

    def seen(runs: list[Any]) -> dict[str, Any]:
        assert len({run.data.tags["mixopt.key"] for run in runs}) == len(runs), "a run is there twice"
        left_out = ("cost/seconds",)
        return {
            run.data.tags["mixopt.key"]: (
                run.info.run_name,
                run.info.status,
                {name: value for name, value in run.data.metrics.items() if name not in left_out},
                run.data.params,
            )
            for run in runs
        }

    assert seen(place.mirrored()) == seen(undisturbed.mirrored())


# What a worker is killed at: the checkpoint's place in its process, and tokens after the first step of each start of its trials.
WORKER_POINTS = {
    "before its checkpoint": ("worker-before-checkpoint:1", [STEP, STEP]),
    "during its checkpoint": ("worker-during-checkpoint:4", [STEP, 2 * STEP]),
    "after its checkpoint": ("worker-after-checkpoint:2", [STEP, 3 * STEP]),
}


@pytest.mark.ray
@pytest.mark.parametrize("when", WORKER_POINTS)
def test_a_worker_killed(when: str, make_place: Callable[..., Place], undisturbed: Place) -> None:
    """A real worker of Ray; the driver lives, and Ray runs the pack again."""
    point, resumed = WORKER_POINTS[when]
    place = make_place(fresh=True, ray={"cpus": 1, "pack_size": PACK})
    place.search(kill_at=point)
    check_completed(place, undisturbed)
    dead = place.killed()["pid"]
    hit = {trial_id: lines for trial_id, lines in place.work().items() if any(line["pid"] == dead for line in lines)}
    assert len(hit) == PACK
    assert {trial_id: starts(lines) for trial_id, lines in hit.items()} == dict.fromkeys(hit, resumed)
    others = {trial_id: starts(lines) for trial_id, lines in place.work().items() if trial_id not in hit}
    assert set(map(len, others.values())) == {1}
    left = place.killed()["files"]
    if "before" in when:
        assert all("checkpoint.safetensors" not in names for names in left.values())
    elif "during" in when:
        assert any(".tmp" in name for names in left.values() for name in names), "half a file was there"
        assert all("checkpoint.safetensors" in names for names in left.values())
    else:
        assert len(left) == PACK
        assert all("checkpoint.safetensors" in names and not any(".tmp" in n for n in names) for names in left.values())


@pytest.mark.parametrize("point", ["worker-before-result:1", "worker-after-result:1"])
def test_a_process_killed_between_the_end_of_training_and_the_driver(
    point: str, make_place: Callable[..., Place], undisturbed: Place
) -> None:
    """Trained, and nobody knows yet: the last checkpoint, or the result on disk, says so to the next process."""
    place = make_place()
    place.search(kill_at=point, code=-signal.SIGKILL)
    place.search()
    check_completed(place, undisturbed)
    assert all(len(starts(lines)) == 1 for lines in place.work().values()), "a trained trial was trained again"
