"""What users see of a record that cannot be written, and what a new proposal does to the verdict on an earlier one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import DataError
from mixopt.history import History
from mixopt.search import SearchInterrupted, run_trials


def test_a_verdict_leaves_with_the_proposal_it_was_about(history: History) -> None:
    history.save_document("s1", "proposal", {"weights": [0.5, 0.5]}, outdates=["verification"])
    history.save_document("s1", "verification", {"winner": "proposal"})
    history.save_document("s1", "proposal", {"weights": (0.5, 0.5)}, outdates=["verification"])
    assert history.document("s1", "verification") is not None, "the same proposal again"
    history.save_document("s1", "proposal", {"weights": [0.6, 0.4]}, outdates=["verification"])
    assert history.document("s1", "verification") is None


def test_a_record_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    """A full disk, made by a limit on the size of files, which SQLite meets as the same error."""
    program = (
        "import signal, resource, sys\n"
        "from mixopt.errors import DataError\n"
        "from mixopt.history import History\n"
        "history = History.open(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "try:\n"
        "    for n in range(1000):\n"
        "        history.add_search(f's{n}', 'name', 'x' * 10_000)\n"
        "except DataError as error:\n"
        "    print(error.message)\n"
        "    print(error.hint)\n"
    )
    location = tmp_path / "record.sqlite"
    ended = subprocess.run([sys.executable, "-c", program, str(location)], capture_output=True, text=True, check=False)
    message, hint = ended.stdout.splitlines()
    assert message.startswith(f"The record {location} could not be written: ")
    assert "run the same command again" in hint
    with History.open(location) as history:
        assert len(history.searches()) > 1, "what was recorded before is there"


def test_an_interruption_says_which_stage_it_stopped(history: History, lab: Any) -> None:
    trials = lab.grid(4)

    def interrupt(event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SearchInterrupted, match="Verification stopped: 0 of the 4 trials asked for so far are finished"):
        run_trials(history, "s1", "verification", lab.runner(on_event=interrupt), trials, lab.metrics)


def test_an_unknown_search_is_an_error_of_the_record_not_of_the_database(history: History) -> None:
    with pytest.raises(DataError, match="is not in the record"):
        history.search("nowhere")
