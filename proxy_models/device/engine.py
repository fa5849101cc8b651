"""A fixed number of places that train by one function without the host: forward, loss, backward, clip, AdamW and balancing, replayed as a
CUDA graph.

Everything the function reads and writes has a place in device memory for the engine's life: weights, moments, tokens, rates, flags,
results. Whatever changes from step to step is written into those buffers, so that one capture serves every step, every member and, through
`EnginePool`, every pack of the same shape. (Packs that train on prompts and completions need a second one, which is told the tokens that count.) A
member whose loss or gradient is not finite does not take the step, and no later one: its flag goes down on the device, where the others do not
see it, and the host may learn of it many steps later. The trade-off: a place that is not taken is computed as any other.

Legend: K places, B windows per step, S = T + 1 tokens of a window, of which T are predicted.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.device.adamw import DeviceAdamW
from proxy_models.device.capture import capture, reason_against
from proxy_models.device.layers import DeviceMoE
from proxy_models.device.precision import Compute
from proxy_models.layers import rotary_table
from proxy_models.model import PackedProxy

logger = logging.getLogger(__name__)

IN_FLIGHT = 4
"""Steps whose tokens may be on their way to the device at once; the host waits before it overwrites an older buffer."""

LOSS, NORM, STEPPED = 0, 1, 2
"""Rows of an engine's results."""

MAX_IDLE = 4
"""Engines kept for the next pack: the sizes that a pack steps down through."""


@dataclass(frozen=True)
class EngineShape:
    """All that a captured step depends on: packs that agree in it can use one engine after the other.

    Attributes:
        places: members, vacant places included.
        windows: per member and step.
        window: tokens of a window that are predicted.
        graphs: whether a CUDA graph is wanted.
    """

    config: ProxyConfig
    places: int
    windows: int
    window: int
    weight_decay: float
    clip: float
    device: torch.device
    compute: Compute
    graphs: bool = True


