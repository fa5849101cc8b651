"""Predictions for mixtures that a table asks about: every metric and the objective, each with the standard deviation of the noise-free value.

A standard deviation here is of the loss that the mean over many seeds would show. One run differs from it by seed noise as well, which
`diagnostics.json` has. The objective is relative to the natural mixture (the uniform one where token counts are not known), as everywhere. The main
trade-off: a mixture of a domain that no run had is refused instead of being predicted by a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl
from numpy.typing import NDArray

from mixopt.errors import DataError
from mixopt.fitting.runs import Runs, row_sources
from mixopt.fitting.tables import Table, named, nearest
from mixopt.fitting.weights import checked_weights
from mixopt.mixture import FloatArray
from mixopt.prediction import DRAWS, SPREAD_CHUNK, Prediction
from mixopt.surrogates.posterior import difference_variance
from mixopt.swarm import Points
from mixopt.trial import Source
from mixopt.verification import OBJECTIVE

CHUNK = 512
"""Points asked about at once: a posterior of a Gaussian process holds a matrix of points by runs."""


@dataclass(frozen=True)
class Asked:
    """Mixtures to predict.

    Attributes:
        points: over the domains of the runs.
        id_column, ids: as in the table they come from.
        notes: what was changed, as sentences.
    """

    points: Points
    id_column: str
    ids: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_asked(table: Table, runs: Runs, source: Source) -> Asked:
    """The mixtures of a table; a domain that it lacks has no weight.

    Args:
        source: where predictions are wanted, unless the table has the columns `size` or `tokens`.

    Raises:
        DataError: a column is no domain of the runs, weights do not sum to 1, a weight is on a domain that no run had, or a source that was never run.
    """
    domains = runs.swarm.domains
    known = (*domains, *runs.left_out_domains)
    for column in table.contents:
        if column not in known:
            raise DataError(f"{table.name}: '{column}' is no domain of the runs.", nearest(column, known))
    weights, notes = checked_weights(table, table.contents)
    for column in set(table.contents) - set(domains):
        rows = np.flatnonzero(weights[:, table.contents.index(column)] > 0)
        if len(rows):
            raise DataError(
                f"{table.name}: run {named([table.ids[row] for row in rows])} has weight on '{column}', which no fitted run had.",
                "Nothing can be said of it; run some mixtures with it.",
            )
    absent = [domain for domain in domains if domain not in table.contents]
    if absent:
        notes.append(f"{table.name} has no column {named(absent)}: its mixtures have none of {'it' if len(absent) == 1 else 'them'}.")
    shares = np.zeros((len(table), len(domains)))
    for place, domain in enumerate(domains):
        if domain in table.contents:
            shares[:, place] = weights[:, table.contents.index(domain)]
    sources = row_sources(table, source)
    return Asked(Points(domains, shares[:, None], sources), table.id_column, tuple(text.strip() for text in table.given_ids), tuple(notes))


def predictions(prediction: Prediction, runs: Runs, points: Points) -> pl.DataFrame:
    """`<metric>_mean` and `<metric>_std` of every metric, by name, then of the objective; a row per point. Maximized metrics in their own sign."""
    columns: dict[str, FloatArray] = {}
    for fitted in (prediction.counted, prediction.others):
        if fitted is None:
            continue
        mean, std = np.empty((2, len(points.sources), len(fitted.metrics)))
        for rows in _chunks(points):
            posterior = fitted.posterior(_part(points, rows))
            mean[rows], std[rows] = posterior.mean, posterior.std
        for column, metric in enumerate(fitted.metrics):
            columns[f"{metric}_mean"], columns[f"{metric}_std"] = runs.sign(metric) * mean[:, column], std[:, column]
    frame = {name: columns[name] for metric in sorted(prediction.metrics) for name in (f"{metric}_mean", f"{metric}_std")}
    frame[f"{OBJECTIVE}_mean"], frame[f"{OBJECTIVE}_std"] = objective_at(prediction, points)
    return pl.DataFrame(frame)


def objective_at(prediction: Prediction, points: Points) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of the objective of `points` minus that of the natural mixture at the same source, each of shape (n,)."""
    order = [points.domains.index(domain) for domain in prediction.domains]
    weights = points.averages()[:, order]
    mean, std = np.empty((2, len(weights)))
    for source in dict.fromkeys(points.sources):
        rows = np.array([other == source for other in points.sources])
        here = at_source(prediction, source)
        mean[rows], std[rows] = here.mean(weights[rows]), objective_std(here, weights[rows])
    return mean, std


def objective_std(prediction: Prediction, weights: FloatArray) -> FloatArray:
    """Standard deviation of the objective of mixtures (n, domains) minus that of the natural mixture, shape (n,).

    A mixture's does not depend on the others: the variance of every metric's difference is worked out and not drawn jointly. The largest of several
    metrics has no such formula; it is drawn from those variances, with the same normal numbers for every mixture. As for intervals of a proposal,
    correlated errors of metrics widen it, and never narrow it.
    """
    objective, stds = prediction.objective, np.empty(len(weights))
    normal = np.random.default_rng([prediction.seed, 0x0B5]).standard_normal((DRAWS, 1, len(objective.metrics)))
    for at in range(0, len(weights), SPREAD_CHUNK):
        part = slice(at, at + SPREAD_CHUNK)
        posterior = prediction.counted.posterior(prediction.points(np.concatenate([prediction.natural[None], weights[part]])))
        metric_stds = np.sqrt(difference_variance(posterior, 0)[1:])
        differences = posterior.mean[1:] - posterior.mean[0]
        losses = np.array(objective.natural_losses) + differences
        if objective.kind == "worst_case":
            independent = objective.difference(differences + metric_stds * normal, np.zeros(len(objective.metrics))).std(axis=0)
        else:
            independent = np.sqrt(((objective.sensitivities(losses) * metric_stds) ** 2).sum(axis=1))
        stds[part] = np.maximum(independent, prediction.measurement_std(losses, metric_stds))
    return stds


def at_source(prediction: Prediction, source: Source) -> Prediction:
    """The same surrogates asked at another source, whose natural losses are its own."""
    if source == prediction.source:
        return prediction
    natural = prediction.counted.mean(Points(prediction.domains, prediction.natural[None, None, :], (source,)))[0]
    return replace(prediction, source=source, objective=prediction.objective.with_natural(natural))


def check_sources(points: Points, known: Sequence[Source], several: bool) -> None:
    """That predictions are asked where the surrogate can answer.

    Raises:
        DataError: it was fitted at one source, and the table asks about another: a surrogate over several would not look at the source either.
    """
    unknown = [source for source in dict.fromkeys(points.sources) if source not in known]
    if unknown and (not several or len(known) == 1):
        raise DataError(
            f"Predictions are asked at size {unknown[0].size} and {unknown[0].tokens:,} tokens, where no run was fitted.",
            f"Runs are at {', '.join(f'size {source.size} and {source.tokens:,} tokens' for source in known)}.",
        )


def _chunks(points: Points) -> list[NDArray[np.int64]]:
    """Rows of points in chunks, each of one source: one prediction does not depend on what else the table asks about."""
    found = []
    for source in dict.fromkeys(points.sources):
        rows = np.flatnonzero([other == source for other in points.sources])
        found += [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
    return found


def _part(points: Points, rows: NDArray[np.int64]) -> Points:
    return replace(points, schedules=points.schedules[rows], sources=tuple(points.sources[row] for row in rows))
