"""Which trials a calibration consists of: one set of mixtures, trained at several learning rates, with more seeds, and for longer.

The mixtures and seeds are those that a search asks for first (`strategies.design`), so trials at the search's own rate are the search's own, and
nothing is trained twice. Each mixture has one seed at all rates: whatever that seed does, it does at every rate, and rates are compared on
equal terms. The main trade-off: few mixtures, because every one is trained at every rate; the doubt that leaves is computed, not hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from mixopt.domains import DomainSet
from mixopt.factory import TrialFactory
from mixopt.mixture import Schedule
from mixopt.record import CALIBRATION_PREFIX
from mixopt.strategies.design import SEEDS_PER_SEARCH, DesignPoint, corner, corner_units, draws
from mixopt.trial import Source, Trial, content_digest

RATE_DIGITS = 4
"""Rates are rounded to so many significant digits, so that they are the numbers people read."""


@dataclass(frozen=True)
class Extent:
    """How much a calibration trains.

    Attributes:
        factors: learning rates, as multiples of the source's own; 1 is among them.
        draws: mixtures beside the baselines and the two corners.
        seeds: at natural, uniform and the two corners.
        longer: a longer run of the same size has so many times the tokens; 0: none is made.
        larger: whether the source of the verification is a reference too.
    """

    factors: tuple[float, ...]
    draws: int
    seeds: int
    longer: int
    larger: bool


@dataclass(frozen=True)
class CalibrationPlan:
    """The trials that calibrate one source.

    Attributes:
        calibration_id: what the result is stored under.
        factory: of the source, at its own rate.
        rates: rate -> trials, one per mixture; the own rate first.
        repeats: more seeds at the own rate: natural, uniform and the corners, the first seed of each included.
        references: name -> trials of a longer or larger run at its own rate, one per mixture, in the order of those above.
    """

    calibration_id: str
    factory: TrialFactory
    rates: tuple[tuple[float, tuple[Trial, ...]], ...]
    repeats: tuple[Trial, ...]
    references: tuple[tuple[str, tuple[Trial, ...]], ...]

    @property
    def own_rate(self) -> float:
        return own_rate(self.factory)

    @property
    def trials(self) -> tuple[Trial, ...]:
        """All of them, each once; those of the source first."""
        groups = [self.repeats, *(trials for _, trials in self.rates), *(trials for _, trials in self.references)]
        return tuple({trial.trial_id: trial for group in groups for trial in group}.values())

    def at(self, source: Source) -> tuple[Trial, ...]:
        return tuple(trial for trial in self.trials if trial.source == source)


def own_rate(factory: TrialFactory) -> float:
    """The rate that trials of a factory have."""
    return float(factory.recipe["learning_rate"])


def title_of(source: Source) -> str:
    """A source as tables and sentences call it."""
    return f"{source.size}, {source.tokens:,} tokens"


def at_rate(factory: TrialFactory, rate: float) -> TrialFactory:
    """The factory with another learning rate and nothing else changed."""
    return replace(factory, recipe={**factory.recipe, "learning_rate": rate})


def rates_of(own: float, factors: Sequence[float]) -> tuple[float, ...]:
    """Rates to try, the own one first and then from small to large; each is rounded, the own one never."""
    others = sorted({float(f"{own * factor:.{RATE_DIGITS}g}") for factor in factors if factor != 1})
    return (own, *others)


def ranked_points(domains: DomainSet, count: int, seed: int) -> list[DesignPoint]:
    """The mixtures that rates are judged by: natural, uniform, UniMax, two corners, and the first `count` draws of the search's design."""
    offset = SEEDS_PER_SEARCH * seed
    named = [("natural", domains.natural()), ("uniform", domains.uniform()), ("unimax", domains.unimax())]
    named += [("corner", corner(domains, name)) for name in corner_units(domains)]
    return [*(DesignPoint(label, mixture, offset) for label, mixture in named), *islice(draws(domains, seed), count)]


