"""A Gaussian process over mixtures and sources: many cheap runs and a few expensive ones answer for the expensive source.

Per metric one exact process (`source_kernel`): every source is a multiple of a common one, plus a level, plus a deviation, with noise of its own. The
reference is the source with most mixtures. From one source it *is* the single-source process. The main trade-off: cost grows with the cube of all runs, so that
beyond `MOST_TRIALS` those of the cheapest sources are thinned.

A proxy that has nothing to do with the target must not hurt: a target with at least `LEAST_ALONE` runs is also fitted alone, and answers alone where that
predicts its own runs better, left out one by one (log density). On made-up laws of which the proxy's (128 runs) had nothing to do with the target's (8 to 48
runs), errors were .92 to 1.01 times those of the target's runs alone, and 1.01 to 1.48 times without this; where laws were the same, .10 to .46 times.

It answers at sources that have at least one run and refuses others: nothing about a further source follows from levels of some without a law of scale,
which is what the scaling laws are for.

Legend: N trials, M points, F features, S sources, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from mixopt.components.config import EVALUATORS
from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.space import BoolArray
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.features import root_and_log
from mixopt.surrogates.gaussian_process import (
    HYPERPARAMETER_TRIALS,
    MAX_ITERATIONS,
    MINIMUM_RELATIVE_SCALE,
    MINIMUM_VARIANCE,
    SEARCH_STDS,
    TOLERANCE,
    GaussianProcess,
)
from mixopt.surrogates.kernel import JITTER
from mixopt.surrogates.misfit import factor_with_jitter
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.surrogates.scales import Sizes, sources_in
from mixopt.surrogates.source_kernel import (
    Averages,
    IntArray,
    SourceHyperparameters,
    negative_log_posterior,
    source_covariance,
    source_prior,
    source_variance,
)
from mixopt.surrogates.sourced_observations import SourcedObservations
from mixopt.surrogates.threads import over_metrics
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

MOST_TRIALS = 2048
LEAST_ALONE, BLOCK_ROWS = 8, 512
"""Runs of a source from which on it is also fitted alone: fewer cannot show that the others do not help."""
MOST_OF_ONE, MOST_ODDS = 1.0, 12.0
"""Beside averages, how much one run may say for or against them, in logarithms of that density, and how much all of them together must: a baseline far from
what is feasible, where averages bend most, would else outweigh a gate that has looked, whose dozen runs cannot reach it (docs/log.md)."""
LEAST_SPREAD, LEAST_UNIT = 4, 1e-3
"""Runs of a source that say how far its losses spread, and the least of that in the reference's."""


@dataclass(frozen=True)
class SourcesFit:
    """The process of one metric over some sources, conditioned on its outputs.

    Attributes:
        centers: mean loss per source (S,), bits per byte; `scale`: std of the reference's losses. Outputs are standardised with them.
        factor: lower Cholesky factor of the covariance of the observations, shape (N, N).
        alpha: inverse of that covariance times the standardised outputs, shape (N,).
    """

    parameters: SourceHyperparameters
    centers: FloatArray
    scale: float
    features: FloatArray
    at: IntArray
    factor: FloatArray
    alpha: FloatArray

    def means(self, features_MF: FloatArray, at_M: IntArray) -> FloatArray:
        """Shape (M,), bits per byte."""
        k_MN = source_covariance(features_MF, at_M, self.features, self.at, self.parameters)
        return np.asarray(self.centers[at_M] + self.scale * (k_MN @ self.alpha))

    def stds(self, features_MF: FloatArray, at_M: IntArray) -> FloatArray:
        """Of noise-free losses, shape (M,), bits per byte."""
        k_NM = source_covariance(self.features, self.at, features_MF, at_M, self.parameters)
        explained_NM = solve_triangular(self.factor, k_NM, lower=True)
        left_M = source_variance(features_MF, at_M, self.parameters) - np.einsum("nm,nm->m", explained_NM, explained_NM)
        return np.asarray(self.scale * np.sqrt(np.maximum(left_M, MINIMUM_VARIANCE)))

    def joint_factor(self, features_MF: FloatArray, at_M: IntArray) -> FloatArray:
        """Cholesky factor of the posterior covariance over points, shape (M, M), bits per byte."""
        k_NM = source_covariance(self.features, self.at, features_MF, at_M, self.parameters)
        explained_NM = solve_triangular(self.factor, k_NM, lower=True)
        left_MM = source_covariance(features_MF, at_M, features_MF, at_M, self.parameters) - explained_NM.T @ explained_NM
        return self.scale * factor_with_jitter(left_MM)

    def log_densities_left_out(self, source: int) -> FloatArray:
        """Log density of each of a source's runs, left out (Rasmussen & Williams 2006, equations 5.10 to 5.12), up to a constant; bits per byte."""
        precision_N = np.diag(cho_solve((self.factor, True), np.eye(len(self.alpha))))
        errors_N, variance_N = self.alpha / precision_N, 1 / precision_N
        log_N = -0.5 * (errors_N**2 / variance_N + np.log(variance_N)) - np.log(self.scale)
        return np.asarray(log_N[self.at == source])


