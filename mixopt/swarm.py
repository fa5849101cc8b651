"""The swarm: trials and outcomes as one table with a fixed, versioned schema.

Long form, one row per trial, metric and token count, so that curves, several sources and metrics added later all fit without new columns.
Surrogates do not read the table directly; they ask for arrays with `points`, `values` and `curves`, which follow the swarm's own domain order.

Points of a curve before its end are scored on fewer rows of the held-out set than the end is. So the end is there twice: as the metric, on all
rows, which is what `values` gives; and on the rows of the points before it, under the metric's name behind `ON_CURVE`, which is where `curves`
ends. Trials recorded before there was the second lack it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import polars as pl

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.trial import Source, Trial

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
# Of a trial and of a loss, beside the trial's id.
RUN_COLUMNS = ("label", "evaluator", "size", "source_tokens", "seed", "fractions", "requested", "realized")
LOSS_COLUMNS = ("metric", "tokens", "loss_nats", "bits_per_byte", "flops", "seconds")
ON_CURVE = "curve/"
"""Before the name of a metric: its loss at the end on the rows of the points before the end."""


def on_curve_rows(metrics: Mapping[str, str]) -> dict[str, str]:
    """Evaluation key -> metric, as the table calls these metrics on the rows of the curve."""
    return {key: ON_CURVE + name for key, name in metrics.items()}


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
class Curves:
    """Losses of trials as they trained, points in the order of training; the last one is the end.

    Trials measured at fewer points begin later: their first points are NaN. Trials of other sources have other token counts, so a law of tokens
    goes by `tokens`, and what compares trials at equal shares of their training by the place of a point, counted from the end.

    Attributes:
        tokens: training tokens seen, shape (trials, points).
        values: losses, shape (trials, points, metrics); NaN where a trial was not scored on a metric.
    """

    tokens: FloatArray
    values: FloatArray


class Swarm:
    """Finished trials of one set of domains.

    Kept as two tables, since a mixture of 200 domains beside each of 100 metrics would fill gigabytes: `runs`, one row per trial, and `losses`, one per trial,
    metric and token count. `table` is both in the long form of `SCHEMA`.

    Attributes:
        domains: names of the innermost axis of `requested` and `realized`.
    """

    def __init__(self, domains: tuple[str, ...], table: pl.DataFrame) -> None:
        """From the long form: columns of `SCHEMA`, ordered by the search (first asked first), then metric, then tokens.

        Raises:
            DataError: other columns.
        """
        if table.schema != SCHEMA:
            raise DataError(f"Swarm table has columns {dict(table.schema)}, version {SWARM_VERSION} wants {dict(SCHEMA)}.")
        runs = table.select("trial_id", *RUN_COLUMNS).unique("trial_id", keep="first", maintain_order=True)
        self._set(domains, runs, table.select("trial_id", *LOSS_COLUMNS))

    @classmethod
    def of_tables(cls, domains: Sequence[str], runs: pl.DataFrame, losses: pl.DataFrame) -> Swarm:
        """From both tables: trials in the order of `runs`, all of which have losses."""
        swarm = cls.__new__(cls)
        swarm._set(tuple(domains), runs, losses)
        return swarm

    def _set(self, domains: tuple[str, ...], runs: pl.DataFrame, losses: pl.DataFrame) -> None:
        self.domains, self.runs, self.losses = domains, runs, losses

    @cached_property
    def table(self) -> pl.DataFrame:
        """Columns of `SCHEMA`, one row per trial, metric and token count, in the order of `losses`."""
        return self.losses.join(self.runs, on="trial_id", how="left", maintain_order="left").select(list(SCHEMA))

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
        tokens: Sequence[int] | None = None,
    ) -> Swarm:
        """A swarm of losses measured elsewhere: published tables, synthetic laws.

        Args:
            schedules: weights, shape (n, phases, domains); taken as requested and as realized.
            bits_per_byte: at the end, shape (n, metrics), or along the way, shape (n, points, metrics); NaN where a trial was not scored on a
                metric. Nats, FLOPs and seconds stay unknown (NaN).
            trial_ids: distinct; default: the row numbers.
            tokens: of the points, ascending, the last those of `source`; None: losses are of the end.

        Raises:
            DataError: shapes disagree, trial ids repeat, tokens do not ascend to those of the source, or a trial has no end.
        """
        count, phases = len(schedules), len(fractions)
        grid = (source.tokens,) if tokens is None else tuple(tokens)
        losses = bits_per_byte[:, None] if tokens is None else bits_per_byte
        if schedules.shape != (count, phases, len(domains)) or losses.shape != (count, len(grid), len(metrics)):
            raise DataError(
                f"Schedules of shape {schedules.shape} and losses of shape {bits_per_byte.shape} do not fit "
                f"{phases} phases, {len(domains)} domains, {len(grid)} points and {len(metrics)} metrics."
            )
        if list(grid) != sorted(set(grid)) or grid[-1:] != (source.tokens,):
            raise DataError(f"Points are at {list(grid)} tokens; they ascend to the {source.tokens:,} of the source.")
        if len(grid) > 1 and (np.isnan(losses[:, -1]).all(axis=1) & ~np.isnan(losses).all(axis=(1, 2))).any():
            raise DataError("A trial has losses along the way and none at its end.", "Leave it out: it is not finished.")
        names = [f"row-{index:06d}" for index in range(count)] if trial_ids is None else list(trial_ids)
        if len(names) != count or len(set(names)) != count:
            raise DataError(f"{count} trials need {count} distinct trial ids, got {len(set(names))}.")
        weights = schedules.astype(np.float64).tolist()
        scored = np.asarray(~np.isnan(losses).all(axis=(1, 2)))
        runs = pl.DataFrame(
            {
                "trial_id": names,
                "label": "",
                "evaluator": source.evaluator,
                "size": source.size,
                "source_tokens": source.tokens,
                "seed": 0,
                "fractions": [list(fractions)] * count,
                "requested": weights,
                "realized": weights,
            },
            schema={name: SCHEMA[name] for name in ("trial_id", *RUN_COLUMNS)},
        )
        return cls.of_tables(domains, runs.filter(scored.tolist()), _long_form(losses, grid, metrics, names))

    @classmethod
    def of_trials(
        cls, domains: Sequence[str], trials: Sequence[Trial], metrics: Sequence[str], bits_per_byte: FloatArray, flops: Sequence[float]
    ) -> Swarm:
        """The swarm of trials whose losses are known, by a law say; each has trained what it asked for.

        Args:
            bits_per_byte: at the end, shape (trials, metrics).
            flops: of each trial.
        """
        schedules = [[mixture.array(domains).tolist() for mixture in trial.schedule.mixtures] for trial in trials]
        rows = [
            {
                "trial_id": trial.trial_id,
                "label": trial.label,
                "evaluator": trial.source.evaluator,
                "size": trial.source.size,
                "source_tokens": trial.source.tokens,
                "seed": trial.seed,
                "fractions": list(trial.schedule.fractions),
                "requested": schedule,
                "realized": schedule,
                "metric": metric,
                "tokens": trial.source.tokens,
                "loss_nats": loss,
                "bits_per_byte": loss,
                "flops": cost,
                "seconds": float("nan"),
            }
            for trial, schedule, losses, cost in zip(trials, schedules, bits_per_byte, flops, strict=True)
            for metric, loss in zip(metrics, losses.tolist(), strict=True)
        ]
        return cls(tuple(domains), pl.DataFrame(rows, schema=SCHEMA))

    def __len__(self) -> int:
        """Number of trials."""
        return len(self.runs)

    @property
    def trial_ids(self) -> tuple[str, ...]:
        """In the order of the table."""
        return tuple(self.runs["trial_id"])

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.losses["metric"].unique() if not name.startswith(ON_CURVE)))

    def at_source(self, source: Source) -> Swarm:
        """The trials of one source."""
        return self._part(
            (pl.col("evaluator") == source.evaluator) & (pl.col("size") == source.size) & (pl.col("source_tokens") == source.tokens)
        )

    def select(self, trial_ids: Sequence[str]) -> Swarm:
        """The trials named, in the order of the table."""
        return self._part(pl.col("trial_id").is_in(list(trial_ids)))

    def without(self, trial_ids: Collection[str]) -> Swarm:
        """All trials but those named."""
        return self._part(~pl.col("trial_id").is_in(list(trial_ids))) if trial_ids else self

    def _part(self, wanted: pl.Expr) -> Swarm:
        runs = self.runs.filter(wanted)
        return Swarm.of_tables(self.domains, runs, self.losses.filter(pl.col("trial_id").is_in(runs["trial_id"].to_list())))

    def with_others(self, other: Swarm, leaving: Collection[str] = ()) -> Swarm:
        """These trials, and behind them those of another swarm over the same domains that are neither here nor in `leaving`."""
        known = {*self.trial_ids, *leaving}
        new = other.select([trial_id for trial_id in other.trial_ids if trial_id not in known])
        if not len(new):
            return self
        assert new.domains == self.domains, "swarms that are joined have the same domains in the same order"
        return Swarm.of_tables(self.domains, pl.concat([self.runs, new.runs]), pl.concat([self.losses, new.losses]))

    def by_trial_id(self) -> Swarm:
        """The same trials, sorted by id: for sums whose last digits depend on the order."""
        return Swarm.of_tables(self.domains, self.runs.sort("trial_id"), self.losses.sort("trial_id", "metric", "tokens"))

    def trials(self) -> pl.DataFrame:
        """One row per trial: its columns other than metric, tokens and losses."""
        costs = self.losses.select("trial_id", "flops", "seconds").unique("trial_id", keep="first", maintain_order=True)
        return self.runs.join(costs, on="trial_id", how="left", maintain_order="left")

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
        # The end is the trial's, not the metric's: what was measured earlier only has no end.
        ends = self.losses.filter(pl.col("tokens") == pl.col("tokens").max().over("trial_id"))
        rows = {trial_id: row for row, trial_id in enumerate(self.trial_ids)}
        values = np.full((len(self), len(metrics)), np.nan)
        for place, metric in enumerate(metrics):
            found = ends.filter(pl.col("metric") == metric)
            values[[rows[trial_id] for trial_id in found["trial_id"]], place] = found[column].to_numpy()
        return values

    def curves(self, metrics: Sequence[str], column: str = "bits_per_byte", end: Literal["curve", "all"] = "curve") -> Curves:
        """Losses along the way, in the order of `trial_ids`.

        The proxies' usual schedule decays the learning rate over the last fifth of training: points before the end are at the full rate, and the
        end lies below the curve that they are on. A law fitted to a curve should leave the end out or give it a term of its own.

        Args:
            end: which rows the last point is scored on. "curve": those of the points before it, so that all differences along a curve are of
                training; NaN for trials recorded without. "all": all rows, as `values`; between the last two points rows change, too, by the
                same rows in every trial.
        """
        rows = self.losses.with_columns(last=pl.col("tokens").max().over("trial_id") == pl.col("tokens"))
        wanted = rows.filter(
            pl.when("last").then(pl.lit(end == "all") != pl.col("metric").str.starts_with(ON_CURVE)).otherwise(statement=True)
        )
        names = dict.fromkeys(metrics)
        found: dict[str, dict[int, dict[str, float]]] = {trial_id: {} for trial_id in self.trial_ids}
        # The end has its place even where nobody measured it on the curve's rows.
        for trial_id, tokens in rows.filter("last").select("trial_id", "tokens").iter_rows():
            found[trial_id].setdefault(tokens, {})
        for trial_id, metric, tokens, value in wanted.select("trial_id", "metric", "tokens", column).iter_rows():
            if (name := metric.removeprefix(ON_CURVE)) in names:
                found[trial_id].setdefault(tokens, {})[name] = value
        points = max((len(curve) for curve in found.values()), default=0)
        grid, values = np.full((len(self), points), np.nan), np.full((len(self), points, len(metrics)), np.nan)
        for row, curve in enumerate(found.values()):
            for place, (tokens, losses) in enumerate(sorted(curve.items()), start=points - len(curve)):
                grid[row, place] = tokens
                values[row, place] = [losses.get(metric, np.nan) for metric in metrics]
        return Curves(grid, values)

    def digest(self) -> str:
        """Hash of the content, independent of the order of rows; random state and caches derive from it."""
        rows = self.losses.sort("trial_id", "metric", "tokens")
        text = repr((SWARM_VERSION, self.domains, rows.select("trial_id", "metric", "tokens", "loss_nats", "bits_per_byte").rows()))
        return hashlib.sha256(text.encode()).hexdigest()[:20]


def _long_form(losses_NPM: FloatArray, grid: Sequence[int], metrics: Sequence[str], names: Sequence[str]) -> pl.DataFrame:
    """The losses that are there, by trial, metric and token count; with several points the end on the curve's rows, too, as all are on the same rows."""
    places = [(metric, column, point) for column, metric in enumerate(metrics) for point in range(len(grid))]
    if len(grid) > 1:
        places += [(ON_CURVE + metric, column, len(grid) - 1) for column, metric in enumerate(metrics)]
    values_NL = losses_NPM[:, [point for *_, point in places], [column for _, column, _ in places]]
    table = pl.DataFrame(
        {
            "trial_id": np.repeat(np.array(names, dtype=object), len(places)),
            "metric": [metric for metric, *_ in places] * len(names),
            "tokens": [grid[point] for *_, point in places] * len(names),
            "loss_nats": float("nan"),
            "bits_per_byte": values_NL.ravel(),
            "flops": float("nan"),
            "seconds": float("nan"),
        },
        schema={name: SCHEMA[name] for name in ("trial_id", *LOSS_COLUMNS)},
    )
    return table.filter(pl.col("bits_per_byte").is_not_nan())
