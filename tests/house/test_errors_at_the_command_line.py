"""What a user sees when something is wrong: one sentence, a remedy, an exit code, and no traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


def mixopt(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mixopt.cli import main; main()", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["search", "none.yaml"], 2, "none.yaml does not exist"),
        (["show", "nowhere"], 3, "nowhere holds no record of a search"),
        (["mirror", "nowhere"], 3, "nowhere holds no record of a search"),
        (["export", "nowhere", "--to", "yaml"], 3, "nowhere holds no record of a search"),
        (["export", "nowhere", "--to", "yaml", "--option", "x"], 2, "is not NAME=VALUE"),
    ],
)
def test_a_mistake_is_one_sentence_with_a_remedy(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    result = mixopt(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("search: {strategy: regresion}", 2, "no strategy 'regresion'"),
        ("search: {surrogate: gausian_process}", 2, "no surrogate 'gausian_process'"),
        ("proxy: {size: nanno}", 2, "'proxy.size' is 'nanno'"),
        ("output: file/run", 2, "which cannot be written (Not a directory)"),
        ("budget_tokens: 30B", 4, "No mixture is feasible"),
    ],
)
def test_prepare_finds_a_wrong_experiment_before_it_reads(line: str, code: int, message: str, tmp_path: Path) -> None:
    lines = {"name": "name: x", "output": "output: run", "budget_tokens": "budget_tokens: 1B"} | {line.partition(":")[0]: line}
    domains = [f"  - {{name: {name}, path: no-such-file.jsonl, tokens: 1B}}" for name in "ab"]
    (tmp_path / "file").write_text("no folder")
    file = tmp_path / "experiment.yaml"
    file.write_text("\n".join([*lines.values(), "domains:", *domains]))
    result = mixopt("prepare", str(file))
    assert result.returncode == code, result.stderr
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 2


def test_errors_keep_their_hint_across_processes() -> None:
    import pickle

    from mixopt.errors import DataError

    error = pickle.loads(pickle.dumps(DataError("what is wrong", "what to do")))
    assert (error.message, error.hint, error.exit_code) == ("what is wrong", "what to do", 3)
