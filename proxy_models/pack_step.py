"""The weights of a pack's members and how they take one step: everything that touches the device.

A pack issues steps and hears later how they went. On a CPU that is at once; a device may answer many steps late, and then keeps a member that
diverged from stepping until the host knows. Places that are vacant take part in nothing. The trade-off: a vacant place is computed as any
other and costs as much, so packs compact or refill (`places.py`).

Legend: K places, B windows per step, S = T + 1 tokens of a window, of which T are predicted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxy_models.balancing import Loads
from proxy_models.checkpoint import Checkpoint, with_prefix
from proxy_models.config import ProxyConfig
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW
from proxy_models.products import product_library
from proxy_models.specs import TrainSettings

VACANT_SEED = 0
"""Weights of places that nobody has taken yet; nothing depends on them."""


@dataclass(frozen=True)
class StepReport:
    """How one step went, by place; numbers of places that were not active mean nothing.

    Attributes:
        stepped_K: whether loss and gradient were finite and the step was taken.
    """

    losses_nats_K: Sequence[float]
    norms_K: Sequence[float]
    stepped_K: Sequence[bool]


class PackStep:
    """K places that step together, on a CPU.

    Args:
        seeds_K: of the members' initial weights, one per place.
        rates_K: peak learning rates.
    """

    fixed_places: ClassVar[bool] = False
    """Whether the number of places is one of `FIXED_PLACES`."""

    def __init__(
        self,
        config: ProxyConfig,
        settings: TrainSettings,
        seeds_K: Sequence[int],
        rates_K: Sequence[float],
        device: torch.device | str,
    ) -> None:
        self.config, self.device = config, device
        self.model = PackedProxy(config, seeds_K, device)
        self.optimizer = PackedAdamW(self.model, rates_K, weight_decay=settings.weight_decay, clip=settings.clip)
        self._reports: list[StepReport] = []

    @property
    def places(self) -> int:
        """K."""
        return self.model.members

    def step(self, tokens_KBS: Tensor, rate_scale_K: Sequence[float], active_K: Sequence[bool], scored_KBT: Tensor | None = None) -> None:
        """Issues one optimizer step of every active place; a place whose loss or gradient is not finite does not take it.

        Args:
            scored_KBT: bool, which predicted tokens the loss is taken on; None: all.
        """
        scored = None if scored_KBT is None else scored_KBT.to(self.device)
        loss_K = self.model.training_loss(tokens_KBS.to(self.device), scored_KBT=scored)
        losses_nats_K: list[float] = loss_K.detach().tolist()
        finite_K = [active and math.isfinite(loss) for active, loss in zip(active_K, losses_nats_K, strict=True)]
        loss_K.sum().backward()
        norms_K, finite_gradient_K = self.optimizer.step(rate_scale_K, finite_K)
        self.optimizer.zero_grad()
        stepped_K = [loss and gradient for loss, gradient in zip(finite_K, finite_gradient_K, strict=True)]
        self.model.update_router_bias(stepped_K)
        self.model.count_load(None if all(stepped_K) else stepped_K)
        self._reports.append(StepReport(losses_nats_K, norms_K, stepped_K))

    def reports(self, wait: bool) -> list[StepReport]:
        """Reports of steps that are known by now and were not given before, in the order of the steps; with `wait`, of all that were issued."""
        reports, self._reports = self._reports, []
        return reports

    def place(self, k: int, seed: int, rate: float, state: Mapping[str, Tensor] | None = None) -> None:
        """Gives place k to a member. All steps issued must have been reported.

        Args:
            state: a `member_state` to go on from; or its part of the model only, to begin with: the optimizer then begins anew. None: the
                initial weights of the seed.

        Raises:
            ValueError: the state is of another model.
        """
        given = Checkpoint(state or {}, {})
        model = PackedProxy(self.config, [seed], self.device).member_state(0) if state is None else given.part("model")
        self.model.load_member_state(k, model)
        self.optimizer.load_member_state(k, given.part("optimizer") or self._fresh_optimizer(k))
        self.model.count_from(k, given.part("balance").get("rows_LE"))
        rates = list(self.optimizer.learning_rates)
        rates[k] = rate
        self.optimizer.learning_rates = tuple(rates)

    def member_state(self, k: int) -> dict[str, Tensor]:
        """All tensors of the member at place k, as copies: what a checkpoint holds."""
        parts = {"model": self.model.member_state(k), "optimizer": self.optimizer.member_state(k)}
        if self.model.moe_layers:
            parts["balance"] = {"rows_LE": torch.tensor(self.loads(k).counted_LE)}
        return {name: tensor for part, tensors in parts.items() for name, tensor in with_prefix(part, tensors).items()}

    def weights(self, k: int) -> dict[str, Tensor]:
        """The part of `member_state` that is needed after training."""
        return with_prefix("model", self.model.member_state(k))

    def count_load_anew(self, k: int) -> None:
        """The load of the member at place k is counted from the next step on."""
        self.model.count_from(k)

    def loads(self, k: int) -> Loads:
        """Rows per expert of the member at place k."""
        return self.model.loads(k)

    def diagnostics(self, k: int) -> dict[str, Any]:
        """JSON values on how the member at place k was computed; for a result's diagnostics."""
        return {"products": product_library()}

    def scoring_model(self, members: Sequence[int]) -> PackedProxy:
        """A model of these places in this order, to score; not to be changed."""
        return self.model if list(members) == list(range(self.places)) else self.model.select(members)

    def select(self, members: Sequence[int]) -> None:
        """Keeps these places, in this order, and drops the others. All steps issued must have been reported."""
        self.model = self.model.select(members)
        self.optimizer = self.optimizer.select(members, self.model)

    def _fresh_optimizer(self, k: int) -> dict[str, Tensor]:
        """What a member's optimizer starts with."""
        return {name: torch.zeros_like(tensor) for name, tensor in self.optimizer.member_state(k).items()}


def step_type_for(device: torch.device | str) -> type[PackStep]:
    """The kind of step for a device."""
    if torch.device(device).type == "cuda":
        from proxy_models.device.step import DeviceStep

        return DeviceStep
    return PackStep
