"""The members of a pack while they train: their records, the places they have, and how they come and go.

A `MemberRun` is everything of one member that is not a weight; a `Pack` keeps runs and weights in step. What happens to one member never
touches another: the step of a diverged member is not taken, what only one member runs into ends that member, and a place that becomes free
is taken by the next member or compacted away. Trade-off: compaction copies the pack, which is rare; in exchange no dead member costs compute.

Legend: K places, B windows per step, S = T + 1 tokens of a window, of which T are predicted.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxy_models.balancing import Loads, Routed, normalized_entropy
from proxy_models.beginning import first_weights
from proxy_models.checkpoint import (
    CHECKPOINT_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    save_checkpoints,
    with_prefix,
)
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSet, Which, evaluate, with_curve_rows
from proxy_models.pack_step import VACANT_SEED, PackStep, step_type_for
from proxy_models.places import places_for
from proxy_models.sampler import Batch, MemberSampler, next_batch
from proxy_models.specs import MemberFailure, MemberResult, MemberSpec, TrainSettings, about_memory, own_failure

# Points of the training loss kept in a result.
CURVE_POINTS = 64


@dataclass(eq=False)
class MemberRun:
    """One member in training.

    Attributes:
        spec_hash: what its checkpoints are bound to.
        folder: where checkpoint and weights go.
        resumed: the checkpoint to start from, until the pack has taken its tensors.
        losses_nats, gradient_norms: one per step taken.
        routed: key of a held-out set -> what the routers did with it, once it was measured at the end.
    """

    spec: MemberSpec
    spec_hash: str
    folder: Path
    sampler: MemberSampler
    resumed: Checkpoint | None = None
    step: int = 0
    seconds: float = 0.0
    losses_nats: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    measurements: list[tuple[str, int, float, float]] = field(default_factory=list)
    routed: dict[str, Routed] = field(default_factory=dict)

    def resume(self, checkpoint: Checkpoint) -> None:
        """Takes over the records of `checkpoint`; the pack takes its tensors."""
        facts = checkpoint.facts
        self.sampler.load_state(facts["sampler"])
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.measurements = [(key, tokens, nats, bits) for key, tokens, nats, bits in facts["measurements"]]
        history = checkpoint.part("history")
        self.losses_nats, self.gradient_norms = history["losses_nats"].tolist(), history["gradient_norms"].tolist()
        self.resumed = checkpoint

    def checkpoint(self, tensors: dict[str, Tensor]) -> Checkpoint:
        """Records and `tensors`, which `resume` and the pack take over."""
        history = {
            "losses_nats": torch.tensor(self.losses_nats, dtype=torch.float64),
            "gradient_norms": torch.tensor(self.gradient_norms, dtype=torch.float64),
        }
        facts = {
            "spec": self.spec_hash,
            "step": self.step,
            "seconds": self.seconds,
            "sampler": self.sampler.state(),
            "measurements": self.measurements,
        }
        return Checkpoint({**tensors, **with_prefix("history", history)}, facts)

    def failure(self, what: str, tokens_per_step: int) -> MemberFailure:
        tokens = self.step * tokens_per_step
        message = f"{what} after {tokens} tokens (step {self.step}, learning rate {self.spec.learning_rate:g})."
        return MemberFailure(self.spec.member_id, "diverged", message, tokens)

    def result(self, config: ProxyConfig, settings: TrainSettings, loads: Loads, computed: Mapping[str, Any]) -> MemberResult:
        """The result at the end of training; `loads` are the rows per layer and expert, `computed` says by what."""
        tokens = self.step * settings.tokens_per_step
        load_LE = [[rows / sum(rows_E) for rows in rows_E] for rows_E in loads.last_LE]
        diagnostics: dict[str, Any] = {
            "steps": self.step,
            "epochs": self.sampler.epochs(),
            "scored_tokens": self.sampler.scored_tokens(),
            "padding_tokens": self.sampler.padding_tokens(),
            "gradient_norm": {"median": float(np.median(self.gradient_norms)), "max": max(self.gradient_norms)},
            "expert_load": {"least": [min(shares) for shares in load_LE], "largest": [max(shares) for shares in load_LE]},
            "training_loss": _curve(self.losses_nats, settings.tokens_per_step),
            "documents_per_window": "several",
            "compute": dict(computed),
        }
        if config.n_experts:
            diagnostics["balance"] = self._balance(config, settings, loads)
        if self.spec.beginning is not None:
            kind, parent, reinitialized = self.spec.beginning.identity()
            diagnostics["beginning"] = {"kind": kind, "parent": parent, "reinitialized": reinitialized}
        return MemberResult(
            member_id=self.spec.member_id,
            realized=self.sampler.realized(),
            measurements=tuple(self.measurements),
            tokens=tokens,
            flops=tokens * config.training_flops_per_token(settings.window),
            seconds=self.seconds,
            diagnostics=diagnostics,
        )

    def _balance(self, config: ProxyConfig, settings: TrainSettings, loads: Loads) -> dict[str, Any]:
        """How evenly the experts were used; whole numbers of rows, so that whoever reads them can add them up."""
        each_step = settings.tokens_per_step * config.top_k
        return {
            "experts_per_token": config.top_k,
            "last_step_rows": loads.last_LE,
            "recent_rows": loads.counted_LE,
            "recent_steps": sum(loads.counted_LE[0]) // each_step,
            "entropy": normalized_entropy(list(self.routed.values()), config.n_experts),
            "rows_by_set": {key: [list(rows_E) for rows_E in routed.rows_LE] for key, routed in self.routed.items()},
        }


class Pack:
    """Members that train together, each at a step of its own, in places that others take when they leave.

    Steps may be heard of late (`PackStep`): `run.step` counts steps issued, `run.losses_nats` those known to be taken. Whatever looks at weights
    waits for all reports first. A member that fails leaves at once; `failed` tells of it.

    Args:
        places: most members at once.
        step_type: how places step; None: as is usual on the device.
    """

    def __init__(
        self, config: ProxyConfig, settings: TrainSettings, places: int, device: torch.device | str, step_type: type[PackStep] | None = None
    ) -> None:
        assert places >= 1
        self.config, self.settings, self.device, self.limit = config, settings, device, places
        self._step_type = step_type_for(device) if step_type is None else step_type
        self._step: PackStep | None = None  # until the first members come
        self._places: list[MemberRun | None] = []
        self._issued: deque[tuple[MemberRun | None, ...]] = deque()
        self._failures: list[MemberFailure] = []
        self._measured_steps = frozenset(settings.measured_steps)

    @property
    def runs(self) -> list[MemberRun]:
        """The members in training, in the order of their places."""
        return [run for run in self._places if run is not None]

    def failed(self) -> list[MemberFailure]:
        """The members that failed since this was asked last; they are no longer in the pack."""
        failures, self._failures = self._failures, []
        return failures

    # Who is in the pack

    def places(self, newcomers: int, waiting: int) -> int:
        """Places of the next step, if so many newcomers will join and `waiting` more could."""
        return places_for(len(self.runs) + newcomers, waiting, self.limit, self._step_type.fixed_places)

    def arrange(self, newcomers: Sequence[MemberRun], waiting: int) -> None:
        """Gives newcomers their places, and compacts the pack when more places are vacant than `waiting` further members would take."""
        if not newcomers and self.places(0, waiting) >= len(self._places):
            return  # before it is heard of the last steps
        self._settle()
        places = self.places(len(newcomers), waiting)
        if self._step is None and newcomers:
            self._step = self._first_step(newcomers, places)
            self._places = [None] * places
            for k, run in enumerate(newcomers):
                self._take(k, run, fresh=True)
        else:
            assert places <= len(self._places), "a pack never grows, because those who wait never become more"
            vacant = (k for k, run in enumerate(self._places) if run is None)
            for run, k in zip(newcomers, vacant, strict=False):
                self._take(k, run, fresh=False)
        if self.runs and places < len(self._places):
            keep = sorted(range(len(self._places)), key=lambda k: self._places[k] is None)[:places]
            self._stepper.select(keep)
            self._places = [self._places[k] for k in keep]

    def leave(self, runs: Sequence[MemberRun]) -> None:
        """Takes these members out; their places are vacant until the pack is arranged anew."""
        self._settle()
        self._places = [None if run in runs else run for run in self._places]

    @property
    def _stepper(self) -> PackStep:
        assert self._step is not None, "the pack has had members"
        return self._step

    def _first_step(self, runs: Sequence[MemberRun], places: int) -> PackStep:
        vacant = places - len(runs)
        seeds = [run.spec.seed for run in runs] + [VACANT_SEED] * vacant
        rates = [run.spec.learning_rate for run in runs] + [0.0] * vacant
        return self._step_type(self.config, self.settings, seeds, rates, self.device)

    def _take(self, k: int, run: MemberRun, fresh: bool) -> None:
        """Puts a member at a place; `fresh`: the place was made for it, with the weights of its seed."""
        state = run.resumed.tensors if run.resumed is not None else None
        run.resumed = None
        self._places[k] = run
        beginning = run.spec.beginning
        if fresh and state is None and beginning is None:
            return
        try:
            if state is None and beginning is not None:
                state = with_prefix("model", first_weights(self.config, run.spec.seed, beginning))
            self._stepper.place(k, run.spec.seed, run.spec.learning_rate, state)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this member's own
            self._fail_alone(run, error)

    # Steps

    def train_step(self) -> None:
        """One optimizer step of every member; those whose loss or gradient is not finite do not take it and leave, now or once it is known."""
        batch = self._draw()
        if not self.runs:
            return
        scale_of = {step: self.settings.rate_scale(step) for step in {run.step for run in self.runs}}
        scales = [0.0 if run is None else scale_of[run.step] for run in self._places]
        for k, run in enumerate(self._places):
            if run is not None and run.step == self.settings.steps - self.settings.recent_steps:
                self._stepper.count_load_anew(k)
        scored_KBT = None if batch.scored_KBT is None else torch.from_numpy(batch.scored_KBT)
        self._stepper.step(torch.from_numpy(batch.tokens_KBS), scales, [run is not None for run in self._places], scored_KBT)
        self._issued.append(tuple(self._places))
        for run in self.runs:
            run.step += 1
        self._collect(wait=False)

    def _draw(self) -> Batch:
        """The next windows of every place, zeros of which none is scored where it is vacant; a member whose data cannot be read leaves."""
        windows, window = self.settings.windows_per_step, self.settings.window
        tokens_KBS = np.zeros((len(self._places), windows, window + 1), dtype=np.int64)
        taken = [k for k, run in enumerate(self._places) if run is not None]
        masked = any(run.sampler.has_prompts for run in self.runs)
        scored_KBT = np.zeros((len(self._places), windows, window), dtype=np.bool_) if masked else None

        def put(places: list[int], batch: Batch) -> None:
            tokens_KBS[places] = batch.tokens_KBS
            if scored_KBT is not None:
                scored_KBT[places] = True if batch.scored_KBT is None else batch.scored_KBT

        try:
            put(taken, next_batch([run.sampler for run in self.runs], windows))
        except Exception:  # noqa: BLE001 - whose trouble it is shows one by one
            for k, run in enumerate(self._places):
                if run is not None:
                    try:
                        put([k], run.sampler.next_batch(windows))
                    except Exception as error:  # noqa: BLE001 - whatever it is, it is this member's own
                        self._fail_alone(run, error)
        return Batch(tokens_KBS, scored_KBT)

    def _settle(self) -> None:
        """Waits until it is known how every step went."""
        if self._issued:
            self._collect(wait=True)

    def _collect(self, wait: bool) -> None:
        for report in self._stepper.reports(wait):
            for k, run in enumerate(self._issued.popleft()):
                if run is None or self._places[k] is not run:
                    continue  # it has left since; nobody takes a place before all is heard
                loss, norm = report.losses_nats_K[k], report.norms_K[k]
                if report.stepped_K[k]:
                    run.losses_nats.append(loss)
                    run.gradient_norms.append(norm)
                else:
                    run.step = len(run.losses_nats)
                    self._fail(run, f"Training loss became {loss}" if not math.isfinite(loss) else f"Gradient norm became {norm}")

    def measure(self, evaluations: Sequence[EvaluationSet]) -> None:
        """Scores the members that are due, at their end on the larger subsets; a member whose loss is not finite leaves."""
        if not any(run.step in self._measured_steps for run in self.runs):
            return
        self._settle()
        for which in ("curve", "end"):
            due = [k for k, run in enumerate(self._places) if run is not None and self._due(run) == which]
            if due:
                self._measure_together(due, evaluations, which)

    def _due(self, run: MemberRun) -> Which | None:
        if run.step not in self._measured_steps:
            return None
        return "end" if run.step == self.settings.steps else "curve"

    def _measure_together(self, due: Sequence[int], evaluations: Sequence[EvaluationSet], which: Which) -> None:
        """Scores the members at these places; one after the other if it cannot be done together, so that a failure stays with who causes it."""
        try:
            scores = evaluate(self._stepper.scoring_model(due), evaluations, which)
        except Exception as error:  # noqa: BLE001 - told apart below
            if len(due) > 1 and not about_memory(error):
                for k in due:
                    self._measure_together([k], evaluations, which)
                return
            self._fail_alone(self._run_at(due[0]), error)
            return
        for run, scored in zip([self._run_at(k) for k in due], scores, strict=True):
            tokens = run.step * self.settings.tokens_per_step
            run.measurements += [(score.key, tokens, score.loss_nats, score.bits_per_byte) for score in with_curve_rows(scored)]
            run.routed |= {score.key: score.routed for score in scored if score.routed is not None}
            unfit = [score for score in scored if not (math.isfinite(score.loss_nats) and math.isfinite(score.bits_per_byte))]
            if unfit:
                self._fail(run, f"Loss on {unfit[0].key} became {unfit[0].loss_nats}")

    def _run_at(self, k: int) -> MemberRun:
        run = self._places[k]
        assert run is not None
        return run

    # What is written

    def save(self, runs: Sequence[MemberRun] | None = None) -> None:
        """Writes the checkpoints of these members; None: of all. A member whose checkpoint cannot be written leaves."""
        self._settle()
        wanted = self.runs if runs is None else runs
        saved = {k: run for k, run in enumerate(self._places) if run is not None and run in wanted}
        self._write(saved, lambda k, run: {run.folder / CHECKPOINT_NAME: run.checkpoint(self._stepper.member_state(k))})

    def finish(self) -> list[MemberResult]:
        """Results of the members that are at the end of training; they leave.

        Writes weights first, then a last checkpoint that holds the result alone, so that a caller that dies before it has stored a result
        gets it again without training.
        """
        ended = {k: run for k, run in enumerate(self._places) if run is not None and run.step == self.settings.steps}
        if not ended:
            return []
        self._settle()
        ended = {k: run for k, run in ended.items() if self._places[k] is run}
        stepper = self._stepper
        results = {k: run.result(self.config, self.settings, stepper.loads(k), stepper.diagnostics(k)) for k, run in ended.items()}
        self._write(ended, lambda k, run: {run.folder / WEIGHTS_NAME: Checkpoint(self._stepper.weights(k), {"spec": run.spec_hash})})
        ended = {k: run for k, run in ended.items() if self._places[k] is run}
        last = {k: Checkpoint({}, {"spec": run.spec_hash, "result": results[k].to_json()}) for k, run in ended.items()}
        self._write(ended, lambda k, run: {run.folder / CHECKPOINT_NAME: last[k]})
        ended = {k: run for k, run in ended.items() if self._places[k] is run}
        self.leave(list(ended.values()))
        return [results[k] for k in ended]

    def _write(self, runs: Mapping[int, MemberRun], files: Callable[[int, MemberRun], dict[Path, Checkpoint]]) -> None:
        """Writes files of these members together; one after the other if that fails, so that it costs only the members it concerns."""
        try:
            save_checkpoints({path: content for k, run in runs.items() for path, content in files(k, run).items()})
        except Exception as error:  # noqa: BLE001 - told apart below
            if len(runs) > 1 and not about_memory(error):
                for k, run in runs.items():
                    self._write({k: run}, files)
                return
            self._fail_alone(next(iter(runs.values())), error)

    # Who fails

    def _fail(self, run: MemberRun, what: str) -> None:
        self._failures.append(run.failure(what, self.settings.tokens_per_step))
        self._vacate(run)

    def _fail_alone(self, run: MemberRun, error: Exception) -> None:
        """Lets a member go for what it alone has run into. Too little memory is nobody's own trouble, and is raised."""
        if about_memory(error):
            raise error
        self._failures.append(own_failure(run.spec.member_id, error, run.step * self.settings.tokens_per_step))
        self._vacate(run)

    def _vacate(self, run: MemberRun) -> None:
        self._places = [None if other is run else other for other in self._places]


def _curve(losses_nats: Sequence[float], tokens_per_step: int) -> list[list[float]]:
    """Training loss as at most 64 points (tokens, mean nats since the point before)."""
    ends = sorted({math.ceil(len(losses_nats) * (index + 1) / CURVE_POINTS) for index in range(CURVE_POINTS)})
    starts = [0, *ends[:-1]]
    return [[end * tokens_per_step, math.fsum(losses_nats[start:end]) / (end - start)] for start, end in zip(starts, ends, strict=True)]
