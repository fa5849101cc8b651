"""Seed noise that depends on the mixture, learned from repeats: log variance linear in the weights, where the repeats show that it is not constant.

Mixtures near a corner of the simplex were measured with up to 25 times the noise of others (methods/surrogates-measured.md, C6). A variance from two or
three seeds is hardly known, so the slope has a prior at zero and is used only if its evidence beats that of constant noise. The main trade-off: one
direction of change per domain and nothing finer; corners that were never repeated are extrapolated to, within bounds.

Legend: G repeated mixtures, N trials, M points, I inputs (weights of all phases, side by side).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from mixopt.mixture import FloatArray

# Fewer repeated mixtures, or degrees of freedom, say nothing about where noise is large.
LEAST_MIXTURES, LEAST_DEGREES = 3, 6
SLOPE_STD = 2.0
"""Of the prior on the change of log variance from none of a domain to nothing else."""
LARGEST_RATIO = 100.0
"""Of variances, either way: what was never repeated is not extrapolated further."""
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class NoiseShape:
    """Relative noise variance exp(slope . (x - center)), `slope` and `center` of shape (I,); its geometric mean over the trials is 1."""

    slope: FloatArray
    center: FloatArray

    def at(self, x_MI: FloatArray) -> FloatArray:
        """Noise variance over its geometric mean, shape (M,)."""
        bound = np.log(LARGEST_RATIO)
        return np.asarray(np.exp(np.clip((x_MI - self.center) @ self.slope, -bound, bound)))


def fit_noise_shape(x_NI: FloatArray, outputs_N: FloatArray, groups: NDArray[np.int64]) -> NoiseShape | None:
    """The shape with the largest posterior density given the variances within repeats; None if constant noise explains them as well.

    Variances within groups are gamma variates; the evidence of the slope is Laplace's approximation (MacKay 2003, chapter 27).
    """
    counts = np.bincount(groups)
    repeated = np.flatnonzero(counts > 1)
    degrees_G = (counts[repeated] - 1).astype(np.float64)
    if len(repeated) < LEAST_MIXTURES or degrees_G.sum() < LEAST_DEGREES:
        return None
    members = [groups == group for group in repeated]
    variances_G = np.array([outputs_N[rows].var(ddof=1) for rows in members])
    pooled = float(degrees_G @ variances_G / degrees_G.sum())
    if pooled <= LEAST_VARIANCE * max(float(outputs_N.var()), LEAST_VARIANCE):
        return None
    center_I = x_NI.mean(axis=0)
    design_GI = np.stack([x_NI[rows].mean(axis=0) for rows in members]) - center_I
    relative_G = variances_G / pooled

    def negative_log_posterior(slope_I: FloatArray) -> tuple[float, FloatArray]:
        log_G = design_GI @ slope_I
        # The level has a flat prior and is at its best value for the slope: the weighted mean of variance over shape.
        level = np.log(degrees_G @ (relative_G * np.exp(-log_G)) / degrees_G.sum())
        ratio_G = relative_G * np.exp(-log_G - level)
        value = 0.5 * degrees_G @ (log_G + level + ratio_G) + 0.5 * float(slope_I @ slope_I) / SLOPE_STD**2
        return float(value), np.asarray(0.5 * design_GI.T @ (degrees_G * (1 - ratio_G)) + slope_I / SLOPE_STD**2)

    zero_I = np.zeros(x_NI.shape[1])
    found = minimize(negative_log_posterior, zero_I, jac=True, method="L-BFGS-B")
    log_G = design_GI @ found.x
    level = np.log(degrees_G @ (relative_G * np.exp(-log_G)) / degrees_G.sum())
    weight_G = 0.5 * degrees_G * relative_G * np.exp(-log_G - level)
    curvature_II = (design_GI.T * weight_G) @ design_GI - np.outer(design_GI.T @ weight_G, design_GI.T @ weight_G) / weight_G.sum()
    occam = 0.5 * np.linalg.slogdet(np.eye(len(zero_I)) + SLOPE_STD**2 * curvature_II)[1]
    if negative_log_posterior(zero_I)[0] - float(found.fun) <= occam:
        return None
    return NoiseShape(np.asarray(found.x), center_I)
