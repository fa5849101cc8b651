"""What a corpus is made of, before anything is trained on it: `domains`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixopt.commands.arguments import ExperimentFile, check_json, write_json

if TYPE_CHECKING:
    from mixopt.corpus.inspection import Extreme
    from mixopt.corpus.inventory import Inventory


def domains(
    file: ExperimentFile,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write everything found to this file.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Read only the first 20 MB of each domain.")] = False,
) -> None:
    """Shows the documents of a corpus: sizes, epochs at the budget, duplicates, overlap of training text with targets."""
    from mixopt.corpus.inventory import take_inventory
    from mixopt.experiment_file import load_experiment
    from mixopt.terminal import RichReporter, print_line
    from workers.own_trainer.pieces import refuse_trainer

    experiment = load_experiment(file)
    refuse_trainer(experiment, "domains")
    check_json(json_file)
    reporter = RichReporter()
    inventory = take_inventory(experiment, reporter, quick, processes=len(os.sched_getaffinity(0)))
    for table in _tables(inventory):
        reporter.output.print(table)
    for sentence in inventory.verdicts:
        print_line(reporter.output, sentence)
    if json_file is not None:
        write_json(json_file, inventory.to_json())
        print_line(reporter.output, f"Written: {json_file}")


def _tables(inventory: Inventory) -> list[Any]:
    from mixopt.terminal import quantity, rows_table

    tables = [
        rows_table(
            f"Documents of {inventory.name}",
            ["domain", "documents", "bytes", "tokens", "bytes per token", "held out", "repeated"],
            [
                [
                    row.name,
                    f"{row.train.documents:,}",
                    quantity(row.train.bytes),
                    f"{'' if row.train.counted else 'about '}{quantity(row.train.tokens)}",
                    f"{'' if row.train.counted else 'about '}{row.train.bytes_per_token:.2f}",
                    f"{row.valid.documents:,}",
                    f"{row.train.repeats:,}",
                ]
                for row in inventory.domains
            ],
        ),
        rows_table(
            "Shortest and longest training documents",
            ["domain", "bytes", "shortest", "bytes", "longest"],
            [[row.name, *_extreme(row.train.shortest), *_extreme(row.train.longest)] for row in inventory.domains],
        ),
        rows_table(
            f"In a run of {quantity(inventory.budget_tokens)} tokens",
            ["domain", "tokens there", "natural %", "epochs", "UniMax %", "epochs", "most epochs"],
            [
                [
                    row.name,
                    f"{'about ' * (row.token_count_source == 'estimated')}{quantity(row.target_tokens)}",
                    f"{100 * row.natural_weight:.1f}",
                    f"{row.natural_epochs:.2f}",
                    "" if row.unimax_weight is None else f"{100 * row.unimax_weight:.1f}",
                    "" if row.unimax_epochs is None else f"{row.unimax_epochs:.2f}",
                    f"{row.max_epochs:g}",
                ]
                for row in inventory.domains
            ],
        ),
    ]
    if inventory.targets:
        tables.append(
            rows_table(
                "Targets",
                ["target", "items", "bytes", "tokens", "items that can be checked", "domains it overlaps with"],
                [
                    [
                        row.name,
                        f"{row.items:,}",
                        quantity(row.bytes),
                        "" if row.tokens is None else quantity(row.tokens),
                        f"{row.checkable:,}",
                        ", ".join(overlap.domain for overlap in inventory.overlaps if overlap.target == row.name) or "none",
                    ]
                    for row in inventory.targets
                ],
            )
        )
    return tables


def _extreme(documents: tuple[Extreme, ...]) -> list[str]:
    return [f"{documents[0].bytes:,}", documents[0].source] if documents else ["", ""]
