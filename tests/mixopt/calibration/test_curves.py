"""Power laws: known ones are recovered, impossible ones are not made up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.calibration.curves import fit_power_law
from mixopt.calibration.resolution import resolvable_difference

TOKENS = np.array([12_500.0, 25_000, 50_000, 50_000, 100_000, 200_000])


@given(st.floats(0.0, 2.0), st.floats(0.3, 3.0), st.floats(0.1, 1.5))
def test_a_law_without_noise_is_recovered(floor: float, amplitude: float, exponent: float) -> None:
    losses = floor + amplitude * (TOKENS / 50_000) ** -exponent
    law = fit_power_law(TOKENS, losses)
    assert law is not None
    assert law.loss(50_000) == pytest.approx(floor + amplitude, rel=1e-3)
    assert law.gain(100_000, 2) == pytest.approx(amplitude * (2**-exponent - 4**-exponent), rel=0.02)
    assert law.exponent == pytest.approx(exponent, rel=0.05)
    assert law.points == 5


def test_losses_that_do_not_fall_follow_no_law() -> None:
    assert fit_power_law(TOKENS, np.full(len(TOKENS), 2.0)) is None
    assert fit_power_law(TOKENS, TOKENS / 1e5) is None


def test_two_token_counts_are_too_few() -> None:
    assert fit_power_law(np.array([1e4, 1e4, 2e4]), np.array([3.0, 3.0, 2.0])) is None


def test_the_resolvable_difference_is_found_four_times_out_of_five() -> None:
    """The approximation of the power of a t test, by simulation: 20,000 paired comparisons of 5 seeds, in which .8 is known within .003 (1 sigma)."""
    from scipy.special import stdtrit

    seeds, noise = 5, 0.3
    difference = resolvable_difference(noise, seeds)
    rng = np.random.default_rng(0)
    pairs = difference + rng.normal(0, noise, (20_000, seeds)) - rng.normal(0, noise, (20_000, seeds))
    t = pairs.mean(axis=1) / (pairs.std(axis=1, ddof=1) / math.sqrt(seeds))
    assert float((t > stdtrit(seeds - 1, 0.975)).mean()) == pytest.approx(0.8, abs=0.05)
    assert resolvable_difference(noise, 1) == math.inf
    assert resolvable_difference(noise, 3) > resolvable_difference(noise, 5)
