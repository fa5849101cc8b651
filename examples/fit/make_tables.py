"""Writes mixtures.csv and metrics.csv beside itself: a synthetic swarm from a known law, to try `mixopt fit` on. Nothing was trained.

    python examples/fit/make_tables.py

Forty runs over five domains, among them the natural and the uniform mixture three times each. Losses follow c + (w . p)^-0.5 with noise of 0.008, the
accuracy is 1 minus such a law; weights are rounded to three digits, as published tables are, so that rows sum to 1 only nearly.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

DOMAINS = ("web", "code", "books", "papers", "forums")
NATURAL = (0.6, 0.15, 0.1, 0.05, 0.1)
# Metric -> how much a token of each domain is worth for it, and what no data can remove.
WORTH = {
    "prose_loss": ((1.0, 0.15, 1.4, 0.5, 0.7), 1.9),
    "code_loss": ((0.25, 3.0, 0.1, 0.3, 0.4), 0.6),
    "science_accuracy": ((0.5, 0.4, 0.7, 2.5, 0.2), -0.75),
}
RUNS, SEEDS, NOISE = 40, 3, 0.008


def tables(seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the two tables, headers first."""
    rng = np.random.default_rng(seed)
    repeated = [(np.array(NATURAL), number) for number in range(SEEDS)] + [(np.full(5, 0.2), number) for number in range(SEEDS)]
    drawn = [(rng.dirichlet(0.6 + 3 * np.array(NATURAL)), 0) for _ in range(RUNS - len(repeated))]
    mixtures, metrics = [["run", *DOMAINS, "seed"]], [["run", *WORTH]]
    for number, (weights, run_seed) in enumerate(repeated + drawn, start=1):
        shown = [f"{weight:.3f}" for weight in weights]
        shares = np.array([float(weight) for weight in shown])
        losses = [rest + (np.array(worth) @ (shares / shares.sum())) ** -0.5 + NOISE * rng.normal() for worth, rest in WORTH.values()]
        losses[-1] = 1 - losses[-1]
        mixtures.append([f"run-{number:02d}", *shown, str(run_seed)])
        metrics.append([f"run-{number:02d}", *(f"{loss:.4f}" for loss in losses)])
    return mixtures, metrics


if __name__ == "__main__":
    for name, rows in zip(("mixtures.csv", "metrics.csv"), tables(), strict=True):
        with Path(__file__).with_name(name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
