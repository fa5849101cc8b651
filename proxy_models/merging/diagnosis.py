"""What a merge is told by before anyone believes its losses: how far components have gone, whether routers still choose alike, which
experts starve.

Displacement is |theta_k - theta_0| / (|theta_k| + |theta_0|), between 0 and 1: merging is a first-order picture of training on the mixture,
good while this is far below 1 (DeMix measured about a tenth; arXiv 2602.00747). Routers are discrete: their small shifts change which
experts are chosen, so that agreement is counted choice by choice. The trade-off: each model runs over the tokens once; components once for
all mixtures.

Legend: K components, M members of a pack, B windows, S tokens of a window and one more, L layers, E experts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.merging.components import Component, HeldComponent, check_alike, check_shapes, members_of, moe_tensor
from proxy_models.merging.pieces import pieces_of
from proxy_models.merging.routes import Routes, component_routes, routes_of
from proxy_models.model import PackedProxy

GROUPS = ("embedding", "attention", "router", "experts", "shared", "norms")
"""Of parameters, whose displacement is told apart. The balancing bias belongs to none: it is no weight."""


@dataclass(frozen=True)
class Displacement:
    """How far a component is from a reference, of 1.

    Attributes:
        total: over all parameters.
        by_group: the same within each of `GROUPS` that the model has.
    """

    total: float
    by_group: Mapping[str, float]


@dataclass(frozen=True)
class Diagnosis:
    """What came with a merge.

    Attributes:
        displacement: name of a component -> its own.
        measured_from: "base", or "merged" where there is no base.
        agreement: name of a component -> share of choices of experts that it and the merged model have in common, by layer, mean over
            tokens; chance alone would give top_k / E. Empty lists in a dense proxy.
        agreement_with_base: the same with the base; None without one.
        dead_experts: (layer, expert) that received no token in the merged model.
        dead_in_components: name of a component -> how many are dead in it, on the same tokens.
        load_variation: coefficient of variation of the experts' loads in the merged model, by layer.
        tokens: on which routes were compared.
    """

    displacement: Mapping[str, Displacement]
    measured_from: Literal["base", "merged"]
    agreement: Mapping[str, tuple[float, ...]]
    agreement_with_base: tuple[float, ...] | None
    dead_experts: tuple[tuple[int, int], ...]
    dead_in_components: Mapping[str, int]
    load_variation: tuple[float, ...]
    tokens: int

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class Inspector:
    """Diagnoses merges of the same components, whose own share is measured once.

    Args:
        tokens_BS: windows on which routes are compared, int64 (B, T+1).

    Raises:
        ValueError: components or base are not of the configuration.
    """

    def __init__(
        self,
        config: ProxyConfig,
        components: Sequence[Component],
        base: Component | None,
        tokens_BS: Tensor,
        device: torch.device | str = "cpu",
    ) -> None:
        check_alike(components)
        self._config, self._components, self._tokens_BS, self._device = config, components, tokens_BS, device
        self._routes = {one.name: component_routes(config, one, tokens_BS, device) for one in components}
        self._base_routes = None if base is None else component_routes(config, base, tokens_BS, device)
        self._displacement = None if base is None else {one.name: displacement(one, base) for one in components}

    def of_merge(self, state: Mapping[str, Tensor]) -> Diagnosis:
        """Of one merged model (`merge`)."""
        merged = HeldComponent("merged", state)
        return self._diagnosis(merged, component_routes(self._config, merged, self._tokens_BS, self._device))

    def of_pack(self, pack: PackedProxy) -> list[Diagnosis]:
        """Of every member of a pack of merges (`merged_pack`)."""
        members = members_of(pack, [f"merged {m}" for m in range(pack.members)])
        return [self._diagnosis(member, routes) for member, routes in zip(members, routes_of(pack, self._tokens_BS), strict=True)]

    def _diagnosis(self, merged: Component, routes: Routes) -> Diagnosis:
        moved = self._displacement
        loads_LE = routes.loads().double()
        return Diagnosis(
            displacement={one.name: displacement(one, merged) for one in self._components} if moved is None else moved,
            measured_from="merged" if moved is None else "base",
            agreement={name: tuple(routes.agreement(own)) for name, own in self._routes.items()},
            agreement_with_base=None if self._base_routes is None else tuple(routes.agreement(self._base_routes)),
            dead_experts=tuple((int(layer), int(expert)) for layer, expert in (loads_LE == 0).nonzero().tolist()),
            dead_in_components={name: int((own.loads() == 0).sum()) for name, own in self._routes.items()},
            load_variation=tuple((loads_LE.std(-1, correction=0) / loads_LE.mean(-1)).tolist()) if len(loads_LE) else (),
            tokens=self._tokens_BS.shape[0] * (self._tokens_BS.shape[1] - 1),
        )


def displacement(component: Component, reference: Component) -> Displacement:
    """How far a component is from a reference; router rows without their mean over experts, which is free. Streams.

    Raises:
        ValueError: shapes differ, or a number is not finite.
    """
    check_shapes(component, reference)
    squares = {group: [0.0, 0.0, 0.0] for group in GROUPS}
    for tensor in component.shapes:
        group = group_of(tensor)
        if group is None:
            continue
        for piece in pieces_of([component], reference, [1.0], tensor, centre=True):
            for block in piece.blocks():
                for place, part in enumerate((block.displacement(0), block.theta_KX[0].double(), block.base())):
                    squares[group][place] += float(part.square().sum())
    present = {group: sums for group, sums in squares.items() if any(sums)}
    return Displacement(
        _relative([math.fsum(column) for column in zip(*present.values(), strict=True)]), {g: _relative(s) for g, s in present.items()}
    )


def _relative(squares: Sequence[float]) -> float:
    if not squares or not squares[0]:
        return 0.0
    moved, own, reference = (math.sqrt(square) for square in squares)
    return moved / (own + reference)


def group_of(tensor: str) -> str | None:
    """Which of `GROUPS` a tensor belongs to; None: no parameter."""
    moe = moe_tensor(tensor)
    if moe is not None:
        return {"router": "router", "router_bias": None, "expert_in": "experts", "expert_out": "experts"}[moe.kind]
    last = tensor.rsplit(".", 1)[-1]
    if last == "embedding":
        return "embedding"
    if last == "norm":
        return "norms"
    return "attention" if ".attention." in tensor else "shared"
