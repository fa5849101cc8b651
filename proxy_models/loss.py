"""Next-token loss of K stacked members from their last hidden states, without ever holding all logits.

The logits are most of a small proxy's work and nearly all of its memory. They are made a few rows at a time in one reused workspace; while
they are warm in cache the loss and, in training, the gradients of hidden states and output matrix are computed too, so that the backward pass
only scales them (the idea of Cut Cross-Entropy, arXiv 2411.09009, and Liger Kernel, arXiv 2410.10989). The trade-off: the loss can be differentiated once
per forward pass, and a loss whose gradient nobody asks for should be had from `token_losses`.

Where only some tokens are scored (completions, not prompts), a member's mean is over its scored tokens of the step, and logits are made for those alone:
what is not scored costs nothing and its gradient is exactly zero. A member without a scored token has loss and gradient zero.

Legend: K pack members, N tokens of a member, D model width, V vocabulary, C rows of a chunk.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

CHUNK_TOKENS = 128
"""Rows of logits held at once: 4 MB with 8,192 entries of vocabulary. 64 to 1,024 made no difference that could be measured on a CPU."""

LOG2_E = 1.0 / math.log(2)
"""Logits are made in base 2: torch's exp2 was 4.6 times as fast as its exp on an AMD processor (7.3 against 1.6 billion per second)."""
LARGEST_EXPONENT = 100.0
"""Exponentials of logits within +-100 in base 2 fit float32 with room for what they are multiplied by."""
LARGEST_SUM = 126.0
"""The same of what is formed from them: sums over the vocabulary, times tokens. An overflow here would make gradients zero, not infinite."""


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


