"""Experts in one order: which expert of one model is which of another, layer by layer, where the two share no base.

Permuting a layer's experts together with their router rows and biases gives the same model, so that in models that began apart index e
means nothing, and averaging expert by expert destroys them: a permuted copy of the same model merged with itself is 84% wrong, and not at
all once aligned (methods file, section 5, measured). An assignment maximizes the inner products of what experts are: router row (without
the mean over experts, which is free), gate, up and output matrix. For permuted copies it finds the permutation, as no order has a larger
sum of products (Cauchy and Schwarz).

The trade-off: only experts are brought in order. Hidden units within an expert, heads and the residual stream of models of different seeds
stay unaligned; branch components from one base wherever that is possible, and nothing here is needed.

Legend: L layers, E experts, D model width, F hidden width of an expert; expert_E: for each place, which expert takes it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proxy_models.merging.components import Component, Shapes, check_alike, check_shapes, moe_tensor


class PermutedComponent:
    """A component whose experts are taken in another order, with router rows and balancing biases.

    Args:
        expert_LE: for each layer a permutation; place e is taken by expert expert_LE[l][e].

    Raises:
        ValueError: a row is no permutation of the layer's experts.
    """

    def __init__(self, component: Component, expert_LE: Sequence[Sequence[int]]) -> None:
        self._component, self._expert_LE = component, [list(row) for row in expert_LE]
        self.shapes: Shapes = component.shapes
        for layer, experts in enumerate(routed_layers(component)):
            row = self._expert_LE[layer] if layer < len(self._expert_LE) else []
            if sorted(row) != list(range(experts)):
                raise ValueError(f"The order {row} of experts in layer {layer} of '{component.name}' is no permutation of {experts}.")

    @property
    def name(self) -> str:
        return self._component.name

    @property
    def base_id(self) -> str | None:
        return self._component.base_id

    def rows(self, tensor: str, first: int, last: int, expert: int | None = None) -> Tensor:
        moe = moe_tensor(tensor)
        if moe is None:
            return self._component.rows(tensor, first, last, expert)
        expert_E = self._expert_LE[moe.layer]
        if moe.kind == "router":
            return self._component.rows(tensor, first, last)[:, expert_E]
        if moe.kind == "router_bias":
            return self._component.rows(tensor, 0, len(expert_E))[expert_E[first:last]]
        if expert is not None:
            return self._component.rows(tensor, first, last, expert_E[expert])
        return torch.cat([self._component.rows(tensor, one, one + 1) for one in expert_E[first:last]])


def routed_layers(component: Component) -> list[int]:
    """Routed experts of each layer; empty for a dense proxy."""
    experts = {}
    for tensor, shape in component.shapes.items():
        moe = moe_tensor(tensor)
        if moe is not None and moe.kind == "router_bias":
            experts[moe.layer] = shape[0]
    return [experts[layer] for layer in sorted(experts)]


def share_a_base(components: Sequence[Component]) -> bool:
    """Whether all are known to have begun with the same weights, so that index e is the same expert in each."""
    return len({component.base_id for component in components}) == 1 and components[0].base_id is not None


def aligned(components: Sequence[Component], reference: Component | None = None) -> list[Component]:
    """The components with their experts in the order of the reference; as they are if all share a base.

    Args:
        reference: None: the first component.

    Raises:
        ValueError: shapes differ.
    """
    check_alike(components)
    if share_a_base(components):
        return list(components)
    model = components[0] if reference is None else reference
    check_shapes(model, components[0])
    return [
        component if component is model else PermutedComponent(component, matched_experts(model, component)) for component in components
    ]


def matched_experts(reference: Component, component: Component) -> list[list[int]]:
    """expert_LE: for each expert of the reference, the component's expert that is most like it (the Hungarian method, by layer)."""
    from scipy.optimize import linear_sum_assignment  # heavy, and needed by nothing else here

    layers = range(len(routed_layers(reference)))
    return [linear_sum_assignment(likeness(reference, component, layer).numpy(), maximize=True)[1].tolist() for layer in layers]


def likeness(one: Component, other: Component, layer: int) -> Tensor:
    """Inner products of the experts of two models, (E, E) in float64: router row, gate and up, and output matrix as one vector each."""
    prefix = f"layers.{layer}.moe."
    width, experts = one.shapes[prefix + "router"]
    routers = [model.rows(prefix + "router", 0, width).double() for model in (one, other)]
    router_DE, other_DE = (router_DE - router_DE.mean(-1, keepdim=True) for router_DE in routers)
    products_EE = router_DE.T @ other_DE
    for kind in ("expert_in", "expert_out"):
        rows = one.shapes[prefix + kind][1]
        own_EX = torch.stack([one.rows(prefix + kind, 0, rows, expert).flatten() for expert in range(experts)])
        for expert in range(experts):
            products_EE[:, expert] += own_EX.double() @ other.rows(prefix + kind, 0, rows, expert).flatten().double()
    return products_EE
