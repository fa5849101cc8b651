"""Tables that are legal and misleading: units far from 1, copied rows, metrics named like columns of sources, domains of crashed runs alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pytest

from mixopt.answer.constraints import FloorSet
from mixopt.answer.floors import Floor
from mixopt.answer.measured import guard
from mixopt.errors import DataError
from mixopt.fitting.copies import copied_rows
from mixopt.fitting.file import parse_fit_file
from mixopt.fitting.fit import fit
from mixopt.fitting.predictions import check_sources
from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import table_of
from mixopt.objective import measure_noise
from mixopt.proposal import Effect
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Points
from mixopt.trial import Source

DOMAINS, METRICS, RUNS = ("web", "code", "books"), ("a", "b"), 12


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.dirichlet(np.ones(len(DOMAINS)), RUNS), rng.normal(3, 0.1, (RUNS, len(METRICS)))


def join(weights: np.ndarray, losses: np.ndarray, domains: tuple[str, ...] = DOMAINS, metrics: tuple[str, ...] = METRICS) -> Runs:
    frames = [pl.DataFrame(values, schema=list(names), orient="row") for values, names in ((weights, domains), (losses, metrics))]
    ids = pl.Series("run", [f"r{row}" for row in range(len(weights))])
    mixtures, scores = (
        table_of(frame.insert_column(0, ids), name) for frame, name in zip(frames, ("mixtures.csv", "metrics.csv"), strict=True)
    )
    return join_tables(mixtures, scores)


@pytest.mark.parametrize("unit", [1e-6, 1e-3, 1e6])
def test_noise_is_in_the_unit_of_the_metric(unit: float) -> None:
    values = np.random.default_rng(0).normal(3, 0.01, (8, 2))
    groups = np.repeat(np.arange(4), 2)
    np.testing.assert_allclose(measure_noise(unit * values, groups).std, unit * measure_noise(values, groups).std, rtol=1e-9)


def test_seeds_that_agree_by_rounding_keep_a_floor() -> None:
    assert measure_noise(np.full((4, 1), 3.0), np.repeat([0, 1], 2)).std[0] == 1e-6
    assert measure_noise(np.full((4, 1), 3e-6), np.repeat([0, 1], 2)).std[0] == pytest.approx(3e-12)
    assert measure_noise(np.zeros((4, 1)), np.repeat([0, 1], 2)).std[0] > 0


@pytest.mark.parametrize("name", ["gaussian_process", "ridge", "power_law", "lightgbm"])
def test_predictions_are_in_the_unit_of_the_metric(name: str, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    weights, losses = arrays
    unit = 2.0**-20  # exact, so that only constants with a unit of their own could differ
    plain, small = (join(weights, scale * losses).swarm for scale in (1.0, unit))
    found, scaled = (get_surrogate(name).fit(swarm, METRICS) for swarm in (plain, small))
    np.testing.assert_allclose(scaled.mean(plain.points()), unit * found.mean(plain.points()), rtol=1e-6)
    np.testing.assert_allclose(scaled.noise_std, unit * found.noise_std, rtol=1e-4)


@pytest.mark.parametrize(("name", "folds"), [("auto", 10), ("ridge", 5)])
def test_baselines_are_judged_on_the_folds_of_the_surrogate(name: str, folds: int, arrays: tuple[np.ndarray, np.ndarray]) -> None:
    assert fit(join(*arrays), surrogate=name).diagnostics["folds"] == folds


def test_copies_are_no_repeats(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    weights, losses = (np.repeat(part, 2, axis=0) for part in arrays)
    runs = join(weights, losses)
    assert len(runs.swarm) == RUNS
    assert any("copies" in note and "r1" in note for note in runs.notes)
    np.testing.assert_array_equal(np.sort(runs.swarm.values(METRICS), axis=0), np.sort(arrays[1], axis=0))


def test_one_repeat_that_differs_makes_all_of_them_repeats(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    weights, losses = (np.repeat(part, 2, axis=0) for part in arrays)
    losses[-1, 0] += 0.01
    runs = join(weights, losses)
    assert len(runs.swarm) == 2 * RUNS
    assert not any("copies" in note for note in runs.notes)


def test_the_same_losses_at_another_source_are_no_copies() -> None:
    shares, losses = np.repeat([[0.5, 0.5]], 3, axis=0), np.full((3, 1), 2.0)
    assert copied_rows(shares, losses, ["70M", "70M", "160M"]).tolist() == [False, True, False]
    assert not copied_rows(shares, losses, ["70M", "160M", "410M"]).any()


def test_a_metric_called_cost_is_not_lost_without_a_word(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    runs = join(*arrays, metrics=("a", "cost"))
    assert runs.swarm.metrics == ("a",)
    assert any("Column cost of metrics.csv" in note for note in runs.notes)


def test_a_domain_called_size_is_named_where_weights_do_not_sum_to_1(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="do not sum to 1") as failed:
        join(*arrays, domains=("web", "code", "size"))
    assert "If size is a domain here, give it another name." in failed.value.hint


def test_a_domain_of_crashed_runs_alone_is_left_out(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    weights, losses = arrays
    weights[-1] = [0.5, 0.0, 0.5]
    weights[:-1, 2] = 0.0
    weights[:-1] /= weights[:-1].sum(axis=1, keepdims=True)
    losses[-1] = np.nan
    runs = join(weights, losses)
    assert runs.swarm.domains == ("code", "web")
    assert runs.left_out_domains == ("books",)
    assert any("Domain books has no weight" in note for note in runs.notes)


@pytest.mark.parametrize(("column", "values"), [("size", ["70M", "160M"]), ("seed", [0, 1])])
def test_one_row_of_metrics_is_not_taken_for_several_runs(column: str, values: list[object], arrays: tuple[np.ndarray, np.ndarray]) -> None:
    """It would be a repeat without noise, or the same loss at two sizes."""
    weights, losses = arrays
    frame = pl.DataFrame(weights, schema=list(DOMAINS), orient="row").insert_column(0, pl.Series("run", [f"r{row}" for row in range(RUNS)]))
    scores = pl.DataFrame(losses, schema=list(METRICS), orient="row").insert_column(0, frame["run"])
    several = pl.concat([frame.with_columns(pl.lit(value).alias(column)) for value in values])
    with pytest.raises(DataError, match=r"has several runs of ids r0.* does not say which") as failed:
        join_tables(table_of(several, "mixtures.csv"), table_of(scores, "metrics.csv"))
    assert f"column {column}" in failed.value.hint
    both = pl.concat([scores.with_columns(pl.lit(value).alias(column), pl.col("a") + place) for place, value in enumerate(values)])
    assert len(join_tables(table_of(several, "mixtures.csv"), table_of(both, "metrics.csv")).swarm) == 2 * RUNS


@pytest.mark.parametrize("several", [True, False])
def test_runs_of_one_size_say_nothing_of_another(several: bool) -> None:
    here, there = Source("given", "70M", 1), Source("given", "7B", 1)
    asked = Points(DOMAINS, np.full((2, 1, 3), 1 / 3), (here, there))
    with pytest.raises(DataError, match="asked at size 7B"):
        check_sources(asked, [here], several)
    check_sources(asked, [here, there], several)


def test_a_number_as_floor_of_all_metrics_is_in_the_sign_of_each(arrays: tuple[np.ndarray, np.ndarray]) -> None:
    runs = Runs.of(join(*arrays).swarm, ("b",))
    config = parse_fit_file({"maximize": ["b"], "objective": {"floors": [{"metric": "all", "baseline": 3.0}]}})
    assert config.floors(runs) == (Floor("a", 3.0), Floor("b", -3.0))


def test_floors_of_maximized_metrics_are_told_in_their_own_sign() -> None:
    floors, base = (Floor("loss", "natural", 0.01), Floor("accuracy", "natural", 0.01)), np.array([2.0, -0.5])
    limits = FloorSet(cast(Any, None), floors, base, base + 0.01, np.ones(2), 0.0, "units", frozenset({"accuracy"}))
    assert limits.sentences() == (
        "loss: the floor allows at most 2.01 units (natural's predicted 2 and 0.01)",
        "accuracy: the floor allows at least 0.49 units (natural's predicted 0.5 less 0.01)",
    )


@pytest.mark.parametrize(
    ("gain", "told"), [(Effect(2.5, 0.9, 4.0), "is predicted to be better"), (Effect(-2.5, -4.0, -0.9), "beyond the noise")]
)
def test_a_best_measured_mixture_that_is_predicted_better_is_called_so(gain: Effect, told: str) -> None:
    prediction = SimpleNamespace(domains=("web",), objective=SimpleNamespace(unit="units"), objective_effects=lambda *_: [gain])
    best = {"weights": {"web": 1.0}, "feasible": True, "label": "run 7", "trial_id": "7"}
    found = guard(cast(Any, prediction), np.ones(1), best, 1.0)
    assert told in found["sentence"]
    assert found["worse"] == (gain.mean > 0)
