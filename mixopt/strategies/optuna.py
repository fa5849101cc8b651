"""Any sampler of Optuna over mixtures: TPE, a Gaussian process, CMA-ES, NSGA-II, Sobol' points, random numbers.

Optuna knows neither sums nor caps, so mixtures are given to it as points of a cube (`coordinates`), and a suggestion that is not feasible is projected: what
is trained, and what the sampler is told later, is the projected mixture. Nothing is kept between asks: each builds a study in memory from
the trials there are, with a seed made of them, and asks it. Pending trials are running ones to it, which TPE and the Gaussian process count as
poor ones (constant liar); the others draw anew. CMA-ES is begun anew each time from the best of all results (warm start, arXiv 2012.06932), since its own
state is no function of the results; generations of NSGA-II follow the order of asking; Sobol' points are counted off.

What is minimized is the objective as measured, with the noise of single runs. The proposal comes from the search's surrogate as everywhere, and a surrogate that
has seen one corner only expects wonders of the others. So a third of the trials or more is the common design. The main trade-off: a sampler that does not know what a mixture is needs
more trials than one that does.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as counted
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from mixopt.coordinates import Coordinates, dimensions, from_cube, to_cube
from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.recommendation import Study
from mixopt.strategies.base import START, Assignment, Options
from mixopt.strategies.known import LEAST_FIRST
from mixopt.strategies.standing import Standing, mixtures_of
from mixopt.strategies.stopping import is_enough
from mixopt.surrogates.observations import MINIMUM_TRIALS
from mixopt.swarm import Swarm
from mixopt.trial import Trial, content_digest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial

LABEL = "optuna"
SAMPLERS = ("tpe", "gp", "cmaes", "nsga2", "qmc", "random")
FEWEST_TO_WARM_START = 10
"""Results that CMA-ES can be begun from: it takes their best tenth."""


class OptunaOptions(Options):
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "random"] = Field("tpe", description=f"Optuna's sampler: {', '.join(SAMPLERS)}.")
    coordinates: Coordinates = Field(
        "stick_breaking",
        description="How a mixture is told to it: stick_breaking (one number fewer than domains) or exponential (one for each).",
    )
    first: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Share of the trials that go to the common design before the sampler is asked, the baselines in any case; default: a third, "
        "or 17 trials where that is more, but at most two thirds.",
    )
    population: int | None = Field(
        None, ge=4, description="Of a generation of nsga2; left out: a fifth of the trials, at least 4, at most 50."
    )


@dataclass(frozen=True)
class OptunaStrategy:
    """Asks for the first of the common design, then for what the sampler suggests in view of all results there are."""

    assignment: Assignment
    options: OptunaOptions = field(default_factory=OptunaOptions)
    learns: ClassVar[bool] = True
    asks_ahead: ClassVar[bool] = True
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """New mixtures; empty when the budget is met."""
        standing = Standing.of(self.assignment, completed, pending, abandoned)
        if self.assignment.stop_early and is_enough(self.assignment, standing.order(), completed, self._judged):
            return []
        first = max(self._first(), min(START, self.assignment.trials))
        start = standing.fresh(self.assignment.planned(first, standing.abandoned_ids), count)
        return start + standing.numbered(self._suggestions(standing, start), count, LABEL, start)

    def _first(self) -> int:
        """Trials of the common design."""
        trials, share = self.assignment.trials, self.options.first
        if share is not None:
            return math.ceil(share * trials)
        return max(math.ceil(trials / 3), min(LEAST_FIRST, math.ceil(2 * trials / 3)))

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence. Raises as `Assignment.recommend`."""
        return self.assignment.recommend(completed)

    def _suggestions(self, standing: Standing, start: Sequence[Trial]) -> Iterator[FloatArray]:
        """Endless, each feasible, of shape (domains,); each in view of those before it."""
        space = self.assignment.space
        told = Told(standing, self.options)
        under_way = list(mixtures_of((*standing.pending, *start), space.domains))
        asked = sorted([*standing.completed.trial_ids, *(trial.trial_id for trial in (*standing.pending, *standing.abandoned, *start))])
        seed = int(content_digest([self.assignment.seed, asked])[:8], 16)
        for number in counted():
            weights = told.suggest(under_way, [seed, number], standing.asked + len(start) + number)
            under_way.append(weights)
            yield weights


