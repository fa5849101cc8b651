"""Several objectives at once: a front of mixtures none of which is better than another in everything, and the one of them to take.

After the first design of all searches, every trial is the one expected to add most to what the front dominates (noisy expected hypervolume
improvement, arXiv 2105.08195). The proposal is a point of the predicted front: its knee, or the one that given preferences choose. It is found as the
optimum of a weighted sum, so everything that a proposal says, intervals, near-optimal range, floors, is said of it, too. The main trade-off: weighted
sums reach the convex part of a front only; the evidence holds the measured points as well, whatever the front's shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
from pydantic import Field

from mixopt.acquisition.ascent import candidates, climb, maximize
from mixopt.acquisition.beliefs import Beliefs, beliefs_of
from mixopt.acquisition.hypervolume import FrontImprovement, Objectives, hypervolume, undominated
from mixopt.answer.measured import MEASURED_FEASIBLE_WITHIN
from mixopt.errors import ConfigError, DataError
from mixopt.mixture import FloatArray
from mixopt.objective import Objective
from mixopt.proposal import Proposal
from mixopt.strategies.base import Assignment, Options
from mixopt.strategies.known import first_count, measured_feasible, not_near, random_state
from mixopt.strategies.standing import Standing, mixtures_of
from mixopt.surrogates.threads import one_blas_thread
from mixopt.swarm import Swarm
from mixopt.trial import Trial

PATHS = 16
"""Draws of the measured mixtures: each has a front of its own."""
MOST_BASELINES = 24
FEWEST, MOST = 2, 4


class ParetoOptions(Options):
    objectives: dict[str, dict[str, float]] | None = Field(
        None,
        description="Two to four: name -> metrics with their weights, as {code: {valid/code: 1}}; default: each metric of the objective.",
    )
    preferences: dict[str, float] | None = Field(
        None,
        description="How much an objective counts, each over its range on the front; default: all the same, which is the front's knee.",
    )
    first: int | None = Field(None, ge=6, description="Trials of the first design, as for bayes.")


@dataclass(frozen=True)
class ParetoStrategy:
    """Asks for a first design, then for the largest expected hypervolume improvement."""

    assignment: Assignment
    options: ParetoOptions = field(default_factory=ParetoOptions)
    learns = True
    asks_ahead = True

    def __post_init__(self) -> None:
        """Raises ConfigError where it cannot do what is assigned, or an option does not fit."""
        if self.assignment.stop_early:
            raise ConfigError(
                "`search.stop_early` is set, and the strategy 'pareto' searches for a front.",
                "Leave it out: that nothing is left to gain can be told of one objective only.",
            )
        if len(self.assignment.offers) > 1:
            raise ConfigError("The strategy 'pareto' searches at one source.", "Leave `search.sources` out, or take the strategy bayes.")
        if self.assignment.objective_kind != "noise_scaled":
            raise ConfigError(
                f"`objective.kind` is {self.assignment.objective_kind}, and the strategy 'pareto' weighs losses over their seed noise.",
                "Leave it out; `search.options.objectives` names what the front is of, and their metrics' weights.",
            )
        named = self.parts
        if not FEWEST <= len(named) <= MOST:
            raise ConfigError(
                f"`search.options.objectives` of the strategy 'pareto' are {len(named)}; a front has two to four.",
                "Name two to four, each with its metrics: objectives: {code: {valid/code: 1}, prose: {valid/books: 1, valid/web: 1}}.",
            )
        for name, weights in named.items():
            unknown = sorted(set(weights) - set(self.assignment.metrics))
            if unknown or not weights or not all(np.isfinite(weight) and weight > 0 for weight in weights.values()):
                raise ConfigError(
                    f"`search.options.objectives.{name}` of the strategy 'pareto' is {dict(weights)}.",
                    f"Give metrics of the objective ({', '.join(self.assignment.metrics)}) weights above 0.",
                )
        wished = self.options.preferences
        if wished is not None and (set(wished) != set(named) or min(wished.values()) < 0 or max(wished.values()) <= 0):
            raise ConfigError(
                f"`search.options.preferences` of the strategy 'pareto' are {wished}.",
                f"Give each of {', '.join(named)} a weight of at least 0, one of them above.",
            )

    @property
    def parts(self) -> dict[str, dict[str, float]]:
        """Objective -> metric -> weight."""
        given = self.options.objectives
        return {metric: {metric: 1.0} for metric in self.assignment.metrics} if given is None else given

    def ask(self, count: int, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial]) -> list[Trial]:
        """Trials of the first design that are not known, then learned ones as soon as half of the first design has finished; at most the budget."""
        one = self.assignment
        standing = Standing.of(one, completed, pending, abandoned)
        first = first_count(one, self.options.first)
        asked = standing.fresh(one.planned(min(first, one.trials), standing.abandoned_ids), count)
        room = standing.room(count, asked)
        if room == 0 or 2 * len(completed) < first:
            return asked
        try:
            beliefs = self._beliefs(completed)
        except DataError:
            return asked
        number = standing.asked + len(asked)
        with one_blas_thread():
            return asked + self._learned(beliefs, completed, [*pending, *asked], abandoned, range(number, number + room))

    def propose(self, completed: Swarm) -> Proposal:
        """The point of the front that preferences choose, with the front in the evidence, under `front`.

        Raises:
            DataError, InfeasibleError: as `Assignment.recommend`.
        """
        beliefs = self._beliefs(completed)
        objectives = self._objectives(beliefs)
        predicted_FU = self._predicted_front(beliefs, objectives, completed)
        proposal = self._weighed(beliefs, objectives, predicted_FU).recommend(completed)
        return replace(
            proposal, evidence={**proposal.evidence, "front": self._front(beliefs, objectives, predicted_FU, completed, proposal)}
        )

    def objective(self, completed: Swarm) -> Objective:
        """The weighted sum of the objectives whose optimum is proposed: as metrics with weights, over their noise. Raises as `propose`."""
        beliefs = self._beliefs(completed)
        objectives = self._objectives(beliefs)
        return self._weighed(beliefs, objectives, self._predicted_front(beliefs, objectives, completed)).objective(completed)

    def _weighed(self, beliefs: Beliefs, objectives: Objectives, predicted_FU: FloatArray) -> Assignment:
        """The assignment with the preferences as its objective, each over its range on the front (F, U)."""
        values_FJ = objectives.values(beliefs.moments(beliefs.coordinates.weights(predicted_FU))[0][:, 0])
        span_J = np.maximum(np.ptp(values_FJ, axis=0), 1e-9)
        wished = self.options.preferences or dict.fromkeys(objectives.names, 1.0)
        shares_J = np.array([wished[name] for name in objectives.names]) / span_J
        factors_K = shares_J @ objectives.factors * np.array(beliefs.objective.noise_std)
        metrics = {metric: weight for metric, weight in zip(beliefs.objective.metrics, factors_K.tolist(), strict=True) if weight > 0}
        return replace(self.assignment, metrics=metrics, objective_kind="noise_scaled")

    def _beliefs(self, completed: Swarm) -> Beliefs:
        """Over all metrics; as a mean of losses, for which none is left out."""
        counted = {metric: 1.0 for part in self.parts.values() for metric in part}
        return beliefs_of(replace(self.assignment, metrics=counted, objective_kind="mean"), completed)

    def _objectives(self, beliefs: Beliefs) -> Objectives:
        metrics, noise_K = beliefs.objective.metrics, np.array(beliefs.objective.noise_std)
        natural = self.assignment.domains.natural().array(beliefs.coordinates.names)
        factors = np.array([[part.get(metric, 0.0) for metric in metrics] for part in self.parts.values()])
        factors = factors / factors.sum(axis=1, keepdims=True) / noise_K
        return Objectives(tuple(self.parts), factors, beliefs.moments(natural[None])[0][0, 0])

    def _learned(
        self, beliefs: Beliefs, completed: Swarm, pending: Sequence[Trial], abandoned: Sequence[Trial], numbers: range
    ) -> list[Trial]:
        one, coordinates, objectives = self.assignment, beliefs.coordinates, self._objectives(beliefs)
        rng = random_state(one, completed, pending)
        measured_MD = measured_feasible(completed, coordinates)
        values_MJ = objectives.values(beliefs.moments(measured_MD)[0][:, 0]) if len(measured_MD) else np.zeros((0, len(objectives.names)))
        best_MD = measured_MD[np.argsort(_layers(values_MJ), kind="stable")][:MOST_BASELINES]
        front_FU = self._predicted_front(beliefs, objectives, completed)
        front_FU = front_FU[np.unique(np.linspace(0, len(front_FU) - 1, MOST_BASELINES // 2).round().astype(int))]
        drawn_MD = np.concatenate([coordinates.weights(front_FU), best_MD, mixtures_of(pending, coordinates.names)])
        reference_J = self._reference(beliefs, objectives)
        gain = FrontImprovement.over(beliefs, objectives, reference_J, drawn_MD, coordinates.contains(drawn_MD), PATHS, rng)
        refused_MU = coordinates.points(mixtures_of(abandoned, coordinates.names))
        good_GU = np.concatenate([front_FU, coordinates.points(best_MD[: MOST_BASELINES // 2])])
        asked = []
        for number in numbers:
            points_MU, _ = maximize(gain, gain.values, coordinates, good_GU, rng)
            mixture = coordinates.mixture(not_near(points_MU, refused_MU))
            asked.append(one.learned(mixture, number, "pareto"))
            gain = gain.with_point(mixture.array(coordinates.names), True, rng)
        return asked

    def _reference(self, beliefs: Beliefs, objectives: Objectives) -> FloatArray:
        """The worst of natural, uniform and UniMax in each objective, predicted, shape (J,): what is worse than all three is no answer."""
        domains = self.assignment.domains
        weights = np.array(
            [mixture.array(beliefs.coordinates.names) for mixture in (domains.natural(), domains.uniform(), domains.unimax())]
        )
        return np.asarray(objectives.values(beliefs.moments(weights)[0][:, 0]).max(axis=0))

    def _predicted_front(self, beliefs: Beliefs, objectives: Objectives, completed: Swarm) -> FloatArray:
        """Undominated ones among the optima of weighted sums, by predicted means; along the first objective, shape (F, U)."""
        rng = np.random.default_rng([self.assignment.seed, 0xF407])
        coordinates = beliefs.coordinates
        good_GU = coordinates.points(measured_feasible(completed, coordinates))
        starts_MU = candidates(coordinates, good_GU, rng)
        losses_MK = beliefs.moments(coordinates.weights(starts_MU))[0][:, 0]
        ends_JU = np.array([self._optimum(beliefs, row, starts_MU, losses_MK) for row in objectives.factors])
        span_J = np.maximum(np.ptp(objectives.values(beliefs.moments(coordinates.weights(ends_JU))[0][:, 0]), axis=0), 1e-9)
        inner = [self._optimum(beliefs, (row / span_J) @ objectives.factors, starts_MU, losses_MK) for row in directions(len(span_J))]
        points_MU = np.concatenate([ends_JU, np.array(inner)])
        values_MJ = objectives.values(beliefs.moments(coordinates.weights(points_MU))[0][:, 0])
        kept = undominated(values_MJ)
        return np.asarray(points_MU[kept[np.argsort(values_MJ[kept, 0], kind="stable")]])

    def _optimum(self, beliefs: Beliefs, factors_K: FloatArray, starts_MU: FloatArray, losses_MK: FloatArray) -> FloatArray:
        """The feasible point (U,) of the least predicted weighted sum of losses, climbed to from the best of the starts."""
        weights = factors_K / factors_K.sum()
        weighted = replace(beliefs, objective=replace(beliefs.objective, weights=tuple(weights.tolist())))

        def negative(points_MU: FloatArray) -> tuple[FloatArray, FloatArray]:
            values_M, slopes_MU = weighted.mean_and_slopes(points_MU)
            return -values_M, -slopes_MU

        start = int(np.argmin(losses_MK @ weights))
        return np.asarray(climb(negative, beliefs.coordinates, starts_MU[start : start + 1])[0][0])

    def _front(
        self, beliefs: Beliefs, objectives: Objectives, predicted_FU: FloatArray, completed: Swarm, proposal: Proposal
    ) -> dict[str, Any]:
        """JSON values: objectives, the predicted front with standard deviations, the measured runs, the reference, the proposal's place, and the volume."""
        names = beliefs.coordinates.names
        reference_J = self._reference(beliefs, objectives)
        weights_FD = beliefs.coordinates.weights(predicted_FU)
        means, variances = beliefs.moments(weights_FD)
        stds_FJ = np.sqrt(variances @ (objectives.factors**2).T)
        runs = completed.at_source(self.assignment.source)
        measured_NJ = objectives.values(runs.values(beliefs.objective.metrics))
        feasible = self.assignment.space.contains(runs.points(realized=False).averages(), MEASURED_FEASIBLE_WITHIN)
        eligible_NJ = measured_NJ[feasible]
        on_front = set(np.flatnonzero(feasible)[undominated(eligible_NJ)].tolist()) if len(eligible_NJ) else set()
        chosen = objectives.values(beliefs.moments(proposal.mixture.array(names)[None])[0][0, 0])
        return {
            "objectives": list(objectives.names),
            "unit": "weighted mean over its metrics of (loss - natural's predicted loss) / seed noise; lower is better",
            "preferences": self.options.preferences,
            "reference": reference_J.tolist(),
            "proposal": chosen.tolist(),
            "hypervolume": hypervolume(objectives.values(means[:, 0]), reference_J),
            "predicted": [
                {"weights": dict(zip(names, weights.tolist(), strict=True)), "mean": mean.tolist(), "std": std.tolist()}
                for weights, mean, std in zip(weights_FD, objectives.values(means[:, 0]), stds_FJ, strict=True)
            ],
            "measured": [
                {"trial_id": trial_id, "label": label, "values": values, "feasible": bool(inside), "undominated": number in on_front}
                for number, (trial_id, label, values, inside) in enumerate(
                    zip(runs.trial_ids, runs.trials()["label"], measured_NJ.tolist(), feasible.tolist(), strict=True)
                )
            ],
        }


def _layers(values_MJ: FloatArray) -> FloatArray:
    """For each point how many others dominate it, shape (M,)."""
    no_worse = np.all(values_MJ[None] <= values_MJ[:, None], axis=2)
    better = np.any(values_MJ[None] < values_MJ[:, None], axis=2)
    return np.asarray((no_worse & better).sum(axis=1))


def directions(objectives: int) -> FloatArray:
    """Weights over objectives, evenly over the simplex without its corners, shape (n, objectives)."""
    steps = {2: 8, 3: 5, 4: 5}[objectives]
    grid = np.array([row for row in product(range(1, steps), repeat=objectives) if sum(row) == steps + (objectives - 2)])
    return np.asarray(grid / grid.sum(axis=1, keepdims=True))
