"""Runs from tables, for a warm start: read as `mixopt fit` reads them, then matched to this search by the names of domains and metrics.

They are runs of a source of their own, whatever they were trained with: a table does not say it. The main trade-off: their losses may be in another
unit than bits per byte, since a surrogate over several sources learns level and scale of each; so nobody asks for the unit, and none is checked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from mixopt.errors import DataError
from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import NAME_COLUMN, SOURCE_COLUMNS, Table, nearest, read_table
from mixopt.mixture import SUM_TOLERANCE
from mixopt.swarm import RUN_COLUMNS, SCHEMA, Swarm
from mixopt.trial import content_digest
from mixopt.warm_start.config import EarlierRuns
from mixopt.warm_start.earlier import LABEL, Earlier, Wanted, content_of

KINDS = ("", "target/", "valid/")
"""What may stand before the name of a column to make the name of a metric, tried in this order."""


def read_given(entry: EarlierRuns, wanted: Wanted) -> Earlier:
    """The runs of an entry that names tables.

    Raises:
        DataError: a table cannot be read, no metric of the objective is in it, or no run is only of domains of this search.
        ConfigError: `names` names a column or a metric that is not there.
    """
    known = tuple(wanted.held_out)
    notes: list[str] = []
    if entry.runs is not None:
        table = read_table(Path(entry.runs))
        weights, losses, notes = _halves(table, wanted, known, entry.names)
    else:
        weights, losses = read_table(Path(str(entry.mixtures))), read_table(Path(str(entry.metrics)))
        table = losses
    names = metric_names(losses, known, entry.names, wanted.domains if entry.runs is not None else ())
    missing = sorted(set(wanted.counted) - set(names.values()))
    if missing:
        raise DataError(
            f"{losses.name} has no column for {', '.join(missing)}, which the objective of this search counts.",
            f"Say with `names` which column it is; there are {', '.join(name for name in table.contents if name not in wanted.domains)}.",
        )
    runs = join_tables(weights, losses)
    swarm, gone = _over(runs, wanted.domains, {column: metric for column, metric in names.items() if column in runs.swarm.metrics})
    if not len(swarm):
        raise DataError(
            f"Every run of {weights.name} gives weight to domains that this search lacks.", f"It has {', '.join(wanted.domains)}."
        )
    lost = sorted(set(wanted.counted) - set(swarm.metrics))
    if lost:
        raise DataError(f"{losses.name} tells nothing of {', '.join(lost)}: {' '.join(runs.notes)}", "Leave it out of `search.warm_start`.")
    said = f"Warm start from {losses.name}: {len(swarm)} runs, taken as runs of a source of their own."
    if gone:
        notes.append(f"{gone} runs of {weights.name} give weight to domains that this search does not have, and are left out.")
    return Earlier(swarm, known=(content_of(swarm),), notes=(said, *notes, *runs.notes))


def metric_names(table: Table, known: Sequence[str], given: Mapping[str, str], taken: Sequence[str] = ()) -> dict[str, str]:
    """Column of a table -> metric of this search, for the columns that are one; columns in `taken` are domains.

    Raises:
        DataError: `given` names a column that the table lacks, or a metric that the search lacks.
    """
    for column, named in given.items():
        if column not in table.columns:
            raise DataError(f"`search.warm_start` names a column '{column}', which {table.name} lacks.", nearest(column, table.contents))
        if named not in known:
            raise DataError(f"`search.warm_start` names a metric '{named}', which this search lacks.", nearest(named, known))
    found = dict(given)
    for column in table.contents:
        metric: str | None = next((kind + column for kind in KINDS if kind + column in known), None)
        if metric is not None and column not in found and column not in taken and metric not in found.values():
            found[column] = metric
    return found


def _halves(table: Table, wanted: Wanted, known: Sequence[str], given: Mapping[str, str]) -> tuple[Table, Table, list[str]]:
    """One table as one of weights and one of losses, without the runs whose weights here do not make a whole."""
    domains = [name for name in wanted.domains if name in table.columns]
    metrics = list(metric_names(table, known, given, domains))
    if len(domains) < 2:
        raise DataError(f"{table.name} has columns of {len(domains)} domains of this search.", f"They are {', '.join(wanted.domains)}.")
    sums = np.nan_to_num(table.matrix(domains)).sum(axis=1)
    rows = np.flatnonzero(np.abs(sums - 1) <= max(SUM_TOLERANCE, 1e-3)).tolist()
    if not rows:
        raise DataError(
            f"In no run of {table.name} the weights of {', '.join(domains)} sum to 1.", "Columns of domains have the names of this search."
        )
    apart = [column for column in (NAME_COLUMN, *SOURCE_COLUMNS) if column in table.columns]

    def part(columns: Sequence[str]) -> Table:
        kept = {column: [table.columns[column][row] for row in rows] for column in (table.id_column, *columns)}
        return Table(table.name, kept, table.id_column)

    left = len(table) - len(rows)
    notes = [f"{left} runs of {table.name} give weight to domains that this search does not have, and are left out."] if left else []
    unread = sorted(set(table.contents) - {*domains, *metrics})
    if unread:
        notes.append(f"Columns of {table.name} that are no domain or metric of this search are not read: {', '.join(unread)}.")
    return part([*domains, *apart]), part(metrics), notes


def _over(runs: Runs, domains: Sequence[str], names: Mapping[str, str]) -> tuple[Swarm, int]:
    """The runs that are only of `domains`, over all of them, with metrics renamed; and how many are not."""
    swarm = runs.swarm
    points = swarm.points()
    inside = [column for column, name in enumerate(swarm.domains) if name in domains]
    whole = np.abs(points.schedules[:, 0, inside].sum(axis=1) - 1) <= SUM_TOLERANCE
    weights = np.zeros((len(swarm), 1, len(domains)))
    weights[:, :, [list(domains).index(swarm.domains[column]) for column in inside]] = points.schedules[:, :, inside]
    tag = f"table-{content_digest(swarm.digest())[:8]}"
    table = swarm.runs.with_columns(
        trial_id=pl.lit(f"{tag}/") + pl.col("trial_id"),
        label=pl.lit(LABEL),
        evaluator=pl.lit(tag),
        requested=pl.Series(weights.tolist(), dtype=SCHEMA["requested"]),
        realized=pl.Series(weights.tolist(), dtype=SCHEMA["realized"]),
    ).filter(pl.Series(whole))
    # A cost that the table does not say is none of this search's: sources of unknown cost are then taken for the cheapest.
    losses = swarm.losses.filter(pl.col("metric").is_in(list(names))).with_columns(
        trial_id=pl.lit(f"{tag}/") + pl.col("trial_id"), metric=pl.col("metric").replace_strict(names), flops=pl.col("flops").fill_nan(0.0)
    )
    losses = losses.filter(pl.col("trial_id").is_in(table["trial_id"].to_list()))
    return Swarm.of_tables(domains, table.select("trial_id", *RUN_COLUMNS), losses), int((~whole).sum())
