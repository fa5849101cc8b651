"""Whether a worker waits for a strategy that thinks: searches of two workers, each a process that keeps one core busy for as long as a trial takes.

    python benchmarks/asking.py [--quick] [--json FILE] [--domains N] [--observations N] [--seconds N ...] [--trials N]

Each strategy knows so many observations when it begins (runs of an earlier search), and is asked by the real loop over a real record; only training is
replaced by a process that counts for --seconds. `beside` says whether the loop asks while the workers are busy, or only once one is free, as it does for strategies that
do not think for long.

ask_seconds: median wall time of one question for a learned trial, beside the two busy workers. wait_seconds: median time from the end of a trial to the start of the next in its place.
idle_percent: of the workers' time, from the first learned trial on. --quick: 17 domains, 60 observations, one length of trials.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rows_file import why_unwritable, write_rows
from searching.play import Entrant, assignment_of
from searching.problems import Synthetic

from mixopt.history import History
from mixopt.proposal import Proposal
from mixopt.runner import Capacity, Completed, Started, TrialEvent
from mixopt.search import run_search
from mixopt.strategies import get_strategy
from mixopt.strategies.base import Assignment, Strategy
from mixopt.swarm import Swarm
from mixopt.trial import Measurement, Outcome, Trial

WORKERS = 2
FIRST = 6
"""Trials of the first design, the fewest there can be: earlier runs are known."""
COUNT = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"
ENTRANTS = (
    Entrant("bayes", "bayes", {"first": FIRST}),
    Entrant("bayes, knowledge", "bayes", {"first": FIRST, "acquisition": "knowledge"}),
    Entrant("pareto", "pareto", {"first": FIRST}),
    Entrant("climb", "climb"),
    Entrant("optuna TPE", "optuna", {"sampler": "tpe"}),
)


@dataclass(frozen=True)
class Row:
    strategy: str
    beside: bool
    domains: int
    observations: int
    trial_seconds: float
    ask_seconds: float
    wait_seconds: float
    idle_percent: float
    learned: int


@dataclass
class Timed:
    """A strategy whose questions are timed; asked beside the loop or in it."""

    strategy: Strategy
    asks_ahead: bool
    learned_from: float = float("inf")
    """When the first learned trial was asked for."""
    seconds: list[float] = field(default_factory=list)

    @property
    def assignment(self) -> Assignment:
        return self.strategy.assignment

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        begun = time.monotonic()
        asked = self.strategy.ask(count, completed, pending, abandoned)
        if any(trial.seed >= self.assignment.first_learned_seed for trial in asked):
            self.seconds.append(time.monotonic() - begun)
            self.learned_from = min(self.learned_from, time.monotonic())
        return asked

    def propose(self, completed: Swarm) -> Proposal:
        return self.strategy.propose(completed)


@dataclass
class Busy:
    """A runner whose trials are processes that count; it keeps when each began and ended."""

    problem: Synthetic
    keys: dict[str, str]
    trial_seconds: float
    waiting: list[Trial] = field(default_factory=list)
    running: list[tuple[Trial, subprocess.Popen[bytes]]] = field(default_factory=list)
    free_since: list[float] = field(default_factory=list)
    waits: list[tuple[float, float]] = field(default_factory=list)
    """When a worker became free, and when it began again."""

    def capacity(self) -> Capacity:
        return Capacity(WORKERS, 1)

    def submit(self, trials: Sequence[Trial]) -> None:
        self.waiting.extend(trials)
        while self.waiting and len(self.running) < WORKERS:
            trial = self.waiting.pop(0)
            self.running.append((trial, subprocess.Popen([sys.executable, "-c", COUNT, str(self.trial_seconds)])))
            if self.free_since:
                self.waits.append((self.free_since.pop(0), time.monotonic()))

    def events(self) -> Iterator[TrialEvent]:
        while self.running:
            ended = next((one for one in self.running if one[1].poll() is not None), None)
            if ended is None:
                time.sleep(0.005)
                continue
            self.running.remove(ended)
            self.free_since.append(time.monotonic())
            yield Started(ended[0].trial_id)
            yield Completed(ended[0].trial_id, self._outcome(ended[0]))
            self.submit([])

    def cancel(self, trial_ids: Collection[str]) -> None:
        """Nothing is cancelled here."""

    def close(self) -> None:
        for _, process in self.running:
            process.kill()

    def _outcome(self, trial: Trial) -> Outcome:
        losses = self.problem.run([trial], 0).values(list(self.problem.metrics))[0]
        tokens = trial.source.tokens
        measured = tuple(Measurement(key, tokens, float(loss), float(loss)) for key, loss in zip(self.keys, losses.tolist(), strict=True))
        weights = trial.schedule.average().as_dict()
        shares = {domain.content_hash: (weights[domain.name],) for domain in trial.domains}
        return Outcome(trial.trial_id, shares, measured, tokens, 1.0, self.trial_seconds)


def measure(entrant: Entrant, beside: bool, problem: Synthetic, observations: int, trial_seconds: float, learned: int) -> Row:
    trials = FIRST + learned
    blind = get_strategy("random", assignment_of(problem, entrant, observations, 1)).ask(
        observations - trials, Swarm.empty(problem.domains.names), [], []
    )
    assignment = replace(assignment_of(problem, entrant, trials, 0), earlier=problem.run(blind, 0))
    strategy = Timed(get_strategy(entrant.strategy, assignment, entrant.options), beside)
    keys = {f"key-{metric}": metric for metric in problem.metrics}
    runner = Busy(problem, keys, trial_seconds)
    with tempfile.TemporaryDirectory() as folder, History.open(f"sqlite:///{Path(folder) / 'record.db'}") as history:
        history.add_search("s", "asking", "")
        try:
            run_search(history, "s", strategy, runner, problem.domains.names, keys)
        finally:
            runner.close()
    # The first learned trials may have been asked for while those of the first design still ran.
    waits = [(free, began) for free, began in runner.waits if began >= strategy.learned_from]
    idle = sum(began - free for free, began in waits)
    busy = trial_seconds * len(waits)
    return Row(
        entrant.name,
        beside,
        len(problem.domains.names),
        observations,
        trial_seconds,
        float(np.median(strategy.seconds)) if strategy.seconds else float("nan"),
        float(np.median([began - free for free, began in waits])),
        100 * idle / (idle + busy),
        len(waits),
    )


def main() -> int:
    assert __doc__
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="17 domains, 60 observations, one length of trials")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, a list of flat objects")
    parser.add_argument("--domains", type=int, default=50, metavar="N")
    parser.add_argument("--observations", type=int, default=200, metavar="N", help="known when the last trial is asked for")
    parser.add_argument("--seconds", type=float, nargs="+", default=[5.0], metavar="N", help="that a trial takes")
    parser.add_argument("--trials", type=int, default=10, metavar="N", help="learned ones per search")
    arguments = parser.parse_args()
    if arguments.json is not None and (why := why_unwritable(arguments.json)):
        parser.error(why)
    if arguments.quick:
        arguments.domains, arguments.observations, arguments.seconds, arguments.trials = 17, 60, [2.0], 4
    problem = Synthetic(arguments.domains, 0)
    print(f"{'strategy':<20}{'beside':>8}{'domains':>9}{'known':>7}{'trial s':>9}{'ask s':>8}{'wait s':>8}{'idle %':>8}{'learned':>9}")
    rows = []
    for seconds in arguments.seconds:
        for entrant in ENTRANTS:
            for beside in (True, False):
                row = measure(entrant, beside, problem, arguments.observations, seconds, arguments.trials)
                rows.append(row)
                print(
                    f"{row.strategy:<20}{'yes' if beside else 'no':>8}{row.domains:>9}{row.observations:>7}{row.trial_seconds:>9g}"
                    f"{row.ask_seconds:>8.2f}{row.wait_seconds:>8.2f}{row.idle_percent:>8.1f}{row.learned:>9}"
                )
                if arguments.json is not None:
                    write_rows(arguments.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
