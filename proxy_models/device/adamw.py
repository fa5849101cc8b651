"""AdamW for a pack that never asks the host: rates, clip factors, step counters and who takes the step are tensors on the device.

The same update as `PackedAdamW`, whose state it shares, so that checkpoints of either serve both. Torch's fused kernel takes one rate, one
divisor and one flag per call, hence a call per member and group of tensors. In a CUDA graph that costs no launch from the host, but one
member's weights keep only a part of a large GPU busy (a block per 65,536 weights), so the calls go to several streams that run side by
side. The trade-off: 2 K small kernels where one kernel over the whole stack could do; that one would have to be our own.

A member that does not take the step is skipped by the kernel's own flag. Nothing is multiplied by zero to skip it: infinity times zero is
NaN.

Legend: K pack members.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from proxy_models.optimizer import PackedAdamW

LANES = 8
"""Streams that members' updates are spread over. An assumption: a micro proxy has about 50 blocks, an H100 132 multiprocessors of several
blocks each."""


class DeviceAdamW(PackedAdamW):
    """`PackedAdamW` whose `update` can be captured in a CUDA graph. Its arguments, state and limits are those of `PackedAdamW`."""

    @torch.no_grad()
    def update(self, gradients: Sequence[Tensor], rate_K: Tensor, active_K: Tensor) -> tuple[Tensor, Tensor]:
        """One step of every member that is active and has a finite gradient; the others keep weights, moments and counter.

        Args:
            gradients: one per parameter of the model, in their order; they are used up.
            rate_K: learning rate of this step, float32 (peak times scale).
            active_K: which members take part, bool.

        Returns:
            The gradient norm of each member before clipping, and which members took the step, bool. Both on the device.
        """
        gradients = [gradient.contiguous() for gradient in gradients]  # the kernel wants the strides of the weights
        # One reduction per parameter and member: none sees two members.
        norm_K = torch.stack([torch.linalg.vector_norm(gradients[index].flatten(1), dim=1) for index in self._trained]).norm(dim=0)
        stepped_K = active_K & norm_K.isfinite()
        divisor_K = torch.where(stepped_K, (norm_K / self.clip).clamp_min(1.0), torch.ones_like(norm_K))
        self._steps_K += stepped_K
        if self.fused:
            self._fused(gradients, rate_K, divisor_K, stepped_K)
        else:
            self._plain(gradients, rate_K, divisor_K, stepped_K)
        return norm_K, stepped_K

    def _fused(self, gradients: Sequence[Tensor], rate_K: Tensor, divisor_K: Tensor, stepped_K: Tensor) -> None:
        skipped_K = (~stepped_K).to(torch.float32)
        divisors, skipped = divisor_K.unbind(), skipped_K.unbind()
        rates_by_group = [(rate_K * group.multiplier).unbind() for group in self._groups]
        by_member = [
            [tensor.detach().unbind() for tensor in tensors] for tensors in (self._parameters, gradients, self._first, self._second)
        ]
        with _Lanes(rate_K.device) as lanes:
            for k in range(self.model.members):
                with lanes.lane(k):
                    for group, rates in zip(self._groups, rates_by_group, strict=True):
                        weights, slopes, first, second = ([tensors[index][k] for index in group.indices] for tensors in by_member)
                        torch._fused_adamw_(
                            weights,
                            slopes,
                            first,
                            second,
                            [],  # largest second moments, of the amsgrad variant
                            [self._steps[k]] * len(weights),
                            amsgrad=False,
                            maximize=False,
                            lr=rates[k],
                            beta1=self.betas[0],
                            beta2=self.betas[1],
                            weight_decay=group.decay,
                            eps=self.eps,
                            grad_scale=divisors[k],
                            found_inf=skipped[k],
                        )

    def _plain(self, gradients: Sequence[Tensor], rate_K: Tensor, divisor_K: Tensor, stepped_K: Tensor) -> None:
        """The same for all members at once, as algorithm 2 of arXiv 1711.05101 reads; several times the memory traffic."""
        beta1, beta2 = self.betas
        # Of members that never stepped these divide by zero; what comes of it is never chosen.
        first_root_K = 1.0 - beta1**self._steps_K
        root_K = (1.0 - beta2**self._steps_K).sqrt()
        for group in self._groups:
            group_rate_K = rate_K * group.multiplier
            for index in group.indices:
                weight, first, second = self._parameters[index], self._first[index], self._second[index]
                shape = (-1, *[1] * (weight.dim() - 1))
                stepped = stepped_K.view(shape)
                clipped = gradients[index] / divisor_K.view(shape)
                new_first = first.lerp(clipped, 1.0 - beta1)
                new_second = second * beta2 + clipped * clipped * (1.0 - beta2)
                change = (group_rate_K / first_root_K).view(shape) * new_first / (new_second.sqrt() / root_K.view(shape) + self.eps)
                new_weight = weight * (1.0 - group_rate_K.view(shape) * group.decay) - change
                for old, new in ((weight, new_weight), (first, new_first), (second, new_second)):
                    old.copy_(torch.where(stepped, new, old))


class _Lanes:
    """Streams that branch off the current one and join it again; nothing of the kind on a CPU.

    Forking and joining by events is what stream capture records as parallel branches of a graph.
    """

    def __init__(self, device: torch.device) -> None:
        self._streams = streams(device) if device.type == "cuda" else []

    def __enter__(self) -> _Lanes:
        for stream in self._streams:
            stream.wait_stream(torch.cuda.current_stream(stream.device))
        return self

    def lane(self, k: int) -> torch.cuda.StreamContext:
        """A context in which work goes to the lane of member k."""
        return torch.cuda.stream(self._streams[k % len(self._streams)] if self._streams else None)

    def __exit__(self, *_: object) -> None:
        for stream in self._streams:
            torch.cuda.current_stream(stream.device).wait_stream(stream)


@functools.cache
def streams(device: torch.device) -> list[torch.cuda.Stream]:
    """The lanes of a device, made once: torch hands out 32 streams in turn, so new ones would in time be those that are in use."""
    return [torch.cuda.Stream(device) for _ in range(LANES)]
