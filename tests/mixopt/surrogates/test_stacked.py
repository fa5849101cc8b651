"""The stack: weights against brute force, its own errors out of fold against the slow way, what it says of itself."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest

from mixopt.mixture import FloatArray
from mixopt.surrogates import stacked
from mixopt.surrogates.cross_validation import fit_with_out_of_fold, out_of_fold
from mixopt.surrogates.stacked import FLOOR, PULL, Stacked, _trusted, find_weights, mix, put_together
from mixopt.swarm import Swarm
from mixopt.trial import Source

NAMES = ("gaussian_process", "ridge", "power_law")
FLOORS = np.array([FLOOR.get(name, 0.0) for name in NAMES])


def swarm(count: int, seed: int = 0, noise: float = 0.01) -> Swarm:
    rng = np.random.default_rng(seed)
    weights = rng.dirichlet(np.full(4, 0.7), count)
    losses = 1 + (0.1 + weights @ np.array([[1.0, 0.2], [0.5, 1.0], [0.2, 0.5], [0.1, 0.1]])) ** -0.5
    losses += noise * rng.normal(size=losses.shape)
    return Swarm.from_arrays(("a", "b", "c", "d"), weights[:, None], ("one", "two"), losses, Source("trained", "nano", 10))


def test_weights_minimize_squared_error_plus_pull() -> None:
    rng = np.random.default_rng(0)
    measured = rng.normal(size=30)
    means = measured[:, None] + rng.normal(size=(30, 3)) * [0.3, 0.5, 0.25]
    found = find_weights(measured, means, _trusted(NAMES), FLOORS)

    def loss(weights: FloatArray) -> float:
        least = np.mean((measured[:, None] - means) ** 2, axis=0).min()
        error = float(np.mean((measured - means @ weights) ** 2) / least)
        return error + PULL / 30 * float(((weights - _trusted(NAMES)) ** 2).sum())

    grid = [np.array([1 - b - c, b, c]) for b, c in itertools.product(np.linspace(0, 1, 201), repeat=2) if b + c <= 1 and c >= 0.1]
    best = min(grid, key=loss)
    assert loss(found) <= loss(best) + 1e-9
    np.testing.assert_allclose(found, best, atol=0.01)


@pytest.mark.parametrize("unit", [2.0**-40, 2.0**20])
def test_a_stack_does_not_depend_on_the_unit_of_the_metric(unit: float) -> None:
    rng = np.random.default_rng(3)
    measured = 3 + rng.normal(size=30)
    means = measured[:, None] + rng.normal(size=(30, 3)) * [0.3, 0.5, 0.25]
    variances = np.full((30, 3), 0.1)
    plain = put_together(measured, means, variances, _trusted(NAMES), FLOORS)
    found = put_together(unit * measured, unit * means, unit**2 * variances, _trusted(NAMES), FLOORS)
    np.testing.assert_allclose(found.weights, plain.weights, rtol=1e-9)
    assert found.spread == pytest.approx(plain.spread)


def test_the_power_law_keeps_its_floor_and_weights_sum_to_one() -> None:
    rng = np.random.default_rng(1)
    measured = rng.normal(size=400)
    means = np.stack([measured + 0.01 * rng.normal(size=400), rng.normal(size=400), 5 * rng.normal(size=400)], axis=1)
    weights = find_weights(measured, means, _trusted(NAMES), FLOORS)
    assert weights.sum() == pytest.approx(1)
    assert weights[2] == pytest.approx(0.1)
    assert weights[0] > 0.85


def test_the_mixture_has_the_moments_of_draws_from_its_members() -> None:
    weights, means, variances = np.array([0.6, 0.3, 0.1]), np.array([[0.0, 1.0, -2.0]]), np.array([[0.5, 0.2, 1.0]])
    rng = np.random.default_rng(2)
    member = rng.choice(3, p=weights, size=200_000)
    draws = means[0, member] + np.sqrt(variances[0, member]) * rng.normal(size=200_000)
    mean, variance = mix(weights, means, variances)
    assert draws.mean() == pytest.approx(mean[0], abs=0.02)
    assert draws.var() == pytest.approx(variance[0], rel=0.03)


def test_its_own_errors_are_those_of_refitting_the_whole_stack_per_fold() -> None:
    """Not the same numbers, for the inner folds differ, but the same errors: root mean square within a quarter, predictions correlated above .95."""
    trials = swarm(60)
    _, own, _ = fit_with_out_of_fold(Stacked(), trials, trials.metrics, 10, 0)
    assert own is not None
    slow = out_of_fold(Stacked(), trials, trials.metrics, 10, 0)
    np.testing.assert_array_equal(own.measured, slow.measured)
    for metric in range(2):
        sizes = [float(np.sqrt(np.mean((result.mean - result.measured)[:, metric] ** 2))) for result in (own, slow)]
        assert 0.75 < sizes[0] / sizes[1] < 1.33
        assert np.corrcoef(own.mean[:, metric], slow.mean[:, metric])[0, 1] > 0.95


def test_too_few_trials_for_laws_and_too_few_to_check_are_said() -> None:
    few = Stacked().fit(swarm(5), ("one",))
    assert few.names == ("gaussian_process", "ridge")
    assert "5 trials of 4 weights" in few.describe()["left_out"]
    assert "too few for power_law" in few.left_out
    enough = Stacked().fit(swarm(6), ("one",))
    assert enough.names == NAMES
    assert enough.left_out == ""


def test_what_it_says_of_itself_is_json_and_true() -> None:
    fitted = Stacked().fit(swarm(40), ("one", "two"))
    said = json.loads(json.dumps(fitted.describe()))
    assert said["members"] == list(NAMES)
    for column, metric in enumerate(("one", "two")):
        weights = said["metrics"][metric]["weights"]
        assert sum(weights.values()) == pytest.approx(1, abs=1e-3)
        np.testing.assert_allclose(list(weights.values()), fitted.weights[:, column], atol=1e-4)
        assert all(-1 <= value <= 1 for value in said["metrics"][metric]["spearman"].values())


def test_a_member_that_knows_the_truth_gets_the_weight() -> None:
    """A law that the losses follow without noise beats the process: it takes most of the weight in spite of the pull."""
    rng = np.random.default_rng(5)
    weights = rng.dirichlet(np.full(6, 0.3), 120)
    losses = (0.01 + weights @ np.array([3.0, 0.0, 0.0, 1.0, 0.0, 0.2])) ** -0.7
    trials = Swarm.from_arrays(tuple("abcdef"), weights[:, None], ("one",), losses[:, None], Source("trained", "nano", 10))
    fitted = Stacked().fit(trials, ("one",))
    assert fitted.weights[2, 0] > 0.5


def test_members_can_be_chosen() -> None:
    chosen: Sequence[str] = ("ridge", "scheffe")
    fitted = Stacked(chosen).fit(swarm(30), ("one",))
    assert fitted.names == tuple(chosen)
    assert stacked.FLOOR.keys() <= set(NAMES)
