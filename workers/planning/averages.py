"""What merged and ensembled proxies cost beside trained ones, and from how many mixtures on they are cheaper."""

from __future__ import annotations

import math

from mixopt.cost import AveragesCost
from workers.compose import Search
from workers.offers import GATE_REPEATS


def averages_cost(search: Search) -> tuple[AveragesCost, ...]:
    """One per evaluator of the search, the cheapest first; none, where it asks for none or its gate has trusted none."""
    if search.components is None or search.family is None:
        return ()
    assignment = search.strategy.assignment
    trained = assignment.offers[-1].cost
    gate = (search.experiment.components.gate + GATE_REPEATS) * trained
    return tuple(
        AveragesCost(
            evaluator=offer.source.evaluator,
            components=len(search.family.trials),
            components_flops=assignment.before,
            mixture_flops=offer.cost,
            trained_flops=trained,
            gate_flops=gate,
            break_even=break_even(assignment.before, offer.cost, trained),
            break_even_with_gate=break_even(assignment.before + gate, offer.cost, trained),
        )
        for offer in assignment.offers[:-1]
    )


def break_even(components: float, mixture: float, trained: float) -> int | None:
    """The least number of mixtures whose averages, components and all, cost no more than training each; None: there is none.

    Args:
        components: FLOPs of all of them, and of whatever else has to be paid first; mixture: of scoring one average; trained: of one trained trial.
    """
    return None if mixture >= trained else math.ceil(components / (trained - mixture) * (1 - 1e-12))
