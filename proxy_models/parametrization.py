"""The maximal-update parametrization (muP) of the proxies: initial scale and learning rate of every tensor, relative to nano.

In the standard parametrization every tensor has the same rate, and the best one falls as proxies grow, by an amount nobody knows before a sweep. In
muP each tensor has its own multiple of the rate, by how many numbers its sums run over, so that one step changes what every layer puts out
equally much at every size; the best rate is then about the same everywhere (Tensor Programs V, arXiv 2203.03466; with depth: CompleteP,
arXiv 2505.01618; with experts: arXiv 2508.09752 and 2601.20205). Nano is the base: there every factor is one, and training is the standard one
bit for bit.

There are no multipliers in the forward pass. A constant factor c on a matrix is the same, under Adam, as initial weights and rate times c
(arXiv 2203.03466, lemma J.1), so depth's 1/L is in the matrices that write to the residual stream. The embedding, which is also the output matrix,
is what muP usually needs a factor on the logits for: as an input it should be of scale one, as an output it should fall with the width. Here a
norm without scale follows the lookup, which takes the scale off, and what is left is the step relative to the weights: with both falling as
1 / width it is one at every size. So weights of a muP proxy mean what those of a standard one mean, for checkpoints, exports and kernels.

Decoupled decay per step is rate times decay in every tensor, without the multiplier: weights forget over equally many steps at every size (arXiv
2405.13698; 2505.01618, table 1). The trade-offs: attention keeps 1 / sqrt(head width), which at equal head width is as good as 1 / width;
the one doubling of heads, from micro to small, lets a step move scores by sqrt(2) more. Adam's eps is not scaled: gradients lie far above it.
Clipping is by the norm of the whole gradient, as in the standard parametrization. And the share of experts that are active, 2 of 8 up to small
and 8 of 64 beyond, is in no rule: across it transfer is not promised (arXiv 2601.20205, section 3.2).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from proxy_models.config import DENSE, ProxyConfig, proxy_config

EMBEDDING_STD = 0.02
"""Scale of the initial embedding. With it and the norm after the lookup, a nano proxy (4,096 entries, 14 domains, 0.5M tokens, rate 3e-3, two
seeds) reached 5.44 nats per token on held-out text; 5.59 at 1/sqrt(D) with that norm, 5.78 and 5.83 at the two scales without it."""

BASE = "nano"
"""Where both parametrizations are the same; its dense control for dense proxies."""

WRITE_TO_STREAM = ("output", "expert_out", "shared_out")
"""Matrices whose products are added to the residual stream."""


@dataclass(frozen=True)
class Powers:
    """A factor width^a hidden^b layers^c of the ratios to the base: of model widths, of an expert's hidden width (jointly, of shared ones), of layers."""

    width: float = 0.0
    hidden: float = 0.0
    layers: float = 0.0

    def of(self, width: float, hidden: float, layers: float) -> float:
        return float(width**self.width * hidden**self.hidden * layers**self.layers)

    def __str__(self) -> str:
        """As a fraction: "1 / (width layers)"."""
        powers = {"width": self.width, "hidden width": self.hidden, "layers": self.layers}
        above = [_power(name, power) for name, power in powers.items() if power > 0]
        below = [_power(name, -power) for name, power in powers.items() if power < 0]
        numerator = " ".join(above) or "1"
        if not below:
            return numerator
        return f"{numerator} / {below[0]}" if len(below) == 1 else f"{numerator} / ({' '.join(below)})"


def _power(name: str, power: float) -> str:
    return f"sqrt({name})" if power == 0.5 else name


@dataclass(frozen=True)
class TensorRule:
    """How initial scale and rate of a group of tensors follow the shape.

    Attributes:
        group: what they are.
        tensors: last parts of their names.
        std: factor on the initial standard deviation that the base has.
        rate: factor on the learning rate.
        why: sums and sources.
    """

    group: str
    tensors: tuple[str, ...]
    std: Powers
    rate: Powers
    why: str


