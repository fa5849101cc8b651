"""What `throughput.py` measures: shapes, the lines of each, and how long that takes."""

from __future__ import annotations

import dataclasses
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proxy_models.config import proxy_config
from workers.machine import free_memory
from workers.memory import pack_memory_bytes

TRANSFORMERS = "transformers"
REFERENCE = (TRANSFORMERS, "workers")
"""Implementation and allocator of the line that ratios are to."""

START_SECONDS = {"mixopt": 2.0, "transformers": 4.5, "data path": 1.5}
"""Of a process, warm-up steps not included."""

ASSUMED_SHARE = {"mixopt": 0.4, "transformers": 0.2}
"""Of the peak, to predict how long a step takes on a CPU."""

ASSUMED_GPU_SHARE = 0.02
LONGEST_STEP_SECONDS = 15.0
"""Lines whose step is predicted to take longer are left out: that many tokens at once gain nothing on a CPU."""

LONGEST_STEP_TOGETHER_SECONDS = 4.0
"""Beyond this, processes are measured alone only: such lines take long, and are the ones that a busy neighbour slows least."""

# Of `transformers`: resident bytes per parameter (weights, gradient, two moments, what copies of them take), per token, layer and width of the model, and per
# token and entry of the vocabulary, since all logits are held at once, five float32 copies. Guesses that are rather too high.
STATE_BYTES, ACTIVATION_BYTES, LOGIT_BYTES = 28, 125, 20
PROCESS_BYTES = 500e6
MEMORY_SHARE = 0.7
"""Of what is available, that processes in memory at once may take."""


@dataclass(frozen=True)
class Shape:
    """What the lines of one table have in common."""

    size: str
    window: int
    tokens_per_step: int
    vocab_size: int

    @property
    def flops_per_token(self) -> float:
        return proxy_config(self.size, self.vocab_size).training_flops_per_token(self.window)

    def __str__(self) -> str:
        return f"{self.size}, {self.tokens_per_step} tokens per member and step in windows of {self.window}, vocabulary {self.vocab_size}"


@dataclass(frozen=True)
class Line:
    """One way to train.

    Attributes:
        implementation: as in the rows.
        kind: of `speed.worker`.
        members: trained by one process.
        engine: the checkout whose packages it uses.
        allocator: "workers" or "default".
        processes: how many at once, each asked in turn: (1,) or (1, cores).
        options: more for the worker.
    """

    implementation: str
    kind: str
    members: int
    engine: Path
    allocator: str = "workers"
    processes: tuple[int, ...] = (1,)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def is_reference(self) -> bool:
        return (self.implementation, self.allocator) == REFERENCE

    def for_shape(self, shape: Shape, peak: float) -> Line:
        """Itself, or with single processes only where a step is long."""
        return self if self.step_seconds(shape, peak) <= LONGEST_STEP_TOGETHER_SECONDS else dataclasses.replace(self, processes=(1,))

    def step_seconds(self, shape: Shape, peak: float) -> float:
        """A guess."""
        if self.kind == "data path":
            return 0.0
        share = ASSUMED_SHARE.get(self.kind, 1.0) if peak < 10e12 else ASSUMED_GPU_SHARE
        return self.members * shape.tokens_per_step * shape.flops_per_token / (share * peak)

    def memory_bytes(self, shape: Shape) -> float:
        """Of all its processes; of packs as the planner has it, of `transformers` a guess."""
        if self.kind == "data path":
            return PROCESS_BYTES
        config = proxy_config(shape.size, shape.vocab_size)
        if self.kind != "transformers":
            return max(self.processes) * pack_memory_bytes(config, shape.window, shape.tokens_per_step, self.members)
        per_token = ACTIVATION_BYTES * config.n_layers * config.d_model + LOGIT_BYTES * shape.vocab_size
        one = STATE_BYTES * config.parameters().total + shape.tokens_per_step * per_token
        return max(self.processes) * (PROCESS_BYTES + one)


def shapes_for(
    quick: bool, gpu: bool, sizes: Sequence[str] | None, windows: Sequence[int] | None, tokens: Sequence[int] | None, vocab_size: int
) -> list[Shape]:
    """The shapes asked for; a step holds whole windows."""
    sizes = sizes or (["nano", "micro"] if quick else ["nano", "micro", "small"])
    batches = tokens or ([1024, 4096] if gpu else [128, 1024] if quick else [128, 512, 1024, 4096])
    pairs = [(window, batch) for window in windows or [128] for batch in batches]
    if not (quick or windows or tokens):
        pairs.append((512, 1024))
    return [Shape(size, window, batch, vocab_size) for size in sizes for window, batch in pairs if batch % window == 0]


