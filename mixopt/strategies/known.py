"""What a strategy that learns starts from: its first design's size, what was measured, what is under way, what was refused, and its random state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixopt.acquisition.beliefs import UnitSpace
from mixopt.mixture import FloatArray
from mixopt.strategies.base import Assignment
from mixopt.swarm import Swarm
from mixopt.trial import Trial, content_digest

TOO_NEAR = 0.01
"""Share of tokens: an abandoned trial's mixture is not tried again this near."""
LEAST_FIRST = 17
"""By then natural and uniform have run with three seeds each, where a search asks for three. With less, the noise of a metric, by which the objective
weighs it, is a guess, and a search that follows the objective goes astray (docs/log.md)."""
FIRST_BESIDE, FIRST_PER_UNIT = 8, 0.7


def first_count(assignment: Assignment, asked_for: int | None) -> int:
    """Trials of the first design; by default 8 and .7 per unit, at least 17 (measured: docs/log.md)."""
    return asked_for or max(LEAST_FIRST, FIRST_BESIDE + round(FIRST_PER_UNIT * len(assignment.space.units.names)))


def random_state(assignment: Assignment, completed: Swarm, pending: Sequence[Trial]) -> np.random.Generator:
    """From the search's seed and the ids of what is completed and under way."""
    ids = sorted([*completed.trial_ids, "pending", *(trial.trial_id for trial in pending)])
    return np.random.default_rng([assignment.seed, int(content_digest(ids)[:12], 16)])


def measured_feasible(completed: Swarm, coordinates: UnitSpace) -> FloatArray:
    """The feasible mixtures that were run, each once, shape (M, domains)."""
    place = {name: index for index, name in enumerate(completed.domains)}
    weights_MD = completed.points(realized=False).averages()[:, [place[name] for name in coordinates.names]]
    inside_MD = weights_MD[coordinates.contains(weights_MD)]
    # Sorted, so that nothing hangs on the order in which trials ended.
    return np.asarray(inside_MD[np.unique(np.round(inside_MD, 9), axis=0, return_index=True)[1]])


def not_near(points_MU: FloatArray, refused_MU: FloatArray) -> FloatArray:
    """The first point that is not near any of those refused; the first where all are."""
    for point_U in points_MU:
        if all(0.5 * np.abs(point_U - other).sum() > TOO_NEAR for other in refused_MU):
            return np.asarray(point_U)
    return np.asarray(points_MU[0])
