"""Bounds on the gap of reuse hold on random log-linear laws; slopes and optima are right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from mixopt.domains import Domain, DomainSet
from mixopt.mixture import FloatArray
from mixopt.reuse.bound import blame, kappa, published_bound, tangent_bound, with_kept_shares
from mixopt.reuse.law import ObjectiveLaw
from mixopt.reuse.virtual import with_kept
from mixopt.space import MixtureSpace


def domain_set(count: int, tokens: float = 1e3) -> DomainSet:
    return DomainSet(tuple(Domain(f"d{index}", f"c{index}", 1000, tokens) for index in range(count)), 100.0)


def random_law(rng: np.random.Generator, count: int, strength: float = 0.0, worst: bool = False) -> ObjectiveLaw:
    metrics = int(rng.integers(1, 5))
    slopes = rng.normal(size=(metrics, count)) * rng.uniform(0.3, 4.0)
    names = tuple(f"d{index}" for index in range(count))
    levels = rng.normal(size=metrics)
    return ObjectiveLaw(names, slopes, rng.uniform(0.2, 3.0, metrics), levels, np.full(count, 1 / count), strength, worst)


@given(st.integers(0, 10**6), st.booleans(), st.sampled_from([0.0, 0.3]))
def test_slopes_are_those_of_finite_differences(seed: int, worst: bool, strength: float) -> None:
    rng = np.random.default_rng(seed)
    law = random_law(rng, 4, strength, worst)
    q_D, direction_D = rng.dirichlet(np.ones(4)) * 0.96 + 0.01, rng.normal(size=4)
    step = 1e-6
    difference = (law.value((q_D + step * direction_D)[None]) - law.value((q_D - step * direction_D)[None]))[0] / (2 * step)
    assert np.isclose(law.gradient(q_D) @ direction_D, difference, rtol=1e-4, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_the_optimum_is_that_of_a_general_solver(seed: int, worst: bool) -> None:
    rng = np.random.default_rng(seed)
    law = random_law(rng, 5, 0.05, worst)
    space = MixtureSpace.from_domains(domain_set(5, 12.0))  # caps of .48
    found = law.optimum(space, np.full(5, 0.2))
    bounds = list(zip(space.lower, space.upper, strict=True))
    sums = {"type": "eq", "fun": lambda q: q.sum() - 1}
    slow = minimize(
        lambda q: law.value(np.clip(q, 0, 1)[None])[0],
        np.full(5, 0.2),
        bounds=bounds,
        constraints=[sums],
        method="SLSQP",
        options={"maxiter": 500},
    )
    scale = float(np.ptp(law.value(space.sample(64, rng)))) + 1e-9
    assert law.value(found[None])[0] <= slow.fun + 1e-4 * scale
    assert space.contains(found[None])[0]


def reuse(seed: int, strength: float) -> tuple[ObjectiveLaw, DomainSet, list[int], FloatArray, FloatArray, FloatArray]:
    """A law over old and new domains, the old optimum's shares, the full optimum, and the best mixture that keeps the shares."""
    rng = np.random.default_rng(seed)
    count, fresh = int(rng.integers(3, 7)), int(rng.integers(1, 3))
    law = random_law(rng, count + fresh, strength)
    fix = list(range(count))
    before = replace(law, domains=law.domains[:count], slopes_KD=law.slopes_KD[:, :count], natural_D=np.full(count, 1 / count))
    shares_F = before.optimum(MixtureSpace.from_domains(domain_set(count)), np.full(count, 1 / count))
    domains = domain_set(count + fresh)
    optimum_D = law.optimum(MixtureSpace.from_domains(domains), law.natural_D)
    space = MixtureSpace.from_domains(with_kept(domains, dict(zip(domains.names[:count], shares_F.tolist(), strict=True))))
    allowed_D = space.project(optimum_D[None])[0]
    return law, domains, fix, shares_F, optimum_D, law.optimum(space, allowed_D)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_both_bounds_hold_and_the_tangent_is_the_closer(seed: int) -> None:
    law, _, fix, shares_F, optimum_D, best_D = reuse(seed, 0.0)
    gap = float(law.value(best_D[None])[0] - law.value(optimum_D[None])[0])
    allowed_D = with_kept_shares(optimum_D, shares_F, fix)
    tangent, published = tangent_bound(law, optimum_D, allowed_D), published_bound(law, optimum_D, shares_F, fix)
    rounding = 1e-6 * (1 + abs(float(law.value(optimum_D[None])[0])))
    assert gap <= tangent + rounding
    assert tangent <= published + rounding


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_tangent_holds_with_the_pull(seed: int) -> None:
    law, _, fix, shares_F, optimum_D, best_D = reuse(seed, 0.2)
    gap = float(law.value(best_D[None])[0] - law.value(optimum_D[None])[0])
    bound = tangent_bound(law, optimum_D, with_kept_shares(optimum_D, shares_F, fix))
    assert gap <= bound + 1e-6 * (1 + abs(float(law.value(optimum_D[None])[0])))


def test_kappa_by_hand() -> None:
    """Two metrics; norms of the kept columns 3 and 5, of the others 4 and 0: ||(1 + 3 + 4) 3, (1 + 5 + 0) 5||."""
    slopes = np.array([[3.0, 0.0, 4.0], [3.0, 4.0, 0.0]])
    assert np.isclose(kappa(slopes, [0, 1]), np.hypot(8 * 3, 6 * 5))
    assert kappa(slopes, [0]) < kappa(slopes, [0, 1])


def test_the_blame_falls_on_the_domain_that_the_new_one_replaces() -> None:
    """Metric 0 is served by d0 before and far better by d3, so d0 is what should weigh less."""
    slopes = np.array([[-3.0, 0.0, 0.0, -9.0], [0.0, -3.0, 0.0, 0.0], [0.0, 0.0, -3.0, 0.0]])
    law = ObjectiveLaw(("d0", "d1", "d2", "d3"), slopes, np.ones(3), np.zeros(3), np.full(4, 0.25))
    shares_F = np.full(3, 1 / 3)
    optimum_D = law.optimum(MixtureSpace.from_domains(domain_set(4)), law.natural_D)
    assert int(np.argmax(blame(law, optimum_D, shares_F, [0, 1, 2]))) == 0


def test_keeping_the_right_shares_costs_nothing() -> None:
    law = random_law(np.random.default_rng(5), 5)
    optimum_D = law.optimum(MixtureSpace.from_domains(domain_set(5)), law.natural_D)
    shares_F = optimum_D[:3] / optimum_D[:3].sum()
    assert published_bound(law, optimum_D, shares_F, [0, 1, 2]) < 1e-9
    assert tangent_bound(law, optimum_D, with_kept_shares(optimum_D, shares_F, [0, 1, 2])) < 1e-9