def lines_for(
    quick: bool, gpu: bool, members: Sequence[int] | None, engines: Sequence[Path], with_transformers: bool, cores: int
) -> list[Line]:
    """The lines of every shape; the first engine is the one that is measured, others stand beside it."""
    counts = sorted(set(members or ([1, 4] if quick else [1, 4, 8, 16, 32, 64] if gpu else [1, 4, 8, 16])))
    together = (1, cores) if cores > 1 and not gpu else (1,)
    lines = []
    for index, engine in enumerate(engines):
        name = "mixopt" if index == 0 else f"mixopt@{commit_of(engine)}"
        lines += [Line(name, "mixopt", k, engine, processes=together if k in (counts[0], counts[-1]) else (1,)) for k in counts]
    first = engines[0]
    if with_transformers:
        lines.append(Line(TRANSFORMERS, "transformers", 1, first, processes=together))
        if gpu:
            lines.append(Line(f"{TRANSFORMERS}, compiled", "transformers", 1, first, options={"compile": True}))
            narrow = {"bfloat16_weights": True}
            lines.append(Line(f"{TRANSFORMERS}, bfloat16 weights", "transformers", 1, first, options=narrow))
            lines.append(Line(f"{TRANSFORMERS}, bfloat16 weights, compiled", "transformers", 1, first, options={**narrow, "compile": True}))
        else:
            lines.append(Line(f"{TRANSFORMERS}, default allocator", "transformers", 1, first, "default", together))
        lines.append(Line(f"{TRANSFORMERS}, fused AdamW", "transformers", 1, first, options={"fused": True}))
        if not gpu and has_faster_products():
            fastest = {"fused": True, "fast_products": True}
            lines.append(Line(f"{TRANSFORMERS}, fused AdamW, oneDNN", "transformers", 1, first, options=fastest))
    lines += [Line("data path", "data path", k, first) for k in sorted({counts[0], counts[-1]})]
    return lines


def has_faster_products() -> bool:
    """Whether torch, left alone, multiplies in a library that is not the fastest on this processor."""
    try:
        from proxy_models.products import product_library
    except ImportError:
        return False
    return product_library() != "mkl"


def commit_of(checkout: Path) -> str:
    """Seven digits, with a plus behind them if files differ; the folder's name where git does not know."""
    command = ["git", "--no-optional-locks", "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
    ended = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return ended.stdout.strip() or checkout.resolve().name


LEFT_OUT = "left out: "


def left_out(line: Line, shape: Shape, peak: float, memory_bytes: float) -> str | None:
    """Why a line is not measured; None: it is."""
    seconds = line.step_seconds(shape, peak)
    if seconds > LONGEST_STEP_SECONDS:
        return f"{LEFT_OUT}one step would take about {seconds:.0f} seconds"
    if line.memory_bytes(shape) > memory_bytes:
        return f"{LEFT_OUT}it may need {line.memory_bytes(shape) / 1e9:.0f} GB"
    return None


def sets_in_memory(lines: Sequence[Line], shape: Shape, memory_bytes: float) -> list[list[Line]]:
    """Lines that are in memory together; the reference is in every set, so that all are interleaved with it."""
    reference = [line for line in lines if line.is_reference]
    base = sum(line.memory_bytes(shape) for line in reference)
    sets: list[list[Line]] = [[]]
    used = base
    for line in lines:
        if line.is_reference:
            continue
        need = line.memory_bytes(shape)
        if sets[-1] and used + need > memory_bytes:
            sets.append([])
            used = base
        sets[-1].append(line)
        used += need
    return [[*reference, *one] for one in sets]


def available_memory_bytes(device: str) -> float:
    """What processes of one set may take, of the machine's memory or the GPU's."""
    if device == "cpu":
        free = free_memory()
        return float("inf") if free is None else MEMORY_SHARE * free
    import torch

    return MEMORY_SHARE * float(torch.cuda.get_device_properties(device).total_memory)


def plan_seconds(
    shapes: Sequence[Shape], lines: Sequence[Line], peak: float, memory_bytes: float, repeats: int, seconds: float, cores: int
) -> float:
    """How long all of it takes, about: processes start side by side, and then take turns."""
    total = 0.0
    for shape in shapes:
        fitting = [line.for_shape(shape, peak) for line in lines]
        measured = [line for line in fitting if left_out(line, shape, peak, memory_bytes) is None]
        for one in sets_in_memory(measured, shape, memory_bytes):
            total += START_SECONDS["data path"]  # of the process that measures the peak
            for line in one:
                step = line.step_seconds(shape, peak)
                start = (START_SECONDS[line.kind] + max(0.5, 2 * step)) * max(line.processes) / cores
                total += start + repeats * len(line.processes) * (seconds + step / 2)
            total += repeats * seconds / 2  # the peak
    return total
