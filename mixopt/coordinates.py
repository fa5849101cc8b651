"""Mixtures as points of a cube, for optimizers that know nothing but independent numbers between 0 and 1.

Two maps, both taking the uniform distribution of the cube to the uniform one of the simplex. *Stick breaking* takes one number fewer than there are
weights: each is the share of what is left that its weight leaves, as a quantile of Beta(weights after it, 1); of what it takes, the quantiles of large shares
would round to 1. It is a bijection, but treats weights unequally: the last ones hang on all numbers before. *Exponential* coordinates take one number per weight, the weight's exponential spacing as a
quantile, and treat all alike; mixtures are then rays, of which the inverse takes the point whose spacings sum to the number of weights. Zeros are faces of
the cube in both.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from mixopt.mixture import FloatArray

Coordinates = Literal["stick_breaking", "exponential"]
LEAST = 1e-300
"""A spacing of a quantile nearer to 0 would be infinite."""


def dimensions(kind: Coordinates, weights: int) -> int:
    """Numbers that a mixture of so many weights takes."""
    return weights - 1 if kind == "stick_breaking" else weights


def to_cube(kind: Coordinates, weights: FloatArray) -> FloatArray:
    """Coordinates between 0 and 1 of mixtures (n, weights), shape (n, `dimensions`)."""
    if kind == "exponential":
        return np.asarray(np.exp(-weights * weights.shape[1]))
    after = np.arange(weights.shape[1] - 1, 0, -1)
    left = np.cumsum(weights[:, ::-1], axis=1)[:, ::-1]  # of the stick, before each weight is taken
    share = np.divide(weights[:, :-1], left[:, :-1], out=np.zeros_like(weights[:, :-1]), where=left[:, :-1] > 0)
    with np.errstate(divide="ignore"):
        return np.asarray(np.exp(after * np.log1p(-np.clip(share, 0.0, 1.0))))


def from_cube(kind: Coordinates, numbers: FloatArray) -> FloatArray:
    """Mixtures (n, weights) of coordinates (n, `dimensions`)."""
    if kind == "exponential":
        spacings = -np.log(np.clip(numbers, LEAST, 1.0))
        total = spacings.sum(axis=1, keepdims=True)
        return np.asarray(
            np.where(total > 0, np.divide(spacings, total, out=np.zeros_like(spacings), where=total > 0), 1 / numbers.shape[1])
        )
    after = np.arange(numbers.shape[1], 0, -1)
    with np.errstate(divide="ignore"):
        kept = np.exp(np.log(np.clip(numbers, 0.0, 1.0)) / after)  # share of the stick that each weight leaves
    left = np.concatenate([np.ones((len(numbers), 1)), np.cumprod(kept, axis=1)], axis=1)
    return np.concatenate([left[:, :-1] - left[:, 1:], left[:, -1:]], axis=1)
