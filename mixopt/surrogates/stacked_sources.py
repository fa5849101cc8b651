"""`auto` over several sources: one process over all runs, the anchor ratio, and from three sizes or token counts on a scaling law.

Weights per metric are by least squared error out of fold, as `stacked` finds them, where a mixture is left out at all sources at once; errors count at the
costliest source that has eight runs or more, which is where answers are wanted and where being right is hardest. With fewer runs than that at the
costliest, nothing can be told apart, and weights are those of before: the anchor ratio below four runs there, the process from then on (on RegMix from 1M to
60M parameters the ratio is off by 4% with one anchor, the process by 8%; with four, 3% both; with eight, 3% and 2%; benchmarks/scaling.py). The scaling law keeps
a tenth: it is the one that transfers. Sources that were never run are answered by the law alone.

The main trade-off: a process over all runs costs the cube of their number; what is thinned beyond 2,048 are the cheapest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.anchor_ratio import NoRatio
from mixopt.surrogates.base import Fitted, Posterior
from mixopt.surrogates.cross_validation import OutOfFold, checked_folds, noise_at, rank_correlation
from mixopt.surrogates.observations import mixture_groups
from mixopt.surrogates.posterior import difference_variance
from mixopt.surrogates.scales import Sizes, parameters_of, sources_in
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
    return (PROCESS, RATIO) if _no_law(sources, sizes) else (PROCESS, RATIO, LAW)


def _no_law(sources: Sequence[Source], sizes: Sizes | None) -> str:
    """Why the scaling law cannot be fitted; "" if it can."""
    names = {source.size for source in sources}
    if max(len(names), len({source.tokens for source in sources})) < LEAST_SCALES:
        return f"fewer than {LEAST_SCALES} sizes or token counts: too little for {LAW}"
    if len({source.evaluator for source in sources}) > 1:
        return f"several evaluators: too little in common for {LAW}"
    try:
        if len(names) > 1:
            _ = [parameters_of(name, sizes) for name in sorted(names)]
    except DataError as error:
        return f"{LAW} needs them: {error.message}"
    return ""


def fit_sources(swarm: Swarm, metrics: Sequence[str], sizes: Sizes | None, folds: int, seed: int) -> tuple[FittedSourcesStack, OutOfFold]:
    """The stack of a swarm of several sources, and predictions of each trial, at its own source, by fits that did not see its mixture.

    Where some metric has both signs, so that ratios mean nothing, the anchor ratio is left out.

    Raises:
        DataError: as the members say; sources whose order is not known.
        TooFewToCheck: see `cross_validation.checked_folds`.
    """
    sources = sources_in(swarm, sizes)
    names, why = members_for(sources, sizes), _no_law(sources, sizes)
    try:
        return _fit_members(swarm, metrics, sizes, folds, seed, names, why)
    except NoRatio as error:
        names = tuple(name for name in names if name != RATIO)
        return _fit_members(swarm, metrics, sizes, folds, seed, names, "; ".join(filter(None, [error.message.rstrip("."), why])))


def _fit_members(
    swarm: Swarm, metrics: Sequence[str], sizes: Sizes | None, folds: int, seed: int, names: tuple[str, ...], left_out: str
) -> tuple[FittedSourcesStack, OutOfFold]:
    """As `fit_sources`, of these members."""
    from mixopt.surrogates import get_surrogate

    order = np.argsort(np.array(swarm.trial_ids), kind="stable")
    swarm = swarm.by_trial_id()
    numbers_N = checked_folds(mixture_groups(swarm), folds, seed)
    sources = sources_in(swarm, sizes)
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
    trusted_S = np.array([float(name == (PROCESS if costliest >= LEAST_FOR_PROCESS or RATIO not in names else RATIO)) for name in names])
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
        left_out=left_out,
        sources=sources,
    )
    if left.any():
        points = swarm.select(ids[left].tolist()).points()
        posterior = stack_fit.posterior(points)
        mean_NK[left], std_NK[left] = posterior.mean, np.sqrt(posterior.std**2 + stack_fit.noise_at(points) ** 2)
    back = np.argsort(order)
    return stack_fit, OutOfFold(mean_NK[back], std_NK[back], measured_NK[back])


@dataclass(frozen=True)
class FittedSourcesStack(FittedStack):
    """As `FittedStack`, over several sources; `sources` are those that were run, cheapest first."""

    sources: tuple[Source, ...]

    def mean(self, points: Points) -> FloatArray:
        """Weighted mean of the members', shape (n, metrics); at sources without runs the law's."""
        return self._by_source(points, super().mean, lambda law, part: law.mean(part))

    def noise_at(self, points: Points) -> FloatArray:
        """Seed noise at every point, shape (n, metrics), bits per byte."""
        return self._by_source(points, super().noise_at, noise_at)

    def posterior(self, points: Points) -> Posterior:
        """Of the mixture of members at `points`, of the law at those of sources without runs; draws of the two kinds are independent.

        Raises:
            DataError: a source without runs, and too few sizes or token counts for a law.
        """
        beyond_M, law = self._beyond(points)
        if law is None:
            return super().posterior(points)
        if beyond_M.all():
            return law.posterior(points)
        return JoinedPosterior(beyond_M, super().posterior(_rows(points, ~beyond_M)), law.posterior(_rows(points, beyond_M)))

    def _by_source(
        self, points: Points, stack: Callable[[Points], FloatArray], by_law: Callable[[Fitted, Points], FloatArray]
    ) -> FloatArray:
        """What the stack says at sources with runs, and the law at the others: of a point the same whatever is asked beside it."""
        beyond_M, law = self._beyond(points)
        if law is None:
            return stack(points)
        found_MK = np.empty((len(beyond_M), len(self.metrics)))
        found_MK[beyond_M] = by_law(law, _rows(points, beyond_M))
        if not beyond_M.all():
            found_MK[~beyond_M] = stack(_rows(points, ~beyond_M))
        return found_MK

    def _beyond(self, points: Points) -> tuple[NDArray[np.bool_], Fitted | None]:
        """Which points are at sources without runs, and the law, if there are some."""
        beyond_M = np.array([source not in self.sources for source in points.sources], dtype=bool)
        if not beyond_M.any():
            return beyond_M, None
        if LAW not in self.names:
            beyond = sorted({source.key for source in points.sources if source not in self.sources})
            raise DataError(
                f"No run was at {', '.join(beyond)}, and there is no law of how losses go on there ({self.left_out}).",
                f"Run a few mixtures there, or runs of a third size or token count ({LEAST_SCALES} are needed, of known parameters).",
            )
        return beyond_M, self.fitted[self.names.index(LAW)]


def _rows(points: Points, rows_M: NDArray[np.bool_]) -> Points:
    sources = tuple(source for source, wanted in zip(points.sources, rows_M.tolist(), strict=True) if wanted)
    return Points(points.domains, points.schedules[rows_M], sources, points.fractions)


@dataclass(frozen=True)
class JoinedPosterior:
    """Of points some of which, `beyond` (M,), are at sources without runs."""

    beyond: NDArray[np.bool_]
    inside: Posterior
    outside: Posterior

    @property
    def mean(self) -> FloatArray:
        return self._joined(self.inside.mean, self.outside.mean)

    @property
    def std(self) -> FloatArray:
        return self._joined(self.inside.std, self.outside.std)

    def sample(self, count: int, seed: int) -> FloatArray:
        """Draws of shape (count, n, metrics)."""
        return self._joined(self.inside.sample(count, seed), self.outside.sample(count, seed + 1))

    def difference_variance(self, reference: int) -> FloatArray:
        """See the function of this name; the two parts are independent."""
        place = int((self.beyond[:reference] == self.beyond[reference]).sum())
        parts = [part.std**2 for part in (self.inside, self.outside)]
        mine = int(self.beyond[reference])
        parts[1 - mine] = parts[1 - mine] + parts[mine][place]
        parts[mine] = difference_variance((self.inside, self.outside)[mine], place)
        return self._joined(*parts)

    def _joined(self, inside: FloatArray, outside: FloatArray) -> FloatArray:
        """Arrays (..., points, metrics) put in the places of their points."""
        found = np.empty((*inside.shape[:-2], len(self.beyond), inside.shape[-1]))
        found[..., ~self.beyond, :], found[..., self.beyond, :] = inside, outside
        return found
