"""Trains a pack: several proxies in one process, each with its own mixture, seed, learning rate and data order.

`train_pack` is a function of its arguments: no command line, globals or environment variables. A pack has places; members that end, diverge,
fail or are stopped leave theirs, and those who wait take them at the next step, wherever they stand in their training. Every member has a
checkpoint of its own, so it may be interrupted anywhere and go on alone, in another pack or in another process; it ends with the same weights,
bit for bit on the same machine's CPU. The trade-off: who trains beside whom is decided here and step by step, so seconds per member are shares of
what the pack took.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch

from proxy_models import ENGINE_VERSION
from proxy_models.checkpoint import CHECKPOINT_NAME, WEIGHTS_NAME, finish, load_matching
from proxy_models.config import ProxyConfig
from proxy_models.evaluate import EvaluationSet, EvaluationSpec
from proxy_models.pack import MemberRun, Pack
from proxy_models.pack_step import PackStep
from proxy_models.products import fast_products
from proxy_models.sampler import DomainStream, MemberSampler
from proxy_models.specs import (
    Beginning,
    MemberFailure,
    MemberOutcome,
    MemberResult,
    MemberSpec,
    MemberStopped,
    TrainSettings,
    about_memory,
    own_failure,
    spec_hash,
)

__all__ = [
    "Beginning",
    "DomainStream",
    "EvaluationSpec",
    "MemberFailure",
    "MemberOutcome",
    "MemberResult",
    "MemberSpec",
    "MemberStopped",
    "TrainSettings",
    "finish",
    "train_pack",
]

Progress = Callable[[Mapping[str, int]], None]
WhichStop = Callable[[Collection[str]], Collection[str]]
Admit = Callable[[str], bool]
OnOutcome = Callable[[MemberOutcome], None]


@fast_products()
def train_pack(
    config: ProxyConfig,
    settings: TrainSettings,
    members: Sequence[MemberSpec],
    evaluations: Sequence[EvaluationSpec],
    folders: Mapping[str, Path],
    device: torch.device | str = "cpu",
    on_progress: Progress | None = None,
    should_stop: WhichStop | None = None,
    places: int | None = None,
    admit: Admit | None = None,
    on_outcome: OnOutcome | None = None,
    step_type: type[PackStep] | None = None,
) -> list[MemberOutcome]:
    """Trains `members`, as many together as there are places; returns what became of each, in their order.

    A member whose folder holds a checkpoint of the same specification goes on from it; one whose folder holds a result (its caller died before
    `finish`) is not trained again. What only one member runs into (data that cannot be read, a wrong specification) is its `MemberFailure`.

    Args:
        folders: member_id -> where its `checkpoint.safetensors` and, at the end, `weights.safetensors` go.
        on_progress: told the training tokens done of each member in training after every step.
        should_stop: given the ids of members in training or waiting, says which are to stop; asked before every step, so it should answer from
            memory. Those in training get a checkpoint; the others do not lose a step.
        places: most members at once; None: all of them.
        admit: asked when a place is free for the member; False: it is left out, and of no concern here.
        on_outcome: told of each outcome as soon as it is there.
        step_type: as for `Pack`.

    Raises:
        ValueError: member ids repeat, places are below 1, or an evaluation is wrong or of too large a vocabulary.
        DamagedTokenFile, FileNotFoundError: the token file of an evaluation cannot be read.
        MemoryError, torch.OutOfMemoryError, RuntimeError: training itself failed, of which no member alone is the cause; members go on from
            their last checkpoints.
    """
    if len({member.member_id for member in members}) != len(members):
        raise ValueError(f"Member ids repeat: {sorted(member.member_id for member in members)}.")
    if places is not None and places < 1:
        raise ValueError(f"places is {places}; it must be at least 1.")
    loaded = [EvaluationSet(spec, settings.window) for spec in evaluations]
    _check_vocabulary(config, {str(one.spec.path): one.vocab_size for one in loaded})

    def start(member: MemberSpec) -> MemberRun | MemberResult:
        identity = spec_hash(ENGINE_VERSION, config, settings, member, evaluations)
        return _start(config, settings, member, identity, folders[member.member_id])

    pack = Pack(config, settings, places or max(1, len(members)), device, step_type)
    training = _Training(pack, loaded, members, start, on_progress, should_stop, admit, on_outcome)
    training.run()
    return [training.outcomes[member.member_id] for member in members if member.member_id in training.outcomes]


def _start(config: ProxyConfig, settings: TrainSettings, member: MemberSpec, identity: str, folder: Path) -> MemberRun | MemberResult:
    """A member about to take a place, or the result that an earlier caller did not store."""
    checkpoint = load_matching(folder / CHECKPOINT_NAME, identity)
    if checkpoint is not None and "result" in checkpoint.facts:
        if load_matching(folder / WEIGHTS_NAME, identity) is not None:
            return MemberResult.from_json({**checkpoint.facts["result"], "member_id": member.member_id})
        checkpoint = None
    windows = settings.steps * settings.windows_per_step
    sampler = MemberSampler(member.data_seed, member.domains, member.weights, member.fractions, windows, settings.window)
    _check_vocabulary(config, {f"A domain of {member.member_id}": sampler.vocab_size})
    run = MemberRun(member, identity, folder, sampler)
    if checkpoint is not None:
        run.resume(checkpoint)
    return run


class _Training:
    """One call of `train_pack`."""

    def __init__(
        self,
        pack: Pack,
        evaluations: Sequence[EvaluationSet],
        members: Sequence[MemberSpec],
        start: Callable[[MemberSpec], MemberRun | MemberResult],
        on_progress: Progress | None,
        should_stop: WhichStop | None,
        admit: Admit | None,
        on_outcome: OnOutcome | None,
    ) -> None:
        self.outcomes: dict[str, MemberOutcome] = {}
        self._pack, self._evaluations, self._start = pack, evaluations, start
        self._waiting = deque(members)
        self._on_progress, self._should_stop, self._admit, self._on_outcome = on_progress, should_stop, admit, on_outcome
        self._mark = self._saved_at = time.monotonic()

    def run(self) -> None:
        while True:
            self._stop()
            self._fill()
            if self._pack.runs:
                self._step()
            elif not self._waiting:
                return

    def _tell(self, *outcomes: MemberOutcome) -> None:
        for outcome in outcomes:
            self.outcomes[outcome.member_id] = outcome
            if self._on_outcome is not None:
                self._on_outcome(outcome)

    def _stop(self) -> None:
        """Lets those go that are to stop."""
        if self._should_stop is None:
            return
        runs = {run.spec.member_id: run for run in self._pack.runs}
        ids = set(self._should_stop([*runs, *(member.member_id for member in self._waiting)]))
        if not ids:
            return
        stopping = [run for member_id, run in runs.items() if member_id in ids]
        if stopping:
            self._pack.save(stopping)
            self._tell(*self._pack.failed())
            stopping = [run for run in stopping if run in self._pack.runs]
            self._pack.leave(stopping)
        tokens = self._pack.settings.tokens_per_step
        self._tell(*(MemberStopped(run.spec.member_id, run.step * tokens) for run in stopping))
        self._tell(*(MemberStopped(member.member_id, 0) for member in self._waiting if member.member_id in ids))
        self._waiting = deque(member for member in self._waiting if member.member_id not in ids)

    def _fill(self) -> None:
        """Gives vacant places to those who wait, and compacts the pack if too few do."""
        newcomers: list[MemberRun] = []
        while self._waiting and len(self._pack.runs) + len(newcomers) < self._pack.places(len(newcomers), len(self._waiting)):
            member = self._waiting.popleft()
            if self._admit is not None and not self._admit(member.member_id):
                continue
            try:
                started = self._start(member)
            except Exception as error:
                if about_memory(error):
                    raise
                self._tell(own_failure(member.member_id, error, 0))
                continue
            if isinstance(started, MemberResult):
                self._tell(started)
            else:
                newcomers.append(started)
        self._pack.arrange(newcomers, len(self._waiting))
        self._tell(*self._pack.failed())

    def _step(self) -> None:
        """One step of the pack and what follows from it."""
        pack, settings = self._pack, self._pack.settings
        runs = pack.runs
        pack.train_step()
        pack.measure(self._evaluations)
        now = time.monotonic()
        for run in runs:
            run.seconds += (now - self._mark) / len(runs)
        self._mark = now
        if self._on_progress is not None:
            self._on_progress({run.spec.member_id: run.step * settings.tokens_per_step for run in runs})
        self._tell(*pack.failed(), *pack.finish(), *pack.failed())
        if pack.runs and now - self._saved_at >= settings.checkpoint_seconds:
            pack.save()
            self._tell(*pack.failed())
            self._saved_at = time.monotonic()


def _check_vocabulary(config: ProxyConfig, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        if size > config.vocab_size:
            raise ValueError(f"{name} has a vocabulary of {size} entries, the model {config.vocab_size}.")
