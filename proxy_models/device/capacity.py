"""Expert products of a fixed shape: every group of rows is padded to one capacity, so that no size of a group is ever asked for.

The stand-in for `torch.nn.functional.grouped_mm` on devices where that needs the host, or cannot be captured in a CUDA graph
(pytorch#169970 is an open report). Capacity belongs to one expert of one member, never to a pool: what is dropped depends on the member
alone. The trade-off: padding is computed for nothing, `capacity_factor` times the work if experts are evenly used.

Padding and its inverse only gather, forward and backward, as the dispatch does. Padding is zero and not merely unused: a weight's gradient
sums over it, and a number times zero is zero only if the number is finite.

Legend: R rows sorted by group, G = K*E groups, C places of a group, X and Y widths.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where rows lie when every group has C places.

    Attributes:
        row_of_place_GC: the row at each place; some row where the place is empty.
        filled_GC: whether the place holds a row.
        place_of_row_R: the place of each row, counted through all groups; some place where the row was dropped.
        kept_R: whether the row has a place.
    """

    row_of_place_GC: Tensor
    filled_GC: Tensor
    place_of_row_R: Tensor
    kept_R: Tensor


def capacity_rows(tokens: int, n_experts: int, top_k: int, factor: float) -> int:
    """C: `factor` even shares of a member's rows, at most its tokens, since no token goes to an expert twice; a multiple of 8 below that."""
    share = factor * tokens * top_k / n_experts
    return min(tokens, 8 * math.ceil(share / 8))


def plan_places(group_ends_G: Tensor, rows: int, capacity: int) -> Places:
    """The first `capacity` rows of every group keep a place: those of the earliest choices, and among them of the earliest tokens."""
    ends_G = group_ends_G.to(torch.int64)
    starts_G = torch.cat([torch.zeros_like(ends_G[:1]), ends_G[:-1]])
    row_of_place_GC = starts_G[:, None] + torch.arange(capacity, device=ends_G.device)
    rows_R = torch.arange(rows, device=ends_G.device)
    group_of_row_R = torch.searchsorted(ends_G, rows_R, right=True)
    position_R = rows_R - starts_G.index_select(0, group_of_row_R)
    return Places(
        row_of_place_GC=row_of_place_GC.clamp(max=rows - 1),
        filled_GC=row_of_place_GC < ends_G[:, None],
        place_of_row_R=group_of_row_R * capacity + position_R.clamp(max=capacity - 1),
        kept_R=position_R < capacity,
    )


def dropped_rows(load_KE: Tensor, capacity: int) -> Tensor:
    """Rows of each member that found no place, (K,)."""
    return (load_KE - capacity).clamp_min(0).sum(-1)


class Pad(torch.autograd.Function):
    """Rows (R, X) to places (G, C, X), zero where a place is empty; the backward pass takes them out again."""

    @staticmethod
    def forward(ctx: Any, rows_RX: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return _pad(rows_RX, places)

    @staticmethod
    def backward(ctx: Any, grad_GCX: Tensor) -> tuple[Tensor, None]:
        return _take_out(grad_GCX, ctx.places), None


class TakeOut(torch.autograd.Function):
    """Places (G, C, Y) to rows (R, Y), zero where a row was dropped; the backward pass pads."""

    @staticmethod
    def forward(ctx: Any, places_GCY: Tensor, places: Places) -> Tensor:
        ctx.places = places
        return _take_out(places_GCY, places)

    @staticmethod
    def backward(ctx: Any, grad_RY: Tensor) -> tuple[Tensor, None]:
        return _pad(grad_RY, ctx.places), None


def _pad(rows_RX: Tensor, places: Places) -> Tensor:
    padded_GCX = rows_RX.index_select(0, places.row_of_place_GC.flatten()).unflatten(0, places.row_of_place_GC.shape)
    return torch.where(places.filled_GC[..., None], padded_GCX, torch.zeros_like(padded_GCX))


def _take_out(places_GCX: Tensor, places: Places) -> Tensor:
    rows_RX = places_GCX.flatten(0, 1).index_select(0, places.place_of_row_R)
    return torch.where(places.kept_R[:, None], rows_RX, torch.zeros_like(rows_RX))


def capacity_product(rows_RX: Tensor, matrices_GXY: Tensor, places: Places) -> Tensor:
    """Multiplies each group of rows with its own matrix: (R, X) by (G, X, Y) gives (R, Y); rows without a place give zeros."""
    product_RY: Tensor = TakeOut.apply(torch.bmm(Pad.apply(rows_RX, places), matrices_GXY), places)
    return product_RY
