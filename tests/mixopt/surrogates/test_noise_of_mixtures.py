"""Noise that depends on the mixture: found where repeats show it, not where they do not, and used by the process."""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.cross_validation import noise_at
from mixopt.surrogates.gaussian_process import GaussianProcess
from mixopt.surrogates.noise import LARGEST_RATIO, NoiseShape, fit_noise_shape
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

DOMAINS = ("a", "b", "c")
SOURCE = Source("trained", "nano", 10)


def repeated(mixtures: int, repeats: int, seed: int) -> tuple[FloatArray, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    x = np.random.default_rng(seed).dirichlet(np.full(3, 0.6), mixtures)
    return np.repeat(x, repeats, axis=0), np.repeat(np.arange(mixtures), repeats)


def test_a_noisy_corner_is_found() -> None:
    """30 mixtures of three seeds; noise std e^2 = 7.4 times as large at domain a as at c: the ratio is found within a factor of 2."""
    x, groups = repeated(30, 3, 0)
    std = 0.01 * np.exp(2 * x[:, 0])
    shape = fit_noise_shape(x, std * np.random.default_rng(1).normal(size=90), groups)
    assert shape is not None
    corners = np.sqrt(shape.at(np.eye(3)))
    assert 7.4 / 2 < corners[0] / corners[2] < 7.4 * 2
    assert abs(np.log(shape.at(x)).mean()) < 1e-9, "the geometric mean over the trials is 1"


def test_constant_noise_is_called_constant() -> None:
    """40 data sets without any dependence: a shape is found in at most 5 of them."""
    found = 0
    for seed in range(40):
        x, groups = repeated(12, 3, seed)
        found += fit_noise_shape(x, np.random.default_rng(1000 + seed).normal(size=36), groups) is not None
    assert found <= 5


def test_too_few_repeats_say_nothing() -> None:
    x, groups = repeated(2, 5, 0)
    assert fit_noise_shape(x, np.random.default_rng(0).normal(size=10), groups) is None
    x, groups = repeated(40, 1, 0)
    assert fit_noise_shape(x, np.random.default_rng(0).normal(size=40), groups) is None
    x, groups = repeated(10, 3, 0)
    assert fit_noise_shape(x, np.repeat(np.arange(10.0), 3), groups) is None, "no noise at all"


def test_extrapolation_is_bounded() -> None:
    shape = NoiseShape(np.array([50.0, -50.0, 0.0]), np.full(3, 1 / 3))
    np.testing.assert_allclose(shape.at(np.eye(3)), [LARGEST_RATIO, 1 / LARGEST_RATIO, 1.0])


def test_the_process_trusts_quiet_mixtures_more() -> None:
    """Noise std .005 at domain c and .1 at domain a, three seeds of 24 mixtures: told apart by a factor of 3 at least, and noise_std lies between."""
    x, groups = repeated(24, 3, 4)
    losses = 1 + 0.3 * x[:, 1] ** 0.5 + 0.005 * np.exp(3 * x[:, 0]) * np.random.default_rng(5).normal(size=len(groups))
    swarm = Swarm.from_arrays(DOMAINS, x[:, None], ("loss",), losses[:, None], SOURCE)
    fitted = GaussianProcess().fit(swarm, ["loss"])
    corners = noise_at(fitted, Points(DOMAINS, np.eye(3)[:, None], (SOURCE,) * 3))[:, 0]
    assert corners[0] > 3 * corners[2]
    assert corners[2] < fitted.noise_std[0] < corners[0]
