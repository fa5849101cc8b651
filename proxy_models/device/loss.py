"""Next-token loss over groups of members at once: the form of `loss` for a GPU, where a loop over members and chunks would be thousands of
launches.

A group is as many members as fit into a bounded workspace, all their tokens at a time; where one member's logits are too many, its tokens
are chunked too. As in `loss`, the gradients are computed while the logits are there, and the backward pass only scales them. Logits,
softmax and loss are float32 whatever the operands are: a bfloat16 logit of 10 is off by up to 0.03 nats. Logits' gradients are rounded to
the operands' type for the two products that read them, which sum in float32. The trade-off: two workspaces of float32 logits, read and
written by separate kernels.

Where only some tokens are scored, a member's mean is over its scored tokens, as in `loss`. Logits are made for all of them nevertheless, because how many are
scored differs from step to step and a graph's shapes do not; what is not scored is left out of the sums by writing zeros over it.

Legend: K pack members, G members of a group, N tokens of a member, C tokens of a chunk, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxy_models.device.precision import Compute, product_into


@dataclass(frozen=True)
class Chunk:
    """Members and tokens that are computed together."""

    members: slice
    tokens: slice


def plan_chunks(members: int, tokens: int, vocabulary: int, element_bytes: int, workspace_bytes: int) -> Iterator[Chunk]:
    """Splits a pack: whole members while two logits per token and entry fit into the workspace, else one member and fewer tokens.

    Chunks of one member follow each other, in the order of tokens.
    """
    row_bytes = 2 * vocabulary * element_bytes
    rows = max(1, workspace_bytes // row_bytes)
    group, chunk = (min(members, rows // tokens), tokens) if rows >= tokens else (1, rows)
    for first in range(0, members, group):
        for start in range(0, tokens, chunk):
            yield Chunk(slice(first, min(first + group, members)), slice(start, min(start + chunk, tokens)))


class _Workspace:
    """Two buffers for the logits of a chunk, made once per pass. In a CUDA graph they live in its private pool and are the same at every
    replay."""

    def __init__(self, like: Tensor, chunks: list[Chunk], vocabulary: int) -> None:
        largest = max((one.members.stop - one.members.start) * (one.tokens.stop - one.tokens.start) for one in chunks)
        self._buffers = like.new_empty(2, largest * vocabulary)

    def log_probabilities(self, hidden_GCD: Tensor, output_GVD: Tensor) -> Tensor:
        """Log-softmax of the logits, (G, C, V), float32 or wider; valid until the next call."""
        shape = (*hidden_GCD.shape[:2], output_GVD.shape[1])
        size = shape[0] * shape[1] * shape[2]
        logits_GCV, log_p_GCV = (buffer[:size].view(shape) for buffer in self._buffers)
        product_into(logits_GCV, hidden_GCD, output_GVD.mT)
        out: Tensor = torch.ops.aten._log_softmax.out(logits_GCV, -1, False, out=log_p_GCV)
        return out

    def gradient(self, log_p_GCV: Tensor, target_GC1: Tensor, target_log_p_GC1: Tensor, dtype: torch.dtype) -> Tensor:
        """softmax - onehot in `dtype`, (G, C, V), in the place of the logits, which are no longer needed."""
        grad_GCV = self._buffers[0].view(dtype)[: log_p_GCV.numel()].view(log_p_GCV.shape)
        torch.exp(log_p_GCV, out=grad_GCV)
        # expm1, because p - 1 of a token that is nearly certain would lose its digits.
        return grad_GCV.scatter_(-1, target_GC1, target_log_p_GC1.expm1().to(dtype))


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


@torch.no_grad()
def group_token_losses(hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, compute: Compute) -> Tensor:
    """Loss of every token in nats, (K, N), float32 or wider. No gradient."""
    loss_KN = hidden_KND.new_empty(target_KN.shape, dtype=_wide(hidden_KND))
    chunks, workspace = _plan(hidden_KND, output_KVD, compute)
    for chunk in chunks:
        output_GVD = compute.operand(output_KVD[chunk.members])
        log_p_GCV = workspace.log_probabilities(compute.operand(hidden_KND[chunk.members, chunk.tokens]), output_GVD)
        loss_KN[chunk.members, chunk.tokens] = -log_p_GCV.gather(-1, target_KN[chunk.members, chunk.tokens, None]).squeeze(-1)
    return loss_KN


class GroupMeanLoss(torch.autograd.Function):
    """Mean loss of each member, with the gradients of hidden states and of the float32 output matrix computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, compute: Compute, scored_KN: Tensor | None) -> Tensor:
        members, tokens, _ = hidden_KND.shape
        left_out_KN1 = None if scored_KN is None else ~scored_KN[..., None]
        wide = _wide(hidden_KND)
        total_K = hidden_KND.new_zeros(members, dtype=wide)
        grad_hidden_KND = torch.empty_like(hidden_KND, dtype=wide)
        grad_output_KVD = torch.empty_like(output_KVD, dtype=wide)
        chunks, workspace = _plan(hidden_KND, output_KVD, compute)
        for chunk in chunks:
            group = chunk.members
            if chunk.tokens.start == 0:
                output_GVD = compute.operand(output_KVD[group])
            hidden_GCD, target_GC1 = compute.operand(hidden_KND[group, chunk.tokens]), target_KN[group, chunk.tokens, None]
            log_p_GCV = workspace.log_probabilities(hidden_GCD, output_GVD)
            target_log_p_GC1 = log_p_GCV.gather(-1, target_GC1)
            if left_out_KN1 is None:
                total_K[group] -= target_log_p_GC1.sum((1, 2))
            else:
                total_K[group] -= target_log_p_GC1.masked_fill(left_out_KN1[group, chunk.tokens], 0.0).sum((1, 2))
            grad_GCV = workspace.gradient(log_p_GCV, target_GC1, target_log_p_GC1, hidden_GCD.dtype)
            product_into(grad_hidden_KND[group, chunk.tokens], grad_GCV, output_GVD)
            if left_out_KN1 is not None:
                # In what is narrow, and not in the gradient of the logits, where it would be a pass over them.
                hidden_GCD = hidden_GCD.masked_fill(left_out_KN1[group, chunk.tokens], 0.0)
            if chunk.tokens.start == 0:
                product_into(grad_output_KVD[group], grad_GCV.mT, hidden_GCD)
            else:
                grad_output_KVD[group] += product_into(torch.empty_like(grad_output_KVD[group]), grad_GCV.mT, hidden_GCD)
        if left_out_KN1 is not None:
            grad_hidden_KND.masked_fill_(left_out_KN1, 0.0)
        # A member without a scored token has sums of zero, and keeps them.
        ctx.tokens = tokens if scored_KN is None else scored_KN.sum(1, dtype=wide).clamp_(min=1.0)
        ctx.gradients = (grad_hidden_KND, grad_output_KVD)
        loss_K: Tensor = total_K / ctx.tokens
        return loss_K

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("The loss of a proxy can be differentiated once per forward pass.")
        grad_hidden_KND, grad_output_KVD = ctx.gradients
        ctx.gradients = None
        # The mean's 1/N here, where it costs no pass of its own, and not in the logits' gradient, where it would be a pass over them.
        scale_K11 = (grad_K / ctx.tokens)[:, None, None]
        return grad_hidden_KND.mul_(scale_K11), grad_output_KVD.mul_(scale_K11), None, None, None


def _plan(hidden_KND: Tensor, output_KVD: Tensor, compute: Compute) -> tuple[list[Chunk], _Workspace]:
    members, tokens, _ = hidden_KND.shape
    like = hidden_KND.new_empty((), dtype=_wide(hidden_KND))
    vocabulary = output_KVD.shape[1]
    chunks = list(plan_chunks(members, tokens, vocabulary, like.element_size(), compute.loss_bytes))
    return chunks, _Workspace(like, chunks, vocabulary)


def group_mean_losses(
    hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, compute: Compute, scored_KN: Tensor | None = None
) -> Tensor:
    """Mean loss of each member in nats per scored token, (K,); differentiable once in hidden states and output matrix.

    Args:
        hidden_KND: last hidden states, float32 (float64 in tests).
        output_KVD: the output matrix, in the precision of the weights; a copy in the operands' type is made per group.
        target_KN: int64, in the vocabulary.
        compute: operands' type and workspace.
        scored_KN: bool, the tokens that count; None: all.
    """
    losses_K: Tensor = GroupMeanLoss.apply(hidden_KND, output_KVD, target_KN, compute, scored_KN)
    return losses_K
