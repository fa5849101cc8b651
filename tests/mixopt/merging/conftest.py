"""Mixtures measured from both sides, by evaluators of known quality."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixopt.merging.paired import Paired, pair
from mixopt.objective import Objective, ObjectiveKind

COMMON = 0.5
"""Share of the variance that metrics have in common, in signal and noise."""


def an_objective(metrics: int = 8, noise: float = 1e-6, kind: ObjectiveKind = "mean") -> Objective:
    names = tuple(f"target/{m}" for m in range(metrics))
    return Objective(kind, names, (1 / metrics,) * metrics, (noise,) * metrics, (0.0,) * metrics, 3, {})


def measured(true_spearman: float, mixtures: int = 12, noise: float = 0.0, metrics: int = 8, seed: int = 0) -> Paired:
    """Losses with a spread of 1 per metric; the evaluator ranks every noise-free metric with `true_spearman`."""
    rng = np.random.default_rng([seed, mixtures])

    def drawn() -> np.ndarray:
        common, own = rng.standard_normal((mixtures, 1)), rng.standard_normal((mixtures, metrics))
        return np.asarray(np.sqrt(COMMON) * common + np.sqrt(1 - COMMON) * own)

    linear = 2 * np.sin(np.pi * true_spearman / 6)
    truth, other = drawn(), drawn()
    proxy = linear * truth + np.sqrt(max(0.0, 1 - linear**2)) * other
    trained = truth + noise * drawn()
    objective_noise = noise * np.sqrt(COMMON + (1 - COMMON) / metrics)
    names = [f"mixture {g}" for g in range(mixtures)]
    runs = list(zip(names, trained, strict=True))
    return pair(an_objective(metrics, max(noise, 1e-6)), runs, dict(zip(names, proxy, strict=True)), float(objective_noise))


@pytest.fixture
def world() -> Callable[..., Paired]:
    return measured
