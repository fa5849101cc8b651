"""Token counts: natural mixture, UniMax against its definition, epochs, and unique tokens for epoch matching."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.domains import MINIMUM_UNIQUE_WINDOWS, Domain, DomainSet, unique_tokens_of
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.mixture import Mixture


def domains(tokens: list[float], budget: float, max_epochs: float = 4.0, prepared: int = 10_000_000) -> DomainSet:
    return DomainSet(tuple(Domain(f"d{i}", f"h{i}", prepared, count, max_epochs=max_epochs) for i, count in enumerate(tokens)), budget)


token_counts = st.lists(st.floats(1e6, 1e12), min_size=2, max_size=10)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=9))
def test_caps_that_fill_the_budget_exactly_leave_the_natural_mixture(tokens: list[float]) -> None:
    """Rounding may put the sum of the caps a hair below 1."""
    set_ = domains(tokens, 4 * sum(tokens))
    assert set_.unimax().array() == pytest.approx(set_.natural().array())


@given(token_counts, st.floats(0.01, 0.999))
def test_unimax_is_uniform_where_no_cap_binds_and_at_the_cap_elsewhere(tokens: list[float], share: float) -> None:
    budget = 4 * sum(tokens) * share
    set_ = domains(tokens, budget)
    weights, limits = set_.unimax().array(), set_.epoch_limits()
    assert weights.sum() == pytest.approx(1)
    assert np.all(weights <= limits * (1 + 1e-9))
    free = weights < limits * (1 - 1e-9)
    if free.any():
        level = weights[free].max()
        assert np.allclose(weights[free], level, rtol=1e-6)
        assert np.all(limits[~free] <= level * (1 + 1e-6))


def test_unimax_of_plenty_is_uniform() -> None:
    assert domains([1e12, 1e12, 1e12], 1e9).unimax().weights == pytest.approx((1 / 3,) * 3)


def test_a_budget_beyond_all_caps_is_infeasible_and_says_by_how_much() -> None:
    with pytest.raises(InfeasibleError, match="8e\\+06"):
        domains([1e6, 1e6], 1e9).unimax()


def test_epochs_are_tokens_drawn_over_tokens_there() -> None:
    epochs = domains([1e9, 3e9], 2e9).epochs(Mixture.of({"d0": 0.5, "d1": 0.5}))
    assert epochs == pytest.approx({"d0": 1.0, "d1": 1 / 3})


@given(st.integers(1, 400), st.floats(0.05, 1.0))
def test_a_proxy_repeats_a_domain_as_often_as_the_target_run(thousands: int, weight: float) -> None:
    set_ = domains([2e9, 6e9], 4e9, prepared=10**9)
    trial_tokens, window = thousands * 1000, 64
    unique = set_.unique_tokens(trial_tokens, window)["d0"]
    if unique.note == "":
        target_epochs = weight * 4e9 / 2e9
        proxy_epochs = weight * trial_tokens / unique.tokens
        assert proxy_epochs == pytest.approx(target_epochs, rel=window / unique.tokens)
    else:
        assert unique.note == "floored"
        assert unique.tokens == MINIMUM_UNIQUE_WINDOWS * window


def test_scarce_domains_are_floored_and_unprepared_ones_capped() -> None:
    set_ = DomainSet((Domain("scarce", "a", 10**7, 1e3), Domain("short", "b", 10_000, 1e9)), 1e9)
    unique = set_.unique_tokens(1_000_000, 64)
    assert (unique["scarce"].tokens, unique["scarce"].note) == (64 * 64, "floored")
    assert (unique["short"].tokens, unique["short"].note) == (10_000 // 64 * 64, "capped")


def test_names_are_distinct_and_at_least_two() -> None:
    with pytest.raises(ConfigError, match="repeat"):
        DomainSet((Domain("a", "1", 1, 1.0), Domain("a", "2", 1, 1.0)), 1.0)
    with pytest.raises(ConfigError, match="at least two"):
        DomainSet((Domain("a", "1", 1, 1.0),), 1.0)


@pytest.mark.parametrize(("prepared", "windows"), [(64 * 64, 63), (64 * 64 + 1, 64), (65, 1)])
def test_unique_tokens_are_no_more_than_the_sampler_can_show(prepared: int, windows: int) -> None:
    """A window of T tokens needs the token after it, too."""
    set_ = DomainSet((Domain("a", "a", prepared, 1e3), Domain("b", "b", 10**6, 1e3)), 1e9)
    assert set_.unique_tokens(1_000_000, 64)["a"].tokens == windows * 64


def repeated(tokens: list[float], repeats: list[float], budget: float) -> DomainSet:
    """Domains whose inventories hold every document so many times."""
    return DomainSet(
        tuple(Domain(f"d{i}", f"h{i}", 10**9, count, repeats=times) for i, (count, times) in enumerate(zip(tokens, repeats, strict=True))),
        budget,
    )


inventories = st.integers(2, 8).flatmap(
    lambda size: st.tuples(
        st.lists(st.floats(1e6, 1e12), min_size=size, max_size=size), st.lists(st.floats(1, 6), min_size=size, max_size=size)
    )
)


@given(inventories, st.floats(0.05, 0.6))
def test_repetition_in_the_inventory_counts_in_the_natural_mixture_and_not_as_unique_text(
    inventory: tuple[list[float], list[float]], share: float
) -> None:
    """The listed tokens say how often the run would draw a domain; everything about repeating it goes by its unique tokens."""
    tokens, repeats = inventory
    unique = [count / times for count, times in zip(tokens, repeats, strict=True)]
    budget = 4 * sum(unique) * share
    listed, once = repeated(tokens, repeats, budget), domains(unique, budget, prepared=10**9)
    assert listed.natural().array() == pytest.approx(np.array(tokens) / sum(tokens))
    assert listed.epoch_limits() == pytest.approx(once.epoch_limits())
    assert listed.unimax().array() == pytest.approx(once.unimax().array())
    assert listed.epochs(once.natural()) == pytest.approx(once.epochs(once.natural()))
    for tokens_of_trial in (10_000, 10_000_000):
        theirs, ours = once.unique_tokens(tokens_of_trial, 64), listed.unique_tokens(tokens_of_trial, 64)
        assert all(abs(theirs[name].tokens - ours[name].tokens) <= 64 for name in theirs)  # a window, by float error


@given(inventories)
def test_a_run_over_the_whole_inventory_repeats_each_domain_as_listed(inventory: tuple[list[float], list[float]]) -> None:
    """Drawing the natural mixture with as many tokens as the inventory holds is one pass over it: every document `repeats` times."""
    tokens, repeats = inventory
    set_ = repeated(tokens, repeats, sum(tokens))
    assert list(set_.epochs(set_.natural()).values()) == pytest.approx(repeats)


@given(token_counts, st.floats(0.05, 0.9))
def test_an_inventory_that_repeats_nothing_is_what_it_was(tokens: list[float], share: float) -> None:
    """Bit for bit: identities of searches hang on it."""
    budget = 4 * sum(tokens) * share
    plain, listed = domains(tokens, budget), repeated(tokens, [1.0] * len(tokens), budget)
    assert listed.natural() == plain.natural()
    assert listed.epoch_limits().tolist() == [4.0 * count / budget for count in tokens]
    assert listed.unimax() == plain.unimax()


def test_a_stored_domain_tells_its_unique_tokens_whether_it_knows_repetition_or_not() -> None:
    assert unique_tokens_of({"target_tokens": 12e9, "repeats": 3}) == 4e9
    assert unique_tokens_of({"target_tokens": 12e9}) == 12e9
