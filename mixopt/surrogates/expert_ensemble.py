"""X-MDE: losses of few trained runs regressed on those that averages of components give the same mixtures (arXiv 2502.15950, section 4 of the methods).

Merged and ensembled proxies (`components.config.EVALUATORS`) are run at many mixtures, cost little and are biased; trained runs are few. Two steps, per metric: a
process for what each evaluator says anywhere (`evaluator_process`), and a regression of the trained losses on that and on the mixture (`expert_regression`), one
per trained source. At an evaluator's own source its process answers. What is uncertain of an evaluator is uncertain, slope for slope, of trained losses too, and
jointly so; its uncertainty at the trained runs themselves is neglected, which is right where it was asked about their mixtures or has many runs.

The main trade-off: against `multi_source_gp`, which puts all runs into one process, evaluators keep their own features and are never blurred by the noise of
trained runs, and uncertainty of variances is averaged over; but trained runs teach nothing of evaluators, and evaluators' runs cannot be as few as trained ones.
So where an evaluator has fewer than `LEAST_RUNS`, or nothing but evaluators or none was run, `multi_source_gp` answers in its place: a search starts that way, and
an error would end it.

Legend: N trials, M points, E evaluators, K metrics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.components.config import EVALUATORS
from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.evaluator_process import EvaluatorProcess, some_runs, weights_and_roots
from mixopt.surrogates.expert_regression import Inputs, Regression
from mixopt.surrogates.features import root_and_log
from mixopt.surrogates.kernel import Prior
from mixopt.surrogates.multi_source_gp import LEAST_ALONE, MultiSourceGP, SourcesFit, condition
from mixopt.surrogates.posterior import GaussianPosterior
from mixopt.surrogates.scales import Sizes, sources_in
from mixopt.surrogates.source_kernel import IntArray
from mixopt.surrogates.sourced_observations import SourcedObservations
from mixopt.surrogates.threads import over_metrics
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

LEAST_RUNS = 8
"""Of an evaluator, for a process of its own."""
ALONE_BY = 8.0
"""Nats by which the trained runs alone must predict themselves better, left out one by one, before evaluators are not listened to. With any advantage sufficing,
errors at 8 to 16 runs of real merges and ensembles grew by 21% to 35% (docs/log.md). What it costs: beside an unrelated evaluator errors were 1.21, 1.13, 1.05 and
.93 times those of the trained runs alone, at 8, 12, 16 and 32 of them."""
BLOCK_ROWS = 512


class ExpertEnsemble:
    """Fits a process per evaluator and a regression per trained source; see the module's docstring.

    Args:
        sizes: name of a size -> parameters, for names that are no numbers; only the order of sources by cost needs them.
    """

    several_sources = True

    def __init__(self, sizes: Sizes | None = None) -> None:
        self.sizes = sizes

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> Fitted:
        """Fits on the realized mixtures of `swarm`; without trained runs, or enough of each evaluator, it is `multi_source_gp`.

        Raises:
            DataError: no metric, fewer than 4 trials, a metric that some trial was not scored on, or several trained sources whose order is not known.
        """
        found = list(swarm.points().sources)
        sources = sorted(set(found), key=lambda source: source.key)
        evaluators = tuple(source for source in sources if source.evaluator in EVALUATORS)
        trained = tuple(source for source in sources if source.evaluator not in EVALUATORS)
        if not trained or not evaluators or min(found.count(source) for source in evaluators) < LEAST_RUNS:
            return MultiSourceGP(self.sizes).fit(swarm, metrics)
        if len(trained) > 1:
            trained = tuple(source for source in sources_in(swarm, self.sizes) if source in trained)
        observed = SourcedObservations.of(swarm, metrics)
        data = _Data.of(observed, evaluators, trained)
        return FittedExperts(observed, evaluators, trained, over_metrics(data.fit, observed.values.T))


@dataclass(frozen=True)
class _Data:
    """What metrics share: features of all runs, and which runs are whose."""

    linear: FloatArray
    far: FloatArray
    of_evaluators: tuple[IntArray, ...]
    of_trained: tuple[IntArray, ...]

    @classmethod
    def of(cls, observed: SourcedObservations, evaluators: Sequence[Source], trained: Sequence[Source]) -> _Data:
        at_N = np.array([(*evaluators, *trained).index(source) for source in observed.sources])
        wanted_NPD = observed.schedules[at_N >= len(evaluators)]
        rows = [np.flatnonzero(at_N == number) for number in range(len(evaluators) + len(trained))]
        said = tuple(one[some_runs(observed.schedules[one], wanted_NPD)] for one in rows[: len(evaluators)])
        schedules = observed.schedules
        return cls(weights_and_roots(schedules), root_and_log(schedules), said, tuple(rows[len(evaluators) :]))

    def fit(self, outputs_N: FloatArray) -> MetricFit:
        """Of one metric's losses."""
        processes = tuple(EvaluatorProcess.of(self.linear[rows], outputs_N[rows]) for rows in self.of_evaluators)
        spread = float(np.mean([process.scale for process in processes]))
        regressions = []
        for rows in self.of_trained:
            said_NE = np.stack([process.mean(self.linear[rows]) for process in processes], axis=1)
            inputs = inputs_of(said_NE, self.linear[rows], self.far[rows], processes)
            regression = Regression.of(inputs, outputs_N[rows], spread)
            regressions.append(_alone_if_better(self.far[rows], outputs_N[rows], regression))
        return MetricFit(processes, tuple(regressions))


