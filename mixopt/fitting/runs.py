"""Two tables of runs joined into a swarm: by id, with everything that was left out or changed said in a note.

What is no mistake of the user's but the way of experiments is a note: a run that crashed and has no metrics, a metric that was not scored on a few
runs, weights that were rounded. What would make the answer another one than the user thinks is an error: ids that repeat, weights that do not sum
to 1, tables of which most rows do not fit together. The rules:

- Runs in only one table are left out, as long as more than half of each table finds its partner.
- A run without any metric is left out; then a metric that more than a tenth of the runs lack; then runs that lack one of the others. At least
  half of the runs must be left. Infinite and missing values are the same here.
- A domain that no run has, and a metric that is the same in all runs, are left out: nothing can be learned of either.

The swarm holds losses: a metric of which more is better is negated, and `Runs.maximized` says which. Domains, metrics and runs are in the order of
their names, whatever order the files have, so that the same runs give the same swarm, bit for bit.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl

from mixopt.errors import ConfigError, DataError
from mixopt.fitting.copies import copied_rows
from mixopt.fitting.tables import (
    COST,
    MISSING,
    NAME_COLUMN,
    SEED,
    SIZE,
    SOURCE_COLUMNS,
    TOKENS,
    Table,
    has,
    listed,
    named,
    nearest,
    read_table,
)
from mixopt.fitting.weights import checked_weights
from mixopt.mixture import FloatArray
from mixopt.quantities import parse_count
from mixopt.surrogates.observations import MINIMUM_TRIALS
from mixopt.swarm import SCHEMA, Swarm
from mixopt.trial import Source
from mixopt.verification import OBJECTIVE

MOST_MISSING = 0.1
"""Share of the runs that may lack a metric before the metric, and not the runs, is left out."""
UNKNOWN_SIZE, UNKNOWN_TOKENS = "unknown", 1
EVALUATOR = "given"


@dataclass(frozen=True)
class Runs:
    """Measured runs, ready to be fitted.

    Attributes:
        swarm: losses; lower is better in every metric.
        maximized: metrics that are stored negated.
        notes: what was left out or changed, as sentences.
        ids: trial id -> id as the user wrote it.
        left_out_domains: those that no run has.
    """

    swarm: Swarm
    maximized: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()
    ids: Mapping[str, str] = field(default_factory=dict)
    left_out_domains: tuple[str, ...] = ()

    @classmethod
    def of(cls, swarm: Swarm, maximize: Sequence[str] = ()) -> Runs:
        """A swarm from elsewhere, whose metrics named in `maximize` are as measured: more is better.

        Raises:
            ConfigError: it has no such metric.
        """
        _check_maximize(maximize, swarm.metrics)
        flipped = pl.when(pl.col("metric").is_in(list(maximize))).then(-pl.col("bits_per_byte")).otherwise(pl.col("bits_per_byte"))
        table = swarm.table.with_columns(flipped.alias("bits_per_byte")) if maximize else swarm.table
        return cls(Swarm(swarm.domains, table), frozenset(maximize), ids={trial_id: trial_id for trial_id in swarm.trial_ids})

    def sign(self, metric: str) -> float:
        """-1 where the swarm holds the negated metric, else 1."""
        return -1.0 if metric in self.maximized else 1.0


def read_runs(mixtures: Path, metrics: Path, maximize: Sequence[str] = ()) -> Runs:
    """Reads and joins a table of mixtures and a table of metrics, CSV or Parquet.

    Args:
        maximize: metrics of which more is better.

    Raises:
        DataError: a table cannot be read, or does not say what it must; see the module.
        ConfigError: `maximize` names a metric that is not there.
    """
    return join_tables(read_table(mixtures), read_table(metrics), maximize)


def join_tables(mixtures: Table, metrics: Table, maximize: Sequence[str] = ()) -> Runs:
    """As `read_runs`, from tables already read."""
    domains, names = sorted(mixtures.contents), sorted(metrics.contents)
    _check_columns(mixtures, metrics, domains, names)
    _check_maximize(maximize, names)
    weights, notes = checked_weights(mixtures, domains)
    pairs, said = _pairs(mixtures, metrics)
    notes += [*said, *_apart_notes(metrics)]
    values = metrics.matrix(names)
    pairs, names_kept, said = _complete(pairs, mixtures, values, names, maximize)
    notes += said
    used = sorted(domain for column, domain in enumerate(domains) if weights[[row for row, _ in pairs], column].any())
    unused = tuple(sorted(set(domains) - set(used)))
    if unused:
        notes.append(f"{listed('Domain', unused)} {has(unused)} no weight in any run: nothing is known of {_them(unused)}, so left out.")
    if len(used) < 2:
        raise DataError(f"{mixtures.name}: all runs are of the one domain {used[0]}.", "A mixture needs runs of at least two domains.")
    runs = _sorted_runs(pairs, mixtures, metrics)
    losses = values[[run.metrics_row for run in runs]][:, [names.index(name) for name in names_kept]]
    losses *= np.where([name in maximize for name in names_kept], -1.0, 1.0)
    shares = weights[[run.mixtures_row for run in runs]][:, [domains.index(domain) for domain in used]]
    copied = copied_rows(shares, losses, [run.source.key for run in runs])
    if copied.any():
        rows = [run.given for run, copy in zip(runs, copied.tolist(), strict=True) if copy]
        notes.append(
            f"{listed('Run', rows)} {has(rows)} the mixture and, to the last digit, every metric of another run, and no repeat differs from its fellows: "
            f"copies, which say nothing of noise, so left out."
        )
        runs, losses, shares = [run for run, copy in zip(runs, copied.tolist(), strict=True) if not copy], losses[~copied], shares[~copied]
        if len(runs) < MINIMUM_TRIALS:
            raise DataError(f"A fit needs at least {MINIMUM_TRIALS} runs, got {len(runs)} and copies of them.", "Run more.")
    if len(runs) < len(used):
        notes.append(f"There are {len(runs)} runs for {len(used)} domains: fewer runs than domains leave most of the surface unknown.")
    swarm = Swarm(tuple(used), _table(runs, shares, names_kept, losses))
    return Runs(swarm, frozenset(set(maximize) & set(names_kept)), tuple(notes), {run.trial_id: run.given for run in runs}, unused)


def _apart_notes(metrics: Table) -> list[str]:
    """Columns of the metrics' table that a user may have meant for metrics."""
    apart = [column for column in (*SOURCE_COLUMNS, NAME_COLUMN) if column in metrics.columns]
    return (
        [
            f"{listed('Column', apart)} of {metrics.name} {'says' if len(apart) == 1 else 'say'} where runs come from and {'is no metric' if len(apart) == 1 else 'are no metrics'}."
        ]
        if apart
        else []
    )


