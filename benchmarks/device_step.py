"""What one step of a pack costs on a GPU, and what each choice of the device path is worth: for whoever tunes it.

    python benchmarks/device_step.py [--device cuda] [--size micro] [--members 64] [--profile] [--json FILE]

Each variant is one choice changed against `default`, which comes first and once more at the end: what the two differ by is what differences
between variants mean nothing below. Rows are medians and ranges over repeats of a number of steps timed by the device's own events, after a
step that captures. `benchmarks/throughput.py` compares with other trainers and goes through the whole of training; this goes through the
step alone. `--profile` lists the kernels of a step that is not captured. On a CPU it runs, too, and means little.

milliseconds: of a step. memory_gb: most that torch held of the device's memory, the engine's state included. captured: whether a graph was
replayed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rows_file import why_unwritable, write_rows

from proxy_models.config import SIZES, proxy_config
from proxy_models.device import adamw as device_adamw
from proxy_models.device.engine import Engine, EngineShape
from proxy_models.device.precision import Compute, default_compute


@dataclass(frozen=True)
class Variant:
    """A name, and what it changes."""

    name: str
    compute: Compute
    graphs: bool = True
    lanes: int = device_adamw.LANES


@dataclass(frozen=True)
class Row:
    variant: str
    milliseconds: float
    least: float
    most: float
    tokens_per_second: float
    memory_gb: float
    captured: bool
    device: str


def variants(usual: Compute) -> list[Variant]:
    """All that can be chosen, one at a time."""
    other = "capacity" if usual.experts == "grouped" else "grouped"
    return [
        Variant("default", usual),
        Variant("no graph", usual, graphs=False),
        Variant(f"{other} expert products", replace(usual, experts=other)),
        Variant("capacity of 2 shares", replace(usual, experts="capacity", capacity_factor=2.0)),
        *(Variant(f"loss in {size} MB", replace(usual, loss_bytes=size * 2**20)) for size in (32, 128, 2048)),
        *(Variant(f"optimizer in {lanes} streams", usual, lanes=lanes) for lanes in (1, 4, 16)),
        Variant("float32 products", replace(usual, dtype=None, experts="capacity")),
        Variant("default again", usual),
    ]


@contextmanager
def lanes_of(variant: Variant) -> Iterator[None]:
    usual = device_adamw.LANES
    device_adamw.LANES = variant.lanes
    device_adamw.streams.cache_clear()
    try:
        yield
    finally:
        device_adamw.LANES = usual
        device_adamw.streams.cache_clear()


class Clock:
    """Milliseconds between two points of the device's work."""

    def __init__(self, device: torch.device) -> None:
        self._gpu = device.type == "cuda"

    def mark(self) -> torch.cuda.Event | float:
        if not self._gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: torch.cuda.Event | float, end: torch.cuda.Event | float) -> float:
        if isinstance(start, float) and isinstance(end, float):
            return 1000 * (end - start)
        assert isinstance(start, torch.cuda.Event)
        assert isinstance(end, torch.cuda.Event)
        end.synchronize()
        return float(start.elapsed_time(end))


def measure(variant: Variant, shape: EngineShape, steps: int, repeats: int) -> Row:
    """Builds an engine, captures its step and times it."""
    device, gpu = shape.device, shape.device.type == "cuda"
    if gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with lanes_of(variant):
        engine = engine_of(replace(shape, compute=variant.compute, graphs=variant.graphs))
        batches = [tokens_of(shape, seed) for seed in range(4)]
        rates, active = [1e-3] * shape.places, [True] * shape.places
        engine.step(batches[0], rates, active)
        clock, times = Clock(device), []
        for _ in range(repeats):
            start = clock.mark()
            for step in range(steps):
                engine.step(batches[step % len(batches)], rates, active)
            times.append(clock.between(start, clock.mark()) / steps)
        assert engine.results_3K.isfinite().all(), "a member diverged"
    memory = torch.cuda.max_memory_reserved(device) / 1e9 if gpu else 0.0
    median = statistics.median(times)
    tokens = shape.places * shape.windows * shape.window
    name = torch.cuda.get_device_name(device) if gpu else "cpu"
    return Row(variant.name, median, min(times), max(times), 1000 * tokens / median, memory, engine.captured, name)