def _exponentials(logits_CV: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """Logits in base 2 become 2^(logit - shift) in place; returns the row sums (C, 1) and the shift (C, 1) or zero."""
    largest_C1 = logits_CV.amax(-1, keepdim=True) if shift else logits_CV.new_zeros(())
    if shift:
        logits_CV.sub_(largest_C1)
    return logits_CV.exp2_().sum(-1, keepdim=True), largest_C1


def _needs_shift(hidden_ND: Tensor, output_VD: Tensor) -> bool:
    """Whether what is made of 2^logit could leave the range of float32. The product of the largest norms bounds every logit (Cauchy and Schwarz)."""
    bound = torch.linalg.vector_norm(hidden_ND, dim=-1).amax() * torch.linalg.vector_norm(output_VD, dim=-1).amax()
    largest = min(LARGEST_EXPONENT, LARGEST_SUM - math.log2(len(hidden_ND) * len(output_VD)))
    return not float(bound) <= largest  # also where it is not a number


@torch.no_grad()
def token_losses(hidden_KND: Tensor, output_KVD: Tensor, target_KN: Tensor, workspace: Workspace) -> Tensor:
    """Loss of every token in nats, (K, N). No gradient."""
    loss_KN = hidden_KND.new_empty(target_KN.shape)
    scaled_KND = hidden_KND * LOG2_E
    for hidden_ND, output_VD, target_N, loss_N in zip(scaled_KND, output_KVD, target_KN, loss_KN, strict=True):
        shift = _needs_shift(hidden_ND, output_VD)
        for start in range(0, len(target_N), workspace.chunk_tokens):
            rows = slice(start, start + workspace.chunk_tokens)
            logits_CV = workspace.logits(hidden_ND[rows], output_VD)
            target_logit_C1 = logits_CV.gather(-1, target_N[rows, None])
            total_C1, largest_C1 = _exponentials(logits_CV, shift)
            loss_N[rows] = (total_C1.log2() + largest_C1 - target_logit_C1).squeeze(-1)
    return loss_KN.mul_(math.log(2))


class TiedGradient:
    """Carries the gradient of an output matrix from the loss to the lookup of the embedding it is tied to.

    The loss is differentiated first and leaves the gradient of every entry here; the lookup adds its rows in place. So the two are never added
    as whole matrices, which for a tiny proxy is a tenth of a step.
    """

    def __init__(self) -> None:
        self._gradient_KVD: Tensor | None = None

    def put(self, gradient_KVD: Tensor) -> None:
        self._gradient_KVD = gradient_KVD

    def take(self) -> Tensor:
        if self._gradient_KVD is None:
            raise RuntimeError("The loss of a proxy can be differentiated once per forward pass.")
        gradient_KVD, self._gradient_KVD = self._gradient_KVD, None
        return gradient_KVD


class TiedLookup(torch.autograd.Function):
    """Rows of the embeddings (K, V, D) of the tokens (K, N), whose gradient joins that of `TiedGradient`."""

    @staticmethod
    def forward(ctx: Any, embedding_KVD: Tensor, token_KN: Tensor, tied: TiedGradient) -> Tensor:
        members, vocabulary, width = embedding_KVD.shape
        first_row_K1 = vocabulary * torch.arange(members, device=token_KN.device)[:, None]
        ctx.row_M, ctx.tied = (token_KN + first_row_K1).flatten(), tied
        return embedding_KVD.view(-1, width).index_select(0, ctx.row_M).view(*token_KN.shape, width)

    @staticmethod
    def backward(ctx: Any, grad_KND: Tensor) -> tuple[Tensor, None, None]:
        gradient_KVD = ctx.tied.take()
        gradient_KVD.view(-1, grad_KND.shape[-1]).index_add_(0, ctx.row_M, grad_KND.flatten(0, 1))
        return gradient_KVD, None, None


class MeanLoss(torch.autograd.Function):
    """Mean loss of each member, with the gradients computed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden_KND: Tensor,
        output_KVD: Tensor,
        target_KN: Tensor,
        workspace: Workspace,
        tied: TiedGradient | None,
        scored_KN: Tensor | None,
    ) -> Tensor:
        loss_K = hidden_KND.new_empty(len(hidden_KND))
        grad_hidden_KND, grad_output_KVD = torch.empty_like(hidden_KND), torch.empty_like(output_KVD)
        for k in range(len(hidden_KND)):
            # Looked at member by member, so that one whose tokens all count takes the same path in any company.
            masked = scored_KN is not None and not bool(scored_KN[k].all())
            member_loss = partial(_scored_loss, scored_KN[k]) if masked and scored_KN is not None else _member_loss
            loss_K[k] = member_loss(hidden_KND[k], output_KVD[k], target_KN[k], workspace, grad_hidden_KND[k], grad_output_KVD[k])
        ctx.gradients, ctx.tied = (grad_hidden_KND, grad_output_KVD), tied
        return loss_K

    @staticmethod
    def backward(ctx: Any, grad_K: Tensor) -> tuple[Tensor, Tensor | None, None, None, None, None]:
        if ctx.gradients is None:
            raise RuntimeError("The loss of a proxy can be differentiated once per forward pass.")
        grad_hidden_KND, grad_output_KVD = ctx.gradients
        ctx.gradients = None
        grad_hidden_KND.mul_(grad_K[:, None, None])
        if not bool((grad_K == 1).all()):  # of `losses.sum()`, as in training, every gradient is one
            grad_output_KVD.mul_(grad_K[:, None, None])
        if ctx.tied is None:
            return grad_hidden_KND, grad_output_KVD, None, None, None, None
        ctx.tied.put(grad_output_KVD)
        return grad_hidden_KND, None, None, None, None, None


def _member_loss(
    hidden_ND: Tensor, output_VD: Tensor, target_N: Tensor, workspace: Workspace, grad_hidden_ND: Tensor, grad_output_VD: Tensor
) -> Tensor:
    """Mean loss of one member; writes its gradients into the last two arguments.

    With e the exponentials of a row, t their sum and y the target, the gradient of the mean loss by the logits is (e / t - onehot(y)) / N. The
    factor 1 / (t N) is left out of the row and multiplied into what is narrow: hidden states before, their gradient after the products.
    """
    tokens = len(target_N)
    scaled_ND = hidden_ND * LOG2_E
    shift = _needs_shift(scaled_ND, output_VD)
    loss_bits = hidden_ND.new_zeros(())
    for start in range(0, tokens, workspace.chunk_tokens):
        rows = slice(start, start + workspace.chunk_tokens)
        target_C1 = target_N[rows, None]
        grad_CV = workspace.logits(scaled_ND[rows], output_VD)
        target_logit_C1 = grad_CV.gather(-1, target_C1)
        total_C1, largest_C1 = _exponentials(grad_CV, shift)
        loss_bits += (total_C1.log2() + largest_C1 - target_logit_C1).sum()
        grad_CV.scatter_(-1, target_C1, grad_CV.gather(-1, target_C1) - total_C1)  # one place per row: nothing is added twice
        factor_C1 = (total_C1 * tokens).reciprocal_()
        torch.mm(grad_CV, output_VD, out=grad_hidden_ND[rows]).mul_(factor_C1)
        # beta 0 ignores what an empty tensor holds, even a NaN.
        grad_output_VD.addmm_(grad_CV.T, hidden_ND[rows] * factor_C1, beta=0.0 if start == 0 else 1.0)
    return loss_bits * (math.log(2) / tokens)


def _scored_loss(
    scored_N: Tensor,
    hidden_ND: Tensor,
    output_VD: Tensor,
    target_N: Tensor,
    workspace: Workspace,
    grad_hidden_ND: Tensor,
    grad_output_VD: Tensor,
) -> Tensor:
    """As `_member_loss`, over the scored rows alone."""
    row_M = scored_N.nonzero().squeeze(-1)
    grad_hidden_ND.zero_()
    if not len(row_M):
        grad_output_VD.zero_()
        return hidden_ND.new_zeros(())
    scored_MD = hidden_ND[row_M]
    grad_MD = torch.empty_like(scored_MD)
    loss = _member_loss(scored_MD, output_VD, target_N[row_M], workspace, grad_MD, grad_output_VD)
    grad_hidden_ND.index_copy_(0, row_M, grad_MD)
    return loss


def mean_losses(
    hidden_KND: Tensor,
    output_KVD: Tensor,
    target_KN: Tensor,
    workspace: Workspace,
    tied: TiedGradient | None = None,
    scored_KN: Tensor | None = None,
) -> Tensor:
    """Mean loss of each member in nats per scored token, (K,); differentiable once in hidden states and output matrix.

    Args:
        tied: takes the gradient of the output matrix, which autograd then does not get; None: the matrix is not tied.
        scored_KN: bool, the tokens that count; None: all.
    """
    losses: Tensor = MeanLoss.apply(hidden_KND, output_KVD, target_KN, workspace, tied, scored_KN)
    return losses
