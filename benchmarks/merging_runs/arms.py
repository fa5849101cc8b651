"""Which trials the benchmark of merging trains: a base, components of it, and the mixtures that proxies are asked to rank.

All trials of a size continue from one base at one constant rate, as components do, so that an arm compares ways to the same model. Mixtures are the first of a
search's own design (natural, uniform, UniMax, corners, draws), each with its own seed; as most of them ask for less of some domain than a general share leaves
in every component, as many more draws lie halfway to the natural mixture, where no merge has to extrapolate.

Every trial may see all prepared text: with epochs matched, a component would repeat its domain many times as often as any mixture does, and the benchmark would
measure that. Trade-off: what matching does to components is not seen here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from transfer.arms import distinct_mixtures

from mixopt.domains import DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Mixture, Schedule
from mixopt.trial import Source, Trial

STEP = 1024
FEWEST_STEPS = 8
SHORT = (0.5, 0.32, 0.08)
"""Tokens of short runs, of the horizon. With 8 components: as dear as they are for 16 mixtures; four times as dear for 100; as dear for 100."""
OTHER_SEED = 20_000
"""Added to a mixture's seed where it is trained again, and once more for its short run: with its own it would be the beginning of the run that it is to predict."""
COMPONENT_SEED = 3 * OTHER_SEED
PULL = 0.5
"""Share of the natural mixture in the draws that lie within reach: that of the largest general share."""


@dataclass(frozen=True)
class Arm:
    """Proxies of one size and horizon, and what is asked of them.

    Attributes:
        horizon: training tokens of components, and of the mixtures that are really trained.
        generals: shares of the natural mixture in components, beta.
        wide, within: mixtures of the design, and draws halfway to natural.
        twice: how many of the wide ones are trained with a second seed; natural and uniform are the first.
        short: tokens of equally costly runs, of the horizon.
        every_operator: False: linear merges and ensembles only.
        schedule: of the learning rate, of all its trials; rate_scale: of the size's own rate.
    """

    size: str
    horizon: int
    generals: tuple[float, ...]
    wide: int = 16
    within: int = 8
    twice: int = 16
    short: tuple[float, ...] = SHORT
    every_operator: bool = True
    schedule: str = "constant"
    rate_scale: float = 1.0

    @property
    def name(self) -> str:
        rate = "" if self.rate_scale == 1 else f"-rate{self.rate_scale:.2g}"
        return f"{self.size}-{self.horizon}" + ("" if self.schedule == "constant" else f"-{self.schedule}") + rate

    def short_tokens(self) -> tuple[int, ...]:
        """Of those that are long enough to be training."""
        steps = [round(share * self.horizon / STEP) for share in self.short]
        return tuple(STEP * count for count in steps if count >= FEWEST_STEPS)


@dataclass(frozen=True)
class Asked:
    """A mixture that is ranked. `is_wide`: as the design draws it; else halfway to natural."""

    label: str
    mixture: Mixture
    seed: int
    is_wide: bool


@dataclass(frozen=True)
class ArmTrials:
    """Trials of an arm.

    Attributes:
        components: general share -> one per domain, in the order of the domains.
        trained: one per mixture; again: of the first of them, with another seed.
        short: tokens -> one per wide mixture.
    """

    components: Mapping[float, tuple[Trial, ...]]
    trained: tuple[Trial, ...]
    again: tuple[Trial, ...]
    short: Mapping[int, tuple[Trial, ...]]

    def all(self) -> Iterator[Trial]:
        """Those that the others' rows hang on first."""
        for trials in (*self.components.values(), self.trained, self.again, *self.short.values()):
            yield from trials


