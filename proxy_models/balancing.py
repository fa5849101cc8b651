"""How evenly routers use their experts: a loss that asks for it, and counts that show whether they do.

The other way to balance, a bias that no gradient trains, is in `moe`. Load in training is counted there too, in whole rows; what the routers do with
held-out text and completions, set by set, is watched here while they are scored, which is done anyway. The trade-off: the entropy of routers and the load
by domain are those of the finished proxy on held-out sets, not averages over training, and prompts do not count.

Legend: K pack members, B rows of a batch, T predicted tokens of a row, N = B*T tokens of a member, L layers with routed experts, E experts, S experts
chosen per token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from proxy_models.model import PackedProxy


class Routing(NamedTuple):
    """What a router decided.

    Attributes:
        expert_KNS: the chosen experts, int64.
        weight_KNS: their weights, which sum to one over S.
        logits_KNE, scores_KNE: of all experts, without bias; the scores are the softmax of the logits, without gradient.
    """

    expert_KNS: Tensor
    weight_KNS: Tensor
    logits_KNE: Tensor
    scores_KNE: Tensor


class BalanceLoss(torch.autograd.Function):
    """E times the sum over experts of f_e P_e, for each member (K,): Switch Transformers, arXiv 2101.03961, equations 4 to 6, without their weight.

    f_e is the share of the member's rows that went to expert e, without gradient; with S choices a token has S rows, so that the shares sum to one and
    the loss of even experts is 1. P_e is the mean score of e. Both go over all tokens of the member's step, not over one sequence: a sequence of one
    domain may use few experts as long as the step uses all (arXiv 2501.11873, section 2).
    """

    @staticmethod
    def forward(ctx: Any, logits_KNE: Tensor, scores_KNE: Tensor, load_KE: Tensor) -> Tensor:
        load_K1E = load_KE.to(scores_KNE.dtype)[:, None, :]
        share_K1E = load_K1E / load_K1E.sum(-1, keepdim=True)
        meant_KN1 = (scores_KNE * share_K1E).sum(-1, keepdim=True)
        ctx.save_for_backward(scores_KNE, share_K1E, meant_KN1)
        return meant_KN1.mean((1, 2)) * scores_KNE.shape[-1]

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor, None, None]:
        scores_KNE, share_K1E, meant_KN1 = ctx.saved_tensors
        _, tokens, n_experts = scores_KNE.shape
        # Token by token, so that a member's gradient does not depend on its company.
        grad_KNE = (share_K1E - meant_KN1).mul_(scores_KNE).mul_((grad_K * (n_experts / tokens))[:, None, None])
        return grad_KNE, None, None


@dataclass(frozen=True)
class Loads:
    """Rows that went to each expert of one member in training, by layer; no layers in a dense proxy.

    Attributes:
        last_LE: of the last step.
        counted_LE: of all steps since they were counted anew (`TrainSettings.recent_steps`).
    """

    last_LE: list[list[int]]
    counted_LE: list[list[int]]


@dataclass(frozen=True)
class Routed:
    """What the routers of one member did with the scored tokens of a held-out set, by layer.

    Attributes:
        rows_LE: rows that went to each expert, S per token.
        entropy_nats_L: of the router's softmax, summed over tokens.
        tokens: how many these are.
    """

    rows_LE: tuple[tuple[int, ...], ...]
    entropy_nats_L: tuple[float, ...]
    tokens: int


class RouterWatch:
    """Within it, what the routers of `model` do in its passes is counted.

    Call `expect` before each pass, and `routed` for what was seen.
    """

    def __init__(self, model: PackedProxy) -> None:
        self._layers = model.moe_layers
        self._counts_N = torch.empty(0, dtype=torch.bool)
        shape = (len(self._layers), model.members)
        self._rows_LKE = torch.zeros(*shape, model.config.n_experts, dtype=torch.int64, device=model.embedding.device)
        self._entropy_LK = torch.zeros(shape, dtype=torch.float64, device=model.embedding.device)
        self._tokens = 0

    def __enter__(self) -> RouterWatch:
        for layer, moe in enumerate(self._layers):
            moe.watch = partial(self._see, layer)
        return self

    def __exit__(self, *_: object) -> None:
        for moe in self._layers:
            moe.watch = None

    def expect(self, counts_BT: Tensor) -> None:
        """Which tokens of the next pass count, bool; the same for all members."""
        self._counts_N = counts_BT.flatten().to(self._rows_LKE.device)
        self._tokens += int(counts_BT.sum())

    def _see(self, layer: int, routing: Routing) -> None:
        rows_KR = self._counts_N.to(torch.int64)[None, :, None].expand_as(routing.expert_KNS).flatten(1)
        self._rows_LKE[layer].scatter_add_(
            1, routing.expert_KNS.flatten(1), rows_KR
        )  # whole numbers: the order of addition does not matter
        entropy_KN = -(routing.scores_KNE * routing.logits_KNE.detach().log_softmax(-1)).sum(-1).double()
        self._entropy_LK[layer] += torch.where(self._counts_N, entropy_KN, torch.zeros_like(entropy_KN)).sum(-1)

    def routed(self) -> list[Routed]:
        """Of every member."""
        rows, entropies = self._rows_LKE.transpose(0, 1).tolist(), self._entropy_LK.T.tolist()
        return [
            Routed(tuple(tuple(row) for row in rows_LE), tuple(entropy_L), self._tokens)
            for rows_LE, entropy_L in zip(rows, entropies, strict=True)
        ]


def normalized_entropy(routed: list[Routed], n_experts: int) -> list[float]:
    """Mean entropy of a token's softmax over all these sets, by layer, over that of a router without preference: 1 is undecided, 0 certain."""
    tokens = sum(one.tokens for one in routed)
    totals = zip(*(one.entropy_nats_L for one in routed), strict=True)
    return [math.fsum(nats) / tokens / math.log(n_experts) for nats in totals]