def row_sources(table: Table, default: Source) -> tuple[Source, ...]:
    """The source of each row, where the columns `size` and `tokens` say it; what they do not say is the default's.

    Raises:
        DataError: a size is missing, or a number of tokens is none.
    """
    sizes = table.texts(SIZE) if SIZE in table.columns else (default.size,) * len(table)
    if any(size.lower() in MISSING for size in sizes):
        raise DataError(f"{table.name}: a run has no size.", "Give every run one, or leave the column out.")
    tokens = _counts(table, TOKENS) if TOKENS in table.columns else [default.tokens] * len(table)
    return tuple(Source(EVALUATOR, size, count) for size, count in zip(sizes, tokens, strict=True))


@dataclass(frozen=True)
class _Run:
    trial_id: str
    given: str
    label: str
    source: Source
    seed: int
    cost: float
    mixtures_row: int
    metrics_row: int


def _check_columns(mixtures: Table, metrics: Table, domains: Sequence[str], names: Sequence[str]) -> None:
    if len(domains) < 2:
        found = f"only the domain '{domains[0]}'" if domains else "no domain"
        raise DataError(f"{mixtures.name} has {found}.", "It should have one column of weights per domain, at least two.")
    if not names:
        raise DataError(f"{metrics.name} has no metric.", "It should have one column per metric.")
    if OBJECTIVE in names:
        raise DataError(f"{metrics.name} has a metric '{OBJECTIVE}', which is what results call the objective.", "Give it another name.")


