"""The size dial of the proxy: from a name to every dimension, parameter count, FLOP count and learning rate.

A size names a width; depth, heads and experts follow by the rules of `RULES`, so that sizes differ in one thing only and a ranking found at one
can be asked for at the next. From `FINE_GRAINED_WIDTH` on experts are many and narrow, as in production models; below, few and wide. Every
size has a dense control, as `nano-dense`. The trade-off: a shape outside the rules has to be written as a `ProxyConfig` by hand.

Sizes with 8,192 entries of vocabulary, FLOPs per training token at a window of 512 (`mixopt proxies` prints these and more):

    size    width  layers  heads  routed/active/shared  expert    total   active  of it embedding  FLOPs per token
    nano       64       2      2             8/2/1          32    0.67M    0.60M            0.52M             4.0M
    micro     128       4      4             8/2/1          64    2.20M    1.61M            1.05M            11.2M
    small     256       6      4             8/2/1         128    8.99M    5.46M            2.10M            37.4M
    medium    384       8      6            64/8/2         256    163.8M   31.7M            3.15M             199M
    large     768      10     12            64/8/2         512    809.0M  148.4M            6.29M             914M

The 30 and 150 million active parameters that `medium` and `large` were made for are these: all that one token uses, embedding included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

WIDTHS = {"nano": 64, "micro": 128, "small": 256, "medium": 384, "large": 768}
"""The dial: size -> width of the residual stream."""

DENSE = "-dense"
"""Ends the names of dense controls: the size without it, with one SwiGLU as wide as the experts that see a token."""

SIZES = (*WIDTHS, *(f"{size}{DENSE}" for size in WIDTHS))

FINE_GRAINED_WIDTH = 384
"""From this width on experts are fine-grained. Below, a layer of 64 experts would be made of matrices too small to multiply well."""

NANO_RATE = 3e-3
"""Peak learning rate of nano, in both parametrizations."""

ALIGNMENT = 8
"""Widths are multiples of this: grouped products want rows of a multiple of 16 bytes, which is 8 numbers in bfloat16."""


PARAMETRIZATIONS = ("standard", "mup")
"""How initial weights and learning rates follow the shape."""


@dataclass(frozen=True)
class Rule:
    """How a dimension follows from the width, and where the rule is from."""

    dimension: str
    rule: str
    source: str


RULES = (
    Rule(
        "depth",
        "2 log2(width / 32) layers, the logarithm rounded",
        "An assumption: loss depends little on the ratio of width to depth (arXiv 2001.08361, figure 5). It gives 10 layers at 768; DeepSeekMoE's "
        "validation model has 9 at 1,280 (arXiv 2401.06066, section 4.1.3).",
    ),
    Rule(
        "heads",
        "a quarter of the width each, but not under 32 nor over 64",
        "An assumption: these shapes are the ones that packed training was measured on.",
    ),
    Rule(
        "experts, width below 384",
        "8 routed of half the width, 2 of them active, and 1 shared",
        "Narrow experts beside a shared one are DeepSeekMoE's (arXiv 2401.06066, section 3); so few of them is an assumption: the matrices of many "
        "would be too small to multiply well.",
    ),
    Rule(
        "experts, width from 384",
        "64 routed, 8 of them active, and 2 shared, each two thirds of the width",
        "64 with 8 active: OLMoE (arXiv 2409.02060). 2 shared, each a quarter of a standard feed-forward layer: DeepSeekMoE 16B (arXiv 2401.06066, "
        "section 5.1.2); that layer is 8/3 widths for a SwiGLU (arXiv 2002.05202, section 2).",
    ),
    Rule(
        "dense control",
        "no routed experts; one SwiGLU of the joint width of active and shared experts",
        "Equal active parameters and FLOPs per token, but for the router.",
    ),
    Rule(
        "learning rate",
        "0.003 at width 64, falling as 1 / width, the same for the dense control; in muP 0.003 at every size",
        "Swept for nano, micro and small on 300K tokens of real text (benchmarks/learning_rates.py): the best are 0.0041, 0.0023 and 0.0012, so "
        "defaults lie below by a third. Beyond, an assumption after Tensor Programs V (arXiv 2203.03466, table 3). In muP the best are 0.0041, "
        "0.0050 and 0.0058.",
    ),
)
"""All that follows from the width, for `proxy_config` and `default_learning_rate`; what `mixopt proxies` prints below its table."""


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of one member.

    Attributes:
        total: all of them.
        active: those that take part in the loss of one token: all but the routed experts it is not sent to.
        embedding: the embedding, which is also the output matrix; part of both other counts.
    """

    total: int
    active: int
    embedding: int


