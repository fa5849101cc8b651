"""K proxies as one stacked model: decoder-only Mixture-of-Experts language models (or their dense controls) with tied embeddings.

Every parameter is one contiguous leaf that leads with the pack axis K, and K=1 is the single model. A member's weights come from its own seed
and its computation meets no other member, so that a member does not depend on whom it is trained with (bit for bit on a CPU, alone too; a GPU may
round differently). The trade-off: members share one shape, and a dead member costs its share until `select` drops it.

Legend: K pack members, B batch, T time, N = B*T tokens of a member, D model width, E experts, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from proxy_models.balancing import Loads
from proxy_models.config import ProxyConfig
from proxy_models.dense import PackedDense
from proxy_models.device.layers import DeviceAttention, DeviceDense, DeviceMoE, lookup
from proxy_models.device.loss import group_mean_losses, group_token_losses
from proxy_models.device.precision import Compute, default_compute
from proxy_models.layers import PackedAttention, rms_norm
from proxy_models.loss import CHUNK_TOKENS, TiedGradient, TiedLookup, Workspace, mean_losses, token_losses
from proxy_models.moe import PackedMoE
from proxy_models.parametrization import initial_std


class PackedLayer(nn.Module):
    """Attention, then experts (one dense layer in a proxy without routed experts); both add to the residual stream."""

    def __init__(self, config: ProxyConfig, members: int, compute: Compute | None) -> None:
        super().__init__()
        self.attention = PackedAttention(config, members) if compute is None else DeviceAttention(config, members, compute)
        self.moe: PackedMoE | PackedDense
        if compute is None:
            self.moe = PackedMoE(config, members) if config.n_experts else PackedDense(config, members)
        else:
            self.moe = DeviceMoE(config, members, compute) if config.n_experts else DeviceDense(config, members, compute)

    def forward(self, x_KND: Tensor, window: int, record_load: bool) -> Tensor:
        out_KND: Tensor = self.moe(self.attention(x_KND, window), record_load)
        return out_KND


class PackedProxy(nn.Module):
    """K proxies of one shape, each with its own weights.

    Args:
        config: the shape.
        seeds: one per member; a member's initial weights depend on its seed alone.
        device: where the weights live.
        chunk_tokens: rows of logits held at once; changes speed and the last digits, nothing else.
        compute: the path of a GPU, with these products; None: the path of the device, and that of a CPU there.
        draw: draw the initial weights; else they are zero, for a caller that sets them.

    Raises:
        ValueError: no seeds.
    """

    def __init__(
        self,
        config: ProxyConfig,
        seeds: Sequence[int],
        device: torch.device | str = "cpu",
        chunk_tokens: int = CHUNK_TOKENS,
        compute: Compute | None = None,
        draw: bool = True,
    ) -> None:
        super().__init__()
        if not seeds:
            raise ValueError("A pack needs at least one member; seeds is empty.")
        self.config = config
        self.compute = default_compute(torch.device(device)) if compute is None else compute
        self.seeds = tuple(seeds)
        self._workspace = Workspace(chunk_tokens)
        with torch.device(device):
            self.embedding = nn.Parameter(torch.empty(self.members, config.vocab_size, config.d_model))
            self.layers = nn.ModuleList(PackedLayer(config, self.members, self.compute) for _ in range(config.n_layers))
            self.norm = nn.Parameter(torch.empty(self.members, config.d_model))
        if draw:
            self.begin(seeds)
        else:
            for parameter in self.parameters():
                parameter.detach().zero_()

    @property
    def members(self) -> int:
        """K."""
        return len(self.seeds)

    @property
    def moe_layers(self) -> list[PackedMoE]:
        """Those with routed experts; none in a dense proxy."""
        return [layer.moe for layer in self.layers if isinstance(layer, PackedLayer) and isinstance(layer.moe, PackedMoE)]

    def begin(self, seeds: Sequence[int]) -> None:
        """Sets all members, as many as there are, to the initial weights of these seeds, with no bias and no load."""
        self.seeds = tuple(seeds)
        for k, seed in enumerate(self.seeds):
            self._initialize(k, seed)
        for buffer in self.buffers():
            buffer.zero_()

    def use(self, compute: Compute) -> None:
        """Computes on the path of a GPU in another way from now on; weights stay."""
        self.compute = compute
        for module in self.modules():
            if isinstance(module, DeviceAttention | DeviceMoE | DeviceDense):
                module.compute = compute

    @torch.no_grad()
    def _initialize(self, k: int, seed: int) -> None:
        """Draws the weights of member k on the CPU, so that they are the same on every device. Norms are one, the rest is normal (`initial_std`)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            std = initial_std(self.config, name)
            if not std:
                parameter[k].fill_(1.0)
                continue
            parameter[k].copy_(torch.empty(parameter.shape[1:], dtype=torch.float32).normal_(0.0, std, generator=generator))

    def training_loss(self, tokens_KBS: Tensor, ids_checked: bool = False, scored_KBT: Tensor | None = None) -> Tensor:
        """Mean loss of each member in nats per scored token, shape (K,); call `.sum().backward()`.

        Sum, never mean: a mean over members would shrink every gradient by K. Records the experts' load for `update_router_bias`. Where there is
        an auxiliary loss, its gradient comes along, but it is not in the number.

        Args:
            tokens_KBS: token ids, int64 (K, B, T+1); the first T of each window predict the last T.
            ids_checked: the caller knows that all ids are in the vocabulary (samplers do, from the token files); asking a device would wait for it.
            scored_KBT: bool, which predicted tokens count; None: all. A member without any has loss and gradient zero.

        Raises:
            ValueError: the shape is wrong or an id is outside the vocabulary.
        """
        tied = TiedGradient()
        hidden_KND, target_KN = self._hidden(tokens_KBS, tied, record_load=True, ids_checked=ids_checked)
        scored_KN = None if scored_KBT is None else scored_KBT.flatten(1)
        if self.compute is not None:
            loss_K = group_mean_losses(hidden_KND, self.embedding, target_KN, self.compute, scored_KN)
        else:
            loss_K = mean_losses(hidden_KND, self.embedding.detach(), target_KN, self._workspace, tied, scored_KN)
        if self.config.auxiliary_loss:
            for moe in self.moe_layers:
                balance_K = moe.take_balance_loss()
                loss_K = loss_K + self.config.auxiliary_loss * (balance_K - balance_K.detach())
        return loss_K

    @torch.no_grad()
    def token_losses(self, tokens_KBS: Tensor) -> Tensor:
        """Loss of every predicted token in nats, shape (K, B, T); leaves gradients and the recorded load alone. Raises as `training_loss`."""
        hidden_KND, target_KN = self._hidden(tokens_KBS, TiedGradient(), record_load=False, ids_checked=False)
        if self.compute is not None:
            losses_KN = group_token_losses(hidden_KND, self.embedding, target_KN, self.compute)
        else:
            losses_KN = token_losses(hidden_KND, self.embedding, target_KN, self._workspace)
        return losses_KN.view(self.members, tokens_KBS.shape[1], -1)

    @torch.no_grad()
    def logits(self, tokens_KBT: Tensor) -> Tensor:
        """Logits of what follows each token, (K, B, T, V), all held at once: to compare, not to train or to score. Raises as `training_loss`."""
        tokens_KBS = torch.cat([tokens_KBT, tokens_KBT[..., :1]], dim=-1)  # what the last token predicts is not looked at
        hidden_KND, _ = self._hidden(tokens_KBS, TiedGradient(), record_load=False, ids_checked=False)
        return torch.bmm(hidden_KND, self.embedding.mT).view(*tokens_KBT.shape, -1)

    def _hidden(self, tokens_KBS: Tensor, tied: TiedGradient, record_load: bool, ids_checked: bool) -> tuple[Tensor, Tensor]:
        """Last hidden states (K, N, D), normed, and the targets (K, N)."""
        self._check_shape(tokens_KBS)
        if not ids_checked:
            self._check_ids(tokens_KBS)
        window = tokens_KBS.shape[2] - 1
        input_KN, target_KN = tokens_KBS[..., :-1].flatten(1), tokens_KBS[..., 1:].flatten(1)
        embedded_KND = TiedLookup.apply(self.embedding, input_KN, tied) if self.compute is None else lookup(self.embedding, input_KN)
        # A tied embedding is small for the sake of the logits; unnormed, the first layers would drown it.
        x_KND = rms_norm(embedded_KND, self.config.norm_eps)
        for layer in self.layers:
            x_KND = layer(x_KND, window, record_load)
        return rms_norm(x_KND, self.config.norm_eps, self.norm), target_KN

    def _check_shape(self, tokens_KBS: Tensor) -> None:
        if tokens_KBS.dim() != 3 or len(tokens_KBS) != self.members or tokens_KBS.shape[1] < 1 or tokens_KBS.shape[2] < 2:
            raise ValueError(f"tokens have shape {tuple(tokens_KBS.shape)}; expected ({self.members}, B, T+1) with B and T at least 1.")

    def _check_ids(self, tokens_KBS: Tensor) -> None:
        # An id beyond the vocabulary would silently read the next member's embedding.
        smallest, largest = (int(value) for value in tokens_KBS.aminmax())
        if smallest < 0 or largest >= self.config.vocab_size:
            raise ValueError(f"token ids run from {smallest} to {largest}; the vocabulary has {self.config.vocab_size} entries.")

    def update_router_bias(self, active_K: Sequence[bool] | Tensor | None = None) -> None:
        """Balances the experts after an optimizer step, from the load of the last `training_loss`.

        Args:
            active_K: which members took the step; None: all.
        """
        for moe in self.moe_layers:
            moe.update_bias(active_K)

    def count_load(self, active_K: Sequence[bool] | Tensor | None = None) -> None:
        """Adds the load of the last `training_loss` to what is counted of the members that took the step; None: of all."""
        for moe in self.moe_layers:
            moe.count_load(active_K)

    def count_from(self, k: int, counted_LE: Tensor | None = None) -> None:
        """Member k has counted so many rows by now, int64; None: none."""
        for layer, moe in enumerate(self.moe_layers):
            if counted_LE is None:
                moe.counted[k].zero_()
            else:
                moe.counted[k].copy_(counted_LE[layer])

    def loads(self, k: int) -> Loads:
        """Rows per expert of member k."""
        moe_layers = self.moe_layers
        return Loads([moe.load[k].tolist() for moe in moe_layers], [moe.counted[k].tolist() for moe in moe_layers])

    def member_state(self, k: int) -> dict[str, Tensor]:
        """Weights and router bias of member k without the pack axis, as copies: what a checkpoint holds."""
        return {name: tensor[k].detach().clone() for name, tensor in self.state_dict().items()}

    @torch.no_grad()
    def load_member_state(self, k: int, state: Mapping[str, Tensor]) -> None:
        """Sets member k to a `member_state`.

        Raises:
            ValueError: names or shapes differ from those of this configuration.
        """
        own = self.state_dict()
        if own.keys() != state.keys():
            differing = ", ".join(sorted(own.keys() ^ state.keys()))
            raise ValueError(f"The state is of another architecture: {differing} are only in one of the two.")
        for name, tensor in own.items():
            if tensor[k].shape != state[name].shape:
                raise ValueError(f"'{name}' has shape {tuple(state[name].shape)} in the state, {tuple(tensor[k].shape)} in the model.")
        for name, tensor in own.items():
            tensor[k].copy_(state[name])

    @torch.no_grad()
    def select(self, members: Sequence[int]) -> PackedProxy:
        """A new pack of these members in this order, with their weights, router bias and recorded load.

        Raises:
            ValueError: no members, or one that is not in the pack.
        """
        outside = [k for k in members if not 0 <= k < self.members]
        if outside:
            raise ValueError(f"members {outside} are not in this pack of {self.members}.")
        seeds, chunk_tokens = [self.seeds[k] for k in members], self._workspace.chunk_tokens
        pack = PackedProxy(self.config, seeds, self.embedding.device, chunk_tokens, self.compute, draw=False).to(self.embedding.dtype)
        pack.copy_from(self, members)
        return pack

    @torch.no_grad()
    def copy_from(self, other: PackedProxy, members: Sequence[int]) -> None:
        """Takes over these members of `other`, one for each of the own members, into the tensors there are; without a wait for the device."""
        self.seeds = tuple(other.seeds[k] for k in members)
        index = torch.tensor(list(members)).to(self.embedding.device, non_blocking=True)
        for own, theirs in zip(self._tensors(), other._tensors(), strict=True):
            torch.index_select(theirs, 0, index, out=own)

    def _tensors(self) -> list[Tensor]:
        return [*self.parameters(), *self.buffers()]
