"""Norm, rotary embedding and causal attention of K stacked members.

Every weight leads with the pack axis K; activations are (K, N, D) with N = B*T tokens, and attention folds K into the batch, where members
cannot meet. The trade-off: the rotation is a complex product, which is short and fast in float32 and float64; lower precisions go through
float32.

Legend: K pack members, B batch, T time, N = B*T tokens of a member, D model width, H heads, C width of a head.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxy_models.config import ProxyConfig

LOG2_E = 1.0 / math.log(2)
WHOLE_VECTORS = 64
"""A multiple of the numbers that torch computes at once on any CPU (two vectors of AVX-512: 32)."""
QUERY_BLOCK = 128
"""Queries computed at once: at a window of 512, blocks of 128 do five eighths of the square's work."""


def rms_norm(x_KND: Tensor, eps: float, scale_KD: Tensor | None = None) -> Tensor:
    """Root-mean-square norm (arXiv 1910.07467, equation 4), with one scale per member or none; (K, N, D)."""
    normed_KND = F.rms_norm(x_KND, (x_KND.shape[-1],), eps=eps)
    return normed_KND if scale_KD is None else normed_KND * scale_KD[:, None, :]


@functools.lru_cache(maxsize=32)
def rotary_table(window: int, d_head: int, theta: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Unit complex numbers exp(i t theta^(-2c/C)), shape (T, 1, C/2): the rotation of each pair at each time.

    Angles are computed in float64, since t times a frequency loses digits in float32. Equation 34 of RoFormer, arXiv 2104.09864.
    """
    frequencies = theta ** (-torch.arange(0, d_head, 2, dtype=torch.float64) / d_head)
    angles = torch.arange(window, dtype=torch.float64)[:, None] * frequencies
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    return torch.polar(torch.ones_like(angles), angles).to(complex_dtype)[:, None, :].to(device)


class CausalAttention(torch.autograd.Function):
    """Rotates queries and keys, and attends: qkv (S, T, 3, H, C) and a `rotary_table` give (S, T, H, C).

    Written out in batched products, because the fused kernel of torch multiplies small matrices on a CPU at a small part of the processor's
    speed. Queries go in blocks, each against the keys up to its end, so that a long window is not computed square. Exponentials are kept for the
    backward pass, and divided by their sums only where that is narrow: with e = 2^(q.k - max), t its row sums and o the output, the gradient by a
    score is e * ((g / t).v - (g.o) / t).

    Legend: S = K*B sequences, Z = S*H pairs of sequence and head, Q queries of a block, J keys up to the block's end.
    """

    @staticmethod
    def forward(ctx: Any, qkv_ST3HC: Tensor, table: Tensor) -> Tensor:
        sequences, window, _, heads, width = qkv_ST3HC.shape
        qkv_3ZTC = qkv_ST3HC.new_empty(3, sequences * heads, window, width)
        by_head_ST3HC = qkv_3ZTC.view(3, sequences, heads, window, width).permute(1, 3, 0, 2, 4)
        _rotate(qkv_ST3HC[:, :, :2], _scaled(table, width, LOG2_E), by_head_ST3HC[:, :, :2])
        by_head_ST3HC[:, :, 2].copy_(qkv_ST3HC[:, :, 2])
        query_ZTC, key_ZTC, value_ZTC = qkv_3ZTC
        mixed_ZTC = torch.empty_like(value_ZTC)
        exponentials, totals = [], []
        for block in _query_blocks(window):
            keys = slice(block.stop)
            score_ZQJ = torch.bmm(query_ZTC[:, block], key_ZTC[:, keys].mT)
            score_ZQJ[:, :, block] += _future(block.stop - block.start, score_ZQJ.dtype, score_ZQJ.device)
            exp_ZQJ = exp2_(score_ZQJ.sub_(score_ZQJ.amax(-1, keepdim=True)))
            total_ZQ1 = exp_ZQJ.sum(-1, keepdim=True)
            torch.div(torch.bmm(exp_ZQJ, value_ZTC[:, keys]), total_ZQ1, out=mixed_ZTC[:, block])
            exponentials.append(exp_ZQJ)
            totals.append(total_ZQ1)
        ctx.save_for_backward(qkv_3ZTC, mixed_ZTC, *exponentials, *totals)
        ctx.table = table
        return mixed_ZTC.view(sequences, heads, window, width).transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, grad_STHC: Tensor) -> tuple[Tensor, None]:
        qkv_3ZTC, mixed_ZTC, *rest = ctx.saved_tensors
        exponentials, totals = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        query_ZTC, key_ZTC, value_ZTC = qkv_3ZTC
        sequences, window, heads, width = grad_STHC.shape
        grad_ZTC = grad_STHC.transpose(1, 2).reshape(mixed_ZTC.shape)
        grad_3ZTC = torch.empty_like(qkv_3ZTC)
        grad_query_ZTC, grad_key_ZTC, grad_value_ZTC = grad_3ZTC
        overlap_ZT1 = (grad_ZTC * mixed_ZTC).sum(-1, keepdim=True)
        # The last block reaches all keys, so it writes the sums that the others add to.
        for block, exp_ZQJ, total_ZQ1 in reversed(list(zip(_query_blocks(window), exponentials, totals, strict=True))):
            keys, beta = slice(block.stop), 0.0 if block.stop == window else 1.0
            scaled_ZQC = grad_ZTC[:, block] / total_ZQ1
            grad_score_ZQJ = torch.baddbmm(overlap_ZT1[:, block] / total_ZQ1, scaled_ZQC, value_ZTC[:, keys].mT, beta=-1.0).mul_(exp_ZQJ)
            grad_value_ZTC[:, keys].baddbmm_(exp_ZQJ.mT, scaled_ZQC, beta=beta)
            torch.bmm(grad_score_ZQJ, key_ZTC[:, keys], out=grad_query_ZTC[:, block])
            grad_key_ZTC[:, keys].baddbmm_(grad_score_ZQJ.mT, query_ZTC[:, block], beta=beta)
        grad_ST3HC = grad_STHC.new_empty(sequences, window, 3, heads, width)
        by_head_ST3HC = grad_3ZTC.view(3, sequences, heads, window, width).permute(1, 3, 0, 2, 4)
        # Scores are in base 2: the factor ln 2 of their gradient rides on the rotation back.
        _rotate(by_head_ST3HC[:, :, :2], _scaled(ctx.table, width, LOG2_E).conj() * math.log(2), grad_ST3HC[:, :, :2])
        grad_ST3HC[:, :, 2].copy_(by_head_ST3HC[:, :, 2])
        return grad_ST3HC, None


def exp2_(x: Tensor) -> Tensor:
    """2^x in place, every number by the same routine.

    torch computes those at the end of a tensor that fill no whole vector by another one, whose last digit may differ, and so a member's numbers
    would depend on who is last in its pack.
    """
    flat = x.view(-1)
    rest = len(flat) % WHOLE_VECTORS
    if rest:
        whole = F.pad(flat[-rest:], (0, WHOLE_VECTORS - rest)).exp2_()
        flat[:-rest].exp2_()
        flat[-rest:] = whole[:rest]
    else:
        flat.exp2_()
    return x


def _query_blocks(window: int) -> list[slice]:
    return [slice(start, min(start + QUERY_BLOCK, window)) for start in range(0, window, QUERY_BLOCK)]


@functools.lru_cache(maxsize=8)
def _future(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Minus infinity above the diagonal, zero elsewhere."""
    return torch.full((size, size), -math.inf, dtype=dtype, device=device).triu_(1)


def _scaled(table: Tensor, width: int, factor: float) -> Tensor:
    """The table for queries, times `factor` and the usual 1 / sqrt(C), and for keys as it is; (T, 2, 1, C/2)."""
    return torch.stack([table * (factor / math.sqrt(width)), table], dim=1)


def _rotate(x: Tensor, table: Tensor, out: Tensor) -> None:
    """Multiplies neighbouring pairs of the last axis, taken as complex numbers, with `table`; lower precisions go through float32."""
    if x.dtype in (torch.float32, torch.float64):
        torch.mul(_pairs(x), table, out=_pairs(out))
    else:
        out.copy_(torch.view_as_real(_pairs(x.float()) * table).flatten(-2))


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))


