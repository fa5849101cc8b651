"""What to try where the gate does not trust an evaluator: other components, as far as they are worth their cost, else trained proxies.

The order depends on the cause. Components that went too far are trained shorter: the error of a merge grows with the square of the steps
(MergeMix, arXiv 2601.17858), and where linear merges of 288 steps ranked with .23, those of half the steps ranked the same runs with .85, and half general data
brought .67 (docs/log.md). Routers that disagree are kept as the base's (MoE fine-tuning freezes its gates, arXiv 2406.11256). Else the general share grows:
components with half general data ranked better than with a quarter or none (DeMix, arXiv 2602.00747: .79, .67, .65).
An ensemble knows neither distance nor a merged router, so only its general share can help. Every attempt is a training of all components,
and all attempts together must stay well below what the search would pay for trained trials.

The trade-off: one change at a time, each kept by the attempts after it, and no return; there is no budget to look for the best of all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from mixopt.merging.verdict import Cause, Verdict

Retraining = Literal["shorter horizon", "larger general share", "frozen router"]
Remedy = Literal[Retraining, "trained proxies"]

LARGEST_GENERAL = 0.8
"""An assumption: beyond it components hardly differ, and differences of mixtures drown in rounding and in what components did not learn."""
COST_SHARE = 0.5
"""Of what the search's trained trials cost, all components may take so much. An assumption: a search left with less than half of its trials is
better made of trials alone."""

_ORDER: Mapping[Cause, tuple[Remedy, ...]] = {
    "displacement": ("shorter horizon", "larger general share", "frozen router"),
    "routers": ("frozen router", "shorter horizon", "larger general share"),
    "ranking": ("larger general share", "shorter horizon", "frozen router"),
    "noise": (),
    "none": (),
}


@dataclass(frozen=True)
class Making:
    """How components are made.

    Attributes:
        tokens: of one component, beyond the base.
        general: share of general data in each.
        frozen_router: whether routers stay the base's.
    """

    tokens: int
    general: float
    frozen_router: bool = False


@dataclass(frozen=True)
class Limits:
    """What attempts may not pass.

    Attributes:
        least_tokens: of a component, as of its schedule's warm-up or a number of steps.
        search_cost: of the trained trials that the search would run without the evaluator, FLOPs.
        spent: on components so far, FLOPs.
        has_router: whether the proxies are of a mixture of experts.
        share: of `search_cost` that all components may cost together.
    """

    least_tokens: int
    search_cost: float
    spent: float
    has_router: bool = True
    share: float = COST_SHARE

    @property
    def left(self) -> float:
        return self.share * self.search_cost - self.spent


@dataclass(frozen=True)
class Attempt:
    """What comes next.

    Attributes:
        making: of the components to train; None: no more components, trained proxies alone.
        cost: of them all, FLOPs; 0 without.
        reasons: sentences: why this, and why not what would have come before it.
    """

    remedy: Remedy
    making: Making | None
    cost: float
    reasons: tuple[str, ...]


def next_attempt(
    verdict: Verdict,
    making: Making,
    tried: Sequence[str],
    cost: Callable[[Making], float],
    limits: Limits,
    allowed: Sequence[str] | None = None,
) -> Attempt:
    """What to try after a verdict that does not trust, by its cause.

    Args:
        making: of the components that were judged.
        tried: remedies so far; none is taken twice, except a shorter horizon where displacement is still the cause.
        cost: of training all components so, FLOPs.
        allowed: remedies that may be taken; None: all.

    Raises:
        ValueError: the verdict trusts; there is nothing to mend.
    """
    if verdict.trusted:
        raise ValueError("The verdict trusts the evaluator; there is nothing to try.")
    skipped = []
    for remedy in _order(verdict):
        if allowed is not None and remedy not in allowed:
            continue
        if remedy in tried and not (remedy == "shorter horizon" and verdict.cause == "displacement"):
            skipped.append(f"A {remedy} was tried.")
            continue
        changed, why_not = _changed(remedy, making, limits)
        if changed is None:
            skipped.append(why_not)
            continue
        price = cost(changed)
        if price > limits.left:
            total = (limits.spent + price) / limits.search_cost if limits.search_cost > 0 else float("inf")
            skipped.append(
                f"A {remedy} would bring the components to {total:.0%} of what the trained trials of the search cost; at most {limits.share:.0%} is allowed."
            )
            continue
        return Attempt(remedy, changed, price, (_why(remedy, verdict, making, changed), *skipped))
    last = (
        "Seed noise hides the ranking, so that no other components could be told to be better; trained proxies are used."
        if verdict.cause == "noise"
        else "Nothing else is left to try; trained proxies are used."
    )
    return Attempt("trained proxies", None, 0.0, (last, *skipped))


def _order(verdict: Verdict) -> tuple[Remedy, ...]:
    order = _ORDER[verdict.cause]
    return order if verdict.evaluator != "ensemble" else tuple(remedy for remedy in order if remedy == "larger general share")


def _changed(remedy: Remedy, making: Making, limits: Limits) -> tuple[Making | None, str]:
    """The components with a remedy, or why it cannot be."""
    if remedy == "shorter horizon":
        tokens = making.tokens // 2
        return (
            (None, f"Half of {making.tokens:,} tokens is too short.")
            if tokens < limits.least_tokens
            else (replace(making, tokens=tokens), "")
        )
    if remedy == "larger general share":
        general = (1 + making.general) / 2
        too_large = f"The general share is {making.general:g} already."
        return (None, too_large) if general > LARGEST_GENERAL else (replace(making, general=general), "")
    if making.frozen_router or not limits.has_router:
        return None, "Routers are frozen already." if making.frozen_router else "There are no routers to freeze."
    return replace(making, frozen_router=True), ""


def _why(remedy: Remedy, verdict: Verdict, making: Making, changed: Making) -> str:
    if remedy == "shorter horizon":
        furthest = verdict.furthest
        moved = f" (at most {furthest[1]:.3f})" if furthest else ""
        return f"Components of {changed.tokens:,} tokens instead of {making.tokens:,}, which move less{moved}."
    if remedy == "larger general share":
        return f"Components with a general share of {changed.general:g} instead of {making.general:g}, which stay closer to each other."
    agreement = "" if verdict.agreement is None else f", as only {verdict.agreement:.0%} of their choices agree"
    return f"Components whose routers stay the base's{agreement}."
