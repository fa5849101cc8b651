"""What the strategies are to solve: synthetic laws whose optimum is known, and the tables of real runs.

A problem answers trials and judges mixtures. Costs are in trials of the source where the answer is wanted.

Synthetic laws. Loss of target j at mixture p: floor_j + (sum_i C_ij p_i^g_ij + sum_ik D_ikj sqrt(p_i p_k))^-a_j. The sums have the diminishing returns of
published laws (Scaling Laws for Optimal Data Mixtures, arXiv 2507.09404: L = E + 1 / sum C h^g), the second one interactions of a few pairs, of
either sign. Token counts are spread over two orders of magnitude, so that four epochs cap the scarce domains. Noise is a fifth of the standard deviation of
the objective over wide draws, per target: what was measured for nano on 1M tokens lies between a half and an eighth (docs/log.md). A cheaper source, an eighth of the cost,
has the same law with every coefficient moved by a factor exp(N(0, .3)) and a higher floor: ranks carry over, the optimum moves.

Real runs. RegMix's 512 + 256 runs of the "1M" proxy over 17 Pile domains, 256 of which were run at 60M, too (arXiv 2407.01492). The answer is wanted at 1M, or,
where there are two sources, at 60M. An ask is answered by the nearest row that was not used before, as if that mixture had been asked for; so a strategy that
knows where to look gains less than on a law. It is judged by the row of the answer's source that its surrogate, fitted to what it was told, predicts to be best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from mixopt.domains import Domain, DomainSet
from mixopt.mixture import FloatArray, Mixture, Schedule
from mixopt.optimum import minimize
from mixopt.space import MixtureSpace
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

TARGETS = 3
PAIRS_PER_DOMAIN = 1.0
NOISE_SHARE = 0.2
CHEAP_COST = 0.125
MOVED = 0.3
ANSWER, CHEAP = Source("trained", "large", 1_000_000), Source("trained", "small", 1_000_000)
MERGED, ENSEMBLE = Source("merged", "large", 500_000), Source("ensemble", "large", 500_000)
COSTS = {CHEAP: CHEAP_COST, MERGED: 0.1, ENSEMBLE: 1e-4}
SCALES = {2.0: 0.1, 4.0: 0.6}
"""Level of averages -> their scale, bits per byte: a merge keeps the components' scale about, an ensemble does not."""
STARTS = 12


@dataclass(frozen=True)
class Law:
    """Losses of mixtures (n, domains) on targets, shape (n, targets)."""

    floors_T: FloatArray
    powers_T: FloatArray
    gains_DT: FloatArray
    bends_DT: FloatArray
    pairs: tuple[tuple[int, int], ...]
    synergies_PT: FloatArray

    @classmethod
    def drawn(cls, domains: int, rng: np.random.Generator) -> Law:
        """Few domains matter much for one target."""
        gains = rng.gamma(0.35, 1.0, (domains, TARGETS))
        gains /= gains.max(axis=0)
        every = [(i, k) for i in range(domains) for k in range(i)]
        chosen = rng.permutation(len(every))[: round(PAIRS_PER_DOMAIN * domains)]
        pairs = tuple(every[index] for index in chosen)
        scale = np.array([np.sqrt(gains[i] * gains[k]) for i, k in pairs])
        return cls(
            floors_T=rng.uniform(0.6, 1.2, TARGETS),
            powers_T=rng.uniform(0.1, 0.3, TARGETS),
            gains_DT=gains,
            bends_DT=rng.uniform(0.5, 1.0, (domains, TARGETS)),
            pairs=pairs,
            synergies_PT=rng.normal(0.0, 0.5, (len(pairs), TARGETS)) * scale,
        )

    def moved(self, rng: np.random.Generator) -> Law:
        """The law of a cheaper source."""
        gains = self.gains_DT * np.exp(rng.normal(0.0, MOVED, self.gains_DT.shape))
        return Law(self.floors_T + 0.3, self.powers_T, gains, self.bends_DT, self.pairs, self.synergies_PT)

    def losses(self, weights: FloatArray) -> FloatArray:
        weights = np.maximum(weights, 0.0)
        good = np.stack([(weights ** self.bends_DT[:, t]) @ self.gains_DT[:, t] for t in range(TARGETS)], axis=1)
        if self.pairs:
            left, right = np.array(self.pairs).T
            good = good + np.sqrt(weights[:, left] * weights[:, right]) @ self.synergies_PT
        # Antagonists cannot take away more than there is.
        return np.asarray(self.floors_T + np.logaddexp(0.0, (good + 0.02) * 20.0) ** -self.powers_T)


