"""What a rigid surrogate misses, as a smooth function of the mixture: its size is fitted, and how far it reaches was measured.

Errors of the power law and of ridge regression on RegMix, out of fold, correlate over pairs of mixtures by .65 at a Hellinger distance of .2, .3 at .3, .13 at .42 and .04 at
.6 (mean of five metrics, 512 runs; docs/log.md): a Gaussian correlation of length .215. So neighbours share most of their misfit, and what a surrogate says of
the difference between them is much surer than what it says of each. The main trade-off: one length for all laws, metrics and swarms.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg import cholesky

from mixopt.mixture import FloatArray

REACH = 0.215
"""Length of the correlation, in Hellinger distance."""
LEAST_VARIANCE = 1e-10


def misfit_factor(schedules: FloatArray, others_MO: FloatArray | None = None) -> FloatArray:
    """Lower Cholesky factor (M, M) of the correlation of misfits at schedules (M, phases, domains).

    Args:
        others_MO: coordinates beside the mixture in which points may differ, as log sizes; a unit of one counts as a unit of distance.
    """
    roots_MI = np.sqrt(np.maximum(schedules, 0.0)).reshape(len(schedules), -1) / np.sqrt(schedules.shape[1])
    squares_MM = np.maximum(1.0 - roots_MI @ roots_MI.T, 0.0)
    if others_MO is not None and others_MO.shape[1]:
        squares_MM = squares_MM + ((others_MO[:, None] - others_MO[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squares_MM, 0.0)
    return factor_with_jitter(np.exp(-squares_MM / (2 * REACH**2)))


def factor_with_jitter(covariance_MM: FloatArray) -> FloatArray:
    """Lower Cholesky factor of a covariance that may be singular (repeated points), after the least of a few additions to its diagonal.

    Additions grow tenfold from 1e-10 (a std of 1e-5 of the output's) until the factorisation succeeds.
    """
    diagonal = np.diag_indices(len(covariance_MM))
    jitter = LEAST_VARIANCE
    while True:
        attempt_MM = covariance_MM.copy()
        attempt_MM[diagonal] += jitter
        try:
            return np.asarray(cholesky(attempt_MM, lower=True, overwrite_a=True))
        except np.linalg.LinAlgError:
            jitter *= 10
            assert jitter < 1, "a posterior covariance is positive semidefinite up to round-off"
