"""Trains a pack: several proxies in one process, each with its own mixture, seed, learning rate and data order.

`train_pack` is a function of its arguments: no command line, globals or environment variables. Resuming and stopping are part of it, because
a pack is long and machines are not reliable: every member has a checkpoint of its own, and a run that was interrupted anywhere ends with the
same weights, bit for bit on the same machine with the same members. Trade-off: losses come to the host after every step, so that a diverged member is found
before it steps; on a GPU that costs one wait per step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from proxy_models import ENGINE_VERSION
from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, Checkpoint, finish, load_matching
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSet, EvaluationSpec
from proxy_models.pack import MemberRun, Pack
from proxy_models.products import fast_products
from proxy_models.sampler import DomainStream, MemberSampler
from proxy_models.specs import MemberFailure, MemberResult, MemberSpec, TrainingStopped, TrainSettings, spec_hash

__all__ = [
    "DomainStream",
    "EvaluationSpec",
    "MemberFailure",
    "MemberResult",
    "MemberSpec",
    "TrainSettings",
    "TrainingStopped",
    "finish",
    "train_pack",
]

Progress = Callable[[Mapping[str, int]], None]
ShouldStop = Callable[[], bool]


@fast_products()
def train_pack(
    config: ProxyConfig,
    settings: TrainSettings,
    members: Sequence[MemberSpec],
    evaluations: Sequence[EvaluationSpec],
    folders: Mapping[str, Path],
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
    should_stop: ShouldStop | None = None,
) -> list[MemberResult | MemberFailure]:
    """Trains `members` together; returns what became of each, in their order.

    A member whose folder holds a checkpoint of the same specification goes on from it; one whose folder holds a result (its caller died before
    `finish`) is not trained again. Members at different steps are trained one group after the other.

    Args:
        folders: member_id -> where its `checkpoint.safetensors` and, at the end, `weights.safetensors` go.
        on_progress: told the training tokens done of each member after every step.
        should_stop: asked before every step.

    Raises:
        TrainingStopped: `should_stop` was true; the checkpoints are written.
        ValueError: a specification is wrong, data is too short for a window, or a vocabulary does not fit the model.
        DamagedTokenFile, FileNotFoundError: a token file cannot be read.
    """
    if len({member.member_id for member in members}) != len(members):
        raise ValueError(f"Member ids repeat: {sorted(member.member_id for member in members)}.")
    loaded = [EvaluationSet(spec, settings.window) for spec in evaluations]
    _check_vocabulary(config, {str(one.spec.path): one.vocab_size for one in loaded})
    outcomes: dict[str, MemberResult | MemberFailure] = {}
    groups: dict[int, list[MemberRun]] = {}
    for member in members:
        folder = folders[member.member_id]
        identity = spec_hash(ENGINE_VERSION, config, settings, member, evaluations)
        checkpoint = load_matching(folder / CHECKPOINT_NAME, identity)
        if checkpoint is not None and "result" in checkpoint.facts:
            if load_matching(folder / WEIGHTS_NAME, identity) is not None:
                result = MemberResult.from_json({**checkpoint.facts["result"], "member_id": member.member_id})
                outcomes[member.member_id] = result
                continue
            checkpoint = None
        run = _start(config, settings, member, identity, folder, checkpoint)
        groups.setdefault(run.step, []).append(run)
    for _, runs in sorted(groups.items(), reverse=True):
        for outcome in _train_group(Pack(config, settings, runs, device), loaded, on_progress, should_stop):
            outcomes[outcome.member_id] = outcome
    return [outcomes[member.member_id] for member in members]


def _start(
    config: ProxyConfig, settings: TrainSettings, member: MemberSpec, identity: str, folder: Path, checkpoint: Checkpoint | None
) -> MemberRun:
    windows = settings.steps * settings.windows_per_step
    sampler = MemberSampler(member.seed, member.domains, member.weights, member.fractions, windows, settings.window)
    _check_vocabulary(config, {f"A domain of {member.member_id}": sampler.vocab_size})
    run = MemberRun(member, identity, folder, sampler)
    if checkpoint is not None:
        run.resume(checkpoint)
    return run


def _train_group(
    pack: Pack, evaluations: Sequence[EvaluationSet], on_progress: Progress | None, should_stop: ShouldStop | None
) -> list[MemberResult | MemberFailure]:
    """Trains the members of one pack from their common step to the end."""
    settings = pack.settings
    failures: list[MemberFailure] = []
    saved_at = mark = time.monotonic()
    while pack.runs and pack.step < settings.steps:
        if should_stop is not None and should_stop():
            pack.save()
            raise TrainingStopped(f"Training stopped at step {pack.step} of {settings.steps}.")
        runs = tuple(pack.runs)
        failures += pack.train_step()
        if pack.runs and pack.step in settings.measured_steps:
            failures += pack.measure(evaluations)
        now = time.monotonic()
        for run in runs:
            run.seconds += (now - mark) / len(runs)
        mark = now
        if on_progress is not None:
            on_progress({run.spec.member_id: run.step * settings.tokens_per_step for run in runs})
        if pack.runs and pack.step < settings.steps and now - saved_at >= settings.checkpoint_seconds:
            pack.save()
            saved_at = time.monotonic()
    return [*failures, *(pack.finish() if pack.runs else [])]


def _check_vocabulary(config: ProxyConfig, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size > config.vocab_size:
            raise ValueError(f"{name} has a vocabulary of {size} entries, the model {config.vocab_size}.")
