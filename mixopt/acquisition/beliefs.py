"""What a search believes of its objective: one process per metric, and the objective on top.

Everything here is over the units of a space whose domains are in the order of their names, so that listing domains in another order
changes nothing at all: differences in the last bit would grow into other proposals. The main trade-off: metrics are independent, as in the
surrogates; what a lucky seed does to all of them together is left to the proposal's intervals.

Legend: M points, U units, D domains, K metrics of the objective, S paths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import polars as pl

from mixopt.acquisition.conditioned import FURTHER_JITTER, Conditioned, by_weights, features_of, of_gaussian_process, of_sources
from mixopt.answer.measured import MEASURED_FEASIBLE_WITHIN, measured_at
from mixopt.domains import DomainSet
from mixopt.errors import DataError
from mixopt.mixture import FloatArray, Mixture
from mixopt.objective import Objective, fit_objective, lacking
from mixopt.prediction import estimated
from mixopt.space import BoolArray, MixtureSpace
from mixopt.strategies.base import Assignment
from mixopt.surrogates.gaussian_process import GaussianProcess
from mixopt.surrogates.multi_source_gp import FittedSources, MultiSourceGP
from mixopt.surrogates.source_kernel import IntArray
from mixopt.swarm import Points, Swarm

DECIMALS = 12
"""Of weights and losses that fits see: far below what can be measured."""
Sloped = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Of points (M, U): values (M,) and their derivatives by the units' weights (M, U)."""


@dataclass(frozen=True)
class UnitSpace:
    """The units of a space, whose domains are in the order of their names."""

    space: MixtureSpace

    @classmethod
    def of(cls, domains: DomainSet) -> UnitSpace:
        """Raises InfeasibleError as `MixtureSpace.from_domains`."""
        by_name = tuple(sorted(domains.domains, key=lambda domain: domain.name))
        return cls(MixtureSpace.from_domains(replace(domains, domains=by_name)))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the domains, in order."""
        return self.space.domains

    @cached_property
    def expansion(self) -> FloatArray:
        """What share of each domain a unit is, shape (U, D)."""
        return self.space.units.expand(np.eye(len(self.space.units.names)))

    def weights(self, points_MU: FloatArray) -> FloatArray:
        """Of domains, shape (M, D)."""
        return self.space.units.expand(points_MU)

    def points(self, weights_MD: FloatArray) -> FloatArray:
        """Of units, in whatever split, shape (M, U)."""
        return self.space.units.collapse(weights_MD)

    def project(self, points_MU: FloatArray) -> FloatArray:
        """The nearest feasible points."""
        return self.points(self.space.project(self.weights(points_MU)))

    def sample(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Feasible points, shape (count, U)."""
        return self.points(self.space.sample(count, rng))

    def contains(self, weights_MD: FloatArray) -> BoolArray:
        """Which mixtures are feasible, as trials are, shape (M,)."""
        return self.space.contains(weights_MD, MEASURED_FEASIBLE_WITHIN)

    def mixture(self, point_U: FloatArray) -> Mixture:
        """The feasible mixture at a point."""
        return Mixture.from_array(self.names, self.space.project(self.weights(point_U[None]))[0])

    @property
    def uncapped(self) -> UnitSpace:
        """The same units without bounds, caps and whatever else limits mixtures."""
        units, domains = len(self.space.units.names), len(self.names)
        none, all_D, none_U, all_U = np.zeros(domains), np.ones(domains), np.zeros(units), np.ones(units)
        return UnitSpace(
            replace(self.space, sums=(), ball=None, most_domains=None, lower=none, upper=all_D, unit_lower=none_U, unit_upper=all_U)
        )


