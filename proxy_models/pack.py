"""The members of a pack while they train: their records, the stacked model, and dropping those that diverged.

A `MemberRun` is everything of one member that is not a weight; a `Pack` keeps runs, model and optimizer in step. What happens to one
member never touches another: the step of a diverged member is not taken, and it is compacted away before the next. Trade-off: compaction
copies the pack, which is rare; in exchange no dead member costs compute.

Legend: K pack members, B windows per step, T tokens per window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proxy_models.checkpoint import (
    CHECKPOINT_NAME,
    WEIGHTS_NAME,
    Checkpoint,
    save_checkpoints,
    with_prefix,
)
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSet, evaluate
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW
from proxy_models.sampler import MemberSampler, next_windows
from proxy_models.specs import MemberFailure, MemberResult, MemberSpec, TrainSettings

# Points of the training loss kept in a result.
CURVE_POINTS = 64


@dataclass
class MemberRun:
    """One member in training.

    Attributes:
        spec_hash: what its checkpoints are bound to.
        folder: where checkpoint and weights go.
        resumed: the checkpoint to start from, until the pack has taken its tensors.
        losses_nats, gradient_norms: one per step taken.
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

    def result(self, config: ProxyConfig, settings: TrainSettings, load_LE: list[list[float]]) -> MemberResult:
        """The result at the end of training; `load_LE` is the share of rows per layer and expert in the last step."""
        tokens = self.step * settings.tokens_per_step
        diagnostics: dict[str, Any] = {
            "steps": self.step,
            "epochs": self.sampler.epochs(),
            "gradient_norm": {"median": float(np.median(self.gradient_norms)), "max": max(self.gradient_norms)},
            "expert_load": {"least": [min(shares) for shares in load_LE], "largest": [max(shares) for shares in load_LE]},
            "training_loss": _curve(self.losses_nats, settings.tokens_per_step),
            "documents_per_window": "several",
        }
        return MemberResult(
            member_id=self.spec.member_id,
            realized=self.sampler.realized(),
            measurements=tuple(self.measurements),
            tokens=tokens,
            flops=tokens * config.training_flops_per_token(settings.window),
            seconds=self.seconds,
            diagnostics=diagnostics,
        )


