"""How points before the end rank mixtures, on made-up curves whose answer is known."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mixopt.errors import DataError
from mixopt.swarm import Swarm
from mixopt.trajectories import MEAN, early_rankings
from mixopt.trial import Source

SOURCE, GRID = Source("trained", "nano", 1000), (250, 500, 1000)


def swarm_of(ends: np.ndarray, middle: np.ndarray, first: np.ndarray, mixtures: np.ndarray | None = None) -> Swarm:
    """Two metrics; "b" is constant."""
    share = np.linspace(0.1, 0.9, len(ends)) if mixtures is None else mixtures
    values = np.stack([np.stack([first, middle, ends], axis=1), np.ones((len(ends), 3))], axis=2)
    return Swarm.from_arrays(["x", "y"], np.stack([share, 1 - share], axis=1)[:, None], ["a", "b"], values, SOURCE, tokens=GRID)


def test_each_point_is_held_against_the_end() -> None:
    ends = np.arange(8.0)
    found = early_rankings(swarm_of(ends, 2 * ends + 5, -ends), {"a": 3.0, "b": 1.0}, draws=50)
    told = {(one.metric, one.tokens): (one.share, one.agreement.spearman, one.agreement.accuracy) for one in found}
    assert told["a", 250] == (0.25, -1.0, 0.0)
    assert told["a", 500] == (0.5, 1.0, 1.0)
    assert told[MEAN, 250][1:] == (-1.0, 0.0)
    assert told["b", 500][1] == 0.0


def test_repeats_of_a_mixture_count_once() -> None:
    share = np.array([0.5, 0.5, 0.5, 0.5, 0.1, 0.2, 0.3, 0.4])
    ends = np.array([4.0, 9.0, -9.0, 8.0, 1.0, 2.0, 3.0, 5.0])
    early = np.array([4.0, -9.0, 9.0, 0.0, 1.0, 2.0, 3.0, 5.0])
    found = early_rankings(swarm_of(ends, early, early, share), {"a": 1.0}, draws=50)
    assert {one.agreement.spearman for one in found} == {1.0}
    assert {one.agreement.n for one in found} == {5}


def test_what_cannot_be_compared_is_left_out_or_refused() -> None:
    ends = np.arange(5.0)
    swarm = swarm_of(ends, ends, ends)
    assert early_rankings(Swarm.empty(["x", "y"]), {"a": 1.0}) == []
    assert early_rankings(swarm.select(swarm.trial_ids[:3]), {"a": 1.0}) == [], "too few mixtures"
    assert early_rankings(swarm, {"nobody": 1.0}) == []
    late = Swarm(swarm.domains, swarm.table.filter((pl.col("trial_id") != swarm.trial_ids[0]) | (pl.col("tokens") > 250)))
    assert {one.agreement.n for one in early_rankings(late, {"a": 1.0}, draws=50)} == {4}
    other = swarm.table.with_columns(pl.col("trial_id") + "x", source_tokens=pl.lit(2000, dtype=pl.Int64))
    with pytest.raises(DataError, match="2 sources"):
        early_rankings(Swarm(swarm.domains, swarm.table.vstack(other)), {"a": 1.0})