MUP_RULES = (
    TensorRule(
        "embedding, which is also the output matrix",
        ("embedding",),
        Powers(width=-1),
        Powers(width=-1),
        "Output: logits sum over the width, and begin at zero in the limit (arXiv 2203.03466, table 8). Input: the norm after the lookup leaves "
        "only the step relative to the weights, which is constant.",
    ),
    TensorRule(
        "queries, keys and values",
        ("qkv",),
        Powers(width=-0.5),
        Powers(width=-1),
        "A hidden matrix: initial sums over the width are random, those of a step all of one sign (arXiv 2203.03466, table 3).",
    ),
    TensorRule(
        "output of attention",
        ("output",),
        Powers(width=-0.5, layers=-1),
        Powers(width=-1, layers=-1),
        "A hidden matrix that writes to the residual stream, where each of L layers is to change 1/L of it (arXiv 2505.01618, alpha = 1).",
    ),
    TensorRule(
        "router",
        ("router",),
        Powers(width=-1),
        Powers(width=-1),
        "Few scores out of a wide stream, as logits are: an output matrix. The number of experts is in no rule (arXiv 2601.20205, table 1, gamma = 1; "
        "arXiv 2508.09752).",
    ),
    TensorRule(
        "experts and shared experts, in",
        ("expert_in", "shared_in"),
        Powers(width=-0.5),
        Powers(width=-1),
        "Hidden matrices over the width, whatever the width of an expert (arXiv 2601.20205, table 1).",
    ),
    TensorRule(
        "experts and shared experts, out",
        ("expert_out", "shared_out"),
        Powers(width=0.5, hidden=-1, layers=-1),
        Powers(hidden=-1, layers=-1),
        "A step sums over the hidden width; weights of the chosen experts sum to one, so their number is in no rule. Initially 1/sqrt of the hidden "
        "width where that is a fixed share of the width, and less for wider experts (arXiv 2601.20205, table 1).",
    ),
    TensorRule("norms", ("norm",), Powers(), Powers(), "One number per channel: no sum."),
)
"""Of the parametrization "mup"; what `mixopt proxies` prints below its rules."""


def initial_std(config: ProxyConfig, name: str) -> float:
    """Standard deviation of the initial weights of a tensor (the last part of its name counts); norms, which are all one, have 0.

    Standard: matrices have variance 1 / inputs (keeps the scale of what passes through); those that write to the residual stream are smaller by
    sqrt(2 L), so that 2 L of them add up to the scale of one (GPT-2). The embedding has GPT-2's 0.02: logits start near zero, and the loss near
    log V. In muP that of the base, times the factor of `MUP_RULES`.
    """
    leaf = name.rsplit(".", 1)[-1]
    if config.parametrization == "standard":
        return _standard_std(config, leaf)
    return _standard_std(_base(config), leaf) * _rule(leaf).std.of(*_ratios(config, leaf))


def rate_multiplier(config: ProxyConfig, name: str) -> float:
    """What the learning rate of a tensor is multiplied by (the last part of its name counts); 1 in the standard parametrization."""
    leaf = name.rsplit(".", 1)[-1]
    return 1.0 if config.parametrization == "standard" else _rule(leaf).rate.of(*_ratios(config, leaf))


def _standard_std(config: ProxyConfig, leaf: str) -> float:
    if leaf == "norm":
        return 0.0
    std = EMBEDDING_STD if leaf == "embedding" else _inputs(config, leaf) ** -0.5
    return std / math.sqrt(2 * config.n_layers) if leaf in WRITE_TO_STREAM else std


def _inputs(config: ProxyConfig, leaf: str) -> int:
    """Numbers that one output of the tensor sums over."""
    return {"expert_out": config.d_expert, "shared_out": config.d_shared}.get(leaf, config.d_model)


def _ratios(config: ProxyConfig, leaf: str) -> tuple[float, float, float]:
    """(width, hidden width, layers) over those of the base; the hidden width is that of shared experts for their tensors."""
    base = _base(config)
    hidden = config.d_shared / base.d_shared if leaf.startswith("shared") else config.d_expert / base.d_expert
    return config.d_model / base.d_model, hidden, config.n_layers / base.n_layers


def _base(config: ProxyConfig) -> ProxyConfig:
    return _base_of(config.vocab_size, bool(config.n_experts))


@functools.cache
def _base_of(vocab_size: int, routed: bool) -> ProxyConfig:
    return proxy_config(BASE if routed else f"{BASE}{DENSE}", vocab_size)


def _rule(leaf: str) -> TensorRule:
    return next(rule for rule in MUP_RULES if leaf in rule.tensors)
