"""One merge: components and weights in, one model out, with two models in memory at most however many components there are.

The merged model is one of the two; what streams through beside it, with the one vector that a threshold is taken from, is less than another
(`pieces`). Operators work in float32, with sums in float64: a merge in bfloat16 loses what components differ by (code of arXiv 2602.04937).

The balancing bias of experts is carried over whatever the operator: averaged by the weights. It is no weight but a state that steers which
experts are chosen, so that trimming or rescaling it would mean nothing; adding one number to all of a layer's biases changes no choice, so
that the average of biases is that of centred ones; and being linear it lets many merges be one contraction. It moves at most one step per
training step from the base's, which for short branches is little. Where components share no base, or experts are found dead, it is better
estimated anew (`bias`), which needs tokens of the mixture. The trade-off: a carried bias balances the components' routers, not exactly the
merged one.

Legend: K components.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from proxy_models.checkpoint import Checkpoint, save_checkpoints, with_prefix
from proxy_models.merging.components import Component, check_alike, check_shapes, moe_tensor
from proxy_models.merging.operators import Linear, MergeOperator
from proxy_models.merging.pieces import Piece, pieces_of

SUM_TOLERANCE = 1e-6
"""How far from one the sum of weights may be; what is within is rounding of whoever wrote them, and is divided away."""


def simplex_weights(weights: Sequence[float], names: Sequence[str]) -> list[float]:
    """Weights that sum to one exactly as they can.

    Raises:
        ValueError: one is negative or not finite, or their sum is not one.
    """
    for name, weight in zip(names, weights, strict=False):
        if weight < 0:
            raise ValueError(f"The weight of component '{name}' is {weight}; it must be finite and not negative, but in a linear merge.")
    return affine_weights(weights, names)


def affine_weights(weights: Sequence[float], names: Sequence[str]) -> list[float]:
    """Weights that sum to one exactly as they can, of either sign: a linear merge beyond a component.

    A linear merge is theta_0 + sum w_k (theta_k - theta_0) whatever the signs. Training is to first order linear in the mixture (MergeMix's error term
    has no first order), along the line through two components no less than between them, so that a mixture with less of a domain than the general
    share gives to every component has w_k < 0. What is left out is of second order and grows with the weights' size.

    Raises:
        ValueError: one is not finite, or their sum is not one.
    """
    if len(weights) != len(names):
        raise ValueError(f"There are {len(weights)} weights for {len(names)} components; each component needs one.")
    for name, weight in zip(names, weights, strict=True):
        if not math.isfinite(weight):
            raise ValueError(f"The weight of component '{name}' is {weight}; it must be finite.")
    total = math.fsum(weights)
    if abs(total - 1) > SUM_TOLERANCE:
        raise ValueError(f"The weights of {', '.join(names)} sum to {total:.9g}; they must sum to 1.")
    return [weight / total for weight in weights]


def simplex_rows(weights_MK: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
    """Mixtures, one per row, each as `simplex_weights`, shape (M, K).

    Raises:
        ValueError: a row is not in the simplex, or the shape is not (M, K).
    """
    return np.array([simplex_weights(row, names) for row in _rows(weights_MK, names)])


def affine_rows(weights_MK: ArrayLike, names: Sequence[str]) -> NDArray[np.float64]:
    """Mixtures, one per row, each as `affine_weights`, shape (M, K).

    Raises:
        ValueError: a row does not sum to one or is not finite, or the shape is not (M, K).
    """
    return np.array([affine_weights(row, names) for row in _rows(weights_MK, names)])


def _rows(weights_MK: ArrayLike, names: Sequence[str]) -> list[list[float]]:
    weights = np.asarray(weights_MK, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[1] != len(names) or not len(weights):
        raise ValueError(f"Weights have shape {weights.shape}; they must be (mixtures, {len(names)}), a column for each component.")
    rows: list[list[float]] = weights.tolist()
    return rows


def merged_tensors(
    components: Sequence[Component], weights: Mapping[str, float], operator: MergeOperator | None = None, base: Component | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the merged model, one after the other: name and float32 value on the CPU. Checks all but numbers before the first.

    Args:
        weights: name of every component -> its share of the mixture; a linear merge takes negative ones too (`affine_weights`). A component of
            weight zero is not read.
        operator: None: linear.
        base: what the components began with.

    Raises:
        ValueError: weights are not in the simplex (linear: do not sum to one) or not those of the components; components or base differ in shape; the operator needs a
            base and there is none, or misses something else; a number is not finite.
    """
    operator = Linear() if operator is None else operator
    check_alike(components)
    if base is not None:
        check_shapes(components[0], base)
    elif operator.needs_base:
        raise ValueError(
            f"{type(operator).__name__} merges what components have learned since their base, and there is no base; give it, or merge "
            "linearly."
        )
    names = [component.name for component in components]
    if weights.keys() != set(names):
        differing = ", ".join(sorted(weights.keys() ^ set(names)))
        raise ValueError(f"Weights and components must have the same names; only one of the two has {differing}.")
    checked = affine_weights if isinstance(operator, Linear) else simplex_weights
    shares = checked([weights[name] for name in names], names)
    weighed = [(component, share) for component, share in zip(components, shares, strict=True) if share != 0]
    return _stream([component for component, _ in weighed], [share for _, share in weighed], operator, base)


def merge(
    components: Sequence[Component], weights: Mapping[str, float], operator: MergeOperator | None = None, base: Component | None = None
) -> dict[str, Tensor]:
    """The merged model as a `PackedProxy.member_state`. Arguments and errors as `merged_tensors`."""
    return dict(merged_tensors(components, weights, operator, base))


def save_merge(
    path: Path,
    components: Sequence[Component],
    weights: Mapping[str, float],
    operator: MergeOperator | None = None,
    base: Component | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Writes the merged model as a `weights.safetensors`; its fact `merge` says of what it was made and how. Errors as `merged_tensors`.

    Args:
        facts: more facts, as JSON values.
    """
    state = merge(components, weights, operator, base)
    made = {
        "operator": described(Linear() if operator is None else operator),
        "weights": dict(weights),
        "base": None if base is None else base.name,
    }
    save_checkpoints({path: Checkpoint(with_prefix("model", state), {**(facts or {}), "merge": made})})


def described(operator: MergeOperator) -> dict[str, Any]:
    """Kind and settings of an operator, as JSON values; what it was given to weigh by is not among them."""
    settings: dict[str, Any] = {one.name: getattr(operator, one.name) for one in fields(operator)} if is_dataclass(operator) else {}
    return {"kind": type(operator).__name__, **{name: value for name, value in settings.items() if isinstance(value, int | float | str)}}


def _stream(
    components: Sequence[Component], weights_K: Sequence[float], operator: MergeOperator, base: Component | None
) -> Iterator[tuple[str, Tensor]]:
    for tensor, shape in components[0].shapes.items():
        merged = torch.empty(shape)
        moe = moe_tensor(tensor)
        is_bias = moe is not None and moe.kind == "router_bias"
        for piece in pieces_of(components, base, weights_K, tensor, operator.centres_routers):
            _merge_piece(piece, Linear() if is_bias else operator, merged if piece.expert is None else merged[piece.expert])
        yield tensor, merged


def _merge_piece(piece: Piece, operator: MergeOperator, merged: Tensor) -> None:
    """Writes the merged piece."""
    combine = operator.prepare(piece)
    for block in piece.blocks():
        rows_X = combine(block)
        if piece.centred:
            rows_X = rows_X + piece.mean_over_experts(block.first)
        merged[block.first : block.first + len(rows_X)] = rows_X
