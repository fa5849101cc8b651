"""The record under violence: kill -9 of its writer at random moments, and several processes at once.

Writers are forked, not started anew, so that many rounds fit into seconds; they use nothing but the record and leave with `os._exit`.
"""

from __future__ import annotations

import os
import random
import select
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mixopt.history import History
from mixopt.trial import Trial, TrialState

KILLS = 12


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Runs `work(pipe)` in a child; returns its process id and the end of the pipe to read from."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    status = 1
    try:
        os.close(read)
        work(write)
        status = 0
    finally:
        os._exit(status)


def numbered(lab: Any, number: int) -> Trial:
    return lab.trial((0.5, 0.25, 0.25), seed=number, label=f"trial {number}")


def write_for_ever(path: Path, lab: Any, start: int, pipe: int) -> None:
    """Adds, starts and completes one trial after the other; each acknowledged write is told by one byte."""
    with History.open(path) as history:
        history.add_search("s1", "first", "")
        number = start
        while True:
            trial = numbered(lab, number)
            for write in (
                lambda trial=trial: history.add_trials("s1", [trial], "search"),
                lambda trial=trial: history.mark_running([trial.trial_id]),
                lambda trial=trial: history.complete(lab.outcome(trial)),
            ):
                write()
                os.write(pipe, b".")
            number += 1


def acknowledged_until_killed(child: int, pipe: int, at_least: int, delay_seconds: float) -> int:
    """Kills the child some time after so many acknowledgements; returns how many there were."""
    count = 0
    while count < at_least:
        received = os.read(pipe, at_least - count)
        assert received, "the writer ended by itself"
        count += len(received)
    time.sleep(delay_seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while select.select([pipe], [], [], 0)[0] and (rest := os.read(pipe, 1 << 16)):
        count += len(rest)
    os.close(pipe)
    return count


def check(path: Path, lab: Any) -> list[TrialState]:
    """Whole, and each outcome recorded exactly once; returns the states in ask order."""
    with sqlite3.connect(path) as connection:
        assert connection.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert connection.execute("pragma foreign_key_check").fetchall() == []
        completions = dict(connection.execute("select subject, count(*) from events where kind = 'completed' group by subject").fetchall())
    connection.close()
    with History.open(path) as history:
        records = history.trials("s1")
    for number, record in enumerate(records):
        trial = numbered(lab, number)
        assert (record.ordinal, record.trial) == (number, trial)
        assert completions.get(trial.trial_id, 0) == (record.state is TrialState.COMPLETED)
        assert record.outcome == (lab.outcome(trial) if record.state is TrialState.COMPLETED else None)
    return [record.state for record in records]


def test_every_acknowledged_write_survives_kill_9(tmp_path: Path, lab: Any) -> None:
    path, chance = tmp_path / "record.db", random.Random(5)
    History.open(path).close()
    done = 0
    for _ in range(KILLS):
        start = done

        def write(pipe: int, start: int = start) -> None:
            write_for_ever(path, lab, start, pipe)

        acknowledged = acknowledged_until_killed(*forked(write), chance.randrange(1, 12), chance.uniform(0, 0.02))
        states = check(path, lab)
        rank = {TrialState.PROPOSED: 1, TrialState.RUNNING: 2, TrialState.COMPLETED: 3}
        # How far the record got, in writes: all that were acknowledged, and at most the one that was under way.
        assert acknowledged <= 3 * (len(states) - 1 - start) + rank[states[-1]] <= acknowledged + 1
        done = sum(state is TrialState.COMPLETED for state in states)
        assert states[:done] == [TrialState.COMPLETED] * done
        assert len(states) <= done + 1
    assert done > 0


def test_a_killed_creation_leaves_nothing_that_cannot_be_opened(tmp_path: Path) -> None:
    chance = random.Random(2)
    for number in range(KILLS):
        path = tmp_path / f"{number}.db"

        def create(pipe: int, path: Path = path) -> None:
            os.write(pipe, b".")
            History.open(path).close()
            time.sleep(1)

        child, pipe = forked(create)
        acknowledged_until_killed(child, pipe, 1, chance.uniform(0, 0.03))
        with History.open(path) as history:
            assert history.searches() == []


def test_processes_create_and_write_one_record_at_once(tmp_path: Path, lab: Any) -> None:
    path, trials = tmp_path / "record.db", [numbered(lab, number) for number in range(12)]

    def work(which: int) -> Callable[[int], None]:
        def write(pipe: int) -> None:
            with History.open(path) as history:
                history.add_search(f"s{which}", f"search {which}", "")
                for trial in trials[which:] + trials[:which]:
                    history.add_trials(f"s{which}", [trial], "search")
                    history.mark_running([trial.trial_id])
                    history.complete(lab.outcome(trial))
            os.write(pipe, b".")

        return write

    children = [forked(work(which)) for which in range(3)]
    for child, pipe in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.close(pipe)
    with History.open(path) as history:
        for which in range(3):
            records = history.trials(f"s{which}")
            assert [record.trial for record in records] == trials[which:] + trials[:which]
            assert {record.state for record in records} == {TrialState.COMPLETED}
    with sqlite3.connect(path) as connection:
        assert connection.execute("select count(*) from events where kind = 'completed'").fetchone() == (12,)
    connection.close()
