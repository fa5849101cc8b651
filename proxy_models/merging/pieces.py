"""The pieces that operators take as one vector each, and the blocks of rows in which these stream.

A piece is a whole tensor, or one expert's matrix of a stacked one, as it would be a tensor of its own in most formats: an expert that few
tokens were sent to has moved little, and a threshold over all experts would leave nothing of it. Fused matrices (query, key and value; gate
and up) are one piece. A block is some rows of a piece, of all components at once. Blocks are as small as it takes for all of them together
to stay under a quarter of one model. The trade-off: small proxies of many components stream in small blocks, at some microseconds each.

Adding one vector to the rows of all experts of a router changes nothing (each token's logits move together), so that routers are compared
and merged by nonlinear operators only after their mean row has been taken away. As logits are products with (D, E), a row of an expert is a
column here.

Legend: K components, D model width, E experts; X rows of a block and whatever axes follow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxy_models.merging.components import Component, MoeTensor, Shapes, moe_tensor

BLOCK_SHARE = 1 / 4
"""Share of one model's memory that the blocks of one step may take."""
LARGEST_BLOCK = 2**18
"""Elements of a block and component: small enough for a core's cache, large enough not to count blocks."""


@dataclass(frozen=True)
class Block:
    """Some rows of a piece.

    Attributes:
        first: the first of them.
        theta_KX: of the components, float32.
        base_X: of the base, float32; None without one.
    """

    first: int
    theta_KX: Tensor
    base_X: Tensor | None

    def base(self) -> Tensor:
        """The base, float64."""
        assert self.base_X is not None, "merge() has checked that there is one"
        return self.base_X.double()

    def displacement(self, k: int) -> Tensor:
        """theta_k - theta_0, float64; theta_k where there is no base."""
        theta_X = self.theta_KX[k].double()
        return theta_X if self.base_X is None else theta_X - self.base_X.double()

    def magnitude(self, k: int) -> Tensor:
        """|theta_k - theta_0|, float32, rounded exactly as in `Piece.magnitudes`."""
        return self.theta_KX[k].abs() if self.base_X is None else (self.theta_KX[k] - self.base_X).abs()


@dataclass(frozen=True)
class Piece:
    """One vector of every component, with the weights of the merge.

    Attributes:
        components: those of weight other than zero.
        weights_K: of the components, summing to one; positive, but in a linear merge.
        tensor: its name.
        moe: what that is to routed experts.
        expert: whose matrix it is; None: the whole tensor.
        shape: of the piece, without an axis of experts.
        centred: rows are given without the mean over experts; routers only.
        block_rows: rows of a block.
    """

    components: Sequence[Component]
    base: Component | None
    weights_K: Sequence[float]
    tensor: str
    moe: MoeTensor | None
    expert: int | None
    shape: tuple[int, ...]
    centred: bool
    block_rows: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    def starts(self) -> range:
        """First rows of the blocks."""
        return range(0, self.shape[0], self.block_rows)

    def rows(self, component: Component, first: int) -> Tensor:
        """The block from row `first` on of one model, float32.

        Raises:
            ValueError: a number is not finite.
        """
        rows_X = component.rows(self.tensor, first, min(first + self.block_rows, self.shape[0]), self.expert)
        if not bool(torch.isfinite(rows_X).all()):
            raise ValueError(
                f"'{self.tensor}' of component '{component.name}' holds numbers that are not finite; leave that component out."
            )
        return rows_X - rows_X.mean(-1, keepdim=True) if self.centred else rows_X

    def block(self, first: int) -> Block:
        """The block from row `first` on."""
        theta_KX = torch.stack([self.rows(component, first) for component in self.components])
        return Block(first, theta_KX, None if self.base is None else self.rows(self.base, first))

    def blocks(self) -> Iterator[Block]:
        """All blocks, in order."""
        return map(self.block, self.starts())

    def magnitudes(self, k: int) -> NDArray[np.float32]:
        """|theta_k - theta_0| of the whole piece, or |theta_k| without a base, as one vector of its own."""
        magnitudes = torch.empty(self.elements)
        place = 0
        for first in self.starts():
            block = Block(first, self.rows(self.components[k], first)[None], None if self.base is None else self.rows(self.base, first))
            part = block.magnitude(0).flatten()
            magnitudes[place : place + len(part)] = part
            place += len(part)
        return magnitudes.numpy()

    def mean_over_experts(self, first: int) -> Tensor:
        """What was taken away from the block of a centred piece: the mean over experts, weighted over components; float64."""
        last = min(first + self.block_rows, self.shape[0])
        means = (component.rows(self.tensor, first, last).mean(-1, keepdim=True) for component in self.components)
        return weighted_sum(self.weights_K, means)


def pieces_of(
    components: Sequence[Component], base: Component | None, weights_K: Sequence[float], tensor: str, centre: bool
) -> Iterator[Piece]:
    """The pieces of a tensor: one, or one for each expert.

    Args:
        centre: routers are to be centred.
    """
    moe, shape = moe_tensor(tensor), components[0].shapes[tensor]
    by_expert = moe is not None and moe.by_expert
    piece_shape = shape[1:] if by_expert else shape
    rows = block_rows(components[0].shapes, piece_shape, len(components))
    for expert in range(shape[0]) if by_expert else [None]:
        centred = centre and moe is not None and moe.kind == "router"
        yield Piece(components, base, weights_K, tensor, moe, expert, piece_shape, centred, rows)


def block_rows(shapes: Shapes, piece_shape: tuple[int, ...], components: int) -> int:
    """Rows of a block, at least one.

    Of an element of a block an operator holds at most K numbers of four bytes twice (as read, and stacked), K and about ten of eight bytes.
    """
    model = 4 * sum(math.prod(shape) for shape in shapes.values())
    elements = min(LARGEST_BLOCK, BLOCK_SHARE * model / (16 * components + 80))
    return max(1, int(elements) // max(1, math.prod(piece_shape[1:])))


def weighted_sum(weights_K: Sequence[float | Tensor], terms_KX: Iterable[Tensor]) -> Tensor:
    """Sum of w_k times term k, float64.

    A product and a sum for every term, one after the other, each rounded once: the result does not depend on how elements are laid out, so
    that many merges at once equal the single ones bit for bit, which matrix products of one and of many rows do not. In float64 a mean of
    equal float32 numbers is that number once it is rounded.

    Args:
        weights_K: a number for every term, or a tensor that broadcasts against it.
    """
    total: Tensor | None = None
    for weight, term_X in zip(weights_K, terms_KX, strict=True):
        product = term_X.double() * weight
        total = product if total is None else total.add_(product)
    assert total is not None, "there is at least one term"
    return total
