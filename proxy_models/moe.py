"""Router, dispatch, experts and combine of K stacked members.

Tokens of all members are sorted by (member, expert). On a CPU the experts of one member then run in one batched product, padded to the fullest of
them: small batched products reach the speed of large ones, which a loop over experts does not. Dispatch and combine only gather, forward and
backward: no two threads ever add into one place, so that the result does not depend on their order. A member's layout follows from its own load
alone, so that its last digits do not depend on its company. The trade-off: the loads come to the host, and rows of padding are computed, where loads
differ much as many as cost what a product for each expert would (`CALL_MULTIPLICATIONS`).

Load is balanced by a bias that no gradient trains: it is added to the scores for the choice of experts alone, and moves by a fixed step toward the
experts that had too few tokens (arXiv 2408.15664, algorithm 1). Instead or as well, where the configuration asks for it, by a loss (`balancing`).

Legend: K pack members, N tokens of a member, M = K*N tokens of the pack, D model width, E experts, S experts chosen per token,
R = S*M slots (one per token and chosen expert), P rows (slots sorted by group, and padding), G = K*E groups, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxy_models.balancing import BalanceLoss, Routing
from proxy_models.config import ProxyConfig
from proxy_models.layers import rms_norm

ROW_MULTIPLE = 16
"""Blocks of rows are multiples of this, so that products come in few shapes: a library that makes code for every new shape stays fast."""
CALL_MULTIPLICATIONS = 1_200_000
"""What starting one more product costs, in multiplications that could have been done instead: about 10 microseconds at 240 billion FLOPs per second. A
member's experts share one batched product, padded to the fullest, unless the padding costs more than a product for each expert."""


@dataclass(frozen=True)
class Block:
    """Rows of consecutive experts of one member, the same number for each.

    Attributes:
        start: first row.
        member, first, last: experts `first` to `last - 1` of this member.
        capacity: rows of each.
    """

    start: int
    member: int
    first: int
    last: int
    capacity: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + (self.last - self.first) * self.capacity)


@dataclass(frozen=True)
class Dispatch:
    """Where each slot (choice s of token m, slot s*M + m) lies among the rows, which are sorted by group and padded.

    A padding row repeats the first token of its member with weight zero: no gradient passes, and no other member's numbers are read.

    Attributes:
        row_of_slot_R: row of each slot.
        token_of_row_P: which token of the pack each row holds.
        blocks: all rows, in order.
        load_KE: slots per expert, int64.
    """

    row_of_slot_R: Tensor
    token_of_row_P: Tensor
    blocks: tuple[Block, ...]
    load_KE: Tensor


def plan_dispatch(expert_SKN: Tensor, n_experts: int, row_multiplications: int) -> Dispatch:
    """Sorts the chosen experts, int64 (S, K, N), by member and expert; stable, so that rows of a group stay in slot order.

    Args:
        row_multiplications: what one row costs in the larger of the expert's products; decides how much padding is worth its while.
    """
    choices, members, tokens = expert_SKN.shape
    group_SKN = expert_SKN + n_experts * torch.arange(members, device=expert_SKN.device)[:, None]
    sorted_R, slot_of_sorted_R = torch.sort(group_SKN.flatten(), stable=True)
    load_G = torch.bincount(sorted_R, minlength=members * n_experts)
    load_KE = load_G.view(members, n_experts)
    blocks, starts = _blocks(load_KE.tolist(), choices * tokens, row_multiplications)
    # Row of a sorted slot: its group's first row, plus its place in the group.
    shift_G = torch.tensor(starts, device=load_G.device) - (load_G.cumsum(0) - load_G)
    row_of_sorted_R = torch.arange(len(sorted_R), device=sorted_R.device) + shift_G[sorted_R]
    row_of_slot_R = torch.empty_like(slot_of_sorted_R).scatter_(0, slot_of_sorted_R, row_of_sorted_R)  # no place is written twice
    token_of_row_P = _first_tokens(blocks, tokens).to(sorted_R.device).scatter_(0, row_of_sorted_R, slot_of_sorted_R % (members * tokens))
    return Dispatch(row_of_slot_R, token_of_row_P, blocks, load_KE)


