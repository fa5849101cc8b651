"""How well surrogates rank unseen mixtures of the RegMix swarm, by number of runs they are fitted on.

    python benchmarks/surrogates.py [--quick] [--json FILE]

Reads ${MIXOPT_SHARED}/data/swarms/regmix: 512 runs of a "1M" proxy over 17 Pile domains, and 256 other mixtures trained both at 1M and at
60M (arXiv 2407.01492). Fits are on 1M runs only; the 60M table asks how far their ranking carries. Losses are nats per token, as published:
ranks and relative regret do not depend on the unit. Targets: `pile_cc`, and `mean13`, the mean of the predictions of all 13 validation
domains. Rows are means over random subsets of the 512 runs (one subset at 512).

spearman: predicted against measured. regret_percent: (loss of the mixture picked - best loss) / (worst - best) over the table. coverage90:
share of measurements inside the 90% interval; for mean13 the mean of the 13 domains' shares; only for the 1M table, since the intervals are
about 1M runs. cpu_seconds: of fitting all 13 metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates import get_surrogate, surrogate_names
from mixopt.surrogates.cross_validation import noise_at, rank_correlation
from mixopt.surrogates.features import weights
from mixopt.swarm import Swarm
from mixopt.trial import Source

TARGET = "pile_cc"
Z90 = 1.6449
# Laws of a domain's own share predict no other metric, and of runs at one source those over several are the process of one or a law like the others.
LEFT_OUT = {
    "sft_law",
    "multi_source_gp",
    "expert_ensemble",
    "anchor_ratio",
    "curve_features",
    "scaling_additive",
    "scaling_joint",
    "scaling_effective",
}
NAMES = tuple(name for name in surrogate_names() if name not in LEFT_OUT)


@dataclass(frozen=True)
class Prediction:
    """Of one model for one table; `mean` and `std` (of measurements; None: the model has no intervals) have shape (n, metrics)."""

    mean: FloatArray
    std: FloatArray | None


@dataclass(frozen=True)
class Row:
    surrogate: str
    n: int
    table: str
    target: str
    spearman: float
    regret_percent: float
    coverage90: float | None
    cpu_seconds: float


def load_regmix(folder: Path) -> dict[str, Swarm]:
    """The swarms `train_1m`, `test_1m` and `test_60m`, matched by their index column; weights are rounded to 1e-3 there and renormalised."""
    return {
        "train_1m": _load_table(folder / "train_mixture_1m.csv", folder / "train_pile_loss_1m.csv", "1m"),
        "test_1m": _load_table(folder / "test_mixture_1m.csv", folder / "test_pile_loss_1m.csv", "1m"),
        "test_60m": _load_table(folder / "test_mixture_60m.csv", folder / "test_pile_loss_60m.csv", "60m"),
    }


def _load_table(mixtures: Path, losses: Path, size: str) -> Swarm:
    domains, rows = _read_csv(mixtures)
    metrics, values = _read_csv(losses)
    assert rows.keys() == values.keys(), f"{mixtures} and {losses} list different runs"
    schedules = np.array([rows[index] for index in rows])[:, None, :]
    return Swarm.from_arrays(
        [name.removeprefix("train_the_pile_") for name in domains],
        schedules / schedules.sum(axis=2, keepdims=True),
        [name.removeprefix("metric/the_pile_").removesuffix("_val_loss") for name in metrics],
        np.array([values[index] for index in rows]),
        Source("trained", size, 10**9),
        trial_ids=[f"{size}-{index:04d}" for index in rows],
    )


def _read_csv(path: Path) -> tuple[list[str], dict[int, FloatArray]]:
    """Column names without the index, and rows by index."""
    with path.open(encoding="utf-8") as file:
        names = file.readline().strip().split(",")[1:]
        table = np.loadtxt(file, delimiter=",")
    return names, {int(row[0]): row[1:] for row in table}


def predict(name: str, train: Swarm, tables: dict[str, Swarm]) -> tuple[dict[str, Prediction], float]:
    """Predictions of all metrics for every table by the surrogate `name` (or `linear`), and the CPU seconds of the fit."""
    start = time.process_time()
    if name == "linear":
        coefficients, *_ = np.linalg.lstsq(with_intercept(train), train.values(train.metrics), rcond=None)
        seconds = time.process_time() - start
        return {table: Prediction(with_intercept(swarm) @ coefficients, None) for table, swarm in tables.items()}, seconds
    fitted = get_surrogate(name).fit(train, train.metrics)
    seconds = time.process_time() - start
    predictions = {}
    for table, swarm in tables.items():
        points = swarm.points()
        posterior = fitted.posterior(points)
        predictions[table] = Prediction(posterior.mean, np.sqrt(posterior.std**2 + noise_at(fitted, points) ** 2))
    return predictions, seconds


def with_intercept(swarm: Swarm) -> FloatArray:
    """Raw weights and a column of ones: RegMix's linear baseline, which ignores that weights sum to 1 (least norm solution)."""
    shares = weights(swarm.points().schedules)
    return np.concatenate([shares, np.ones((len(shares), 1))], axis=1)


