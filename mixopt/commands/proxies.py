"""Which proxies there are, by what rules, and what they cost here; a trained one as a folder for other programs: `proxies`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mixopt.commands.arguments import check_json, find_search, open_record, write_json
from mixopt.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from mixopt.history import History, SearchRecord, TrialRecord
    from workers.planning.sizes import SizeRow, SizeTable

LISTING = "sizes"


class _SizesUnlessNamed(TyperGroup):
    """`mixopt proxies FILE` means `mixopt proxies sizes FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and (args[0] in self.commands or args[0] in ctx.help_option_names)
        return super().parse_args(ctx, args if named else [LISTING, *args])


app = typer.Typer(
    cls=_SizesUnlessNamed,
    rich_markup_mode=None,
    help="Sizes of proxies and what they cost here (`mixopt proxies [FILE]` is `mixopt proxies sizes [FILE]`), and trained ones for other programs.",
)


@app.command(LISTING)
def sizes(
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
    from workers.own_trainer.pieces import refuse_trainer
    from workers.planning.sizes import circumstances, describe_sizes

    if experiment is not None:
        refuse_trainer(experiment, "proxies")
    reporter = RichReporter()
    table = describe_sizes(circumstances(experiment, vocab, window, tokens_per_step, parametrization), probe, reporter)
    if json_file is not None:
        write_json(json_file, table.to_json())
    _show(table, reporter.output)


@app.command()
def export(
    trial: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL",
            help="Id of a trial or its first digits, its folder, or a mixture: natural, uniform, unimax, best, proposal.",
            show_default=False,
        ),
    ],
    to: Annotated[str, typer.Option("--to", help="Format: transformers.")] = "transformers",
    place: Annotated[
        Path,
        typer.Option("--from", metavar="DIR|FILE", help="Output folder of the search, or its experiment file; default: where you are."),
    ] = Path(),
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Folder to write; default: proxies/ in the output folder.")
    ] = None,
    verify: Annotated[
        bool | None,
        typer.Option("--verify/--no-verify", help="Load the folder with transformers and compare logits; default: if it is installed."),
    ] = None,
    tokenizer: Annotated[bool, typer.Option("--tokenizer/--no-tokenizer", help="Write the tokenizer too.")] = True,
    search_id: Annotated[
        str | None, typer.Option("--search", help="Search id or its first digits, whose mixtures are named; default: the newest search.")
    ] = None,
) -> None:
    """Writes a trained proxy as a Hugging Face checkpoint: weights, tokenizer, a card; it loads with transformers as it is."""
    from workers.proxy_export import check_format, default_folder, export_proxy

    check_format(to)
    store, name = _where(trial, place)
    with open_record(store) as history:
        search = find_search(history, store, search_id)
        record, best = _meant(history, search, name)
        metrics = _metric_names(history, search)
    from mixopt.terminal import RichReporter, print_line
    from mixopt.tracking.findings import ARM_TITLES
    from mixopt.trial_names import arm_names

    mixture = " = ".join(ARM_TITLES.get(arm, arm) for arm in arm_names(record, best)) or "a mixture"
    exported = export_proxy(store, record, out or default_folder(store, record), metrics, mixture, verify, tokenizer)
    reporter = RichReporter()
    meant, tokens = record.trial, record.trial.source.tokens
    reporter.note(f"Trial {meant.trial_id}: {mixture}, {meant.source.size}, {tokens:,} tokens, seed {meant.seed}. {exported.note}")
    print_line(reporter.output, str(exported.folder))


def _where(trial: str, place: Path) -> tuple[Path, str]:
    """The output folder, and the trial in it; TRIAL may be the trial's folder itself, which tells both.

    Raises:
        ConfigError: `place` does not exist, or is an experiment file with a slip.
    """
    folder = Path(trial)
    if (folder / "result.json").is_file():
        folder = folder.resolve()
        return folder.parent.parent, folder.name
    if place.is_file():
        from mixopt.experiment_file import load_experiment

        return load_experiment(place).output_dir, trial
    if not place.is_dir():
        raise ConfigError(f"--from {place} does not exist.", "Name the output folder of a search, or its experiment file.")
    return place, trial


def _meant(history: History, search: SearchRecord, name: str) -> tuple[TrialRecord, str | None]:
    """The trial that is meant, and which one the proposal calls the best; ids may be of any search or calibration, mixtures are this one's."""
    from mixopt.trial_names import find_trial

    others = [record for record in (*history.calibrations(), *history.searches()) if record.search_id != search.search_id]
    by_id = [record for other in reversed(others) for record in history.trials(other.search_id)]
    best = ((history.document(search.search_id, "proposal") or {}).get("best_measured") or {}).get("trial_id")
    return find_trial(name, history.trials(search.search_id), best, by_id), best


def _metric_names(history: History, search: SearchRecord) -> dict[str, str]:
    """Evaluation key -> metric, of every search of the record; those of this one count where two disagree."""
    names: dict[str, str] = {}
    for record in [*(other for other in history.searches() if other.search_id != search.search_id), search]:
        context = history.document(record.search_id, "context") or {}
        for trials in ("metrics_base", "metrics_verification", "metrics"):
            names |= context.get(trials) or {}
    return names


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
