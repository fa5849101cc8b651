"""The parametric laws: derivatives against differences, parameters of a known law, robustness to a few mixtures that follow none."""

from __future__ import annotations

import numpy as np
import pytest

from mixopt.mixture import FloatArray
from mixopt.surrogates.log_linear import LogLinear
from mixopt.surrogates.parametric import Law, fit_law
from mixopt.surrogates.power_law import PowerLaw

LAWS: list[Law] = [PowerLaw(), LogLinear()]


def mixtures(count: int, seed: int) -> FloatArray:
    weights = np.random.default_rng(seed).dirichlet(np.full(4, 0.7), count)
    weights[weights < 0.02] = 0.0
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("law", LAWS)
def test_derivatives_are_those_of_the_law(law: Law) -> None:
    mean, _ = law.prior(4)
    theta = mean + 0.3 * np.random.default_rng(1).standard_normal((3, len(mean)))
    x = mixtures(7, 2)
    _, jacobian = law.evaluate(theta, x)
    for parameter in range(len(mean)):
        step = np.zeros(len(mean))
        step[parameter] = 1e-6
        difference = (law.evaluate(theta + step, x)[0] - law.evaluate(theta - step, x)[0]) / 2e-6
        np.testing.assert_allclose(jacobian[:, :, parameter], difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_without_noise_is_found(law: Law) -> None:
    """Not its parameters, which are partly the prior's, but what it says of unseen mixtures: within 2% of the spread."""
    mean, _ = law.prior(4)
    theta = (mean + 0.4 * np.random.default_rng(5).standard_normal(len(mean)))[None]
    truth = law.evaluate(theta, mixtures(60, 3))[0][0]
    fit = fit_law(law, mixtures(60, 3), truth, np.arange(60))
    unseen = mixtures(100, 4)
    predicted = fit.center + fit.scale * law.evaluate(fit.theta[None], unseen)[0][0]
    assert np.abs(predicted - law.evaluate(theta, unseen)[0][0]).max() < 0.02 * np.ptp(truth)


@pytest.mark.parametrize("law", LAWS)
def test_a_few_mixtures_that_follow_no_law_do_not_bend_it(law: Law) -> None:
    """Four of 60 losses off by the whole spread: the others are still met within 5% of it."""
    mean, _ = law.prior(4)
    x = mixtures(60, 3)
    truth = law.evaluate((mean + 0.4 * np.random.default_rng(5).standard_normal(len(mean)))[None], x)[0][0]
    measured = truth.copy()
    measured[[3, 17, 31, 45]] += np.ptp(truth)
    fit = fit_law(law, x, measured, np.arange(60))
    predicted = fit.center + fit.scale * law.evaluate(fit.theta[None], x)[0][0]
    assert np.median(np.abs(predicted - truth)) < 0.05 * np.ptp(truth)