def _check_maximize(maximize: Sequence[str], names: Sequence[str]) -> None:
    for metric in maximize:
        if metric not in names:
            raise ConfigError(f"There is no metric '{metric}' to maximize.", nearest(metric, names))


def _keys(table: Table, columns: Sequence[str]) -> list[tuple[str, ...]]:
    """What tells the rows of a table apart: the id, and the source and seed where the columns say them."""
    parts = [table.ids] + [_canonical(table, column) for column in columns]
    return list(zip(*parts, strict=True))


def _canonical(table: Table, column: str) -> tuple[str, ...]:
    return table.texts(column) if column == SIZE else tuple(str(count) for count in _counts(table, column))


def _pairs(mixtures: Table, metrics: Table) -> tuple[list[tuple[int, int]], list[str]]:
    """Rows of the two tables that belong together, and what has no partner.

    Raises:
        DataError: ids repeat, no id is in both, or most of a table has no partner.
    """
    apart = [[column for column in (SIZE, TOKENS, SEED) if column in table.columns] for table in (mixtures, metrics)]
    for table, columns in zip((mixtures, metrics), apart, strict=True):
        repeated = sorted(key for key, count in Counter(_keys(table, columns)).items() if count > 1)
        if repeated:
            by = " and ".join([table.id_column, *columns])
            rows = ["/".join(key) for key in repeated]
            raise DataError(
                f"{table.name}: {listed('id', rows)} {'occurs' if len(rows) == 1 else 'occur'} more than once.",
                f"Give every row another {by}.",
            )
    shared = [column for column in apart[0] if column in apart[1]]
    left, right = _keys(mixtures, shared), _keys(metrics, shared)
    if len(set(left)) < len(left) and len(set(right)) < len(right):
        differ = sorted(set(apart[0]) ^ set(apart[1]))
        raise DataError(
            f"An id has several rows in both tables, which do not share the column {' or '.join(differ)} that tells them apart.",
            "Add it to the table that lacks it.",
        )
    if len(set(left)) < len(left):
        rows = ["/".join(key) for key in sorted(key for key, count in Counter(left).items() if count > 1)]
        raise DataError(
            f"{mixtures.name} has several runs of {listed('id', rows)}, and {metrics.name} does not say which of them its row is of.",
            f"Add the column {' and '.join(sorted(set(apart[0]) - set(shared)))} to {metrics.name}, or give every run an id of its own.",
        )
    places: dict[tuple[str, ...], list[int]] = {}
    for row, key in enumerate(right):
        places.setdefault(key, []).append(row)
    pairs = [(row, other) for row, key in enumerate(left) for other in places.get(key, ())]
    alone = [sorted(set(left) - set(right)), sorted(set(right) - set(left))]
    if not pairs:
        raise DataError(
            f"No run is in both tables: {mixtures.name} has {named([key[0] for key in left])}, {metrics.name} has {named([key[0] for key in right])}.",
            "Rows are joined by id; write the same ids into both.",
        )
    notes = []
    for table, other, keys, total in ((mixtures, metrics, alone[0], len(set(left))), (metrics, mixtures, alone[1], len(set(right)))):
        rows = ["/".join(key) for key in keys]
        if 2 * len(rows) >= total:
            raise DataError(
                f"{len(rows)} of the {total} runs of {table.name} are not in {other.name} ({named(rows)}).",
                "Are these tables of the same swarm? If so, take those rows out.",
            )
        if rows:
            lacking = "metrics" if table is mixtures else "mixture"
            notes.append(f"{listed('Run', rows)} {has(rows)} no {lacking} and {'is' if len(rows) == 1 else 'are'} left out.")
    return pairs, notes


