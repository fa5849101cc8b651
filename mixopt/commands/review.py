"""What a search found: `show`, `report`, `mirror`, `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mixopt.commands.arguments import OutputFolder, SearchOption, find_search, open_record, stored_experiment
from mixopt.errors import ConfigError


def show(folder: OutputFolder, search_id: SearchOption = None) -> None:
    """Prints the trials of a search and its answer."""
    from rich.markdown import Markdown

    from mixopt.balance import Balance
    from mixopt.beginnings import trial_beginning
    from mixopt.terminal import make_console, print_line, rows_table
    from mixopt.tracking.findings import read_findings
    from mixopt.tracking.note import answer_markdown

    with open_record(folder) as history:
        record = find_search(history, folder, search_id)
        rows, remarks = [], []
        trials = history.trials(record.search_id)
        begun = any(trial.trial.inputs for trial in trials)
        for trial in trials:
            source = trial.trial.source
            seconds = f"{trial.outcome.seconds:.1f}" if trial.outcome else ""
            rows.append([trial.trial.trial_id[:8], trial.trial.label, source.key, str(trial.trial.seed), trial.state.value, seconds])
            if begun:
                rows[-1].append(trial_beginning(trial.trial))
            if trial.failure is not None:
                remarks.append(f"Trial {trial.trial.trial_id[:8]} {trial.state.value} ({trial.failure.kind}): {trial.failure.message}")
            balance = Balance.of(trial.outcome.diagnostics) if trial.outcome else None
            if balance is not None and balance.collapse:
                remarks.append(f"Trial {trial.trial.trial_id[:8]} has a collapsed router: {balance.collapse}.")
        console = make_console()
        columns = ["trial", "label", "source", "seed", "state", "s", *(["begins"] if begun else [])]
        console.print(rows_table(f"{record.name} {record.search_id} ({record.state})", columns, rows))
        for line in remarks:
            print_line(console, line)
        console.print(Markdown(answer_markdown(read_findings(history, record.search_id))))


def report(
    folder: OutputFolder,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; default: report.html in the search's folder, figures beside it.")
    ] = None,
    search_id: SearchOption = None,
) -> None:
    """Writes the report of a search as one HTML file, with its figures as PNG; also of one that is not finished."""
    from mixopt.tracking.report.write import REPORT_NAME, write_report

    with open_record(folder) as history:
        record = find_search(history, folder, search_id)
        place = folder / "searches" / f"{record.name}-{record.search_id[:8]}"
        target = out or place / REPORT_NAME
        if target.is_dir():
            raise ConfigError(f"--out {target} is a folder.", f"Name a file in it, as {target / REPORT_NAME}.")
        typer.echo(str(write_report(target, history, record.search_id, target.parent / "figures", folder)))


def mirror(
    folder: OutputFolder,
    uri: Annotated[str | None, typer.Option("--uri", help="Tracking server or database; default: as in the experiment file.")] = None,
    search_id: SearchOption = None,
) -> None:
    """Completes the MLflow mirror of a search from its record."""
    from mixopt.tracking.mlflow_mirror import MlflowMirror
    from workers.compose import tracking_uri

    with open_record(folder) as history:
        record = find_search(history, folder, search_id)
        experiment = stored_experiment(record)
        target = uri or tracking_uri(experiment)
        figures = folder / "searches" / f"{record.name}-{record.search_id[:8]}"
        mirrored = MlflowMirror(history, record.search_id, target, experiment.tracking.experiment, figures)
        mirrored.sync()
        typer.echo(f"MLflow at {mirrored.shown_uri} holds {len(history.trials(record.search_id))} trials of search {record.search_id[:8]}.")


def export(
    folder: OutputFolder,
    to: Annotated[str, typer.Option("--to", help="Format; `mixopt list` names them.", show_default=False)],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; default: exports/ in the search's folder.")] = None,
    arm: Annotated[
        str | None,
        typer.Option("--arm", help="proposal, best_measured, natural, uniform or unimax; default: what verification recommends."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="NAME=VALUE for the format, as prefix=/data/{domain}.")] = None,
    search_id: SearchOption = None,
) -> None:
    """Writes the mixture in the syntax of the trainer that runs the full-scale job, with provenance."""
    for path in export_mixture(folder, to, out, arm, search_id, name_value_pairs(option or [])):
        typer.echo(str(path))


def export_mixture(folder: Path, to: str, out: Path | None, arm: str | None, search_id: str | None, options: dict[str, str]) -> list[Path]:
    from mixopt.export import export_search, get_exporter

    get_exporter(to)  # a slip in the name is answered before the record is opened
    with open_record(folder) as history:
        record = find_search(history, folder, search_id)
        target = out or folder / "searches" / f"{record.name}-{record.search_id[:8]}" / "exports"
        return export_search(history, record.search_id, to, target, arm=arm, options=options)


def name_value_pairs(options: list[str]) -> dict[str, str]:
    """Values of `--option`, by name. Raises ConfigError where one is not NAME=VALUE."""
    pairs = {}
    for item in options:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--option {item} is not NAME=VALUE.", "Write it as --option prefix=/data/{domain}.")
        pairs[name] = value
    return pairs
