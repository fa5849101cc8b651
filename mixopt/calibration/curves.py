"""What more tokens bring: a power law per metric through the losses that were measured while proxies trained.

loss(D) = floor + amplitude * (D / reference)^-exponent, least squares; for each exponent floor and amplitude are a non-negative linear fit, so only
one number is searched (variable projection, Golub and Pereyra 1973). Only points before the learning rate decays are fitted: the decay lowers
the loss by an amount of its own, and the end is scored on a larger subset. The main trade-off: with points over one or two decades of tokens the floor is barely
determined; the law says what the next doubling brings, not where training would end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mixopt.mixture import FloatArray

EXPONENTS = np.geomspace(0.02, 2.0, 80)
FEWEST_POINTS = 3


@dataclass(frozen=True)
class PowerLaw:
    """A fitted law, bits per byte.

    Attributes:
        reference_tokens: where `amplitude` is above the floor.
        rms: root mean square of what the fit leaves; 0 where points and parameters are as many.
        points: distinct token counts that it rests on.
    """

    floor: float
    amplitude: float
    exponent: float
    reference_tokens: float
    rms: float
    points: int

    def loss(self, tokens: float) -> float:
        return self.floor + self.amplitude * math.exp(-self.exponent * math.log(tokens / self.reference_tokens))

    def gain(self, tokens: float, times: float) -> float:
        """How much lower the loss is with `times` as many tokens."""
        return self.loss(tokens) - self.loss(times * tokens)


def fit_power_law(tokens: FloatArray, losses: FloatArray) -> PowerLaw | None:
    """The law through points (n,); None with fewer than three different token counts, or where losses do not fall.

    Args:
        losses: bits per byte, at `tokens`; several at one count weigh as they are.
    """
    from scipy.optimize import minimize_scalar

    distinct = np.unique(tokens)
    if len(distinct) < FEWEST_POINTS:
        return None
    reference = float(np.exp(np.log(tokens).mean()))
    scaled = tokens / reference

    def misfit(log_exponent: float) -> float:
        return _linear(scaled, losses, float(np.exp(log_exponent)))[2]

    grid = np.log(EXPONENTS)
    best = int(np.argmin([misfit(value) for value in grid]))
    between = (grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(misfit, bounds=between, method="bounded", options={"xatol": 1e-4})
    exponent = float(np.exp(found.x if found.fun <= misfit(grid[best]) else grid[best]))
    floor, amplitude, squares = _linear(scaled, losses, exponent)
    if amplitude <= 0:
        return None
    return PowerLaw(floor, amplitude, exponent, reference, float(np.sqrt(squares / len(tokens))), len(distinct))


def _linear(scaled: FloatArray, losses: FloatArray, exponent: float) -> tuple[float, float, float]:
    """Floor and amplitude, neither below 0, that fit best with this exponent, and the sum of squares left."""
    from scipy.optimize import nnls

    columns = np.stack([np.ones_like(scaled), scaled**-exponent], axis=1)
    (floor, amplitude), rest = nnls(columns, losses)
    return float(floor), float(amplitude), float(rest) ** 2
