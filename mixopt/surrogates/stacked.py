"""`auto`: several surrogates stacked per metric, weighted by how well each predicts mixtures that it has not seen.

Members are the Gaussian process, ridge regression and, from 1.5 trials per weight on, the power law. Weights are those of least squared error out of fold
(stacked regression: Wolpert 1992; Breiman 1996), pulled toward the process, which is the most accurate alone: a few dozen errors do not tell members
apart. The power law keeps a tenth at least: it transfers best to larger models and to mixtures unlike the swarm's, which cross-validation at one
scale cannot see (docs/decisions.md). On RegMix the stack is level with its best member, and above it on the mean of many metrics (benchmarks/surrogates.py);
the log-linear law, tried as a fourth member, got no weight from 64 runs on and cost accuracy at 32.

The posterior is that of a mixture of the members with these weights: its covariance is the mean of theirs plus that of their means (law of total
covariance), so where members disagree it widens. One factor per metric then sets the spread so that errors out of fold have the size they should. Those
come for free: the members' predictions of each fold, weighted by weights found on the other folds, are the stack's own errors out of fold.
The main trade-off: about four times the cost of the process alone.

Legend: N trials, M points, S members, K metrics.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.stats import norm

from mixopt.errors import DataError
from mixopt.mixture import FloatArray
from mixopt.surrogates.base import Fitted, Posterior
from mixopt.surrogates.cross_validation import OutOfFold, TooFewToCheck, checked_folds, fit_with_out_of_fold, noise_at, rank_correlation
from mixopt.surrogates.observations import mixture_groups
from mixopt.surrogates.posterior import difference_variance
from mixopt.surrogates.scales import Sizes
from mixopt.swarm import Points, Swarm

MEMBERS = ("gaussian_process", "ridge", "power_law")
LAWS = frozenset({"power_law", "log_linear"})
# With fewer trials per weight a law predicts far worse than no law (methods/surrogates-measured.md, A1: n = 16 and 17 domains).
LAW_TRIALS_PER_WEIGHT = 1.5
FLOOR = {"power_law": 0.1}
# Where the weights are pulled to, for members that have no entry 0; and how strongly: as by so many errors, of the best member's size. Of 3 to 80 tried on RegMix
# with five subsets of each size, stronger was better at 16 and 32 runs and on the 60M table, weaker at 64 and 128 on the 1M table; all within .008.
TRUSTED = {"gaussian_process": 1.0, "power_law": 0.1}
PULL = 40.0
# With few trials every fit misses more of them per fold, so that folds are made smaller.
FOLDS, FOLDS_OF_FEW, FEW = 5, 10, 64
# The factor on the spread makes 90% of errors out of fold fall inside the 90% interval; its logarithm is pulled to 0 as by so many more errors. By their root mean
# square instead, coverage on RegMix was .94 to .96 in place of .90 to .94: errors have heavier tails than a Gaussian.
SPREAD_PRIOR = 5.0
COVERED = 0.9
LEAST_SPREAD, MOST_SPREAD = 0.5, 4.0
SUM_TO_ONE = 1e4
MINIMUM_STD = 1e-9


@dataclass(frozen=True)
class Stack:
    """How the members of one metric are put together.

    Attributes:
        weights: of the members, shape (S,), summing to 1.
        spread: factor on the standard deviation of measurements.
    """

    weights: FloatArray
    spread: float


class Stacked:
    """Fits `MEMBERS`, or those named; see the module's docstring. A swarm of several sources gets the members of `stacked_sources`.

    Args:
        sizes: name of a size -> parameters, for names that are no numbers; needed for several sizes only.
    """

    several_sources = True

    def __init__(self, members: Sequence[str] = MEMBERS, sizes: Sizes | None = None) -> None:
        self.members = tuple(members)
        self.sizes = sizes

    def fit(self, swarm: Swarm, metrics: Sequence[str]) -> FittedStack:
        """Fits on the realized mixtures of `swarm`. Trials too few to predict some from others get the weights of before.

        Raises:
            DataError: as the protocol says (`observations.Observations.of`).
        """
        try:
            return self.fit_with_out_of_fold(swarm, metrics, folds_for(len(swarm)), seed=0)[0]
        except TooFewToCheck:
            if _of_several_sources(swarm):
                raise
            names, why = self._usable(swarm)
            fitted = [_surrogate(name).fit(swarm, metrics) for name in names]
            prior = Stack(_trusted(names), 1.0)
            return FittedStack(tuple(metrics), names, tuple(fitted), (prior,) * len(metrics), {}, why)

    def fit_with_out_of_fold(self, swarm: Swarm, metrics: Sequence[str], folds: int, seed: int) -> tuple[FittedStack, OutOfFold]:
        """As `fit`, and predictions out of fold by weights and spreads that did not see the fold.

        Raises:
            TooFewToCheck: see `cross_validation.checked_folds`.
        """
        folds = max(folds, folds_for(len(swarm)))
        if _of_several_sources(swarm):
            from mixopt.surrogates.stacked_sources import fit_sources

            return fit_sources(swarm, metrics, self.sizes, folds, seed)
        order = np.argsort(np.array(swarm.trial_ids), kind="stable")
        swarm = swarm.by_trial_id()  # so that sums come out the same whatever the order was
        numbers_N = checked_folds(mixture_groups(swarm), folds, seed)
        names, why = self._usable(swarm)
        fitted, errors = [], []
        for name in names:
            one, left_out, reason = fit_with_out_of_fold(_surrogate(name), swarm, metrics, folds, seed)
            if left_out is None:
                raise TooFewToCheck(reason)
            fitted.append(one)
            errors.append(left_out)
        measured_NK = errors[0].measured
        means_KNS = np.stack([left_out.mean for left_out in errors], axis=-1).transpose(1, 0, 2).copy()
        variances_KNS = np.stack([left_out.std for left_out in errors], axis=-1).transpose(1, 0, 2) ** 2
        mean_NK, std_NK = np.empty_like(measured_NK), np.empty_like(measured_NK)
        trusted_S, floor_S = _trusted(names), np.array([FLOOR.get(name, 0.0) for name in names])
        stacks, scores = [], {}
        for column, metric in enumerate(metrics):
            measured_N = measured_NK[:, column].copy()
            stacks.append(put_together(measured_N, means_KNS[column], variances_KNS[column], trusted_S, floor_S))
            mean_NK[order, column], std_NK[order, column] = stack_left_out(
                numbers_N, measured_N, means_KNS[column], variances_KNS[column], trusted_S, floor_S
            )
            scores[metric] = [rank_correlation(means, measured_N) for means in means_KNS[column].T]
        stack = FittedStack(tuple(metrics), names, tuple(fitted), tuple(stacks), scores, why)
        return stack, OutOfFold(mean_NK, std_NK, measured_NK[np.argsort(order)])

    def _usable(self, swarm: Swarm) -> tuple[tuple[str, ...], str]:
        """Members that so many trials can fit, and why others are left out."""
        if len(swarm) == 0:
            raise DataError("A surrogate needs at least 4 finished trials, got 0.", "Run more trials.")
        weights = int(np.prod(swarm.points().schedules.shape[1:]))
        few = len(swarm) < LAW_TRIALS_PER_WEIGHT * weights
        kept = tuple(name for name in self.members if not (few and name in LAWS))
        left = [name for name in self.members if name not in kept]
        why = f"{len(swarm)} trials of {weights} weights: fewer than {LAW_TRIALS_PER_WEIGHT:g} per weight, too few for {' and '.join(left)}"
        return (kept, why) if left and kept else (self.members, "")


def folds_for(trials: int) -> int:
    """Folds with which a stack of so many trials is made."""
    return FOLDS_OF_FEW if trials <= FEW else FOLDS


def _of_several_sources(swarm: Swarm) -> bool:
    return len(swarm) > 0 and len(set(swarm.points().sources)) > 1


def _surrogate(name: str) -> Any:
    from mixopt.surrogates import get_surrogate

    return get_surrogate(name)


def _trusted(names: Sequence[str]) -> FloatArray:
    """Weights before anything is known, shape (S,), summing to 1: even where nobody is trusted."""
    trusted = np.array([TRUSTED.get(name, 0.0) for name in names])
    return np.asarray(trusted / trusted.sum()) if trusted.any() else np.full(len(names), 1 / len(names))


def put_together(
    measured_N: FloatArray, means_NS: FloatArray, variances_NS: FloatArray, trusted_S: FloatArray, floor_S: FloatArray
) -> Stack:
    """Weights and spread from predictions out of fold: `trusted_S` is where weights are pulled to, `floor_S` the least of each."""
    weights_S = find_weights(measured_N, means_NS, trusted_S, floor_S)
    mean_N, variance_N = mix(weights_S, means_NS, variances_NS)
    sizes_N = np.abs(measured_N - mean_N) / np.sqrt(np.maximum(variance_N, least_std(measured_N) ** 2))
    ratio = max(float(np.quantile(sizes_N, COVERED)) / norm.ppf(0.5 + COVERED / 2), MINIMUM_STD)
    spread = ratio ** (len(sizes_N) / (len(sizes_N) + SPREAD_PRIOR))
    return Stack(weights_S, float(np.clip(spread, LEAST_SPREAD, MOST_SPREAD)))


def least_std(measured_N: FloatArray) -> float:
    """Below this lies round-off; of metrics in small units, this share of their largest value."""
    return MINIMUM_STD * min(max(float(np.abs(measured_N).max()), MINIMUM_STD**3), 1.0)


def find_weights(measured_N: FloatArray, means_NS: FloatArray, trusted_S: FloatArray, floor_S: FloatArray) -> FloatArray:
    """Nonnegative weights of least squared error plus pull, shape (S,), summing to 1, each at least its floor."""
    free = 1 - floor_S.sum()
    errors_NS = (means_NS - measured_N[:, None]) / np.sqrt(len(measured_N))
    errors_NS /= max(float(np.sqrt((errors_NS**2).sum(axis=0).min())), least_std(measured_N))
    # Weights sum to 1, so the stack's error is the weighted sum of the members' errors. One more row makes them sum to 1.
    pull_SS = np.sqrt(PULL / len(measured_N)) * np.eye(len(floor_S))
    sides = np.concatenate([errors_NS, pull_SS, np.full((1, len(floor_S)), SUM_TO_ONE)])
    wanted = np.concatenate([-errors_NS @ floor_S, pull_SS @ (trusted_S - floor_S), [SUM_TO_ONE * free]])
    extra_S, _ = nnls(sides, wanted)
    return np.asarray(floor_S + extra_S / extra_S.sum() * free)


def mix(weights_S: FloatArray, means_NS: FloatArray, variances_NS: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean and variance of a mixture of members, both (N,)."""
    mean_N = means_NS @ weights_S
    return mean_N, variances_NS @ weights_S + ((means_NS - mean_N[:, None]) ** 2) @ weights_S


