"""Attention and experts as a GPU computes them: operands of matrix products in half precision, shapes that do not depend on the data.

Weights, router, norms and the residual stream are those of `layers` and `moe`, and so are the results, up to rounding. Only `forward`
differs: what suits a CPU (products that fit the data, sums in place) is not what can be captured in a CUDA graph. The trade-off: two
forwards to keep equal, which a test does.

Legend: K pack members, N tokens of a member, D model width, H heads, C width of a head, E experts, S experts chosen per token, F hidden
width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.dense import PackedDense
from proxy_models.device.capacity import capacity_rows, dropped_rows
from proxy_models.device.experts import FromRows, SortWeights, ToRows, grouped_product, padded_product, plan_dispatch
from proxy_models.device.precision import Compute
from proxy_models.layers import PackedAttention, rms_norm, rotary_table
from proxy_models.moe import PackedMoE, SwiGLU


def lookup(embedding_KVD: Tensor, token_KN: Tensor) -> Tensor:
    """Rows of the embeddings (K, V, D) of the tokens (K, N). Torch sorts the ids to sum their gradients, so that nothing is added in any order."""
    members, vocabulary, _ = embedding_KVD.shape
    first_row_K1 = vocabulary * torch.arange(members, device=token_KN.device)[:, None]
    return F.embedding(token_KN + first_row_K1, embedding_KVD.flatten(0, 1))


class Rotate(torch.autograd.Function):
    """Rotates neighbouring pairs of (..., T, H, C) by a `rotary_table`, in float32 or wider; the backward pass rotates back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor) -> Tensor:
        ctx.table = table
        return _rotated(x, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _rotated(grad, ctx.table.conj()), None


def _rotated(x: Tensor, table: Tensor) -> Tensor:
    wide = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(wide.unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * table).flatten(-2).to(x.dtype)


class DeviceAttention(PackedAttention):
    """`PackedAttention` with products in `compute.dtype`; the stream it adds to keeps its own type."""

    def __init__(self, config: ProxyConfig, members: int, compute: Compute) -> None:
        super().__init__(config, members)
        self.compute = compute

    def forward(self, x_KND: Tensor, window: int) -> Tensor:
        config, operand = self.config, self.compute.operand
        members, tokens, d_model = x_KND.shape
        qkv_KNX = torch.bmm(operand(rms_norm(x_KND, config.norm_eps, self.norm)), operand(self.qkv))
        # Split, not slice: its backward is one concatenation, where slices would each fill a zero tensor and add it.
        rotated, values = qkv_KNX.view(-1, window, 3 * config.n_heads, config.d_head).split((2 * config.n_heads, config.n_heads), dim=2)
        table = rotary_table(window, config.d_head, config.rope_theta, x_KND.dtype, x_KND.device)
        queries, keys = Rotate.apply(rotated, table).chunk(2, dim=2)
        mixed_SHTC = F.scaled_dot_product_attention(
            queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=True
        )  # S = K*B sequences
        mixed_KND = mixed_SHTC.transpose(1, 2).reshape(members, tokens, d_model)
        return x_KND + torch.bmm(mixed_KND, operand(self.output))


class DeviceMoE(PackedMoE):
    """`PackedMoE` with products in `compute.dtype` and of fixed shapes; the router works in the type of the weights."""

    def __init__(self, config: ProxyConfig, members: int, compute: Compute) -> None:
        super().__init__(config, members)
        self.compute = compute

    def forward(self, x_KND: Tensor, record_load: bool) -> Tensor:
        operand = self.compute.operand
        normed_KND = rms_norm(x_KND, self.config.norm_eps, self.norm)
        routing = self.route(normed_KND)
        operand_KND = operand(normed_KND)
        dispatch = plan_dispatch(routing.expert_KNS.permute(2, 0, 1), self.config.n_experts)
        if record_load:
            self._record(routing, dispatch.load_KE)
        members, tokens, _ = x_KND.shape
        product = grouped_product(dispatch) if self.compute.experts == "grouped" else padded_product(dispatch, self._capacity(tokens))
        rows_RD = ToRows.apply(operand_KND.flatten(0, 1), dispatch)
        weight_R1 = SortWeights.apply(operand(routing.weight_KNS).permute(2, 0, 1).flatten(), dispatch)[:, None]
        # Weighted before the last product, where rows are half as wide as after it.
        hidden_RF = SwiGLU.apply(product(rows_RD, operand(self.expert_in).flatten(0, 1)), weight_R1)
        routed_KND = FromRows.apply(product(hidden_RF, operand(self.expert_out).flatten(0, 1)), dispatch, members * tokens).view_as(x_KND)
        shared_KNF = SwiGLU.apply(torch.bmm(operand_KND, operand(self.shared_in)), None)
        # Each added to the stream in the stream's own type, not to each other in half precision.
        out_KND: Tensor = x_KND + torch.bmm(shared_KNF, operand(self.shared_out)) + routed_KND
        return out_KND

    def _capacity(self, tokens: int) -> int:
        return capacity_rows(tokens, self.config.n_experts, self.config.top_k, self.compute.capacity_factor)

    def dropped(self, tokens: int) -> Tensor:
        """Rows of each member that the last training pass, over `tokens` of each, dropped for lack of capacity; int64 (K,)."""
        if self.compute.experts == "grouped":
            return torch.zeros_like(self.load[:, 0])
        return dropped_rows(self.load, self._capacity(tokens))


class DeviceDense(PackedDense):
    """`PackedDense` with products in `compute.dtype`."""

    def __init__(self, config: ProxyConfig, members: int, compute: Compute) -> None:
        super().__init__(config, members)
        self.compute = compute

    def forward(self, x_KND: Tensor, record_load: bool) -> Tensor:
        operand = self.compute.operand
        normed_KND = operand(rms_norm(x_KND, self.config.norm_eps, self.norm))
        hidden_KNF = SwiGLU.apply(torch.bmm(normed_KND, operand(self.shared_in)), None)
        return x_KND + torch.bmm(hidden_KNF, operand(self.shared_out))
