"""What is tried next: the order by cause, what it may cost, and that it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixopt.merging.gate import judge
from mixopt.merging.paired import Paired
from mixopt.merging.remedies import Limits, Making, next_attempt
from mixopt.merging.verdict import Cause, Verdict

World = Callable[..., Paired]
MAKING = Making(200_000, 0.5)
LIMITS = Limits(least_tokens=20_000, search_cost=1000.0, spent=100.0)


def cost(making: Making) -> float:
    return making.tokens / 2000


@pytest.fixture
def verdict(world: World) -> Verdict:
    paired = world(1.0)
    return judge(replace(paired, proxy_GM=-paired.proxy_GM), "merged", {"web": 0.3}, 0.5, draws=50)


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        ("displacement", Making(100_000, 0.5)),
        ("routers", Making(200_000, 0.5, True)),
        ("ranking", Making(200_000, 0.75)),
        ("noise", None),
    ],
)
def test_the_first_attempt_follows_the_cause(verdict: Verdict, cause: Cause, expected: Making | None) -> None:
    assert next_attempt(replace(verdict, cause=cause), MAKING, [], cost, LIMITS).making == expected


def test_an_ensemble_is_helped_by_its_general_share_alone(verdict: Verdict) -> None:
    of_ensemble = replace(verdict, evaluator="ensemble", cause="ranking", displacement={}, agreement=None)
    attempt = next_attempt(of_ensemble, MAKING, [], cost, LIMITS)
    assert attempt.remedy == "larger general share"
    assert attempt.making is not None
    assert next_attempt(of_ensemble, attempt.making, [attempt.remedy], cost, LIMITS).remedy == "trained proxies"


def test_what_costs_too_much_is_skipped_and_said(verdict: Verdict) -> None:
    attempt = next_attempt(replace(verdict, cause="ranking"), MAKING, [], cost, replace(LIMITS, spent=440.0))
    assert attempt.remedy == "shorter horizon", "the larger share costs 100 of the 60 left, half the tokens 50"
    assert "54% of what the trained trials" in " ".join(attempt.reasons)
    assert next_attempt(verdict, MAKING, [], cost, replace(LIMITS, spent=480.0)).remedy == "trained proxies"
    assert next_attempt(verdict, MAKING, [], cost, replace(LIMITS, search_cost=0.0)).remedy == "trained proxies"


def test_limits_are_kept(verdict: Verdict) -> None:
    short = next_attempt(verdict, Making(30_000, 0.75), [], cost, LIMITS)
    assert short.remedy == "frozen router"
    assert "Half of 30,000 tokens is too short." in short.reasons
    dense = next_attempt(replace(verdict, cause="routers"), Making(30_000, 0.75), [], cost, replace(LIMITS, has_router=False))
    assert dense.remedy == "trained proxies"
    assert any("no routers" in reason for reason in dense.reasons)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["displacement", "routers", "ranking", "noise"]), st.floats(0, 0.9), st.integers(1000, 10**6), st.floats(0, 600))
def test_attempts_end_within_the_cost(verdict: Verdict, cause: Cause, general: float, tokens: int, spent: float) -> None:
    verdict = replace(verdict, cause=cause)
    making, tried, limits = Making(tokens, general), [], replace(LIMITS, spent=spent)
    for _ in range(20):
        attempt = next_attempt(verdict, making, tried, cost, limits)
        if attempt.making is None:
            break
        assert limits.spent + attempt.cost <= limits.share * limits.search_cost
        making, tried, limits = attempt.making, [*tried, attempt.remedy], replace(limits, spent=limits.spent + attempt.cost)
    assert attempt.remedy == "trained proxies"


def test_nothing_is_mended_that_is_trusted(verdict: Verdict) -> None:
    with pytest.raises(ValueError, match="nothing to try"):
        next_attempt(replace(verdict, trusted=True, cause="none"), MAKING, [], cost, LIMITS)