def score(name: str, n: int, table: str, prediction: Prediction, swarm: Swarm, seconds: float) -> Iterator[Row]:
    """One row per target."""
    measured = swarm.values(swarm.metrics)
    column = swarm.metrics.index(TARGET)
    inside = None
    if prediction.std is not None and table == "test_1m":
        inside = (np.abs(measured - prediction.mean) <= Z90 * prediction.std).mean(axis=0)
    targets = {
        TARGET: (prediction.mean[:, column], measured[:, column], None if inside is None else float(inside[column])),
        "mean13": (prediction.mean.mean(axis=1), measured.mean(axis=1), None if inside is None else float(inside.mean())),
    }
    for target, (predicted, truth, coverage) in targets.items():
        regret = 100 * (truth[np.argmin(predicted)] - truth.min()) / np.ptp(truth)
        yield Row(name, n, table, target, rank_correlation(predicted, truth), float(regret), coverage, seconds)


def run(folder: Path, sizes: list[int], subsets: int) -> list[Row]:
    """All rows, averaged over subsets; the same subsets for every surrogate."""
    import lightgbm  # noqa: F401  # so that the first fit does not pay for the import

    swarms = load_regmix(folder)
    train = swarms.pop("train_1m")
    rows = []
    for n in sizes:
        for name in (*NAMES, "linear"):
            repeats: list[list[Row]] = []
            for seed in range(1 if n == len(train) else subsets):
                chosen = np.random.default_rng(seed).permutation(len(train))[:n]
                predictions, seconds = predict(name, train.select([train.trial_ids[index] for index in chosen]), swarms)
                repeats.append([row for table in swarms for row in score(name, n, table, predictions[table], swarms[table], seconds)])
            rows += [average(list(same)) for same in zip(*repeats, strict=True)]
    return rows


def average(rows: list[Row]) -> Row:
    """Mean of rows that differ in their subset only."""

    def mean(field: str) -> float:
        return float(np.mean([getattr(row, field) for row in rows]))

    first = rows[0]
    coverage = None if first.coverage90 is None else mean("coverage90")
    return Row(first.surrogate, first.n, first.table, first.target, mean("spearman"), mean("regret_percent"), coverage, mean("cpu_seconds"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="32 and 128 runs, one subset each")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    arguments = parser.parse_args()
    if "MIXOPT_SHARED" not in os.environ:
        print("Set MIXOPT_SHARED to the shared data folder (it holds data/swarms/regmix).", file=sys.stderr)
        return 2
    folder = Path(os.environ["MIXOPT_SHARED"]) / "data" / "swarms" / "regmix"
    rows = run(folder, [32, 128], 1) if arguments.quick else run(folder, [16, 32, 64, 128, 256, 512], 5)
    print(
        f"{'surrogate':17} {'n':>4} {'table':9} {'target':8} {'spearman':>8} {'regret_percent':>14} {'coverage90':>10} {'cpu_seconds':>11}"
    )
    for row in rows:
        coverage = "-" if row.coverage90 is None else f"{row.coverage90:.3f}"
        print(
            f"{row.surrogate:17} {row.n:4} {row.table:9} {row.target:8} {row.spearman:8.4f} {row.regret_percent:14.2f} "
            f"{coverage:>10} {row.cpu_seconds:11.3f}"
        )
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