@dataclass(frozen=True)
class ProxyConfig:
    """Every dimension of a proxy.

    Attributes:
        size: the name it came from; a label only.
        n_experts: routed experts per layer; 0: a dense proxy, whose shared experts are all it has.
        top_k: routed experts each token is sent to, 0 where there are none. At least 2, because weights normalized over one expert pass the
            router no gradient.
        n_shared_experts: experts that see every token (computed as one of their joint width).
        d_expert: width of one expert's hidden layer.
        rope_theta: base of the rotary frequencies (RoFormer, arXiv 2104.09864, section 3.2.2).
        norm_eps: added to the mean square in RMSNorm.
        bias_update_rate: step of the balancing bias (arXiv 2408.15664, section 4.3, found 0.001 best); 0: no bias.
        auxiliary_loss: weight of the balancing loss of each layer (`balancing.BalanceLoss`), of which training knows only the gradient; 0: none.
        parametrization: how initial weights and rates follow the shape: "standard" or "mup" (`proxy_models.parametrization`).
        frozen_router: routers keep their weights, and have no part in the clipped norm; set `bias_update_rate` to 0 to freeze the biases, too.

    Raises:
        ValueError: a dimension is out of range; the sentence names it.
    """

    size: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_experts: int
    top_k: int
    n_shared_experts: int
    d_expert: int
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    bias_update_rate: float = 1e-3
    auxiliary_loss: float = 0.0
    parametrization: str = "standard"
    frozen_router: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layers", "n_heads", "n_shared_experts"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("d_model", "d_expert"):
            if getattr(self, name) < ALIGNMENT or getattr(self, name) % ALIGNMENT:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of {ALIGNMENT}.")
        if self.d_model % (2 * self.n_heads):
            raise ValueError(f"d_model {self.d_model} does not split into {self.n_heads} heads of an even width, as rotation needs.")
        if (self.n_experts or self.top_k) and not 2 <= self.top_k <= self.n_experts:
            raise ValueError(
                f"top_k is {self.top_k}; it must be at least 2 and at most n_experts, {self.n_experts} (or both 0 for a dense proxy)."
            )
        for name in ("bias_update_rate", "auxiliary_loss"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) >= 0):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite and not negative.")
        if self.parametrization not in PARAMETRIZATIONS:
            raise ValueError(f"parametrization is '{self.parametrization}'; it must be one of {', '.join(PARAMETRIZATIONS)}.")

    @property
    def d_head(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.n_heads

    @property
    def d_shared(self) -> int:
        """Joint hidden width of the shared experts."""
        return self.n_shared_experts * self.d_expert

    def parameters(self) -> ParameterCounts:
        """Parameters of one member; the balancing bias, which no gradient trains, is not counted."""
        embedding = self.vocab_size * self.d_model
        expert = 3 * self.d_model * self.d_expert  # gate, up and down
        attention = 4 * self.d_model**2
        router = self.d_model * self.n_experts
        norms = 2 * self.d_model
        layer = attention + router + norms + (self.n_experts + self.n_shared_experts) * expert
        total = embedding + self.n_layers * layer + self.d_model  # the last norm
        unused = self.n_layers * (self.n_experts - self.top_k) * expert
        return ParameterCounts(total=total, active=total - unused, embedding=embedding)

    def forward_flops_per_token(self, window: int) -> float:
        """Useful FLOPs to score one token in windows of `window` tokens, averaged over the window.

        A multiplication with its addition counts two. Counted are the matrix products of attention (causal: token i attends to i tokens),
        router, active experts and logits; norms, softmaxes and the embedding lookup are left out, as is usual (arXiv 2001.08361, table 1).
        """
        if window < 1:
            raise ValueError(f"window is {window}; it must be at least 1.")
        projections = 4 * self.d_model**2
        scores_and_values = 2 * self.d_model * (window + 1) / 2
        router = self.d_model * self.n_experts
        experts = (self.top_k + self.n_shared_experts) * 3 * self.d_model * self.d_expert
        logits = self.d_model * self.vocab_size
        return 2.0 * (self.n_layers * (projections + scores_and_values + router + experts) + logits)

    def training_flops_per_token(self, window: int) -> float:
        """Useful FLOPs to train on one token: the backward pass costs two forward passes."""
        return 3.0 * self.forward_flops_per_token(window)


def proxy_config(size: str, vocab_size: int, parametrization: str = "standard") -> ProxyConfig:
    """The proxy of a size, by `RULES`.

    Raises:
        ValueError: size or parametrization is unknown, or the vocabulary has no entries.
    """
    _check_size(size)
    d_model = WIDTHS[size.removesuffix(DENSE)]
    if d_model < FINE_GRAINED_WIDTH:
        n_experts, top_k, n_shared_experts, d_expert = 8, 2, 1, d_model // 2
    else:
        n_experts, top_k, n_shared_experts, d_expert = 64, 8, 2, 2 * d_model // 3
    if size.endswith(DENSE):
        n_experts, top_k, n_shared_experts = 0, 0, top_k + n_shared_experts
    return ProxyConfig(
        size=size,
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=2 * round(math.log2(d_model / 32)),
        n_heads=d_model // min(64, max(32, d_model // 4)),
        n_experts=n_experts,
        top_k=top_k,
        n_shared_experts=n_shared_experts,
        d_expert=d_expert,
        parametrization=parametrization,
    )


def default_learning_rate(size: str, parametrization: str = "standard") -> float:
    """Peak learning rate of a size, by `RULES`.

    nano: 3e-3, with which the noise of seeds and the effect of mixtures were measured (two seeds of eight mixtures at 1M tokens ranked
    alike with a Spearman correlation of .98 once the end was decayed). The others: nano's rate divided by the ratio of widths, as matrices under
    Adam want it (Tensor Programs V, arXiv 2203.03466, table 3), and in muP nano's rate itself. By loss on 300K tokens nano is best at 4.1e-3,
    micro at 2.3e-3 and small at 1.2e-3, in muP at 4.1e-3, 5.0e-3 and 5.8e-3 (`benchmarks/results/learning_rates.json`); defaults stay, because trials
    are known by them, and what a rate is chosen for here is ranking.

    Raises:
        ValueError: the size is unknown.
    """
    _check_size(size)
    return NANO_RATE if parametrization == "mup" else NANO_RATE * WIDTHS["nano"] / WIDTHS[size.removesuffix(DENSE)]


def _check_size(size: str) -> None:
    if size not in SIZES:
        raise ValueError(f"Unknown proxy size '{size}'; known sizes: {', '.join(SIZES)}.")
