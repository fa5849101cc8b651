"""Processes as acquisition functions see them: the surrogate's own numbers, and conditioning on more points against conditioning by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from mixopt.acquisition.conditioned import features_of, of_sources
from mixopt.mixture import FloatArray
from mixopt.surrogates.multi_source_gp import FittedSources, MultiSourceGP
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

Known = Callable[..., object]
CHEAP, DEAR = Source("trained", "1M", 1_000_000), Source("trained", "8M", 1_000_000)
DOMAINS = ("a", "b", "c", "d")


def test_moments_are_the_surrogates(known) -> None:  # type: ignore[no-untyped-def]
    k = known()
    weights = np.random.default_rng(1).dirichlet(np.ones(6), 20)
    means, variances = k.beliefs.moments(weights)
    points = Points(k.coordinates.names, weights[:, None], (k.fitted_source,) * 20)
    posterior = k.fitted.posterior(points)
    assert np.allclose(means[:, 0], posterior.mean, atol=1e-6, rtol=0)
    assert np.allclose(np.sqrt(variances), posterior.std, atol=1e-6, rtol=1e-6)


def test_draws_have_the_posteriors_covariance(known) -> None:  # type: ignore[no-untyped-def]
    k = known()
    weights = np.random.default_rng(1).dirichlet(np.ones(6), 3)
    points = Points(k.coordinates.names, weights[:, None], (k.fitted_source,) * 3)
    ours = k.beliefs.draw(weights, 40_000, np.random.default_rng(0))[:, :, 0]
    theirs = k.fitted.posterior(points).sample(40_000, 0)[:, :, 0].T
    # The std of a covariance from 40,000 draws is below 1% of the product of the stds; 5 of them.
    scale = np.outer(ours.std(axis=1), ours.std(axis=1))
    assert np.all(np.abs(np.cov(ours) - np.cov(theirs)) < 0.05 * scale)


def test_given_a_draw_its_points_hold_it_and_others_move_with_it(known) -> None:  # type: ignore[no-untyped-def]
    k = known()
    rng = np.random.default_rng(2)
    at, other = rng.dirichlet(np.ones(6), 2), rng.dirichlet(np.ones(6), 3)
    drawn = k.beliefs.draw(at, 5, rng)
    given = k.beliefs.given(at, drawn)
    means, variances = given.moments(at)
    scale = np.array([process.scale for process in k.beliefs.processes])
    assert np.all(np.abs(means - drawn) < 0.01 * scale)
    assert np.all(np.sqrt(variances) < 0.01 * scale)
    # By hand: Gaussian conditioning of the posterior at the other points on its values at these.
    points = Points(k.coordinates.names, np.concatenate([other, at])[:, None], (k.fitted_source,) * 5)
    posterior = k.fitted.posterior(points)
    factor = posterior.factor(0)
    joint = factor @ factor.T
    gain = joint[:3, 3:] @ np.linalg.inv(joint[3:, 3:])
    expected = posterior.mean[:3, 0][:, None] + gain @ (drawn[:, :, 0] - posterior.mean[3:, 0][:, None])
    assert np.allclose(given.moments(other)[0][:, :, 0], expected, atol=2e-3 * scale[0])
    left = joint[:3, :3] - gain @ joint[3:, :3]
    assert np.allclose(given.moments(other)[1][:, 0], np.diag(left), rtol=0.02, atol=1e-8)


def of_two(agree: bool) -> tuple[FittedSources, Swarm, FloatArray]:
    rng = np.random.default_rng(3)
    weights = rng.dirichlet(np.ones(4), 40)
    dear = np.log(weights[:, 0] + 0.1) + weights[:, 1]
    cheap = dear + 0.5 if agree else np.sin(25 * weights).sum(axis=1)
    losses = np.concatenate([cheap[:28], dear[28:]]) + rng.normal(0, 0.01, 40)
    swarms = [
        Swarm.from_arrays(
            DOMAINS, weights[rows, None], ["x"], losses[rows, None], source, trial_ids=[f"{source.size}-{row:02d}" for row in rows]
        )
        for source, rows in ((CHEAP, range(28)), (DEAR, range(28, 40)))
    ]
    swarm = Swarm.of_tables(DOMAINS, swarms[0].runs.vstack(swarms[1].runs), swarms[0].losses.vstack(swarms[1].losses))
    fitted = MultiSourceGP().fit(swarm, ["x"])
    assert isinstance(fitted, FittedSources)
    return fitted, swarm, rng.dirichlet(np.ones(4), 15)


@pytest.mark.parametrize("agree", [True, False])
def test_moments_of_several_sources_are_the_surrogates(agree: bool) -> None:
    fitted, _, weights = of_two(agree)
    assert bool(fitted.fits[0][1]) is not agree, "one case in which the answer's source answers alone, and one in which it does not"
    process, numbers = of_sources(fitted, 0, (CHEAP, DEAR))
    for source, number in zip((CHEAP, DEAR), numbers, strict=True):
        if source == CHEAP and not agree:
            continue
        means, variances = process.moments(features_of(weights), np.full(15, number))
        posterior = fitted.posterior(Points(DOMAINS, weights[:, None], (source,) * 15))
        assert np.allclose(means[:, 0], posterior.mean[:, 0], atol=1e-6, rtol=0)
        assert np.allclose(np.sqrt(variances), posterior.std[:, 0], atol=1e-6, rtol=1e-6)


def test_a_source_that_answers_alone_learns_nothing_from_others() -> None:
    fitted, _, weights = of_two(agree=False)
    process, (cheap, dear) = of_sources(fitted, 0, (CHEAP, DEAR))
    features = features_of(weights)
    more = process.given(features, np.full(15, cheap), np.full((15, 1), 5.0))
    assert np.array_equal(process.moments(features, np.full(15, dear))[1] > 0, np.ones(15, dtype=bool))
    assert np.allclose(more.moments(features, np.full(15, dear))[0], process.moments(features, np.full(15, dear))[0], atol=1e-9)
