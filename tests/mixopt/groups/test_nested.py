"""Boxes with bounds on nested sums: the projection is the nearest point, the reach is what linear programming finds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.groups.nested import Node, SumBound, build_tree, project_nested, reach
from mixopt.simplex import project

Case = tuple[np.ndarray, np.ndarray, list[SumBound], Node]


def make_case(rng: np.random.Generator) -> Case:
    """A random non-empty set: bounds lie around those of some mixture, so that it is inside."""
    dimension = int(rng.integers(3, 12))
    inside = rng.dirichlet(np.full(dimension, 0.7))
    lower = inside * rng.choice([0.0, 0.5, 1.0], dimension)
    upper = np.minimum(inside * rng.choice([1.0, 1.5, 50.0], dimension) + 1e-3, 1.0)
    members, sums = list(rng.permutation(dimension)), []
    while len(members) > 1:
        size = int(rng.integers(1, len(members)))
        members = members[:size]
        total = float(inside[members].sum())
        sums.append(SumBound(f"g{len(sums)}", tuple(members), total * rng.choice([0.0, 0.8]), min(total * rng.choice([1.1, 20.0]), 1.0)))
    return lower, upper, sums, build_tree(lower, upper, sums)


def matrix(sums: list[SumBound], dimension: int) -> np.ndarray:
    rows = np.zeros((len(sums), dimension))
    for row, bound in enumerate(sums):
        rows[row, list(bound.members)] = 1
    return rows


def assert_inside(points: np.ndarray, case: Case, tolerance: float = 1e-12) -> None:
    lower, upper, sums, _ = case
    assert np.all((points >= lower - tolerance) & (points <= upper + tolerance))
    assert np.allclose(points.sum(axis=1), 1, atol=tolerance)
    totals = points @ matrix(sums, len(lower)).T
    assert np.all(totals >= np.array([bound.least for bound in sums]) - tolerance)
    assert np.all(totals <= np.array([bound.largest for bound in sums]) + tolerance)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_projection_is_feasible_idempotent_and_nearest(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = make_case(rng)
    lower, upper, _, root = case
    points = rng.normal(0.2, 0.5, (20, len(lower)))
    nearest = project_nested(points, lower, upper, root)
    assert_inside(nearest, case)
    assert np.allclose(project_nested(nearest, lower, upper, root), nearest, atol=1e-12)
    # Nearest, of a convex set: no feasible direction leads closer (the variational inequality), for every pair of rows.
    others = project_nested(rng.normal(0.2, 1.0, (50, len(lower))), lower, upper, root)
    slopes = np.einsum("nd,nmd->nm", points - nearest, others[None] - nearest[:, None])
    assert slopes.max() <= 1e-10


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_without_sums_it_is_the_projection_of_the_simplex(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lower, upper, _, _ = make_case(rng)
    points = rng.normal(0.2, 0.5, (20, len(lower)))
    assert np.allclose(project_nested(points, lower, upper, build_tree(lower, upper, [])), project(points, lower, upper), atol=1e-12)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_the_reach_is_what_linear_programming_finds(seed: int) -> None:
    from scipy.optimize import linprog

    lower, upper, sums, root = make_case(np.random.default_rng(seed))
    dimension, rows = len(lower), matrix(sums, len(lower))
    limits = {"A_ub": np.concatenate([rows, -rows]), "b_ub": [b.largest for b in sums] + [-b.least for b in sums]} if sums else {}
    least, largest = reach(lower, upper, root)
    for index in range(dimension):
        for sign, found in ((1.0, least[index]), (-1.0, largest[index])):
            cost = sign * np.eye(dimension)[index]
            best = linprog(cost, A_eq=np.ones((1, dimension)), b_eq=[1.0], bounds=list(zip(lower, upper, strict=True)), **limits)
            assert best.status == 0
            assert abs(best.x[index] - found) < 1e-7


def test_far_points_and_many_rows_end_exactly() -> None:
    lower, upper = np.zeros(4), np.ones(4)
    sums = [SumBound("a", (0, 1), 0.3, 0.4), SumBound("b", (0,), 0.0, 0.1)]
    root = build_tree(lower, upper, sums)
    points = np.array([[1e6, 0, 0, 0], [-1e6, 0, 0, 0], [0, 0, 1e6, 0], [0.25] * 4])
    nearest = project_nested(points, lower, upper, root)
    assert np.allclose(nearest, [[0.1, 0.3, 0.3, 0.3], [0, 1 / 3, 1 / 3, 1 / 3], [0.1, 0.2, 0.7, 0], [0.1, 0.3, 0.3, 0.3]], atol=1e-9)
