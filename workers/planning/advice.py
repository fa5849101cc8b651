"""Which proxy the field's evidence asks for, and what the same search would cost with it, here and on one GPU.

The cost is arithmetic on counted FLOPs, with the speed that was measured here and a stated assumption about a GPU. The main trade-off: the
proxy is the smallest of our own sizes with enough active parameters, not the dense model that the evidence is about.
"""

from __future__ import annotations

from mixopt.cost import Advice, Budget
from proxy_models.config import WIDTHS, ProxyConfig, proxy_config
from workers.planning.speed import GPU_NAME, GPU_PEAK_FLOPS, GPU_UTILISATION

ENOUGH_ACTIVE_PARAMETERS = 15e6
EVIDENCE = (
    "Olmix (arXiv 2602.12237): mixtures ranked by proxies of 15 million parameters or more agree with a 1-billion-parameter model at a Spearman "
    "correlation above 0.89; those of 1 million at 0.73."
)

CHINCHILLA_TOKENS_PER_PARAMETER = 20.0
"""Hoffmann et al., arXiv 2203.15556: training tokens per parameter at the compute optimum, about."""
OLMIX_TOKENS_PER_PARAMETER = 100.0
"""Olmix's default proxy: 30M parameters, 3B tokens (five times the above)."""


def evidence_proxy(vocab_size: int) -> ProxyConfig:
    """The smallest size with enough active parameters; `medium` has them whatever the vocabulary."""
    configs = (proxy_config(size, vocab_size) for size in WIDTHS)
    return next(config for config in configs if config.parameters().active >= ENOUGH_ACTIVE_PARAMETERS)


def advise(active_parameters: int, vocab_size: int, window: int, trials: int, flops_per_second_here: float) -> Advice:
    """What the evidence asks for and what it would cost.

    Args:
        active_parameters: of the search's proxy.
        trials: of the search; verification is left out.
        flops_per_second_here: of all slots together.
    """
    config = evidence_proxy(vocab_size)
    active, per_token = config.parameters().active, config.training_flops_per_token(window)
    rules = (
        (CHINCHILLA_TOKENS_PER_PARAMETER, "20 tokens per active parameter, about the compute optimum (arXiv 2203.15556)"),
        (OLMIX_TOKENS_PER_PARAMETER, "100 per active parameter, as Olmix trains its proxies (30M on 3B)"),
    )
    budgets = []
    for per_parameter, rule in rules:
        tokens = per_parameter * active
        flops = tokens * per_token * trials
        budgets.append(Budget(rule, tokens, flops, flops / flops_per_second_here, flops / (GPU_PEAK_FLOPS * GPU_UTILISATION)))
    return Advice(
        evidence=EVIDENCE,
        enough=active_parameters >= ENOUGH_ACTIVE_PARAMETERS,
        search_active_parameters=active_parameters,
        asked_active_parameters=ENOUGH_ACTIVE_PARAMETERS,
        size=config.size,
        active_parameters=active,
        flops_per_token=per_token,
        counting="6 FLOPs per active parameter (arXiv 2001.08361, section 2.1), and attention",
        gpu=f"{GPU_NAME} at {GPU_UTILISATION:.0%} of its {GPU_PEAK_FLOPS / 1e12:.0f} TFLOP/s (bfloat16, dense), which is an assumption: "
        "arithmetic, not measurement",
        budgets=tuple(budgets),
    )