def _complete(
    pairs: Sequence[tuple[int, int]], mixtures: Table, values: FloatArray, names: Sequence[str], maximize: Sequence[str]
) -> tuple[list[tuple[int, int]], list[str], list[str]]:
    """The pairs and metrics that leave no hole, and what was left out."""
    ids, notes = mixtures.ids, []
    holes = np.asarray(~np.isfinite(values[[other for _, other in pairs]]))
    empty = np.asarray(holes.all(axis=1))
    if empty.any():
        rows = sorted({ids[pairs[row][0]] for row in np.flatnonzero(empty).tolist()})
        notes.append(f"{listed('Run', rows)} {has(rows)} no finite metric and {'is' if len(rows) == 1 else 'are'} left out.")
    sparse = holes[~empty].mean(axis=0) > MOST_MISSING if (~empty).any() else np.ones(len(names), dtype=bool)
    for column in np.flatnonzero(sparse).tolist():
        lacking = int(holes[~empty, column].sum())
        notes.append(f"Metric '{names[column]}' has no finite value in {lacking} of {int((~empty).sum())} runs and is left out.")
    holed = np.asarray(~empty & holes[:, ~sparse].any(axis=1))
    if holed.any():
        rows = sorted({ids[pairs[row][0]] for row in np.flatnonzero(holed).tolist()})
        where = [names[column] for column in np.flatnonzero(holes[holed].any(axis=0) & ~sparse).tolist()]
        notes.append(
            f"{listed('Run', rows)} {has(rows)} no finite value of {named(where)} and {'is' if len(rows) == 1 else 'are'} left out."
        )
    kept = [pair for pair, out in zip(pairs, (empty | holed).tolist(), strict=True) if not out]
    if 2 * len(kept) < len(pairs) or sparse.all():
        raise DataError(
            f"Only {0 if sparse.all() else len(kept)} of {len(pairs)} runs have finite metrics: {' '.join(notes)}",
            "Score the runs again, or take the metrics out of the table.",
        )
    if len(kept) < MINIMUM_TRIALS:
        raise DataError(
            f"A fit needs at least {MINIMUM_TRIALS} runs, got {len(kept)} of {mixtures.name} that have all metrics.", "Run more."
        )
    here = values[[other for _, other in kept]]
    constant = (np.ptp(here, axis=0) == 0) & ~sparse
    notes += [
        f"Metric '{names[column]}' is {here[0, column]:.6g} in every run: nothing can be learned of it, so left out."
        for column in np.flatnonzero(constant).tolist()
    ]
    names_kept = [name for name, out in zip(names, sparse | constant, strict=True) if not out]
    if not names_kept:
        raise DataError(f"No metric differs between runs: {' '.join(notes)}", "Give a metric that mixtures move.")
    gone = [metric for metric in maximize if metric not in names_kept]
    if gone:
        notes.append(f"{listed('Metric', gone)} to maximize {'is' if len(gone) == 1 else 'are'} among those left out.")
    return kept, names_kept, notes


def _sorted_runs(pairs: Sequence[tuple[int, int]], mixtures: Table, metrics: Table) -> list[_Run]:
    """The runs in the order of their ids: numbers by value, before words."""
    sizes = _either(mixtures, metrics, SIZE, pairs) or [UNKNOWN_SIZE] * len(pairs)
    tokens = [int(count) for count in _either(mixtures, metrics, TOKENS, pairs) or [str(UNKNOWN_TOKENS)] * len(pairs)]
    seeds = [int(seed) for seed in _either(mixtures, metrics, SEED, pairs) or ["0"] * len(pairs)]
    names = _either(mixtures, metrics, NAME_COLUMN, pairs) or [""] * len(pairs)
    costs = _costs(mixtures, metrics, pairs)
    ids = [mixtures.ids[row] for row, _ in pairs]
    several = Counter(ids)
    runs = []
    for place, (row, other) in enumerate(pairs):
        apart = f"@{sizes[place]}/{tokens[place]}/{seeds[place]}" if several[ids[place]] > 1 else ""
        source = Source(EVALUATOR, sizes[place], tokens[place])
        given = mixtures.given_ids[row].strip()
        label = names[place] or (given if given.lower().startswith("run") else f"run {given}")
        runs.append(_Run(ids[place] + apart, given, label, source, seeds[place], costs[place], row, other))
    return sorted(runs, key=lambda run: (*_by_value(run.trial_id.partition("@")[0]), run.source.tokens, run.source.size, run.seed))


