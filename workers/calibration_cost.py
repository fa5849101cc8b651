"""What a calibration will take, by the plan's own arithmetic, and what its trials took: time, speed, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mixopt.calibration.design import CalibrationPlan
from mixopt.calibration.result import Resources
from mixopt.cost import Machine, Shape, Speed
from mixopt.errors import RunError
from mixopt.history import History
from mixopt.trial import Outcome, Source, Trial
from workers.compose import Search
from workers.convert import CostModel, proxy_of, shape_of
from workers.evaluations import EVALUATION_SHARE
from workers.machine import look_at, this_machine
from workers.memory import GPU_PROCESS_BYTES, pack_memory_bytes
from workers.packing import Device
from workers.planning.estimate import share_of_measuring
from workers.planning.expected_corpus import corpus_of
from workers.planning.makespan import schedule_together
from workers.planning.speed import choose_speed, measured_speed, trained_here
from workers.trial_folder import TrialFolder


@dataclass(frozen=True)
class Cost:
    """What a calibration takes, before it runs; `reused` of its trials are trained. Seconds contain the base, which is none of its trials."""

    trials: int
    reused: int
    seconds: float
    sentence: str


@dataclass(frozen=True)
class Pricing:
    """Prices trials as the planner does: by the speeds in the record, or an assumed one.

    Attributes:
        shares: source key -> cost of measuring losses as a share of the training.
    """

    search: Search
    machine: Machine
    recorded: Mapping[Shape, tuple[float, int]]
    shares: Mapping[str, float]
    _speeds: dict[Shape, Speed] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, search: Search, history: History) -> Pricing:
        try:
            machine = look_at(search.experiment)
        except RunError:
            machine = this_machine(search.experiment)  # that no cluster answers is said when the runner starts
        corpus = corpus_of(search.experiment)
        shares = {f.source.key: share_of_measuring(search, corpus, f) for f in (search.factory, search.verification_factory)}
        every = [r for known in (*history.searches(), *history.calibrations()) for r in history.trials(known.search_id)]
        here = every if machine.where != "this machine" else trained_here(search.store, every)
        return cls(search, machine, measured_speed(here, shares, EVALUATION_SHARE), shares)

    def speed(self, trial: Trial) -> Speed:
        shape = shape_of(trial)
        if shape not in self._speeds:
            self._speeds[shape] = choose_speed(shape, self.recorded, {}, self.machine.device, self.machine.where)
        return self._speeds[shape]

    def share(self, trial: Trial) -> float:
        """Cost of measuring; a longer run is scored on as much as the shorter one, and that is less of its training."""
        factory = self.search.factory
        if trial.source.key not in self.shares and trial.source.size == factory.source.size and trial.inputs == factory.inputs:
            return self.shares[factory.source.key] * factory.source.tokens / trial.source.tokens
        return self.shares.get(trial.source.key, EVALUATION_SHARE)

    def seconds(self, trial: Trial) -> float:
        """Training and measuring on one slot."""
        return CostModel(self.speed(trial).flops_per_second).seconds(trial) * (1 + self.share(trial))

    def tokens_per_second(self, trial: Trial) -> float:
        """Of one slot, measuring included."""
        per_token = proxy_of(trial).training_flops_per_token(int(trial.recipe["window"]))
        return self.speed(trial).flops_per_second / per_token / (1 + self.share(trial))

    def cost(self, title: str, plans: Sequence[CalibrationPlan]) -> Cost:
        """What a calibration takes, with the packs and slots that will run."""
        trials = {trial.trial_id: trial for plan in plans for trial in plan.trials}
        left = {key: trial for key, trial in trials.items() if TrialFolder(self.search.store, key).read_outcome() is None}
        reused = len(trials) - len(left)
        machine, pack_size = self.machine, self.search.experiment.ray.pack_size
        bases = [
            base
            for base in bases_of(self.search, list(left.values()))
            if TrialFolder(self.search.store, base.trial_id).read_outcome() is None
        ]
        seconds = sum(self.seconds(base) for base in bases)  # alone, before all that begin with it
        for plan in plans:  # one after the other; what two share is trained by the first
            mine = [left.pop(trial.trial_id) for trial in plan.trials if trial.trial_id in left]
            seconds += schedule_together(mine, self.seconds, machine.slots, pack_size, machine.device).seconds if mine else 0.0
        assumed = [trial for trial in (*trials.values(), *bases) if self.speed(trial).origin == "assumed"]
        basis = "at an assumed speed, since nothing was measured here" if assumed else "at the speed of trials in the record"
        sentence = (
            f"Calibrating {title}: {len(trials)} trials, {reused} of them in the record, {_and_bases(bases)}"
            f"about {minutes(seconds)} on {machine.slots} slot{'s' * (machine.slots != 1)} ({basis})."
        )
        return Cost(len(trials), reused, seconds, sentence)


def _and_bases(bases: Sequence[Trial]) -> str:
    return f"and {' and '.join(base.source.key for base in bases)} first, to begin with, " if bases else ""


def bases_of(search: Search, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that these begin with."""
    wanted = {parent for trial in trials for parent in trial.inputs}
    return [base for base in (search.base, search.verification_base) if base is not None and base.trial_id in wanted]


