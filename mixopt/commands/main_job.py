"""The main job: `demo`, `corpus demo`, `prepare`, `search`."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixopt.commands.arguments import ExperimentFile, TrialsOption, open_record, with_trials
from mixopt.commands.review import export_mixture

if TYPE_CHECKING:
    from mixopt.config import Experiment
    from mixopt.domains import DomainSet
    from workers.run import Finished


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
    written = export_mixture(finished.search.store, "yaml", None, None, finished.search.search_id, {})
    print_answer(finished, reporter)
    for path in written:
        print_line(reporter.output, f"Exported: {path}")
    reporter.note(f"Done in {(time.perf_counter() - started) / 60:.1f} minutes.")


def corpus_demo(out: Annotated[Path, typer.Option("--out", help="Folder to write.", show_default=False)]) -> None:
    """Builds real domains from what this installation already holds; offline and deterministic."""
    from mixopt.corpus.demo import build_demo_corpus
    from mixopt.terminal import RichReporter

    reporter = RichReporter()
    _print_corpus(build_demo_corpus(out, reporter), reporter)


def prepare(file: ExperimentFile) -> None:
    """Turns documents into token files; does only what is missing."""
    from mixopt.experiment_file import load_experiment
    from mixopt.terminal import RichReporter, quantity, rows_table
    from workers.checks import check_experiment
    from workers.compose import checked_domains
    from workers.output_folder import named_in_errors
    from workers.own_trainer.pieces import refuse_trainer
    from workers.tokens.prepare import prepare as prepare_corpus

    experiment = load_experiment(file)
    refuse_trainer(experiment, "prepare")
    check_experiment(experiment)
    reporter = RichReporter()
    with named_in_errors(experiment.output_dir):
        manifest = prepare_corpus(experiment, reporter)
    parts = [(f"{name} (train)", files.train, True) for name, files in manifest.domains.items()]
    parts += [(f"{name} (valid)", files.valid, files.kind == "text") for name, files in manifest.domains.items()]
    # Held-out pairs count the bytes of completions and the tokens of prompts too: their ratio says nothing.
    parts += [(f"{name} (target)", target.file, target.kind == "text") for name, target in manifest.targets.items()]
    rows = [
        [name, f"{part.documents:,}", quantity(part.tokens), f"{part.bytes / max(part.tokens, 1):.2f}" if comparable else ""]
        for name, part, comparable in parts
    ]
    reporter.output.print(rows_table(f"Tokens in {manifest.root}", ["file", "documents", "tokens", "bytes per token"], rows))
    _print_inventory(checked_domains(experiment, manifest), reporter.output)


def search(
    file: ExperimentFile,
    trials: TrialsOption = None,
) -> None:
    """Searches, proposes and verifies; the same command goes on after an interruption and trains nothing twice."""
    from mixopt.terminal import RichReporter

    reporter = RichReporter()
    print_answer(_search(file, reporter, trials), reporter)


def _search(file: Path, reporter: Any, trials: int | None) -> Finished:
    from mixopt.experiment_file import load_experiment

    # Before anything heavy is loaded, so that a slip in the file is answered at once.
    return run_search(with_trials(load_experiment(file), trials), reporter)


def run_search(experiment: Experiment, reporter: Any) -> Finished:
    """Runs an experiment with its progress shown."""
    from mixopt.terminal import SearchProgress
    from workers.output_folder import named_in_errors
    from workers.run import run

    with named_in_errors(experiment.output_dir), SearchProgress(reporter.console) as progress:
        return run(experiment, reporter, observers=(progress,))


def _print_inventory(domains: DomainSet, output: Any) -> None:
    """What the target corpus holds; an estimate never looks like a count."""
    from mixopt.terminal import print_line, quantity, rows_table

    epochs = domains.epochs(domains.natural())
    marks = {"given": "", "counted": "counted", "estimated": "estimated from bytes"}
    rows = [
        [
            domain.name,
            f"{'about ' * (domain.token_count_source == 'estimated')}{quantity(domain.target_tokens)}",
            f"{domain.repeats:g}",
            f"{epochs[domain.name]:.2f}",
            marks[domain.token_count_source],
        ]
        for domain in domains.domains
    ]
    title = f"Target corpus, and a run of {quantity(domains.budget_tokens)} tokens at its natural mixture"
    output.print(rows_table(title, ["domain", "tokens", "copies in them", "epochs", "how known"], rows))
    if any(domain.token_count_source != "given" for domain in domains.domains):
        print_line(output, "Counts and estimates are in tokens of the proxies' tokenizer; one with more bytes per token needs fewer.")


def _print_corpus(corpus: Any, reporter: Any) -> None:
    from mixopt.terminal import quantity, rows_table

    rows = [[part.name, f"{part.documents:,}", quantity(part.bytes), part.taken_from] for part in corpus.parts]
    reporter.output.print(rows_table("Embedded corpus", ["part", "documents", "bytes", "taken from"], rows))


def print_answer(finished: Finished, reporter: Any) -> None:
    """The mixture, what holds it, and where everything lies."""
    from mixopt.groups.rules import weights_per_level
    from mixopt.terminal import answer_table, levels_table, print_line

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
    levels = weights_per_level(domains.group_paths, proposal.mixture.as_dict(), domains.natural().as_dict())
    if levels:
        output.print(levels_table(levels, finished.search.experiment.levels))
    for sentence in proposal.binding:
        print_line(output, f"Binding: {sentence}")
    if finished.verification is not None:
        output.print(finished.verification.conclusion, highlight=False, markup=False, soft_wrap=not output.is_terminal)
    averaged = f" {finished.averaged} averaged," if finished.averaged else ""
    print_line(output, f"Trials: {finished.trained} trained now,{averaged} {finished.reused} already in the record.")
    print_line(output, f"Figures: {finished.search.folder / 'figures'}")
    print_line(output, f"Answer: {finished.search.folder / 'answer.md'}")
    print_line(output, f"Report: {finished.search.folder / 'report.html'}")
    if finished.search.experiment.tracking.enabled:
        _print_review(finished, output)


def _print_review(finished: Finished, output: Any) -> None:
    """Where the trials are seen, as one table."""
    from mixopt.addresses import without_login
    from mixopt.terminal import print_line
    from mixopt.tracking.mlflow_mirror import MlflowMirror
    from workers.compose import tracking_uri

    experiment, store = finished.search.experiment, finished.search.store
    uri = without_login(tracking_uri(experiment))
    with open_record(store) as history:
        mirror = MlflowMirror(history, finished.search.search_id, uri, experiment.tracking.experiment)
        if uri.startswith("http"):
            print_line(output, f"Review: {mirror.review_address(uri)}")
        else:
            print_line(output, f"Review: {sys.executable} -m mlflow ui --backend-store-uri {uri} --port 5000")
            print_line(output, f"        then open {mirror.review_address('http://127.0.0.1:5000')}")
