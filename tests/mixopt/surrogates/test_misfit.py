"""The misfit of rigid surrogates: shared by neighbours, not by strangers; a mixture never differs from itself."""

from __future__ import annotations

import numpy as np

from mixopt.surrogates import get_surrogate
from mixopt.surrogates.misfit import REACH, misfit_factor
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

SOURCE = Source("trained", "nano", 10)


def test_correlation_falls_with_the_hellinger_distance() -> None:
    near, far = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.0, 1.0])
    shifted = near + np.array([0.02, -0.02, 0.0])
    factor = misfit_factor(np.stack([near, shifted, far, near])[:, None])
    correlation = factor @ factor.T
    distance = 1 - np.sqrt(near) @ np.sqrt(shifted)  # squared
    np.testing.assert_allclose(correlation[0, 1], np.exp(-distance / (2 * REACH**2)), atol=1e-8)
    np.testing.assert_allclose(np.diag(correlation), 1, atol=1e-6)
    assert correlation[0, 1] > 0.99
    assert correlation[0, 2] < 1e-4
    np.testing.assert_allclose(correlation[0, 3], 1, atol=1e-6)


def test_sources_that_differ_share_less() -> None:
    schedules = np.full((2, 1, 2), 0.5)
    factor = misfit_factor(schedules, np.array([[0.0], [1.0]]))
    assert (factor @ factor.T)[0, 1] < 1e-4


def test_a_difference_of_neighbours_is_surer_than_its_ends() -> None:
    """A point of share moved: the power law's draws of the difference spread a fifth of what they do at each end, at most."""
    rng = np.random.default_rng(0)
    weights = rng.dirichlet(np.ones(4), 40)
    losses = 1 + (0.1 + weights @ np.array([1.0, 0.5, 0.2, 0.1])) ** -0.5 + 0.05 * np.sin(20 * weights[:, 0])
    swarm = Swarm.from_arrays(tuple("abcd"), weights[:, None], ("loss",), losses[:, None], SOURCE)
    here = np.full(4, 0.25)
    there = here + np.array([0.01, -0.01, 0.0, 0.0])
    for name in ("power_law", "ridge"):
        posterior = (
            get_surrogate(name).fit(swarm, ["loss"]).posterior(Points(tuple("abcd"), np.stack([here, there])[:, None], (SOURCE,) * 2))
        )
        draws = posterior.sample(2000, seed=1)[:, :, 0]
        assert (draws[:, 1] - draws[:, 0]).std() < 0.2 * posterior.std[0, 0], name
