"""How soon a search knows its ranking: losses along the way, held against those of the end.

What it is for: if half of the tokens rank as all of them do, a search may train twice as many proxies half as long. The trade-off: points before
the end are scored on fewer rows and at a learning rate that has not decayed, so what is measured here is a floor; a run as short as the point,
decayed at its own end, ranks at least as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.objective import measure_noise
from mixopt.ranking import FEWEST_MIXTURES, Agreement, agreement
from mixopt.surrogates.observations import mixture_groups
from mixopt.swarm import Swarm

MEAN = "mean"


@dataclass(frozen=True)
class EarlyRanking:
    """How a point before the end ranks mixtures as the end does.

    Attributes:
        metric: its name; "mean": of all by their weights.
        tokens: training tokens at the point; `share`, of those at the end.
    """

    metric: str
    tokens: int
    share: float
    agreement: Agreement


def early_rankings(swarm: Swarm, weights: Mapping[str, float], draws: int | None = None) -> list[EarlyRanking]:
    """Agreement of each point before the end with the end (on all its rows), for each metric and for their weighted mean.

    One trial per mixture, the first, so that noise is that of one seed; trials with fewer points than others are left out, and metrics that one of
    the rest lacks at a point. Ceilings are known where mixtures were repeated with other seeds.

    Args:
        swarm: trials of one source.
        weights: metric -> weight in the mean.
        draws: as for `agreement`; None: its default.

    Raises:
        DataError: the trials are of several sources.
    """
    sources = set(swarm.points().sources)
    if len(sources) > 1:
        raise DataError(f"Trials of {len(sources)} sources have no common curve.", "Take those of one with `Swarm.at_source`.")
    metrics = list(weights)
    curves = swarm.curves(metrics, end="all")
    shares = np.array(list(weights.values())) / sum(weights.values())
    losses = np.concatenate([curves.values, (curves.values @ shares)[..., None]], axis=2)
    whole = np.isfinite(curves.tokens).all(axis=1)
    losses, groups = losses[whole], mixture_groups(swarm)[whole] if len(swarm) else np.zeros(0, dtype=np.int64)
    _, first = np.unique(groups, return_index=True)
    found = []
    for point in range(losses.shape[1] - 1):
        tokens, end = (float(np.median(curves.tokens[whole][:, place])) for place in (point, -1))
        for column, metric in enumerate([*metrics, MEAN]):
            early, late = losses[:, point, column], losses[:, -1, column]
            if len(first) >= FEWEST_MIXTURES and np.isfinite(early).all() and np.isfinite(late).all():
                options = {} if draws is None else {"draws": draws}
                compared = agreement(early[first], late[first], _noise(np.stack([early, late], axis=1), groups), **options)
                found.append(EarlyRanking(metric, int(tokens), tokens / end, compared))
    return found


def _noise(losses: np.ndarray, groups: np.ndarray) -> tuple[float, float] | None:
    """Of two columns over seeds; None: no mixture was repeated."""
    try:
        noise = measure_noise(losses, groups)
    except DataError:
        return None
    return float(noise.std[0]), float(noise.std[1])
