"""The numbers that say how far to trust predictions, against the slow and obvious way to each."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

import mixopt
from mixopt.fitting.diagnostics import BASELINES, MEANINGS, best_baseline, linear_predictions, scores, single_weight_predictions
from mixopt.fitting.fit import FitResult
from mixopt.fitting.runs import Runs
from mixopt.surrogates import get_surrogate
from mixopt.surrogates.cross_validation import checked_folds, out_of_fold, rank_correlation
from mixopt.surrogates.observations import mixture_groups
from mixopt.surrogates.stacked import FOLDS_OF_FEW, Stacked, folds_for

RNG = np.random.default_rng(3)
MEASURED = RNG.normal(3, 1, 50)
PREDICTED = MEASURED + RNG.normal(0, 0.5, 50)


@pytest.fixture(scope="module")
def result(runs: Runs) -> FitResult:
    return mixopt.fit(runs, surrogate="ridge")


def test_pairwise_accuracy_counts_pairs() -> None:
    right = [np.sign(PREDICTED[i] - PREDICTED[j]) == np.sign(MEASURED[i] - MEASURED[j]) for i, j in combinations(range(50), 2)]
    assert scores(PREDICTED, MEASURED)["pairwise_accuracy"] == pytest.approx(np.mean(right))


def test_regret_is_of_the_run_predicted_best() -> None:
    assert scores(-np.arange(4.0), np.array([1.0, 2.0, 5.0, 3.0]))["regret_at_1_percent"] == pytest.approx(50)
    assert scores(np.arange(4.0), np.array([1.0, 2.0, 5.0, 3.0]))["regret_at_1_percent"] == 0
    # Of a tie any could be picked.
    assert scores(np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 2.0, 5.0, 3.0]))["regret_at_1_percent"] == pytest.approx(12.5)


def test_lower_tail_optimism_is_of_the_tenth_predicted_best_and_at_least_four() -> None:
    best = sorted(range(50), key=lambda row: PREDICTED[row])[:5]
    assert scores(PREDICTED, MEASURED)["lower_tail_optimism"] == pytest.approx(np.mean([MEASURED[row] - PREDICTED[row] for row in best]))
    promised = np.arange(6.0)
    assert scores(promised, promised + np.array([1, 1, 1, 1, 0, 0]))["lower_tail_optimism"] == pytest.approx(1)


def test_r2_and_coverage() -> None:
    found = scores(PREDICTED, MEASURED, np.full(50, 0.5))
    assert found["r2"] == pytest.approx(1 - np.mean((PREDICTED - MEASURED) ** 2) / np.var(MEASURED))
    assert found["coverage90"] == np.mean(np.abs(PREDICTED - MEASURED) <= 1.6448536 * 0.5)
    assert scores(np.full(50, MEASURED.mean()), MEASURED)["r2"] == pytest.approx(0)


def test_a_rule_that_only_ranks_has_no_values() -> None:
    found = scores(PREDICTED, MEASURED, values=False)
    assert (found["r2"], found["lower_tail_optimism"], found["coverage90"]) == (None, None, None)
    assert found["spearman"] == pytest.approx(scores(100 * PREDICTED, MEASURED)["spearman"])


def test_constants_rank_nothing() -> None:
    assert scores(np.zeros(9), np.arange(9.0))["spearman"] == 0
    assert scores(np.zeros(9), np.arange(9.0))["pairwise_accuracy"] == 0.5
    found = scores(np.arange(9.0), np.zeros(9))
    assert (found["spearman"], found["regret_at_1_percent"], found["r2"]) == (0, 0, None)


def test_linear_baseline_is_least_squares_on_the_other_folds() -> None:
    shares, folds = RNG.dirichlet(np.ones(3), 30), np.arange(30) % 5
    measured = np.column_stack([shares @ [1.0, 2.0, 4.0], RNG.normal(size=30)])
    found = linear_predictions(shares, measured, folds)
    np.testing.assert_allclose(found[:, 0], measured[:, 0], atol=1e-12)
    for row in range(30):
        rest = folds != folds[row]
        normal = np.linalg.solve(shares[rest].T @ shares[rest], shares[rest].T @ measured[rest])
        np.testing.assert_allclose(found[row], shares[row] @ normal, atol=1e-9)


def test_single_weight_baseline_learns_domain_and_sign_on_the_other_folds() -> None:
    shares, folds = RNG.dirichlet(np.ones(4), 40), np.arange(40) % 4
    measured = np.column_stack([3 - 2 * shares[:, 1], np.exp(3 * shares[:, 2])])
    found = single_weight_predictions(shares, measured, folds)
    np.testing.assert_allclose(found[:, 0], measured[:, 0], atol=1e-12)
    assert rank_correlation(found[:, 1], measured[:, 1]) > 0.97
    # What a fold holds has no say in its own predictions.
    moved = measured.copy()
    moved[folds == 0] = 100 * RNG.normal(size=(10, 2))
    np.testing.assert_array_equal(single_weight_predictions(shares, moved, folds)[folds == 0], found[folds == 0])
    np.testing.assert_array_equal(
        linear_predictions(shares, moved, folds)[folds == 0], linear_predictions(shares, measured, folds)[folds == 0]
    )


def test_a_weight_that_never_varies_predicts_the_mean() -> None:
    measured = np.arange(8.0).reshape(-1, 1)
    found = single_weight_predictions(np.full((8, 2), 0.5), measured, np.arange(8) % 2)
    np.testing.assert_allclose(found[:, 0], np.where(np.arange(8) % 2 == 0, measured[1::2].mean(), measured[::2].mean()))


def test_diagnostics_hold_every_number_for_every_metric_and_the_objective(result: FitResult, runs: Runs) -> None:
    body = result.diagnostics
    assert set(body) == {
        *("surrogate", "runs", "mixtures", "domains", "judged_on", "noise", "folds", "objective", "metrics", "meaning", "notes"),
    }
    assert (body["runs"], body["mixtures"], body["domains"], body["folds"]) == (28, 25, 3, 5)
    assert list(body["metrics"]) == sorted(runs.swarm.metrics)
    assert body["noise"]["from"] == "repeats"
    assert set(body["meaning"]) == {*MEANINGS, "baselines"}
    for entry in (body["objective"], *body["metrics"].values()):
        assert set(entry) == {*MEANINGS, "baselines"}
        assert set(entry["baselines"]) == set(BASELINES)
        assert all(set(baseline) == set(MEANINGS) for baseline in entry["baselines"].values())
        assert all(isinstance(entry[key], float) for key in MEANINGS)
        assert entry["spearman"] > 0.8


def test_they_are_those_of_an_independent_cross_validation(result: FitResult, runs: Runs) -> None:
    errors = out_of_fold(get_surrogate("ridge"), runs.swarm, ("web_loss",), folds=5, seed=0)
    expected = scores(errors.mean[:, 0], errors.measured[:, 0], errors.std[:, 0])
    found = result.diagnostics["metrics"]["web_loss"]
    assert {key: found[key] for key in MEANINGS} == {key: pytest.approx(value) for key, value in expected.items()}
    folds = checked_folds(mixture_groups(runs.swarm), 5, 0)
    values = runs.swarm.values(("web_loss",))
    shares = runs.swarm.points().averages()
    for name, predict in (("linear", linear_predictions), ("best_single_weight", single_weight_predictions)):
        expected = scores(predict(shares, values, folds)[:, 0], values[:, 0])
        assert found["baselines"][name] == {key: value if value is None else pytest.approx(value) for key, value in expected.items()}


@pytest.mark.parametrize("surrogate", ["auto", Stacked(("gaussian_process", "ridge"))], ids=["by name", "an object"])
def test_baselines_of_a_stack_are_judged_on_the_folds_that_it_made(surrogate: str | Stacked, runs: Runs) -> None:
    """A stack of few runs makes ten folds where five are asked for."""
    assert folds_for(28) == FOLDS_OF_FEW == 10
    body = mixopt.fit(runs, surrogate=surrogate).diagnostics
    assert body["folds"] == 10
    values, shares = runs.swarm.values(("web_loss",)), runs.swarm.points().averages()
    linear = linear_predictions(shares, values, checked_folds(mixture_groups(runs.swarm), 10, 0))
    assert body["metrics"]["web_loss"]["baselines"]["linear"]["r2"] == pytest.approx(scores(linear[:, 0], values[:, 0])["r2"])
    weights = body["surrogate"]["metrics"]["web_loss"]["weights"]
    assert sum(weights.values()) == pytest.approx(1, abs=1e-3)
    assert set(weights) == set(body["surrogate"]["members"])


def test_the_best_baseline_is_the_one_that_ranks_best() -> None:
    entry = {"baselines": {"linear": {"spearman": 0.7}, "most_diverse": {"spearman": -0.9}, "best_single_weight": {"spearman": 0.6}}}
    assert best_baseline(entry) == ("linear", 0.7)
