"""How a pack's places step on a GPU: issued one after the other without waiting, heard of every so many steps.

Under the interface of `PackStep` lies an `Engine` of the number of places the pack has at the time. When it has fewer, the members move, on
the device, into the engine of the next smaller size, whose graph may be there from an earlier pack. The same code runs on a CPU without
capture, which is how tests exercise it. The trade-off: a loss is known up to `read_every` steps late, and a member that diverged costs its
place until then; it cannot do harm, because its flag on the device went down in the step that showed it.

Legend: K places, B windows per step, S = T + 1 tokens of a window, R steps between reads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.device.engine import LOSS, NORM, STEPPED, EnginePool, EngineShape
from proxy_models.device.precision import Compute, default_compute
from proxy_models.pack_step import PackStep, StepReport
from proxy_models.specs import TrainSettings

READ_EVERY = 50
"""Steps between two reads on a GPU: a diverged member costs its place for 25 steps on average, a read costs one wait."""

ENGINES = EnginePool()
"""Of this process."""


@dataclass(frozen=True)
class DeviceOptions:
    """What of the device path can be chosen; nothing here changes what is trained, but for the last digits.

    Attributes:
        compute: precision and products; None: as suits the device.
        graphs: whether to capture steps as CUDA graphs where there are any. The environment variable MIXOPT_CUDA_GRAPHS=0 says no, too.
        read_every: steps between two reads of results; None: 50 on a GPU, 1 elsewhere.

    Raises:
        ValueError: read_every is below 1.
    """

    compute: Compute | None = None
    graphs: bool = True
    read_every: int | None = None

    def __post_init__(self) -> None:
        if self.read_every is not None and self.read_every < 1:
            raise ValueError(f"read_every is {self.read_every}; it must be at least 1.")


class DeviceStep(PackStep):
    """K places that step together on a device, without the host. Arguments and methods as of `PackStep`."""

    fixed_places: ClassVar[bool] = True
    options: ClassVar[DeviceOptions] = DeviceOptions()

    def __init__(
        self,
        config: ProxyConfig,
        settings: TrainSettings,
        seeds_K: Sequence[int],
        rates_K: Sequence[float],
        device: torch.device | str,
    ) -> None:
        self.config, self.device = config, _with_index(torch.device(device))
        options = self.options
        shape = EngineShape(
            config=config,
            places=len(seeds_K),
            windows=settings.windows_per_step,
            window=settings.window,
            weight_decay=settings.weight_decay,
            clip=settings.clip,
            device=self.device,
            compute=options.compute or default_compute(self.device) or Compute(),
            graphs=options.graphs,
        )
        self._read_every = options.read_every or (READ_EVERY if self.device.type == "cuda" else 1)
        self._take_engine(shape)
        self._engine.begin(seeds_K, rates_K)

    def _take_engine(self, shape: EngineShape) -> None:
        self._engine = ENGINES.take(shape, self)
        self.model, self.optimizer = self._engine.model, self._engine.optimizer
        self._ring_R3K = torch.zeros(self._read_every, 3, shape.places, device=self.device)
        self._pending = 0

    def step(self, tokens_KBS: Tensor, rate_scale_K: Sequence[float], active_K: Sequence[bool], scored_KBT: Tensor | None = None) -> None:
        """Issues one step and returns before it is done. Token ids are taken to be in the vocabulary: samplers have seen to that."""
        assert self._pending < self._read_every, "results were not read in time"
        rate_K = [peak * scale for peak, scale in zip(self.optimizer.learning_rates, rate_scale_K, strict=True)]
        try:
            self._engine.step(tokens_KBS, rate_K, list(active_K), scored_KBT)
        except torch.OutOfMemoryError:
            # Only the first step of a kind allocates; what idle engines hold may be what it lacks.
            if (scored_KBT is not None) in self._engine.kinds or not ENGINES.drop_idle():
                raise
            self._engine.step(tokens_KBS, rate_K, list(active_K), scored_KBT)
        self._ring_R3K[self._pending].copy_(self._engine.results_3K)
        self._pending += 1

    def reports(self, wait: bool) -> list[StepReport]:
        """Reports of the steps since the last read, every `read_every` steps or when asked to wait; waits for the device then."""
        if not self._pending or not (wait or self._pending == self._read_every):
            return []
        rows = self._ring_R3K[: self._pending].tolist()
        self._pending = 0
        return [StepReport(row[LOSS], row[NORM], [flag > 0 for flag in row[STEPPED]]) for row in rows]

    def place(self, k: int, seed: int, rate: float, state: Any = None) -> None:
        super().place(k, seed, rate, state)
        self._engine.activate(k)

    def select(self, members: Sequence[int]) -> None:
        before = self._engine
        self._take_engine(replace(before.shape, places=len(members)))
        self._engine.take_over(before, list(members))
        ENGINES.give_back(before)

    def diagnostics(self, k: int) -> dict[str, Any]:
        compute = self.model.compute
        assert compute is not None
        return {
            **super().diagnostics(k),
            "device": str(self._engine.shape.device.type),
            "products": str(compute.dtype or self.model.embedding.dtype).removeprefix("torch."),
            "expert_products": compute.experts,
            "dropped_rows": int(self._engine.dropped_K[k]),
            "cuda_graph": self._engine.captured,
        }


def _with_index(device: torch.device) -> torch.device:
    """The device by its number, so that "cuda" and the current device share engines."""
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device
