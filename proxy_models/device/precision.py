"""In which precision a pack computes on a GPU, and by which products its experts run.

Weights, their gradients, moments, the router, softmaxes and the loss are float32. Matrix products read bfloat16 copies, made once per step,
and sum in float32; weights' gradients are rounded once, as products give them, but for the embedding's, most of a small proxy, which never
are. On a CPU without bfloat16 units such products were 4.6 times slower (packed-training.md, section 1), so it has a path of its own, in
float32.

The residual stream stays float32, too: it is the one place where rounding adds up over layers and where small contributions meet a large
sum. By arithmetic that costs 2, 6 and 11 percent of a step's memory traffic at nano, micro and small, whose logits and activations are the
rest. It is the trade-off made here for curves that differ from float32's by less than seeds do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LOSS_BYTES = 512 * 2**20
"""Workspace of the loss per group of members on a GPU. An assumption: 6 members of 1,024 tokens and 8,192 entries, which fill the device's
multiprocessors many times over, so that a larger group saves launches only."""

CAPACITY_FACTOR = 4.0
"""Rows that a group of the fixed-capacity products has room for, in multiples of an even share. With 8 experts of which 2 are active that
is every token of the member, so nothing is ever dropped; with 64 of which 8 are, half of them. An assumption, to be measured where a GPU
is."""


@dataclass(frozen=True)
class Compute:
    """How a pack computes on a device; a CPU has a path of its own, which this does not describe.

    Attributes:
        dtype: of the operands of large matrix products; None: as the weights.
        experts: "grouped": one grouped product over the rows as sorted; "capacity": groups padded to a fixed number of rows, for devices on
            which a grouped product would ask the host for its sizes.
        capacity_factor: room per group of the latter; rows beyond it are dropped, and counted.
        loss_bytes: workspace of the loss over groups of members.

    Raises:
        ValueError: a number is not positive.
    """

    dtype: torch.dtype | None = None
    experts: Literal["grouped", "capacity"] = "grouped"
    capacity_factor: float = CAPACITY_FACTOR
    loss_bytes: int = LOSS_BYTES

    def __post_init__(self) -> None:
        if not self.capacity_factor > 0 or self.loss_bytes < 1:
            raise ValueError(f"capacity_factor is {self.capacity_factor}, loss_bytes {self.loss_bytes}; both must be above 0.")

    def operand(self, tensor: Tensor) -> Tensor:
        """`tensor` as matrix products read it; its gradient comes back in its own type. No copy where the types are one."""
        return tensor if self.dtype is None else tensor.to(self.dtype)


def default_compute(device: torch.device) -> Compute | None:
    """What suits a device: None on a CPU; on a GPU bfloat16 if it has units for it, and the products that need no help from the host."""
    if device.type != "cuda":
        return None
    major, _ = torch.cuda.get_device_capability(device)
    return Compute(dtype=torch.bfloat16 if major >= 8 else None, experts="grouped" if grouped_without_host(device) else "capacity")


def grouped_without_host(device: torch.device) -> bool:
    """Whether bfloat16 grouped products run there without reading the sizes of groups on the host.

    torch 2.13 has kernels for compute capability 9 and 10; elsewhere it copies the offsets to the host and multiplies group by group.
    """
    return device.type == "cuda" and hasattr(torch.nn.functional, "grouped_mm") and torch.cuda.get_device_capability(device)[0] in (9, 10)


def product_into(out: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Batched product of operands of one type into `out`, whose type may be wider: what was summed in float32 is then never rounded. No
    gradient."""
    if out.dtype == first.dtype:
        return torch.bmm(first, second, out=out)
    if first.is_cuda:  # torch offers a wider output on a GPU only (2.8 on)
        return torch.bmm(first, second, out.dtype, out=out)
    return torch.bmm(first.to(out.dtype), second.to(out.dtype), out=out)
