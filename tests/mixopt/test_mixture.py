"""Mixtures and schedules: on the simplex, by name, never by position."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import ConfigError
from mixopt.mixture import Mixture, Schedule

raw_weights = st.lists(st.floats(0.0, 1.0), min_size=2, max_size=12).filter(lambda weights: sum(weights) > 1e-3)


def mixture_of(weights: list[float]) -> Mixture:
    total = sum(weights)
    return Mixture(tuple(f"d{i}" for i in range(len(weights))), tuple(weight / total for weight in weights))


@given(raw_weights)
def test_weights_sum_to_one_to_the_last_bit_that_matters(weights: list[float]) -> None:
    assert abs(sum(mixture_of(weights).weights) - 1) < 1e-12


@given(raw_weights, st.randoms())
def test_reordering_keeps_every_domain_with_its_weight(weights: list[float], random) -> None:
    mixture = mixture_of(weights)
    names = list(mixture.domains)
    random.shuffle(names)
    shuffled = mixture.reordered(names)
    assert shuffled.domains == tuple(names)
    assert shuffled.as_dict() == pytest.approx(mixture.as_dict(), abs=1e-12)


@pytest.mark.parametrize(
    ("domains", "weights", "message"),
    [
        (("a", "b"), (0.5, 0.6), "sum to 1.1"),
        (("a", "b"), (-0.1, 1.1), "'a' is -0.1"),
        (("a", "b"), (float("nan"), 1.0), "'a' is nan"),
        (("a", "a"), (0.5, 0.5), "repeat in a mixture: a"),
        (("a", "b"), (1.0,), "2 domains and 1 weights"),
        ((), (), "one weight per domain"),
    ],
)
def test_what_is_not_a_mixture_is_refused_with_the_reason(domains: tuple[str, ...], weights: tuple[float, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Mixture(domains, weights)
    assert message in str(caught.value)


def test_reordering_to_other_domains_is_refused() -> None:
    with pytest.raises(ConfigError):
        Mixture.of({"a": 0.5, "b": 0.5}).reordered(("a", "c"))


def test_the_average_of_a_schedule_weighs_phases_by_their_tokens() -> None:
    early, late = Mixture.of({"a": 1.0, "b": 0.0}), Mixture.of({"a": 0.0, "b": 1.0})
    schedule = Schedule((early, late), (0.75, 0.25))
    assert schedule.average().as_dict() == pytest.approx({"a": 0.75, "b": 0.25})
    assert schedule.array().shape == (2, 2)


@pytest.mark.parametrize("fractions", [(0.5, 0.6), (1.0,), (1.2, -0.2)])
def test_fractions_must_share_out_the_run(fractions: tuple[float, ...]) -> None:
    mixture = Mixture.of({"a": 0.5, "b": 0.5})
    with pytest.raises(ConfigError):
        Schedule((mixture, mixture), fractions)


def test_phases_list_the_same_domains_in_the_same_order() -> None:
    with pytest.raises(ConfigError):
        Schedule((Mixture.of({"a": 0.5, "b": 0.5}), Mixture.of({"b": 0.5, "a": 0.5})), (0.5, 0.5))


def test_a_constant_schedule_is_its_mixture() -> None:
    mixture = Mixture.of({"a": 0.3, "b": 0.7})
    assert np.array_equal(Schedule.constant(mixture).array(), [[0.3, 0.7]])