def _alone_if_better(far_NG: FloatArray, outputs_N: FloatArray, regression: Regression) -> Regression | SourcesFit:
    """The process of the trained runs alone where it predicts them far better, each left out: an evaluator of something else must not hurt."""
    if len(outputs_N) < LEAST_ALONE:
        return regression
    alone = condition(far_NG, np.zeros(len(outputs_N), dtype=np.int64), outputs_N, 1)
    return alone if float(alone.log_densities_left_out(0).sum()) > regression.log_density_left_out() + ALONE_BY else regression


def inputs_of(said_NE: FloatArray, linear_NF: FloatArray, far_NG: FloatArray, processes: Sequence[EvaluatorProcess]) -> Inputs:
    """Features by their lengths: for `near` those of the evaluators' processes (their geometric mean), for `far` the median of the process of trained runs."""
    lengths_F = np.exp(np.mean([np.log(process.parameters.lengthscales) for process in processes], axis=0))
    median = float(np.exp(Prior.for_features(far_NG.shape[1]).mean[0]))
    return Inputs(said_NE, linear_NF / np.sqrt(linear_NF.shape[1]), linear_NF / lengths_F, far_NG / median)


@dataclass(frozen=True)
class MetricFit:
    """Of one metric: the process of each evaluator, and of each trained source the regression, or the process of its runs alone."""

    processes: tuple[EvaluatorProcess, ...]
    regressions: tuple[Regression | SourcesFit, ...]

    def noise_stds(self) -> list[float]:
        """Of evaluators and trained sources, bits per byte."""
        of_trained = [
            one.noise_std if isinstance(one, Regression) else one.scale * float(np.sqrt(one.parameters.noise[0]))
            for one in self.regressions
        ]
        return [process.scale * float(np.sqrt(process.parameters.noise)) for process in self.processes] + of_trained


