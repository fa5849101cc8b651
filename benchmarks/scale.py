"""What `mixopt fit` takes for a large swarm: 5,000 runs, 200 domains, 100 metrics, from CSV files to the report.

    python benchmarks/scale.py [--quick] [--surrogate auto] [--json FILE]

The swarm is made up. A run has 3 to 30 of the domains, with Dirichlet weights. A metric is a constant and two power laws of mixtures, each of its own worths, so that
no surrogate here is the truth, plus normal noise of a twentieth of its standard deviation over runs. `mixopt fit` runs in a process of its own, as a user starts it, with
`--predict` for 500 mixtures that it has not seen.

wall_seconds, cpu_seconds: of the whole command, its children included. peak_gib: the largest sum of resident memory of its processes, looked at ten times
a second (memory that they share counts for each). spearman: of predictions with the noise-free truth of the unseen mixtures, median and least over metrics, and of the
mean over metrics. chosen, why: what diagnostics.json says of the surrogate.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rows_file import why_unwritable, write_rows

from mixopt.mixture import FloatArray
from mixopt.surrogates.cross_validation import rank_correlation

UNSEEN = 500
FEWEST, MOST = 3, 30
NOISE = 0.05
"""Of a run, in standard deviations of the metric over runs."""
LOOK_SECONDS = 0.1


@dataclass(frozen=True)
class Row:
    runs: int
    domains: int
    metrics: int
    wall_seconds: float
    cpu_seconds: float
    peak_gib: float
    spearman_median: float
    spearman_least: float
    spearman_mean_of_metrics: float
    chosen: str
    why: str


@dataclass(frozen=True)
class Swarm:
    """Weights (runs, domains) and noise-free losses (runs, metrics); the last `UNSEEN` runs are for prediction."""

    weights: FloatArray
    truth: FloatArray


def make_swarm(runs: int, domains: int, metrics: int, seed: int = 0) -> Swarm:
    rng = np.random.default_rng(seed)
    weights = np.zeros((runs + UNSEEN, domains))
    for row in weights:
        present = rng.choice(domains, rng.integers(FEWEST, min(MOST, domains) + 1), replace=False)
        row[present] = rng.dirichlet(np.full(len(present), 0.7))
    truth = np.empty((len(weights), metrics))
    for column in range(metrics):
        parts = [(weights @ np.exp(rng.normal(0, 1.2, domains)) + 0.05) ** -rng.uniform(0.2, 0.8) for _ in range(2)]
        truth[:, column] = 1.5 + parts[0] + 0.5 * parts[1]
    return Swarm(weights, truth)


def write_tables(swarm: Swarm, folder: Path, seed: int = 0) -> None:
    """mixtures.csv and metrics.csv of the runs, unseen.csv of the mixtures to predict."""
    seen = len(swarm.weights) - UNSEEN
    noise = np.random.default_rng([seed, 1]).standard_normal((seen, swarm.truth.shape[1]))
    losses = swarm.truth[:seen] + NOISE * swarm.truth[:seen].std(axis=0) * noise
    domains = [f"domain_{index:03d}" for index in range(swarm.weights.shape[1])]
    for name, values, columns in (
        ("mixtures", swarm.weights[:seen], domains),
        ("unseen", swarm.weights[seen:], domains),
        ("metrics", losses, [f"metric_{index:03d}" for index in range(losses.shape[1])]),
    ):
        frame = pl.DataFrame(values, schema=columns)
        frame.insert_column(0, pl.Series("run", [f"run-{row:05d}" for row in range(len(values))])).write_csv(folder / f"{name}.csv")


def run_fit(folder: Path, surrogate: str) -> tuple[float, float, float]:
    """Wall and CPU seconds of `mixopt fit` over the tables in `folder`, and its peak memory in GiB.

    Raises:
        RuntimeError: it failed.
    """
    tables = [
        part
        for name in ("mixtures", "metrics", "predict")
        for part in (f"--{name}", str(folder / f"{name}.csv".replace("predict", "unseen")))
    ]
    command = [sys.executable, "-m", "mixopt", "fit", *tables, "--surrogate", surrogate, "--out", str(folder / "out")]
    before, begun, peak = _children_seconds(), time.perf_counter(), 0.0
    with (folder / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(LOOK_SECONDS)
    if process.returncode:
        raise RuntimeError(f"mixopt fit ended with status {process.returncode}: {(folder / 'log').read_text(encoding='utf-8')[-2000:]}")
    return time.perf_counter() - begun, _children_seconds() - before, peak / 2**30


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def tree_bytes(root: int) -> float:
    """Resident memory of a process and all its descendants."""
    parents, sizes = {}, {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                status = Path(entry.path, "status").read_text(encoding="utf-8")
            except OSError:  # it ended meanwhile
                continue
            fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
            parents[int(entry.name)] = int(fields["PPid"])
            sizes[int(entry.name)] = 1024 * float(fields.get("VmRSS", "0 kB").split()[0])
    tree, grown = {root}, True
    while grown:
        more = {child for child, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    return sum(sizes.get(process, 0.0) for process in tree)


def why_chosen(said: dict[str, Any]) -> str:
    """Of a stack: its members' mean weights, and what was left out."""
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in said.get("mean_weights", {}).items())
    left_out = said.get("left_out") or {}
    absent = "; ".join(f"without {name}: {why}" for name, why in left_out.items()) if isinstance(left_out, dict) else f"without {left_out}"
    return "; ".join(part for part in (weights and f"mean weights {weights}", absent) if part) or "asked for"


def measure(runs: int, domains: int, metrics: int, surrogate: str) -> Row:
    swarm = make_swarm(runs, domains, metrics)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_tables(swarm, folder)
        wall, cpu, peak = run_fit(folder, surrogate)
        said = json.loads((folder / "out" / "diagnostics.json").read_text(encoding="utf-8"))["surrogate"]
        frame = pl.read_csv(folder / "out" / "predictions.csv")
    predicted = frame.select([f"metric_{index:03d}_mean" for index in range(metrics)]).to_numpy()
    truth = swarm.truth[-UNSEEN:]
    ranks = [rank_correlation(guess, right) for guess, right in zip(predicted.T, truth.T, strict=True)]
    together = rank_correlation(predicted.mean(axis=1), truth.mean(axis=1))
    return Row(
        runs, domains, metrics, wall, cpu, peak, float(np.median(ranks)), float(min(ranks)), together, str(said["name"]), why_chosen(said)
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="800 runs, 40 domains, 10 metrics")
    parser.add_argument("--surrogate", default="auto", help="as of `mixopt fit`")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args(argv)
    wrong = why_unwritable(arguments.json) if arguments.json else None
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    row = measure(*((800, 40, 10) if arguments.quick else (5000, 200, 100)), arguments.surrogate)
    print(
        f"{row.runs} runs, {row.domains} domains, {row.metrics} metrics: {row.wall_seconds:.0f} s, {row.cpu_seconds:.0f} CPU-s, {row.peak_gib:.2f} GiB"
    )
    print(
        f"Spearman with the truth of {UNSEEN} unseen mixtures: {row.spearman_median:.3f} median, {row.spearman_least:.3f} least, "
        f"{row.spearman_mean_of_metrics:.3f} mean of metrics"
    )
    print(f"{row.chosen}: {row.why}")
    if arguments.json:
        write_rows(arguments.json, [row])
    return 0


if __name__ == "__main__":
    sys.exit(main())
