"""D-optimal design for the log-linear law, for budgets too small to draw at random: fewer than 3 (m + 1) trials for m domains.

A law L = c + exp(t . p) is known best from the runs whose Fisher information about (c, t) has the largest determinant. The information depends on t, which
nobody knows yet: so it is averaged, as log determinant, over draws of t from the law's prior (pseudo-Bayesian D-optimality, Chaloner and Larntz 1989), scaled so
that the excess loss of the natural mixture is 1 and noise a known share of it. Points are chosen among feasible mixtures: first one by one, then exchanged
for better ones as long as any exchange helps (Fedorov 1972). Baselines are trained in any case and count. Such designs love corners, which laws miss by
far more than noise; where few trials must do, those beyond the caps are not worth one (docs/log.md).

Only the first 3 (m + 1) trials are so: the best points for one law say little of where that law is wrong, and with 48 trials of five domains mixtures proposed
from a design of extremes alone lost eight times what the common design's did. Beyond follows the common design.

Which points are best depends on how many there are. So where a budget was raised, or trials were abandoned, what is missing is chosen anew around all that
was asked for. The main trade-off: extremes are run, and little between them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from pydantic import Field

from mixopt.mixture import FloatArray
from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.standing import SAME_WITHIN, Standing, mixtures_of
from mixopt.strategies.stopping import is_enough
from mixopt.swarm import Swarm
from mixopt.trial import Trial

LABEL = "doe"
PRIOR_DRAWS = 8
NOISE_SHARE = 0.1
"""Noise of a run as a share of the natural mixture's excess loss: .02 of .2 bits per byte, about what nano proxies show (methods/noise-measured.md)."""
FLOOR_STD = 1.0
"""Of c: as uncertain as the excess is large."""
TRIALS_PER_PARAMETER = 3
"""Below so many for each of m + 1 parameters the law wants a design (Olmix, arXiv 2602.12237); beyond, any spread of points serves it."""
FEWEST_CANDIDATES, CANDIDATES_PER_TRIAL = 300, 4
PASSES = 4


class DoeOptions(Options):
    spread: float = Field(
        2.0,
        gt=0,
        le=10,
        description="Prior standard deviation of t: how differently domains act; 2: a domain alone changes the excess loss e^2-fold.",
    )


