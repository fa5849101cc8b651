"""mixopt side by side with its closest peer, Olmix (github allenai/olmix), on the same CSV files, on the same machine, in one interleaved run.

    python benchmarks/peer.py [--olmix CHECKOUT --python ITS_PYTHON] [--starts 10] [--quick] [--json FILE]

Reads ${MIXOPT_SHARED}/data/swarms/regmix (arXiv 2407.01492): fits of all 13 metrics on n of its 512 1M runs, the same random subsets for every model,
predictions for 256 other mixtures, trained at 1M and at 60M. Every tool is a process in its own interpreter on one thread; Olmix's classes are called as
its `fit` calls them. Without --olmix only mixopt is run. Losses are nats per token, as published. Rows of rankings are means over two subsets (one at 512).

spearman, regret_percent: as in benchmarks/surrogates.py. cpu_seconds: of fitting all 13 metrics. Olmix fits its log-linear law from 300 starts per metric, which
takes most of an hour; it gets --starts of them here, evenly spread, and the note says what 300 would cost at the measured cost per start.

Rows of table `answer` are mixtures proposed for a target, from n runs, with the Pile's own weights as prior. Nothing was trained at them: loss_nats is the word of a
Gaussian process over all 768 runs of the 1M tables, a model of mixopt's own kind, with the std in the note; regret_percent is against the best of these runs, below 0
where the mixture is predicted to beat it; cpu_seconds are of Olmix's proposing alone, and of the whole `mixopt.fit` (folds, pull and ranges included).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from peers.regmix import PILE, TESTS, TRAIN, Table, load
from peers.scores import Judge, Row, ranking_rows, targets_of
from peers.tool import ROOT, Tool
from rows_file import why_unwritable, write_rows

from mixopt.surrogates import surrogate_names

OLMIX_MODELS = ("log_linear", "gp", "lightgbm", "bimix", "autoscale")
OLMIX_STARTS = 300
KL = (0.05, 0.1)
OUR_MODELS = tuple(
    name for name in ("auto", "gaussian_process", "power_law", "log_linear", "bimix", "lightgbm") if name in surrogate_names()
)
OUR_DEFAULT = OUR_MODELS[0]


def settings_of(tool: str, model: str) -> list[dict[str, Any]]:
    """The settings that this model's answers are asked with; the exact proposer of Olmix knows the log-linear law only."""
    if tool == "olmix":
        return [{"kl": strength} for strength in KL] if model == "log_linear" else []
    return [{"pull": "auto"}] if model == OUR_DEFAULT else []


def run(
    tables: dict[str, Table], tools: Mapping[str, Tool], sizes: Sequence[int], subsets: int, starts: int, folder: Path
) -> Iterator[Row]:
    """All rows; the tools take turns, model by model."""
    train = tables[TRAIN]
    points = [tables[name].write(folder, name)[0] for name in TESTS]
    prior = {name: PILE[name] / sum(PILE[domain] for domain in train.domains) for name in train.domains}
    judge = Judge([train, tables["test_1m"]])
    targets = targets_of(train.metrics)
    models = {"olmix": OLMIX_MODELS, "mixopt": OUR_MODELS}
    turns = [turn for turn in chain(*zip_longest(*([(tool, model) for model in models[tool]] for tool in tools))) if turn is not None]
    for n in sizes:
        repeats: dict[tuple[str, str], list[list[Row]]] = {}
        for seed in range(1 if n == len(train.runs) else subsets):
            mixtures, metrics = train.write(folder, "train", np.random.default_rng(seed).permutation(len(train.runs))[:n].tolist())
            for tool, model in turns:
                asked = [
                    {"target": weights, **setting}
                    for setting in settings_of(tool, model)
                    for weights in targets.values()
                    if n == sizes[-1] and seed == 0
                ]
                reply = tools[tool].ask(
                    model=model, mixtures=mixtures, metrics=metrics, points=points, starts=starts, prior=prior, answers=asked
                )
                rows = list(rows_of(reply, tool, model, n, tables, starts))
                repeats.setdefault((tool, model), []).append(rows)
                yield from answers_of(reply, asked, tool, model, n, judge, prior)
        for same in repeats.values():
            yield from (average(list(rows)) for rows in zip(*same, strict=True))
    for target, weights in targets.items():
        yield judge.row("none", "prior", 0, target, prior, prior, None, "the Pile's weights")
        best = int(np.argmin(sum(train.losses[:, train.metrics.index(name)] * weight for name, weight in weights.items())))
        measured = dict(zip(train.domains, (train.weights[best] / train.weights[best].sum()).tolist(), strict=True))
        yield judge.row("none", "best of 512 measured", 512, target, measured, prior, None, "")