class Engine:
    """Places with zero weights, inactive until `activate`.

    Attributes:
        model, optimizer: of all places; load members into them in place, never replace their tensors.
        results_3K: losses in nats, gradient norms and whether the step was taken, of the step that ran last; float32.
        dropped_K: rows that expert products of fixed capacity dropped since the member came.
        issued: steps so far.
        kinds: of steps that were issued: whether they were told what is scored.
        uncaptured: why steps are not replayed from a graph; None if they are, or before the first step.
    """

    def __init__(self, shape: EngineShape) -> None:
        self.shape = shape
        config, device, places = shape.config, shape.device, shape.places
        self.model = PackedProxy(config, [0] * places, device, compute=shape.compute, draw=False)
        self.optimizer = DeviceAdamW(self.model, [0.0] * places, weight_decay=shape.weight_decay, clip=shape.clip)
        self.owner: weakref.ref[object] | None = None
        self.uncaptured: str | None = None
        self._parameters = list(self.model.parameters())
        self._moe_layers = [module for module in self.model.modules() if isinstance(module, DeviceMoE)]
        self._tokens_KBS = torch.zeros(places, shape.windows, shape.window + 1, dtype=torch.int64, device=device)
        self._scored_KBT = torch.zeros(places, shape.windows, shape.window, dtype=torch.bool, device=device)
        self._controls_2K = torch.zeros(2, places, device=device)  # rate, active
        self._alive_K = torch.zeros(places, dtype=torch.bool, device=device)
        self.results_3K = torch.zeros(3, places, device=device)
        self.dropped_K = torch.zeros(places, dtype=torch.int64, device=device)
        # The graph reads this table; a cache of tables must not be all that keeps it.
        self._table = rotary_table(shape.window, config.d_head, config.rope_theta, self.model.embedding.dtype, device)
        targets = (self._tokens_KBS, self._scored_KBT, self._controls_2K)
        self._staging = [_Staging(*targets) for _ in range(IN_FLIGHT if device.type == "cuda" else 1)]
        self.issued = 0
        self.kinds: set[bool] = set()
        # Whether it is told what is scored -> the step as it is run: of a graph, or the function itself.
        self._steps: dict[bool, Callable[[], None]] = {}
        self._captured: set[bool] = set()

    @property
    def captured(self) -> bool:
        """Whether steps are replayed from a graph; no before the first."""
        return bool(self._captured)

    def begin(self, seeds_K: Sequence[int], rates_K: Sequence[float]) -> None:
        """New members at all places, with the weights of their seeds; `rates_K` are their peak rates."""
        self.model.begin(seeds_K)
        self.optimizer.begin(rates_K)
        self._alive_K.fill_(True)
        self.dropped_K.zero_()

    def activate(self, k: int) -> None:
        """Place k has a new member: it steps again, whatever became of the one before."""
        self._alive_K[k].fill_(True)
        self.dropped_K[k].zero_()

    def take_over(self, other: Engine, members: list[int]) -> None:
        """Copies these places of `other`, in this order, into the own ones, on the device."""
        self.model.copy_from(other.model, members)
        self.optimizer.copy_from(other.optimizer, members)
        index = torch.tensor(members).to(self.shape.device, non_blocking=True)
        for own, theirs in ((self._alive_K, other._alive_K), (self.dropped_K, other.dropped_K)):
            torch.index_select(theirs, 0, index, out=own)

    def step(self, tokens_KBS: Tensor, rate_K: list[float], active_K: list[bool], scored_KBT: Tensor | None = None) -> None:
        """Issues one step; results are in `results_3K` once the device gets there.

        Args:
            tokens_KBS: int64, on the host; ids are taken to be in the vocabulary. What it holds after the call does not matter.
            rate_K: learning rates of this step.
            active_K: places that take part.
            scored_KBT: bool, on the host; which predicted tokens count. None: all.
        """
        masked = scored_KBT is not None
        if masked not in self._steps:
            self._prepare(masked)
        staging = self._staging[self.issued % len(self._staging)]
        staging.send(tokens_KBS, scored_KBT, torch.tensor([rate_K, [float(flag) for flag in active_K]]))
        self._steps[masked]()
        self.issued += 1
        self.kinds.add(masked)

    def run(self) -> None:
        """The step itself, from buffers to buffers: what is captured. Nothing in here may wait for the device or depend on values."""
        self._run(None)

    def run_masked(self) -> None:
        """`run` with the loss on the scored tokens alone."""
        self._run(self._scored_KBT)

    def _run(self, scored_KBT: Tensor | None) -> None:
        loss_K = self.model.training_loss(self._tokens_KBS, ids_checked=True, scored_KBT=scored_KBT)
        # Not `backward`: gradients that outlive the step would have to keep their memory between replays.
        gradients = torch.autograd.grad(loss_K.sum(), self._parameters)
        loss_K = loss_K.detach()
        wanted_K = (self._controls_2K[1] > 0) & self._alive_K
        norm_K, stepped_K = self.optimizer.update(gradients, self._controls_2K[0], wanted_K & loss_K.isfinite())
        self.model.update_router_bias(stepped_K)
        self.model.count_load(stepped_K)
        for moe in self._moe_layers:
            self.dropped_K += moe.dropped(self.shape.windows * self.shape.window) * stepped_K
        self._alive_K &= stepped_K | ~wanted_K
        self.results_3K.copy_(torch.stack([loss_K.float(), norm_K.float(), stepped_K.float()]))

    def _prepare(self, masked: bool) -> None:
        """Captures `run` or `run_masked`; where there can be no graph, one line in the log says why."""
        shape = self.shape
        run = self.run_masked if masked else self.run
        self._steps[masked] = run
        # By `_controls_2K` no place is active, so that the steps that warm up change no weight.
        self._controls_2K.zero_()
        self.uncaptured = reason_against(shape.device, shape.graphs)
        if self.uncaptured is None:
            failures = []
            for experts in dict.fromkeys((shape.compute.experts, "capacity")):
                self.model.use(replace(shape.compute, experts=experts))
                try:
                    self._steps[masked] = capture(run, shape.device)
                    self._captured.add(masked)
                    break
                except torch.OutOfMemoryError:
                    del self._steps[masked]  # to be tried again
                    raise
                except RuntimeError as error:
                    failures.append(f"with {experts} expert products: {str(error).splitlines()[0]}")
            else:
                self.model.use(shape.compute)
                self.uncaptured = "capture failed " + "; ".join(failures)
            if failures and masked in self._captured:
                logger.warning("Expert products have fixed capacity, because capture failed %s.", failures[0])
        if self.uncaptured is not None:
            level = logging.INFO if shape.device.type == "cpu" else logging.WARNING
            logger.log(level, "Steps of %d proxies run without a CUDA graph: %s.", shape.places, self.uncaptured)


