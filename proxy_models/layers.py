"""Norm, rotary embedding and causal attention of K stacked members.

Every weight leads with the pack axis K; activations are (K, N, D) with N = B*T tokens, and attention folds K into the batch, where members
cannot meet. The trade-off: the rotation is a complex product, which is short and fast in float32 and float64; lower precisions go through
float32.

Legend: K pack members, B batch, T time, N = B*T tokens of a member, D model width, H heads, C width of a head.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from proxy_models.config import ProxyConfig


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


class Rotate(torch.autograd.Function):
    """Rotates neighbouring pairs of (..., T, H, C) by a table of `rotary_table`; the backward pass rotates back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.table = table
        return _rotate(x, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _rotate(grad, ctx.table.conj()), None


def _rotate(x: Tensor, table: Tensor) -> Tensor:
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


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
        # Split, not slice: its backward is one concatenation, where slices would each fill a zero tensor and add it.
        rotated, values = qkv_KNX.view(-1, window, 3 * config.n_heads, config.d_head).split((2 * config.n_heads, config.n_heads), dim=2)
        table = rotary_table(window, config.d_head, config.rope_theta, x_KND.dtype, x_KND.device)
        queries, keys = Rotate.apply(rotated, table).chunk(2, dim=2)
        mixed_SHTC = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True
        )  # S = K*B sequences
        mixed_KND = mixed_SHTC.transpose(1, 2).reshape(members, tokens, d_model)
        return torch.baddbmm(x_KND, mixed_KND, self.output)
