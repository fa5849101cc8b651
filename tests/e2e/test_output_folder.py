"""An output folder that cannot take what a search writes: read-only, too small, or filling up on the way; real commands, real file systems."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from mixopt.history import History
from mixopt.trial import TrialState
from workers.compose import record_location

PATIENCE_SECONDS = 300.0
TEXTS = {"code": "def return if else for while import class self", "prose": "the river ran past an old house where nobody lived"}
# Without the floor, so that a disk fills up on the way and not before.
WITHOUT_FLOOR = "import workers.output_folder; workers.output_folder.SMALLEST_FREE_BYTES = 0; from mixopt.cli import main; main()"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for name, words in TEXTS.items():
        chosen = random.Random(name)
        texts = [" ".join(chosen.choices(words.split(), k=60)) + ".\n" for _ in range(150)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return folder


def write_experiment(corpus: Path, output: Path) -> Path:
    raw = {
        "name": "full",
        "output": str(output),
        "budget_tokens": "4B",
        "domains": [{"name": name, "path": str(corpus / f"{name}.jsonl"), "tokens": "3B", "held_out": 0.2} for name in TEXTS],
        "tokenizer": {"vocab_size": 512},
        "proxy": {"tokens": 2048, "window": 64, "tokens_per_step": 128, "seeds": 2},
        "search": {"trials": 8, "batch": 2},
        "verification": {"enabled": False},
        "tracking": {"enabled": False},
        "ray": {"address": "in-process", "pack_size": 2},
    }
    file = corpus / "experiment.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def mixopt(*arguments: str | Path, program: str = "from mixopt.cli import main; main()") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


def refused(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One sentence and its remedy, and no word of work before."""
    assert result.returncode == code, result.stderr
    problem, remedy = result.stderr.strip().splitlines()
    assert problem.startswith("error: ")
    for word in words:
        assert word in problem
    assert remedy


@contextmanager
def disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory of its own; only root may mount one."""
    folder.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"a file system cannot be mounted here: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=400m", str(folder)], check=True)


@pytest.mark.parametrize("command", ["prepare", "search"])
def test_a_folder_below_a_file_is_refused(command: str, corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    refused(mixopt(command, write_experiment(corpus, tmp_path / "file" / "run")), 2, "'output' is", "cannot be written (Not a directory)")


@pytest.mark.parametrize("command", ["prepare", "search"])
def test_a_read_only_folder_is_refused(command: str, corpus: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "ro") as folder:
        refused(mixopt(command, write_experiment(corpus, folder / "run")), 2, "'output' is", "cannot be written (Read-only file system)")


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind root")
def test_a_folder_of_somebody_else_is_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    refused(mixopt("search", write_experiment(corpus, tmp_path / "locked" / "run")), 2, "cannot be written (Permission denied)")


@pytest.mark.parametrize("command", ["prepare", "search"])
def test_a_disk_that_is_too_small_is_refused(command: str, corpus: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=5m") as folder:
        refused(mixopt(command, write_experiment(corpus, folder / "run")), 2, "where 5 MB are free, less than the 100 MB")


def test_a_disk_without_room_for_another_file_is_refused(corpus: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=400m,nr_inodes=1") as folder:
        refused(mixopt("prepare", write_experiment(corpus, folder)), 2, "'output' is", "cannot be written (No space left on device)")


@pytest.mark.slow
def test_a_disk_that_fills_up_while_preparing(corpus: Path, tmp_path: Path) -> None:
    with disk(tmp_path / "disk", "size=60k") as folder:
        file = write_experiment(corpus, folder / "run")
        full = mixopt("prepare", file, program=WITHOUT_FLOOR)
        assert full.returncode == 1
        assert "Traceback" not in full.stderr
        assert full.stderr.splitlines()[-2] == f"error: {folder / 'run'}: No space left on device."
        assert full.stderr.splitlines()[-1].startswith("Free space")
        enlarge(folder)
        assert mixopt("prepare", file).returncode == 0
        assert not list((folder / "run" / "tokens").glob("*.tmp")), "what was half-written is gone"


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [140, 1900])
def test_a_disk_that_fills_up_while_searching(kilobytes: int, corpus: Path, tmp_path: Path) -> None:
    """At 140 KB the record is not even made; at 1,900 KB some trials are trained and others not."""
    with disk(tmp_path / "disk", f"size={kilobytes}k") as folder:
        file = write_experiment(corpus, folder / "run")
        full = mixopt("search", file, program=WITHOUT_FLOOR)
        assert full.returncode in (1, 3, 5), full.stderr
        assert "Traceback" not in full.stderr
        assert full.stderr.splitlines()[-2].startswith("error: ")
        assert "full" in full.stderr or "No space left" in full.stderr
        enlarge(folder)
        before = completed(folder / "run")
        if kilobytes > 1000:
            assert 0 < len(before) < 8, "the disk was to fill up in the middle"
        again = mixopt("search", file)
        assert again.returncode == 0, again.stderr
        assert f"Trials: {8 - len(before)} trained now, {len(before)} already in the record." in again.stdout
        assert len(completed(folder / "run")) == 8


def completed(output: Path) -> set[str]:
    with History.open(record_location(output)) as history:
        return {
            record.trial.trial_id
            for search in history.searches()
            for record in history.trials(search.search_id)
            if record.state is TrialState.COMPLETED
        }
