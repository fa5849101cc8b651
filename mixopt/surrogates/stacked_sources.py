"""`auto` over several sources: one process over all runs, the anchor ratio, and from three sizes or token counts on a scaling law.

Weights per metric are by least squared error out of fold, as `stacked` finds them, where a mixture is left out at all sources at once; errors count at the
costliest source that has eight runs or more, which is where answers are wanted and where being right is hardest. With fewer runs than that at the
costliest, nothing can be told apart, and weights are those of before: the anchor ratio below four runs there, the process from then on (on RegMix from 1M to
60M parameters the ratio is off by 4% with one anchor, the process by 8%; with four, 3% both; with eight, 3% and 2%; benchmarks/scaling.py). The scaling law keeps
a tenth: it is the one that transfers. Sources that were never run are answered by the law alone.

The main trade-off: a process over all runs costs the cube of their number; what is thinned beyond 2,048 are the cheapest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted, Posterior
from mixopt.surrogates.cross_validation import OutOfFold, checked_folds, noise_at, rank_correlation
from mixopt.surrogates.observations import mixture_groups
from mixopt.surrogates.scales import Sizes, sources_in
from mixopt.surrogates.stacked import FittedStack, Stack, mix, put_together, stack_left_out
from mixopt.swarm import Points, Swarm
from mixopt.trial import Source

PROCESS, RATIO, LAW = "multi_source_gp", "anchor_ratio", "scaling_effective"
LEAST_JUDGES = 8
"""Runs of a source whose errors can weigh members."""
LEAST_FOR_PROCESS = 4
LEAST_SCALES = 3
"""Sizes, or token counts: two cannot tell a law's constant from its slope (methods/surrogates-measured.md, B)."""
FLOOR = 0.1


def members_for(sources: Sequence[Source], sizes: Sizes | None) -> tuple[str, ...]:
    """Names of the members that runs of these sources can fit."""
    scales = max(len({source.size for source in sources}), len({source.tokens for source in sources}))
    one_evaluator = len({source.evaluator for source in sources}) == 1
    return (PROCESS, RATIO, LAW) if scales >= LEAST_SCALES and one_evaluator else (PROCESS, RATIO)


