"""The feed-forward layer of dense controls: what `moe.PackedMoE` is without routed experts.

A control of equal active size tells what experts bring, and whether a ranking of mixtures depends on them. There is no router, no dispatch, no
balancing bias and no load. The weights keep the names that shared experts have in `PackedMoE`, so that initialization, optimizer and
checkpoints know nothing of the difference.

Legend: K pack members, N tokens of a member, D model width, F hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from proxy_models.config import ProxyConfig
from proxy_models.layers import rms_norm
from proxy_models.moe import SwiGLU


class PackedDense(nn.Module):
    """Residual + SwiGLU(norm(x)).

    Parameters: norm (K, D); shared_in (K, D, 2F), gate then up; shared_out (K, F, D).
    """

    def __init__(self, config: ProxyConfig, members: int) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.Parameter(torch.empty(members, config.d_model))
        self.shared_in = nn.Parameter(torch.empty(members, config.d_model, 2 * config.d_shared))
        self.shared_out = nn.Parameter(torch.empty(members, config.d_shared, config.d_model))

    def forward(self, x_KND: Tensor, record_load: bool) -> Tensor:
        """Maps (K, N, D) to (K, N, D). `record_load` is as for `PackedMoE`; there is no load."""
        normed_KND = rms_norm(x_KND, self.config.norm_eps, self.norm)
        hidden_KNF = SwiGLU.apply(torch.bmm(normed_KND, self.shared_in), None)
        return torch.baddbmm(x_KND, hidden_KNF, self.shared_out)