@dataclass(frozen=True)
class Synthetic:
    """A law over so many domains; everything about it is drawn from `seed`.

    Attributes:
        agreement: of averages of components with the law: about the Spearman correlation per target over feasible mixtures.
    """

    dimension: int
    seed: int
    agreement: float = 0.9

    @property
    def name(self) -> str:
        return f"law, {self.dimension} domains"

    @cached_property
    def _drawn(self) -> tuple[DomainSet, Law, Law]:
        rng = np.random.default_rng([0x5EA7C4, self.dimension, self.seed])
        tokens = np.exp(rng.uniform(np.log(1.0), np.log(100.0), self.dimension))
        budget = float(tokens.sum())
        domains = tuple(Domain(f"d{index:02d}", f"content-{index}", 10**9, float(count)) for index, count in enumerate(tokens))
        law = Law.drawn(self.dimension, rng)
        return DomainSet(domains, budget), law, law.moved(rng)

    @cached_property
    def _average(self) -> tuple[Law, FloatArray, FloatArray]:
        """Of averages: the law of their bias, and means and standard deviations of law and bias (2, targets) over feasible mixtures."""
        domains, law, _ = self._drawn
        bias = Law.drawn(self.dimension, np.random.default_rng([0xA7E4, self.dimension, self.seed]))
        spread = MixtureSpace.from_domains(domains).sample(2000, np.random.default_rng([3, self.seed]))
        losses = np.stack([law.losses(spread), bias.losses(spread)])
        return bias, losses.mean(axis=1), losses.std(axis=1)

    def averaged(self, weights: FloatArray, level: float) -> FloatArray:
        """Losses of averages of components: the law plus a smooth bias, bent, on another level and scale; without noise."""
        bias, means, stds = self._average
        own, other = (((one.losses(weights) - mean) / std) for one, mean, std in zip((self._drawn[1], bias), means, stds, strict=True))
        share = np.sqrt(1 / self.agreement**2 - 1)
        return np.asarray(level + SCALES[level] * np.exp(0.4 * (own + share * other) / np.hypot(1.0, share)))

    @property
    def domains(self) -> DomainSet:
        return self._drawn[0]

    @cached_property
    def space(self) -> MixtureSpace:
        return MixtureSpace.from_domains(self.domains)

    @property
    def metrics(self) -> tuple[str, ...]:
        return tuple(f"target/{index}" for index in range(TARGETS))

    @cached_property
    def noise_std(self) -> FloatArray:
        draws = np.random.default_rng([1, self.seed]).dirichlet(np.full(self.dimension, 0.5), 2000)
        return np.asarray(NOISE_SHARE * self._drawn[1].losses(draws).std(axis=0))

    def objective(self, weights: FloatArray) -> FloatArray:
        """The truth, shape (n,): the mean of (loss - natural's) in noises."""
        natural = self._drawn[1].losses(self.domains.natural().array()[None])
        return np.asarray(((self._drawn[1].losses(weights) - natural) / self.noise_std).mean(axis=1))

    @cached_property
    def best(self) -> float:
        """The least feasible objective, from many starts."""
        rng = np.random.default_rng([2, self.seed])
        starts = self.space.sample(4000, rng)
        best = starts[np.argsort(self.objective(starts))[:STARTS]]
        found = minimize(self.objective, self.space, best, self.seed)
        return float(min(self.objective(found.weights[None])[0], self.objective(best).min()))

    def regret(self, weights: FloatArray) -> float:
        """Of a mixture (domains,), in standard deviations of seed noise; negative only by the optimizer's error."""
        return float(self.objective(weights[None])[0] - self.best)

    def cost(self, source: Source) -> float:
        return COSTS.get(source, 1.0)

    def reach(self, source: Source) -> MixtureSpace | None:
        """Of an ensemble of components, half of which is natural data; None: everything."""
        if source != ENSEMBLE:
            return None
        space, half = self.space, 0.5 * self.domains.natural().array(self.space.domains)
        return replace(space, lower=half, unit_lower=half)

    def run(self, trials: Sequence[Trial], noise_seed: int) -> Swarm:
        """Outcomes of trials; the same trial has the same outcome."""
        _, law, cheap = self._drawn
        losses = np.zeros((len(trials), TARGETS))
        for row, trial in enumerate(trials):
            weights = trial.schedule.average().array(self.domains.names)
            if trial.source in (MERGED, ENSEMBLE):
                losses[row] = self.averaged(weights[None], 2.0 if trial.source == MERGED else 4.0)[0]
                continue
            luck = np.random.default_rng([noise_seed, int(trial.trial_id[:15], 16)]).normal(0.0, self.noise_std)
            losses[row] = (cheap if trial.source == CHEAP else law).losses(weights[None])[0] + luck
        return Swarm.of_trials(self.domains.names, trials, self.metrics, losses, [self.cost(trial.source) for trial in trials])