@dataclass(frozen=True)
class Beliefs:
    """Processes of the objective's metrics, in its order.

    Attributes:
        numbers: per metric the number that each source has in its process; sources as in `Assignment.offers`, the answer is wanted at the last.
    """

    coordinates: UnitSpace
    objective: Objective
    processes: tuple[Conditioned, ...]
    numbers: tuple[tuple[int, ...], ...]

    @property
    def answer(self) -> int:
        """Number of the source where the answer is wanted."""
        return len(self.numbers[0]) - 1

    @property
    def linear(self) -> bool:
        """Whether the objective is a weighted sum of losses."""
        return self.objective.kind != "worst_case"

    def factors(self) -> FloatArray:
        """Of a linear objective: what it grows by per unit of each loss, shape (K,)."""
        return np.asarray(self.objective.sensitivities(np.array(self.objective.natural_losses)[None])[0])

    def noise(self, source: int) -> FloatArray:
        """Variance of one run's losses at a source, shape (K,), squared bits per byte."""
        pairs = zip(self.processes, self.numbers, strict=True)
        return np.array([process.scale**2 * process.parameters.noise[number[source]] for process, number in pairs])

    def at(self, source: int, count: int) -> tuple[IntArray, ...]:
        """The source's number in each process, `count` times."""
        return tuple(np.full(count, number[source], dtype=np.int64) for number in self.numbers)

    def moments(self, weights_MD: FloatArray, source: int | None = None) -> tuple[FloatArray, FloatArray]:
        """Of losses at a source (default: the answer's): means (M, S, K) and variances (M, K)."""
        features_MF = features_of(weights_MD)
        at = self.at(self.answer if source is None else source, len(weights_MD))
        found = [process.moments(features_MF, at_M) for process, at_M in zip(self.processes, at, strict=True)]
        return np.stack([mean for mean, _ in found], axis=2), np.stack([variance for _, variance in found], axis=1)

    def mean(self, points_MU: FloatArray) -> FloatArray:
        """Objective of the predicted losses where the answer is wanted, averaged over paths, shape (M,)."""
        means_MSK, _ = self.moments(self.coordinates.weights(points_MU))
        return np.asarray(self.objective.value(means_MSK).mean(axis=1))

    def mean_and_slopes(self, points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The same, and its derivatives by the units' weights (M, U)."""
        weights_MD = self.coordinates.weights(points_MU)
        means_MSK, variances_MK = self.moments(weights_MD)
        by_mean_MSK = self.objective.sensitivities(means_MSK) / means_MSK.shape[1]
        values_M = np.asarray(self.objective.value(means_MSK).mean(axis=1))
        return values_M, self.slopes(weights_MD, by_mean_MSK, np.zeros_like(variances_MK))

    def by_units(self, weights_MD: FloatArray, by_features_MF: FloatArray) -> FloatArray:
        """Derivatives by the units' weights (M, U), from those by features."""
        return np.asarray(by_weights(weights_MD, by_features_MF) @ self.coordinates.expansion.T)

    def draw(self, weights_MD: FloatArray, paths: int, rng: np.random.Generator, source: int | None = None) -> FloatArray:
        """Noise-free losses drawn jointly over points, one draw per path, shape (M, paths, K)."""
        features_MF = features_of(weights_MD)
        at = self.at(self.answer if source is None else source, len(weights_MD))
        normal_KMS = rng.standard_normal((len(self.processes), len(weights_MD), paths))
        draws = [process.draw(features_MF, at_M, normal) for process, at_M, normal in zip(self.processes, at, normal_KMS, strict=True)]
        return np.stack(draws, axis=2)

    def given(self, weights_MD: FloatArray, losses_MSK: FloatArray) -> Beliefs:
        """Given noise-free losses where the answer is wanted, a draw per path."""
        features_MF, at = features_of(weights_MD), self.at(self.answer, len(weights_MD))
        processes = tuple(
            process.given(features_MF, at_M, losses_MSK[:, :, metric], FURTHER_JITTER)
            for metric, (process, at_M) in enumerate(zip(self.processes, at, strict=True))
        )
        return replace(self, processes=processes)

    def slopes(self, weights_MD: FloatArray, by_mean_MSK: FloatArray, by_variance_MK: FloatArray) -> FloatArray:
        """By the units' weights (M, U), of a function of the answer's moments whose derivatives by them are given."""
        features_MF, at = features_of(weights_MD), self.at(self.answer, len(weights_MD))
        found_MF = np.zeros_like(features_MF)
        for metric, (process, at_M) in enumerate(zip(self.processes, at, strict=True)):
            found_MF += process.slopes(features_MF, at_M, by_mean_MSK[:, :, metric], by_variance_MK[:, metric])
        return self.by_units(weights_MD, found_MF)

    def under_way(self, weights_MD: FloatArray, source: int, paths: int, rng: np.random.Generator) -> Beliefs:
        """Given what runs of mixtures at a source will show, one draw of it per path, with their noise."""
        losses_MSK = self.draw(weights_MD, paths, rng, source)
        losses_MSK += np.sqrt(self.noise(source)) * rng.standard_normal(losses_MSK.shape)
        features_MF, at = features_of(weights_MD), self.at(source, len(weights_MD))
        processes = tuple(
            process.given(features_MF, at_M, losses_MSK[:, :, metric], process.parameters.noise[at_M[0]])
            for metric, (process, at_M) in enumerate(zip(self.processes, at, strict=True))
        )
        return replace(self, processes=processes)


def beliefs_of(assignment: Assignment, completed: Swarm) -> Beliefs:
    """Beliefs from finished trials and earlier runs, by the process of one source or of several.

    With one source, earlier runs of others are left out, which only a surrogate over several could tell from it.

    Raises:
        DataError: too few trials, or they do not say what the objective is.
    """
    completed = rounded(assignment.fitted(completed))
    coordinates, natural = UnitSpace.of(assignment.domains), assignment.domains.natural()
    metrics = tuple(assignment.metrics)
    if len(assignment.offers) == 1:
        runs = completed.at_source(assignment.source)
        estimates = None
        if not assignment.measured_only and any(lacking(runs, natural)):
            at_natural = Points(runs.domains, natural.array(runs.domains)[None, None], (assignment.source,))
            estimates = estimated(GaussianProcess().fit(runs, metrics), at_natural)
        objective = fit_objective(assignment.objective_kind, assignment.metrics, runs, natural, estimates=estimates)
        fitted = GaussianProcess().fit(runs, objective.metrics)
        processes = tuple(of_gaussian_process(fitted, metric) for metric in range(len(objective.metrics)))
        return Beliefs(coordinates, objective, processes, ((0,),) * len(processes))
    sizes = {offer.source.size: offer.parameters for offer in assignment.offers}
    together = MultiSourceGP(sizes).fit(completed, metrics)
    if not isinstance(together, FittedSources):
        raise DataError("Trials of one source only have finished.", "Wait for one of each.")
    runs = measured_at(completed, assignment.source, sizes)
    known = runs.points().sources[:1]
    at_natural = Points(assignment.space.domains, natural.array(assignment.space.domains)[None, None], known)
    estimates = estimated(together, at_natural)
    # Few runs where the answer is wanted cannot show that a metric carries no signal: none is left out.
    kind = assignment.objective_kind
    objective = fit_objective(kind if kind == "z_scored" else "mean", assignment.metrics, runs, natural, estimates=estimates)
    objective = replace(objective, kind=kind)
    sources = [offer.source for offer in assignment.offers]
    pairs = [of_sources(together, metrics.index(metric), sources) for metric in objective.metrics]
    return Beliefs(coordinates, objective, tuple(process for process, _ in pairs), tuple(numbers for _, numbers in pairs))


def rounded(swarm: Swarm) -> Swarm:
    """Without the last bits, which depend on the order in which domains are listed and which a fit would amplify."""
    each = pl.element().list.eval(pl.element().round(DECIMALS))
    runs = swarm.runs.with_columns(pl.col("requested", "realized").list.eval(each))
    return Swarm.of_tables(swarm.domains, runs, swarm.losses.with_columns(pl.col("loss_nats", "bits_per_byte").round(DECIMALS)))
