"""Synthetic tables of runs, and ways to write others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import Table, table_of

DOMAINS, METRICS, RUNS = ("web", "code", "books"), ("web_loss", "code_loss"), 28
WORTH = np.array([[1.5, 0.2], [0.2, 1.8], [0.3, 0.1]])
EIGHT = "a b c d e f g h"
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
SHARES = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


@pytest.fixture(scope="session")
def frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    """Mixtures and metrics of 28 runs: each of two losses likes one of three domains, the noise of a seed is .005; the first four repeat one mixture."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(len(DOMAINS)), RUNS)
    weights[:4] = [0.5, 0.25, 0.25]
    losses = 2 + np.exp(-weights @ WORTH) + rng.normal(0, 0.005, (RUNS, len(METRICS)))
    ids = pl.Series("run", [f"r{row}" for row in range(RUNS)])
    mixtures, metrics = (
        pl.DataFrame(values, schema=list(names), orient="row").insert_column(0, ids)
        for values, names in ((weights, DOMAINS), (losses, METRICS))
    )
    return mixtures, metrics


@pytest.fixture(scope="session")
def runs(frames: tuple[pl.DataFrame, pl.DataFrame]) -> Runs:
    mixtures, metrics = frames
    return join_tables(table_of(mixtures, "mixtures.csv"), table_of(metrics, "metrics.csv"))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a text or bytes to a file; returns its path."""

    def to_file(name: str, content: str | bytes) -> Path:
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return tmp_path / name

    return to_file


@pytest.fixture
def table() -> Callable[..., Table]:
    """A table from its columns, as one that was read: `table("mixtures.csv", run="a b", web=[1, 0])`."""

    def of(name: str, /, **columns: str | list[object]) -> Table:
        lists = {column: cells.split() if isinstance(cells, str) else cells for column, cells in columns.items()}
        return table_of(pl.DataFrame(lists, strict=False), name)

    return of


@pytest.fixture
def mixtures(table: Callable[..., Table]) -> Callable[..., Table]:
    """Eight runs of web and code, with columns added or replaced."""

    def of(**columns: object) -> Table:
        return table("mixtures.csv", **{"run": EIGHT, "web": SHARES, "code": [1 - share for share in SHARES], **columns})

    return of


@pytest.fixture
def metrics(table: Callable[..., Table]) -> Callable[..., Table]:
    """Their losses, with columns added or replaced."""

    def of(**columns: object) -> Table:
        return table("metrics.csv", **{"run": EIGHT, "loss": LOSSES, **columns})

    return of
