"""Dispatch, expert products and combine of K stacked members, of shapes that do not depend on the data and without asking the host: for a
GPU.

Tokens of all members are sorted by (member, expert); every expert of the pack runs in one grouped product, or in one batched product of
fixed capacity. Dispatch and combine only gather, forward and backward: no two threads ever add into one place, so that the result does not
depend on their order. The trade-off against the form of `moe`, which looks at the load before it multiplies: that one fits its products to
the data, and a graph cannot.

Legend: K pack members, N tokens of a member, M = K*N tokens of the pack, D model width, E experts, S experts chosen per token, R = S*M rows
(one per token and chosen expert, sorted by group), G = K*E groups, F hidden width of an expert.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from proxy_models.device.capacity import capacity_product, plan_places

ExpertProduct = Callable[[Tensor, Tensor], Tensor]
"""Multiplies rows (R, X), sorted by group, with the matrices (G, X, Y) of their groups."""

MOST_GROUPS = 1023
"""Groups of one call on a GPU (torch 2.13 prepares them in one block of threads)."""


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


def grouped_product(dispatch: Dispatch) -> ExpertProduct:
    """All groups in one call of torch's grouped product, or in as few as its limit allows.

    On a GPU of compute capability 9 or 10 it takes the sizes of groups from the device. A weight's gradient sums over rows there, and may
    do so over any number of them, even none, only in this layout: transposed rows times rows, which is what its backward pass uses for
    matrices that are contiguous.
    """
    members, n_experts = dispatch.load_KE.shape
    # Every member has as many rows as any other, whatever its experts get, so the split into calls does not depend on the data.
    rows_of_member, together = len(dispatch.slot_of_row_R) // members, max(1, MOST_GROUPS // n_experts)

    def product(rows_RX: Tensor, matrices_GXY: Tensor) -> Tensor:
        parts = []
        for first in range(0, members, together):
            last = min(first + together, members)
            groups = slice(first * n_experts, last * n_experts)
            ends_G = dispatch.group_ends_G[groups] - first * rows_of_member
            parts.append(F.grouped_mm(rows_RX[first * rows_of_member : last * rows_of_member], matrices_GXY[groups], offs=ends_G))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    return product


def padded_product(dispatch: Dispatch, capacity: int) -> ExpertProduct:
    """All groups in one batched product, each with room for `capacity` rows; see `capacity`."""
    places = plan_places(dispatch.group_ends_G, len(dispatch.slot_of_row_R), capacity)
    return lambda rows_RX, matrices_GXY: capacity_product(rows_RX, matrices_GXY, places)