@dataclass(frozen=True)
class DoeStrategy:
    """Asks for the baselines, for a D-optimal design around them, and for the common one; what is asked does not depend on results."""

    assignment: Assignment
    options: DoeOptions = field(default_factory=DoeOptions)
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)
    _designs: dict[bytes, FloatArray] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The next points of the design, the most telling first; empty when the budget is met."""
        one = self.assignment
        standing = Standing.of(one, completed, pending, abandoned)
        if one.stop_early and is_enough(one, standing.order(), completed, self._judged):
            return []
        asked = standing.fresh(one.start(standing.abandoned_ids), count)
        missing = max(self._size() - len(standing.numbers()), 0)  # a budget may have been lowered
        asked += standing.numbered(self._mixtures(standing, missing), min(count, len(asked) + missing), LABEL, asked)
        return asked + standing.fresh(one.planned(one.trials, standing.abandoned_ids), count, asked)

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence. Raises as `Assignment.recommend`."""
        return self.assignment.recommend(completed)

    def _size(self) -> int:
        """Trials of the design beside the baselines."""
        one = self.assignment
        return max(min(one.trials, TRIALS_PER_PARAMETER * (len(one.space.units.names) + 1)) - len(one.start()), 0)

    def _mixtures(self, standing: Standing, missing: int) -> FloatArray:
        """Mixtures (n, domains): the whole design, or its `missing` ones where other trials are there than it has."""
        one = self.assignment
        common = mixtures_of(one.planned(one.trials), one.space.domains)
        start = common[: len(one.start())]
        plan = self._design(start, self._size())
        known = np.concatenate([common, plan])
        asked = standing.mixtures()
        if not standing.abandoned and all(_is_among(weights, known) for weights in asked):
            return plan
        return self._design(np.array(sorted(weights.tolist() for weights in (*start, *asked))), missing)

    def _design(self, had: FloatArray, count: int) -> FloatArray:
        """At most `count` mixtures beside `had` (n, domains), the most telling first, shape (n, domains)."""
        one, key = self.assignment, had.tobytes() + bytes([count % 256, count // 256])
        if key not in self._designs:
            units = one.space.units
            order = np.argsort(units.names)  # everything below is in the order of names, so that listing domains otherwise changes nothing
            candidates = self._candidates(count)
            given, offered = units.collapse(had)[:, order], units.collapse(candidates)[:, order]
            natural = units.collapsed(one.domains.natural()).array(units.names)[order]
            worths = np.random.default_rng([one.seed, 0xD0E]).normal(0.0, self.options.spread, (PRIOR_DRAWS, len(order)))
            information = Information.prior(worths - (worths @ natural)[:, None], self.options.spread).with_points(given)
            self._designs[key] = candidates[d_optimal(information, offered, count)]
        return self._designs[key]

    def _candidates(self, count: int) -> FloatArray:
        """Feasible mixtures (n, domains) that may be trained."""
        one = self.assignment
        candidates = max(FEWEST_CANDIDATES, CANDIDATES_PER_TRIAL * count)
        return one.space.sample(candidates, np.random.default_rng([one.seed, 0xCAD]))


@dataclass(frozen=True)
class Information:
    """Fisher information about (c, t), averaged over prior draws of t.

    Attributes:
        worths: the draws, shape (draws, units).
        matrices: shape (draws, 1 + units, 1 + units).
    """

    worths: FloatArray
    matrices: FloatArray

    @classmethod
    def prior(cls, worths: FloatArray, spread: float) -> Information:
        precision = np.diag([FLOOR_STD**-2, *[spread**-2] * worths.shape[1]])
        return cls(worths, np.broadcast_to(precision, (len(worths), *precision.shape)).copy())

    def slopes(self, weights: FloatArray) -> FloatArray:
        """Derivatives of the loss by (c, t) in units of the noise, shape (draws, n, 1 + units)."""
        excess = np.exp(np.clip(self.worths @ weights.T, -30.0, 30.0))[:, :, None]
        return np.concatenate([np.ones_like(excess), excess * weights[None]], axis=2) / NOISE_SHARE

    def with_points(self, weights: FloatArray, sign: float = 1.0) -> Information:
        """With runs at `weights` (n, units), or without them."""
        slopes = self.slopes(weights)
        return Information(self.worths, self.matrices + sign * np.einsum("dni,dnj->dij", slopes, slopes))

    def value(self) -> float:
        """The log determinant, averaged."""
        return float(np.linalg.slogdet(self.matrices)[1].mean())

    def gains(self, slopes: FloatArray) -> FloatArray:
        """What one more run at each point, of slopes (draws, n, 1 + units), would add to `value`, shape (n,)."""
        solved = np.linalg.solve(self.matrices, slopes.transpose(0, 2, 1))
        return np.asarray(np.log1p(np.einsum("dni,din->dn", slopes, solved)).mean(axis=0))


def d_optimal(information: Information, candidates: FloatArray, count: int) -> list[int]:
    """Rows of `candidates` (n, units), each once, that add most to `information` together: chosen greedily, then exchanged one by one.

    Returned in the order in which each adds most to those before it.
    """
    count = min(count, len(candidates))
    slopes = information.slopes(candidates)
    chosen = _greedy(information, candidates, slopes, count, list(range(len(candidates))))
    for _ in range(PASSES):
        changed = False
        for place, row in enumerate(chosen):
            rest = information.with_points(candidates[[other for other in chosen if other != row]])
            gains = np.round(rest.gains(slopes), 9)
            gains[[other for other in chosen if other != row]] = -np.inf
            best = int(np.argmax(gains))
            if gains[best] > gains[row]:
                chosen[place], changed = best, True
        if not changed:
            break
    return _greedy(information, candidates, slopes, count, sorted(chosen))


def _greedy(information: Information, candidates: FloatArray, slopes: FloatArray, count: int, rows: list[int]) -> list[int]:
    """`count` of `rows`, each the one that adds most to those before it."""
    chosen: list[int] = []
    for _ in range(count):
        gains = np.round(information.gains(slopes[:, rows]), 9)
        gains[[place for place, row in enumerate(rows) if row in chosen]] = -np.inf
        chosen.append(rows[int(np.argmax(gains))])
        information = information.with_points(candidates[chosen[-1:]])
    return chosen


def _is_among(weights: FloatArray, others: FloatArray) -> bool:
    return bool((np.abs(others - weights).sum(axis=1) < SAME_WITHIN).any())
