"""What is measured of a model on tokens for a merge: where its routers send them, and how much its loss minds each weight.

Tokens are windows as in training. Models of a pack see the same ones. The trade-off: routes hold an index for every token, layer and
choice, eight bytes each; for 20,000 tokens of two layers and two choices a quarter of what a
nano proxy takes.

Legend: K members, B windows, T tokens of a window, S = T + 1, N = B*T tokens, L layers with routed experts, E experts, C experts chosen per
token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from proxy_models.balancing import Routing
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import BATCH_TOKENS
from proxy_models.merging.components import Component, HeldComponent, check_shapes
from proxy_models.model import PackedProxy


@dataclass(frozen=True)
class Routes:
    """Which experts the routers of one model chose.

    Attributes:
        expert_LNC: int64, distinct for a token.
        n_experts: E.
    """

    expert_LNC: Tensor
    n_experts: int

    def loads(self) -> Tensor:
        """Rows that each expert received, (L, E), int64."""
        layers = [torch.bincount(chosen.flatten(), minlength=self.n_experts) for chosen in self.expert_LNC]
        return torch.stack(layers) if layers else torch.zeros(0, self.n_experts, dtype=torch.int64)

    def shares(self) -> Tensor:
        """Share of the rows that each expert received, (L, E); each layer's sum is one."""
        loads_LE = self.loads().double()
        return loads_LE / loads_LE.sum(-1, keepdim=True)

    def agreement(self, other: Routes) -> list[float]:
        """Share of the choices that two models of one shape have in common, by layer, mean over tokens: 1 is the same experts
        everywhere."""
        layers = zip(self.expert_LNC, other.expert_LNC, strict=True)
        return [float((one[:, :, None] == two[:, None, :]).any(-1).double().mean()) for one, two in layers]


def routes_of(pack: PackedProxy, tokens_BS: Tensor) -> list[Routes]:
    """Routes of every member, on the first T tokens of each window; int64 (B, T+1)."""
    seen: list[list[Tensor]] = [[] for _ in pack.moe_layers]

    def see(layer: int, routing: Routing) -> None:
        seen[layer].append(routing.expert_KNS.cpu())

    try:
        for layer, moe in enumerate(pack.moe_layers):
            moe.watch = partial(see, layer)
        windows = max(1, BATCH_TOKENS // tokens_BS.shape[1])
        for batch_BS in tokens_BS.split(windows):
            pack.token_losses(batch_BS.to(pack.embedding.device).expand(pack.members, -1, -1))
    finally:
        for moe in pack.moe_layers:
            moe.watch = None
    chosen = [torch.cat(batches, dim=1) for batches in seen]
    if not chosen:
        return [Routes(torch.zeros(0, 0, 0, dtype=torch.int64), 0)] * pack.members
    return [Routes(torch.stack([layer[k] for layer in chosen]), pack.config.n_experts) for k in range(pack.members)]


def single(config: ProxyConfig, component: Component, device: torch.device | str = "cpu") -> PackedProxy:
    """A component as a pack of one.

    Raises:
        ValueError: it is not of this configuration.
    """
    pack = PackedProxy(config, [0], device, draw=False)
    state = pack.state_dict()
    check_shapes(HeldComponent("the configuration", {name: value[0] for name, value in state.items()}), component)
    with torch.no_grad():
        for name, value in state.items():
            value[0].copy_(component.rows(name, 0, value.shape[1]))
    return pack


def component_routes(config: ProxyConfig, component: Component, tokens_BS: Tensor, device: torch.device | str = "cpu") -> Routes:
    """Routes of one component; the model is let go of afterwards. Errors as `single`."""
    return routes_of(single(config, component, device), tokens_BS)[0]


def diagonal_fisher(config: ProxyConfig, component: Component, tokens_BS: Tensor) -> Mapping[str, Tensor]:
    """Mean over windows of the squared gradient of a window's mean loss: the diagonal of the empirical Fisher information, float32, on the
    CPU.

    Names and shapes are those of the weights; the balancing bias, which has no gradient, gets zeros. A window is one sample, where Fisher
    asks for one token: squares of sums, not sums of squares, which is what a pass over a window can give.

    Raises:
        ValueError: as `single`.
    """
    pack = single(replace(config, auxiliary_loss=0.0), component)
    squares = {name: torch.zeros(value.shape[1:]) for name, value in pack.state_dict().items()}
    for window_S in tokens_BS:
        pack.zero_grad()
        pack.training_loss(window_S[None, None]).sum().backward()
        for name, parameter in pack.named_parameters():
            if parameter.grad is not None:
                squares[name] += parameter.grad[0].square() / len(tokens_BS)
    return squares