class Told:
    """What a sampler is told: the results of a search as Optuna's trials, over units in the order of their names."""

    def __init__(self, standing: Standing, options: OptunaOptions) -> None:
        from optuna.distributions import FloatDistribution
        from optuna.logging import get_verbosity, set_verbosity

        if get_verbosity() < logging.WARNING:  # it announces every study
            set_verbosity(logging.WARNING)

        self.assignment, self.options = standing.assignment, options
        space = self.assignment.space
        self.columns = np.argsort(space.units.names)
        self.population = options.population or min(max(self.assignment.trials // 5, 4), 50)
        count = dimensions(options.coordinates, len(self.columns))
        self.distributions: dict[str, BaseDistribution] = {f"x{place}": FloatDistribution(0.0, 1.0) for place in range(count)}
        results = self._results(standing)
        self.finished = [
            self._trial("COMPLETE", weights, value, place // self.population) for place, (weights, value) in enumerate(results)
        ]

    def suggest(self, under_way: Sequence[FloatArray], entropy: Sequence[int], number: int) -> FloatArray:
        """A feasible mixture (domains,) from the sampler; `number` counts what was asked for, and `entropy` is its seed."""
        import optuna

        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(sampler=self._sampler(seed))
            study.add_trials([*self.finished, *(self._trial("RUNNING", weights) for weights in under_way)])
            # Sobol' points are counted by the study, which is new: count them off.
            for _ in range(number if self.options.sampler == "qmc" else 0):
                study.ask(self.distributions)
            params = study.ask(self.distributions).params
        space = self.assignment.space
        units = np.zeros(len(self.columns))
        units[self.columns] = from_cube(self.options.coordinates, np.array([[params[name] for name in self.distributions]]))[0]
        weights = space.units.expand(units)[None]
        return np.asarray(weights[0] if space.contains(weights, 0.0)[0] else space.project(weights)[0])

    def _sampler(self, seed: int) -> BaseSampler:
        from optuna import samplers

        if self.options.sampler == "tpe":
            return samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
        if self.options.sampler == "gp":
            return samplers.GPSampler(deterministic_objective=False, seed=seed)
        if self.options.sampler == "cmaes":
            warm = self.finished if len(self.finished) >= FEWEST_TO_WARM_START else None
            return samplers.CmaEsSampler(warn_independent_sampling=False, source_trials=warm, seed=seed)
        if self.options.sampler == "nsga2":
            return samplers.NSGAIISampler(population_size=self.population, seed=seed)
        if self.options.sampler == "qmc":
            return samplers.QMCSampler(
                scramble=True, seed=self.assignment.seed, warn_independent_sampling=False, warn_asynchronous_seeding=False
            )
        return samplers.RandomSampler(seed=seed)

    def _results(self, standing: Standing) -> list[tuple[FloatArray, float]]:
        """Realized mixture (domains,) and objective of each run where the answer is wanted: earlier searches', then this one's in the order of asking.

        For want of baselines and repeats in the surrogate's scale; none as long as that cannot be fitted.
        """
        one = self.assignment
        swarm = one.fitted(standing.completed).at_source(one.source)
        if len(swarm) < MINIMUM_TRIALS:
            return []
        try:
            objective = one.objective(standing.completed)
        except DataError:
            try:
                objective = Study.of(swarm, one.space, one.domains, one.surrogate, replace(one.settings, measured_only=False)).objective
            except DataError:
                return []
        values = objective.difference(swarm.values(objective.metrics), np.array(objective.natural_losses))
        weights = swarm.points().averages()[:, [swarm.domains.index(name) for name in one.space.domains]]
        rows = {trial_id: row for row, trial_id in enumerate(swarm.trial_ids)}
        own = [key for key in standing.order() if key in rows]
        earlier = sorted(set(rows) - set(own))
        return [(weights[rows[key]], float(values[rows[key]])) for key in (*earlier, *own)]

    def _trial(self, state: str, weights: FloatArray, value: float | None = None, generation: int | None = None) -> FrozenTrial:
        from optuna.trial import TrialState, create_trial

        units = self.assignment.space.units.collapse(weights)[self.columns]
        numbers = np.clip(to_cube(self.options.coordinates, units[None] / units.sum()), 0.0, 1.0)[0]
        return create_trial(
            state=TrialState[state],
            value=value,
            params=dict(zip(self.distributions, numbers.tolist(), strict=True)),
            distributions=self.distributions,
            system_attrs=None if generation is None else {"NSGAIISampler:generation": generation},
        )