def _by_value(text: str) -> tuple[int, int, str]:
    """Whole numbers by value, everything else as text behind them."""
    return (0, int(text), text) if re.fullmatch(r"[+-]?\d{1,18}", text) else (1, 0, text)


def _either(mixtures: Table, metrics: Table, column: str, pairs: Sequence[tuple[int, int]]) -> list[str] | None:
    """A column that either table may have, one text per pair; None where neither has it."""
    for side, table in enumerate((mixtures, metrics)):
        if column in table.columns:
            cells = table.texts(column) if column in (SIZE, NAME_COLUMN) else _canonical(table, column)
            found = [cells[pair[side]] for pair in pairs]
            if column == SIZE and any(cell.lower() in MISSING for cell in found):
                raise DataError(f"{table.name}: a run has no size.", "Give every run one, or leave the column out.")
            return found
    return None


def _counts(table: Table, column: str) -> list[int]:
    """Whole numbers as people write them, one per row."""
    counts = []
    for row, text in enumerate(table.texts(column)):
        try:
            number = float(parse_count(text))
        except ValueError:
            number = float("nan")
        if not number.is_integer() or not (column == SEED or number > 0) or abs(number) >= 2**53:
            what = "a seed" if column == SEED else "a number of tokens above 0"
            raise DataError(
                f"{table.name}: '{text}' in column '{column}' of run {table.ids[row]} is not {what}.", "Write 3B, 3e9 or 250000."
            )
        counts.append(int(number))
    return counts


def _costs(mixtures: Table, metrics: Table, pairs: Sequence[tuple[int, int]]) -> list[float]:
    for side, table in enumerate((mixtures, metrics)):
        if COST in table.columns:
            costs = table.numbers(COST)
            wrong = [table.ids[row] for row in np.flatnonzero(~((costs > 0) & np.isfinite(costs)))]
            if wrong:
                raise DataError(
                    f"{table.name}: {listed('run', wrong)} {has(wrong)} no cost above 0.", "Give every run one, or leave the column out."
                )
            return [float(costs[pair[side]]) for pair in pairs]
    return [float("nan")] * len(pairs)


def _table(runs: Sequence[_Run], shares: FloatArray, metrics: Sequence[str], losses: FloatArray) -> pl.DataFrame:
    """The swarm's long table: a row per run and metric. Built from one row per run, since the weights are most of it."""
    schedules = shares.reshape(len(runs), 1, -1).tolist()
    once = pl.DataFrame(
        {
            "trial_id": [run.trial_id for run in runs],
            "label": [run.label for run in runs],
            "evaluator": [run.source.evaluator for run in runs],
            "size": [run.source.size for run in runs],
            "source_tokens": [run.source.tokens for run in runs],
            "seed": [run.seed for run in runs],
            "fractions": [[1.0]] * len(runs),
            "requested": schedules,
            "realized": schedules,
            "tokens": [run.source.tokens for run in runs],
            "flops": [run.cost for run in runs],
        },
        schema={name: SCHEMA[name] for name in SCHEMA if name not in ("metric", "loss_nats", "bits_per_byte", "seconds")},
    )
    rows = pl.Series(np.repeat(np.arange(len(runs)), len(metrics)))
    long = once[rows].with_columns(
        metric=pl.Series(list(metrics) * len(runs), dtype=pl.String),
        loss_nats=pl.lit(float("nan")),
        bits_per_byte=pl.Series(losses.reshape(-1)),
        seconds=pl.lit(float("nan")),
    )
    return long.select(list(SCHEMA))


def _them(names: Sequence[str]) -> str:
    return "it" if len(names) == 1 else "them"
