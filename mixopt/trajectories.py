"""How soon a search knows its ranking: losses along the way, held against those of the end.

What it is for: if half of the tokens rank as all of them do, a search may train twice as many proxies half as long. The trade-off: this costs
nothing, but a point of a longer run is not a shorter run. It is scored on fewer rows and before the learning rate decays, which lowers the agreement;
and it shares the seed of its end, which raises it, also above the ceiling of independent runs. `benchmarks/fidelity.py` trains the shorter runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.ranking import DRAWS, FEWEST_MIXTURES, Agreement, agreement
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


def early_rankings(swarm: Swarm, weights: Mapping[str, float], draws: int = DRAWS) -> list[EarlyRanking]:
    """Agreement of each point before the end with the end (on all its rows), for each metric and for their weighted mean.

    One trial per mixture, the first, as repeats would rank by their seeds; trials with fewer points than others are left out, and metrics that one
    of the rest lacks at a point.

    Args:
        swarm: trials of one source.
        weights: metric -> weight in the mean.
        draws: as for `agreement`.

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
    if not whole.any():
        return []
    _, first = np.unique(mixture_groups(swarm)[whole], return_index=True)
    tokens_NP, losses = curves.tokens[whole][first], losses[whole][first]
    found = []
    for point in range(losses.shape[1] - 1):
        tokens, end = (float(np.median(tokens_NP[:, place])) for place in (point, -1))
        for column, metric in enumerate([*metrics, MEAN]):
            early, late = losses[:, point, column], losses[:, -1, column]
            if len(losses) >= FEWEST_MIXTURES and np.isfinite(early).all() and np.isfinite(late).all():
                found.append(EarlyRanking(metric, int(tokens), tokens / end, agreement(early, late, draws=draws)))
    return found