def fit_sources(swarm: Swarm, metrics: Sequence[str], sizes: Sizes | None, folds: int, seed: int) -> tuple[FittedSourcesStack, OutOfFold]:
    """The stack of a swarm of several sources, and predictions of each trial, at its own source, by fits that did not see its mixture.

    Raises:
        DataError: as the members say; sources whose order is not known.
        TooFewToCheck: see `cross_validation.checked_folds`.
    """
    from mixopt.surrogates import get_surrogate

    order = np.argsort(np.array(swarm.trial_ids), kind="stable")
    swarm = swarm.by_trial_id()
    numbers_N = checked_folds(mixture_groups(swarm), folds, seed)
    sources = sources_in(swarm, sizes)
    names = members_for(sources, sizes)
    surrogates = [get_surrogate(name, sizes=sizes) for name in names]
    fitted = tuple(surrogate.fit(swarm, metrics) for surrogate in surrogates)
    ids, measured_NK, at_N = np.array(swarm.trial_ids), swarm.values(metrics), np.array([sources.index(s) for s in swarm.points().sources])
    means_SNK = np.full((len(names), *measured_NK.shape), np.nan)
    stds_SNK = means_SNK.copy()
    for fold in np.unique(numbers_N):
        rest = swarm.select(ids[numbers_N != fold].tolist())
        # A source of which the fold holds every run cannot be predicted without them.
        known = np.isin(at_N, [sources.index(source) for source in set(rest.points().sources)])
        rows = (numbers_N == fold) & known
        points = swarm.select(ids[rows].tolist()).points()
        for number, surrogate in enumerate(surrogates):
            one = surrogate.fit(rest, metrics)
            posterior = one.posterior(points)
            means_SNK[number, rows] = posterior.mean
            stds_SNK[number, rows] = np.sqrt(posterior.std**2 + noise_at(one, points) ** 2)
    judged_N = np.isfinite(means_SNK).all(axis=(0, 2))
    counts = np.bincount(at_N[judged_N], minlength=len(sources))
    enough = np.flatnonzero(counts >= LEAST_JUDGES)
    focus = int(enough[-1]) if len(enough) else -1
    costliest = int(np.sum(at_N == len(sources) - 1))
    trusted_S = np.array([float(name == (PROCESS if costliest >= LEAST_FOR_PROCESS else RATIO)) for name in names])
    floor_S = np.array([FLOOR if name == LAW else 0.0 for name in names])
    trusted_S = trusted_S * (1 - floor_S.sum()) + floor_S
    judges_N = judged_N & (at_N == focus) if focus == len(sources) - 1 else np.zeros(len(at_N), dtype=bool)
    mean_NK, std_NK = np.full_like(measured_NK, np.nan), np.full_like(measured_NK, np.nan)
    stacks, scores = [], {}
    for column, metric in enumerate(metrics):
        parts = (measured_NK[:, column], means_SNK[:, :, column].T, stds_SNK[:, :, column].T ** 2)
        if judges_N.any():
            chosen = (parts[0][judges_N], parts[1][judges_N], parts[2][judges_N])
            stack = put_together(*chosen, trusted_S, floor_S)
            mean_NK[judges_N, column], std_NK[judges_N, column] = stack_left_out(numbers_N[judges_N], *chosen, trusted_S, floor_S)
            scores[metric] = [rank_correlation(means, chosen[0]) for means in chosen[1].T]
        else:
            stack = Stack(trusted_S, 1.0)
        # Trials of other sources, and of a source without judges, are told by the final weights: they had no part in them, or all members the same.
        others_N = judged_N & ~judges_N
        mean_N, variance_N = mix(stack.weights, parts[1][others_N], parts[2][others_N])
        mean_NK[others_N, column], std_NK[others_N, column] = mean_N, stack.spread * np.sqrt(variance_N)
        stacks.append(stack)
    # Not judged: the only run of a source, say. What the fit to all says is all there is, and it is not out of fold.
    left = ~np.isfinite(mean_NK).all(axis=1)
    stack_fit = FittedSourcesStack(
        metrics=tuple(metrics),
        names=names,
        fitted=fitted,
        stacks=tuple(stacks),
        scores=scores,
        left_out=_left_out_words(names),
        sources=sources,
    )
    if left.any():
        points = swarm.select(ids[left].tolist()).points()
        posterior = stack_fit.posterior(points)
        mean_NK[left], std_NK[left] = posterior.mean, np.sqrt(posterior.std**2 + stack_fit.noise_at(points) ** 2)
    back = np.argsort(order)
    return stack_fit, OutOfFold(mean_NK[back], std_NK[back], measured_NK[back])


def _left_out_words(names: Sequence[str]) -> str:
    return "" if LAW in names else f"fewer than {LEAST_SCALES} sizes or token counts, or several evaluators: too little for {LAW}"


@dataclass(frozen=True)
class FittedSourcesStack(FittedStack):
    """As `FittedStack`, over several sources; `sources` are those that were run, cheapest first."""

    sources: tuple[Source, ...]

    def mean(self, points: Points) -> FloatArray:
        """Weighted mean of the members', shape (n, metrics); at sources without runs the law's."""
        law = self._law_for(points)
        return super().mean(points) if law is None else law.mean(points)

    def noise_at(self, points: Points) -> FloatArray:
        """Seed noise at every point, shape (n, metrics), bits per byte."""
        law = self._law_for(points)
        return super().noise_at(points) if law is None else noise_at(law, points)

    def posterior(self, points: Points) -> Posterior:
        """Of the mixture of members at `points`.

        Raises:
            DataError: a source without runs, and too few sizes or token counts for a law.
        """
        law = self._law_for(points)
        return super().posterior(points) if law is None else law.posterior(points)

    def _law_for(self, points: Points) -> Fitted | None:
        """The law, where points are at sources without runs."""
        beyond = sorted({source.key for source in points.sources if source not in self.sources})
        if not beyond:
            return None
        if LAW not in self.names:
            raise DataError(
                f"No run was at {', '.join(beyond)}, and runs of fewer than {LEAST_SCALES} sizes or token counts do not say how losses go on there.",
                "Run a few mixtures there, or runs of a third size or token count.",
            )
        return self.fitted[self.names.index(LAW)]
