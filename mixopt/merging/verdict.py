"""What the gate says of an evaluator: numbers with their doubt, and the sentences that people read.

The main trade-off: sentences are made of the numbers when they are read, so that a verdict kept for long is told in today's words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

GOOD, BAD = 0.9, 0.3
"""True rank correlations of evaluators that a gate should let pass, and should not."""
POOR_ODDS = 0.2
"""Chance of either error from which more mixtures are asked for."""

Cause = Literal["none", "displacement", "routers", "ranking", "noise"]


@dataclass(frozen=True)
class Thresholds:
    """What is asked.

    Attributes:
        score: least score; by simulation (`tests/mixopt/merging/test_gate.py`).
        displaced_score: the same where a component is further from its base than `displacement`.
        displacement: |theta - theta_0| / (|theta| + |theta_0|) up to which merging is known to work: DeMix measured about a tenth (arXiv 2602.00747).
        top_rejected: share of good evaluators that may rank the best mixtures worse than is asked.
        ceiling: least rank correlation that a perfect evaluator would show; below it the trained runs are too noisy to judge anything by. An assumption.
        agreement: of routers' choices, below which routers are named as the cause. An assumption: HARC (arXiv 2606.03391) names the failure and
            no number.
    """

    score: float = 0.65
    displaced_score: float = 0.75
    displacement: float = 0.1
    top_rejected: float = 0.02
    ceiling: float = 0.5
    agreement: float = 0.7


@dataclass(frozen=True)
class Ranked:
    """How the evaluator ranks mixtures by one quantity.

    Attributes:
        of: "objective", a metric, "mean of metrics", "top quarter" or "top half" (by the objective, of the mixtures best by the trained ones).
        mixtures: how many; spearman: with the trained ones; low, high: central 90% over resampled mixtures.
        ceiling: mean of what a perfect evaluator would show.
        counted: whether the verdict looks at it; a metric whose ceiling is too low is not.
    """

    of: str
    mixtures: int
    spearman: float
    low: float
    high: float
    ceiling: float
    counted: bool = True

    @property
    def sentence(self) -> str:
        """Its numbers."""
        return f"{self.spearman:.2f} ({self.low:.2f} to {self.high:.2f}; a perfect evaluator {self.ceiling:.2f})"


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one evaluator.

    Attributes:
        evaluator: "merged" or "ensemble".
        score: half the objective's rank correlation, half the mean of the metrics', each out of its ceiling; low, high: central 90% over
            resampled mixtures.
        needed: least score asked for.
        objective, mean, metrics, top: the correlations behind it; top is None where there are too few mixtures.
        top_needed: least correlation asked for among the best; None as top.
        displacement: component -> how far it is from its base, of 1; empty where nothing was merged.
        agreement: of the routers' choices; None: not measured, or no routers.
        good_rejected, bad_accepted: odds of such a gate: of evaluators of true correlation .9 and .3.
        cause: what stands against it, for `next_attempt`; "none" where it is trusted.
    """

    evaluator: str
    trusted: bool
    score: float
    low: float
    high: float
    needed: float
    objective: Ranked
    mean: Ranked
    metrics: tuple[Ranked, ...]
    top: Ranked | None
    top_needed: float | None
    displacement: Mapping[str, float]
    agreement: float | None
    good_rejected: float
    bad_accepted: float
    cause: Cause
    thresholds: Thresholds = field(default_factory=Thresholds)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "displacement": dict(self.displacement)}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Verdict:
        """Inverts `to_json`, also after a trip through JSON text."""
        made = {
            "objective": Ranked(**body["objective"]),
            "mean": Ranked(**body["mean"]),
            "metrics": tuple(Ranked(**row) for row in body["metrics"]),
            "top": None if body["top"] is None else Ranked(**body["top"]),
            "thresholds": Thresholds(**body["thresholds"]),
        }
        return cls(**{**body, **made})

    @property
    def furthest(self) -> tuple[str, float] | None:
        """The component that is furthest from its base."""
        return max(self.displacement.items(), key=lambda item: item[1]) if self.displacement else None

    @property
    def headline(self) -> str:
        """The verdict, in one sentence."""
        proxies = f"{self.evaluator.capitalize()} proxies"
        if self.trusted:
            return f"{proxies} are trusted: they rank {self.objective.mixtures} trained mixtures with a score of {self.score:.2f}, where {self.needed:.2f} is asked."
        if self.cause == "noise":
            return (
                f"{proxies} are not trusted: seed noise hides the ranking of the {self.objective.mixtures} trained mixtures, against which even a perfect "
                f"evaluator would show {self.objective.ceiling:.2f}, and {self.thresholds.ceiling:.2f} is asked."
            )
        if self.score < self.needed:
            return f"{proxies} are not trusted: they rank {self.objective.mixtures} trained mixtures with a score of {self.score:.2f}, where {self.needed:.2f} is asked."
        return f"{proxies} are not trusted: they rank the best mixtures worse than good evaluators do."

    @property
    def reasons(self) -> tuple[str, ...]:
        """The verdict and what it rests on, as sentences."""
        return tuple(
            sentence
            for sentence in (self.headline, self._ranking(), self._best(), self._moved(), self._routers(), self._odds())
            if sentence is not None
        )

    def _ranking(self) -> str:
        left_out = [row.of for row in self.metrics if not row.counted]
        counted = len(self.metrics) - len(left_out)
        means = f", the mean of {counted} metrics {self.mean.sentence}" if counted else ""
        without = f" Not counted, as noise hides their ranking: {', '.join(left_out)}." if left_out else ""
        return (
            f"Score: half the objective, half its metrics, each out of what a perfect evaluator would show against runs with this seed noise; {self.score:.2f} "
            f"({self.low:.2f} to {self.high:.2f}). Spearman of the objective {self.objective.sentence}{means}.{without}"
        )

    def _best(self) -> str | None:
        if self.top is None or self.top_needed is None:
            return f"{self.objective.mixtures} mixtures are too few to look at the best by themselves."
        verb = "below" if self.top.spearman < self.top_needed else "not below"
        return (
            f"Among the best ({self.top.of}, {self.top.mixtures} mixtures) {self.top.sentence}, {verb} {self.top_needed:.2f}, above which "
            f"{1 - self.thresholds.top_rejected:.0%} of good evaluators stay."
        )

    def _moved(self) -> str | None:
        if self.furthest is None:
            return None
        name, moved = self.furthest
        if moved <= self.thresholds.displacement:
            return (
                f"Components have moved by {moved:.3f} at most ({name}); up to {self.thresholds.displacement:g} merging is known to work."
            )
        return (
            f"Component {name} has moved by {moved:.3f}, beyond the {self.thresholds.displacement:g} up to which merging is known to work, so that a score of "
            f"{self.thresholds.displaced_score:.2f} is asked instead of {self.thresholds.score:.2f}."
        )

    def _routers(self) -> str | None:
        if self.agreement is None:
            return None
        low = f", below {self.thresholds.agreement:.0%}: routing may be what breaks" if self.agreement < self.thresholds.agreement else ""
        return f"Routers agree in {self.agreement:.0%} of their choices{low}."

    def _odds(self) -> str:
        more = " More trained mixtures would tell better." if max(self.good_rejected, self.bad_accepted) > POOR_ODDS else ""
        return (
            f"With so many mixtures and this noise, {self.good_rejected:.0%} of evaluators that truly rank with {GOOD:g} would be rejected, and "
            f"{self.bad_accepted:.0%} of those with {BAD:g} accepted.{more}"
        )
