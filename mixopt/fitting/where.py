"""Where the answer is wanted, of runs at several sizes and token counts: at the largest, unless the user says.

The main trade-off: the largest source is where fewest runs are, so answers there lean on the surrogate; but it is nearest to the run that counts.
"""

from __future__ import annotations

from mixopt.errors import ConfigError
from mixopt.fitting.file import WHAT, FitFile
from mixopt.fitting.runs import EVALUATOR
from mixopt.quantities import parse_count
from mixopt.swarm import Swarm
from mixopt.trial import Source


def sources_by_cost(swarm: Swarm, config: FitFile) -> tuple[Source, ...]:
    """The sources of the runs, the cheapest first: by the column `cost` where all runs have it, else by parameters times tokens.

    Raises:
        ConfigError: several sizes, no cost, and a size whose parameters are not known.
    """
    points, trials = swarm.points(), swarm.trials()
    found: dict[Source, list[float]] = {}
    for source, flops in zip(points.sources, trials["flops"].to_list(), strict=True):
        found.setdefault(source, []).append(flops)
    costs = {source: sum(flops) / len(flops) for source, flops in found.items()}
    if any(cost != cost for cost in costs.values()):
        one_size = len({source.size for source in found}) == 1
        costs = {source: float(source.tokens) * (1.0 if one_size else parameters(source.size, config)) for source in found}
    return tuple(sorted(found, key=lambda source: (costs[source], source.key)))


def parameters(size: str, config: FitFile) -> float:
    """Parameters of a size: as the file says, or as its name does.

    Raises:
        ConfigError: neither says them.
    """
    if size in config.sizes:
        return config.sizes[size]
    try:
        return float(parse_count(size))
    except ValueError:
        hint = f"Name sizes by their parameters, as 70M, or say them in {WHAT}: `sizes: {{{size}: 70M}}`; or add a column `cost`."
        raise ConfigError(f"How many parameters the size '{size}' has is not known.", hint) from None


def answer_at(swarm: Swarm, config: FitFile) -> Source:
    """The source of the answer: `target` of the file; what that leaves open is as in the largest source that fits it.

    Raises:
        ConfigError: `target` names what cannot be told from the runs, or a size's parameters are not known.
    """
    sources = sources_by_cost(swarm, config)
    if config.target is None:
        return sources[-1]
    size, tokens = config.target.size, config.target.tokens
    fitting = [s for s in sources if (size is None or s.size == size) and (tokens is None or s.tokens == tokens)]
    if fitting:
        return fitting[-1]
    if len(sources) == 1:
        raise ConfigError(
            f"`target` of {WHAT} asks for size {size or 'any'} and {tokens or 'any'} tokens, and all runs are at {spoken(sources[0])}.",
            "Add runs of other sizes or token counts, or leave `target` out.",
        )
    return Source(EVALUATOR, size or sources[-1].size, tokens or max(source.tokens for source in sources))


def spoken(source: Source) -> str:
    """A source as sentences name it."""
    from mixopt.terminal import quantity

    return f"size {source.size}" + (f", {quantity(source.tokens)} tokens" if source.tokens > 1 else "")
