"""An answer for runs that were trained elsewhere: `fit`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from mixopt.fitting.fit import FitResult


def fit(
    mixtures: Annotated[
        Path,
        typer.Option(
            "--mixtures",
            metavar="TABLE",
            help="CSV or Parquet, a row per run: a column `run`, `run_id` or `index`, weights per domain, and where runs differ in them `size`, `tokens`, "
            "`seed`, `cost`.",
            show_default=False,
        ),
    ],
    metrics: Annotated[
        Path, typer.Option("--metrics", metavar="TABLE", help="The same runs: the id column, and a column per metric.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.", show_default=False)],
    config: Annotated[
        Path | None,
        typer.Option(
            "--config", metavar="FILE", help="YAML with token counts, budget, caps, bounds, groups, objective; default: none of them."
        ),
    ] = None,
    surrogate: Annotated[str | None, typer.Option("--surrogate", help="Its name; `mixopt list` names them. Default: as in FILE.")] = None,
    maximize: Annotated[
        list[str] | None, typer.Option("--maximize", metavar="METRIC", help="More of it is better; may be repeated.")
    ] = None,
    predict: Annotated[
        Path | None,
        typer.Option(
            "--predict", metavar="TABLE", help="Mixtures to predict: mean and std, of noise-free values, of every metric and the objective."
        ),
    ] = None,
) -> None:
    """Fits measured runs from two tables and finds the best mixture, with how far to trust it; trains nothing."""
    from mixopt.fitting.file import FitFile, load_fit_file
    from mixopt.fitting.fit import DEFAULT_SURROGATE
    from mixopt.fitting.fit import fit as fit_runs
    from mixopt.fitting.outputs import check_folder
    from mixopt.fitting.predictions import read_asked
    from mixopt.fitting.runs import read_runs
    from mixopt.fitting.tables import read_table
    from mixopt.surrogates import get_surrogate
    from mixopt.surrogates.threads import metrics_at_once

    asked = FitFile() if config is None else load_fit_file(config)
    name = surrogate or asked.surrogate or DEFAULT_SURROGATE
    get_surrogate(name)  # a slip in the name is answered before anything is read
    runs = read_runs(mixtures, metrics, tuple(dict.fromkeys([*asked.maximize, *(maximize or ())])))
    # Unknown domains and weights that do not sum to 1 are found before the fit; where the surrogate can answer is known after it.
    said = () if predict is None else read_asked(read_table(predict), runs, runs.swarm.points().sources[0]).notes
    check_folder(out)
    from mixopt.terminal import RichReporter

    reporter = RichReporter()
    for note in (*runs.notes, *said):
        reporter.note(note)
    what = f"Fitting {len(runs.swarm)} runs of {len(runs.swarm.metrics)} metrics"
    with reporter.stage(what, None, ""), metrics_at_once(os.cpu_count() or 1):
        result = fit_runs(runs, config=asked, surrogate=name)
        files = result.write(out, predict)
    _show(result, reporter.output, files)


def _show(result: FitResult, output: Console, files: list[Path]) -> None:
    from mixopt.fitting.outputs import against_best
    from mixopt.fitting.page import answer_words, trust_words
    from mixopt.terminal import print_line, rows_table

    proposal = result.proposal
    weights, natural = proposal.mixture.as_dict(), result.domains.natural().as_dict()
    capped = result.config.budget_tokens is not None
    columns = ["domain", "proposed", "near-optimal", result.natural_name, "best measured", *(["epochs"] if capped else [])]
    rows = []
    for name in sorted(weights, key=lambda name: (-weights[name], name)):
        low, high = proposal.near_optimal[name]
        shares = [weights[name], natural[name], proposal.best_measured["weights"][name]]
        mine, base, best = (f"{100 * share:.1f}" for share in shares)
        epochs = [f"{proposal.epochs[name]:.2f}"] if capped else []
        rows.append([name, mine, f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}", base, best, *epochs])
    output.print(rows_table("Proposed mixture (share of tokens, %)", columns, rows))
    for sentence in (*answer_words(result), against_best(proposal), trust_words(result)):
        _say(output, sentence)
    for line in proposal.binding:
        _say(output, f"Held by {line}.")
    for note in result.notes:
        if note not in result.runs.notes:  # those were said before the fit
            _say(output, f"Note: {note}")
    for path in files:
        print_line(output, str(path))


def _say(output: Console, text: str) -> None:
    """A sentence: broken at the width of a terminal, whole where there is none."""
    output.print(text, highlight=False, markup=False, soft_wrap=not output.is_terminal)
