"""The commands. Each says in one line what it did, or in one sentence what is wrong and how to mend it.

Exit codes: 0 done, 1 error, 2 wrong option or experiment file, 3 data, 4 infeasible constraints, 5 trials could not be run, 130 interrupted.
Heavy libraries are imported inside the commands, so that `mixopt --help` answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from mixopt import __version__
from mixopt.errors import ConfigError, DataError, MixoptError

if TYPE_CHECKING:
    from mixopt.history import History, SearchRecord
    from workers.run import Finished

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Finds the mixture of training domains for a language model by training many small proxy MoE models.",
)
corpus_app = typer.Typer(no_args_is_help=True, help="Corpora that mixopt builds itself.", rich_markup_mode=None)
app.add_typer(corpus_app, name="corpus")

INTERRUPTED = 130
OUTSIDE_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EEXIST, errno.EIO)

ExperimentFile = Annotated[Path, typer.Argument(metavar="FILE", help="Experiment file (YAML).", show_default=False)]
OutputFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a search.", show_default=False)]
SearchOption = Annotated[str | None, typer.Option("--search", help="Search id or its first digits; default: the newest search in DIR.")]


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"mixopt {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder of the demo's corpus, record and results.")] = Path("runs/demo"),
    trials: Annotated[int | None, typer.Option("--trials", min=4, help="Trials of the search; default: as in the demo's file.")] = None,
) -> None:
    """Runs the main job on a corpus built from this installation: prepare, search, verify, export."""
    from mixopt.corpus.demo import build_demo_corpus
    from mixopt.terminal import RichReporter, print_line

    started = time.perf_counter()
    reporter = RichReporter()
    file = out / "experiment.yaml"
    if not file.exists():
        _print_corpus(build_demo_corpus(out, reporter), reporter)
    finished = _search(file, reporter, trials)
    written = _export(finished.search.store, "yaml", None, None, finished.search.search_id, {})
    _print_answer(finished, reporter)
    for path in written:
        print_line(reporter.output, f"Exported: {path}")
    reporter.note(f"Done in {(time.perf_counter() - started) / 60:.1f} minutes.")


@corpus_app.command("demo")
def corpus_demo(out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)]) -> None:
    """Builds real domains from what this installation already holds; offline and deterministic."""
    from mixopt.corpus.demo import build_demo_corpus
    from mixopt.terminal import RichReporter

    reporter = RichReporter()
    _print_corpus(build_demo_corpus(out, reporter), reporter)


@app.command()
def prepare(file: ExperimentFile) -> None:
    """Turns documents into token files; does only what is missing."""
    from mixopt.config import load_experiment
    from mixopt.terminal import RichReporter, quantity, rows_table
    from workers.compose import check_experiment
    from workers.tokenize import prepare as prepare_corpus

    experiment = load_experiment(file)
    check_experiment(experiment)
    reporter = RichReporter()
    manifest = prepare_corpus(experiment, reporter)
    parts = [(f"{name} (train)", files.train, True) for name, files in manifest.domains.items()]
    parts += [(f"{name} (valid)", files.valid, True) for name, files in manifest.domains.items()]
    # Completion targets count the bytes of completions and the tokens of prompts too: their ratio says nothing.
    parts += [(f"{name} (target)", target.file, target.kind == "text") for name, target in manifest.targets.items()]
    rows = [
        [name, f"{part.documents:,}", quantity(part.tokens), f"{part.bytes / max(part.tokens, 1):.2f}" if comparable else ""]
        for name, part, comparable in parts
    ]
    reporter.output.print(rows_table(f"Tokens in {manifest.root}", ["file", "documents", "tokens", "bytes per token"], rows))


@app.command()
def search(
    file: ExperimentFile,
    trials: Annotated[int | None, typer.Option("--trials", min=4, help="Overrides search.trials; raising it continues the search.")] = None,
) -> None:
    """Searches, proposes and verifies; the same command goes on after an interruption and trains nothing twice."""
    from mixopt.terminal import RichReporter

    reporter = RichReporter()
    _print_answer(_search(file, reporter, trials), reporter)


@app.command()
def show(folder: OutputFolder, search_id: SearchOption = None) -> None:
    """Prints the trials of a search and its answer."""
    from rich.markdown import Markdown

    from mixopt.terminal import make_console, print_line, rows_table
    from mixopt.tracking.findings import read_findings
    from mixopt.tracking.note import answer_markdown

    with _record(folder) as history:
        record = _find_search(history, folder, search_id)
        rows, failures = [], []
        for trial in history.trials(record.search_id):
            source = trial.trial.source
            seconds = f"{trial.outcome.seconds:.1f}" if trial.outcome else ""
            rows.append([trial.trial.trial_id[:8], trial.trial.label, source.key, str(trial.trial.seed), trial.state.value, seconds])
            if trial.failure is not None:
                failures.append(f"Trial {trial.trial.trial_id[:8]} {trial.state.value} ({trial.failure.kind}): {trial.failure.message}")
        console = make_console()
        console.print(
            rows_table(f"{record.name} {record.search_id} ({record.state})", ["trial", "label", "source", "seed", "state", "s"], rows)
        )
        for line in failures:
            print_line(console, line)
        console.print(Markdown(answer_markdown(read_findings(history, record.search_id))))


@app.command()
def mirror(
    folder: OutputFolder,
    uri: Annotated[str | None, typer.Option("--uri", help="Tracking server or database; default: as in the experiment file.")] = None,
    search_id: SearchOption = None,
) -> None:
    """Completes the MLflow mirror of a search from its record."""
    from mixopt.tracking.mlflow_mirror import MlflowMirror
    from workers.compose import tracking_uri

    with _record(folder) as history:
        record = _find_search(history, folder, search_id)
        experiment = _stored_experiment(record)
        target = uri or tracking_uri(experiment)
        figures = folder / "searches" / f"{record.name}-{record.search_id[:8]}"
        mirrored = MlflowMirror(history, record.search_id, target, experiment.tracking.experiment, figures)
        mirrored.sync()
        typer.echo(f"MLflow at {mirrored.shown_uri} holds {len(history.trials(record.search_id))} trials of search {record.search_id[:8]}.")


@app.command()
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
    for path in _export(folder, to, out, arm, search_id, _pairs(option or [])):
        typer.echo(str(path))


@app.command("list")
def list_names() -> None:
    """Names that an experiment file or an option may use: strategies, surrogates, formats."""
    from mixopt.export import exporter_names
    from mixopt.strategies import strategy_names
    from mixopt.surrogates import surrogate_names

    for title, names in (("strategies", strategy_names()), ("surrogates", surrogate_names()), ("formats", exporter_names())):
        typer.echo(f"{title}: {', '.join(names)}")


@app.command()
def schema() -> None:
    """Prints the JSON schema of the experiment file."""
    from mixopt.config import json_schema

    typer.echo(json.dumps(json_schema(), indent=2))


def _search(file: Path, reporter: Any, trials: int | None) -> Finished:
    from mixopt.config import load_experiment

    experiment = load_experiment(file)  # before anything heavy is loaded, so that a slip in the file is answered at once
    from mixopt.terminal import SearchProgress
    from workers.run import run

    if trials is not None:
        experiment = experiment.model_copy(update={"search": experiment.search.model_copy(update={"trials": trials})})
    with SearchProgress(reporter.console) as progress:
        return run(experiment, reporter, observers=(progress,))


def _print_corpus(corpus: Any, reporter: Any) -> None:
    from mixopt.terminal import quantity, rows_table

    rows = [[part.name, f"{part.documents:,}", quantity(part.bytes), part.taken_from] for part in corpus.parts]
    reporter.output.print(rows_table("Embedded corpus", ["part", "documents", "bytes", "taken from"], rows))


def _print_answer(finished: Finished, reporter: Any) -> None:
    from mixopt.config import without_login
    from mixopt.terminal import answer_table, print_line
    from workers.compose import tracking_uri

    output = reporter.output
    proposal, domains = finished.proposal, finished.search.domains
    baselines = {"natural": domains.natural(), "uniform": domains.uniform(), "UniMax": domains.unimax()}
    output.print(
        answer_table(
            proposal.mixture.as_dict(),
            {name: mixture.as_dict() for name, mixture in baselines.items()},
            proposal.epochs,
            proposal.near_optimal,
            {domain.name: domain.max_epochs for domain in domains.domains},
        )
    )
    for sentence in proposal.binding:
        print_line(output, f"Binding: {sentence}")
    if finished.verification is not None:
        output.print(finished.verification.conclusion, highlight=False, markup=False, soft_wrap=not output.is_terminal)
    print_line(output, f"Trials: {finished.trained} trained now, {finished.reused} already in the record.")
    print_line(output, f"Figures: {finished.search.folder / 'figures'}")
    print_line(output, f"Answer: {finished.search.folder / 'answer.md'}")
    experiment = finished.search.experiment
    if experiment.tracking.enabled:
        uri = without_login(tracking_uri(experiment))
        if uri.startswith("http"):
            print_line(output, f"Review: {uri}/?workflowType=machine_learning")
        else:
            print_line(output, f"Review: {sys.executable} -m mlflow ui --backend-store-uri {uri} --port 5000")
            print_line(output, "        then open http://127.0.0.1:5000/?workflowType=machine_learning")


def _export(folder: Path, to: str, out: Path | None, arm: str | None, search_id: str | None, options: dict[str, str]) -> list[Path]:
    from mixopt.export import export_search, get_exporter

    get_exporter(to)  # a slip in the name is answered before the record is opened
    with _record(folder) as history:
        record = _find_search(history, folder, search_id)
        target = out or folder / "searches" / f"{record.name}-{record.search_id[:8]}" / "exports"
        return export_search(history, record.search_id, to, target, arm=arm, options=options)


def _record(folder: Path) -> History:
    from mixopt.history import History
    from workers.compose import record_location

    location = record_location(folder)
    if not location.exists():
        raise DataError(f"{folder} holds no record of a search.", "Name the `output` folder of an experiment file that was searched.")
    return History.open(location)


def _find_search(history: History, folder: Path, search_id: str | None) -> SearchRecord:
    searches = history.searches()
    if search_id is not None:
        searches = [record for record in searches if record.search_id.startswith(search_id)]
        if len(searches) > 1:
            raise ConfigError(f"--search {search_id} fits {len(searches)} searches in {folder}.", "Give more digits.")
    if not searches:
        raise DataError(f"{folder} holds no search{'' if search_id is None else ' ' + search_id}.", "Run `mixopt search FILE` first.")
    return searches[-1]


def _stored_experiment(record: SearchRecord) -> Any:
    import yaml

    from mixopt.config import parse_experiment

    return parse_experiment(yaml.safe_load(record.experiment_yaml), Path("/"))


def _pairs(options: list[str]) -> dict[str, str]:
    pairs = {}
    for item in options:
        name, equals, value = item.partition("=")
        if not equals:
            raise ConfigError(f"--option {item} is not NAME=VALUE.", "Write it as --option prefix=/data/{domain}.")
        pairs[name] = value
    return pairs


def _interrupt(number: int, frame: object) -> None:
    """Schedulers stop jobs with SIGTERM: end as on Ctrl-C, with the record consistent and checkpoints written."""
    raise KeyboardInterrupt


def _leave(kind: str, message: str, hint: str, code: int) -> NoReturn:
    """Ends the process with what is wrong and how to mend it."""
    typer.secho(f"{kind}: {message}", fg=typer.colors.YELLOW if code == INTERRUPTED else typer.colors.RED, err=True)
    if hint:
        typer.echo(hint, err=True)
    sys.exit(code)


def main() -> None:
    """Entry point of the console script."""
    # Read by glibc and OpenMP when a process starts, so that workers started from here are single-threaded unless the user says otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, _interrupt)
    again = "The same command goes on where it stopped."
    try:
        app()
    except MixoptError as error:
        _leave("interrupted" if error.exit_code == INTERRUPTED else "error", error.message, error.hint, error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        # typer makes the first the second. A search turns it into SearchInterrupted itself, unless it is interrupted while it does.
        if isinstance(end, KeyboardInterrupt) or end.code == INTERRUPTED:
            _leave("interrupted", "The command was stopped.", again, INTERRUPTED)
        raise
    except OSError as error:
        # The disk is full, or a folder cannot be written: not a fault of mixopt's, wherever it happens. Others keep their traceback.
        if error.errno not in OUTSIDE_TROUBLE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _leave("error", f"{place}{error.strerror}.", f"Free space or mend the permissions, or name another folder. {again}", 1)