def stack_left_out(
    numbers_N: NDArray[np.int64],
    measured_N: FloatArray,
    means_NS: FloatArray,
    variances_NS: FloatArray,
    trusted_S: FloatArray,
    floor_S: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Mean and std of each fold's measurements by a stack put together on the others, both (N,)."""
    mean_N, std_N = np.empty((2, len(measured_N)))
    for fold in np.unique(numbers_N):
        inside = numbers_N == fold
        rest = () if inside.all() else (measured_N[~inside], means_NS[~inside], variances_NS[~inside])
        stack = put_together(*rest, trusted_S, floor_S) if rest else Stack(trusted_S, 1.0)
        mean_N[inside], variance_B = mix(stack.weights, means_NS[inside], variances_NS[inside])
        std_N[inside] = stack.spread * np.sqrt(variance_B)
    return mean_N, std_N


@dataclass(frozen=True)
class FittedStack:
    """Members fitted to the same trials, and how each metric weighs them.

    Attributes:
        names: of the members.
        stacks: one per metric.
        scores: metric -> Spearman out of fold of each member; empty where there were too few trials.
        left_out: why members were not used; "" if all were.
    """

    metrics: tuple[str, ...]
    names: tuple[str, ...]
    fitted: tuple[Fitted, ...]
    stacks: tuple[Stack, ...]
    scores: dict[str, list[float]]
    left_out: str

    @property
    def weights(self) -> FloatArray:
        """Of the members, shape (S, metrics)."""
        return np.stack([stack.weights for stack in self.stacks], axis=1)

    @property
    def noise_std(self) -> FloatArray:
        """Seed noise, shape (metrics,), bits per byte: as the most trusted member found it. `noise_at` is what makes intervals of measurements honest, and holds
        what laws miss, too."""
        return self.fitted[0].noise_std

    @property
    def _spreads(self) -> FloatArray:
        return np.array([stack.spread for stack in self.stacks])

    def noise_at(self, points: Points) -> FloatArray:
        """Seed noise at every point, shape (n, metrics), bits per byte."""
        noise_SMK = np.stack([noise_at(fitted, points) for fitted in self.fitted])
        return np.asarray(self._spreads * np.sqrt((self.weights[:, None] * noise_SMK**2).sum(axis=0)))

    def mean(self, points: Points) -> FloatArray:
        """Weighted mean of the members', shape (n, metrics)."""
        return np.asarray(sum(weights * fitted.mean(points) for weights, fitted in zip(self.weights, self.fitted, strict=True)))

    def posterior(self, points: Points) -> Posterior:
        """Of the mixture of members at `points`."""
        return StackedPosterior(self.weights, self._spreads, tuple(fitted.posterior(points) for fitted in self.fitted))

    def describe(self) -> dict[str, Any]:
        """JSON values: which members each metric relies on, and what they were worth out of fold."""
        metrics = {
            metric: {
                "weights": dict(zip(self.names, stack.weights.round(4).tolist(), strict=True)),
                "spearman": dict(zip(self.names, self.scores.get(metric, [None] * len(self.names)), strict=True)),
                "spread": stack.spread,
            }
            for metric, stack in zip(self.metrics, self.stacks, strict=True)
        }
        return {
            "members": list(self.names),
            "left_out": self.left_out,
            "mean_weights": dict(zip(self.names, self.weights.mean(axis=1).round(4).tolist(), strict=True)),
            "metrics": metrics,
        }


@dataclass(frozen=True)
class StackedPosterior:
    """Mixture of the members' posteriors, as a Gaussian with the mixture's mean and covariance; see the module's docstring."""

    weights: FloatArray
    spreads: FloatArray
    members: tuple[Posterior, ...]

    @property
    def mean(self) -> FloatArray:
        return np.asarray(sum(weights * member.mean for weights, member in zip(self.weights, self.members, strict=True)))

    @property
    def std(self) -> FloatArray:
        means_SMK = np.stack([member.mean for member in self.members])
        variances_SMK = np.stack([member.std for member in self.members]) ** 2
        apart_SMK = (means_SMK - self.mean) ** 2
        return np.asarray(self.spreads * np.sqrt((self.weights[:, None] * (variances_SMK + apart_SMK)).sum(axis=0)))

    def sample(self, count: int, seed: int) -> FloatArray:
        """Draws of shape (count, n, metrics), joint over points."""
        mean_MK = self.mean
        draws = np.zeros((count, *mean_MK.shape))
        for number, (weights_K, member) in enumerate(zip(self.weights, self.members, strict=True)):
            # Independent parts whose covariances add up to the mixture's.
            draws += np.sqrt(weights_K) * (member.sample(count, seed + 7919 * (number + 1)) - member.mean)
            normal = np.random.default_rng([seed, number, 0x57AC]).standard_normal((count, 1, len(weights_K)))
            draws += np.sqrt(weights_K) * normal * (member.mean - mean_MK)
        return np.asarray(mean_MK + self.spreads * draws)

    def difference_variance(self, reference: int) -> FloatArray:
        """See the function of this name: the parts that `sample` adds up."""
        mean_MK = self.mean
        variance_MK = np.zeros(mean_MK.shape)
        for weights_K, member in zip(self.weights, self.members, strict=True):
            apart_MK = member.mean - mean_MK
            variance_MK += weights_K * (difference_variance(member, reference) + (apart_MK - apart_MK[reference]) ** 2)
        return np.asarray(self.spreads**2 * variance_MK)
