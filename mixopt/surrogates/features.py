"""Features of a mixture that surrogates see: sqrt(w) and log(w + 1e-3) of every weight, both scaled to [0, 1].

Why both: losses move with the *relative* change of a domain's share (logarithm), until the share is so small that its zero is what matters
(square root: the Hellinger geometry, finite slope in log-space at zero). Raw weights see neither, and log-ratio coordinates (CLR, ILR) are
much worse because one exact zero shifts every coordinate. Measured on the RegMix swarm, Pile-CC at 64 runs, Spearman: both .985, sqrt .979,
log .976, raw .912, CLR .908 (methods/surrogates-measured.md, A1).

Scaling uses constants, not the swarm's moments: features of a mixture do not move when trials are added, and a domain that was never
sampled is as far from zero as any other.
"""

from __future__ import annotations

import numpy as np

from mixopt.mixture import FloatArray

# Weights of published swarms are rounded to 1e-3 or finer, so this is where zero and "hardly any" stop being distinct. 1e-3 and 1e-4 rank
# equally well, 3e-2 much worse (methods/surrogates-measured.md, A5).
ZERO_RESOLUTION = 1e-3


def weights(schedules: FloatArray) -> FloatArray:
    """Raw weights, phases side by side: (n, phases, domains) -> (n, phases * domains)."""
    count, phases, domains = schedules.shape
    return schedules.reshape(count, phases * domains)


def root_and_log(schedules: FloatArray) -> FloatArray:
    """Square roots, then scaled logarithms, of all weights: (n, phases, domains) -> (n, 2 * phases * domains), in [0, 1]."""
    shares = weights(schedules)
    logarithms = np.log1p(shares / ZERO_RESOLUTION) / np.log1p(1 / ZERO_RESOLUTION)
    return np.concatenate([np.sqrt(shares), logarithms], axis=1)