REGMIX_COST = 1 / 10
"""Of a run at 1M, in runs at 60M: the ratio of sizes with a fixed part, as starting and scoring have; ADMIRE's own is .06 (arXiv 2508.11551)."""


@dataclass(frozen=True)
class Replay:
    """The tables of RegMix; `swarms` as `surrogates.load_regmix` reads them.

    Attributes:
        two_sources: whether the answer is wanted at 60M and 1M is the cheap source; else all is at 1M.
    """

    swarms: dict[str, Swarm]
    seed: int
    two_sources: bool = False

    @property
    def name(self) -> str:
        return "RegMix, 1M and 60M" if self.two_sources else "RegMix, 1M"

    @cached_property
    def pools(self) -> dict[Source, tuple[FloatArray, FloatArray]]:
        """Source -> mixtures (n, domains) and losses (n, metrics)."""
        small = [self.swarms["train_1m"], self.swarms["test_1m"]]
        weights = np.concatenate([swarm.points().averages() for swarm in small])
        losses = np.concatenate([swarm.values(self.metrics) for swarm in small])
        if not self.two_sources:
            return {ANSWER: (weights, losses)}
        large = self.swarms["test_60m"]
        return {CHEAP: (weights, losses), ANSWER: (large.points().averages(), large.values(self.metrics))}

    @property
    def metrics(self) -> tuple[str, ...]:
        return self.swarms["train_1m"].metrics

    @cached_property
    def domains(self) -> DomainSet:
        """The mean of the mixtures stands for the natural one, and nothing is capped: the tables come without token counts."""
        mean = self.swarms["train_1m"].points().averages().mean(axis=0)
        names = self.swarms["train_1m"].domains
        return DomainSet(
            tuple(Domain(name, f"c-{name}", 10**9, float(share), max_epochs=1e9) for name, share in zip(names, mean, strict=True)), 1.0
        )

    @cached_property
    def space(self) -> MixtureSpace:
        return MixtureSpace.from_domains(self.domains)

    def objective(self, source: Source) -> FloatArray:
        """Of the rows of a source: the mean over metrics, in standard deviations of it."""
        values = self.pools[source][1].mean(axis=1)
        return np.asarray((values - values.min()) / values.std())

    def cost(self, source: Source) -> float:
        return REGMIX_COST if source == CHEAP else 1.0

    def run(self, trials: Sequence[Trial], noise_seed: int) -> Swarm:
        """Rows of the tables; the luck of a run is in them."""
        names = self.domains.names
        used: dict[Source, set[int]] = {source: set() for source in self.pools}
        losses, answered = [], []
        for trial in trials:
            weights, values = self.pools[trial.source]
            wanted = trial.schedule.average().array(names)
            order = np.argsort(np.abs(weights - wanted).sum(axis=1), kind="stable")
            row = next((int(index) for index in order if int(index) not in used[trial.source]), None)
            if row is None:
                continue
            used[trial.source].add(row)
            losses.append(values[row])
            answered.append(replace(trial, schedule=Schedule.constant(Mixture.from_array(names, weights[row]))))
        return Swarm.of_trials(names, answered, self.metrics, np.array(losses), [self.cost(trial.source) for trial in answered])
