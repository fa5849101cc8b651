"""The proxy once more, written to be read and not to be fast: one member, loops over experts, all logits, torch's own AdamW.

Tests hold the stacked model, its custom gradients and its optimizer against this file, so it shares nothing with them but the configuration
and the names of the weights. The trade-off: it is several times slower and needs memory for every logit.

Legend: B batch, T time, D model width, H heads, C width of a head, E experts, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from proxy_models.config import ProxyConfig


class PlainProxy:
    """One proxy, from the `PackedProxy.member_state` of a member.

    Attributes:
        weights: name -> parameter, as in the state.
        router_biases: one (E,) per layer; none in a dense proxy.
        loads: rows per expert of the last pass, one (E,) per layer.
        chosen, scores: of the last pass, (B, T, S) and (B, T, E) per layer: the experts of each token, and the router's softmax.
    """

    def __init__(self, config: ProxyConfig, state: Mapping[str, Tensor]) -> None:
        self.config = config
        self.weights = {name: tensor.clone().requires_grad_() for name, tensor in state.items() if "router_bias" not in name}
        routed_layers = range(config.n_layers if config.n_experts else 0)
        self.router_biases = [state[f"layers.{layer}.moe.router_bias"].clone() for layer in routed_layers]
        self.loads = [torch.zeros_like(bias) for bias in self.router_biases]
        self.chosen, self.scores = ([torch.empty(0)] * len(self.loads) for _ in range(2))

    def logits(self, input_BT: Tensor) -> Tensor:
        """Logits of the next token, (B, T, V)."""
        x_BTD = self._unit(self.weights["embedding"][input_BT])
        for layer in range(self.config.n_layers):
            x_BTD = x_BTD + self._attention(layer, self._norm(x_BTD, f"layers.{layer}.attention.norm"))
            x_BTD = x_BTD + self._experts(layer, self._norm(x_BTD, f"layers.{layer}.moe.norm"))
        return self._norm(x_BTD, "norm") @ self.weights["embedding"].T

    def token_losses(self, tokens_BS: Tensor) -> Tensor:
        """Loss of each predicted token in nats, (B, T), from windows of T+1."""
        log_probabilities = self.logits(tokens_BS[:, :-1]).log_softmax(-1)
        return -log_probabilities.gather(-1, tokens_BS[:, 1:, None]).squeeze(-1)

    def loss(self, tokens_BS: Tensor) -> Tensor:
        """Mean loss in nats per token, a scalar."""
        return self.token_losses(tokens_BS).mean()

    def auxiliary_loss(self) -> Tensor:
        """What the last pass adds to the loss for the sake of balance, a scalar: equation 4 of arXiv 2101.03961 for every layer, expert by expert."""
        total = torch.zeros(())
        for load, scores_BTE in zip(self.loads, self.scores, strict=True):
            for expert in range(len(load)):
                total = total + len(load) * (load[expert] / load.sum()) * scores_BTE[..., expert].mean()
        return self.config.auxiliary_loss * total

    def update_router_bias(self) -> None:
        """Algorithm 1 of arXiv 2408.15664, expert by expert."""
        for bias, load in zip(self.router_biases, self.loads, strict=True):
            mean = load.sum() / len(load)
            for expert in range(len(bias)):
                if load[expert] < mean:
                    bias[expert] += self.config.bias_update_rate
                elif load[expert] > mean:
                    bias[expert] -= self.config.bias_update_rate

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return self._unit(x) * self.weights[name]

    def _unit(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.config.norm_eps).sqrt()

    def _attention(self, layer: int, x_BTD: Tensor) -> Tensor:
        config = self.config
        window = x_BTD.shape[1]
        query, key, value = (x_BTD @ self.weights[f"layers.{layer}.attention.qkv"]).split(config.d_model, dim=-1)
        future = torch.ones(window, window).triu(1).bool()
        heads = []
        for head in range(config.n_heads):
            columns = slice(head * config.d_head, (head + 1) * config.d_head)
            scores_BTT = rotate(query[..., columns], config.rope_theta) @ rotate(key[..., columns], config.rope_theta).mT
            scores_BTT = (scores_BTT / math.sqrt(config.d_head)).masked_fill(future, -math.inf)
            heads.append(scores_BTT.softmax(-1) @ value[..., columns])
        return torch.cat(heads, -1) @ self.weights[f"layers.{layer}.attention.output"]

    def _experts(self, layer: int, x_BTD: Tensor) -> Tensor:
        config, prefix = self.config, f"layers.{layer}.moe"
        out_BTD = swiglu(x_BTD @ self.weights[f"{prefix}.shared_in"]) @ self.weights[f"{prefix}.shared_out"]
        if not config.n_experts:
            return out_BTD
        scores_BTE = (x_BTD @ self.weights[f"{prefix}.router"]).softmax(-1)
        chosen_BTS = (scores_BTE + self.router_biases[layer]).topk(config.top_k).indices
        total_BT = scores_BTE.gather(-1, chosen_BTS).sum(-1)
        self.chosen[layer], self.scores[layer] = chosen_BTS, scores_BTE
        for expert in range(config.n_experts):
            here = (chosen_BTS == expert).any(-1)
            self.loads[layer][expert] = here.sum()
            hidden = swiglu(x_BTD[here] @ self.weights[f"{prefix}.expert_in"][expert])
            routed = hidden @ self.weights[f"{prefix}.expert_out"][expert]
            part_BTD = torch.zeros_like(x_BTD)
            part_BTD[here] = (scores_BTE[..., expert] / total_BT)[here][:, None] * routed
            out_BTD = out_BTD + part_BTD
        return out_BTD


def rotate(x_BTC: Tensor, theta: float) -> Tensor:
    """Rotates the pair (2c, 2c+1) at time t by the angle t theta^(-2c/C); arXiv 2104.09864, equation 34."""
    window, width = x_BTC.shape[-2:]
    times = torch.arange(window, dtype=torch.float64)
    columns = []
    for pair in range(width // 2):
        angle_T = times * theta ** (-2 * pair / width)
        cos_T, sin_T = angle_T.cos().to(x_BTC.dtype), angle_T.sin().to(x_BTC.dtype)
        even, odd = x_BTC[..., 2 * pair], x_BTC[..., 2 * pair + 1]
        columns += [even * cos_T - odd * sin_T, even * sin_T + odd * cos_T]
    return torch.stack(columns, -1)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu of the first half times the second."""
    gate, up = gate_up.chunk(2, -1)
    return gate * gate.sigmoid() * up


