"""Runs of several sizes, token counts and seeds: how their rows are joined, and what is a repeat."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixopt.errors import DataError
from mixopt.fitting.runs import join_tables, row_sources
from mixopt.fitting.tables import Table
from mixopt.surrogates.observations import mixture_groups
from mixopt.trial import Source

Make = Callable[..., Table]
EIGHT = "a b c d e f g h"
LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
SHARES = [0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0]


def test_sizes_tokens_seeds_and_costs_make_sources(mixtures: Make, metrics: Make) -> None:
    runs = join_tables(
        mixtures(
            size="nano nano nano nano 70M 70M 70M 70M", tokens="3B 3e9 3000000000 3B 6B 6B 6B 6B", seed="0 1 2 3 0 1 2 3", cost=LOSSES
        ),
        metrics(),
    )
    trials = runs.swarm.trials()
    sources = [("nano", 3_000_000_000)] * 4 + [("70M", 6_000_000_000)] * 4
    assert [*zip(trials["size"], trials["source_tokens"], strict=True)] == sources
    assert trials["seed"].to_list() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert trials["flops"].to_list() == LOSSES
    assert runs.swarm.trial_ids == tuple("abcdefgh")  # ids that are unique stay as they are


def test_one_id_at_several_sources_is_joined_by_id_and_source(mixtures: Make, table: Make) -> None:
    ids, sizes = "a b c d a b c d", ["10M"] * 4 + ["100M"] * 4
    shuffled = [5, 2, 7, 0, 3, 6, 1, 4]
    metrics = table(
        "metrics.csv",
        run=[ids.split()[row] for row in shuffled],
        size=[sizes[row] for row in shuffled],
        loss=[LOSSES[row] for row in shuffled],
    )
    runs = join_tables(mixtures(run=ids, size=sizes), metrics)
    assert len(set(runs.swarm.trial_ids)) == 8
    found = {
        (runs.ids[trial_id], size): loss
        for trial_id, size, loss in zip(runs.swarm.trial_ids, runs.swarm.trials()["size"], runs.swarm.values(("loss",))[:, 0], strict=True)
    }
    assert found == dict(zip(zip(ids.split(), sizes, strict=True), LOSSES, strict=True))
    assert any("Column size of metrics.csv says where runs come from" in note for note in runs.notes)


def test_mixtures_once_and_metrics_at_several_sources(table: Make) -> None:
    ids = "a b c d"
    mixtures = table("mixtures.csv", run=ids, web=SHARES[:4], code=[1 - share for share in SHARES[:4]])
    metrics = table("metrics.csv", run=f"{ids} {ids}", tokens=["1B"] * 4 + ["2B"] * 4, loss=LOSSES)
    runs = join_tables(mixtures, metrics)
    assert len(runs.swarm) == 8
    assert sorted({source.tokens for source in runs.swarm.points().sources}) == [10**9, 2 * 10**9]
    for tokens, losses in ((10**9, LOSSES[:4]), (2 * 10**9, LOSSES[4:])):
        there = runs.swarm.at_source(next(source for source in runs.swarm.points().sources if source.tokens == tokens))
        assert [runs.ids[trial_id] for trial_id in there.trial_ids] == ids.split()
        assert there.values(("loss",))[:, 0].tolist() == losses
        np.testing.assert_array_equal(there.points().averages()[:, 1], SHARES[:4])


def test_an_id_that_nothing_tells_apart(mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError, match="An id has several rows in both tables, which do not share the column size or tokens") as failed:
        join_tables(mixtures(run="a b c d a b c d", size=["1M"] * 4 + ["2M"] * 4), metrics(run="a b c d a b c d", tokens=[1] * 4 + [2] * 4))
    assert failed.value.hint == "Add it to the table that lacks it."
    with pytest.raises(DataError, match=r"mixtures\.csv: id a/1M occurs more than once") as failed:
        join_tables(mixtures(run="a a c d e f g h", size=["1M"] * 8), metrics())
    assert failed.value.hint == "Give every row another run and size."


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("tokens", "many", "'many' in column 'tokens' of run h is not a number of tokens above 0"),
        ("tokens", "-3", "'-3' in column 'tokens' of run h is not a number of tokens above 0"),
        ("tokens", "2.5", "'2.5' in column 'tokens' of run h is not a number of tokens above 0"),
        ("seed", "x", "'x' in column 'seed' of run h is not a seed"),
        ("size", "", "a run has no size"),
        ("cost", "0", "run h has no cost above 0"),
        ("cost", "nan", "run h has no cost above 0"),
    ],
)
def test_sources_that_are_none(column: str, cell: str, message: str, mixtures: Make, metrics: Make) -> None:
    with pytest.raises(DataError) as failed:
        join_tables(mixtures(**{column: [*["1"] * 7, cell]}), metrics())
    assert message in failed.value.message


def test_sources_of_rows_take_the_default_for_what_they_do_not_say(table: Make) -> None:
    default = Source("given", "70M", 7)
    assert row_sources(table("asked.csv", run="a", web=[1.0]), default) == (default,)
    assert row_sources(table("asked.csv", run="a b", tokens="1B 2B"), default) == (
        Source("given", "70M", 10**9),
        Source("given", "70M", 2 * 10**9),
    )


def test_repeats_are_other_ids_or_other_seeds(mixtures: Make, metrics: Make) -> None:
    halves = {"web": [0.5] * 4 + SHARES[:4], "code": [0.5] * 4 + [1 - share for share in SHARES[:4]]}
    by_id = join_tables(mixtures(**halves), metrics())
    assert np.bincount(mixture_groups(by_id.swarm)).max() == 5  # the four, and the half among the others
    ids = "a a a a e f g h"
    by_seed = join_tables(mixtures(run=ids, seed="0 1 2 3 0 0 0 0", **halves), metrics(run=ids, seed="0 1 2 3 0 0 0 0"))
    assert mixture_groups(by_seed.swarm).tolist() == mixture_groups(by_id.swarm).tolist()
    assert [by_seed.ids[trial_id] for trial_id in by_seed.swarm.trial_ids] == ids.split()