def arms(quick: bool) -> tuple[Arm, ...]:
    """All arms, the most telling first, so that what an interruption leaves is of use."""
    if quick:
        return (Arm("nano", 24 * STEP, (0.0, 0.5), wide=8, within=4, twice=4, short=(0.5,), every_operator=False),)
    middle, both = 144 * STEP, (0.0, 0.5)
    plain = {"every_operator": False}
    few = {**plain, "within": 0, "twice": 0}
    return (
        Arm("nano", middle, (0.0, 0.25, 0.5)),
        Arm("nano", 48 * STEP, both, **plain),
        Arm("nano", 24 * STEP, both, **plain),
        Arm("micro", 64 * STEP, both, **few, short=SHORT[:1]),
        Arm("nano", middle, both, **few, short=(), schedule="wsd"),
        Arm("nano", 288 * STEP, both, **few, short=()),
        Arm("micro", 32 * STEP, both, **few, short=SHORT[:1]),
        Arm("nano", middle, both, **few, short=(), rate_scale=1 / 3),
        Arm("micro", 128 * STEP, both, **few, short=SHORT[:1]),
    )


def asked_mixtures(domains: DomainSet, wide: int, within: int) -> list[Asked]:
    """The mixtures of an arm, the wide ones first."""
    found = list(distinct_mixtures(domains, wide + within))
    natural = domains.natural().array(domains.names)

    def pulled(mixture: Mixture) -> Mixture:
        weights = PULL * natural + (1 - PULL) * mixture.array(domains.names)
        return Mixture.from_array(domains.names, weights / weights.sum())

    asked = [Asked(label, mixture, seed, True) for label, mixture, seed in found[:wide]]
    return [*asked, *(Asked(f"{label}, halfway to natural", pulled(mixture), seed, False) for label, mixture, seed in found[wide:])]


def component_mixture(domains: DomainSet, domain: str, general: float) -> Mixture:
    """(1 - general) of one domain, and the natural mixture."""
    own = np.array([float(name == domain) for name in domains.names])
    weights = (1 - general) * own + general * domains.natural().array(domains.names)
    return Mixture.from_array(domains.names, weights / weights.sum())


def base_trial(domains: DomainSet, size: str, tokens: int, recipe: Mapping[str, Any], tokenizer_hash: str, engine_version: str) -> Trial:
    """Trained on the natural mixture, from scratch, at a constant rate."""
    make = TrialFactory(everything(domains), Source("trained", size, tokens), recipe, tokenizer_hash, engine_version).make
    return make(Schedule.constant(domains.natural()), 0, "base")


def trials_of(arm: Arm, domains: DomainSet, base: Trial, recipe: Mapping[str, Any]) -> ArmTrials:
    """The trials of an arm.

    Args:
        recipe: of the arm's size, continued, with the size's own rate.
    """
    changed = {**recipe, "learning_rate": recipe["learning_rate"] * arm.rate_scale, "schedule": arm.schedule}
    seen = everything(domains)

    def make(tokens: int, mixture: Mixture, seed: int, label: str) -> Trial:
        factory = TrialFactory(
            seen, Source("trained", arm.size, tokens), changed, base.tokenizer_hash, base.engine_version, (base.trial_id,)
        )
        return factory.make(Schedule.constant(mixture), seed, label)

    asked = asked_mixtures(domains, arm.wide, arm.within)
    return ArmTrials(
        components={
            general: tuple(
                make(arm.horizon, component_mixture(domains, name, general), COMPONENT_SEED, f"component:{name}") for name in domains.names
            )
            for general in arm.generals
        },
        trained=tuple(make(arm.horizon, one.mixture, one.seed, one.label) for one in asked),
        again=tuple(make(arm.horizon, one.mixture, one.seed + OTHER_SEED, one.label) for one in asked[: arm.twice]),
        short={
            tokens: tuple(make(tokens, one.mixture, one.seed + 2 * OTHER_SEED, one.label) for one in asked[: arm.wide])
            for tokens in arm.short_tokens()
        },
    )


def everything(domains: DomainSet) -> DomainSet:
    """With a budget of one token the target run repeats nothing: every trial may see all that is prepared."""
    return replace(domains, budget_tokens=1.0)
