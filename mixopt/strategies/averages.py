"""How averages of components serve a search that learns: many at once before it does, and a few near the optimum ever again.

They cost little and have no noise, so there is nothing to weigh one by one: a first block spreads over what they reach, small ones follow where the answer
may lie, each when the one before has been evaluated, and a further one after every few trained trials. Their share of the budget is bounded, and so is their number, since a fit costs the cube of it.
What they are wrong in, the surrogate learns from the trained trials; nearly all of the budget goes there. The main trade-off: a block does not know what the
others say, so an evaluator that misleads is asked as much as a good one; it costs that share and no more.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from mixopt.acquisition.ascent import candidates
from mixopt.acquisition.beliefs import Beliefs
from mixopt.components.config import EVALUATORS
from mixopt.mixture import FloatArray
from mixopt.strategies.base import Assignment, Offer
from mixopt.strategies.ledger import SPENT_WITHIN
from mixopt.strategies.proxies import apart, endless_draws

LABEL = "bayes averages"

FIRST_SHARE, NEAR_SHARE, LATER_SHARE = 0.1, 0.05, 0.05
"""Of the budget, for all averages of a kind: spread out, then near the optimum before trained trials are chosen, and while they are."""
MOST_FIRST, MOST_NEAR, MOST_LATER = 80, 64, 48
"""And no more than so many of a kind."""
TRAINED_PER_BLOCK = 4
"""Trained trials that were chosen in view of results, between two blocks."""
BLOCK = 8
"""Averages near the optimum that are asked for at once: what they say moves the optimum."""
BLOCK_DRAWS = 128
WIDE, DRAWN = 0xA7E, 0xA7F
"""Kinds of draws."""


def averages_of(assignment: Assignment) -> list[int]:
    """Numbers of the offers that average components."""
    return [number for number, offer in enumerate(assignment.offers) if offer.source.evaluator in EVALUATORS]


@dataclass(frozen=True)
class Block:
    """What is to be run at one offer of averages.

    Attributes:
        budget: of the whole search, in the unit of the offers' costs.
    """

    assignment: Assignment
    offer: Offer
    budget: float

    @property
    def spread(self) -> int:
        """How many averages there are to be before anything is learned; those of a gate count."""
        return self._affordable(FIRST_SHARE, MOST_FIRST)

    def near(self, learned: int) -> int:
        """How many there are to be, those before included, once so many trained trials were chosen in view of results."""
        later = min(self._affordable(LATER_SHARE, MOST_LATER), BLOCK * (learned // TRAINED_PER_BLOCK))
        return self.spread + self._affordable(NEAR_SHARE, MOST_NEAR) + later

    def _affordable(self, share: float, most: int) -> int:
        cost = self.offer.cost
        return most if cost <= 0 else math.floor(min(share * self.budget / cost + SPENT_WITHIN, most))

    def first(self) -> Iterator[FloatArray]:
        """Mixtures (domains,), endless: the natural one, then draws over the space and around the natural one in turn, as far as averages reach."""
        one = self.assignment
        space = one.space if self.offer.reach is None else self.offer.reach
        natural = one.domains.natural().array(space.domains)
        around = endless_draws(space, natural, [one.seed, DRAWN])
        wide = apart(space.sample(1, np.random.default_rng([one.seed, WIDE, number]))[0] for number in _counted())
        reached = [natural] if self.offer.reach is None or space.contains(natural[None])[0] else []
        return chain(reached, (row for pair in zip(wide, around, strict=False) for row in pair))

    def later(self, beliefs: Beliefs, good_MD: FloatArray, rng: np.random.Generator) -> Iterator[FloatArray]:
        """Mixtures (domains,) that draws from the beliefs take for the answer, the most often drawn first, as far as averages reach.

        Args:
            good_MD: mixtures to look around, in the order of the beliefs' domains.
        """
        coordinates, names = beliefs.coordinates, self.assignment.space.domains
        spots_MU = candidates(coordinates, coordinates.points(good_MD), rng)
        spots_MD = coordinates.weights(spots_MU)
        drawn_MS = beliefs.objective.value(beliefs.draw(spots_MD, BLOCK_DRAWS, rng))
        best, counts = np.unique(drawn_MS.argmin(axis=0), return_counts=True)
        order = [coordinates.names.index(name) for name in names]
        found_MD = spots_MD[best[np.argsort(-counts, kind="stable")]][:, order]
        return chain(apart(found_MD if self.offer.reach is None else self.offer.reach.project(found_MD)), self.first())


def _counted() -> Iterator[int]:
    number = 0
    while True:
        yield number
        number += 1
