"""How strongly to pull an answer toward the natural mixture, by cross-validation of answers, not of predictions.

An optimum of a fitted function profits from the function's errors (the winner's curse), the more so the fewer the runs; a pull trades some
predicted gain against that. How much is a question about answers, so answers are what is validated: half of the mixtures propose one for every
strength, and the other half, by a surrogate that has not seen the first, says what each is worth. Of the strengths within one standard error of
the best the largest is taken. The surrogate is a Gaussian process throughout, whatever the answer's own: the most accurate at these numbers of
runs, and a second opinion needs no stack. A limit on the number of domains is left aside: it would add the luck of a search over supports.

The main trade-off: halves have half of the runs, so the choice errs toward more pull than all runs together would need. Floors are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixopt.answer.local_search import descend
from mixopt.mixture import FloatArray
from mixopt.objective import Objective
from mixopt.simplex import kl_divergence
from mixopt.space import MixtureSpace
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.base import Fitted
from mixopt.surrogates.observations import mixture_groups
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

STRENGTHS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LARGE, STRENGTHS_OF_LARGE = 5000, (0.0, 0.05, 0.2, 1.0)
"""Domains times metrics beyond which every answer costs seconds: one split and fewer strengths then."""
DEFAULT_PULL = 0.05
"""Olmix's (arXiv 2602.12237), which there weighs raw losses; here it is a share of the objective's spread over the swarm."""
SPLITS = 4
FEWEST_MIXTURES = 16
"""Below, halves are too small to fit."""
MOST_RUNS_PER_HALF = 128
CANDIDATES = 1000


@dataclass(frozen=True)
class PullChoice:
    """A strength and how it was found.

    Attributes:
        pull: in standard deviations of the objective over the swarm.
        how: in a sentence.
        strengths, scores, errors: of each strength tried, the mean objective that the other half predicts for its answers, in the objective's unit, and
            the standard error of its difference to the best; empty where nothing was tried.
    """

    pull: float
    how: str
    strengths: tuple[float, ...] = ()
    scores: tuple[float, ...] = ()
    errors: tuple[float, ...] = ()

    def to_json(self) -> Mapping[str, Any]:
        return asdict(self)


def choose_pull(swarm: Swarm, space: MixtureSpace, objective: Objective, natural: FloatArray, spread: float, seed: int) -> PullChoice:
    """The strength whose answers are worth most to runs that did not propose them.

    Args:
        swarm: runs of one source.
        natural: the natural mixture (domains,), in the order of the space.
        spread: what a strength of 1 is, in objective units.
    """
    groups = mixture_groups(swarm)
    mixtures = int(groups.max()) + 1
    if mixtures < FEWEST_MIXTURES:
        return PullChoice(DEFAULT_PULL, f"{DEFAULT_PULL:g} by default: {mixtures} mixtures are too few to choose it by cross-validation")
    rng = np.random.default_rng([seed, 0x9011])
    rows = []
    large = len(space.domains) * len(objective.metrics) > LARGE
    strengths = STRENGTHS_OF_LARGE if large else STRENGTHS
    for _ in range(1 if large else SPLITS):
        halves = [_Opinion.of(swarm, half, objective, space.domains, natural) for half in _halves(groups, rng)]
        for proposing, judging in (halves, halves[::-1]):
            rows.append(judging.values(_answers(proposing, space, spread, rng, strengths)))
    values = np.array(rows)
    scores = values.mean(axis=0)
    best = int(np.argmin(scores))
    errors = (values - values[:, [best]]).std(axis=0, ddof=1) / np.sqrt(len(values))
    chosen = int(np.flatnonzero(scores - scores[best] <= errors)[-1])
    runs = min(len(swarm) // 2, MOST_RUNS_PER_HALF)
    how = f"{strengths[chosen]:g}, the largest within one standard error of the best in {len(values)} halves of about {runs} runs, each judged by the other"
    return PullChoice(strengths[chosen], how, strengths, tuple(scores.tolist()), tuple(errors.tolist()))


def _halves(groups: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two halves of the mixtures, each with its repeats and with at most MOST_RUNS_PER_HALF runs."""
    order = rng.permutation(int(groups.max()) + 1)
    sides = [np.flatnonzero(np.isin(groups, part)) for part in np.array_split(order, 2)]
    first, second = (np.sort(rng.permutation(side)[:MOST_RUNS_PER_HALF]) for side in sides)
    return first, second


@dataclass(frozen=True)
class _Opinion:
    """The objective as some of the runs see it, relative to what they predict for the natural mixture."""

    fitted: Fitted
    objective: Objective
    domains: tuple[str, ...]
    natural: FloatArray
    natural_losses: FloatArray
    source: Source

    @classmethod
    def of(cls, swarm: Swarm, rows: NDArray[np.int64], objective: Objective, domains: tuple[str, ...], natural: FloatArray) -> _Opinion:
        half = swarm.select([swarm.trial_ids[row] for row in rows])
        fitted, source = get_surrogate("gaussian_process").fit(half, objective.metrics), half.points().sources[0]
        return cls(fitted, objective, domains, natural, fitted.mean(Points(domains, natural[None, None], (source,)))[0], source)

    def values(self, weights: FloatArray) -> FloatArray:
        """Predicted objective of mixtures (n, domains) minus the natural one's, shape (n,)."""
        losses = self.fitted.mean(Points(self.domains, weights[:, None, :], (self.source,) * len(weights)))
        return self.objective.difference(losses, self.natural_losses)


def _answers(opinion: _Opinion, space: MixtureSpace, spread: float, rng: np.random.Generator, strengths: tuple[float, ...]) -> FloatArray:
    """The best mixture for each strength, shape (strengths, domains); each starts from the best candidate or from the stronger pull's answer."""
    natural, space = opinion.natural, space.convex
    candidates = np.concatenate([space.project(natural[None]), space.sample(CANDIDATES, rng)])
    predicted, divergence = opinion.values(candidates), kl_divergence(candidates, natural)
    answers: list[FloatArray] = []
    for strength in sorted(strengths, reverse=True):

        def pulled(weights: FloatArray, weight: float = strength * spread) -> FloatArray:
            return opinion.values(weights) + weight * kl_divergence(weights, natural)

        tries = np.stack([*answers[-1:], candidates[int(np.argmin(predicted + strength * spread * divergence))]])
        start = tries[int(np.argmin(pulled(tries)))]
        found = np.stack([start, descend(pulled, space, start)[0]])
        answers.append(found[int(np.argmin(pulled(found)))])
    return np.array(answers[::-1])
