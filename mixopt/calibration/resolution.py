"""The smallest difference that so many seeds can tell from noise."""

from __future__ import annotations

import math

LEVEL = 0.05
POWER = 0.8


def resolvable_difference(noise_std: float, seeds: int) -> float:
    """Difference between two mixtures that a paired comparison of `seeds` runs each finds with a chance of 80%.

    Two-sided at 5%, with noise that is independent between runs: (t(1 - .05/2) + t(.8)) * noise_std * sqrt(2 / seeds), t with seeds - 1 degrees of
    freedom; the usual approximation of the power of a t test (Cohen, 1988, section 2). Infinite with one seed: its noise cannot be seen.

    Args:
        noise_std: of one run, in any unit; the result is in the same.
    """
    from scipy.special import stdtrit

    if seeds < 2:
        return math.inf
    needed = float(stdtrit(seeds - 1, 1 - LEVEL / 2)) + float(stdtrit(seeds - 1, POWER))
    return needed * noise_std * math.sqrt(2 / seeds)
