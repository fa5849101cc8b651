"""Ridge regression by one decomposition against the textbook's dense formulas."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.mixture import FloatArray
from mixopt.surrogates.linear_model import PENALTIES, Directions, _left_out_errors, fit_metric


def standardised(count: int, features: int, seed: int) -> FloatArray:
    z = np.random.default_rng(seed).normal(size=(count, features))
    z -= z.mean(axis=0)
    return np.asarray(z / np.sqrt((z**2).sum() / count))


@pytest.mark.parametrize(("count", "features"), [(12, 40), (40, 6), (20, 20)])
def test_coefficients_penalty_and_variance_are_those_of_the_dense_solution(count: int, features: int) -> None:
    z = standardised(count, features, 0)
    outputs = z @ np.random.default_rng(1).normal(size=features) + 0.3 * np.random.default_rng(2).normal(size=count)
    fit = fit_metric(Directions.of(z), outputs, np.arange(count))
    y = (outputs - outputs.mean()) / outputs.std()

    def evidence(penalty: float) -> float:
        kernel = z @ z.T + penalty * np.eye(count)
        return float(0.5 * count * np.log(y @ np.linalg.solve(kernel, y)) + 0.5 * np.linalg.slogdet(kernel)[1])

    penalty = PENALTIES[int(np.argmin([evidence(penalty) for penalty in PENALTIES]))]
    dense = np.linalg.solve(z.T @ z + penalty * np.eye(features), z.T @ y)
    directions = Directions.of(z)
    np.testing.assert_allclose(directions.features @ fit.coefficients, dense, atol=1e-8)
    # Posterior variance of one more point, in units of the signal's variance.
    point = np.random.default_rng(3).normal(size=features)
    kernel = np.linalg.inv(z @ z.T + penalty * np.eye(count))
    expected = point @ point - point @ z.T @ kernel @ z @ point
    along = point @ directions.features
    assert point @ point - along**2 @ fit.shrunk == pytest.approx(expected, abs=1e-8)


def test_errors_left_out_are_those_of_fits_without_the_mixture() -> None:
    """Every mixture twice: both its trials are left out together."""
    z = np.repeat(standardised(10, 4, 5), 2, axis=0)
    groups = np.repeat(np.arange(10), 2)
    y = np.random.default_rng(6).normal(size=20)
    directions, penalty = Directions.of(z), 0.7
    shrunk = directions.sizes**2 / (directions.sizes**2 + penalty)
    errors = _left_out_errors(directions, shrunk, directions.trials.T @ y, y, groups)
    for group in range(10):
        inside = groups == group
        rest = z[~inside]
        coefficients = np.linalg.solve(rest.T @ rest + penalty * np.eye(4), rest.T @ y[~inside])
        np.testing.assert_allclose(errors[inside], y[inside] - z[inside] @ coefficients, atol=1e-5)
