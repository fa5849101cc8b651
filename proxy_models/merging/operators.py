"""What makes one model of several: averages, with weights that are those of the mixture or follow from what the components have learned.

An operator looks at one piece after the other (`pieces`), first as a whole where it needs norms or thresholds, then block by block. All
take the weights of a mixture, which sum to one. Linear is the default: of DeMix's six families it ranked mixtures best, without a setting
to choose (arXiv 2602.00747, table of merge operators). The trade-off of all others: what they gain for one merged model, they lose in what
a weight means, as the merge is no longer the first-order picture of training on the mixture.

Legend: K components, E experts, L layers; X rows of a block and whatever axes follow. theta_0: the base, tau_k = theta_k - theta_0, w:
weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from proxy_models.merging.components import Component, check_shapes
from proxy_models.merging.pieces import Block, Piece, pieces_of, weighted_sum

Combine = Callable[[Block], Tensor]
"""From a block of all components to that of the merged model, float64. Called for the blocks of a piece in order, once each; the block is
not to be changed."""


class MergeOperator(Protocol):
    """One way to merge; settings are fields, and never change.

    Attributes:
        needs_base: whether it cannot do without the weights that components began with.
        centres_routers: whether routers are to be given without their mean over experts. An average needs no such care.
    """

    @property
    def needs_base(self) -> bool: ...

    @property
    def centres_routers(self) -> bool: ...

    def prepare(self, piece: Piece) -> Combine:
        """Looks at a piece as a whole, and returns how its blocks are merged.

        Raises:
            ValueError: something that the operator was given does not fit the components.
        """
        ...


@dataclass(frozen=True)
class Linear:
    """theta = sum w_k theta_k (DeMix, arXiv 2602.00747; MergeMix, arXiv 2601.17858, which averages experts and routers just so).

    As weights sum to one it is theta_0 + sum w_k tau_k, whatever the base, which is not looked at. It alone takes negative weights: to first order a
    mixture beyond a component is as good a merge as one between two (`merge.affine_weights`); what others do to displacements has no such line.
    """

    needs_base = False
    centres_routers = False

    def prepare(self, piece: Piece) -> Combine:
        return lambda block: weighted_sum(piece.weights_K, block.theta_KX)


@dataclass(frozen=True)
class TaskArithmetic:
    """theta = theta_0 + scale * sum w_k tau_k (arXiv 2212.04089); with a scale of 1 it is linear.

    Attributes:
        scale: above 0. The tokens of the mixture over those that a component was trained on: 1 where they are equal (arXiv 2602.04937, whose
            code multiplies tau_k with n_k / n, the tokens of domain k in the mixture over those of its expert).
    """

    scale: float = 1.0
    needs_base = True
    centres_routers = False

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def prepare(self, piece: Piece) -> Combine:
        return lambda block: (
            block.base() + self.scale * weighted_sum(piece.weights_K, (block.displacement(k) for k in range(len(piece.weights_K))))
        )


@dataclass(frozen=True)
class Spherical:
    """Multi-SLERP: the weighted mean of directions on the sphere, at the weighted mean of lengths.

    The methods file names it and gives no equation; this is one step toward the Karcher mean. With u_k the components' directions and m
    that of sum w_k u_k: t = sum w_k log_m(u_k), and the direction is exp_m(t). For two components it is exactly SLERP. With a base,
    displacements are merged and added to it. As the result lies in the span of the components, it is a linear merge with coefficients that
    follow from their inner products, and streams as one. Where directions cancel there is no mean direction, and the merge is linear. A
    component that did not leave the base has no direction; it counts with its length, zero.
    """

    needs_base = False
    centres_routers = True

    def prepare(self, piece: Piece) -> Combine:
        count = len(piece.weights_K)
        gram_KK = torch.zeros(count, count, dtype=torch.float64)
        for block in piece.blocks():
            rows_KN = torch.stack([block.displacement(k) for k in range(count)]).flatten(1)
            gram_KK += rows_KN @ rows_KN.T
        coefficients = spherical_coefficients(gram_KK, torch.tensor(piece.weights_K, dtype=torch.float64)).tolist()

        def combine(block: Block) -> Tensor:
            merged_X = weighted_sum(coefficients, (block.displacement(k) for k in range(count)))
            return merged_X if block.base_X is None else merged_X + block.base()

        return combine


CANCELLED = 1e-6
"""Length of a mean direction, of 1, under which it is the rounding of float32 numbers that decides where it points."""


def spherical_coefficients(gram_KK: Tensor, weights_K: Tensor) -> Tensor:
    """What `Spherical` multiplies each vector with, from their inner products; float64."""
    norms_K = gram_KK.diagonal().clamp_min(0).sqrt()
    moved_K = norms_K > 0
    if not bool(moved_K.any()):
        return weights_K
    safe_K = torch.where(moved_K, norms_K, torch.ones_like(norms_K))
    directions_KK = gram_KK / safe_K[:, None] / safe_K[None, :]
    weighs_K = torch.where(moved_K, weights_K, torch.zeros_like(weights_K))
    length = float((weighs_K @ directions_KK @ weighs_K).clamp_min(0).sqrt())
    if length <= CANCELLED * float(weighs_K.sum()):
        return weights_K
    mean_K = weighs_K / length
    cosine_K = (directions_KK @ mean_K).clamp(-1, 1)
    angle_K = cosine_K.acos()
    stretch_K = weighs_K / torch.sinc(angle_K / math.pi)  # angle / sin(angle), 1 at no angle
    tangent_K = stretch_K - (stretch_K @ cosine_K) * mean_K
    turn = float((tangent_K @ directions_KK @ tangent_K).clamp_min(0).sqrt())
    direction_K = math.cos(turn) * mean_K + (math.sin(turn) / turn if turn > 0 else 1.0) * tangent_K
    # What rounding does to the length of a direction would scale the whole piece.
    direction_K = direction_K / (direction_K @ directions_KK @ direction_K).sqrt()
    return direction_K * (weights_K @ norms_K) / safe_K


FISHER_FLOOR = 1e-6
"""Added to every element, so that none divides by zero (code of arXiv 2602.04937)."""


@dataclass(frozen=True, eq=False)
class FisherWeighted:
    """theta = sum c_k F_k theta_k / sum c_k F_k, elementwise, with c_k = w_k / |F_k|: a diagonal Fisher says how much each component minds.

    F_k has `FISHER_FLOOR` added, before its norm over all tensors is taken (arXiv 2602.04937, by its code). The norms make a component of
    steep losses weigh no more than others. Make it with `of`. Where components were aligned, their information must be in the same order.

    Attributes:
        information: name of a component -> F_k, in the shapes of its weights (`routes.diagonal_fisher`).
        norms: name of a component -> |F_k|.
    """

    information: Mapping[str, Component]
    norms: Mapping[str, float]
    needs_base = False
    centres_routers = True

    @classmethod
    def of(cls, information: Mapping[str, Component]) -> FisherWeighted:
        """Reads all of the information once, for its norms.

        Raises:
            ValueError: a number is negative or not finite.
        """
        return cls(information, {name: _fisher_norm(name, one) for name, one in information.items()})

    def prepare(self, piece: Piece) -> Combine:
        absent = [component.name for component in piece.components if component.name not in self.information]
        if absent:
            raise ValueError(f"There is no Fisher information of component '{absent[0]}'; measure it with diagonal_fisher.")
        for component in piece.components:
            check_shapes(component, self.information[component.name])
        scales_K = [w / self.norms[component.name] for w, component in zip(piece.weights_K, piece.components, strict=True)]

        def combine(block: Block) -> Tensor:
            last = block.first + block.theta_KX.shape[1]
            fisher_KX = [
                (self.information[component.name].rows(piece.tensor, block.first, last, piece.expert).double() + FISHER_FLOOR) * scale
                for component, scale in zip(piece.components, scales_K, strict=True)
            ]
            total_X = weighted_sum([1.0] * len(fisher_KX), fisher_KX)
            return weighted_sum(fisher_KX, block.theta_KX) / total_X

        return combine


def _fisher_norm(name: str, information: Component) -> float:
    total = 0.0
    for tensor in information.shapes:
        for piece in pieces_of([information], None, [1.0], tensor, centre=False):
            for block in piece.blocks():
                if bool((block.theta_KX < 0).any()):
                    raise ValueError(f"Fisher information of component '{name}' is negative in '{tensor}'; it is a mean of squares.")
                total += float((block.theta_KX.double() + FISHER_FLOOR).square().sum())
    return math.sqrt(total)


@dataclass(frozen=True, eq=False)
class RoutingWeighted:
    """W_e = sum w_k f_ke W_ke / sum w_k f_ke for every expert e, f_ke the share of component k's tokens that were sent to it; the rest is
    linear.

    Marked as an own suggestion in the methods file [U]: experts are shaped by the domains that use them. A weight is then no longer a share
    of data, so that it is an ablation. An expert that no component uses is averaged by the weights alone.

    Attributes:
        shares: name of a component -> (L, E), the share of its tokens that each expert of each layer received on its own domain
            (`routes.Routes.shares`).
    """

    shares: Mapping[str, Tensor]
    needs_base = False
    centres_routers = False

    def __post_init__(self) -> None:
        for name, shares_LE in self.shares.items():
            if shares_LE.dim() != 2 or not bool((torch.isfinite(shares_LE) & (shares_LE >= 0)).all()):
                raise ValueError(f"Routing shares of component '{name}' must be a table of layers by experts, finite and not negative.")

    def prepare(self, piece: Piece) -> Combine:
        weights_K = self._weights(piece)
        return lambda block: weighted_sum(weights_K, block.theta_KX)

    def _weights(self, piece: Piece) -> Sequence[float]:
        if piece.moe is None or piece.expert is None:
            return piece.weights_K
        absent = [component.name for component in piece.components if component.name not in self.shares]
        if absent:
            raise ValueError(f"There are no routing shares of component '{absent[0]}'; measure them on tokens of its domain.")
        used_K = []
        for weight, component in zip(piece.weights_K, piece.components, strict=True):
            shares_LE = self.shares[component.name]
            layers, experts = shares_LE.shape
            if not (piece.moe.layer < layers and piece.expert < experts):
                raise ValueError(f"Routing shares of component '{component.name}' are {layers} by {experts}; '{piece.tensor}' has more.")
            used_K.append(weight * float(shares_LE[piece.moe.layer, piece.expert]))
        total = math.fsum(used_K)
        return [used / total for used in used_K] if total > 0 else piece.weights_K


def check_positive(setting: str, value: float) -> None:
    """Raises ValueError unless a setting is above 0 and finite."""
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{setting} is {value}; it must be above 0.")