class _Staging:
    """Host memory from which one step's tokens and controls travel to their places on the device; pinned on a GPU's host, so that the copy does
    not hold up the host."""

    def __init__(self, tokens_KBS: Tensor, scored_KBT: Tensor, controls_2K: Tensor) -> None:
        self._to = (tokens_KBS, scored_KBT, controls_2K)
        pinned = tokens_KBS.device.type == "cuda"
        self._from = tuple(torch.zeros(to.shape, dtype=to.dtype, pin_memory=pinned) for to in self._to)
        self._sent = torch.cuda.Event(blocking=True) if pinned else None

    def send(self, *values: Tensor | None) -> None:
        """Tokens, which of them are scored (None: nobody asks), and controls."""
        if self._sent is not None:
            self._sent.synchronize()  # of an event that was never recorded this returns at once
        for value, staged, to in zip(values, self._from, self._to, strict=True):
            if value is not None:
                staged.copy_(value)
                to.copy_(staged, non_blocking=True)
        if self._sent is not None:
            self._sent.record()


class EnginePool:
    """Engines of a process, so that the next pack of a shape, and a pack that steps down to it, need not capture again.

    An engine belongs to whoever took it, until that is gone or gives it back.
    """

    def __init__(self, max_idle: int = MAX_IDLE) -> None:
        self._max_idle = max_idle
        self._engines: list[Engine] = []  # the least recently taken first

    def take(self, shape: EngineShape, owner: object) -> Engine:
        """An engine of this shape that nobody uses; the members it held before mean nothing.

        Idle engines of other proxies are dropped first: what comes next is more of this, and it may need their memory at any time, not only now.
        """
        self._keep(lambda engine: replace(engine.shape, places=shape.places) == shape)
        engine = next((one for one in self._engines if one.shape == shape and not _in_use(one)), None)
        if engine is None:
            engine = self._build(shape)
        else:
            self._engines.remove(engine)
        self._engines.append(engine)
        engine.owner = weakref.ref(owner)
        self.drop_idle(self._max_idle)
        return engine

    def give_back(self, engine: Engine) -> None:
        """The owner is done with it."""
        engine.owner = None
        self.drop_idle(self._max_idle)

    def idle(self) -> list[Engine]:
        """Engines that wait for a pack."""
        return [engine for engine in self._engines if not _in_use(engine)]

    def drop_idle(self, most: int = 0) -> int:
        """Drops idle engines but for `most`; returns how many. One without a graph is never kept: it would save nothing but its memory's
        allocation."""
        captured = [engine for engine in self.idle() if engine.captured]
        kept = captured[max(0, len(captured) - most) :]
        return self._keep(lambda engine: engine in kept)

    def _keep(self, wanted: Callable[[Engine], bool]) -> int:
        """Drops the idle engines that are not wanted; returns how many."""
        before = len(self._engines)
        self._engines = [engine for engine in self._engines if _in_use(engine) or wanted(engine)]
        if len(self._engines) < before and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        return before - len(self._engines)

    def _build(self, shape: EngineShape) -> Engine:
        try:
            return Engine(shape)
        except torch.OutOfMemoryError:
            if not self.drop_idle():
                raise
        return Engine(shape)


def _in_use(engine: Engine) -> bool:
    return engine.owner is not None and engine.owner() is not None
