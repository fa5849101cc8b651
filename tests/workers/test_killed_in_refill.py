"""kill -9 while a free place is given to the next trial: another process goes on, and everything ends as if nothing had happened."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mixopt.trial import FailureKind, Measurement
from proxy_models.checkpoint import load_checkpoint
from tests.workers.refill_job import STEP, make_job
from workers.control import DriverControl
from workers.train_pack import TrialResult, run_pack
from workers.trial_folder import TrialFolder

ROOT = Path(__file__).resolve().parents[2]
DIVERGING = 0


def measured(result: TrialResult) -> tuple[Measurement, ...] | FailureKind:
    if result.failure is not None:
        return result.failure.kind
    assert result.outcome is not None
    return result.outcome.measurements


def file_of(store: Path, trial_id: str) -> str:
    return hashlib.sha256(TrialFolder(store, trial_id).weights_path.read_bytes()).hexdigest()


def same_weights(one: Path, other: Path, trial_id: str) -> bool:
    first, second = (load_checkpoint(TrialFolder(store, trial_id).weights_path).tensors for store in (one, other))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def starts(store: Path, trial_id: str) -> list[int]:
    """Steps done after the first step, each time that a trial was taken up."""
    return [line["tokens"] // STEP for line in TrialFolder(store, trial_id).read_log() if line["event"] == "training"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, TrialResult]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    job = make_job(folder, DriverControl(folder / "control").folder)
    results = {result.trial_id: result for result in run_pack(job)}
    assert [measured(results[trial.trial_id]) is FailureKind.DIVERGED for trial in job.trials] == [True, False, False, False]
    return folder, results


# Trial 0 diverges after a step or two, and trial 2 takes its place: the first refill. The second is when trial 1 ends and 3 takes its place.
POINTS = [("before", 1), ("after", 1), ("before", 2), ("after", 2)]


@pytest.mark.parametrize(("when", "number"), POINTS)
def test_killed_in_a_refill(when: str, number: int, undisturbed: tuple[Path, dict[str, TrialResult]], tmp_path: Path) -> None:
    reference, expected = undisturbed
    control = DriverControl(tmp_path / "control")
    job = make_job(tmp_path, control.folder)
    ids = [trial.trial_id for trial in job.trials]
    command = [sys.executable, str(ROOT / "tests" / "workers" / "refill_job.py"), str(tmp_path), when, str(number)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    told = control.ended("pack")
    assert set(told) == set(ids[:number]), "who had ended was told before"
    finished = {trial_id: file_of(tmp_path, trial_id) for trial_id in ids[1:number]}
    before = {trial_id: starts(tmp_path, trial_id) for trial_id in ids}
    running = ids[number]
    assert len(before[running]) == 1

    results = {result.trial_id: result for result in run_pack(job)}
    assert {trial_id: measured(result) for trial_id, result in results.items()} == {t: measured(r) for t, r in expected.items()}
    assert all(same_weights(tmp_path, reference, trial_id) for trial_id in ids[1:])
    assert {trial_id: file_of(tmp_path, trial_id) for trial_id in finished} == finished
    after = {trial_id: starts(tmp_path, trial_id) for trial_id in ids}
    for trial_id in ids[:number]:
        assert after[trial_id] == before[trial_id], "trained again, though it had ended"
    assert len(after[running]) == 2
    assert after[running][1] > 1, "it went on from its checkpoint"
    assert all(after[trial_id] == [1] for trial_id in ids[number + 1 :])
