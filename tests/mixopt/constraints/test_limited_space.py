"""Spaces with limits on the whole: empty exactly when no choice of domains leaves a mixture, projections certified, samples inside."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.constraints.rules import Constraints, Near
from mixopt.domains import DomainSet
from mixopt.errors import InfeasibleError
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace
from tests.mixopt.constraints.conftest import centre_of, choices, least_linear, least_of_all, plain, random_set

SEEDS = st.integers(0, 2**32 - 1)


def space_or_none(domains: DomainSet) -> MixtureSpace | None:
    try:
        return MixtureSpace.from_domains(domains)
    except InfeasibleError:
        return None


def keeps_the_rules(domains: DomainSet, points: FloatArray) -> None:
    """Read from the limits themselves, not from what the space made of them."""
    assert np.all(points >= 0)
    assert np.allclose(points.sum(axis=1), 1, atol=1e-12)
    assert np.all(points <= domains.epoch_limits() + 1e-9)
    assert all(np.all(points[:, i] >= domain.bounds[0] - 1e-9) for i, domain in enumerate(domains.domains))
    if domains.constraints.most_domains is not None:
        assert np.all((points > 0).sum(axis=1) <= domains.constraints.most_domains)
    if domains.constraints.near is not None:
        moved = 0.5 * np.abs(points - centre_of(domains)).sum(axis=1)
        assert np.all(moved <= domains.constraints.near.distance + 1e-12)
    for rule in domains.rules:
        inside = [i for i, domain in enumerate(domains.domains) if f"{domain.group}/".startswith(f"{rule.path}/")]
        total = points[:, inside].sum(axis=1)
        assert np.all((total >= rule.bounds[0] - 1e-9) & (total <= rule.bounds[1] + 1e-9))


@settings(deadline=None, max_examples=80)
@given(SEEDS, st.booleans())
def test_a_space_is_refused_exactly_when_no_choice_of_domains_leaves_a_mixture(seed: int, grouped: bool) -> None:
    domains = random_set(np.random.default_rng(seed), grouped)
    space = space_or_none(domains)
    assert (space is None) == (least_of_all(domains, np.zeros(len(domains.names))) is None)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.booleans())
def test_samples_and_projections_keep_every_limit_and_stay_when_projected_again(seed: int, grouped: bool) -> None:
    rng = np.random.default_rng(seed)
    domains = random_set(rng, grouped)
    space = space_or_none(domains)
    if space is None:
        return
    projected = space.project(rng.normal(0.2, 0.5, (20, len(domains.names))))
    for points in (space.sample(50, rng), projected):
        keeps_the_rules(domains, points)
        assert space.contains(points, 1e-12).all()
    assert np.allclose(space.project(projected), projected, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.booleans())
def test_within_a_distance_projections_are_the_nearest_points(seed: int, grouped: bool) -> None:
    """A point of a convex set is nearest to y if no point of the set lies beyond it as seen from y: a linear program tells."""
    rng = np.random.default_rng(seed)
    domains = random_set(rng, grouped)
    domains = replace(domains, constraints=Constraints(None, domains.constraints.near or Near("natural", 0.3)))
    space = space_or_none(domains)
    if space is None:
        return
    for point in rng.normal(0.2, 0.3, (4, len(domains.names))):
        near = space.project(point[None])[0]
        # Distances count units, where those are groups: what a unit pulls acts on all of its weight.
        pull = space.units.collapse(point - near)[space.units.owner]
        if not space.units.are_domains:
            assert np.allclose(space.units.expand(space.units.collapse(near)), near, atol=1e-12)
        farthest = least_linear(domains, -pull, np.ones(len(pull)))
        assert farthest is not None
        assert pull @ (farthest - near) <= 1e-6


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.integers(3, 7))
def test_of_few_domains_without_caps_projections_are_the_nearest_points(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    most = int(rng.integers(1, count))
    space = MixtureSpace.from_domains(plain(rng.lognormal(0, 1, count).tolist(), Constraints(most)))
    points = rng.normal(0.2, 0.4, (10, count))
    found = np.linalg.norm(space.project(points) - points, axis=1)
    each = [
        np.linalg.norm(space.on_support(chosen > 0).project(points) - points, axis=1)
        for chosen in choices(plain([1.0] * count, Constraints(most)))
    ]
    assert np.allclose(found, np.min(each, axis=0), atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(SEEDS, st.booleans())
def test_reach_is_what_linear_programs_find(seed: int, grouped: bool) -> None:
    domains = random_set(np.random.default_rng(seed), grouped)
    space = space_or_none(domains)
    if space is None or (space.is_convex and space.ball is None):
        return
    expanded = [space.units.expand(end) for end in space.unit_reach]
    for index in range(0, len(domains.names), 2):
        row = np.eye(len(domains.names))[index]
        least, most = least_of_all(domains, row), least_of_all(domains, -row)
        assert least is not None
        assert most is not None
        assert (expanded[0][index], expanded[1][index]) == pytest.approx((least, -most), abs=1e-6)
        unit = int(space.units.owner[index])
        there = space.project_with(space.project(domains.uniform().array()[None])[0], unit, float(space.unit_reach[1][unit]))
        keeps_the_rules(domains, there[None])
        assert there[index] == pytest.approx(expanded[1][index], abs=1e-6)


def remedied(domains: DomainSet, hint: str) -> list[DomainSet]:
    """What each remedy of a hint gives, smallest steps down from it included."""
    said, made = domains.constraints, []
    distance, count = re.search(r"near.distance` to ([0-9.]*[0-9])", hint), re.search(r"most_domains` to ([0-9]+)", hint)
    near = replace(said.near, distance=float(distance[1])) if distance and said.near else said.near
    most = int(count[1]) if count else said.most_domains
    if " and " in hint:
        made = [Constraints(most, near)]
    else:
        made = ([replace(said, near=near)] if distance else []) + ([replace(said, most_domains=most)] if count else [])
    return [replace(domains, constraints=changed) for changed in made]


@settings(deadline=None, max_examples=60)
@given(SEEDS, st.booleans())
def test_every_remedy_leaves_a_mixture_and_a_smaller_one_does_not(seed: int, grouped: bool) -> None:
    domains = random_set(np.random.default_rng(seed), grouped)
    try:
        MixtureSpace.from_domains(domains)
    except InfeasibleError as error:
        if "constraints" not in error.hint:
            return  # bounds or groups alone leave nothing
        said = domains.constraints
        for changed in remedied(domains, error.hint):
            keeps_the_rules(changed, MixtureSpace.from_domains(changed).sample(10, np.random.default_rng(0)))
            most, near = changed.constraints.most_domains, changed.constraints.near
            if most is not None and most != said.most_domains:
                assert space_or_none(replace(changed, constraints=Constraints(most - 1, near))) is None
            if near is not None and near != said.near:
                nearer = replace(near, distance=near.distance - 2e-4)
                assert space_or_none(replace(changed, constraints=Constraints(most, nearer))) is None


CAPPED = dict.fromkeys(range(5), (0.0, 0.3))


@pytest.mark.parametrize(
    ("domains", "message", "hint"),
    [
        (
            plain([1.0] * 5, Constraints(2), bounds=CAPPED),
            r"`constraints.most_domains` allows 2 domains, but at least 4 are needed, for no mixture of fewer keeps bounds, caps and groups "
            r"\(largest weights: d0 0.3, d1 0.3, d2 0.3, d3 0.3, ...\)",
            "Raise `constraints.most_domains` to 4.",
        ),
        (
            plain([1.0] * 4, Constraints(1), bounds={0: (0.1, 1.0), 2: (0.2, 1.0)}),
            r"allows 1 domain, but at least 2 are needed, for 2 domains have a least weight above 0 \(d0, d2\)",
            "Raise `constraints.most_domains` to 2.",
        ),
        (
            plain([6.0, 3.0, 1.0], Constraints(None, Near("natural", 0.05)), bounds={0: (0.0, 0.4)}),
            r"keep every mixture at least 0.2 of the tokens away from the natural mixture, but `constraints.near` allows 0.05 \(d0 0.4 instead of 0.6",
            "Raise `constraints.near.distance` to 0.2, or name a mixture that keeps them.",
        ),
        (
            plain([5.0, 3.0, 1.0, 1.0], Constraints(2, Near("natural", 0.15))),
            "every mixture of at most 2 domains is at least 0.2 of the tokens away from the natural mixture, but `constraints.near` allows 0.15",
            "Raise `constraints.near.distance` to 0.2, or `constraints.most_domains` to 3.",
        ),
    ],
)
def test_empty_sets_are_explained(domains: DomainSet, message: str, hint: str) -> None:
    with pytest.raises(InfeasibleError, match=message) as caught:
        MixtureSpace.from_domains(domains)
    assert caught.value.hint == hint


def test_limits_that_hold_are_named() -> None:
    space = MixtureSpace.from_domains(plain([5.0, 3.0, 1.0, 1.0], Constraints(3, Near("natural", 0.2))))
    assert space.binding(np.array([0.4, 0.5, 0.1, 0.0])) == (
        "domains: at most 3 may have weight",
        "distance: at most 0.2 of the tokens may be moved from the natural mixture",
    )
    assert space.binding(np.array([0.7, 0.3, 0.0, 0.0])) == ("distance: at most 0.2 of the tokens may be moved from the natural mixture",)
    assert space.binding(np.array([0.55, 0.35, 0.1, 0.0])) == ("domains: at most 3 may have weight",)
    assert not space.contains(np.array([[0.25, 0.25, 0.25, 0.25], [0.9, 0.1, 0.0, 0.0]])).any()


def test_limits_that_limit_nothing_are_none() -> None:
    space = MixtureSpace.from_domains(plain([5.0, 3.0], Constraints(2, Near("uniform", 1.0))))
    assert space.is_convex
    assert space.ball is None


def test_listing_domains_in_another_order_permutes_samples() -> None:
    domains = plain([5.0, 3.0, 1.0, 1.0, 2.0], Constraints(3, Near("natural", 0.5)), bounds={0: (0.0, 0.5)})
    order = [3, 0, 4, 2, 1]
    other = replace(domains, domains=tuple(domains.domains[index] for index in order))
    first, second = (MixtureSpace.from_domains(found).sample(100, np.random.default_rng(1)) for found in (domains, other))
    assert np.allclose(second, first[:, order], atol=1e-12)


def test_samples_reach_the_surface_and_many_choices() -> None:
    space = MixtureSpace.from_domains(plain([5.0, 3.0, 1.0, 1.0, 2.0], Constraints(2, Near("natural", 0.7))))
    points = space.sample(4000, np.random.default_rng(0))
    assert space.ball is not None
    assert space.ball.distances(points).max() == pytest.approx(0.7, abs=1e-9)
    assert len({tuple(row) for row in points > 0}) >= 8
