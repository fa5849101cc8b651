"""What a stopped search leaves when it is killed before its packs have ended, as a cluster does seconds after SIGTERM."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History
from mixopt.trial import TrialState
from workers.compose import record_location
from workers.trial_folder import TrialFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

TRIALS = 4
PATIENCE_SECONDS = 500.0
# A driver that hangs when it tells its packs to stop, so that it never ends by itself.
HANGING = "import time, workers.pack_runner as p; p.PackRunner.cancel = lambda self, ids: time.sleep(3600); "
COMMAND = "from mixopt.cli import main; main()"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    words = {"prose": "the river ran past an old house where grass grew", "tables": "one two three four five six row column"}
    for domain, text in words.items():
        chosen = random.Random(domain)
        lines = (json.dumps({"text": " ".join(chosen.choices(text.split(), k=60))}) for _ in range(120))
        (tmp_path / f"{domain}.jsonl").write_text("\n".join(lines))
    raw = {
        "name": "killed",
        "output": "run",
        "budget_tokens": "10B",
        "domains": [{"name": domain, "path": f"{domain}.jsonl", "tokens": "5B", "held_out": 0.2} for domain in words],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 122_880, "window": 64, "tokens_per_step": 128, "seeds": 2},
        "search": {"trials": TRIALS},
        "verification": {"enabled": False},
        "ray": {"address": "in-process", "pack_size": 1},
    }
    path = tmp_path / "killed.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def start(code: str, file: Path) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", code, "search", str(file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(look: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not look():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def statuses(output: Path) -> tuple[list[str], list[str]]:
    """Of the parent run and of its children in MLflow's database, read as it is: a client of ours would help to set it up, and be in the way."""
    children = "select run_uuid from tags where key = 'mlflow.parentRunId'"
    try:
        with closing(sqlite3.connect(f"file:{output / 'mlflow.db'}?mode=ro", uri=True)) as connection:
            parents = connection.execute(f"select status from runs where run_uuid not in ({children})").fetchall()
            trials = connection.execute(f"select status from runs where run_uuid in ({children})").fetchall()
    except sqlite3.OperationalError:
        return [], []  # not there yet, or not all of it
    return [status for (status,) in parents], sorted(status for (status,) in trials)


def work_done(output: Path) -> dict[str, list[str]]:
    trials = output / "trials"
    return {path.name: [line["event"] for line in TrialFolder(output, path.name).read_log()] for path in trials.glob("*")}


def test_killed_within_the_grace_it_is_closed_in_mlflow_and_goes_on(file: Path) -> None:
    output = file.parent / "run"
    process = start(HANGING + COMMAND, file)
    try:
        wait_for(lambda: statuses(output)[0] == ["RUNNING"] and "RUNNING" in statuses(output)[1], process)
        process.send_signal(signal.SIGTERM)
        # Within a second on a quiet machine (docs/log.md); here only that it comes before the driver has done anything else.
        wait_for(lambda: statuses(output)[0] == ["KILLED"] and "RUNNING" not in statuses(output)[1], process)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    with History.open(record_location(output)) as history:
        (search,) = history.searches()
        assert search.state == "interrupted"
        assert any(record.state is TrialState.RUNNING for record in history.trials(search.search_id)), "it was killed at work"

    process = start(COMMAND, file)
    _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, errors
    done = work_done(output)
    assert len(done) == TRIALS
    assert {events.count("finished") for events in done.values()} == {1}, "nothing is trained twice"
    assert statuses(output) == (["FINISHED"], ["FINISHED"] * TRIALS)
