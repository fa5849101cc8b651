"""Router, dispatch, experts and combine of K stacked members.

Tokens of all members are sorted by (member, expert) and every expert of the pack runs in one grouped product. Dispatch and combine only
gather, forward and backward: no two threads ever add into one place, so that the result does not depend on their order. The trade-off: the
sort keeps both directions of a permutation in memory, and the shapes of the groups depend on the data (no CUDA graph).

Load is balanced without an auxiliary loss: a bias that no gradient trains is added to the scores for the choice of experts alone, and moves
by a fixed step toward the experts that had too few tokens (arXiv 2408.15664, algorithm 1).

Legend: K pack members, N tokens of a member, M = K*N tokens of the pack, D model width, E experts, S experts chosen per token,
R = S*M rows (one per token and chosen expert, sorted by group), G = K*E groups, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxy_models.config import ProxyConfig
from proxy_models.layers import rms_norm


@dataclass(frozen=True)
class Dispatch:
    """A permutation between slots (choice s of token m, slot s*M + m) and rows (slots sorted by group).

    Attributes:
        slot_of_row_R: which slot each row came from.
        row_of_slot_R: the inverse.
        token_of_row_R: which token of the pack each row holds.
        group_ends_G: end of each group's rows, int32, as grouped products want it.
        load_KE: rows per expert, int64.
    """

    slot_of_row_R: Tensor
    row_of_slot_R: Tensor
    token_of_row_R: Tensor
    group_ends_G: Tensor
    load_KE: Tensor


def plan_dispatch(expert_SKN: Tensor, n_experts: int) -> Dispatch:
    """Sorts the chosen experts, int64 (S, K, N), by member and expert; stable, so that rows of a group stay in slot order."""
    _, members, tokens = expert_SKN.shape
    group_SKN = expert_SKN + n_experts * torch.arange(members, device=expert_SKN.device)[:, None]
    sorted_R, slot_of_row_R = torch.sort(group_SKN.flatten(), stable=True)
    rows_R = torch.arange(len(sorted_R), device=sorted_R.device)
    row_of_slot_R = torch.empty_like(slot_of_row_R).scatter_(0, slot_of_row_R, rows_R)  # a permutation: no place is written twice
    # Ends by search rather than bincount, which on a GPU waits for the largest value.
    groups_G = torch.arange(members * n_experts, device=sorted_R.device)
    ends_G = torch.searchsorted(sorted_R, groups_G, right=True)
    load_G = ends_G.diff(prepend=ends_G.new_zeros(1))
    return Dispatch(
        slot_of_row_R=slot_of_row_R,
        row_of_slot_R=row_of_slot_R,
        token_of_row_R=slot_of_row_R % (members * tokens),
        group_ends_G=ends_G.to(torch.int32),
        load_KE=load_G.view(members, n_experts),
    )


def _sum_over_choices(rows_RD: Tensor, dispatch: Dispatch, tokens: int) -> Tensor:
    """Adds up the S rows of each token; (M, D). The order of addition is the order of choices."""
    rows_of_token = dispatch.row_of_slot_R.view(-1, tokens)
    total_MD = rows_RD.index_select(0, rows_of_token[0])
    for rows_M in rows_of_token[1:]:
        total_MD += rows_RD.index_select(0, rows_M)
    return total_MD


class ToRows(torch.autograd.Function):
    """Copies tokens (M, D) to rows (R, D) in group order. Backward gathers and adds the rows of each token."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch, ctx.tokens = dispatch, len(x_MD)
        return x_MD.index_select(0, dispatch.token_of_row_R)

    @staticmethod
    def backward(ctx: Any, grad_RD: Tensor) -> tuple[Tensor, None]:
        return _sum_over_choices(grad_RD, ctx.dispatch, ctx.tokens), None


