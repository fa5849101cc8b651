"""The benchmark of epoch matching: a known optimum is found, regret is what it says, and arms may see what they are said to."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from mixopt.mixture import FloatArray

Load = Callable[[str], ModuleType]
GRID = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)


def known_losses(weights: FloatArray, best: float) -> FloatArray:
    """Logarithmic laws, shape (n, 2), whose mean is least at `best`: its slope there is -best / w + (1 - best) / (1 - w)."""
    return np.stack([2.0 - best * np.log(weights), 2.5 - (1 - best) * np.log(1 - weights)], axis=1)


@pytest.mark.parametrize("best", [0.06, 0.15, 0.4])
def test_a_known_optimum_is_found_through_noise(best: float, benchmark_module: Load) -> None:
    optimum = benchmark_module("repetition.optimum")
    weights = np.tile(GRID, 3)
    noise = np.random.default_rng(1).normal(0, 0.003, (len(weights), 2))
    curve = optimum.fit_curve(weights, known_losses(weights, best) + noise, (0.5, 0.5))
    assert curve.best == pytest.approx(best, rel=0.25)
    low, high = curve.best_interval
    assert low <= best <= high
    assert high / low < 3
    for weight in (0.02, 0.3, 0.8):
        truth = known_losses(np.array([weight, best]), best).mean(axis=1)
        regret, least, most = curve.regret(weight)
        assert regret == pytest.approx(truth[0] - truth[1], abs=0.01)
        assert least - 1e-9 <= regret <= most + 1e-9
