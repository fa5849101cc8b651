"""Regression over a swarm: RegMix (arXiv 2407.01492) done right.

A wide nested design is trained, one surrogate per metric is fitted on the realized mixtures, and the objective over their predictions is
minimized where the caps allow, pulled toward the natural mixture. What differs from the paper and why: noise is measured by repeats, caps
are in the optimizer and not in the swarm, metrics are modelled one by one, the pull replaces trust in an argmax. The main trade-off: the
design does not react to results, so all trials can run at once, in any order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from mixopt.answer.floors import Floor
from mixopt.domains import DomainSet
from mixopt.mixture import Schedule
from mixopt.objective import ObjectiveKind
from mixopt.proposal import Proposal
from mixopt.recommendation import Settings, nothing_to_gain, recommend
from mixopt.space import MixtureSpace
from mixopt.strategies.base import MakeTrial
from mixopt.strategies.design import design_sequence
from mixopt.surrogates.base import Surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Trial

STOP_AT = (1 / 2, 5 / 8, 3 / 4, 7 / 8)
"""Shares of the trials after which a search that may stop early looks whether it should."""
FEWEST_TO_STOP = 16
"""Below, a surrogate does not know how little it knows."""


@dataclass(frozen=True)
class RegressionStrategy:
    """Asks for a fixed design, then proposes its predicted optimum.

    Attributes:
        make: (schedule, seed, label) -> trial at the search's source.
        metrics: metric -> weight in the objective; other metrics measured are predicted and reported too.
        trials: of the whole search, baselines and repeats included; an abandoned one is replaced by the next point of the design.
        seeds: repeats at the natural and the uniform mixture.
        pull: weight of KL(mixture || natural), in standard deviations of the objective over the swarm; None: chosen by cross-validation.
        seed: of the design and of everything random in the proposal.
        stop_early: asks for no more once even perfect knowledge would gain less than noise; looked at with the first half, five eighths, three
            quarters and seven eighths of the trials, each time with exactly these, so that the answer does not hang on their order of ending.
        calibration: finished runs of the search's calibration, whose repeats sharpen the noise that is looked at; None: there are none.
        floors, confidence: no metric worse than a baseline by more than so much, predicted with so many standard deviations to spare.
    """

    space: MixtureSpace
    domains: DomainSet
    make: MakeTrial
    surrogate: Surrogate
    metrics: Mapping[str, float]
    objective_kind: ObjectiveKind
    trials: int
    seeds: int
    pull: float | None
    seed: int
    stop_early: bool = False
    calibration: Swarm | None = None
    floors: tuple[Floor, ...] = ()
    confidence: float = 0.0
    _judged: dict[str, bool] = field(default_factory=dict, compare=False, repr=False)

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """The first `count` points of the design that are neither completed, pending nor abandoned; empty when the budget is met."""
        known = {*completed.trial_ids, *(trial.trial_id for trial in pending)}
        planned = self.plan({trial.trial_id for trial in abandoned})
        if self.stop_early and self._is_enough(planned, completed):
            return []
        return [trial for trial in planned if trial.trial_id not in known][: max(count, 0)]

    def plan(self, abandoned: frozenset[str] | set[str] = frozenset()) -> list[Trial]:
        """The trials of the whole search: the first `trials` distinct points of the design that were not abandoned.

        At most as many points are replaced as there are trials; where everything fails, more of the same will not help.
        """
        planned: dict[str, Trial] = {}
        replaced: set[str] = set()
        for point in design_sequence(self.domains, self.seeds, self.seed):
            if len(planned) == self.trials or len(replaced) > self.trials:
                break
            trial = self.make(Schedule.constant(point.mixture), point.seed, point.label)
            if trial.trial_id in abandoned:
                replaced.add(trial.trial_id)
            else:
                planned.setdefault(trial.trial_id, trial)
        return list(planned.values())

    def _is_enough(self, planned: Sequence[Trial], completed: Swarm) -> bool:
        """Whether at some point of looking, with all trials up to it completed, no more of them could bring a gain that stands out of noise."""
        finished = set(completed.trial_ids)
        for share in STOP_AT:
            first = [trial.trial_id for trial in planned[: math.ceil(share * self.trials)]]
            if len(first) < FEWEST_TO_STOP or not finished.issuperset(first):
                continue
            part = self._with_calibration(completed.select(first))
            digest = part.digest()
            if digest not in self._judged:
                self._judged[digest] = nothing_to_gain(part, self.space, self.domains, self.surrogate, self._settings())
            if self._judged[digest]:
                return True
        return False

    def _with_calibration(self, part: Swarm) -> Swarm:
        """The trials looked at, and the calibration's that are none of the search."""
        if self.calibration is None:
            return part
        known = set(part.trial_ids)
        more = self.calibration.select([trial_id for trial_id in self.calibration.trial_ids if trial_id not in known])
        return Swarm(part.domains, pl.concat([part.table, more.table]))

    def _settings(self) -> Settings:
        return Settings(
            self.metrics,
            self.objective_kind,
            self.seeds,
            self.pull,
            self.seed,
            floors=self.floors,
            confidence=self.confidence,
            measured_only=True,
        )

    def propose(self, completed: Swarm) -> Proposal:
        """The predicted optimum with its evidence, from the finished trials of the search's source.

        Raises:
            DataError: fewer than 4 trials, none at the natural mixture, no repeats, or a metric of the objective was not measured.
        """
        source = self.make(Schedule.constant(self.domains.natural()), 0, "natural").source
        return recommend(completed.at_source(source), self.space, self.domains, self.surrogate, self._settings())