class FromRows(torch.autograd.Function):
    """Adds up the rows (R, D) of each token into (M, D). Backward copies tokens to rows."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor, dispatch: Dispatch, tokens: int) -> Tensor:
        ctx.dispatch = dispatch
        return _sum_over_choices(rows_RD, dispatch, tokens)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        return grad_MD.index_select(0, ctx.dispatch.token_of_row_R), None, None


class SortWeights(torch.autograd.Function):
    """Brings weights from slot order (R,) into row order (R,); backward applies the inverse permutation."""

    @staticmethod
    def forward(ctx: Any, weight_R: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return weight_R.index_select(0, dispatch.slot_of_row_R)

    @staticmethod
    def backward(ctx: Any, grad_R: Tensor) -> tuple[Tensor, None]:
        return grad_R.index_select(0, ctx.dispatch.row_of_slot_R), None


class PickLogits(torch.autograd.Function):
    """Takes the logits (K, N, E) of the chosen experts (K, N, S). Backward writes each gradient to its own place, without adding."""

    @staticmethod
    def forward(ctx: Any, logits_KNE: Tensor, expert_KNS: Tensor) -> Tensor:
        ctx.save_for_backward(expert_KNS)
        ctx.n_experts = logits_KNE.shape[-1]
        return logits_KNE.gather(-1, expert_KNS)

    @staticmethod
    def backward(ctx: Any, grad_KNS: Tensor) -> tuple[Tensor, None]:
        (expert_KNS,) = ctx.saved_tensors
        grad_KNE = grad_KNS.new_zeros((*grad_KNS.shape[:-1], ctx.n_experts))
        return grad_KNE.scatter_(-1, expert_KNS, grad_KNS), None


class SwiGLU(torch.autograd.Function):
    """silu(gate) * up * weight for (..., 2F) holding gate and up, and weight broadcastable to (..., F); arXiv 2002.05202, equation 6.

    The activations are computed anew in the backward pass: exponentials are cheaper than reading another (R, F) tensor from memory.
    """

    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        gate, up = gate_up.chunk(2, dim=-1)
        hidden = F.silu(gate).mul_(up)
        return hidden if weight is None else hidden.mul_(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None]:
        gate_up, weight = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        activated = F.silu(gate)
        grad_hidden = grad if weight is None else grad * weight
        grad_gate_up = torch.empty_like(gate_up)
        grad_gate, grad_up = grad_gate_up.chunk(2, dim=-1)
        torch.mul(grad_hidden, activated, out=grad_up)
        grad_gate.copy_(torch.ops.aten.silu_backward(grad_hidden * up, gate))
        grad_weight = None if weight is None else activated.mul_(up).mul_(grad).sum(-1, keepdim=True)
        return grad_gate_up, grad_weight


def grouped_product(rows_RX: Tensor, matrices_GXY: Tensor, group_ends_G: Tensor) -> Tensor:
    """Multiplies each group of rows with its own matrix: (R, X) by (G, X, Y) gives (R, Y).

    Uses `torch.nn.functional.grouped_mm`; where it is missing for a type or device, one product per group.
    """
    if has_grouped_mm(rows_RX.dtype, rows_RX.device.type):
        product: Tensor = F.grouped_mm(rows_RX, matrices_GXY, offs=group_ends_G)
        return product
    return looped_product(rows_RX, matrices_GXY, group_ends_G)


def has_grouped_mm(dtype: torch.dtype, device_type: str) -> bool:
    """Whether grouped products, with gradients, are offered: float32 on a CPU, bfloat16 on a GPU (torch 2.13)."""
    return hasattr(F, "grouped_mm") and (dtype, device_type) in {(torch.float32, "cpu"), (torch.bfloat16, "cuda")}


def looped_product(rows_RX: Tensor, matrices_GXY: Tensor, group_ends_G: Tensor) -> Tensor:
    """As `grouped_product`, one group after the other; waits for the device to learn the sizes."""
    ends = group_ends_G.tolist()
    pieces = rows_RX.split([end - start for start, end in zip([0, *ends[:-1]], ends, strict=True)])
    return torch.cat([piece @ matrix for piece, matrix in zip(pieces, matrices_GXY, strict=True)])


class PackedMoE(nn.Module):
    """Residual + shared experts + the chosen routed experts, all on norm(x).

    The scores are a softmax over experts; the S largest of score + bias are chosen, and weighted by their scores normalized over the chosen,
    without bias (as Mixtral, arXiv 2401.04088, section 2.1, and DeepSeek-V3, arXiv 2412.19437, equations 13 to 16). Normalized, because with few experts the
    plain softmax scores would scale the routed part to a quarter of the shared one at the start.

    Parameters: norm (K, D); router (K, D, E); expert_in (K, E, D, 2F), gate then up; expert_out (K, E, F, D); shared_in (K, D, 2F');
    shared_out (K, F', D). Buffers: router_bias (K, E), float; load (K, E), int64: rows per expert in the last training pass.
    """

    router_bias: Tensor
    load: Tensor

    def __init__(self, config: ProxyConfig, members: int) -> None:
        super().__init__()
        self.config = config
        d_model, n_experts, d_expert, d_shared = config.d_model, config.n_experts, config.d_expert, config.d_shared
        self.norm = nn.Parameter(torch.empty(members, d_model))
        self.router = nn.Parameter(torch.empty(members, d_model, n_experts))
        self.expert_in = nn.Parameter(torch.empty(members, n_experts, d_model, 2 * d_expert))
        self.expert_out = nn.Parameter(torch.empty(members, n_experts, d_expert, d_model))
        self.shared_in = nn.Parameter(torch.empty(members, d_model, 2 * d_shared))
        self.shared_out = nn.Parameter(torch.empty(members, d_shared, d_model))
        self.register_buffer("router_bias", torch.zeros(members, n_experts))
        self.register_buffer("load", torch.zeros(members, n_experts, dtype=torch.int64), persistent=False)

    def forward(self, x_KND: Tensor, record_load: bool) -> Tensor:
        """Maps (K, N, D) to (K, N, D); with `record_load`, keeps the rows per expert for `update_bias`."""
        normed_KND = rms_norm(x_KND, self.config.norm_eps, self.norm)
        expert_KNS, weight_KNS = self.route(normed_KND)
        dispatch = plan_dispatch(expert_KNS.permute(2, 0, 1), self.config.n_experts)
        if record_load:
            self.load.copy_(dispatch.load_KE)
        routed_KND = self._routed(normed_KND, weight_KNS, dispatch)
        shared_KNF = SwiGLU.apply(torch.bmm(normed_KND, self.shared_in), None)
        return torch.baddbmm(x_KND, shared_KNF, self.shared_out) + routed_KND

    def route(self, normed_KND: Tensor) -> tuple[Tensor, Tensor]:
        """Chosen experts, int64 (K, N, S), and their weights (K, N, S), which sum to one over S."""
        logits_KNE = torch.bmm(normed_KND, self.router)
        scores_KNE = logits_KNE.detach().softmax(-1)
        expert_KNS = (scores_KNE + self.router_bias[:, None, :]).topk(self.config.top_k, dim=-1).indices
        # The softmax of the chosen logits is the softmax of all, normalized over the chosen; it cannot divide by an underflow.
        weight_KNS = PickLogits.apply(logits_KNE, expert_KNS).softmax(-1)
        return expert_KNS, weight_KNS

    def _routed(self, normed_KND: Tensor, weight_KNS: Tensor, dispatch: Dispatch) -> Tensor:
        rows_RD = ToRows.apply(normed_KND.flatten(0, 1), dispatch)
        weight_R1 = SortWeights.apply(weight_KNS.permute(2, 0, 1).flatten(), dispatch)[:, None]
        gate_up_RF = grouped_product(rows_RD, self.expert_in.flatten(0, 1), dispatch.group_ends_G)
        # Weighted before the last product, where rows are half as wide as after it.
        hidden_RF = SwiGLU.apply(gate_up_RF, weight_R1)
        out_RD = grouped_product(hidden_RF, self.expert_out.flatten(0, 1), dispatch.group_ends_G)
        members, tokens, _ = normed_KND.shape
        mixed_MD: Tensor = FromRows.apply(out_RD, dispatch, members * tokens)
        return mixed_MD.view_as(normed_KND)

    @torch.no_grad()
    def update_bias(self, active_K: Sequence[bool] | None = None) -> None:
        """Moves the bias of each active member by `bias_update_rate` toward its underused experts; algorithm 1 of arXiv 2408.15664."""
        load_KE = self.load.to(self.router_bias.dtype)
        step_KE = self.config.bias_update_rate * (load_KE.mean(-1, keepdim=True) - load_KE).sign()
        if active_K is not None:
            active = torch.as_tensor(active_K, dtype=torch.bool, device=step_KE.device)
            step_KE = torch.where(active[:, None], step_KE, torch.zeros_like(step_KE))
        self.router_bias += step_KE
