"""`mixopt search` with a program of the user's own as the proxy: to an answer, through kill -9, and to a sentence where the program is at fault."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History, TrialRecord
from mixopt.trial import TrialState
from mixopt.verification import Verification
from workers.compose import record_location

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "tests" / "workers" / "own_trainer" / "program.py"
TRIALS = 10
PATIENCE_SECONDS = 400.0


class Place:
    """An experiment file and the output of its search."""

    def __init__(self, folder: Path, mode: str, **changes: Any) -> None:
        self.output, self.file = folder / "run", folder / "experiment.yaml"
        raw = {
            "name": "command",
            "output": str(self.output),
            "budget_tokens": "50B",
            "domains": [{"name": "a", "tokens": "60B"}, {"name": "b", "tokens": "40B"}],
            "trainer": {
                "kind": "command",
                "name": "toy",
                "tokens": 1000,
                "metrics": ["loss", {"name": "accuracy", "weight": 0, "maximize": True}],
                "command": ["{python}", str(PROGRAM), mode, "{request}", "{result}"],
                "unit": "nats",
            },
            "search": {"surrogate": "ridge", "trials": TRIALS},
            "tracking": {"enabled": False},
            "ray": {"address": "in-process", "cpus": 2},
        }
        self.file.write_text(yaml.safe_dump(raw | changes))

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", "from mixopt.cli import main; main()", "search", str(self.file)]
        environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    def search(self, code: int = 0) -> tuple[str, str]:
        process = self.start()
        output, errors = process.communicate(timeout=PATIENCE_SECONDS)
        assert process.returncode == code, errors[-3000:]
        return output, errors

    def records(self, stage: Any = None) -> list[TrialRecord]:
        with History.open(record_location(self.output)) as history:
            (search,) = history.searches()
            return history.trials(search.search_id, stage)

    def document(self, kind: str) -> Any:
        with History.open(record_location(self.output)) as history:
            (search,) = history.searches()
            return history.document(search.search_id, kind)

    def programs(self) -> dict[str, list[int]]:
        """Trial id -> the process of every start of its program."""
        found = {}
        for path in self.output.glob("trials/*/program/files/begun"):
            found[path.parents[2].name] = [int(line) for line in path.read_text().split()]
        return found

    def let_all_go(self) -> None:
        for files in self.output.glob("trials/*/program/files"):
            (files / "go").touch()


def wait_for(true: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


@pytest.fixture
def endings() -> Iterator[list[Place]]:
    """Ends programs whose driver a test has killed, by their process ids."""
    places: list[Place] = []
    yield places
    for place in places:
        for pid in (pid for pids in place.programs().values() for pid in pids):
            try:
                if PROGRAM.name.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


def test_a_search_ends_in_a_verified_answer(tmp_path: Path) -> None:
    place = Place(tmp_path, "says all", verification={"size": "toy-large", "tokens": 4000, "seeds": 2})
    output, _ = place.search()
    assert "Proposed mixture" in output
    assert "At a larger source (toy-large, 4,000 tokens, 2 paired seeds)" in output
    assert " nats " in output
    assert "bits per byte" not in output
    assert {record.state for record in place.records()} == {TrialState.COMPLETED}
    assert len(place.records("search")) == TRIALS
    verification = Verification.from_json(place.document("verification"))
    assert verification.source.key == "command/toy-large/4000"
    proposal = place.document("proposal")
    shares = dict(zip(proposal["schedule"]["domains"], proposal["schedule"]["weights"][0], strict=True))
    assert shares["a"] < 0.35, "the loss grows with the share of a; half of the budget at most fits into b"
    (answer,) = place.output.glob("searches/*/answer.md")
    assert "bits per byte" not in answer.read_text(encoding="utf-8")
    before = place.programs()
    again, _ = place.search()
    assert "0 trained now" in again
    assert place.programs() == before


@pytest.mark.parametrize("address", ["in-process", pytest.param(None, marks=[pytest.mark.ray, pytest.mark.slow])])
def test_a_driver_killed_while_programs_run_loses_nothing(tmp_path: Path, endings: list[Place], address: str | None) -> None:
    place = Place(tmp_path, "waits", ray={"address": address, "cpus": 2})
    endings.append(place)
    driver = place.start()
    wait_for(lambda: len(place.programs()) == 2, driver)
    driver.kill()
    driver.communicate()
    first = place.programs()
    second = place.start()
    if address == "in-process":
        # The programs have outlived their driver; the next one waits for them instead of starting others.
        time.sleep(1.0)
        assert place.programs() == first
    while second.poll() is None:
        place.let_all_go()
        time.sleep(0.05)
    output, errors = second.communicate()
    assert second.returncode == 0, errors[-3000:]
    assert "Proposed mixture" in output
    starts = place.programs()
    assert {record.state for record in place.records()} == {TrialState.COMPLETED}
    assert {record.trial.trial_id for record in place.records()} == set(starts)
    if address == "in-process":
        assert {trial_id: len(pids) for trial_id, pids in starts.items()} == dict.fromkeys(starts, 1)
        assert {trial_id: starts[trial_id] for trial_id in first} == first


@pytest.mark.slow
def test_an_interrupted_search_ends_its_programs_and_goes_on(tmp_path: Path, endings: list[Place]) -> None:
    place = Place(tmp_path, "waits")
    endings.append(place)
    driver = place.start()
    wait_for(lambda: len(place.programs()) == 2, driver)
    driver.send_signal(signal.SIGTERM)
    assert driver.wait(timeout=PATIENCE_SECONDS) == 130
    driver.communicate()
    pids = [pid for pids in place.programs().values() for pid in pids]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert {record.attempts for record in place.records()} == {0}


def test_a_program_at_fault_is_told_in_its_own_words(tmp_path: Path) -> None:
    _, errors = Place(tmp_path, "forgets a metric").search(code=5)
    assert "trials were abandoned" in errors
    assert "The result lacks the metric accuracy." in errors


@pytest.mark.slow
def test_a_failing_program_is_tried_again(tmp_path: Path) -> None:
    place = Place(tmp_path, "fails once")
    place.search()
    assert {len(pids) for pids in place.programs().values()} == {2}
    assert {record.attempts for record in place.records()} == {1}


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"command": ["no-such-program-at-all"]}, "'trainer.command' begins with 'no-such-program-at-all', which is no program here"),
        ({"folder": "nowhere"}, "'trainer.folder' is "),
        ({"command": ["{python}", "{requst}"]}, "'{requst}' stands for nothing; did you mean '{request}'?"),
        ({"command": "python train.py"}, "there is no shell to take it apart"),
        ({"time_limit": "soon"}, "'soon' is not a time; write 90s, 30m, 2h or 1.5d"),
        ({"metrics": []}, "trainer.metrics"),
        ({"metrics": ["loss", "loss"]}, "metric names repeat: loss"),
        ({"metrics": [{"name": "loss", "weigth": 2}]}, "Unknown key 'trainer.metrics[0].weigth'"),
        ({"metrics": [{"name": "loss", "weight": 0}]}, "no metric has a weight above 0"),
        ({"metrics": ["objective"]}, "a metric is called 'objective'"),
        ({"metrics": ["a"]}, "Domain 'a' is called like a metric"),
        ({"kind": "elsewhere"}, "command belongs to kind: command"),
        ({"kind": "elsewere"}, "'trainer.kind' is 'elsewere'"),
        ({"command": None}, "kind: command needs `command`"),
    ],
)
def test_a_wrong_trainer_is_found_before_anything_runs(tmp_path: Path, trainer: dict[str, Any], message: str) -> None:
    refused(Place(tmp_path, "works"), {"trainer": trainer}, message)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": [{"name": "t", "path": "x.jsonl"}]}, "`targets` is for mixopt's proxies"),
        ({"proxy": {"size": "micro"}}, "only `seeds` counts"),
        ({"tokenizer": {"vocab_size": 4096}}, "`tokenizer` is for mixopt's proxies"),
        ({"verification": {"tokens": 1000}}, "`verification` runs the trials of the search (toy, 1,000 tokens)"),
        ({"search": {"sources": [{"size": "nano", "tokens": 1000}]}}, "`search.sources` are sizes of mixopt's proxies"),
        ({"search": {"warm_start": ["old.csv"]}}, "`search.warm_start` reads runs of mixopt's proxies"),
        (
            {"constraints": {"most_domains": 1}, "domains": [{"name": "a", "tokens": "5B"}, {"name": "b", "tokens": "10B"}]},
            "No mixture is feasible",
        ),
        ({"ray": {"pack_size": 4}}, "`ray.pack_size`"),
        ({"objective": {"over": "domains"}}, "`objective.over`"),
        ({"objective": {"kind": "weighted"}}, "needs a weight of every metric, and loss have none"),
        ({"objective": {"floors": [{"metric": "los"}]}}, "los"),
        ({"domains": [{"name": "a", "tokens": "count"}, {"name": "b", "tokens": "1B"}]}, "Domain 'a' has tokens: count"),
        ({"budget_tokens": "900B"}, "No mixture is feasible"),
    ],
)
def test_what_a_trainer_would_ignore_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    refused(Place(tmp_path, "works"), changes, message)


def refused(place: Place, changes: dict[str, Any], message: str) -> None:
    """The file with these changes is an error before anything is computed."""
    from mixopt.errors import ConfigError, InfeasibleError
    from mixopt.experiment_file import load_experiment
    from workers.checks import check_experiment

    raw = yaml.safe_load(place.file.read_text())
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
    place.file.write_text(yaml.safe_dump(raw))
    with pytest.raises((ConfigError, InfeasibleError)) as found:
        check_experiment(load_experiment(place.file))
    assert message in found.value.message
    assert found.value.hint