class Pack:
    """Members at the same step, trained together.

    Args:
        runs: at least one, all at the same step; those with a checkpoint start from its tensors.

    Raises:
        ValueError: a checkpoint's tensors do not fit the model.
    """

    def __init__(self, config: ProxyConfig, settings: TrainSettings, runs: Sequence[MemberRun], device: torch.device | str) -> None:
        assert runs
        assert len({run.step for run in runs}) == 1, "members of a pack are at one step"
        self.config, self.settings, self.device = config, settings, device
        self.runs = list(runs)
        self.model = PackedProxy(config, [run.spec.seed for run in runs], device)
        rates = [run.spec.learning_rate for run in runs]
        self.optimizer = PackedAdamW(self.model, rates, weight_decay=settings.weight_decay, clip=settings.clip)
        for k, run in enumerate(self.runs):
            if run.resumed is not None:
                self.model.load_member_state(k, run.resumed.part("model"))
                self.optimizer.load_member_state(k, run.resumed.part("optimizer"))
                run.resumed = None

    @property
    def step(self) -> int:
        return self.runs[0].step

    def train_step(self) -> list[MemberFailure]:
        """One optimizer step of every member; members whose loss or gradient is not finite do not take it and are dropped."""
        windows_KBS = next_windows([run.sampler for run in self.runs], self.settings.windows_per_step)
        tokens_KBS = torch.from_numpy(windows_KBS).to(self.device)
        loss_K = self.model.training_loss(tokens_KBS)
        losses_nats: list[float] = loss_K.detach().tolist()
        finite_loss_K = [math.isfinite(loss) for loss in losses_nats]
        loss_K.sum().backward()
        scale = self.settings.rate_scale(self.step)
        norms_K, finite_gradient_K = self.optimizer.step([scale] * len(self.runs), finite_loss_K)
        self.optimizer.zero_grad()
        stepped_K = [loss and gradient for loss, gradient in zip(finite_loss_K, finite_gradient_K, strict=True)]
        self.model.update_router_bias(stepped_K)
        failures: dict[int, MemberFailure] = {}
        for k, run in enumerate(self.runs):
            if stepped_K[k]:
                run.step += 1
                run.losses_nats.append(losses_nats[k])
                run.gradient_norms.append(norms_K[k])
            else:
                what = f"Training loss became {losses_nats[k]}" if not finite_loss_K[k] else f"Gradient norm became {norms_K[k]}"
                failures[k] = run.failure(what, self.settings.tokens_per_step)
        return self._drop(failures)

    def measure(self, evaluations: Sequence[EvaluationSet]) -> list[MemberFailure]:
        """Scores every member, at the end of training on the larger subsets; members whose loss is not finite are dropped."""
        scores = evaluate(self.model, evaluations, "end" if self.step == self.settings.steps else "curve")
        tokens = self.step * self.settings.tokens_per_step
        failures: dict[int, MemberFailure] = {}
        for k, run in enumerate(self.runs):
            unfit = [score for score in scores[k] if not (math.isfinite(score.loss_nats) and math.isfinite(score.bits_per_byte))]
            if unfit:
                failures[k] = run.failure(f"Loss on {unfit[0].key} became {unfit[0].loss_nats}", self.settings.tokens_per_step)
            run.measurements += [(score.key, tokens, score.loss_nats, score.bits_per_byte) for score in scores[k]]
        return self._drop(failures)

    def save(self) -> None:
        """Writes the checkpoint of every member."""
        save_checkpoints({run.folder / CHECKPOINT_NAME: run.checkpoint(self._tensors(k)) for k, run in enumerate(self.runs)})

    def finish(self) -> list[MemberResult]:
        """Results of the members at the end of training.

        Writes weights first, then a last checkpoint that holds the result alone, so that a caller that dies before it has stored a result
        gets it again without training.
        """
        loads = self.model.load_statistics()
        results = [run.result(self.config, self.settings, loads[k]) for k, run in enumerate(self.runs)]
        states = [with_prefix("model", self.model.member_state(k)) for k in range(len(self.runs))]
        facts = [{"spec": run.spec_hash} for run in self.runs]
        save_checkpoints(
            {run.folder / WEIGHTS_NAME: Checkpoint(*both) for run, both in zip(self.runs, zip(states, facts, strict=True), strict=True)}
        )
        save_checkpoints(
            {
                run.folder / CHECKPOINT_NAME: Checkpoint({}, {"spec": run.spec_hash, "result": result.to_json()})
                for run, result in zip(self.runs, results, strict=True)
            }
        )
        return results

    def _tensors(self, k: int) -> dict[str, Tensor]:
        return {**with_prefix("model", self.model.member_state(k)), **with_prefix("optimizer", self.optimizer.member_state(k))}

    def _drop(self, failures: dict[int, MemberFailure]) -> list[MemberFailure]:
        keep = [k for k in range(len(self.runs)) if k not in failures]
        if failures and keep:
            self.model = self.model.select(keep)
            self.optimizer = self.optimizer.select(keep, self.model)
        if failures:
            self.runs = [self.runs[k] for k in keep]
        return list(failures.values())


def _curve(losses_nats: Sequence[float], tokens_per_step: int) -> list[list[float]]:
    """Training loss as at most 64 points (tokens, mean nats since the point before)."""
    ends = sorted({math.ceil(len(losses_nats) * (index + 1) / CURVE_POINTS) for index in range(CURVE_POINTS)})
    starts = [0, *ends[:-1]]
    return [[end * tokens_per_step, math.fsum(losses_nats[start:end]) / (end - start)] for start, end in zip(starts, ends, strict=True)]
