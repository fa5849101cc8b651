"""Verification: the proposal against the best measured mixture and the baselines, trained at a larger source with several seeds.

The search picked the proposal because its prediction looked best, which flatters it (the winner's curse); only fresh runs tell. All arms
use the same seeds, hence the same initial weights and data order, and are compared seed by seed: what the seed does to every arm cancels
in the difference. Main trade-off: with three seeds Student's t is wide (4.3 standard errors), so small real gains stay undecided; that is
said, not hidden, and an undecided gain is not a reason to leave a mixture that was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from mixopt.errors import DataError
from mixopt.factory import MakeTrial
from mixopt.mixture import Mixture, Schedule
from mixopt.objective import Objective
from mixopt.proposal import Proposal
from mixopt.swarm import Swarm
from mixopt.trial import WEIGHT_DECIMALS, Source, Trial

PROPOSAL, BEST_MEASURED = "proposal", "best_measured"
LABEL_PREFIX = "verify:"
# Two rows of every comparison that are not metrics: the objective in its own unit, and the mean of its metrics by their weights.
OBJECTIVE, MEAN_BITS_PER_BYTE = "objective", "bits_per_byte"
CONFIDENCE = 0.95
FEWEST_PAIRS = 2  # one difference has no spread, hence no interval
# How arms are called in sentences.
SPOKEN = {
    PROPOSAL: "the proposal",
    BEST_MEASURED: "the best measured mixture",
    "natural": "the natural mixture",
    "uniform": "the uniform mixture",
    "unimax": "UniMax",
}

Feasible = Callable[[Mixture], bool]


@dataclass(frozen=True)
class Comparison:
    """Paired differences over seeds, the proposal minus one baseline, with the two-sided 95% interval of their mean. Negative is better.

    Attributes:
        baseline: name of the other arm.
        metric: name of a metric (bits per byte), "objective" (its own unit) or "bits_per_byte" (the objective's metrics by their weights).
        low, high: mean -+ t * standard error, Student's t with pairs - 1 degrees of freedom.
        seeds: those that both arms finished, at least two.
        values: one difference per seed.
    """

    baseline: str
    metric: str
    mean: float
    low: float
    high: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def verdict(self) -> Literal["better", "worse", "undecided"]:
        """Of the proposal: better or worse only where the interval excludes zero."""
        return "better" if self.high < 0 else "worse" if self.low > 0 else "undecided"


@dataclass(frozen=True)
class Verification:
    """What verification found.

    Attributes:
        arms: arm -> share of tokens per domain, over the whole run.
        seeds, missing: arm -> seeds that finished, and that did not.
        losses: arm -> metric -> bits per byte, one per finished seed; "objective" and "bits_per_byte" are among the metrics, the objective
            relative to the natural mixture at this source.
        comparisons: of the proposal with every other arm that shares at least two finished seeds with it, by metric.
        same: arms that are the proposal under another name, trained once.
        infeasible: arms outside the bounds and epoch caps of the target run; never recommended.
        winner: the arm with the lowest mean objective on the seeds it shares with the proposal, beyond noise or not.
        recommended: the arm to use, by the rules of `summarize`; `reason` says which one decided.
        sentence: whether the proposal won, against what, by how much; in a few short sentences for people.
    """

    source: Source
    objective_unit: str
    arms: Mapping[str, Mapping[str, float]]
    seeds: Mapping[str, tuple[int, ...]]
    missing: Mapping[str, tuple[int, ...]]
    losses: Mapping[str, Mapping[str, tuple[float, ...]]]
    comparisons: tuple[Comparison, ...]
    same: tuple[str, ...]
    infeasible: tuple[str, ...]
    winner: str
    recommended: str
    reason: str
    sentence: str
    confidence: float = CONFIDENCE

    @property
    def rivals(self) -> dict[str, tuple[str, ...]]:
        """The mixtures other than the proposal, each once: first arm -> all arms that are this mixture."""
        return _rivals(self.arms, self.same)

    @property
    def conclusion(self) -> str:
        """The sentence, and which mixture to use."""
        return f"{self.sentence} Recommended: {spoken(self.recommended)}, because {self.reason}."

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"source": [self.source.evaluator, self.source.size, self.source.tokens]}

    @classmethod
    def from_json(cls, body: Mapping[str, Any]) -> Verification:
        losses = {arm: {metric: tuple(values) for metric, values in metrics.items()} for arm, metrics in body["losses"].items()}
        seeds, missing = ({arm: tuple(numbers) for arm, numbers in body[key].items()} for key in ("seeds", "missing"))
        rows = [Comparison(**{**row, "seeds": tuple(row["seeds"]), "values": tuple(row["values"])}) for row in body["comparisons"]]
        lists = {"comparisons": tuple(rows), "same": tuple(body["same"]), "infeasible": tuple(body["infeasible"])}
        return cls(**{**body, **lists, "source": Source(*body["source"]), "seeds": seeds, "missing": missing, "losses": losses})


def plan_verification(
    proposal: Proposal,
    natural: Mixture,
    uniform: Mixture,
    unimax: Mixture,
    make: MakeTrial,
    seeds: int,
) -> list[Trial]:
    """The trials of a verification, arm by arm: the proposal, the best measured mixture if it is feasible, and the baselines.

    Arms of equal mixtures are trained once; the label then names them all, as `verify:proposal+unimax`.

    Args:
        make: makes a trial at the verification source.
        seeds: trials per arm; the seeds are 0, 1, ... in every arm.
    """
    schedules = {PROPOSAL: proposal.schedule}
    best = proposal.best_measured
    if best.get("weights") and best.get("feasible", True):
        schedules[BEST_MEASURED] = Schedule.constant(Mixture.of(best["weights"]))
    schedules |= {"natural": Schedule.constant(natural), "uniform": Schedule.constant(uniform), "unimax": Schedule.constant(unimax)}

    names: dict[str, list[str]] = {}
    for name, schedule in schedules.items():
        weights = [mixture.array(proposal.schedule.domains) for mixture in schedule.mixtures]
        names.setdefault(repr((schedule.fractions, np.round(weights, WEIGHT_DECIMALS).tolist())), []).append(name)
    return [make(schedules[arms[0]], seed, LABEL_PREFIX + "+".join(arms)) for arms in names.values() for seed in range(seeds)]


def summarize(swarm: Swarm, plan: Sequence[Trial], objective: Objective, feasible: Feasible | None = None) -> Verification:
    """Compares the arms of a plan by what its trials measured.

    Recommended is the proposal; but the best measured mixture unless the proposal beats it beyond noise (the reproduction of CLIMB shows
    why: methods/offline-search.md, section 3); and instead of either a feasible baseline that beats it beyond noise.

    Args:
        swarm: completed trials of the verification stage; those that are not in the plan do not enter.
        plan: trials of `plan_verification`.
        objective: that of the search; it is made relative to the natural mixture at this source.
        feasible: whether the target run could use a mixture; default: any.

    Raises:
        DataError: no run of the proposal finished, or a run lacks a metric of the objective.
    """
    trials = _trials_by_arm(plan)
    losses, seeds = _losses(swarm, trials, objective)
    arms = {name: runs[0].schedule.average() for name, runs in trials.items()}
    weights = {name: mixture.as_dict() for name, mixture in arms.items()}
    same = tuple(name for name, runs in trials.items() if name != PROPOSAL and runs[0].trial_id == trials[PROPOSAL][0].trial_id)
    missing = {name: tuple(trial.seed for trial in runs if trial.seed not in seeds[name]) for name, runs in trials.items()}

    def compare(first: str, second: str, metric: str) -> Comparison | None:
        pairs = [dict(zip(seeds[name], losses[name][metric], strict=True)) for name in (first, second)]
        return paired(second, metric, *pairs)

    others = [name for name in arms if name != PROPOSAL and name not in same]
    rows = [row for name in others for metric in losses[PROPOSAL] if (row := compare(PROPOSAL, name, metric)) is not None]
    infeasible = tuple(name for name, mixture in arms.items() if feasible is not None and not feasible(mixture))
    recommended, reason = _recommend(others, infeasible, lambda first, second: compare(first, second, OBJECTIVE))
    return Verification(
        source=plan[0].source,
        objective_unit=objective.unit,
        arms=weights,
        seeds=seeds,
        missing=missing,
        losses=losses,
        comparisons=tuple(rows),
        same=same,
        infeasible=infeasible,
        winner=_winner(rows),
        recommended=recommended,
        reason=reason,
        sentence=_sentence(rows, _rivals(weights, same), same, missing, plan[0].source, (objective.unit, objective.loss_unit)),
    )


def paired(baseline: str, metric: str, first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """First minus second over the seeds that both have; None with fewer than two of them.

    Args:
        first, second: seed -> value.
    """
    from scipy.special import stdtrit

    seeds = tuple(sorted(set(first) & set(second)))
    if len(seeds) < FEWEST_PAIRS:
        return None
    values = tuple(first[seed] - second[seed] for seed in seeds)
    mean = math.fsum(values) / len(values)
    standard_error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * standard_error
    return Comparison(baseline, metric, mean, mean - half, mean + half, seeds, values)


def _trials_by_arm(plan: Sequence[Trial]) -> dict[str, list[Trial]]:
    trials: dict[str, list[Trial]] = {}
    for trial in plan:
        for name in trial.label.removeprefix(LABEL_PREFIX).split("+"):
            trials.setdefault(name, []).append(trial)
    return trials


def _losses(
    swarm: Swarm, trials: Mapping[str, Sequence[Trial]], objective: Objective
) -> tuple[dict[str, dict[str, tuple[float, ...]]], dict[str, tuple[int, ...]]]:
    """arm -> metric -> losses, and arm -> the seeds they belong to; of finished trials, with the objective's two rows first."""
    planned = {trial.trial_id for runs in trials.values() for trial in runs}
    measured = swarm.select(sorted(planned))
    rows = {trial_id: row for row, trial_id in enumerate(measured.trial_ids)}
    values, scored = measured.values(measured.metrics), measured.values(objective.metrics)
    if np.isnan(scored).any():
        metric = objective.metrics[int(np.argwhere(np.isnan(scored))[0, 1])]
        raise DataError(f"A verification run was not scored on '{metric}'.", "Run the same command again to score it.")
    finished = {name: [trial for trial in runs if trial.trial_id in rows] for name, runs in trials.items()}
    if not finished[PROPOSAL]:
        raise DataError(
            "No verification run of the proposal finished.",
            "See why with `mixopt show`, or in trials/ID/error.txt, then run the same command again.",
        )
    natural = [rows[trial.trial_id] for trial in finished.get("natural", ())]
    if natural:  # without it the objective stays relative to natural at the search's source, which cancels in most differences
        objective = objective.with_natural(scored[natural].mean(axis=0))
    columns = {OBJECTIVE: objective.value(scored), MEAN_BITS_PER_BYTE: scored @ np.array(objective.weights)}
    columns |= {metric: values[:, column] for column, metric in enumerate(measured.metrics)}
    losses = {
        name: {metric: tuple(float(column[rows[trial.trial_id]]) for trial in runs) for metric, column in columns.items()}
        for name, runs in finished.items()
    }
    return losses, {name: tuple(trial.seed for trial in runs) for name, runs in finished.items()}


def _winner(rows: Sequence[Comparison]) -> str:
    gains = {PROPOSAL: 0.0} | {row.baseline: -row.mean for row in rows if row.metric == OBJECTIVE}
    return min(gains, key=lambda name: gains[name])


def _rivals(arms: Mapping[str, Mapping[str, float]], same: Sequence[str]) -> dict[str, tuple[str, ...]]:
    groups: dict[str, tuple[str, ...]] = {}
    for name, weights in arms.items():
        if name != PROPOSAL and name not in same:
            first = next((other for other in groups if arms[other] == weights), name)
            groups[first] = (*groups.get(first, ()), name)
    return groups


def _recommend(others: Sequence[str], infeasible: Sequence[str], compare: Callable[[str, str], Comparison | None]) -> tuple[str, str]:
    """The arm to use, and why. `compare` gives the objective of the first arm minus the second's."""
    allowed = "other mixture that may be used" if infeasible else "other mixture"
    chosen, reason = PROPOSAL, f"no {allowed} beats the proposal beyond noise"
    if not any(compare(PROPOSAL, name) for name in others):
        reason = "too few seeds finished to compare the proposal with any other mixture"
    elif BEST_MEASURED in others and (gain := compare(PROPOSAL, BEST_MEASURED)) is None:
        reason = "too few seeds finished to compare the proposal with the best measured mixture"
    elif BEST_MEASURED in others and gain is not None and gain.verdict == "better":
        reason = "the proposal beats the best measured mixture beyond noise"
    elif BEST_MEASURED in others and gain is not None and BEST_MEASURED not in infeasible:
        chosen = BEST_MEASURED
        reason = "the proposal does not beat the best measured mixture beyond noise"
        if gain.verdict == "worse":
            reason = "the best measured mixture beats the proposal beyond noise"
    rivals = {name: compare(name, chosen) for name in (PROPOSAL, *others) if name not in (chosen, *infeasible)}
    better = {name: row.mean for name, row in rivals.items() if row is not None and row.verdict == "better"}
    if better:
        rival = min(better, key=lambda name: better[name])
        return rival, f"{spoken(rival)} beats {spoken(chosen)} beyond noise"
    return chosen, reason


def _sentence(
    rows: Sequence[Comparison],
    rivals: Mapping[str, Sequence[str]],
    same: Sequence[str],
    missing: Mapping[str, Sequence[int]],
    source: Source,
    units: tuple[str, str],
) -> str:
    by_metric = {(row.baseline, row.metric): row for row in rows}
    compared = {name: by_metric[name, OBJECTIVE] for name in rivals if (name, OBJECTIVE) in by_metric}
    pairs = max((len(row.seeds) for row in compared.values()), default=0)
    where = f"At a larger source ({source.size}, {source.tokens:,} tokens, {pairs} paired seeds)"
    sentences = [f"{where} the proposal {_score([row.verdict for row in compared.values()])}."]
    for opening, verdict in (("beat", "better"), ("could not be told apart from", "undecided"), ("lost to", "worse")):
        for name, row in compared.items():
            if row.verdict == verdict:
                sentences.append(f"It {opening} {_called(rivals[name])}: {_difference(by_metric[name, MEAN_BITS_PER_BYTE], row, units)}.")
    if same:
        sentences.append(f"It is the same mixture as {' and '.join(map(spoken, same))}.")
    lonely = [_called(names) for name, names in rivals.items() if name not in compared]
    if lonely:
        sentences.append(f"Too few seeds finished to compare it with {' and '.join(lonely)}.")
    gaps = "; ".join(f"{spoken(name)} {', '.join(map(str, seeds))}" for name, seeds in missing.items() if seeds)
    if gaps:
        sentences.append(f"Seeds that did not finish: {gaps}.")
    return " ".join(sentences)


def _score(verdicts: Sequence[str]) -> str:
    won, tied, lost = (verdicts.count(verdict) for verdict in ("better", "undecided", "worse"))
    if not verdicts:
        return "could not be compared with another mixture"
    if won == len(verdicts):
        return {1: "beat the one other mixture", 2: "beat both other mixtures"}.get(won, f"beat all {won} other mixtures")
    parts = [f"lost to {lost or 'none'}"] + ([f"tied with {tied}"] if tied else [])
    return f"beat {won or 'none'} of {len(verdicts)} other mixture{'s' * (len(verdicts) > 1)}, {' and '.join(parts)}"


def _difference(bits: Comparison, objective: Comparison, units: tuple[str, str]) -> str:
    """The difference in the unit of losses with its own interval; the objective's too where it alone explains the verdict."""

    def size(value: float) -> str:
        return f"{abs(value):.4f}"

    ends = (bits.low, bits.high) if bits.mean > 0 else (bits.high, bits.low)
    if bits.low <= 0 <= bits.high:
        interval = f"from {size(bits.low)} lower to {size(bits.high)} higher"
    else:
        interval = f"{size(ends[0])} to {size(ends[1])}"
    text = f"{size(bits.mean)} {units[1]} {'higher' if bits.mean > 0 else 'lower'} ({CONFIDENCE:.0%} interval {interval})"
    if bits.verdict != objective.verdict:
        text += f", but judged by the objective, {objective.mean:+.3g} {units[0]} ({objective.low:+.3g} to {objective.high:+.3g})"
    return text


def _called(names: Sequence[str]) -> str:
    also = ", ".join(map(spoken, names[1:]))
    return f"{spoken(names[0])} ({also})" if also else spoken(names[0])


def spoken(name: str) -> str:
    """An arm as a sentence calls it."""
    return SPOKEN.get(name, name.replace("_", " "))
