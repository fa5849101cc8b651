"""The swarm: trials and outcomes as one table with a fixed, versioned schema.

Long form, one row per trial, metric and token count, so that curves, several sources and metrics added later all fit without new columns.
Surrogates do not read the table directly; they ask for arrays with `points` and `values`, which follow the swarm's own domain order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.trial import Source

SWARM_VERSION = 1
COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "trial_id": pl.String,
    "label": pl.String,
    "evaluator": pl.String,
    "size": pl.String,
    "source_tokens": pl.Int64,
    "seed": pl.Int64,
    "fractions": pl.List(pl.Float64),
    "requested": pl.List(pl.List(pl.Float64)),
    "realized": pl.List(pl.List(pl.Float64)),
    "metric": pl.String,
    "tokens": pl.Int64,
    "loss_nats": pl.Float64,
    "bits_per_byte": pl.Float64,
    "flops": pl.Float64,
    "seconds": pl.Float64,
}
SCHEMA = pl.Schema(COLUMNS)


@dataclass(frozen=True)
class Points:
    """Where outcomes were measured or are asked for.

    Attributes:
        domains: names of the last axis of `schedules`.
        schedules: weights, shape (n, phases, domains).
        sources: one per point.
        fractions: share of tokens per phase, shape (phases,).
    """

    domains: tuple[str, ...]
    schedules: FloatArray
    sources: tuple[Source, ...]
    fractions: tuple[float, ...] = (1.0,)

    def averages(self) -> FloatArray:
        """Mixture of all tokens of each run, shape (n, domains)."""
        return np.asarray(np.einsum("p,npd->nd", np.array(self.fractions), self.schedules))


@dataclass(frozen=True)
class Swarm:
    """Finished trials of one set of domains.

    Attributes:
        domains: names of the innermost axis of `requested` and `realized`.
        table: columns of `SCHEMA`, ordered by the search (first asked first), then metric, then tokens.
    """

    domains: tuple[str, ...]
    table: pl.DataFrame

    def __post_init__(self) -> None:
        if self.table.schema != SCHEMA:
            raise DataError(f"Swarm table has columns {dict(self.table.schema)}, version {SWARM_VERSION} wants {dict(SCHEMA)}.")

    @classmethod
    def empty(cls, domains: Sequence[str]) -> Swarm:
        return cls(tuple(domains), pl.DataFrame(schema=SCHEMA))

    @classmethod
    def from_arrays(
        cls,
        domains: Sequence[str],
        schedules: FloatArray,
        metrics: Sequence[str],
        bits_per_byte: FloatArray,
        source: Source,
        fractions: Sequence[float] = (1.0,),
        trial_ids: Sequence[str] | None = None,
    ) -> Swarm:
        """A swarm of end-point losses measured elsewhere: published tables, synthetic laws.

        Args:
            schedules: weights, shape (n, phases, domains); taken as requested and as realized.
            bits_per_byte: shape (n, metrics); NaN where a trial was not scored on a metric. Nats, FLOPs and seconds stay unknown (NaN).
            trial_ids: distinct; default: the row numbers.

        Raises:
            DataError: shapes disagree, or trial ids repeat.
        """
        count, phases = len(schedules), len(fractions)
        if schedules.shape != (count, phases, len(domains)) or bits_per_byte.shape != (count, len(metrics)):
            raise DataError(
                f"Schedules of shape {schedules.shape} and losses of shape {bits_per_byte.shape} do not fit "
                f"{phases} phases, {len(domains)} domains and {len(metrics)} metrics."
            )
        names = [f"row-{index:06d}" for index in range(count)] if trial_ids is None else list(trial_ids)
        if len(names) != count or len(set(names)) != count:
            raise DataError(f"{count} trials need {count} distinct trial ids, got {len(set(names))}.")
        scored = [(row, column) for row in range(count) for column in range(len(metrics)) if not np.isnan(bits_per_byte[row, column])]
        weights = schedules.astype(np.float64).tolist()
        table = pl.DataFrame(
            {
                "trial_id": [names[row] for row, _ in scored],
                "label": "",
                "evaluator": source.evaluator,
                "size": source.size,
                "source_tokens": source.tokens,
                "seed": 0,
                "fractions": [list(fractions) for _ in scored],
                "requested": [weights[row] for row, _ in scored],
                "realized": [weights[row] for row, _ in scored],
                "metric": [metrics[column] for _, column in scored],
                "tokens": source.tokens,
                "loss_nats": float("nan"),
                "bits_per_byte": [float(bits_per_byte[row, column]) for row, column in scored],
                "flops": float("nan"),
                "seconds": float("nan"),
            },
            schema=SCHEMA,
        )
        return cls(tuple(domains), table)

    def __len__(self) -> int:
        """Number of trials."""
        return self.table["trial_id"].n_unique()

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(self.table["trial_id"].unique(maintain_order=True))

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted(self.table["metric"].unique()))

    def at_source(self, source: Source) -> Swarm:
        """The trials of one source."""
        rows = self.table.filter(
            (pl.col("evaluator") == source.evaluator) & (pl.col("size") == source.size) & (pl.col("source_tokens") == source.tokens)
        )
        return Swarm(self.domains, rows)

    def select(self, trial_ids: Sequence[str]) -> Swarm:
        """The trials named, in the order of the table."""
        return Swarm(self.domains, self.table.filter(pl.col("trial_id").is_in(list(trial_ids))))

    def trials(self) -> pl.DataFrame:
        """One row per trial: its columns other than metric, tokens and losses."""
        return self.table.unique("trial_id", keep="first", maintain_order=True).drop("metric", "tokens", "loss_nats", "bits_per_byte")

    def points(self, realized: bool = True) -> Points:
        """Schedules and sources, one point per trial, in the order of `trial_ids`."""
        trials = self.trials()
        if trials.is_empty():
            return Points(self.domains, np.zeros((0, 1, len(self.domains))), ())
        column = trials["realized" if realized else "requested"].to_list()
        sources = tuple(Source(e, s, t) for e, s, t in zip(trials["evaluator"], trials["size"], trials["source_tokens"], strict=True))
        return Points(self.domains, np.array(column, dtype=np.float64), sources, tuple(trials["fractions"][0].to_list()))

    def values(self, metrics: Sequence[str], column: str = "bits_per_byte") -> FloatArray:
        """End-point losses, shape (trials, metrics), in the order of `trial_ids`; NaN where a trial was not scored on a metric."""
        ends = self.table.group_by("trial_id", "metric").agg(pl.col(column).sort_by("tokens").last().alias("value"))
        lookup = {(trial_id, metric): value for trial_id, metric, value in ends.iter_rows()}
        values = [[lookup.get((trial_id, metric), np.nan) for metric in metrics] for trial_id in self.trial_ids]
        return np.array(values, dtype=np.float64).reshape(len(self), len(metrics))

    def digest(self) -> str:
        """Hash of the content, independent of the order of rows; random state and caches derive from it."""
        rows = self.table.sort("trial_id", "metric", "tokens")
        text = repr((SWARM_VERSION, self.domains, rows.select("trial_id", "metric", "tokens", "loss_nats", "bits_per_byte").rows()))
        return hashlib.sha256(text.encode()).hexdigest()[:20]