def rows_of(reply: dict[str, Any], tool: str, model: str, n: int, tables: dict[str, Table], starts: int) -> Iterator[Row]:
    if "error" in reply:
        yield from (
            Row(tool, model, n, name, target, None, None, None, None, reply["error"]) for name in TESTS for target in ("pile_cc", "mean13")
        )
        return
    seconds, note = reply["cpu_seconds"], ""
    if (tool, model) == ("olmix", "log_linear") and starts < OLMIX_STARTS:
        note = f"{starts} of {OLMIX_STARTS} starts; projected for {OLMIX_STARTS}: {seconds * OLMIX_STARTS / starts:.0f} CPU-seconds"
    for name, predicted in zip(TESTS, reply["predictions"], strict=True):
        yield from ranking_rows(tool, model, n, name, tables[name], np.array(predicted), seconds, note)


def answers_of(
    reply: dict[str, Any], asked: list[dict[str, Any]], tool: str, model: str, n: int, judge: Judge, prior: Mapping[str, float]
) -> Iterator[Row]:
    names = {len(weights): target for target, weights in targets_of(judge.metrics).items()}
    for question, answer in zip(asked, reply.get("answers", []), strict=False):
        setting = ", ".join(f"{key} {value}" for key, value in question.items() if key != "target" and value is not None)
        note = "; ".join(part for part in (setting, answer.get("note", "")) if part)
        yield judge.row(tool, model, n, names[len(question["target"])], answer["weights"], prior, answer["cpu_seconds"], note)


def average(rows: list[Row]) -> Row:
    """Mean of rows that differ in their subset only; the note is of the last."""
    means = {
        field: float(np.mean([getattr(row, field) for row in rows])) if all(getattr(row, field) is not None for row in rows) else None
        for field in ("spearman", "regret_percent", "cpu_seconds")
    }
    return replace(rows[-1], **means)


def print_row(row: Row) -> None:
    shown = ["-" if value is None else f"{value:.4f}" for value in (row.spearman, row.loss_nats)]
    regret, seconds = ("-" if value is None else f"{value:.2f}" for value in (row.regret_percent, row.cpu_seconds))
    print(
        f"{row.tool:7} {row.model:20} {row.n:4} {row.table:9} {row.target:8} {shown[0]:>8} {regret:>8} {shown[1]:>9} {seconds:>11}  {row.note}",
        flush=True,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--olmix", type=Path, help="a checkout of allenai/olmix; without it the peer is not run")
    parser.add_argument("--python", help="an interpreter with what Olmix imports")
    parser.add_argument("--starts", type=int, default=10, help="of the 300 starts of its log-linear law, a divisor of 300")
    parser.add_argument("--quick", action="store_true", help="128 runs, one subset")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    wrong = why_wrong(arguments)
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    if not arguments.olmix:
        print("Without --olmix the peer is not run: these rows are of mixopt alone.")
    tables = load(Path(os.environ["MIXOPT_SHARED"]) / "data" / "swarms" / "regmix")
    sizes, subsets = ([128], 1) if arguments.quick else ([32, 128, 512], 2)
    rows: list[Row] = []
    print(
        f"{'tool':7} {'model':20} {'n':>4} {'table':9} {'target':8} {'spearman':>8} {'regret%':>8} {'loss_nats':>9} {'cpu_seconds':>11}  note"
    )
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        folder = Path(place)
        tools = {"mixopt": stack.enter_context(Tool("mixopt", sys.executable, "run_mixopt.py", [ROOT], folder / "mixopt.log"))}
        if arguments.olmix:
            tools["olmix"] = stack.enter_context(
                Tool("Olmix", arguments.python, "run_olmix.py", [arguments.olmix.resolve()], folder / "olmix.log")
            )
        for row in run(tables, tools, sizes, subsets, arguments.starts, folder):
            rows.append(row)
            print_row(row)
            if arguments.json:
                write_rows(arguments.json, rows)
    return 0


def why_wrong(arguments: argparse.Namespace) -> str | None:
    """A sentence on what the command line lacks."""
    if "MIXOPT_SHARED" not in os.environ:
        return "Set MIXOPT_SHARED to the shared data folder (it holds data/swarms/regmix)."
    if bool(arguments.olmix) != bool(arguments.python):
        return "Give --olmix and --python together: the checkout, and an interpreter with what it imports."
    if arguments.starts < 1 or OLMIX_STARTS % arguments.starts:
        return f"--starts is {arguments.starts}; give a divisor of {OLMIX_STARTS}."
    return why_unwritable(arguments.json) if arguments.json else None


if __name__ == "__main__":
    sys.exit(main())
