"""What an earlier search still says once domains have changed: `reuse`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from mixopt.commands.arguments import ExperimentFile, SearchOption, check_json, find_search, open_record, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from mixopt.reuse.plans import Plan
    from workers.reuse import Reuse

OldFolder = Annotated[Path, typer.Argument(metavar="OLD_DIR", help="Output folder of the earlier search.", show_default=False)]
TITLES = {"full": "full reuse", "partial": "partial reuse", "warm": "warm start", "none": "full recompute"}


def reuse(
    folder: OldFolder,
    file: ExperimentFile,
    plan: Annotated[
        Literal["full", "partial", "warm", "none"] | None, typer.Option("--reuse", help="The plan to write; default: the one recommended.")
    ] = None,
    split: Annotated[
        list[str] | None,
        typer.Option(
            "--split",
            metavar="OLD=NEW1,NEW2",
            help="An old domain that went into several, where their documents do not show it; may be repeated; none: do not look at documents.",
        ),
    ] = None,
    write: Annotated[Path | None, typer.Option("--write", metavar="FILE", help="Write the experiment file of the plan.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the comparison as JSON too.")] = None,
    search_id: SearchOption = None,
) -> None:
    """Says what an earlier search still tells once domains have changed: proxies to train, proxies saved, risk taken. Trains nothing."""
    from mixopt.experiment_file import load_experiment
    from mixopt.reuse.changes import read_splits

    experiment = load_experiment(file)  # before anything heavy is loaded, so that a slip in the file is answered at once
    splits = read_splits(split or [])
    check_json(json_file)
    from mixopt.reuse.rewritten import write_plan
    from mixopt.terminal import RichReporter, print_line
    from workers.checks import check_experiment
    from workers.output_folder import named_in_errors
    from workers.own_trainer.pieces import refuse_trainer
    from workers.reuse import find_reuse

    refuse_trainer(experiment, "reuse")
    check_experiment(experiment)
    reporter = RichReporter()
    with open_record(folder) as history, named_in_errors(experiment.output_dir):
        found = find_reuse(history, find_search(history, folder, search_id).search_id, folder, experiment, splits, reporter)
    chosen = found.plan(plan or found.recommended)
    if json_file is not None:
        write_json(json_file, {**found.to_json(), "chosen": chosen.name})
    _show(found, chosen, reporter.output)
    if write is not None:
        why = found.why if chosen.name == found.recommended else f"{TITLES[chosen.name].capitalize()}, as asked for."
        write_plan(write, file, experiment, chosen, found.warm_start, found.tokenizer, why)
        print_line(reporter.output, f"Written: {write}; run it with `mixopt search {write}`.")


def _show(found: Reuse, chosen: Plan, output: Console) -> None:
    from mixopt.terminal import rows_table

    changed = [[change.names, change.kind] for change in found.changes.changes if change.kind != "unchanged"]
    unchanged = found.changes.count("unchanged")
    output.print(
        rows_table(f"Domains since search {found.earlier.search_id[:8]} ({found.earlier.name})", ["domain", "what became of it"], changed)
    )
    _say(output, f"{unchanged} of {len(found.earlier.contents)} domains are unchanged.")
    rows = [_row(plan, found) for plan in found.plans]
    columns = ["plan", "units", "proxies", "in the record", "to train", "saved", "risk", "typical", "bound"]
    output.print(rows_table(f"Plans; risk in {found.earlier.objective.unit}", columns, rows))
    for plan in found.plans:
        if plan.freed:
            _say(output, f"{TITLES[plan.name].capitalize()} measures {', '.join(plan.freed)} anew too, which the bound blames most.")
        if plan.problem:
            _say(output, f"{TITLES[plan.name].capitalize()} cannot be run: {plan.problem}")
    _say(
        output,
        "Risk: how much worse the plan's best mixture is than the best of all, at most, in nine of ten laws that the new domains may follow and that the earlier "
        "runs leave open; typical: half of them; bound: what the laws' slopes guarantee. Saved: of the proxies of a full recompute from nothing.",
    )
    _say(
        output,
        f"{found.valid} of {len(found.earlier.trials)} earlier trials are trials of the new search too; {found.gone} give weight to text that is gone.",
    )
    for note in found.notes:
        _say(output, f"Note: {note}")
    if chosen.kept and not chosen.units:
        weights = [[name, f"{100 * weight:.1f}"] for name, weight in sorted(chosen.kept.items(), key=lambda item: -item[1])]
        output.print(rows_table("The mixture (share of tokens, %)", ["domain", "weight"], weights))
    _say(output, found.why)


def _row(plan: Plan, found: Reuse) -> list[str]:
    if plan.problem:
        return [TITLES[plan.name], *[""] * 8]
    risks = ["0", "0", "0"] if plan.name in ("warm", "none") else [f"{value:.3g}" for value in (plan.risk, plan.typical, plan.bound)]
    counts = [plan.units, plan.proxies, plan.trained, plan.to_train, found.saved[plan.name]]
    return [TITLES[plan.name], *map(str, counts), *risks]


def _say(output: Any, text: str) -> None:
    """A sentence: broken at the width of a terminal, whole where there is none."""
    output.print(text, highlight=False, markup=False, soft_wrap=not output.is_terminal)
