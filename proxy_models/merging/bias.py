"""The balancing bias of merged routers, estimated anew on tokens of the mixture.

The bias is a state of training, not a weight (`merge` says why it is carried by default). Here the rule that moved it in training (arXiv
2408.15664, algorithm 1: one step toward experts that had too few tokens) is repeated on the same tokens with steps that shrink, from where
the bias is. What is kept is the bias that was most even, for every member: never worse, on these tokens, than what was there. The
trade-off: some thirty passes over the tokens, and the evenness of training on few tokens is not what a model of a narrow mixture had; so it
is asked for, not done by default.

Legend: K members, B windows, S tokens of a window and one more, L layers, E experts.
"""

from __future__ import annotations

import torch
from torch import Tensor

from proxy_models.merging.routes import routes_of
from proxy_models.model import PackedProxy

FIRST_STEP = 0.2
STEP_RATIO = 0.8
"""Of a step to the one before. All steps add up to one, which is the range of scores: any order of experts can be reached. An
assumption."""
PASSES = 32
"""The last step is 0.0002, a fifth of what training takes by default."""


@torch.no_grad()
def reestimate_bias(pack: PackedProxy, tokens_BS: Tensor, passes: int = PASSES) -> None:
    """Sets the balancing biases of all members so that experts share these tokens more evenly, in place; nothing in a dense proxy.

    Args:
        tokens_BS: windows drawn from the mixture, int64 (B, T+1).
    """
    if not pack.moe_layers:
        return
    best_KLE = _biases(pack)
    least_K = imbalance(pack, tokens_BS)
    step = FIRST_STEP
    for _ in range(passes):
        loads_KLE = _loads(pack, tokens_BS)
        for layer, moe in enumerate(pack.moe_layers):
            loads_KE = loads_KLE[:, layer].double()
            moe.router_bias += (step * (loads_KE.mean(-1, keepdim=True) - loads_KE).sign()).to(moe.router_bias)
        step *= STEP_RATIO
        uneven_K = imbalance(pack, tokens_BS)
        better_K = uneven_K < least_K
        best_KLE[better_K] = _biases(pack)[better_K]
        least_K = torch.minimum(least_K, uneven_K)
    for layer, moe in enumerate(pack.moe_layers):
        moe.router_bias.copy_(best_KLE[:, layer])


def imbalance(pack: PackedProxy, tokens_BS: Tensor) -> Tensor:
    """Coefficient of variation of the experts' loads, mean over layers, of each member: (K,), zero if all are alike."""
    loads_KLE = _loads(pack, tokens_BS).double()
    return (loads_KLE.std(-1, correction=0) / loads_KLE.mean(-1)).mean(-1)


def _loads(pack: PackedProxy, tokens_BS: Tensor) -> Tensor:
    return torch.stack([routes.loads() for routes in routes_of(pack, tokens_BS)])


def _biases(pack: PackedProxy) -> Tensor:
    return torch.stack([moe.router_bias.detach().cpu().clone() for moe in pack.moe_layers], dim=1)
