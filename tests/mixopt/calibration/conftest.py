"""A world whose losses are a known function of rate, mixture, seed and tokens, so that a calibration can be held against the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from mixopt.calibration.analysis import Scoring
from mixopt.calibration.design import CalibrationPlan, Extent, plan_calibration
from mixopt.domains import Domain, DomainSet
from mixopt.factory import TrialFactory
from mixopt.trial import Measurement, Outcome, Source, Trial

NAMES = ("web", "code", "math", "law")
TOKENS = 100_000
OWN_RATE = 3e-3
METRICS = {"key-a": "target/a", "key-b": "target/b"}
# What each target wants, and what a proxy at a wrong rate ranks by instead.
WANTED = {"key-a": (0.1, 0.6, 0.2, 0.1), "key-b": (0.3, 0.1, 0.5, 0.1)}
MISLED = {"key-a": (0.6, 0.1, 0.0, 0.3), "key-b": (0.2, 0.7, 0.0, 0.1)}
FLOORS = {"key-a": 1.0, "key-b": 1.4}


@dataclass
class World:
    """Losses: floor + ranking part + what the rate costs + amplitude * tokens^-exponent + noise.

    Attributes:
        ranking_rate: at which a proxy ranks as the target does; far from it, it ranks by `MISLED`. None: every rate ranks truly.
        loss_rate: at which losses are lowest.
        noise: bits per byte; `corner_noise` at mixtures that are mostly code, math or law.
        exponent, amplitude: of the curve over tokens.
    """

    ranking_rate: float | None = 3e-4
    loss_rate: float = OWN_RATE
    noise: float = 0.002
    corner_noise: float | None = None
    exponent: float = 0.3
    amplitude: float = 20.0
    domains: DomainSet = field(
        default_factory=lambda: DomainSet(
            tuple(Domain(n, f"content-{n}", 10**6, t) for n, t in zip(NAMES, (8e9, 3e9, 1.2e9, 0.8e9), strict=True)), 40e9
        )
    )

    def factory(self, tokens: int = TOKENS, size: str = "nano", rate: float = OWN_RATE) -> TrialFactory:
        recipe = {"window": 64, "tokens_per_step": 128, "vocab_size": 512, "learning_rate": rate, "schedule": "wsd", "decay_fraction": 0.2}
        return TrialFactory(self.domains, Source("trained", size, tokens), recipe, "tokenizer", "1")

    def plan(self, extent: Extent | None = None) -> CalibrationPlan:
        extent = extent or Extent((0.01, 0.1, 1.0, 3.0), draws=7, seeds=3, longer=4, larger=True)
        return plan_calibration(self.factory(), extent, 0, self.factory(tokens=150_000, size="micro", rate=OWN_RATE / 2))

    def loss(self, trial: Trial, key: str, tokens: int) -> float:
        """Bits per byte of `trial` after so many tokens; runs of other sources than the plan's rank truly."""
        mixture = trial.schedule.average().array(NAMES)
        true, false = (float(((mixture - np.array(point[key])) ** 2).sum()) for point in (WANTED, MISLED))
        rate = float(trial.recipe["learning_rate"])
        off = 0.0 if self.ranking_rate is None or trial.source != self.factory().source else abs(math.log10(rate / self.ranking_rate))
        share = math.exp(-(off**2) * 4)
        noise = self.corner_noise if self.corner_noise is not None and mixture[1:].max() > 0.55 else self.noise
        seeded = np.random.default_rng([int(trial.trial_id[:8], 16), len(key) + ord(key[-1])]).normal(0, noise)
        cost = 0.1 * math.log10(rate / self.loss_rate) ** 2
        curve = self.amplitude * tokens**-self.exponent
        return FLOORS[key] + 0.3 * (share * true + (1 - share) * false) + cost + curve + float(seeded)

    def outcome(self, trial: Trial) -> Outcome:
        shares = {d.content_hash: tuple(row[i] for row in trial.schedule.array().tolist()) for i, d in enumerate(trial.domains)}
        total = trial.source.tokens
        measured = tuple(
            Measurement(key, tokens, 0.7 * self.loss(trial, key, tokens), self.loss(trial, key, tokens))
            for key in METRICS
            for tokens in (total // 8, total // 4, total // 2, total)
        )
        return Outcome(trial.trial_id, shares, measured, total, 1e9, total / 10_000)

    def finished(self, trials: Sequence[Trial]) -> dict[str, Outcome]:
        return {trial.trial_id: self.outcome(trial) for trial in trials}

    def scoring(self, plan: CalibrationPlan, weights: Mapping[str, float] | None = None) -> Scoring:
        sources = {trial.source.key for trial in plan.trials}
        return Scoring("noise_scaled", weights or {"target/a": 1.0, "target/b": 1.0}, dict.fromkeys(sources, METRICS))


@pytest.fixture
def world() -> type[World]:
    return World
