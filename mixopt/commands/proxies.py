"""Which proxies there are, by what rules, and what they cost here: `proxies`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixopt.commands.arguments import check_json, write_json

if TYPE_CHECKING:
    from rich.console import Console

    from workers.planning.sizes import SizeRow, SizeTable


def proxies(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", help="Experiment file (YAML): its vocabulary, window, steps and the speeds in its record.", show_default=False
        ),
    ] = None,
    vocab: Annotated[int | None, typer.Option("--vocab", min=2, help="Entries of the vocabulary; default: 8192, or those of FILE.")] = None,
    window: Annotated[int | None, typer.Option("--window", min=1, help="Tokens per window; default: 512, or that of FILE.")] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option("--tokens-per-step", min=1, help="Tokens per optimizer step and proxy; default: 1024, or those of FILE.")
    ] = None,
    parametrization: Annotated[
        str | None,
        typer.Option(
            "--parametrization", metavar="NAME", help="Whose learning rates: standard or mup; default: standard, or that of FILE."
        ),
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Measure speeds that no record has by training each size for some seconds; about a minute."
        ),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write all of it to this file.")] = None,
) -> None:
    """Lists the sizes of proxies: shape, parameters, FLOPs, memory and speed here, and the rules they follow from."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file) if file is not None else None
    check_json(json_file)
    from mixopt.terminal import RichReporter
    from workers.planning.sizes import circumstances, describe_sizes

    reporter = RichReporter()
    table = describe_sizes(circumstances(experiment, vocab, window, tokens_per_step, parametrization), probe, reporter)
    if json_file is not None:
        write_json(json_file, table.to_json())
    _show(table, reporter.output)


def _show(table: SizeTable, output: Console) -> None:
    for note in table.around.notes:
        _say(output, note)
    output.print(_shapes_table(table))
    _say(
        output,
        "Experts: routed/active per token/shared, and the hidden width of one. Active parameters: all but the experts that a token is not sent to.",
    )
    _say(output, "Active and total contain the embedding, which is also the output matrix.")
    output.print(_costs_table(table))
    for sentence, sizes in _by_sentence(table.rows).items():
        _say(output, f"Speed of {', '.join(sizes)}: {sentence}.")
    how = (
        "arithmetic, not measured"
        if table.around.machine.device == "cuda"
        else "estimated from the shape (measured beside it by benchmarks/memory.py)"
    )
    _say(output, f"Memory: {how}; that of a pack is of its process.")
    _say(output, "What follows from the width, and by which rule:")
    for rule in table.rules:
        _say(output, f"- {rule.dimension}: {rule.rule}. {rule.source}")
    if not table.tensor_rules:
        _say(
            output,
            "In muP (`proxy.parametrization: mup`) one rate serves every size; `mixopt proxies --parametrization mup` shows its rules.",
        )
    else:
        _say(
            output,
            "In muP the learning rate above is nano's for every size, and follows the shape tensor by tensor, with everything relative to nano:",
        )
    for tensor_rule in table.tensor_rules:
        scales = f"initial scale {tensor_rule.std}, rate {tensor_rule.rate}"
        _say(output, f"- {tensor_rule.group}: {scales}. {tensor_rule.why}")


def _shapes_table(table: SizeTable) -> Any:
    from mixopt.terminal import quantity, rows_table

    return rows_table(
        f"Sizes, with {table.around.vocab_size:,} entries of vocabulary",
        ["size", "width", "layers", "heads", "experts", "active", "total", "embedding", "learning rate"],
        [
            [
                row.size,
                f"{row.width:,}",
                f"{row.layers}",
                f"{row.heads}",
                _experts(row),
                quantity(row.active_parameters),
                quantity(row.total_parameters),
                quantity(row.embedding_parameters),
                f"{row.learning_rate:.3g}",
            ]
            for row in table.rows
        ],
    )


def _experts(row: SizeRow) -> str:
    if not row.routed_experts:
        return f"dense: {row.shared_experts * row.expert_width}"
    return f"{row.routed_experts}/{row.active_experts}/{row.shared_experts}: {row.expert_width}"


def _costs_table(table: SizeTable) -> Any:
    from mixopt.plan_page import size
    from mixopt.terminal import quantity, rows_table

    around, machine = table.around, table.around.machine
    slots = f"{machine.slots} {'GPU' if machine.device == 'cuda' else 'core'}{'s' if machine.slots != 1 else ''}"
    here = "measured" if machine.where == "this machine" else "measured here"
    known = {"record": "measured", "probe": here, "scaled": "scaled", "assumed": "assumed"}
    return rows_table(
        f"Training: window {around.window:,}, {around.tokens_per_step:,} tokens per step and proxy; {machine.where}, {slots}",
        ["size", "FLOPs/token", "memory of one", "pack", "its memory", "tokens/s per slot", "speed is"],
        [
            [
                row.size,
                quantity(row.flops_per_token),
                size(row.member_bytes),
                f"{row.pack_size}",
                size(row.pack_bytes),
                quantity(row.tokens_per_second),
                known[row.speed.origin],
            ]
            for row in table.rows
        ],
    )


def _by_sentence(rows: tuple[SizeRow, ...]) -> dict[str, list[str]]:
    """Where a speed comes from -> the sizes of which that is said."""
    sizes: dict[str, list[str]] = {}
    for row in rows:
        sizes.setdefault(row.speed.sentence, []).append(row.size)
    return sizes


def _say(output: Console, text: str) -> None:
    """A sentence: broken at the width of a terminal, whole where there is none."""
    output.print(text, highlight=False, markup=False, soft_wrap=not output.is_terminal)
