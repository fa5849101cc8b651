"""The swarm's design: one endless sequence of mixtures and seeds, whose first n points are the swarm of n trials.

Every point depends on its number and the search's seed only, so that raising 48 trials to 96 keeps the first 48 and replacing a trial moves
no other. Baselines and repeats come early and are interleaved with the draws, so that a small budget holds some of each. Draws ignore the
epoch caps and bounds: constraints belong to the optimizer, the swarm stays wide (Olmix, arXiv 2602.12237). But a group of given shares is drawn
as the one unit that it is: what only its split does is not asked, and the trials are spent on fewer dimensions. The baselines are what they
are, over domains, whatever the groups: they are what people compare with, and searches with other groups share their trials.

Draws come in three widths, taken in turn. Wide ones have RegMix's strengths, 0.1 to 5, without its rejection of large weights: few domains each,
many of them nearly pure. Focused ones hold most domains, around the same tempered natural mixture: that is where optima under caps lie, and
there they predict better and with less doubt (docs/log.md). Dense ones are spread around uniform.

Seeds. Repeats of the baselines share a small set of seeds; every draw has its own. Seeds common to all trials would cancel what a seed does
to every mixture alike, but what it does to some mixtures only would then look like signal, and no number of trials would average it away.
With own seeds the noise is independent between trials, as surrogates assume, and is the noise that the repeats measure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice

import numpy as np

from mixopt.domains import DomainSet
from mixopt.mixture import FloatArray, Mixture
from mixopt.simplex import REGMIX_STRENGTHS, round_counts, sample_dirichlet

# Of so many draws one is dense (all domains present) around uniform: how all domains act together shows only there.
DENSE_EVERY = 6
DENSE_STRENGTH_PER_DOMAIN = 2.0
FOCUSED_STRENGTHS_PER_DOMAIN = np.geomspace(0.25, 3.0, 15)
# Below this share a domain gets some windows at most; RegMix cuts at 2e-4, Olmix at 2e-3.
ZERO_BELOW = 2e-3
# Weights are whole multiples of this, so that identities do not hang on the last bits of a logarithm.
GRAIN = 1_000_000
# Draws differ by at least this share of the tokens, unless so many in a row do not.
LEAST_DISTANCE = 0.01
MOST_SKIPPED = 20
# A corner gives its domain this share and spreads the rest evenly.
CORNER_SHARE = 0.6
CORNER_SEEDS = 2
# Seeds of one search: repeats from 0, draws from 1000; the next search seed starts after all of them.
SEEDS_PER_SEARCH = 100_000
FIRST_DRAW_SEED = 1000


@dataclass(frozen=True)
class DesignPoint:
    label: str
    mixture: Mixture
    seed: int


def design_sequence(domains: DomainSet, seeds: int, seed: int) -> Iterator[DesignPoint]:
    """The design, endless. Where UniMax equals another baseline the same mixture and seed come twice; the caller skips repeats.

    The first five are natural, uniform, UniMax, natural and uniform again; then two draws for each further repeat, then draws alone.

    Args:
        seeds: at natural and uniform; the two corners get 2.
        seed: of the search; other seeds give other draws and other training seeds.
    """
    anchors = [DesignPoint(label, mixture, SEEDS_PER_SEARCH * seed + repeat) for label, mixture, repeat in _anchors(domains, seeds)]
    drawn = draws(domains, seed)
    yield from anchors[:5]
    for anchor in anchors[5:]:
        yield from islice(drawn, 2)
        yield anchor
    yield from drawn


def draws(domains: DomainSet, seed: int) -> Iterator[DesignPoint]:
    """Draws that differ from all before; endless. Small strengths draw the same single domain again and again, and once is enough."""
    kept: list[FloatArray] = []
    skipped = 0
    for number in count():
        point = _draw(domains, seed, number)
        weights = point.mixture.array()
        near = any(0.5 * np.abs(weights - other).sum() < LEAST_DISTANCE for other in kept)
        # Two domains hold only so many distinct mixtures: in a full space nearness is accepted.
        if near and skipped < MOST_SKIPPED:
            skipped += 1
            continue
        skipped = 0
        kept.append(weights)
        yield point


def _anchors(domains: DomainSet, seeds: int) -> Iterator[tuple[str, Mixture, int]]:
    """Baselines and corners with the number of their repeat, the most needed first."""
    natural, uniform = domains.natural(), domains.uniform()
    yield "natural", natural, 0
    yield "uniform", uniform, 0
    yield "unimax", domains.unimax(), 0
    corners = [corner(domains, name) for name in corner_units(domains)]
    for repeat in range(1, max(seeds, len(corners) + 1)):
        if repeat < seeds:
            yield "natural", natural, repeat
            yield "uniform", uniform, repeat
        if repeat <= len(corners):
            for corner_repeat in range(CORNER_SEEDS):
                yield "corner", corners[repeat - 1], corner_repeat


def corner_units(domains: DomainSet) -> tuple[str, str]:
    """Where noise may differ most from the baselines': the scarcest unit, and the largest that does not dominate the natural mixture."""
    shares = domains.units.collapsed(domains.natural()).as_dict()
    ranked = sorted(domains.units.names, key=lambda name: (shares[name], name))
    scarcest, others = ranked[0], ranked[1:]
    modest = [name for name in others if shares[name] < 0.5]
    return scarcest, (modest or others)[-1]


def corner(domains: DomainSet, name: str) -> Mixture:
    """Mostly one unit, the others evenly."""
    units = domains.units
    rest = (1 - CORNER_SHARE) / (len(units.names) - 1)
    return units.expanded(Mixture.of({other: CORNER_SHARE if other == name else rest for other in units.names}))


def _draw(domains: DomainSet, seed: int, number: int) -> DesignPoint:
    """Draw `number`. Columns are drawn in the order of names: listing domains in another order permutes the mixture, nothing else."""
    units = domains.units
    names = sorted(units.names)
    rng = np.random.default_rng([0xDE51, seed, number])
    if number % DENSE_EVERY == DENSE_EVERY - 1:
        prior = np.full(len(names), 1 / len(names))
        weights = sample_dirichlet(rng, prior, 1, (DENSE_STRENGTH_PER_DOMAIN * len(names),), temperature=1.0, zero_below=0.0)
    else:
        focused = number % DENSE_EVERY % 2 == 1
        strengths = tuple((FOCUSED_STRENGTHS_PER_DOMAIN * len(names)).tolist()) if focused else REGMIX_STRENGTHS
        weights = sample_dirichlet(
            rng, units.collapsed(domains.natural()).array(names), 1, strengths, zero_below=min(ZERO_BELOW, 0.1 / len(names))
        )
    grained: FloatArray = round_counts(weights[0], GRAIN) / GRAIN
    mixture = units.expanded(Mixture.from_array(names, grained))
    return DesignPoint("design", mixture, SEEDS_PER_SEARCH * seed + FIRST_DRAW_SEED + number)
