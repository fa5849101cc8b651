"""Tables that are legal and misleading: units far from 1, copied rows, metrics named like columns of sources, domains of crashed runs alone."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from mixopt.errors import DataError
from mixopt.fitting.copies import copied_rows
from mixopt.fitting.fit import fit
from mixopt.fitting.runs import Runs, join_tables
from mixopt.fitting.tables import table_of
from mixopt.objective import measure_noise
from mixopt.surrogates import get_surrogate

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
