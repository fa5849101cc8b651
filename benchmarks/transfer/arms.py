"""Which trials the fidelity benchmark trains: the same mixtures at every arm, an arm being a source with one thing changed.

Mixtures are those of a search's own design, baselines and corners first, so that a search with the same output shares the trials. Two seeds at
natural, uniform and the two corners give each arm its own noise. Trade-off: the arms that ask what a setting does are trained on the mixtures of the
middle size only, which is what they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from mixopt.domains import DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Mixture, Schedule
from mixopt.strategies.design import design_sequence
from mixopt.trial import Source, Trial

SEEDS = 2
"""At the mixtures that are repeated; the design has two at the corners."""
REPEATED = ("natural", "uniform", "corner")


@dataclass(frozen=True)
class Arm:
    """A source, and what is changed of its recipe.

    Attributes:
        name: as `nano` or `nano, rate / 10`.
        changes: of the recipe, by key.
        rate_scale: of the size's own learning rate.
        matched: whether domains are repeated as often as in the target run; False: all prepared text may be seen.
        mixtures: how many, the first of the design.
    """

    name: str
    size: str
    tokens: int
    mixtures: int
    rate_scale: float = 1.0
    changes: tuple[tuple[str, Any], ...] = ()
    matched: bool = True

    @property
    def source(self) -> Source:
        return Source("trained", self.size, self.tokens)


def arms(quick: bool, gpu: bool) -> tuple[Arm, ...]:
    """All arms, the most telling first, so that what an interruption leaves is of use."""
    if quick:
        return (
            Arm("nano", "nano", 200_000, 6),
            Arm("micro", "micro", 200_000, 5),
            Arm("nano, rate / 10", "nano", 200_000, 5, rate_scale=0.1),
        )
    if gpu:
        tokens = {"nano": 10_000_000, "micro": 20_000_000, "small": 50_000_000, "medium": 100_000_000}
        return tuple(Arm(size, size, count, 48) for size, count in tokens.items())
    return (
        Arm("nano", "nano", 1_000_000, 24),
        Arm("micro", "micro", 1_500_000, 12),
        Arm("nano, rate / 10", "nano", 1_000_000, 12, rate_scale=0.1),
        Arm("nano, constant rate", "nano", 1_000_000, 12, changes=(("schedule", "constant"),)),
        Arm("nano, epochs not matched", "nano", 1_000_000, 12, matched=False),
        Arm("nano, 250K tokens", "nano", 250_000, 12),
        Arm("nano, rate / 100", "nano", 1_000_000, 12, rate_scale=0.01),
        Arm("small", "small", 1_000_000, 6),
    )


def trials_of(arm: Arm, domains: DomainSet, recipe: Mapping[str, Any], tokenizer_hash: str, engine_version: str) -> list[Trial]:
    """The trials of an arm, repeats after the first seeds.

    Args:
        recipe: of the arm's size, with its own rate.
    """
    changed = {**recipe, "learning_rate": recipe["learning_rate"] * arm.rate_scale, **dict(arm.changes)}
    # With a budget of one token the target run repeats nothing: every proxy may see all that is prepared.
    seen = domains if arm.matched else replace(domains, budget_tokens=1.0)
    make = TrialFactory(seen, arm.source, changed, tokenizer_hash, engine_version).make
    first = [make(Schedule.constant(mixture), seed, label) for label, mixture, seed in distinct_mixtures(domains, arm.mixtures)]
    return [*first, *_repeats(first, make)]


def distinct_mixtures(domains: DomainSet, count: int) -> Iterator[tuple[str, Mixture, int]]:
    """The first mixtures of the design without repeats: label, mixture, seed. Both corners are among any five or more."""
    points = list(islice(design_sequence(domains, seeds=SEEDS, seed=0), 4 * count + 20))
    seen: dict[tuple[float, ...], tuple[str, Mixture, int]] = {}
    for point in sorted(points, key=lambda point: point.label == "design"):  # stable: draws follow the baselines in their order
        seen.setdefault(tuple(point.mixture.array().tolist()), (point.label, point.mixture, point.seed))
    return islice(iter(seen.values()), count)


def _repeats(first: list[Trial], make: Callable[[Schedule, int, str], Trial]) -> Iterator[Trial]:
    for trial in first:
        if trial.label in REPEATED:
            for repeat in range(1, SEEDS):
                yield make(trial.schedule, trial.seed + repeat, trial.label)
