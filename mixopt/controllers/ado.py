"""ADO, adaptive data optimization (arXiv 2410.11820): a scaling law per domain, fitted to the live run's own losses, and tokens where
they pay most.

    L_j(n) = E_j + A_j n^-alpha_j,     rho_j ~ prior_j * sqrt(h_j) * alpha_j (L_j - E_j) / n,     w = .9 * mean of rho over time + .1 * rho

alpha (L - E) / n is minus the slope of the law, h the smoothed weights so far, and n all tokens of the run, as in the authors' code
(`use_same_step_size`). An allocation, not an exponential update; no proxy and no targets: it learns fast what can be learned fast,
whatever it is for. Evidence: the authors' code, tables from secondary text (a tie with DoReMi).

Deviations. The published settings fit at step 1,000 what begins to be recorded at step 1,000, from one point: here nothing moves before
12 points behind the warm-up. The law is fitted by profiling: for each exponent the two other parameters are a weighted least-squares
problem of two unknowns, solved exactly with both at least 0; exponents are searched on a grid that zooms; residuals are relative, and
reweighted to Huber's loss. It replaces 512 starts of L-BFGS, always ends in the same place and recovers a noiseless law to the last
digits. A domain that was not drawn has no point there, where theirs repeats the loss before.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from mixopt.controllers.base import Adaptive, Every, Wanted
from mixopt.controllers.limits import smoothed
from mixopt.controllers.signals import Signal, Signals
from mixopt.mixture import FloatArray

LEAST_EXPONENT, LARGEST_EXPONENT = 0.01, 0.8
"""Beyond these the authors' fit penalizes."""
SCORED_EXPONENT = 0.05
HUBER = 1e-3
"""Relative residuals beyond this count by their size, as the authors' do in log loss."""
GRID, ZOOMS, REWEIGHTED, NEAR = 21, 7, 10, 0.1
MOST_POINTS = 256
FEWEST_POINTS = 12
LEAST_WEIGHT = 0.01


class AdoOptions(Every):
    every: float = Field(0.01, ge=0, le=1, description="Share of the run's tokens between two decisions; 0: every step.")
    warmup: float = Field(0.02, ge=0, lt=1, description="Share of the run whose losses no law describes, and that are not fitted.")
    inertia: float = Field(0.9, ge=0, lt=1, description="Weight of the mean over time; the rest is what the laws say now.")


class Ado(Adaptive):
    name = "ado"
    options_type = AdoOptions
    given: AdoOptions
    needs = frozenset({Signal.TRAIN_LOSS})

    def begin(self) -> dict[str, FloatArray]:
        count = len(self.setup.names)
        return {
            "tokens": np.zeros(0),
            "losses": np.zeros((0, count)),
            "last": np.zeros(1),
            "drawn": np.full(count, np.nan),
            "mean": np.zeros(count),
            "count": np.zeros(1),
        }

    def update(self, signals: Signals) -> Wanted:
        memory = self.memory
        middle = (memory["last"][0] + signals.tokens) / 2  # losses are means over the tokens since the last call
        memory["last"] = np.array([float(signals.tokens)])
        memory["drawn"] = smoothed(memory["drawn"], self.trained_on, 0.9)
        losses = signals[Signal.TRAIN_LOSS]
        if middle > max(self.given.warmup * self.setup.tokens, 0) and not np.isnan(losses).all():
            memory["tokens"] = np.append(memory["tokens"], middle)
            memory["losses"] = np.concatenate([memory["losses"], losses[None]])
        if len(memory["tokens"]) > MOST_POINTS:
            memory["tokens"], memory["losses"] = memory["tokens"][::2], memory["losses"][::2]
        slopes = np.array([self._slope(column) for column in memory["losses"].T])
        if np.isnan(slopes).all():
            return Wanted()
        payoff = allocation(self.setup.start, memory["drawn"], slopes)
        memory["mean"], memory["count"] = memory["mean"] + (payoff - memory["mean"]) / (memory["count"] + 1), memory["count"] + 1
        return Wanted(self.given.inertia * memory["mean"] + (1 - self.given.inertia) * payoff)

    def _slope(self, losses: FloatArray) -> float:
        """alpha (L - E) at the tokens so far of a domain's law; NaN where it has too few points."""
        known = ~np.isnan(losses)
        if known.sum() < FEWEST_POINTS:
            return float("nan")
        tokens = self.memory["tokens"]
        _, scale, exponent = fit_power_law(tokens[known], losses[known])
        return float(max(exponent, SCORED_EXPONENT) * scale * max(self.memory["last"][0], 1.0) ** -exponent)


