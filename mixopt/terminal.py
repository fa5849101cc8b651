"""What the command line shows: progress bars with rate and time left, tables, and the answer.

Everything goes to standard error except what a command was asked for, so that output can be piped. Where no terminal is, there are no bars
and no line is broken: a log is read by `grep`, and a path or command broken in two can be used by nobody.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mixopt.balance import Balance
from mixopt.groups.rules import LevelWeight
from mixopt.progress import Stage
from mixopt.runner import Failed, TrialEvent
from mixopt.runner import Progress as ProgressEvent
from mixopt.trial import FailureKind, Trial

if TYPE_CHECKING:
    from mixopt.history import TrialRecord

COLUMNS_WITHOUT_TERMINAL = 120
# A trial first heard of with more of its tokens done goes on from a checkpoint; one that begins reports after a step or two.
RESUMED_SHARE = 0.2

_SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))


def quantity(value: float) -> str:
    """A count as people read it: 950, 12.3K, 4.56M, 30B."""
    for scale, suffix in _SCALES:
        if abs(value) >= scale:
            return f"{value / scale:.3g}{suffix}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3g}"


class _Rate(ProgressColumn):
    """Amount done of the total, and units per second."""

    def render(self, task: Task) -> Text:
        unit = task.fields.get("unit", "")
        done = quantity(task.completed) if task.total is None else f"{quantity(task.completed)}/{quantity(task.total)}"
        speed = task.finished_speed or task.speed
        rate = f", {quantity(speed)} {unit}/s" if speed else ""
        return Text(f"{done} {unit}{rate}", style="progress.data.speed")


class _RichStage:
    def __init__(self, progress: Progress, task_id: Any) -> None:
        self._progress, self._task_id = progress, task_id

    def advance(self, amount: float) -> None:
        self._progress.advance(self._task_id, amount)


def make_console(stderr: bool = False) -> Console:
    """A console that is as wide as the terminal, or wide enough for our tables where there is none."""
    console = Console(stderr=stderr)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = COLUMNS_WITHOUT_TERMINAL
    return console


def make_bars(console: Console) -> Progress:
    """Progress bars that leave nothing behind; none where there is no terminal."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(bar_width=24), _Rate(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def print_line(console: Console, text: str) -> None:
    """Prints a line that the console must not break, such as a path or a command to copy."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class RichReporter:
    """Shows stages as progress bars on a terminal, and as plain lines where there is none.

    Attributes:
        console: standard error, for how the work goes.
        output: standard output, for what the command was asked for.
    """

    def __init__(self, console: Console | None = None, output: Console | None = None) -> None:
        self.console = console or make_console(stderr=True)
        self.output = output or make_console()

    @contextmanager
    def stage(self, title: str, total: float | None, unit: str) -> Iterator[Stage]:
        with make_bars(self.console) as progress:
            task_id = progress.add_task(title, total=total, unit=unit)
            yield _RichStage(progress, task_id)
            task = progress.tasks[0]
            seconds, amount = task.elapsed or 0.0, task.completed
        done = f", {quantity(amount)} {unit}" if amount else ""
        self.note(f"{title}: {seconds:.1f} s{done}.")

    def note(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=not self.console.is_terminal)


class SearchProgress:
    """Follows a search: one bar over the tokens of all its trials, and a line for each failure; without a terminal, a line per finished trial.

    Satisfies `mixopt.search.SearchObserver`. What was trained before this run counts as done, and not for the rate and the time left.
    """

    def __init__(self, console: Console) -> None:
        self._progress = make_bars(console)
        self._console = console
        self._done: dict[str, int] = {}  # source key -> finished trials
        self._ended: set[str] = set()
        self._bars: dict[str, Any] = {}  # source key -> bar
        self._trials: dict[str, Trial] = {}
        self._tokens: dict[str, int] = {}

    def __enter__(self) -> SearchProgress:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def asked(self, trials: Sequence[Trial]) -> None:
        for trial in trials:
            if trial.trial_id in self._trials:
                continue
            self._trials[trial.trial_id] = trial
            key = trial.source.key
            if key not in self._bars:
                self._bars[key] = self._progress.add_task(f"Training {trial.source.size} proxies", total=0.0, unit="tokens")
            bar = self._progress.tasks[self._progress.task_ids.index(self._bars[key])]
            self._progress.update(self._bars[key], total=(bar.total or 0.0) + trial.source.tokens)

    def event(self, event: TrialEvent) -> None:
        if isinstance(event, ProgressEvent):
            self._reach(event.trial_id, event.tokens)
        elif isinstance(event, Failed) and event.failure.kind is not FailureKind.CANCELLED:  # who cancels knows
            print_line(self._console, f"Trial {event.trial_id[:8]} failed ({event.failure.kind}): {event.failure.message}")

    def finished(self, record: TrialRecord) -> None:
        trial = record.trial
        known = trial.trial_id in self._tokens
        self._reach(trial.trial_id, trial.source.tokens)
        if trial.trial_id in self._ended:  # a later stage of the same search meets it again
            return
        self._ended.add(trial.trial_id)
        self._done[trial.source.key] = self._done.get(trial.source.key, 0) + 1
        if known and not self._console.is_terminal:
            of = sum(other.source.key == trial.source.key for other in self._trials.values())
            print_line(
                self._console, f"Trial {trial.trial_id[:8]} is {record.state.value}: {self._done[trial.source.key]} of {of} asked for."
            )
        balance = Balance.of(record.outcome.diagnostics) if known and record.outcome is not None else None
        if balance is not None and balance.collapse:
            print_line(self._console, f"Trial {trial.trial_id[:8]} has a collapsed router: {balance.collapse}.")

    def _reach(self, trial_id: str, tokens: int) -> None:
        trial = self._trials.get(trial_id)
        if trial is None:
            return
        bar = self._bars[trial.source.key]
        # A trial that goes on from a checkpoint reports fewer tokens than before its worker was lost.
        step = tokens - self._tokens.get(trial_id, 0)
        if trial_id not in self._tokens and tokens > RESUMED_SHARE * trial.source.tokens:
            # Trained by an earlier run: done, but not at a rate that tells when the rest will be.
            task = self._progress.tasks[self._progress.task_ids.index(bar)]
            self._progress.reset(bar, completed=int(task.completed + step))
        else:
            self._progress.advance(bar, step)
        self._tokens[trial_id] = tokens


def answer_table(
    mixture: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]],
    epochs: Mapping[str, float],
    near_optimal: Mapping[str, tuple[float, float]],
    max_epochs: Mapping[str, float],
) -> Table:
    """The proposed mixture next to its baselines, largest weight first; a domain at its epoch cap is marked."""
    table = Table(title="Proposed mixture (share of tokens, %)", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # A name too long for its column goes on in the next line; cut off, two domains could look the same.
    table.add_column("domain", overflow="fold")
    table.add_column("proposed", justify="right", style="bold", no_wrap=True)
    table.add_column("near-\noptimal", justify="right", no_wrap=True)
    for name in baselines:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("epochs", justify="right", no_wrap=True)
    for domain in sorted(mixture, key=lambda name: -mixture[name]):
        low, high = near_optimal.get(domain, (float("nan"), float("nan")))
        at_cap = epochs[domain] >= max_epochs[domain] * (1 - 1e-3)
        table.add_row(
            domain,
            f"{100 * mixture[domain]:.1f}",
            f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}",
            *(f"{100 * weights[domain]:.1f}" for weights in baselines.values()),
            f"{epochs[domain]:.2f}{' cap' if at_cap else ''}",
        )
    return table


def levels_table(rows: Sequence[LevelWeight], names: Sequence[str] = ()) -> Table:
    """The weight of each group, sub-groups under their group; `names` are those of the levels, where the experiment file gives them."""
    table = Table(title="Weights per level (share of tokens, %)", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(" / ".join(names) or "group", overflow="fold")
    for title in ("weight", "of its parent", "natural"):
        table.add_column(title, justify="right", style="bold" if title == "weight" else "", no_wrap=True)
    for row in rows:
        shown = "  " * (row.level - 1) + row.path
        table.add_row(Text(shown), f"{100 * row.weight:.1f}", f"{100 * row.share:.1f}", f"{100 * row.natural:.1f}")
    return table


def rows_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A plain table; the first column is text, the others numbers. Brackets, as in `part[0].jsonl`, are no markup."""
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table
