"""Next-token loss of K stacked members from their last hidden states, without ever holding all logits.

The logits are most of a small proxy's work and nearly all of its memory. They are made a few rows at a time in one reused workspace; while
they are warm in cache the loss and, in training, the gradients of hidden states and output matrix are computed too, so that the backward pass
only scales them (the idea of Cut Cross-Entropy, arXiv 2411.09009, and Liger Kernel, arXiv 2410.10989). The trade-off: the loss can be differentiated once
per forward pass, and a loss whose gradient nobody asks for should be had from `token_losses`.

Legend: K pack members, N tokens of a member, D model width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 128
"""Rows of logits held at once: 4 MB with 8,192 entries of vocabulary. 64 to 1,024 made no difference that could be measured on a CPU."""


class Workspace:
    """One buffer for the logits of a chunk, kept between steps: a fresh tensor of megabytes costs more in page faults than its exponentials."""

    def __init__(self, chunk_tokens: int = CHUNK_TOKENS) -> None:
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens is {chunk_tokens}; it must be at least 1.")
        self.chunk_tokens = chunk_tokens
        self._buffer: Tensor | None = None

    def logits(self, hidden_CD: Tensor, output_VD: Tensor) -> Tensor:
        """The product (C, V), valid until the next call."""
        rows, vocabulary = len(hidden_CD), len(output_VD)
        buffer = self._buffer
        if buffer is None or buffer.shape[1] != vocabulary or buffer.dtype != hidden_CD.dtype or buffer.device != hidden_CD.device:
            buffer = self._buffer = hidden_CD.new_empty(self.chunk_tokens, vocabulary)
        return torch.mm(hidden_CD, output_VD.T, out=buffer[:rows])


def _losses_and_exponentials(logits_CV: Tensor, target_C1: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (C,) in nats and the row sums (C, 1) of exp(logits - max), which replace the logits in place."""
    largest_C1 = logits_CV.amax(-1, keepdim=True)
    target_logit_C1 = logits_CV.gather(-1, target_C1) - largest_C1
    total_C1 = logits_CV.sub_(largest_C1).exp_().sum(-1, keepdim=True)
    return (total_C1.log() - target_logit_C1).squeeze(-1), total_C1


@torch.no_grad()
def token_losses(hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, workspace: Workspace) -> Tensor:
    """Loss of every token in nats, (K, N). No gradient."""
    loss_KN = hidden_KND.new_empty(target_KN.shape)
    for hidden_ND, output_VD, target_N, loss_N in zip(hidden_KND, output_KVD, target_KN, loss_KN, strict=True):
        for start in range(0, len(target_N), workspace.chunk_tokens):
            rows = slice(start, start + workspace.chunk_tokens)
            logits_CV = workspace.logits(hidden_ND[rows], output_VD)
            loss_N[rows], _ = _losses_and_exponentials(logits_CV, target_N[rows, None])
    return loss_KN


class MeanLoss(torch.autograd.Function):
    """Mean loss of each member, with the gradients computed in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, workspace: Workspace) -> Tensor:
        loss_K = hidden_KND.new_empty(len(hidden_KND))
        grad_hidden_KND, grad_output_KVD = torch.empty_like(hidden_KND), torch.empty_like(output_KVD)
        for k in range(len(hidden_KND)):
            loss_K[k] = _member_loss(hidden_KND[k], output_KVD[k], target_KN[k], workspace, grad_hidden_KND[k], grad_output_KVD[k])
        ctx.gradients = grad_hidden_KND, grad_output_KVD
        return loss_K

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor, Tensor, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("The loss of a proxy can be differentiated once per forward pass.")
        grad_hidden_KND, grad_output_KVD = ctx.gradients
        ctx.gradients = None
        return grad_hidden_KND.mul_(grad_K[:, None, None]), grad_output_KVD.mul_(grad_K[:, None, None]), None, None


def _member_loss(
    hidden_ND: Tensor, output_VD: Tensor, target_N: Tensor, workspace: Workspace, grad_hidden_ND: Tensor, grad_output_VD: Tensor
) -> Tensor:
    """Mean loss of one member; writes its gradients into the last two arguments.

    With p the softmax and y the target, the gradient of the mean loss by the logits is (p - onehot(y)) / N.
    """
    tokens = len(target_N)
    loss_nats = hidden_ND.new_zeros(())
    for start in range(0, tokens, workspace.chunk_tokens):
        rows = slice(start, start + workspace.chunk_tokens)
        hidden_CD, target_C1 = hidden_ND[rows], target_N[rows, None]
        grad_CV = workspace.logits(hidden_CD, output_VD)
        loss_C, total_C1 = _losses_and_exponentials(grad_CV, target_C1)
        loss_nats += loss_C.sum()
        grad_CV.mul_((total_C1 * tokens).reciprocal_())
        grad_CV.scatter_(-1, target_C1, grad_CV.gather(-1, target_C1) - 1.0 / tokens)  # one place per row: nothing is added twice
        torch.mm(grad_CV, output_VD, out=grad_hidden_ND[rows])
        # beta 0 ignores what an empty tensor holds, even a NaN.
        grad_output_VD.addmm_(grad_CV.T, hidden_CD, beta=0.0 if start == 0 else 1.0)
    return loss_nats / tokens


def mean_losses(hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, workspace: Workspace) -> Tensor:
    """Mean loss of each member in nats per token, (K,); differentiable once in hidden states and output matrix."""
    losses: Tensor = MeanLoss.apply(hidden_KND, output_KVD, target_KN, workspace)
    return losses
