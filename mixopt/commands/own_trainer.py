"""Trials for a trainer of the user's own, that runs elsewhere: `ask`, `tell`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mixopt.commands.arguments import ExperimentFile, TrialsOption, with_trials
from mixopt.commands.review import name_value_pairs
from mixopt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mixopt.trial import Trial
    from workers.compose import Search
    from workers.own_trainer.exchange import Taken


def ask(
    file: ExperimentFile,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many trials; the budget of the search may leave fewer.")] = 16,
    to: Annotated[
        str, typer.Option("--to", help="csv, jsonl, or a format of `mixopt list`: then a folder per trial, and index.csv.")
    ] = "csv",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="File of a table, default: standard output; folder of other formats, default: asked/ in the search's folder."
        ),
    ] = None,
    again: Annotated[bool, typer.Option("--again", help="Those handed out and not told yet, instead of further ones.")] = False,
    option: Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE for the format, as prefix=/data/{domain}.")] = None,
    trials: TrialsOption = None,
) -> None:
    """Hands out mixtures to train elsewhere, with a trainer of your own; records them first."""
    from mixopt.experiment_file import load_experiment
    from mixopt.own_trainer.handed_out import TABLES, check_format, table

    experiment = with_trials(load_experiment(file), trials)
    options = name_value_pairs(option or [])
    check_format(to, options)
    from workers.own_trainer.exchange import ask as hand_out
    from workers.own_trainer.exchange import next_step, progress, sharing

    written: dict[Path, str] = {}

    def render(search: Search, asked: Sequence[Trial]) -> None:
        written.update(_rendered(search, asked, to, out, options) if asked else {})
        _check_places(list(written))

    handed = hand_out(experiment, count, again, render)
    for path, text in written.items():
        path.write_text(text, encoding="utf-8", newline="\n")
    if to in TABLES and out is None and handed.trials:
        typer.echo(table(handed.trials, to), nl=False)
    said = f"{len(handed.trials)} trials{' again' if again else ''}" if handed.trials else "Nothing to hand out"
    place = out or (next(iter(written)).parent if written else None)
    typer.echo(f"{said}{f' in {place}' if place and handed.trials else ''}: {progress(handed.search, handed.standing)}.", err=True)
    if handed.shared:
        typer.echo(sharing(handed), err=True)
    if not handed.trials:
        typer.echo(next_step(handed.standing), err=True)


def tell(
    file: ExperimentFile,
    results: Annotated[
        str,
        typer.Argument(
            metavar="RESULTS",
            help="CSV or JSON lines, - for standard input: trial_id, a column per metric, maybe status, reason, flops, seconds.",
        ),
    ],
    replace: Annotated[bool, typer.Option("--replace", help="Take values that differ from those told before in their place.")] = False,
    give_up: Annotated[bool, typer.Option("--give-up", help="Never hand out again what the table says has failed.")] = False,
    trials: TrialsOption = None,
) -> None:
    """Takes outcomes of trials that ran elsewhere, by id; proposes once the budget is told."""
    from mixopt.experiment_file import load_experiment

    experiment = with_trials(load_experiment(file), trials)
    text = _read(results)
    from workers.own_trainer.exchange import next_step, progress
    from workers.own_trainer.exchange import tell as take_in

    taken = take_in(experiment, text, "standard input" if results == "-" else Path(results).name, replace, give_up)
    typer.echo(_said(taken))
    elsewhere = experiment.trainer is not None and experiment.trainer.kind == "elsewhere"
    if not taken.standing.is_complete or not elsewhere:
        typer.echo(f"{progress(taken.search, taken.standing)[0].upper()}{progress(taken.search, taken.standing)[1:]}.")
        typer.echo(next_step(taken.standing) if elsewhere else "`mixopt search FILE` goes on from here.")
        return
    from mixopt.commands.main_job import print_answer, run_search
    from mixopt.terminal import RichReporter

    reporter = RichReporter()
    print_answer(run_search(experiment, reporter), reporter)


def _rendered(search: Search, trials: Sequence[Trial], to: str, out: Path | None, options: Mapping[str, str]) -> dict[Path, str]:
    """File -> text; none of a table that goes to standard output."""
    from mixopt.own_trainer.handed_out import TABLES, files, table
    from workers.search_context import context

    if to in TABLES:
        return {} if out is None else {out: table(trials, to)}
    folder = out or search.folder / "asked"
    return {folder / name: text for name, text in files(trials, to, search.search_id, context(search), options).items()}


def _check_places(paths: Sequence[Path]) -> None:
    """Makes the folders of files that are to be written, and tries them, before a trial is recorded.

    Raises:
        ConfigError: one cannot be written.
    """
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a"):
                pass
        except OSError as error:
            raise ConfigError(f"--out: {path} cannot be written ({error.strerror}).", "Name another place.") from error


def _read(results: str) -> str:
    try:
        body = sys.stdin.buffer.read() if results == "-" else Path(results).read_bytes()
        return body.decode("utf-8")
    except OSError as error:
        raise DataError(
            f"Results {results} cannot be read ({error.strerror}).", "Name a CSV file or JSON lines, or - for standard input."
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(f"{results} is not text in UTF-8 ({error.reason}).", "Save it as CSV or as JSON lines.") from error


def _said(taken: Taken) -> str:
    told = taken.told
    parts = [f"{len(told.outcomes)} outcomes recorded"]
    parts += [f"{len(told.failures)} failures recorded"] if told.failures else []
    parts += [f"{len(told.known)} known already"] if told.known else []
    parts += [f"{len(told.empty)} rows without a metric left out; write status `failed` for runs that failed"] if told.empty else []
    return f"{', '.join(parts)}."
