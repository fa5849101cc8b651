"""How much worse the best mixture is when some domains keep their old shares: bounds on the gap, for a log-linear law.

The full optimum is q* = (rho u*, r*), u* the shares of the kept domains within them; kept shares p~ allow x = (rho p~, r*). F is convex, so

    gap <= F(x) - F(q*) <= grad F(x) . (x - q*)                                                    (the tangent's bound)
        <= C1 * kappa * ||p~ - u*||,   kappa = ||(1 + a_fix + a_comp) o a_fix||,   a_{k,S} = ||A_{k,S}||    (Olmix, arXiv 2602.12237)

with C1 = rho ||g o exp(A x)||: rho sum_k g_k exp(A_k x) A_{k,fix} . (p~ - u*) is at most that by Cauchy and Schwarz, twice. The paper leaves C1 open and derives kappa
for p~ that is optimal among the old domains; with this C1 it holds for any p~. The published bound is loose by orders of magnitude where slopes are steep, so the
tangent's chooses, and the published one is told beside it. Where x breaks a cap, the nearest mixture that does not takes its place, for the tangent only.

Legend: K metrics, D domains, F kept domains.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.reuse.law import ObjectiveLaw
from mixopt.surrogates.parametric import bounded_exp


def kappa(slopes_KD: FloatArray, fix: Sequence[int]) -> float:
    """Olmix's kappa for the kept columns `fix`; all others are recomputed."""
    comp = [column for column in range(slopes_KD.shape[1]) if column not in set(fix)]
    a_fix_K, a_comp_K = (np.linalg.norm(slopes_KD[:, columns], axis=1) for columns in (list(fix), comp))
    return float(np.linalg.norm((1 + a_fix_K + a_comp_K) * a_fix_K))


def with_kept_shares(q_D: FloatArray, shares_F: FloatArray, fix: Sequence[int]) -> FloatArray:
    """x: the mixture with the kept domains' weight split by `shares_F` (summing to 1), shape (D,)."""
    x_D = q_D.copy()
    x_D[list(fix)] = q_D[list(fix)].sum() * shares_F
    return x_D


def published_bound(law: ObjectiveLaw, optimum_D: FloatArray, shares_F: FloatArray, fix: Sequence[int]) -> float:
    """C1 * kappa * ||p~ - u*||, in objective units, for a law without pull whose F is a sum; 0 where nothing kept has weight."""
    rho = float(optimum_D[list(fix)].sum())
    if rho <= 0:
        return 0.0
    x_D = with_kept_shares(optimum_D, shares_F, fix)
    c1 = rho * float(np.linalg.norm(law.factors_K * bounded_exp(law.slopes_KD @ x_D)))
    return c1 * kappa(law.slopes_KD, fix) * float(np.linalg.norm(shares_F - optimum_D[list(fix)] / rho))


def tangent_bound(law: ObjectiveLaw, optimum_D: FloatArray, allowed_D: FloatArray) -> float:
    """grad F(x) . (x - q*), in objective units, for any mixture x that the plan allows; at least the plan's gap."""
    x_D = np.maximum(allowed_D, 0.0)
    return max(float(law.gradient(x_D) @ (x_D - optimum_D)), 0.0)


def blame(law: ObjectiveLaw, optimum_D: FloatArray, shares_F: FloatArray, fix: Sequence[int]) -> FloatArray:
    """What each kept domain adds to the tangent's bound, shape (F,): its slope, beyond that of all kept ones, times how far its weight is off."""
    x_D = with_kept_shares(optimum_D, shares_F, fix)
    slope_F, off_F = law.gradient(x_D)[list(fix)], (x_D - optimum_D)[list(fix)]
    return np.asarray(np.maximum((slope_F - slope_F @ shares_F) * off_F, 0.0))
