"""TiKMiX-D (arXiv 2508.17677): at each stage the mixture whose influence on the targets is large and even, with no target served worse
than now.

    min over w of   evenness * std(Phat) - gain * sum_i Phat_i - entropy * H(w)     subject to  S w >= S w_now,
    Phat_i = (S w)_i / max_j S_ij

with S_ij the influence of domain j on target i. Sign: S here is <grad loss_i, H^-1 g_j>, above zero where domain j lowers loss i; the
paper writes its negative and calls it the influence on the loss. The Hessian's approximation is not stated in the paper and is the
trainer's choice. Evidence: the paper's text; single seed, no code. All three weights 1.

The problem is convex: a norm of a linear map, a linear term, minus entropy, over a polytope. SLSQP, the paper's solver, finds its
optimum; the test certifies the answer by the gap of Frank and Wolfe. The current mixture is always feasible, and is kept where the solver
ends worse.

Deviations. A target that no domain serves (max_j S_ij <= 0) makes Phat explode: it is left out of the objective and kept in the
constraint. A domain without a column keeps its weight. Floors, caps, groups and the largest step hold too: whatever is cut, is cut on the
way from the current mixture to the optimum, on which every target gains. Targets count by their weights.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.limits import Polyhedron
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray

KEPT_WITHIN = 1e-7
"""By how much, in the largest influence on a target, the solver may miss a constraint."""
SMOOTH = 1e-12
"""Under the root of the standard deviation, whose slope is else undefined where all targets gain alike."""
LEAST_LOGARITHM = 1e-12


class TikmixDOptions(Every):
    every: float = Field(0.2, gt=0, le=1, description="Share of the run's tokens in a stage.")
    evenness: float = Field(1.0, ge=0, description="Weight of the spread over targets.")
    gain: float = Field(1.0, ge=0, description="Weight of the sum over targets.")
    entropy: float = Field(1.0, ge=0, description="Weight of the mixture's entropy.")


class TikmixD(Adaptive):
    name = "tikmix_d"
    options_type = TikmixDOptions
    given: TikmixDOptions
    needs = frozenset({Signal.INFLUENCE})

    def update(self, signals: Signals) -> Wanted:
        influence = signals[Signal.INFLUENCE]
        known = np.asarray(~np.isnan(influence).all(axis=1))
        if not known.any():
            return Wanted()
        options = self.given
        terms = Terms(influence[known], self.setup.targets_weighted[known] * len(known), options.evenness, options.gain, options.entropy)
        now = self.nearest(self.weights)
        return Wanted(self._within(now, solve(terms, now, self.allowed)))

    @property
    def allowed(self) -> Polyhedron:
        return self.setup.limits.polytope(self._used, self._seen)

    def _within(self, now: FloatArray, wanted: FloatArray) -> FloatArray:
        """As far from the current weights toward the wanted ones as a space's distance allows."""
        limits, near, far = self.setup.limits, 0.0, 1.0
        if limits.contains(wanted):
            return wanted
        for _ in range(50):
            middle = (near + far) / 2
            near, far = (middle, far) if limits.contains(now + middle * (wanted - now)) else (near, middle)
        return now + near * (wanted - now)


class Terms:
    """The objective. `influence_TD` may hold NaN columns, of domains that were not measured."""

    def __init__(self, influence_TD: FloatArray, weights_T: FloatArray, evenness: float, gain: float, entropy: float) -> None:
        self.measured = ~np.isnan(influence_TD).any(axis=0)
        self.influence = np.where(self.measured, influence_TD, 0.0)
        self.scale = np.maximum(np.abs(self.influence).max(axis=1), 1e-300)
        largest = self.influence.max(axis=1)
        served = largest > 0
        self.relative = self.influence[served] / largest[served, None]
        self.weights = weights_T[served]
        self.evenness, self.gain, self.entropy = evenness, gain, entropy

    def value(self, mixture: FloatArray) -> float:
        shares = self.relative @ mixture
        safe = np.maximum(mixture, LEAST_LOGARITHM)
        spread = np.sqrt(shares.var() + SMOOTH) if len(shares) else 0.0
        return float(self.evenness * spread - self.gain * self.weights @ shares + self.entropy * mixture @ np.log(safe))

    def slope(self, mixture: FloatArray) -> FloatArray:
        """Gradient (domains,)."""
        shares = self.relative @ mixture
        towards = -self.gain * self.weights
        if len(shares):
            towards = towards + self.evenness * (shares - shares.mean()) / (len(shares) * np.sqrt(shares.var() + SMOOTH))
        return np.asarray(towards @ self.relative + self.entropy * (np.log(np.maximum(mixture, LEAST_LOGARITHM)) + 1))

    def losses(self, now: FloatArray, mixture: FloatArray) -> FloatArray:
        """How much each target is served better than now, in its largest influence, shape (targets,)."""
        return np.asarray(self.influence @ (mixture - now) / self.scale)


def solve(terms: Terms, now: FloatArray, allowed: Polyhedron) -> FloatArray:
    """The best mixture (domains,) that serves no target worse than `now`, which must be allowed."""
    from scipy.optimize import minimize

    expand = allowed.expand
    # Each unit's coordinate of the current mixture: units' shares sum to 1, so it is the sum of its domains.
    start = (expand > 0).astype(np.float64).T @ now
    start = np.clip(start, allowed.lower, allowed.upper)
    fixed = (expand[~terms.measured] > 0).any(axis=0)
    lower, upper = np.where(fixed, start, allowed.lower), np.where(fixed, start, allowed.upper)
    served = terms.influence @ expand / terms.scale[:, None]
    bounded = [(allowed.rows, allowed.least), (-allowed.rows, -allowed.largest)]
    matrix = np.concatenate([served, *(rows for rows, _ in bounded)])
    least = np.concatenate([served @ start, *(ends for _, ends in bounded)])
    finite = np.isfinite(least)
    answer = minimize(
        lambda x: terms.value(expand @ x),
        start,
        jac=lambda x: expand.T @ terms.slope(expand @ x),
        bounds=list(zip(lower.tolist(), upper.tolist(), strict=True)),
        constraints=[
            {"type": "eq", "fun": lambda x: x.sum() - 1, "jac": lambda x: np.ones(len(x))},
            {"type": "ineq", "fun": lambda x: (matrix @ x - least)[finite], "jac": lambda x: matrix[finite]},
        ],
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    found = expand @ np.clip(answer.x, lower, upper)
    feasible = np.isfinite(found).all() and abs(found.sum() - 1) < KEPT_WITHIN and terms.losses(now, found).min() > -KEPT_WITHIN
    return found if feasible and terms.value(found) <= terms.value(now) else now
