"""What laws over size, tokens and mixture share: the surrogate, and the term A x^-a of one scale.

A law predicts standardised losses; its scales are natural logarithms relative to the trials' means (`ScaledObservations.inputs`), so that a
factor A is the term's size in the middle of the swarm, in units of the losses' spread, while exponents stay those of published laws. All that must be
positive is fitted as a logarithm. The constant E is in units of the spread too, and may be anything: positive by nature, but metrics are not always losses.

Two sizes cannot tell E, A and a apart; then the priors decide, and the intervals show it (methods/surrogates-measured.md, B: 3 to 5% error at the next
size from two, about 1% from three). A law takes the errors of its runs as independent. Points of one training curve, given as runs of their own, are not,
so intervals fitted on them are too narrow.
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

E_PRIOR = (-2.0, 2.0)
"""Mean and std of the constant, in units of the losses' spread: below what was measured."""
FACTOR_PRIOR = (-0.5, 1.5)
"""Of log A."""
EXPONENT_PRIOR = (float(np.log(0.3)), 0.5)
"""Of log a: .34 and .28 in Hoffmann et al. 2022 (arXiv 2203.15556), .35 in arXiv 2305.16264, .2 to .6 on the small runs of methods B."""


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

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedLaw:
        """Fits on the realized mixtures of `swarm`.

        Raises:
            DataError: as `ScaledObservations.scaled`.
        """
        observations = ScaledObservations.scaled(swarm, metrics, self.sizes, self.unique_tokens, self.one_size)
        laws = [self.law_of(observations, metric) for metric in metrics]
        return fit_laws(observations, observations.inputs(observations.points()), laws)


def scale_term(log_factor_S1: FloatArray, log_exponent_S1: FloatArray, scale_N: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """A x^-a with log x given, shape (S, N), and its derivatives by log A (the term itself) and by log a."""
    exponent_S1 = bounded_exp(log_exponent_S1)
    term_SN = bounded_exp(log_factor_S1 - exponent_S1 * scale_N)
    return term_SN, term_SN, -exponent_S1 * scale_N * term_SN
