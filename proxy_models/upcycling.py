"""Makes a Mixture-of-Experts proxy of its dense control: the weights that a dense run ended with, as weights to train experts from.

The dense control of a size has one SwiGLU of the joint width of all experts that see a token. Its hidden units are cut into groups of one
expert's width: the first go to the shared experts, and each of the other `top_k` groups is copied to `n_experts / top_k` routed experts. Copies
of different groups share a router column, so that the `top_k` best experts of a token are one copy of every group ("virtual groups", He et al.,
arXiv 2410.07524; whole layers were copied by sparse upcycling, arXiv 2212.05055). Each has weight 1 / top_k then, which the output matrices of routed
experts make up for by a factor top_k. So the experts together compute what the dense layer did, whatever the router says: before training, and
before anything is drawn anew, the new proxy equals its parent, at the same active parameters and FLOPs per token.

Equal copies learn alike. So a share of the hidden units of every routed expert is then drawn anew, for every expert by itself: partial
re-initialization (Drop-Upcycling, arXiv 2502.19261, section 3: half of them is best in the long run). Main trade-off: the parent has to be the
dense control of that very size; a dense model of another width would need another way to cut it up.

Legend: D model width, E experts, S chosen per token, C copies of a group, F hidden width of one expert.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from proxy_models.config import DENSE, ProxyConfig
from proxy_models.model import PackedProxy

FEED_FORWARD = ("shared_in", "shared_out")
"""The parameters of a dense layer that become experts."""


def dense_parent(config: ProxyConfig) -> ProxyConfig:
    """The dense proxy that one of `config` can be made of: equal in all but its experts.

    Raises:
        ValueError: the proxy has no routed experts, or not as many copies of each group.
    """
    if not config.n_experts:
        raise ValueError(f"{config.size} is dense already; experts need a size with routed experts.")
    if config.n_experts % config.top_k:
        raise ValueError(
            f"n_experts is {config.n_experts}, no multiple of top_k, {config.top_k}; every group of units needs as many copies."
        )
    shared = config.top_k + config.n_shared_experts
    return replace(config, size=f"{config.size}{DENSE}", n_experts=0, top_k=0, n_shared_experts=shared)


def upcycled(config: ProxyConfig, dense: Mapping[str, Tensor], seed: int, reinitialized: float) -> dict[str, Tensor]:
    """First weights of a proxy made of its dense parent.

    Args:
        dense: `PackedProxy.member_state` of the parent.
        seed: draws the router, and the units that are drawn anew. The router does not depend on `reinitialized`.
        reinitialized: share of the hidden units of every routed expert that is drawn anew; 0 to 1, rounded down to whole units.

    Returns:
        A `PackedProxy.member_state` of `config`, on the CPU; balancing biases are zero.

    Raises:
        ValueError: the share is out of range, or the state is of another dense proxy.
    """
    if not 0 <= reinitialized <= 1:
        raise ValueError(f"reinitialized is {reinitialized}; it must be between 0 and 1.")
    parent = dense_parent(config)
    _check_parent(parent, dense)
    # A fresh proxy of the seed: its router is as any router begins, and every other weight is replaced.
    state = PackedProxy(config, [seed]).member_state(0)
    generator = torch.Generator().manual_seed(seed)
    for name in state:
        if name in dense and not name.endswith(FEED_FORWARD):
            state[name] = dense[name].clone()
    for layer in range(config.n_layers):
        prefix = f"layers.{layer}.moe."
        state |= {prefix + name: value for name, value in _experts(config, dense, prefix).items()}
        copies = config.n_experts // config.top_k
        state[prefix + "router"] = state[prefix + "router"][:, :copies].repeat_interleave(config.top_k, dim=1)
        for expert in range(config.n_experts):
            _draw_anew(state[prefix + "expert_in"][expert], state[prefix + "expert_out"][expert], reinitialized, generator)
    return state


def _experts(config: ProxyConfig, dense: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The dense layer's units as shared and routed experts; expert e holds group e modulo S."""
    gate_DH, up_DH = dense[prefix + "shared_in"].chunk(2, dim=1)
    out_HD = dense[prefix + "shared_out"]
    shared = slice(0, config.d_shared)
    groups = [
        slice(config.d_shared + group * config.d_expert, config.d_shared + (group + 1) * config.d_expert) for group in range(config.top_k)
    ]
    chosen = [groups[expert % config.top_k] for expert in range(config.n_experts)]
    return {
        "shared_in": torch.cat([gate_DH[:, shared], up_DH[:, shared]], dim=1),
        "shared_out": out_HD[shared].clone(),
        "expert_in": torch.stack([torch.cat([gate_DH[:, units], up_DH[:, units]], dim=1) for units in chosen]),
        # Chosen experts share a weight of one.
        "expert_out": torch.stack([out_HD[units] * config.top_k for units in chosen]),
    }


def _draw_anew(in_D2F: Tensor, out_FD: Tensor, share: float, generator: torch.Generator) -> None:
    """Replaces a share of one expert's hidden units, in place: gate, up and output of a unit together, each matrix from the normal distribution
    with mean and standard deviation of what is replaced in it (arXiv 2502.19261, section 3.2)."""
    width = len(out_FD)
    count = int(share * width)
    if not count:
        return
    units = torch.randperm(width, generator=generator)[:count]
    for matrix, columns in ((in_D2F, units), (in_D2F, units + width), (out_FD.T, units)):
        replaced = matrix[:, columns]
        matrix[:, columns] = torch.empty_like(replaced).normal_(generator=generator) * replaced.std() + replaced.mean()


def _check_parent(parent: ProxyConfig, dense: Mapping[str, Tensor]) -> None:
    expected = {name: tensor.shape[1:] for name, tensor in PackedProxy(parent, [0], "meta", draw=False).state_dict().items()}
    found = {name: tensor.shape for name, tensor in dense.items()}
    if found != expected:
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        raise ValueError(f"The dense weights are not those of {parent.size}: {', '.join(wrong[:4])} differ.")
