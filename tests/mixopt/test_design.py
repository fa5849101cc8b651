"""The design of the swarm: nested, interleaved, wide, with repeats where noise is measured."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.domains import Domain, DomainSet
from mixopt.strategies.design import DesignPoint, corner, corner_units, design_sequence

TOKENS = {"web": 60.0, "code": 20.0, "books": 10.0, "math": 6.0, "law": 4.0}


def domain_set(tokens: dict[str, float] = TOKENS, budget: float = 100.0) -> DomainSet:
    return DomainSet(tuple(Domain(name, f"hash-{name}", 10_000_000, count) for name, count in tokens.items()), budget)


def design(count: int, seeds: int = 3, seed: int = 0, domains: DomainSet | None = None) -> list[DesignPoint]:
    return list(islice(design_sequence(domains or domain_set(), seeds, seed), count))


def test_a_small_budget_holds_baselines_and_a_repeat() -> None:
    assert [point.label for point in design(4)] == ["natural", "uniform", "unimax", "natural"]
    labels = [point.label for point in design(12)]
    assert labels.count("natural") >= 2
    assert labels.count("uniform") >= 2
    assert labels.count("corner") == 2
    assert labels.count("design") >= 4


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_all_repeats_are_there_with_distinct_seeds(seeds: int) -> None:
    points = design(60, seeds)
    by_mixture: dict[tuple[str, tuple[float, ...]], list[int]] = {}
    for point in points:
        if point.label != "design":
            by_mixture.setdefault((point.label, point.mixture.weights), []).append(point.seed)
    counts = sorted((label, len(found)) for (label, _), found in by_mixture.items())
    assert counts == [("corner", 2), ("corner", 2), ("natural", seeds), ("uniform", seeds), ("unimax", 1)]
    assert all(len(set(found)) == len(found) for found in by_mixture.values())


def test_draws_have_seeds_of_their_own_and_natural_and_uniform_share_theirs() -> None:
    points = design(100)
    draws = [point.seed for point in points if point.label == "design"]
    anchors = [point.seed for point in points if point.label != "design"]
    assert len(set(draws)) == len(draws)
    assert not set(draws) & set(anchors)
    natural, uniform = ([point.seed for point in points if point.label == label] for label in ("natural", "uniform"))
    assert natural == uniform


def test_another_search_seed_changes_draws_and_training_seeds_only() -> None:
    first, second = design(60, seed=0), design(60, seed=1)
    assert not {point.seed for point in first} & {point.seed for point in second}
    for a, b in zip(first, second, strict=True):
        assert a.label == b.label
        assert a.label == "design" or a.mixture == b.mixture
    assert sum(a.mixture == b.mixture for a, b in zip(first, second, strict=True) if a.label == "design") < 5


@settings(deadline=None)
@given(st.permutations(sorted(TOKENS)))
def test_order_of_domains_permutes_every_point(order: list[str]) -> None:
    shuffled = domain_set({name: TOKENS[name] for name in order})
    for a, b in zip(design(20), design(20, domains=shuffled), strict=True):
        assert a.mixture.as_dict() == pytest.approx(b.mixture.as_dict(), abs=1e-12)
        assert (a.label, a.seed) == (b.label, b.seed)


def test_draws_are_wide_and_not_cut_at_the_caps() -> None:
    domains = domain_set()
    weights = np.array([point.mixture.array() for point in design(200) if point.label == "design"])
    assert np.all(weights.max(axis=0) > np.minimum(domains.epoch_limits(), 0.8))
    assert 0.4 < weights.max(axis=1).mean() < 0.85
    # One draw in six is dense: no domain is absent from it.
    assert (np.all(weights > 0, axis=1)).mean() >= 1 / 6
    distances = 0.5 * np.abs(weights[:, None] - weights).sum(axis=2)
    assert distances[~np.eye(len(weights), dtype=bool)].min() >= 0.01
    # Whole multiples of a millionth, so that identities are stable.
    assert np.allclose(weights * 1e6, np.round(weights * 1e6), atol=1e-6)


def test_corners_are_a_scarce_domain_and_an_abundant_one_that_does_not_dominate() -> None:
    assert corner_units(domain_set()) == ("law", "code")
    assert corner_units(domain_set({"a": 9.0, "b": 1.0})) == ("b", "a")
    assert corner(domain_set(), "law").as_dict() == pytest.approx({"law": 0.6} | dict.fromkeys(["web", "code", "books", "math"], 0.1))


def test_two_domains_never_run_out() -> None:
    points = design(400, domains=domain_set({"a": 9.0, "b": 1.0}, 10.0))
    assert len(points) == 400
    assert len({point.seed for point in points if point.label == "design"}) == sum(point.label == "design" for point in points)


def test_many_domains_still_draw() -> None:
    domains = domain_set({f"d{index:03d}": 1.0 + index for index in range(300)}, 1000.0)
    for point in design(20, domains=domains):
        assert sum(point.mixture.weights) == pytest.approx(1.0)
