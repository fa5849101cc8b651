"""MergeMix (arXiv 2601.17858): some dozens of merged proxies, the optimum that trees predict from them, and one more merge that looks whether it is one.

The seeds are mixtures that people would begin with, a coarse lattice and draws around the natural mixture; nothing about them depends on results. Boosted trees,
one per metric, are fitted to all of them, the mean over metrics of normalised losses is minimized, and the optimum is merged and measured, too. The answer is
the best mixture that was measured, the verified optimum or a seed, by the search's objective. Where there are no averages of components it trains its
proxies, one of the budget's last trials being the verification. The main trade-off: what is proposed was measured, and is no further than one step of learning
from a lucky seed; averages have no luck, trained proxies do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, zip_longest
from typing import ClassVar

import numpy as np
from pydantic import Field

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.optimum import minimize
from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.grid import finest_lattice, spread_out
from mixopt.strategies.proxies import Proxies, endless_draws, fit_trees, predicted, refuse_stopping
from mixopt.strategies.standing import Standing
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial

LABEL, OPTIMUM_LABEL = "mergemix", "mergemix optimum"
DRAWS = 0x3E6
"""Kind of draws."""
LATTICE_SHARE = 0.5
"""Of the seeds, at most."""
LEAST_SPREAD = 1e-12


class MergemixOptions(Options):
    seeds: int = Field(
        40, ge=4, le=10_000, description="Merged proxies before the optimum is predicted; trained ones: as many as the budget affords."
    )
    candidates: int = Field(20_000, ge=1000, le=1_000_000, description="Mixtures among which the predicted optimum is looked for.")


@dataclass(frozen=True)
class MergemixStrategy:
    """Asks for its seeds, and when all of them have finished for the optimum that they let one expect."""

    assignment: Assignment
    options: MergemixOptions = field(default_factory=MergemixOptions)
    learns: ClassVar[bool] = True
    several_sources: ClassVar[bool] = True
    takes_averages: ClassVar[bool] = True
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Raises ConfigError where the search may stop early and has averages."""
        refuse_stopping(self.assignment, "mergemix")

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """Trained trials that measure noise, then seeds, then, once all seeds have finished, the predicted optimum."""
        proxies = self._proxies(completed, pending, abandoned)
        first = list(proxies.start[: max(count, 0)])
        standing, count = proxies.standing, count - len(first)
        if standing.left == 0:
            return first
        if self.assignment.stop_early and is_enough(self.assignment, standing.order(), standing.completed, self._judged):
            return first
        seeds = standing.assignment.trials - 1
        if standing.alive < seeds:
            wanted = min(count, seeds - standing.alive)
            start = [] if proxies.apart else standing.fresh(standing.assignment.start(standing.abandoned_ids), wanted)
            return [*first, *start, *standing.numbered(self._seeds(proxies, seeds), wanted, LABEL, start)]
        if standing.pending or count < 1:
            return first
        return first + standing.numbered(self._optima(proxies, standing), 1, OPTIMUM_LABEL)

    def propose(self, completed: Swarm) -> Proposal:
        """The best measured feasible mixture, in terms of the proxies. Raises as `Assignment.recommend_measured`."""
        proxies = self._proxies(completed, [], [])
        proposal = self.assignment.recommend_measured(completed, proxies.offer)
        told = {"proxies": {"source": proxies.offer.source.key, "count": len(proxies.standing.completed)}}
        return replace(proposal, evidence={**proposal.evidence, **told})

    def _proxies(self, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> Proxies:
        return Proxies.of(self.assignment, self.options.seeds + 1, completed, pending, abandoned)

    def _seeds(self, proxies: Proxies, count: int) -> Iterator[FloatArray]:
        """Endless, each (domains,): baselines as far as the caps allow, then a lattice and draws in turn."""
        one, space = self.assignment, proxies.space
        natural = one.domains.natural().array(space.domains)
        usual = [mixture.array(space.domains) for mixture in (one.domains.natural(), one.domains.uniform(), one.domains.unimax())]
        priors = space.project(np.stack(usual))
        points = finest_lattice(space, int(LATTICE_SHARE * count))
        lattice = np.zeros((0, len(space.domains))) if points is None else spread_out(points, priors, space.domains)
        drawn = endless_draws(space, natural, [one.seed, DRAWS])
        turns = (row for pair in zip_longest(lattice, (next(drawn) for _ in range(len(lattice)))) for row in pair)
        return chain(proxies.baselines() if proxies.apart else (), priors, turns, drawn)

    def _optima(self, proxies: Proxies, standing: Standing) -> Iterator[FloatArray]:
        """The predicted optimum, each (domains,), and behind it what may be run where it was abandoned."""
        one, space = self.assignment, proxies.space
        further = self._seeds(proxies, standing.assignment.trials)
        try:
            fitted = fit_trees(standing.completed, tuple(one.metrics))
        except DataError:  # too much was abandoned for a prediction: a seed is as good as another
            return further
        known = standing.completed.values(tuple(one.metrics))
        shares = np.array(list(one.metrics.values())) / sum(one.metrics.values())

        def value(weights: FloatArray) -> FloatArray:
            scaled = (predicted(fitted, space, weights, proxies.offer.source) - known.mean(axis=0)) / np.maximum(
                known.std(axis=0), LEAST_SPREAD
            )
            return np.asarray(scaled.max(axis=1) if one.objective_kind == "worst_case" else scaled @ shares)

        order = [standing.completed.domains.index(name) for name in space.domains]
        starts = standing.completed.points(realized=False).averages()[:, order]
        best = starts[np.lexsort((standing.completed.trial_ids, known.mean(axis=1)))][:1]
        return chain([minimize(value, space, best, one.seed, smooth=False, candidates=self.options.candidates).weights], further)
