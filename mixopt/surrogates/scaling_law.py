"""What laws over size, tokens and mixture share: the surrogate, and the term A x^-a of one scale.

A law predicts standardised losses; its scales are natural logarithms relative to the trials' means (`ScaledObservations.inputs`), so that a
factor A is the term's size in the middle of the swarm, in units of the losses' spread, while exponents stay those of published laws. All that must be
positive is fitted as a logarithm. The constant E is in units of the spread too, and may be anything: positive by nature, but metrics are not always losses.

Two sizes cannot tell E, A and a apart; then the priors decide, and the intervals show it (methods/surrogates-measured.md, B: 3 to 5% error at the next
size from two, about 1% from three). The curvature at the optimum does not know that the law itself may be wrong elsewhere, the same way for all mixtures. So
intervals have one more part, *drift*: an error in proportion to the change predicted from the nearest scale that was run, shared by all points, and
zero at scales that were. A law still takes the errors of its runs as independent; points of one training curve, given as runs of their own, are not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from mixopt.mixture import FloatArray
from mixopt.surrogates.parametric import FittedLaw, Law, bounded_exp, fit_laws
from mixopt.surrogates.scales import Sizes
from mixopt.surrogates.sourced_observations import ScaledObservations
from mixopt.swarm import Swarm

E_PRIOR = (-3.0, 3.0)
"""Mean and std of the constant, in units of the losses' spread: below what was measured, and hardly bound. Closer priors (-2 with std 2 or 1) gave 1.2 to 1.9
times the error at the next size where there were two sizes, on the public tables of benchmarks/scaling.py, which is where both priors below were chosen."""
FACTOR_PRIOR = (-0.5, 1.5)
"""Of log A."""
EXPONENT_PRIOR = (float(np.log(0.35)), 0.25)
"""Of log a: .34 and .28 in Hoffmann et al. 2022 (arXiv 2203.15556), .35 in arXiv 2305.16264."""
DRIFT_SHARE, DRIFT_SHARE_OF_TWO, SCALES_FOR_A_LAW = 0.3, 0.5, 3
"""Std of a law's error beyond the scales that were run, as a share of the change it predicts from the nearest of them: from three scales on, and from fewer. On
the public tables errors were .4 to .55 of the fall that two sizes foretold (5 to 11%), and from three sizes .4 to .5 of a fall of 2%, .1 of one of 8 to 10%. Without this part
90% intervals held 5 to 50% of the losses at the next size from two sizes, 55 to 92% from three (benchmarks/scaling.py)."""


@dataclass(frozen=True)
class ScalingSurrogate:
    """Fits `law_of(observations, metric)` per metric on runs of one or several sizes and token counts.

    Attributes:
        sizes: name of a size -> parameters, for names that are no numbers.
        unique_tokens: of each domain; None: no repetition.
        one_size: the law has no term for the size, so it is fitted and asked at one size only.
    """

    law_of: Callable[[ScaledObservations, str], Law]
    sizes: Sizes | None = None
    unique_tokens: Mapping[str, float] | None = None
    one_size: bool = False
    several_sources: ClassVar[bool] = True

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedScalingLaw:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as `ScaledObservations.scaled`.
        """
        observations = ScaledObservations.scaled(swarm, metrics, self.sizes, self.unique_tokens, self.one_size)
        laws = [self.law_of(observations, metric) for metric in metrics]
        x_NI = observations.inputs(observations.points())
        fitted = fit_laws(observations, x_NI, laws)
        enough = [len(np.unique(scale_N)) >= SCALES_FOR_A_LAW for scale_N in x_NI[:, -2:].T]
        shares = np.where(enough, DRIFT_SHARE, DRIFT_SHARE_OF_TWO)
        return FittedScalingLaw(observations, fitted.laws, fitted.fits, x_NI[:, -2:].min(axis=0), x_NI[:, -2:].max(axis=0), shares)


@dataclass(frozen=True)
class FittedScalingLaw(FittedLaw):
    """Laws of several metrics over sizes and tokens.

    Attributes:
        least, most: log parameters and log tokens that were run, relative to their means, shape (2,).
        shares: of the change beyond them, how much may be wrong, shape (2,).
    """

    least: FloatArray
    most: FloatArray
    shares: FloatArray

    def drift(self, x_MI: FloatArray) -> FloatArray:
        """Shape (M, metrics): changes from the nearest size and token count that were run, times their shares."""
        nearest_MI, drift_MK = x_MI.copy(), np.zeros((len(x_MI), len(self.fits)))
        values_MK = self.values_at(x_MI)
        for scale in (0, 1):
            nearest_MI[:, scale - 2] = np.clip(x_MI[:, scale - 2], self.least[scale], self.most[scale])
            nearer_MK = self.values_at(nearest_MI)
            drift_MK += self.shares[scale] * (values_MK - nearer_MK)
            values_MK = nearer_MK
        return drift_MK


def scale_term(log_factor_S1: FloatArray, log_exponent_S1: FloatArray, scale_N: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A x^-a with log x given, shape (S, N), and its derivatives by log A (the term itself) and by log a."""
    exponent_S1 = bounded_exp(log_exponent_S1)
    term_SN = bounded_exp(log_factor_S1 - exponent_S1 * scale_N)
    return term_SN, term_SN, -exponent_S1 * scale_N * term_SN
