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


def test_errors_keep_their_hint_across_processes() -> None:
    import pickle

    from mixopt.errors import DataError

    error = pickle.loads(pickle.dumps(DataError("what is wrong", "what to do")))
    assert (error.message, error.hint, error.exit_code) == ("what is wrong", "what to do", 3)