class PackedAttention(nn.Module):
    """Causal self-attention with rotary positions: residual + attention(norm(x)).

    Parameters: norm (K, D); qkv (K, D, 3D), output columns ordered query, key, value; output (K, D, D).
    """

    def __init__(self, config: ProxyConfig, members: int) -> None:
        super().__init__()
        self.config = config
        d_model = config.d_model
        self.norm = nn.Parameter(torch.empty(members, d_model))
        self.qkv = nn.Parameter(torch.empty(members, d_model, 3 * d_model))
        self.output = nn.Parameter(torch.empty(members, d_model, d_model))

    def forward(self, x_KND: Tensor, window: int) -> Tensor:
        """Maps (K, N, D) to (K, N, D), where each `window` tokens of N are one sequence."""
        config = self.config
        members, tokens, d_model = x_KND.shape
        qkv_KNX = torch.bmm(rms_norm(x_KND, config.norm_eps, self.norm), self.qkv)
        table = rotary_table(window, config.d_head, config.rope_theta, x_KND.dtype, x_KND.device)
        mixed_STHC = CausalAttention.apply(qkv_KNX.view(-1, window, 3, config.n_heads, config.d_head), table)
        mixed_KND = mixed_STHC.reshape(members, tokens, d_model)
        return torch.baddbmm(x_KND, mixed_KND, self.output)