class PlainTrainer:
    """Trains a `PlainProxy` with `torch.optim.AdamW` behind a clip of the whole gradient's norm; settings as in `PackedAdamW`.

    Args:
        multipliers: name of a weight -> what its rate is multiplied by, 1 where not named; decay per step is as without.
    """

    def __init__(
        self,
        model: PlainProxy,
        learning_rate: float,
        weight_decay: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        clip: float = 1.0,
        multipliers: Mapping[str, float] | None = None,
    ) -> None:
        self.model, self.learning_rate, self.clip = model, learning_rate, clip
        factors = {name: (multipliers or {}).get(name, 1.0) for name in model.weights}
        self.factors = list(factors.values())
        decays = [0.0 if name == "embedding" or name.endswith("norm") else weight_decay / factor for name, factor in factors.items()]
        groups = [{"params": [weight], "weight_decay": decay} for weight, decay in zip(model.weights.values(), decays, strict=True)]
        self.optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=eps)

    def step(self, tokens_BS: Tensor, rate_scale: float = 1.0) -> float:
        """One step on a batch; returns its loss in nats before the step."""
        self.optimizer.zero_grad()
        loss = self.model.loss(tokens_BS)
        (loss + self.model.auxiliary_loss()).backward()
        norm = math.sqrt(sum(float(weight.grad.square().sum()) for weight in self.model.weights.values() if weight.grad is not None))
        for weight in self.model.weights.values():
            if weight.grad is not None and norm > self.clip:
                weight.grad *= self.clip / norm  # torch's clip_grad_norm_ divides by norm + 1e-6
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = self.learning_rate * rate_scale * factor
        self.optimizer.step()
        self.model.update_router_bias()
        return float(loss.detach())
