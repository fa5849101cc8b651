"""Swarms made from arrays give the arrays back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
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


def test_curves_come_back_and_survive_parquet(tmp_path: Path) -> None:
    schedules = np.random.default_rng(0).dirichlet(np.ones(2), (4, 1))
    values = np.random.default_rng(1).normal(size=(4, 3, 2))
    values[2, 0] = np.nan  # measured twice only
    values[3, 1, 1] = np.nan
    swarm = Swarm.from_arrays(["a", "b"], schedules, ["m", "k"], values, SOURCE, tokens=(125, 500, 1000))
    for end in ("curve", "all"):
        curves = swarm.curves(["m", "k"], end=end)  # type: ignore[arg-type]
        np.testing.assert_array_equal(curves.values, values)
        assert curves.tokens[0].tolist() == [125, 500, 1000]
    assert np.isnan(curves.tokens[2, 0])
    np.testing.assert_array_equal(swarm.values(["m", "k"]), values[:, -1])
    assert swarm.metrics == ("k", "m")
    swarm.table.write_parquet(tmp_path / "swarm.parquet")
    again = Swarm(swarm.domains, pl.read_parquet(tmp_path / "swarm.parquet"))
    assert again.digest() == swarm.digest()
    np.testing.assert_array_equal(again.curves(["m", "k"]).values, values)
    moved = Swarm.from_arrays(["a", "b"], schedules, ["m", "k"], values + np.array([1e-9, 0, 0])[:, None], SOURCE, tokens=(125, 500, 1000))
    assert moved.digest() != swarm.digest(), "early points count"


def test_a_metric_that_was_measured_early_only_has_no_end() -> None:
    values = np.array([[[3.0, 3.0], [2.0, np.nan]], [[3.0, 3.0], [1.0, 1.0]]])
    made = Swarm.from_arrays(["a"], np.ones((2, 1, 1)), ["m", "k"], values, SOURCE, tokens=(500, 1000))
    np.testing.assert_array_equal(made.values(["m", "k"]), values[:, -1])
    values[0, 1] = np.nan
    with pytest.raises(DataError, match="none at its end"):
        Swarm.from_arrays(["a"], np.ones((2, 1, 1)), ["m", "k"], values, SOURCE, tokens=(500, 1000))


@pytest.mark.parametrize("tokens", [(500, 250, 1000), (250, 500, 900), (250, 250, 1000), (250, 1000), ()])
def test_points_that_do_not_end_with_the_source_are_refused(tokens: tuple[int, ...]) -> None:
    with pytest.raises(DataError):
        Swarm.from_arrays(["a"], np.ones((4, 1, 1)), ["m"], np.zeros((4, 3, 1)), SOURCE, tokens=tokens)


@pytest.mark.parametrize(
    ("shape", "columns", "names"), [((4, 1, 2), 1, None), ((4, 2, 3), 1, None), ((4, 1, 3), 2, None), ((4, 1, 3), 1, ["x", "x", "y", "z"])]
)
def test_shapes_and_names_are_checked(shape: tuple[int, ...], columns: int, names: list[str] | None) -> None:
    with pytest.raises(DataError):
        Swarm.from_arrays(["a", "b", "c"], np.full(shape, 1 / 3), ["m"], np.zeros((4, columns)), SOURCE, trial_ids=names)