class MultiSourceGP:
    """Fits one process per metric over all sources; see the module's docstring.

    Args:
        sizes: name of a size -> parameters, for names that are no numbers; only the order of sources by cost needs them.
    """

    several_sources = True

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.sizes = sizes

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Fitted:
        """Fits on the realized mixtures of `swarm`; a swarm of one source gets the process of one.

        Raises:
            DataError: no metric, fewer than 4 trials, a metric that some trial was not scored on, or sources whose order is not known.
        """
        if len(swarm) == 0 or len(set(swarm.points().sources)) == 1:
            return GaussianProcess().fit(swarm, metrics)
        by_cost = sources_in(swarm, self.sizes)
        observed = SourcedObservations.of(_thinned(swarm, by_cost), metrics)
        mixtures = {source: set[int]() for source in by_cost}
        for source, group in zip(observed.sources, observed.groups.tolist(), strict=True):
            mixtures[source].add(group)
        # The reference is the source of most mixtures, of equals the costliest; the others follow by cost.
        reference = max(reversed(by_cost), key=lambda source: len(mixtures[source]))
        sources = (reference, *(source for source in by_cost if source != reference))
        number = {source: index for index, source in enumerate(sources)}
        at_N = np.array([number[source] for source in observed.sources], dtype=np.int64)
        features_NF = root_and_log(observed.schedules)
        averaged = np.array([source.evaluator in EVALUATORS for source in sources])
        fits = over_metrics(lambda outputs_N: _fit_metric(features_NF, at_N, outputs_N, len(sources), averaged), observed.values.T)
        return FittedSources(observed, sources, by_cost[-1], fits)


def _thinned(swarm: Swarm, sources: Sequence[Source]) -> Swarm:
    """At most MOST_TRIALS trials: those of the costliest sources first, of the source that no longer fits a random part."""
    if len(swarm) <= MOST_TRIALS:
        return swarm
    swarm = swarm.by_trial_id()
    at = np.array([sources.index(source) for source in swarm.points().sources])
    shuffled = np.random.default_rng(0).permutation(len(swarm))
    kept = shuffled[np.argsort(-at[shuffled], kind="stable")][:MOST_TRIALS]
    return swarm.select([swarm.trial_ids[row] for row in kept])


def _fit_metric(
    features_NF: FloatArray, at_N: IntArray, outputs_N: FloatArray, sources: int, averaged: BoolArray
) -> tuple[SourcesFit, dict[int, SourcesFit]]:
    """The process over all sources, and those of sources that predict their own runs better alone."""
    together = condition(features_NF, at_N, outputs_N, sources, averaged)
    alone = {}
    for source in range(1, sources):
        rows = at_N == source
        if rows.sum() >= LEAST_ALONE:
            fit = condition(features_NF[rows], np.zeros(rows.sum(), dtype=np.int64), outputs_N[rows], 1)
            better_M = fit.log_densities_left_out(0) - together.log_densities_left_out(source)
            if better_M.sum() > 0 if not averaged.any() else np.clip(better_M, -MOST_OF_ONE, MOST_OF_ONE).sum() > MOST_ODDS:
                alone[source] = fit
    return together, alone


def condition(
    features_NF: FloatArray, at_N: IntArray, outputs_N: FloatArray, sources: int, averaged: BoolArray | None = None
) -> SourcesFit:
    """The posterior mode of one metric's hyperparameters, and the process conditioned on its outputs (bits per byte, shape (N,)).

    Args:
        averaged: which sources are averages of components, of which other things are expected, shape (S,); None: none.
    """
    centers_S = np.bincount(at_N, outputs_N, sources) / np.bincount(at_N, minlength=sources)
    scale = max(float(outputs_N[at_N == 0].std()), MINIMUM_RELATIVE_SCALE * max(float(np.abs(centers_S).max()), 1.0))
    standard_N = (outputs_N - centers_S[at_N]) / scale
    averages = None
    if averaged is not None and averaged.any():
        averages = Averages(averaged, np.array([_spread(outputs_N[at_N == source], scale) for source in range(sources)]) / scale)
    prior = source_prior(features_NF.shape[1], sources, averages)
    reach_P = SEARCH_STDS * prior.std
    rows = np.arange(len(at_N))
    if len(rows) > HYPERPARAMETER_TRIALS:
        rows = np.sort(np.random.default_rng(0).permutation(len(rows))[:HYPERPARAMETER_TRIALS])
    some_NF = features_NF[rows]
    result = minimize(
        negative_log_posterior,
        prior.mean,
        args=(some_NF, at_N[rows], some_NF @ some_NF.T / some_NF.shape[1], standard_N[rows], prior),
        jac=True,
        method="L-BFGS-B",
        bounds=np.stack([prior.mean - reach_P, prior.mean + reach_P], axis=1),
        options={"maxiter": MAX_ITERATIONS, "ftol": TOLERANCE},
    )
    parameters = SourceHyperparameters.from_vector(result.x, features_NF.shape[1])
    k_NN = source_covariance(features_NF, at_N, features_NF, at_N, parameters)
    k_NN[np.diag_indices(len(k_NN))] += parameters.noise[at_N] + JITTER
    factor_NN = cholesky(k_NN, lower=True)
    return SourcesFit(parameters, centers_S, scale, features_NF, at_N, factor_NN, cho_solve((factor_NN, True), standard_N))


