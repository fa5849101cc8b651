"""RegMix's tables (arXiv 2407.01492) as CSV files that both tools read: an id column `run`, short names, weights as published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mixopt.mixture import FloatArray

TRAIN = "train_1m"
TESTS = ("test_1m", "test_60m")
# Weights of the Pile, per cent (arXiv 2101.00027, table 1), of the domains that RegMix mixes; it is the prior of every answer.
PILE = {
    "pile_cc": 18.11,
    "pubmed_central": 14.40,
    "arxiv": 8.96,
    "github": 7.59,
    "freelaw": 6.12,
    "stackexchange": 5.13,
    "uspto_backgrounds": 3.65,
    "pubmed_abstracts": 3.07,
    "gutenberg_pg_19": 2.17,
    "wikipedia_en": 1.53,
    "dm_mathematics": 1.24,
    "ubuntu_irc": 0.88,
    "europarl": 0.73,
    "hackernews": 0.62,
    "philpapers": 0.38,
    "nih_exporter": 0.30,
    "enron_emails": 0.14,
}


@dataclass(frozen=True)
class Table:
    """Mixtures and losses of the same runs: `weights` (runs, domains), `losses` (runs, metrics) in nats per token."""

    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    runs: tuple[str, ...]
    weights: FloatArray
    losses: FloatArray

    def write(self, folder: Path, name: str, rows: Sequence[int] | None = None) -> tuple[str, str]:
        """Paths of the mixtures and of the metrics of these rows."""
        rows = range(len(self.runs)) if rows is None else rows
        paths = folder / f"{name}_mixtures.csv", folder / f"{name}_metrics.csv"
        for path, names, values in zip(paths, (self.domains, self.metrics), (self.weights, self.losses), strict=True):
            lines = [",".join(["run", *names])] + [",".join([self.runs[row], *map(repr, values[row].tolist())]) for row in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return str(paths[0]), str(paths[1])


def load(folder: Path) -> dict[str, Table]:
    """The tables `TRAIN` and `TESTS`."""
    return {name: _load(folder, *name.split("_")) for name in (TRAIN, *TESTS)}


def _load(folder: Path, part: str, size: str) -> Table:
    domains, runs, weights = _read(folder / f"{part}_mixture_{size}.csv")
    metrics, scored, losses = _read(folder / f"{part}_pile_loss_{size}.csv")
    order = [scored.index(run) for run in runs]
    domains = [name.removeprefix("train_the_pile_") for name in domains]
    metrics = [name.removeprefix("metric/the_pile_").removesuffix("_val_loss") for name in metrics]
    return Table(tuple(domains), tuple(metrics), tuple(f"{size}-{run}" for run in runs), weights, losses[order])


def _read(path: Path) -> tuple[list[str], list[str], FloatArray]:
    with path.open(encoding="utf-8") as file:
        names = file.readline().rstrip("\n").split(",")[1:]
        rows = [line.rstrip("\n").split(",") for line in file]
    return names, [row[0] for row in rows], np.array([[float(cell) for cell in row[1:]] for row in rows])
