"""The part of a search that runs at its cheapest source: averages of components where there are some, else the trials of its only source.

Averages have no noise, so beside them a few trained trials are asked for first, the search's usual beginning: their repeats say what the noise, and with
it the objective's scale, are. The main trade-off: how many averages there are follows from what the budget leaves beside components and trained trials, so a
trained trial more is dozens of averages less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import rankdata

from mixopt.acquisition.beliefs import rounded
from mixopt.errors import ConfigError
from mixopt.mixture import FloatArray
from mixopt.simplex import sample_dirichlet
from mixopt.space import MixtureSpace
from mixopt.strategies.base import START, Assignment, Offer
from mixopt.strategies.design import LEAST_DISTANCE, MOST_SKIPPED
from mixopt.strategies.ledger import SPENT_WITHIN, Ledger
from mixopt.strategies.standing import Standing
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.boosted_trees import TreesForFewRuns
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source, Trial

# DeMix as released (arXiv 2602.00747): 15 strengths, the natural mixture tempered, small weights dropped.
STRENGTHS: tuple[float, ...] = tuple(np.geomspace(0.5, 5.0, 15).tolist())
TEMPERATURE = 0.7
ZERO_BELOW = 2e-4
BLOCK = 256
"""Mixtures drawn at once."""
DECIMALS = 12
"""Of weights that trees see: the last bits, which hang on the order of domains, would move a tree's thresholds."""


@dataclass(frozen=True)
class Proxies:
    """Where a search's proxies stand; build it with `of`.

    Attributes:
        offer: where they run; `space`: mixtures that they may have.
        apart: whether that is another source than the one where the answer is wanted.
        standing: of the proxies, as if theirs were the only source; its assignment's trials are how many of them there will be.
        start: trained trials that are still to be asked for.
    """

    offer: Offer
    space: MixtureSpace
    apart: bool
    standing: Standing
    start: tuple[Trial, ...]

    @classmethod
    def of(cls, assignment: Assignment, most: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> Proxies:
        """
        Args:
            most: of averages; trials of the only source are as many as the budget affords.
        """
        offer, last = assignment.offers[0], assignment.offers[-1]
        here = ([trial for trial in trials if trial.source == offer.source] for trials in (pending, abandoned))
        space = assignment.space if offer.reach is None else offer.reach
        one = replace(assignment, offers=(offer,), space=space, before=0.0)
        ledger = Ledger.of(assignment, completed, pending)
        if offer is last:
            one = replace(one, trials=math.floor(ledger.budget / offer.cost + SPENT_WITHIN))
            return cls(offer, space, False, Standing.of(one, completed, *here), ())
        gone = {trial.trial_id for trial in abandoned}
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        start: list[Trial] = []
        for trial in assignment.planned(START, gone):
            if trial.trial_id not in known and ledger.affords(trial.source):
                start.append(trial)
                ledger = ledger.after(trial.source)
        left = ledger.budget - sum(ledger.spent[1:])
        affordable = most if offer.cost <= 0 else math.floor(left / offer.cost + SPENT_WITHIN)
        one = replace(one, trials=max(min(most, affordable), 0))
        return cls(offer, space, True, Standing.of(one, completed, *here), tuple(start))

    def baselines(self) -> list[FloatArray]:
        """The natural mixture, each (domains,), where averages reach it: differences to it are what a proposal tells."""
        natural = self.standing.assignment.domains.natural().array(self.space.domains)
        return [natural] if self.offer.reach is None or self.space.contains(natural[None])[0] else []


def draws(space: MixtureSpace, natural: FloatArray, rng: np.random.Generator, count: int) -> FloatArray:
    """Mixtures around the tempered natural one (domains,), as DeMix draws them, where the space allows, shape (count, domains).

    In place of its cap, four times the natural weight, the nearest feasible mixture is taken. Drawn in the order of names.
    """
    order = np.argsort(space.units.names)
    prior_U = space.units.collapse(natural)[order]
    weights = np.zeros((count, len(order)))
    weights[:, order] = sample_dirichlet(rng, prior_U, count, STRENGTHS, TEMPERATURE, min(ZERO_BELOW, 0.1 / len(order)))
    return np.asarray(space.project(space.units.expand(weights)))


def endless_draws(space: MixtureSpace, natural: FloatArray, seed: Sequence[int]) -> Iterator[FloatArray]:
    """The same, endless, each (domains,) and apart from those before it."""
    return apart(row for block in _counted() for row in draws(space, natural, np.random.default_rng([*seed, block]), BLOCK))


def _counted() -> Iterator[int]:
    block = 0
    while True:
        yield block
        block += 1


def apart(mixtures: Iterable[FloatArray]) -> Iterator[FloatArray]:
    """Those that differ from all before by a share of the tokens, unless so many in a row do not."""
    kept: list[FloatArray] = []
    skipped = 0
    for weights in mixtures:
        near = bool(kept) and bool((0.5 * np.abs(np.stack(kept) - weights).sum(axis=1) < LEAST_DISTANCE).any())
        if near and skipped < MOST_SKIPPED:
            skipped += 1
            continue
        skipped = 0
        kept.append(weights)
        yield weights


def fit_trees(swarm: Swarm, metrics: Sequence[str]) -> Fitted:
    """Trees of each metric on runs of one source. Raises DataError as the surrogate does."""
    return TreesForFewRuns().fit(rounded(swarm), metrics)


def predicted(fitted: Fitted, space: MixtureSpace, weights: FloatArray, source: Source) -> FloatArray:
    """Losses of mixtures (n, domains), shape (n, metrics)."""
    return fitted.mean(Points(space.domains, np.round(weights, DECIMALS)[:, None, :], (source,) * len(weights)))


def macro_rank(losses: FloatArray, weights: Sequence[float], worst: bool) -> FloatArray:
    """Weighted mean over metrics of each row's rank among the rows of `losses` (n, metrics), as a share; or its worst rank. Lower is better, shape (n,).

    DeMix's objective: a rank does not care for the scale of a metric, and says nothing of how much better a mixture is.
    """
    ranks = np.stack([rankdata(column) for column in losses.T], axis=1) / len(losses)
    return np.asarray(ranks.max(axis=1) if worst else ranks @ (np.asarray(weights) / np.sum(weights)))


def refuse_stopping(assignment: Assignment, strategy: str) -> None:
    """Raises ConfigError where the search may stop early and has averages: what more of them would bring is not known."""
    if assignment.stop_early and len(assignment.offers) > 1:
        raise ConfigError(
            f"`search.stop_early` is set, and the strategy '{strategy}' asks for averages of components.",
            "Leave it out: the strategy ends with its rounds.",
        )
