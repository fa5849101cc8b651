"""What a run is worth: values against brute force, slopes against differences, and what runs under way change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import norm

from mixopt.acquisition.ascent import candidates, climb, maximize
from mixopt.acquisition.choose import Improving, Informing, predicted_optimum
from mixopt.acquisition.improvement import Improvement, log_improvement
from mixopt.acquisition.knowledge import Knowledge

KINDS = pytest.mark.parametrize("kind", ["mean", "noise_scaled", "worst_case"])


def slopes_by_differences(function: Any, points: np.ndarray, step: float = 1e-6) -> np.ndarray:
    found = np.empty_like(points)
    for unit in range(points.shape[1]):
        move = np.zeros(points.shape[1])
        move[unit] = step
        found[:, unit] = (function(points + move)[0] - function(points - move)[0]) / (2 * step)
    return found


def inside(coordinates: Any, count: int, seed: int = 0) -> np.ndarray:
    """Points away from the edges, where slopes are not held."""
    points = coordinates.sample(count, np.random.default_rng(seed))
    return np.asarray(0.8 * points + 0.2 / points.shape[1])


def test_log_improvement_is_exact_and_survives_far_from_anything_good() -> None:
    z = np.linspace(-6, 6, 49)
    assert np.allclose(log_improvement(z), np.log(norm.pdf(z) + z * norm.cdf(z)), atol=1e-6)
    far = log_improvement(np.array([-1e2, -1e3, -1e5]))
    # phi(z) / z^2 to first order.
    assert np.allclose(far, norm.logpdf([-1e2, -1e3, -1e5]) - 2 * np.log([1e2, 1e3, 1e5]), rtol=1e-6)
    steps = log_improvement(np.linspace(-1.001, -0.999, 41))
    assert np.all(np.diff(steps) > 0)
    assert np.ptp(np.diff(steps)) < 1e-6, "both formulas meet"


@KINDS
def test_slopes_are_those_of_differences(known: Any, kind: str) -> None:
    beliefs = known(kind).beliefs
    coordinates, rng = beliefs.coordinates, np.random.default_rng(0)
    points, some = inside(coordinates, 4), coordinates.weights(coordinates.sample(5, rng))
    waiting = beliefs.under_way(some[:2], 0, 32, rng)
    functions = {
        "improvement": Improvement.over(beliefs, some, np.ones(5, dtype=bool), 32, rng),
        "knowledge": Knowledge.about(beliefs, some, rng.standard_normal((32, 3)), 0, True),
        "knowledge given runs under way": Knowledge.about(waiting, some, rng.standard_normal((32, 3)), 0, False),
        "mean": beliefs.mean_and_slopes,
    }
    for name, function in functions.items():
        expected = slopes_by_differences(function, points)
        assert np.allclose(function(points)[1], expected, atol=2e-6 * np.abs(expected).max()), name


def test_slopes_by_units_of_given_shares(known: Any) -> None:
    k = known("mean", grouped=True)
    points = inside(k.coordinates, 3)
    assert points.shape[1] < len(k.coordinates.names)
    function = k.beliefs.mean_and_slopes
    expected = slopes_by_differences(function, points)
    assert np.allclose(function(points)[1], expected, atol=2e-6 * np.abs(expected).max())


@KINDS
def test_improvement_is_what_brute_force_says(known: Any, kind: str) -> None:
    """Joint draws of the mixtures measured and the new one, without any formula: 200,000 draws, five standard errors."""
    beliefs = known(kind).beliefs
    rng = np.random.default_rng(1)
    weights = beliefs.coordinates.weights(beliefs.coordinates.sample(4, rng))
    drawn = beliefs.objective.value(beliefs.draw(weights, 200_000, np.random.default_rng(9)))
    gains = np.maximum(drawn[:3].min(axis=0) - drawn[3], 0.0)
    # Many paths, so that their own chance is below that of the brute force.
    improvement = Improvement.over(beliefs, weights[:3], np.ones(3, dtype=bool), 20_000, np.random.default_rng(2))
    value = float(np.exp(improvement.values(beliefs.coordinates.points(weights[3:])))[0])
    error = gains.std() / np.sqrt(20_000)
    slack = 0.02 * gains.mean() if kind == "worst_case" else 0.0  # the smoothed edge
    assert abs(value - gains.mean()) < 5 * error + slack


@pytest.mark.parametrize("kind", ["mean", "worst_case"])
def test_knowledge_is_what_refitting_says(known: Any, kind: str) -> None:
    """For each of the outcomes that a run may have, the process is conditioned on it anew, and the least prediction is looked up."""
    beliefs = known(kind).beliefs
    rng = np.random.default_rng(3)
    weights = beliefs.coordinates.weights(beliefs.coordinates.sample(6, rng))
    answers, new = weights[:5], weights[5:]
    half = rng.standard_normal((8, 3))
    normal = np.concatenate([half, -half])
    value = Knowledge.about(beliefs, answers, normal, 0, True).values(beliefs.coordinates.points(new))[0]
    means, variances = beliefs.moments(new)
    outcomes = means + np.sqrt(variances + beliefs.noise(0))[:, None] * normal
    features = beliefs.coordinates
    assert features is not None
    processes = beliefs.processes
    from mixopt.acquisition.conditioned import features_of

    after = np.stack(
        [
            process.given(features_of(new), np.zeros(1, dtype=np.int64), outcomes[:, :, metric], process.parameters.noise[0]).moments(
                features_of(np.concatenate([answers, new])), np.zeros(6, dtype=np.int64)
            )[0]
            for metric, process in enumerate(processes)
        ],
        axis=2,
    )
    now = beliefs.objective.value(beliefs.moments(answers)[0]).min()
    expected = now - beliefs.objective.value(after).min(axis=0).mean()
    assert value == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_runs_under_way_are_not_asked_for_again(known: Any) -> None:
    k = known()
    names = k.coordinates.names
    start = [Improving.start(k.beliefs, np.zeros((0, len(names))), [], np.random.default_rng(0)) for _ in range(2)]
    first = start[0].best([0], k.coordinates)[1][0]
    assert np.array_equal(first, start[1].best([0], k.coordinates)[1][0]), "the same random state, the same point"
    chosen = k.coordinates.weights(first[None])
    second = start[0].given(0, chosen).best([0], k.coordinates)[1][0]
    assert 0.5 * np.abs(second - first).sum() > 0.02
    before, after = start[0].improvement, start[0].given(0, chosen).improvement
    assert after.values(first[None])[0] < before.values(first[None])[0] - 1


@pytest.mark.parametrize("grouped", [False, True])
def test_whatever_is_chosen_is_feasible(known: Any, grouped: bool) -> None:
    k = known("mean", grouped=grouped)
    improving = Improving.start(k.beliefs, np.zeros((0, 6)), [], np.random.default_rng(0))
    informing = Informing.start(k.beliefs, np.zeros((0, 6)), [], [1.0], np.random.default_rng(0))
    points = np.concatenate([improving.best([0], k.coordinates)[1], informing.best([0], k.coordinates)[1], informing.good])
    weights = np.array([k.coordinates.mixture(point).array() for point in points])
    assert np.all(np.abs(weights.sum(axis=1) - 1) < 1e-12)
    assert k.coordinates.space.contains(weights, 1e-9).all()


def test_climbing_ends_no_lower_than_it_began_and_as_high_as_a_thousand_candidates(known: Any) -> None:
    k = known()
    rng = np.random.default_rng(5)
    start = k.coordinates.sample(3, rng)

    def negative(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, slopes = k.beliefs.mean_and_slopes(points)
        return -values, -slopes

    found, values = climb(negative, k.coordinates, start)
    assert np.all(values >= negative(start)[0])
    best = predicted_optimum(k.beliefs, found[:0], rng)
    many = k.coordinates.sample(4000, rng)
    assert k.beliefs.mean(best)[0] <= k.beliefs.mean(many).min()
    points, ranked = maximize(negative, lambda points: negative(points)[0], k.coordinates, candidates(k.coordinates, found, rng)[:2], rng)
    assert np.all(np.diff(ranked) <= 0)
    assert len(points) == len(ranked)