def _blocks(loads_KE: list[list[int]], slots: int, row_multiplications: int) -> tuple[tuple[Block, ...], list[int]]:
    """Blocks of every member, by its own load alone, and the first row of every group.

    Args:
        slots: of one member, chosen experts times tokens.
    """
    blocks, starts, row = [], [], 0
    for member, loads in enumerate(loads_KE):
        multiple = ROW_MULTIPLE * max(1, slots // len(loads) // (16 * ROW_MULTIPLE))
        capacities = [max(1, -(-load // multiple)) * multiple for load in loads]
        padding = max(capacities) * len(loads) - sum(capacities)
        if padding * row_multiplications <= (len(loads) - 1) * CALL_MULTIPLICATIONS:
            sizes = [(0, len(loads), max(capacities))]
        else:
            sizes = [(expert, expert + 1, capacity) for expert, capacity in enumerate(capacities)]
        for first, last, capacity in sizes:
            blocks.append(Block(row, member, first, last, capacity))
            starts += [row + index * capacity for index in range(last - first)]
            row += (last - first) * capacity
    return tuple(blocks), starts


def _first_tokens(blocks: Sequence[Block], tokens: int) -> Tensor:
    """The first token of the member of every row."""
    lengths = torch.tensor([block.rows.stop - block.rows.start for block in blocks])
    return torch.repeat_interleave(torch.tensor([block.member * tokens for block in blocks]), lengths)


def _sum_over_choices(rows_PD: Tensor, dispatch: Dispatch, tokens: int) -> Tensor:
    """Adds up the S rows of each token; (M, D). The order of addition is the order of choices."""
    rows_of_token = dispatch.row_of_slot_R.view(-1, tokens)
    total_MD = rows_PD.index_select(0, rows_of_token[0])
    for rows_M in rows_of_token[1:]:
        total_MD += rows_PD.index_select(0, rows_M)
    return total_MD


class ToRows(torch.autograd.Function):
    """Copies tokens (M, D) to rows (P, D) in group order. Backward gathers and adds the rows of each token."""

    @staticmethod
    def forward(ctx: Any, x_MD: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch, ctx.tokens = dispatch, len(x_MD)
        return x_MD.index_select(0, dispatch.token_of_row_P)

    @staticmethod
    def backward(ctx: Any, grad_PD: Tensor) -> tuple[Tensor, None]:
        return _sum_over_choices(grad_PD, ctx.dispatch, ctx.tokens), None


class FromRows(torch.autograd.Function):
    """Adds up the rows (P, D) of each token into (M, D). Backward copies tokens to rows."""

    @staticmethod
    def forward(ctx: Any, rows_PD: Tensor, dispatch: Dispatch, tokens: int) -> Tensor:
        ctx.dispatch = dispatch
        return _sum_over_choices(rows_PD, dispatch, tokens)

    @staticmethod
    def backward(ctx: Any, grad_MD: Tensor) -> tuple[Tensor, None, None]:
        return grad_MD.index_select(0, ctx.dispatch.token_of_row_P), None, None


class SortWeights(torch.autograd.Function):
    """Brings weights from slot order (R,) into row order (P,), zero for padding; backward gathers."""

    @staticmethod
    def forward(ctx: Any, weight_R: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.dispatch = dispatch
        return weight_R.new_zeros(len(dispatch.token_of_row_P)).scatter_(0, dispatch.row_of_slot_R, weight_R)

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None]:
        return grad_P.index_select(0, ctx.dispatch.row_of_slot_R), None


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


class ExpertProduct(torch.autograd.Function):
    """Multiplies each row with its expert's matrix: (P, X) by (K, E, X, Y) gives (P, Y); one batched product per block."""

    @staticmethod
    def forward(ctx: Any, rows_PX: Tensor, matrices_KEXY: Tensor, dispatch: Dispatch) -> Tensor:
        ctx.save_for_backward(rows_PX, matrices_KEXY)
        ctx.dispatch = dispatch
        out_PY = rows_PX.new_empty(len(rows_PX), matrices_KEXY.shape[-1])
        for block in dispatch.blocks:
            matrices_EXY = matrices_KEXY[block.member, block.first : block.last]
            torch.bmm(_by_expert(rows_PX, block), matrices_EXY, out=_by_expert(out_PY, block))
        return out_PY

    @staticmethod
    def backward(ctx: Any, grad_PY: Tensor) -> tuple[Tensor, Tensor, None]:
        rows_PX, matrices_KEXY = ctx.saved_tensors
        grad_PX, grad_KEXY = torch.empty_like(rows_PX), torch.empty_like(matrices_KEXY)
        for block in ctx.dispatch.blocks:
            grad_ECY = _by_expert(grad_PY, block)
            matrices_EXY = matrices_KEXY[block.member, block.first : block.last]
            torch.bmm(grad_ECY, matrices_EXY.mT, out=_by_expert(grad_PX, block))
            torch.bmm(_by_expert(rows_PX, block).mT, grad_ECY, out=grad_KEXY[block.member, block.first : block.last])
        return grad_PX, grad_KEXY, None


def _by_expert(rows_PX: Tensor, block: Block) -> Tensor:
    """The rows of a block, (experts, capacity, X)."""
    return rows_PX[block.rows].view(block.last - block.first, block.capacity, -1)


class PackedMoE(nn.Module):
    """Residual + shared experts + the chosen routed experts, all on norm(x).

    The scores are a softmax over experts; the S largest of score + bias are chosen, and weighted by their scores normalized over the chosen,
    without bias (as Mixtral, arXiv 2401.04088, section 2.1, and DeepSeek-V3, arXiv 2412.19437, equations 13 to 16). Normalized, because with few experts the
    plain softmax scores would scale the routed part to a quarter of the shared one at the start.

    Parameters: norm (K, D); router (K, D, E); expert_in (K, E, D, 2F), gate then up; expert_out (K, E, F, D); shared_in (K, D, 2F');
    shared_out (K, F', D). Buffers: router_bias (K, E), float; load (K, E), int64: rows per expert in the last training pass; counted (K, E), int64:
    the same, summed over the steps taken since it was last zero.

    Attributes:
        watch: told of each pass what the router decided; None: nobody.
    """

    router_bias: Tensor
    load: Tensor
    counted: Tensor

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
        self.register_buffer("counted", torch.zeros(members, n_experts, dtype=torch.int64), persistent=False)
        self.watch: Callable[[Routing], None] | None = None
        self._balance_loss_K: Tensor | None = None

    def forward(self, x_KND: Tensor, record_load: bool) -> Tensor:
        """Maps (K, N, D) to (K, N, D); with `record_load`, keeps the rows per expert for `update_bias`, and the balancing loss."""
        normed_KND = rms_norm(x_KND, self.config.norm_eps, self.norm)
        routing = self.route(normed_KND)
        row_multiplications = 2 * self.config.d_model * self.config.d_expert
        dispatch = plan_dispatch(routing.expert_KNS.permute(2, 0, 1), self.config.n_experts, row_multiplications)
        if record_load:
            self._record(routing, dispatch.load_KE)
        routed_KND = self._routed(normed_KND, routing.weight_KNS, dispatch)
        shared_KNF = SwiGLU.apply(torch.bmm(normed_KND, self.shared_in), None)
        return torch.baddbmm(x_KND, shared_KNF, self.shared_out) + routed_KND

    def route(self, normed_KND: Tensor) -> Routing:
        """Chooses experts for tokens (K, N, D), and weighs them."""
        logits_KNE = torch.bmm(normed_KND, self.router)
        scores_KNE = logits_KNE.detach().softmax(-1)
        expert_KNS = (scores_KNE + self.router_bias[:, None, :]).topk(self.config.top_k, dim=-1).indices
        # The softmax of the chosen logits is the softmax of all, normalized over the chosen; it cannot divide by an underflow.
        weight_KNS = PickLogits.apply(logits_KNE, expert_KNS).softmax(-1)
        routing = Routing(expert_KNS, weight_KNS, logits_KNE, scores_KNE)
        if self.watch is not None:
            self.watch(routing)
        return routing

    def _record(self, routing: Routing, load_KE: Tensor) -> None:
        self.load.copy_(load_KE)
        if self.config.auxiliary_loss:
            self._balance_loss_K = BalanceLoss.apply(routing.logits_KNE, routing.scores_KNE, load_KE)

    def take_balance_loss(self) -> Tensor:
        """The balancing loss of the last training pass, (K,), once: it holds what its gradient needs."""
        loss_K, self._balance_loss_K = self._balance_loss_K, None
        assert loss_K is not None, "a training pass with an auxiliary loss comes first"
        return loss_K

    def _routed(self, normed_KND: Tensor, weight_KNS: Tensor, dispatch: Dispatch) -> Tensor:
        rows_PD = ToRows.apply(normed_KND.flatten(0, 1), dispatch)
        weight_P1 = SortWeights.apply(weight_KNS.permute(2, 0, 1).flatten(), dispatch)[:, None]
        gate_up_PF = ExpertProduct.apply(rows_PD, self.expert_in, dispatch)
        # Weighted before the last product, where rows are half as wide as after it.
        hidden_PF = SwiGLU.apply(gate_up_PF, weight_P1)
        out_PD = ExpertProduct.apply(hidden_PF, self.expert_out, dispatch)
        members, tokens, _ = normed_KND.shape
        mixed_MD: Tensor = FromRows.apply(out_PD, dispatch, members * tokens)
        return mixed_MD.view_as(normed_KND)

    @torch.no_grad()
    def update_bias(self, active_K: Sequence[bool] | Tensor | None = None) -> None:
        """Moves the bias of each active member by `bias_update_rate` toward its underused experts; algorithm 1 of arXiv 2408.15664."""
        if not self.config.bias_update_rate:
            return
        load_KE = self.load.to(self.router_bias.dtype)
        step_KE = self.config.bias_update_rate * (load_KE.mean(-1, keepdim=True) - load_KE).sign()
        if active_K is not None:
            active = torch.as_tensor(active_K, dtype=torch.bool, device=step_KE.device)
            step_KE = torch.where(active[:, None], step_KE, torch.zeros_like(step_KE))
        self.router_bias += step_KE

    @torch.no_grad()
    def count_load(self, active_K: Sequence[bool] | Tensor | None = None) -> None:
        """Adds the load of the last training pass to what is counted of each active member."""
        if active_K is None:
            self.counted += self.load
        else:
            self.counted += self.load * torch.as_tensor(active_K, dtype=torch.bool, device=self.load.device)[:, None]
