"""Rows of `throughput.py`, as a table and beside what is aimed at."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from speed.plan import Shape

TARGET_RATIOS = {
    ("nano", 1024): 2.6,
    ("micro", 1024): 1.7,
    ("small", 1024): 1.5,
    ("nano", 128): 2.7,
    ("micro", 128): 2.1,
}
"""(size, tokens per step) -> times `transformers`, vocabulary 8,192, on a quiet machine."""

TARGET_SHARES = {("nano", 1024): 0.50, ("micro", 1024): 0.52, ("small", 1024): 0.60}
TARGET_DATA_PATH = 20
GPU_TARGETS = {"transformers": 10.0, "transformers, compiled": 2.0}
"""64 micro members at 1,024 tokens on an H200, as times each."""


@dataclass(frozen=True)
class Row:
    """One line of the table; None: does not apply, or was not measured.

    Attributes:
        processes: how many were busy at once; their tokens are added up.
        tokens_per_second, ...: medians over rounds, with their ranges (`_min`, `_max`).
        ratio_to_transformers: by the clock; `ratio_per_cpu_second` by CPU time.
        ratio_to_one_member: to the same engine with K = 1, by CPU time (on a GPU by the clock, as the next two).
        ratio_to_default_allocator: to `transformers` in the environment that one would really have, by CPU time.
        times_training: tokens of the data path over those of the fastest training of the shape, by CPU time.
        first_loss_nats, loss_nats: of the first step, and over the last third of `loss_steps` steps, as many for all lines of the shape; mean over
            members.
        others_share, stolen_share: of all cores' time while the shape was measured, what other processes had and what the host took away; a machine
            is quiet where both are near 0.
        error: why there are no numbers.
    """

    size: str
    window: int
    tokens_per_step: int
    vocab_size: int
    members: int
    implementation: str
    allocator: str
    processes: int
    device: str
    repeats: int = 0
    steps: int = 0
    tokens_per_second: float | None = None
    tokens_per_second_min: float | None = None
    tokens_per_second_max: float | None = None
    tokens_per_cpu_second: float | None = None
    tokens_per_cpu_second_min: float | None = None
    tokens_per_cpu_second_max: float | None = None
    share_of_peak: float | None = None
    share_of_peak_min: float | None = None
    share_of_peak_max: float | None = None
    ratio_to_transformers: float | None = None
    ratio_to_transformers_min: float | None = None
    ratio_to_transformers_max: float | None = None
    ratio_per_cpu_second: float | None = None
    ratio_per_cpu_second_min: float | None = None
    ratio_per_cpu_second_max: float | None = None
    ratio_to_one_member: float | None = None
    ratio_to_default_allocator: float | None = None
    times_training: float | None = None
    flops_per_token: float | None = None
    peak_flops_per_second: float | None = None
    first_loss_nats: float | None = None
    loss_nats: float | None = None
    loss_steps: int = 0
    peak_resident_bytes: float | None = None
    others_share: float | None = None
    stolen_share: float | None = None
    error: str | None = None

    def with_values(self, **values: Any) -> Row:
        return dataclasses.replace(self, **values)


def print_rows(shape: Shape | None, rows: Sequence[Row]) -> None:
    """The table of a shape; None: of what belongs to none."""
    print(f"\n{shape}" if shape is not None else f"\n{rows[0].size if rows else ''} data path at the pace of a GPU", flush=True)
    print(
        f"{'implementation':36} {'K':>3} {'procs':>5} {'tokens/s':>22} {'per CPU-second':>22} {'of peak':>7} "
        f"{'x transformers':>16} {'per CPU-second':>16} {'x K=1':>5} {'x default':>9} {'loss':>11}"
    )
    for row in rows:
        if row.error is not None:
            print(f"{row.implementation:36} {row.members:3} {row.processes:5} {row.error}")
            continue
        if row.times_training is not None:
            ending = f"{row.times_training:.1f} times the training it feeds"
        else:
            share = "-" if row.share_of_peak is None else f"{row.share_of_peak:.0%}"
            alone = "-" if row.ratio_to_one_member is None else f"{row.ratio_to_one_member:.2f}"
            bare = "-" if row.ratio_to_default_allocator is None else f"{row.ratio_to_default_allocator:.2f}"
            loss = "-" if row.loss_nats is None else f"{row.first_loss_nats:.2f}→{row.loss_nats:.2f}"
            ratios = f"{_ratio(row, 'ratio_to_transformers'):>16} {_ratio(row, 'ratio_per_cpu_second'):>16}"
            ending = f"{share:>7} {ratios} {alone:>5} {bare:>9} {loss:>11}"
        speeds = f"{_speed(row, 'tokens_per_second'):>22} {_speed(row, 'tokens_per_cpu_second'):>22}"
        print(f"{row.implementation:36} {row.members:3} {row.processes:5} {speeds} {ending}")
    steps = max((row.loss_steps for row in rows), default=0)
    if steps:
        print(f"loss: nats per token in the first step, and over the last third of {steps} steps")
    if rows and rows[0].others_share is not None:
        print(
            f"meanwhile other processes had {rows[0].others_share:.0%} of the cores, the host took {rows[0].stolen_share or 0:.0%}",
            flush=True,
        )


def print_targets(rows: Sequence[Row], gpu: bool) -> None:
    """What is aimed at, and what was reached."""
    print("\naimed at")
    for (size, tokens), ratio in ({} if gpu else TARGET_RATIOS).items():
        own = [row for row in rows if (row.size, row.tokens_per_step, row.window, row.implementation) == (size, tokens, 128, "mixopt")]
        own = [row for row in own if row.processes == 1 and row.vocab_size == 8192]
        _print_target(f"{size} at {tokens}, times transformers", ratio, own, "ratio_per_cpu_second")
        share = TARGET_SHARES.get((size, tokens))
        if share is not None:
            _print_target(f"{size} at {tokens}, share of the peak", share, own, "share_of_peak")
    paths = [row for row in rows if row.times_training is not None]
    if not gpu and paths:
        least = min(paths, key=lambda row: row.times_training or 0.0)
        print(f"  data path, times the training: {TARGET_DATA_PATH}, least {least.times_training:.0f} ({least.size}, K={least.members})")
    for name, ratio in GPU_TARGETS.items():
        print(f"  H200, 64 micro at 1024, times {name}: {ratio:g}, {_gpu_ratio(rows, name) if gpu else 'not yet measured'}")


def _gpu_ratio(rows: Sequence[Row], name: str) -> str:
    shape = ("micro", 1024, 128, 8192)
    same = [row for row in rows if (row.size, row.tokens_per_step, row.window, row.vocab_size) == shape and row.tokens_per_second]
    own = next((row for row in same if (row.implementation, row.members) == ("mixopt", 64)), None)
    other = next((row for row in same if row.implementation == name), None)
    if own is None or other is None or own.tokens_per_second is None or other.tokens_per_second is None:
        return "not yet measured"
    return f"measured {own.tokens_per_second / other.tokens_per_second:.2f}"


def _print_target(what: str, aim: float, rows: Sequence[Row], name: str) -> None:
    values = [(getattr(row, name), row.members) for row in rows if getattr(row, name) is not None]
    if not values:
        print(f"  {what}: {aim:g}, not measured")
        return
    best, members = max(values)
    print(f"  {what}: {aim:g}, best {best:.2f} (K={members}): {'reached' if best >= aim else 'missed'}")


def _ratio(row: Row, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_min", "_max"))
    return "-" if value is None else f"{value:.2f} ({low:.2f}-{high:.2f})"


def _speed(row: Row, name: str) -> str:
    value, low, high = (getattr(row, f"{name}{end}") for end in ("", "_min", "_max"))
    return "-" if value is None else f"{_short(value)} ({_short(low)}-{_short(high)})"


def _short(value: float) -> str:
    """Three digits, as 12.3k."""
    for unit, size in (("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.0f}"