def allocation(prior: FloatArray, drawn: FloatArray, slopes: FloatArray) -> FloatArray:
    """rho (domains,): prior * sqrt(drawn) * slope, at least .01 or half an equal share each; without a law, the prior's share."""
    known = ~np.isnan(slopes)
    share, mass = prior.copy(), prior[known].sum()
    payoff = prior[known] * np.sqrt(drawn[known]) * slopes[known]
    if payoff.sum() > 0:
        raised = np.maximum(mass * payoff / payoff.sum(), min(LEAST_WEIGHT, 0.5 / len(prior)))
        share[known] = mass * raised / raised.sum()
    return share


def fit_power_law(tokens: FloatArray, losses: FloatArray) -> tuple[float, float, float]:
    """E, A and alpha of losses = E + A tokens^-alpha, both arrays of shape (points,), all positive; E and A are at least 0."""
    unit = float(tokens.max())  # powers of numbers near 1 keep their digits
    weights = 1 / losses**2
    found = (float(losses.mean()), 0.0, LEAST_EXPONENT)
    bracket, zooms = (LEAST_EXPONENT, LARGEST_EXPONENT), ZOOMS
    for _ in range(REWEIGHTED):
        found = _best_exponent(tokens / unit, losses, weights, bracket, zooms)
        residual = np.abs(losses - found[0] - found[1] * (tokens / unit) ** -found[2]) / losses
        if residual.max() <= HUBER:
            break
        weights = np.minimum(1.0, HUBER / np.maximum(residual, 1e-30)) / losses**2
        # New weights move the exponent a little; fewer digits are known of it than of a law without noise.
        bracket, zooms = (max(found[2] - NEAR, LEAST_EXPONENT), min(found[2] + NEAR, LARGEST_EXPONENT)), 3
    return found[0], found[1] * unit ** found[2], found[2]


def _best_exponent(
    tokens: FloatArray, losses: FloatArray, weights: FloatArray, bracket: tuple[float, float], zooms: int
) -> tuple[float, float, float]:
    low, high = bracket
    for _ in range(zooms):
        exponents = np.linspace(low, high, GRID)
        floors, scales, errors = _profiled(tokens[:, None] ** -exponents, losses, weights)
        best = int(errors.argmin())
        low, high = exponents[max(best - 1, 0)], exponents[min(best + 1, GRID - 1)]
    return float(floors[best]), float(scales[best]), float(exponents[best])


def _profiled(powers_PG: FloatArray, losses: FloatArray, weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Least-squares floor and scale, both at least 0, and the weighted error, for each column of powers; each of shape (grid,)."""
    share = weights / weights.sum()
    mean_power, mean_loss = share @ powers_PG, float(share @ losses)
    centred = powers_PG - mean_power
    scale = np.maximum((share * (losses - mean_loss)) @ centred / np.maximum(share @ centred**2, 1e-300), 0.0)
    floor = mean_loss - scale * mean_power
    alone = np.maximum((share * losses) @ powers_PG / (share @ powers_PG**2), 0.0)  # the best scale where the floor would be negative
    scale, floor = np.where(floor < 0, alone, scale), np.maximum(floor, 0.0)
    return floor, scale, share @ (losses[:, None] - floor - scale * powers_PG) ** 2
