"""The gate: whether an evaluator that trains nothing may be believed, judged on mixtures that were really trained.

What decides is a score: how well the evaluator ranks the mixtures, by the objective and by its metrics, half and half, out of what a perfect
evaluator could show against runs so noisy. How far components have moved decides how much is asked: merging is a first-order picture, and
where it is stretched, a good score on a dozen mixtures is less believed. Last, the best mixtures must not be ranked as good evaluators
hardly ever rank them. The verdict carries its odds: how often such a gate rejects a good evaluator and accepts a bad one.

The trade-off: thresholds come from simulation, not from the history of evaluators, of which there is little; and an evaluator that is
trusted ranks mixtures: its losses are still not those of trained proxies.

Legend: M metrics, N draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.merging.odds import Correlations, measured, simulated, top_count
from mixopt.merging.paired import Paired
from mixopt.merging.verdict import BAD, GOOD, Cause, Ranked, Thresholds, Verdict
from mixopt.mixture import FloatArray

DRAWS = 2000
"""Of bootstrap and simulations: shares are then known to within a hundredth."""
INTERVAL = (5.0, 95.0)


def judge(
    paired: Paired,
    evaluator: str,
    displacement: Mapping[str, float] | None = None,
    agreement: float | None = None,
    thresholds: Thresholds | None = None,
    seed: int = 0,
    draws: int = DRAWS,
) -> Verdict:
    """Judges an evaluator. The same input gives the same verdict.

    Args:
        displacement: component -> total displacement from the base; None: nothing was merged, as in an ensemble.
        agreement: share of choices of experts that components, or their merges, have in common with the base; mean over layers and components.
        seed: of bootstrap and simulations.
    """
    asked, moved = thresholds or Thresholds(), dict(displacement or {})
    rng = np.random.default_rng([0x6A7E, seed])
    rule = _Rule.of(paired, asked, max(moved.values(), default=0.0), rng, draws)
    table = _Table.of(paired, rule, rng, draws)
    noisy = rule.ceiling < asked.ceiling
    trusted = bool(rule.accepted(table.now)[0]) and not noisy
    return Verdict(
        evaluator=evaluator,
        trusted=trusted,
        score=float(rule.scores(table.now)[0]),
        low=table.low,
        high=table.high,
        needed=rule.needed,
        objective=table.objective,
        mean=table.mean,
        metrics=table.metrics,
        top=table.top,
        top_needed=rule.top_needed,
        displacement=moved,
        agreement=agreement,
        good_rejected=float(1 - rule.accepted(simulated(paired, GOOD, rng, draws)).mean()),
        bad_accepted=float(rule.accepted(simulated(paired, BAD, rng, draws)).mean()),
        cause="none" if trusted else "noise" if noisy else _cause(max(moved.values(), default=0.0), agreement, asked),
        thresholds=asked,
    )


def _cause(moved: float, agreement: float | None, asked: Thresholds) -> Cause:
    if moved > asked.displacement:
        return "displacement"
    return "routers" if agreement is not None and agreement < asked.agreement else "ranking"


@dataclass(frozen=True)
class _Rule:
    """When correlations are enough.

    Attributes:
        ceiling, ceilings_M, top_ceiling: what a perfect evaluator shows on average.
        shares_M: weights of the metrics in their mean, 0 for those that noise hides; they sum to 1, or to 0 where it hides all.
    """

    ceiling: float
    ceilings_M: FloatArray
    top_ceiling: float
    shares_M: FloatArray
    needed: float
    top_needed: float | None

    @classmethod
    def of(cls, paired: Paired, asked: Thresholds, moved: float, rng: np.random.Generator, draws: int) -> _Rule:
        perfect, good = simulated(paired, 1.0, rng, draws), simulated(paired, GOOD, rng, draws)
        ceilings_M = perfect.metrics_NM.mean(axis=0)
        weights_M = np.where(ceilings_M >= asked.ceiling, np.array(paired.objective.weights), 0.0)
        return cls(
            ceiling=float(perfect.objective_N.mean()),
            ceilings_M=ceilings_M,
            top_ceiling=float(perfect.top_N.mean()),
            shares_M=weights_M / weights_M.sum() if weights_M.sum() > 0 else weights_M,
            needed=asked.score if moved <= asked.displacement else asked.displaced_score,
            top_needed=float(np.quantile(good.top_N, asked.top_rejected)) if top_count(len(paired.mixtures)) else None,
        )

    @property
    def mean_ceiling(self) -> float:
        return float(self.ceilings_M @ self.shares_M)

    def scores(self, found: Correlations) -> FloatArray:
        """Shape (N,); at most 1, as a lucky sample above its ceiling makes up for nothing."""
        objective_N = found.objective_N / max(self.ceiling, 1e-9)
        mean_N = (found.metrics_NM @ self.shares_M) / self.mean_ceiling if self.mean_ceiling > 0 else objective_N
        return np.asarray(0.5 * np.clip(objective_N, -1, 1) + 0.5 * np.clip(mean_N, -1, 1))

    def accepted(self, found: Correlations) -> NDArray[np.bool_]:
        """Shape (N,)."""
        enough_N = self.scores(found) >= self.needed
        return np.asarray(enough_N if self.top_needed is None else enough_N & (found.top_N >= self.top_needed))


@dataclass(frozen=True)
class _Table:
    """The correlations at hand, with what resampled mixtures make of them; `now` is of one draw."""

    now: Correlations
    low: float
    high: float
    objective: Ranked
    mean: Ranked
    metrics: tuple[Ranked, ...]
    top: Ranked | None

    @classmethod
    def of(cls, paired: Paired, rule: _Rule, rng: np.random.Generator, draws: int) -> _Table:
        mixtures, count = len(paired.mixtures), top_count(len(paired.mixtures))
        now = measured(paired, np.arange(mixtures)[None])
        resampled = measured(paired, rng.integers(mixtures, size=(draws, mixtures)))

        def ranked(of: str, one: FloatArray, many: FloatArray, ceiling: float, size: int = mixtures, counted: bool = True) -> Ranked:
            low, high = (float(end) for end in np.percentile(many, INTERVAL))
            return Ranked(of, size, float(one[0]), low, high, ceiling, counted)

        top = None
        if count:
            title = "top quarter" if count == mixtures // 4 else "top half"
            top = ranked(title, now.top_N, resampled.top_N, rule.top_ceiling, count)
        low, high = (float(end) for end in np.percentile(rule.scores(resampled), INTERVAL))
        return cls(
            now=now,
            low=low,
            high=high,
            objective=ranked("objective", now.objective_N, resampled.objective_N, rule.ceiling),
            mean=ranked("mean of metrics", now.metrics_NM @ rule.shares_M, resampled.metrics_NM @ rule.shares_M, rule.mean_ceiling),
            metrics=tuple(
                ranked(
                    name, now.metrics_NM[:, m], resampled.metrics_NM[:, m], float(rule.ceilings_M[m]), counted=bool(rule.shares_M[m] > 0)
                )
                for m, name in enumerate(paired.objective.metrics)
            ),
            top=top,
        )