def engine_of(shape: EngineShape) -> Engine:
    engine = Engine(shape)
    engine.begin(range(shape.places), [1e-3] * shape.places)
    return engine


def tokens_of(shape: EngineShape, seed: int) -> torch.Tensor:
    """Skewed ids, as text has."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(shape.places, shape.windows, shape.window + 1, generator=generator)
    return (uniform**3 * shape.config.vocab_size).long()


def profile(shape: EngineShape) -> str:
    """The kernels of one step, the longest first."""
    engine = engine_of(replace(shape, graphs=False))
    tokens, rates, active = tokens_of(shape, 0), [1e-3] * shape.places, [True] * shape.places
    for _ in range(3):
        engine.step(tokens, rates, active)
    with torch.profiler.profile() as seen:
        engine.step(tokens, rates, active)
        if shape.device.type == "cuda":
            torch.cuda.synchronize()
    order = "self_cuda_time_total" if shape.device.type == "cuda" else "self_cpu_time_total"
    return str(seen.key_averages().table(sort_by=order, row_limit=30, max_name_column_width=80))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda or cpu")
    parser.add_argument("--size", default="micro")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=1024, help="per member and step")
    parser.add_argument("--window", type=int, default=128)
    parser.add_argument("--vocab", type=int, default=8192, help="entries of the vocabulary")
    parser.add_argument("--steps", type=int, default=20, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--variants", nargs="+", help="names that begin so; all unless given")
    parser.add_argument("--profile", action="store_true", help="list the kernels of a step instead")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    wrong = _what_is_wrong(options)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    device = torch.device(options.device)
    usual = default_compute(device) or Compute()
    config = proxy_config(options.size, options.vocab)
    windows = options.tokens // options.window
    shape = EngineShape(config, options.members, windows, options.window, 0.1, 1.0, device, usual)
    if options.profile:
        print(profile(shape))
        return 0
    chosen = [one for one in variants(usual) if not options.variants or one.name.startswith(tuple(options.variants))]
    if not chosen:
        print(f"Nothing is left to measure: variants are {', '.join(one.name for one in variants(usual))}.", file=sys.stderr)
        return 2
    rows = []
    print(
        f"{options.size}, {options.members} members, {options.tokens} tokens each\n{'':28} ms  (least to most)   tokens/s  memory GB  graph"
    )
    for variant in chosen:
        try:
            row = measure(variant, shape, options.steps, options.repeats)
        except RuntimeError as error:  # a variant that this device lacks, or that does not fit, says so; the others go on
            print(f"{variant.name:28} {str(error).splitlines()[0]}")
            continue
        rows.append(row)
        spread = f"({row.least:.2f} to {row.most:.2f})"
        print(f"{row.variant:28} {row.milliseconds:.2f} {spread:18} {row.tokens_per_second:,.0f} {row.memory_gb:9.1f}  {row.captured}")
        if options.json:
            write_rows(options.json, rows)
    return 0 if rows else 1


def _what_is_wrong(options: argparse.Namespace) -> str | None:
    """Of the options, in a sentence; None: nothing."""
    if options.size not in SIZES:
        return f"Unknown size {options.size}; known sizes: {', '.join(SIZES)}."
    if re.fullmatch(r"cpu|cuda(:\d+)?", options.device) is None:
        return f"--device is cpu, cuda or cuda:N, not {options.device}."
    if options.device != "cpu" and (torch.device(options.device).index or 0) >= torch.cuda.device_count():
        return f"No GPU {options.device} is here; --device cpu runs the same code, and its numbers mean little."
    if min(options.members, options.tokens, options.window, options.vocab, options.steps, options.repeats) < 1:
        return "Members, tokens, window, vocabulary, steps and repeats are at least 1."
    if options.tokens % options.window:
        return f"--tokens {options.tokens} is not a multiple of --window {options.window}."
    return why_unwritable(options.json) if options.json is not None else None


if __name__ == "__main__":
    sys.exit(main())
