"""What one domain does for each target: the predicted change of every loss when the domain's share rises a little and all others make room.

The others shrink in proportion, so that the shares still sum to 1. One step size for all domains, in points of the whole mixture, because
that is what a step costs in tokens; for a domain of next to nothing it is a large relative change, and its interval says how little is known
there. The main trade-off: effects at one mixture. They say where to look, not where to go; the optimizer sees the whole surface.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mixopt.groups.rules import Units
from mixopt.mixture import FloatArray
from mixopt.prediction import DRAWS, INTERVAL, Prediction
from mixopt.verification import OBJECTIVE

# One point of share: of 14 equal domains a seventh of a domain, and near the smallest share that proxies of 1M tokens can express well.
STEP = 0.01


@dataclass(frozen=True)
class DomainEffects:
    """Predicted changes at one mixture, with central 90% intervals; negative is better.

    Attributes:
        base: name of the mixture that is changed.
        step: what is added to a domain's share, out of 1.
        domains: rows; those with room for the step. A group whose split is given is one row, under its path.
        metrics: columns; bits per byte, but "objective" in its own unit.
        mean, low, high: (domains, metrics).
    """

    base: str
    step: float
    domains: tuple[str, ...]
    metrics: tuple[str, ...]
    mean: tuple[tuple[float, ...], ...]
    low: tuple[tuple[float, ...], ...]
    high: tuple[tuple[float, ...], ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> DomainEffects:
        tables = {name: tuple(tuple(row) for row in body[name]) for name in ("mean", "low", "high")}
        return cls(str(body["base"]), float(body["step"]), tuple(body["domains"]), tuple(body["metrics"]), **tables)


def raised(weights: FloatArray, index: int, step: float = STEP) -> FloatArray:
    """`weights` (domains,) with `step` more of one domain and the others scaled down to make room."""
    changed = weights * (1 - weights[index] - step) / (1 - weights[index])
    changed[index] = weights[index] + step
    return np.asarray(changed)


def domain_effects(prediction: Prediction, base: str, weights: FloatArray, step: float = STEP, units: Units | None = None) -> DomainEffects:
    """Effects of raising each domain's share at the mixture `weights` (domains,), on every metric and on the objective.

    Args:
        units: what the search moved: a group whose split is given is raised as one, for of its domains alone nothing was learned. The mixture
            is then `weights` in those splits. None: every domain by itself.
    """
    titles, moving = prediction.domains, weights
    if units is not None and not units.are_domains:
        titles, moving = units.titles, units.collapse(weights)
    rows = [index for index in range(len(moving)) if moving[index] + step <= 1]
    points = np.stack([*(raised(moving, index, step) for index in rows), moving])
    if units is not None:
        points = units.expand(points)
    if not np.allclose(points[-1], weights):
        base = f"{base} (groups split as given)"
    metrics: list[str] = []
    columns = []  # one array (3, domains) per metric: mean, low, high
    for fitted in (prediction.counted, prediction.others):
        if fitted is not None:
            draws = fitted.posterior(prediction.points(points)).sample(DRAWS, prediction.seed)
            differences = draws[:, :-1] - draws[:, -1:]
            metrics += fitted.metrics
            ends = np.percentile(differences, INTERVAL, axis=0)
            columns += list(np.stack([differences.mean(axis=0), *ends]).transpose(2, 0, 1))
    objective = prediction.objective_effects(points[:-1], points[-1])
    columns.append(np.array([[effect.mean, effect.low, effect.high] for effect in objective]).T)
    tables = np.stack(columns, axis=-1)
    mean, low, high = (tuple(tuple(row) for row in table.tolist()) for table in tables)
    return DomainEffects(base, step, tuple(titles[index] for index in rows), (*metrics, OBJECTIVE), mean, low, high)
