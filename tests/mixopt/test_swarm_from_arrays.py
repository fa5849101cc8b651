"""Swarms made from arrays give the arrays back."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.errors import DataError
from mixopt.swarm import Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 1000)


def test_arrays_come_back() -> None:
    schedules = np.random.default_rng(0).dirichlet(np.ones(3), (5, 2))
    values = np.random.default_rng(1).normal(size=(5, 2))
    values[3, 1] = np.nan
    swarm = Swarm.from_arrays(["a", "b", "c"], schedules, ["m", "k"], values, SOURCE, [0.25, 0.75])
    points = swarm.points()
    np.testing.assert_array_equal(points.schedules, schedules)
    np.testing.assert_array_equal(swarm.points(realized=False).schedules, schedules)
    np.testing.assert_array_equal(swarm.values(["m", "k"]), values)
    assert points.fractions == (0.25, 0.75)
    assert points.sources == (SOURCE,) * 5
    assert len(swarm.at_source(SOURCE)) == 5


@pytest.mark.parametrize(
    ("shape", "columns", "names"), [((4, 1, 2), 1, None), ((4, 2, 3), 1, None), ((4, 1, 3), 2, None), ((4, 1, 3), 1, ["x", "x", "y", "z"])]
)
def test_shapes_and_names_are_checked(shape: tuple[int, ...], columns: int, names: list[str] | None) -> None:
    with pytest.raises(DataError):
        Swarm.from_arrays(["a", "b", "c"], np.full(shape, 1 / 3), ["m"], np.zeros((4, columns)), SOURCE, trial_ids=names)