def repeated_points(domains: DomainSet, seeds: int, seed: int) -> Iterator[DesignPoint]:
    """Seeds at natural, uniform and the two corners, numbered as the search numbers them."""
    offset = SEEDS_PER_SEARCH * seed
    named = [("natural", domains.natural()), ("uniform", domains.uniform())]
    named += [("corner", corner(domains, name)) for name in corner_units(domains)]
    for label, mixture in named:
        yield from (DesignPoint(label, mixture, offset + repeat) for repeat in range(seeds))


def plan_calibration(
    factory: TrialFactory, extent: Extent, seed: int, larger: TrialFactory | None = None, first_seed: int | None = None
) -> CalibrationPlan:
    """The trials that calibrate the source of `factory`.

    Args:
        seed: of the search, which its draws depend on.
        larger: makes the trials of the larger source, a second reference; used where the extent asks for it.
        first_seed: which seeds the baselines' repeats have, as multiples of `SEEDS_PER_SEARCH`; None: as `seed`. The trials of a
            verification begin at 0 whatever the search's seed is.
    """
    domains = factory.domains
    repeats_from = seed if first_seed is None else first_seed
    points = _distinct(ranked_points(domains, extent.draws, seed))
    shifted = [_moved(point, seed, repeats_from) for point in points]
    rates = tuple((rate, _made(at_rate(factory, rate), shifted)) for rate in rates_of(own_rate(factory), extent.factors))
    references = []
    if extent.longer:
        source = Source(factory.source.evaluator, factory.source.size, factory.source.tokens * extent.longer)
        references.append((title_of(source), _made(replace(factory, source=source), shifted)))
    if extent.larger and larger is not None and larger.source not in {trials[0].source for _, trials in references}:
        references.append((title_of(larger.source), _made(larger, [_moved(point, seed, 0) for point in points])))
    repeats = _made(factory, list(repeated_points(domains, extent.seeds, repeats_from)))
    return CalibrationPlan(calibration_identity(factory), factory, rates, repeats, tuple(references))


def calibration_identity(factory: TrialFactory) -> str:
    """What a calibration depends on: the source, the recipe without its rate, the tokenizer, the engine, what trials begin with, and the domains with
    their tokens in the target corpus, from which baselines, corners and repetition follow. Names are among them, because results name domains."""
    domains = factory.domains
    recipe = {name: value for name, value in factory.recipe.items() if name != "learning_rate"}
    units = domains.units
    return CALIBRATION_PREFIX + content_digest(
        {
            "source": factory.source.key,
            "recipe": recipe,
            "tokenizer": factory.tokenizer_hash,
            "engine": factory.engine_version,
            **({"inputs": sorted(factory.inputs)} if factory.inputs else {}),
            "domains": sorted([d.name, d.content_hash, d.unique_target_tokens, d.target_tokens, d.max_epochs] for d in domains.domains),
            "budget_tokens": domains.budget_tokens,
            # Corners are of units: groups of given shares move as one.
            "units": sorted(
                [name, units.names[owner], round(float(share), 9)]
                for name, owner, share in zip(units.domains, units.owner, units.share, strict=True)
            ),
        }
    )


def _distinct(points: Sequence[DesignPoint]) -> list[DesignPoint]:
    """Each mixture once: where no cap binds, UniMax is uniform."""
    found: dict[tuple[float, ...], DesignPoint] = {}
    for point in points:
        found.setdefault(tuple(point.mixture.array().round(9).tolist()), point)
    return list(found.values())


def _moved(point: DesignPoint, seed: int, to: int) -> DesignPoint:
    return DesignPoint(point.label, point.mixture, point.seed + SEEDS_PER_SEARCH * (to - seed))


def _made(factory: TrialFactory, points: Sequence[DesignPoint]) -> tuple[Trial, ...]:
    return tuple(factory.make(Schedule.constant(point.mixture), point.seed, point.label) for point in points)
