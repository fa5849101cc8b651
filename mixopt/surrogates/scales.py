"""How large a source is: parameters of its size, its order by cost among others.

A size is a name. Names that are numbers ("70M", "1.3B") say their parameters themselves; what other names (`nano`) mean is told by a mapping.
Which parameters are counted, all, active, or without the embedding, is up to who names them; laws want the same for all sizes, and those without the
embedding follow laws best (the small models of arXiv 2403.16952 called "70M" have 19M of them).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mixopt.errors import DataError
from mixopt.quantities import parse_count
from mixopt.swarm import Swarm
from mixopt.trial import Source

Sizes = Mapping[str, float]
"""Name of a size -> its parameters."""
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0


def parameters_of(size: str, sizes: Sizes | None = None) -> float:
    """Parameters of the size of that name.

    Raises:
        DataError: the name is in no mapping and no number, or its number is not positive and finite.
    """
    try:
        value = float(sizes[size]) if sizes is not None and size in sizes else float(parse_count(size))
    except (TypeError, ValueError):
        raise DataError(
            f"How many parameters the size '{size}' has is not known.",
            f"Name sizes by their parameters, as 70M, or say it with the surrogate's option sizes: {{{size}: 70e6}}.",
        ) from None
    if not 0 < value < math.inf:
        raise DataError(f"Size '{size}' has {value} parameters, which is no number above 0.", "Correct the surrogate's option sizes.")
    return value


def sources_in(swarm: Swarm, sizes: Sizes | None = None) -> tuple[Source, ...]:
    """The sources of a swarm, cheapest first.

    By the mean FLOPs of their runs where the table has them for every source, otherwise by parameters times tokens, otherwise (one size) by tokens.

    Raises:
        DataError: several sizes, no FLOPs, and a size whose parameters are not known.
    """
    found = swarm.points().sources
    flops_N = swarm.trials()["flops"].to_numpy()
    keys = np.array([source.key for source in found])
    sources = {source.key: source for source in found}
    recorded = {key: float(np.mean(flops_N[keys == key])) for key in sources}
    if all(math.isfinite(flops) for flops in recorded.values()):
        cost = recorded
    elif len({source.size for source in found}) == 1:
        cost = {key: float(source.tokens) for key, source in sources.items()}
    else:
        scale = FLOPS_PER_PARAMETER_AND_TOKEN
        cost = {key: scale * parameters_of(source.size, sizes) * source.tokens for key, source in sources.items()}
    return tuple(sources[key] for key in sorted(sources, key=lambda key: (cost[key], key)))