@dataclass(frozen=True)
class FittedExperts:
    """Evaluators' processes and regressions of several metrics.

    Attributes:
        evaluators, trained: sources that were run, the second cheapest first; a metric's processes and regressions are in their order.
    """

    observations: SourcedObservations
    evaluators: tuple[Source, ...]
    trained: tuple[Source, ...]
    fits: tuple[MetricFit, ...]

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.observations.metrics

    @property
    def noise_std(self) -> FloatArray:
        """Learned noise of the costliest trained source, shape (metrics,), bits per byte."""
        return np.asarray(self._noise()[-1])

    def noise_at(self, points: Points) -> FloatArray:
        """Learned noise of the source of every point, shape (n, metrics), bits per byte."""
        return np.asarray(self._noise()[self._located(points)[2]])

    def _noise(self) -> FloatArray:
        """Of evaluators and trained sources, (E + trained, K)."""
        return np.array([fit.noise_stds() for fit in self.fits]).T

    def _located(self, points: Points) -> tuple[FloatArray, FloatArray, IntArray]:
        """Both kinds of features of `points`, and numbers of their sources: evaluators, then trained ones.

        Raises:
            DataError: other domains or phases, or a source that was never run.
        """
        schedules = self.observations.align(points)
        number = {source: index for index, source in enumerate((*self.evaluators, *self.trained))}
        unknown = sorted({source.key for source in points.sources if source not in number})
        if unknown:
            raise DataError(
                f"No run was at {', '.join(unknown)}, and this surrogate says nothing of sources without runs.",
                "Run a few mixtures there, or use a law over sizes, as scaling_effective.",
            )
        at_M = np.array([number[source] for source in points.sources], dtype=np.int64)
        return weights_and_roots(schedules), root_and_log(schedules), at_M

    def mean(self, points: Points) -> FloatArray:
        """Posterior mean at the points' sources, shape (n, metrics)."""
        return self._moments(*self._located(points), with_std=False)[0]

    def posterior(self, points: Points) -> GaussianPosterior:
        """Mean and std at `points`; the joint covariance is computed when the posterior is sampled."""
        located = self._located(points)
        means_MK, stds_MK = self._moments(*located, with_std=True)
        return GaussianPosterior(means_MK, stds_MK, lambda metric: self._joint_factor(*located, self.fits[metric]))

    def _moments(self, linear_MF: FloatArray, far_MG: FloatArray, at_M: IntArray, with_std: bool) -> tuple[FloatArray, FloatArray]:
        means_MK, stds_MK = np.zeros((2, len(at_M), len(self.fits)))

        def fill(column: int) -> None:
            for source, rows in self._blocks(at_M):
                parts = self._block(self.fits[column], source, linear_MF[rows], far_MG[rows], with_std)
                means_MK[rows, column], stds_MK[rows, column] = parts

        over_metrics(fill, range(len(self.fits)))
        return means_MK, stds_MK

    def _block(
        self, fit: MetricFit, source: int, linear_MF: FloatArray, far_MG: FloatArray, with_std: bool
    ) -> tuple[FloatArray, FloatArray | float]:
        """Means and, if wanted, stds of points of one source, bits per byte."""
        if source < len(self.evaluators):
            process = fit.processes[source]
            mean_M, variance_M = process.moments(linear_MF) if with_std else (process.mean(linear_MF), np.zeros(len(linear_MF)))
            return process.center + process.scale * mean_M, process.scale * np.sqrt(variance_M)
        regression = fit.regressions[source - len(self.evaluators)]
        if isinstance(regression, SourcesFit):
            alone_M = np.zeros(len(linear_MF), dtype=np.int64)
            return regression.means(far_MG, alone_M), regression.stds(far_MG, alone_M) if with_std else 0.0
        if not with_std:
            said_ME = np.stack([process.mean(linear_MF) for process in fit.processes], axis=1)
            return regression.mean(inputs_of(said_ME, linear_MF, far_MG, fit.processes)), 0.0
        said_ME, doubt_ME = (
            np.stack(part, axis=1) for part in zip(*(process.moments(linear_MF) for process in fit.processes), strict=True)
        )
        inputs = inputs_of(said_ME, linear_MF, far_MG, fit.processes)
        mean_M, variance_M = regression.moments(inputs)
        return mean_M, np.sqrt(variance_M + (regression.slopes(inputs) ** 2 * doubt_ME).sum(axis=1))

    @staticmethod
    def _blocks(at_M: IntArray) -> Iterator[tuple[int, IntArray]]:
        """Sources of points, and rows of theirs, BLOCK_ROWS at most at a time."""
        for source in np.unique(at_M):
            rows = np.flatnonzero(at_M == source)
            for start in range(0, len(rows), BLOCK_ROWS):
                yield int(source), rows[start : start + BLOCK_ROWS]

    def _joint_factor(self, linear_MF: FloatArray, far_MG: FloatArray, at_M: IntArray, fit: MetricFit) -> FloatArray:
        """F of shape (M, rank) with F F^T the covariance of the points of all sources: what each evaluator leaves open, then each regression."""
        count, first = len(at_M), len(self.evaluators)
        pull_ME, columns = np.zeros((count, first)), []
        said_ME = np.stack([process.mean(linear_MF) for process in fit.processes], axis=1)
        inputs = inputs_of(said_ME, linear_MF, far_MG, fit.processes)
        for number, process in enumerate(fit.processes):
            pull_ME[at_M == number, number] = process.scale
        for number, regression in enumerate(fit.regressions):
            rows = np.flatnonzero(at_M == first + number)
            if len(rows) == 0:
                continue
            own_MR = np.zeros((count, len(rows)))
            if isinstance(regression, SourcesFit):
                own_MR[rows] = regression.joint_factor(far_MG[rows], np.zeros(len(rows), dtype=np.int64))
            else:
                pull_ME[rows] = regression.slopes(inputs.rows(rows))
                own_MR[rows] = regression.joint_factor(inputs.rows(rows))
            columns.append(own_MR)
        columns += [pull_ME[:, [number]] * process.joint_factor(linear_MF) for number, process in enumerate(fit.processes)]
        return np.concatenate(columns, axis=1)
