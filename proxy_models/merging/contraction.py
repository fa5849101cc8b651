"""Many merges at once: K components and M mixtures make a pack of M proxies, which is scored as any pack. Nothing is written.

Linear merging is one contraction, weights (M, K) with parameters (K, ...), straight into the pack's own (M, ...). It equals M single merges
bit for bit, and so do the losses. The trade-off: what makes it exact (`pieces.weighted_sum`) reads a block K times, where one matrix
product would read it once; scoring takes most of the time anyway.

Legend: K components, M mixtures; X rows of a block and whatever axes follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSet, EvaluationSpec, Score, evaluate
from proxy_models.merging.components import Component, HeldComponent, check_alike, check_shapes
from proxy_models.merging.merge import affine_rows
from proxy_models.merging.pieces import LARGEST_BLOCK, Piece, pieces_of, weighted_sum
from proxy_models.model import PackedProxy
from proxy_models.products import fast_products

PLACES = 32
"""Merged proxies that are scored together unless the caller knows better."""


def merged_pack(
    config: ProxyConfig, components: Sequence[Component], weights_MK: ArrayLike, device: torch.device | str = "cpu"
) -> PackedProxy:
    """The linear merges of all these mixtures as one pack, to score or to look into.

    Args:
        weights_MK: one mixture per row; columns in the order of `components`. Negative weights extrapolate (`merge.affine_weights`).

    Raises:
        ValueError: a row does not sum to one, the shape is not (M, K), or components are not of this configuration.
    """
    weights = checked_weights(components, weights_MK)
    pack = PackedProxy(config, [0] * len(weights), device, draw=False)
    _fill(pack, components, weights)
    return pack


@torch.no_grad()
def _fill(pack: PackedProxy, components: Sequence[Component], weights: NDArray[np.float64]) -> None:
    """Sets the M members of a pack to the linear merges of M mixtures, in the tensors there are."""
    state = pack.state_dict()
    check_shapes(HeldComponent("the configuration", {name: value[0] for name, value in state.items()}), components[0])
    weights_M_of_K = torch.from_numpy(weights).to(pack.embedding.device).unbind(1)
    even = [1 / len(components)] * len(components)
    for name, value in state.items():
        for piece in pieces_of(components, None, even, name, centre=False):
            _contract(piece, weights_M_of_K, value if piece.expert is None else value[:, piece.expert])


@fast_products()
def score_mixtures(
    config: ProxyConfig,
    components: Sequence[Component],
    weights_MK: ArrayLike,
    evaluations: Sequence[EvaluationSpec],
    window: int,
    device: torch.device | str = "cpu",
    places: int = PLACES,
) -> list[list[Score]]:
    """Scores of the linear merge of every mixture on every set, as `score_weights` gives them for one trial; `places` mixtures at once.

    Raises:
        DamagedTokenFile, FileNotFoundError: a held-out set cannot be read.
        ValueError: as `merged_pack`, or a set cannot be scored (`EvaluationSet`).
    """
    weights = checked_weights(components, weights_MK)
    sets = [EvaluationSet(spec, window) for spec in evaluations]
    scores: list[list[Score]] = []
    pack: PackedProxy | None = None
    for first in range(0, len(weights), places):
        mixtures = weights[first : first + places]
        if pack is None or pack.members != len(mixtures):
            pack = None  # let go of before another is made
            pack = PackedProxy(config, [0] * len(mixtures), device, draw=False)
        _fill(pack, components, mixtures)
        scores += evaluate(pack, sets, "end")
    return scores


def checked_weights(components: Sequence[Component], weights_MK: ArrayLike) -> NDArray[np.float64]:
    """The mixtures as rows that sum to one; errors as `merged_pack`."""
    check_alike(components)
    return affine_rows(weights_MK, [component.name for component in components])


def _contract(piece: Piece, weights_M_of_K: Sequence[Tensor], merged_MX: Tensor) -> None:
    """Writes one piece of every mixture."""
    members, axes = len(merged_MX), len(piece.shape)
    rows = max(1, LARGEST_BLOCK * piece.shape[0] // (members * piece.elements))
    factors = [weight_M.view(members, *[1] * axes) for weight_M in weights_M_of_K]
    for first in range(0, piece.shape[0], piece.block_rows):
        theta_KX = piece.block(first).theta_KX.to(merged_MX.device)
        for start in range(0, theta_KX.shape[1], rows):
            part = weighted_sum(factors, (theta_X[None, start : start + rows] for theta_X in theta_KX))
            merged_MX[:, first + start : first + start + part.shape[1]] = part
