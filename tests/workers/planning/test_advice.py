"""The proxy that the evidence asks for, and its cost by hand."""

from __future__ import annotations

import pytest

from proxy_models.config import WIDTHS, proxy_config
from workers.planning.advice import ENOUGH_ACTIVE_PARAMETERS, advise, evidence_proxy
from workers.planning.speed import GPU_PEAK_FLOPS, GPU_UTILISATION


@pytest.mark.parametrize("vocab_size", [1, 512, 4096, 8192, 65_536])
def test_it_is_the_smallest_size_with_enough_active_parameters(vocab_size: int) -> None:
    """One that an experiment file can name; a large vocabulary makes even small proxies that large, nearly all of it embedding."""
    config = evidence_proxy(vocab_size)
    assert config.parameters().active >= ENOUGH_ACTIVE_PARAMETERS
    smaller = list(WIDTHS)[: list(WIDTHS).index(config.size)]
    assert all(proxy_config(size, vocab_size).parameters().active < ENOUGH_ACTIVE_PARAMETERS for size in smaller)


@pytest.mark.parametrize("window", [256, 512])
def test_counted_flops_are_six_per_active_parameter_and_attention(window: int) -> None:
    config = evidence_proxy(4096)
    attention = 6 * config.n_layers * config.d_model * (window + 1)
    rule = 6 * config.parameters().active + attention
    assert config.training_flops_per_token(window) == pytest.approx(rule, rel=0.01)


def test_the_cost_is_trials_times_tokens_times_flops() -> None:
    advice = advise(active_parameters=333_120, vocab_size=4096, window=512, trials=48, flops_per_second_here=1e11)
    assert not advice.enough
    for budget, per_parameter in zip(advice.budgets, (20, 100), strict=True):
        assert budget.tokens == per_parameter * advice.active_parameters
        assert budget.flops == pytest.approx(48 * budget.tokens * advice.flops_per_token)
        assert budget.seconds_here == pytest.approx(budget.flops / 1e11)
        assert budget.seconds_gpu == pytest.approx(budget.flops / (GPU_PEAK_FLOPS * GPU_UTILISATION))
    assert "arithmetic, not measurement" in advice.gpu


def test_a_proxy_of_the_evidence_is_enough() -> None:
    assert advise(15_000_000, 4096, 512, 48, 1e11).enough