def minutes(seconds: float) -> str:
    """As people say it."""
    return f"{seconds / 60:.0f} minutes" if seconds >= 90 else f"{seconds:.0f} seconds"


def resources_of(
    trials: Sequence[Trial], finished: Mapping[str, Outcome], in_process: bool, pricing: Pricing | None = None
) -> tuple[Resources, ...]:
    """Speed and memory by source, of the trials that ended.

    Args:
        in_process: packs ran beside the driver in one process, from which their memory cannot be told.
        pricing: what speeds are compared with.
    """
    by_source: dict[Source, list[tuple[Trial, Outcome]]] = {}
    for trial in trials:
        outcome = finished.get(trial.trial_id)
        if outcome is not None and outcome.seconds > 0:
            by_source.setdefault(trial.source, []).append((trial, outcome))
    return tuple(_resources(source, runs, in_process, pricing) for source, runs in by_source.items())


def _resources(source: Source, runs: Sequence[tuple[Trial, Outcome]], in_process: bool, pricing: Pricing | None) -> Resources:
    one, outcomes = runs[0][0], [outcome for _, outcome in runs]
    speed = sum(outcome.tokens for outcome in outcomes) / sum(outcome.seconds for outcome in outcomes)
    expected = None if pricing is None else pricing.tokens_per_second(one)
    largest = None if in_process else _largest_pack(outcomes)
    if largest is None:
        return Resources(source, len(runs), speed, expected)
    members, peak, device = largest
    shape = shape_of(one)
    estimated = pack_memory_bytes(proxy_of(one), shape.window, shape.tokens_per_step, members, device)
    estimated -= GPU_PROCESS_BYTES if device == "cuda" else 0.0  # torch counts what it allocated, not the libraries
    return Resources(source, len(runs), speed, expected, members, peak, estimated)


def _largest_pack(outcomes: Sequence[Outcome]) -> tuple[int, float, Device] | None:
    """Members, peak memory and device of the largest packs: the least of several, since a worker keeps what an earlier pack took."""
    peaks: dict[tuple[int, Device], list[float]] = {}
    for outcome in outcomes:
        entry = outcome.diagnostics.get("memory")
        if isinstance(entry, Mapping) and entry.get("peak_bytes"):
            device: Device = "cuda" if entry.get("device") == "cuda" else "cpu"
            peaks.setdefault((int(entry["members"]), device), []).append(float(entry["peak_bytes"]))
    if not peaks:
        return None
    members, device = max(peaks)
    return members, min(peaks[members, device]), device