def _spread(outputs_M: FloatArray, otherwise: float) -> float:
    """Standard deviation of one source's losses; of fewer than `LEAST_SPREAD` it is not known, and of runs that do not differ it is no unit."""
    if len(outputs_M) < LEAST_SPREAD:
        return otherwise
    return max(float(outputs_M.std()), LEAST_UNIT * otherwise)


@dataclass(frozen=True)
class FittedSources:
    """Processes of several metrics over the same trials.

    Attributes:
        sources: that were run; the first is the reference.
        costliest: of them.
        fits: per metric the process over all sources, and processes of single sources that answer in its place.
    """

    observations: SourcedObservations
    sources: tuple[Source, ...]
    costliest: Source
    fits: tuple[tuple[SourcesFit, dict[int, SourcesFit]], ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Learned noise of the costliest source, shape (metrics,), bits per byte."""
        return np.asarray(self._noise()[self.sources.index(self.costliest)])

    def noise_at(self, points: Points) -> FloatArray:
        """Learned noise of the source of every point, shape (n, metrics), bits per byte."""
        return np.asarray(self._noise()[self._located(points)[1]])

    def _noise(self) -> FloatArray:
        """Shape (S, metrics)."""
        noise_SK = np.empty((len(self.sources), len(self.fits)))
        for column, (together, alone) in enumerate(self.fits):
            noise_SK[:, column] = together.scale * np.sqrt(together.parameters.noise)
            for source, fit in alone.items():
                noise_SK[source, column] = fit.scale * np.sqrt(fit.parameters.noise[0])
        return noise_SK

    def _located(self, points: Points) -> tuple[FloatArray, IntArray]:
        """Features and numbers of sources of `points`.

        Raises:
            DataError: other domains or phases, or a source that was never run.
        """
        features_MF = root_and_log(self.observations.align(points))
        number = {source: index for index, source in enumerate(self.sources)}
        unknown = sorted({source.key for source in points.sources if source not in number})
        if unknown:
            raise DataError(
                f"No run was at {', '.join(unknown)}, and this surrogate says nothing of sources without runs.",
                "Run a few mixtures there, or use a law over sizes, as scaling_effective.",
            )
        return features_MF, np.array([number[source] for source in points.sources], dtype=np.int64)

    def mean(self, points: Points) -> FloatArray:
        """Posterior mean at the points' sources, shape (n, metrics)."""
        return self._moments(*self._located(points), with_std=False)[0]

    def posterior(self, points: Points) -> GaussianPosterior:
        """Mean and std at `points`; the joint covariance is computed when the posterior is sampled."""
        features_MF, at_M = self._located(points)
        means_MK, stds_MK = self._moments(features_MF, at_M, with_std=True)
        return GaussianPosterior(means_MK, stds_MK, lambda metric: self._joint_factor(features_MF, at_M, metric))

    def _moments(self, features_MF: FloatArray, at_M: IntArray, with_std: bool) -> tuple[FloatArray, FloatArray]:
        means_MK = np.empty((len(features_MF), len(self.fits)))
        stds_MK = np.zeros_like(means_MK)

        def fill(metric: int) -> None:
            for fit, rows, at in self._parts(at_M, metric):
                for start in range(0, len(rows), BLOCK_ROWS):
                    block = slice(start, start + BLOCK_ROWS)
                    means_MK[rows[block], metric] = fit.means(features_MF[rows[block]], at[block])
                    if with_std:
                        stds_MK[rows[block], metric] = fit.stds(features_MF[rows[block]], at[block])

        over_metrics(fill, range(len(self.fits)))
        return means_MK, stds_MK

    def _joint_factor(self, features_MF: FloatArray, at_M: IntArray, metric: int) -> FloatArray:
        """Of all points, shape (M, M): block by block where sources answer alone."""
        factor_MM, column = np.zeros((len(at_M), len(at_M))), 0
        for fit, rows, at in self._parts(at_M, metric):
            factor_MM[rows, column : column + len(rows)] = fit.joint_factor(features_MF[rows], at)
            column += len(rows)
        return factor_MM

    def _parts(self, at_M: IntArray, metric: int) -> list[tuple[SourcesFit, IntArray, IntArray]]:
        """Which process answers for which points, and their sources' numbers in that process."""
        together, alone = self.fits[metric]
        parts = [(fit, np.flatnonzero(at_M == source), np.zeros((at_M == source).sum(), dtype=np.int64)) for source, fit in alone.items()]
        rest = np.flatnonzero(~np.isin(at_M, list(alone)))
        return [part for part in [*parts, (together, rest, at_M[rest])] if len(part[1])]
