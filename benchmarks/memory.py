"""Memory per member of a pack: measured in processes like those of workers, beside what the planner says.

    python benchmarks/memory.py [--quick] [--sizes SIZE ...] [--json FILE]

Each pack is trained in a process of its own with the environment of a worker (one thread, allocator settings): a few steps through
`proxy_models.train.train_pack` on made-up tokens, then its checkpoints. Its peak is the kernel's count of resident memory (VmHWM) less what
the process had before: code loaded, a step of a tiny proxy done. A row compares two packs of one shape: what a member more takes is the difference
of their peaks over that of their members, so that what a process has once is not part of it.

measured_bytes, predicted_bytes: of one member; predicted is `workers.memory.member_memory`. ratio: predicted over measured. holes: what a step took beyond
its live bytes, in layers' worth of saved activations, `HOLES` of the planner; none where a checkpoint takes more than a step. process_bytes: what the
larger pack's process had without its members, `PROCESS_BYTES` of the planner beside Ray's worker.

JSON rows are written after every shape.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

from rows_file import why_unwritable, write_rows

from mixopt.cost import Shape
from proxy_models.config import DENSE, SIZES, ProxyConfig, proxy_config
from workers.memory import member_memory, saved_by_layer, step_bytes
from workers.planning.probe import ProbeShape, train_for_a_while
from workers.ray_runner import WORKER_ENVIRONMENT

WINDOW = 512
WITHIN = 0.15
"""What the planner promises: predicted memory is within this share of the measured."""


@dataclass(frozen=True)
class Row:
    """One member of a shape, from packs of `few` and of `many`."""

    size: str
    vocab_size: int
    window: int
    tokens_per_step: int
    few: int
    many: int
    measured_bytes: float
    predicted_bytes: float
    ratio: float
    holes: float | None
    process_bytes: float
    machine: str


def packs(quick: bool) -> list[tuple[Shape, tuple[int, ...]]]:
    """Shapes and their numbers of members: sizes that fit into some gigabytes, small and large packs, short and long steps, two vocabularies."""
    if quick:
        wanted = [("nano", 4096, 1024, (2, 8)), ("micro", 4096, 512, (2, 6)), (f"nano{DENSE}", 4096, 1024, (2, 8))]
    else:
        wanted = [(size, vocab, tokens, (1, 4, 16)) for size in ("nano", "micro") for vocab in (4096, 8192) for tokens in (128, 1024)]
        wanted += [(size, 8192, 4096, (1, 4)) for size in ("nano", "micro")]
        wanted += [("small", 8192, tokens, (1, 4, 16)) for tokens in (128, 1024)] + [("small", 4096, 4096, (1, 3))]
        wanted += [("medium", 8192, tokens, (1, 2)) for tokens in (128, 1024, 4096)] + [("medium", 4096, 1024, (1, 2))]
        wanted += [(f"{size}{DENSE}", 8192, tokens, (2, 8)) for size in ("nano", "micro", "small") for tokens in (128, 1024)]
        wanted += [(f"medium{DENSE}", 8192, tokens, (1, 3)) for tokens in (1024, 4096)]
    return [(Shape(size, vocab, min(WINDOW, tokens), tokens), members) for size, vocab, tokens, members in wanted]


class MeasuringError(Exception):
    """A process ended before it had an answer, as where memory does not suffice."""


def measure(wanted: ProbeShape) -> tuple[float, float]:
    """(peak of a pack above the process, the process), in bytes, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix="mixopt-memory-") as folder:
        job = {"shape": asdict(wanted.shape), "members": wanted.members, "folder": folder}
        command = [sys.executable, __file__, "--measure", json.dumps(job)]
        ended = subprocess.run(command, env={**os.environ, **WORKER_ENVIRONMENT}, capture_output=True, text=True, check=False)
    if ended.returncode:
        last = ended.stderr.strip().splitlines()[-1:] or ["it printed nothing"]
        raise MeasuringError(f"A pack of {wanted.members} {wanted.shape.size} ended with {ended.returncode}: {last[0]}")
    body = json.loads(ended.stdout)
    return body["peak"] - body["loaded"], body["loaded"]


def measured_process(job: str) -> None:
    """One row: prints the peaks before and after."""
    import torch

    torch.set_num_threads(1)
    body = json.loads(job)
    folder = Path(body["folder"])
    train_for_a_while(ProbeShape(Shape("nano", 16, 8, 8), 1), folder / "tiny", "cpu", 0.0, checkpoint=True)
    loaded = peak_bytes()
    train_for_a_while(ProbeShape(Shape(**body["shape"]), body["members"]), folder / "pack", "cpu", 0.0, checkpoint=True)
    print(json.dumps({"loaded": loaded, "peak": peak_bytes()}))


def peak_bytes() -> float:
    """Largest resident memory of this process. Not ru_maxrss, which begins at that of the process that forked this one."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def rows_of(shape: Shape, members: Sequence[int]) -> Iterator[Row]:
    """A row for each pack beyond the first, beside the one before it."""
    peaks = [measure(ProbeShape(shape, count)) for count in members]
    config = proxy_config(shape.size, shape.vocab_size)
    predicted = member_memory(config, shape.window, shape.tokens_per_step).peak
    machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {version('torch')}"
    for (few, many), (before, (after, loaded)) in zip(pairwise(members), pairwise(peaks), strict=True):
        measured = (after - before[0]) / (many - few)
        yield Row(
            *(shape.size, shape.vocab_size, shape.window, shape.tokens_per_step, few, many),
            *(measured, predicted, predicted / measured, holes_of(config, shape, measured), loaded + after - many * measured, machine),
        )


def holes_of(config: ProxyConfig, shape: Shape, measured: float) -> float | None:
    """Layers' worth of saved activations that a step took beyond its live bytes; None: a checkpoint takes more."""
    window, tokens = shape.window, shape.tokens_per_step
    member = member_memory(config, window, tokens)
    if member.step <= member.checkpoint:
        return None
    return (measured - member.state - step_bytes(config, window, tokens)) / saved_by_layer(config, window, tokens)


def print_row(row: Row) -> None:
    off = "" if abs(row.ratio - 1) <= WITHIN else "  beyond"
    holes = "-" if row.holes is None else f"{row.holes:.2f}"
    print(
        f"{row.size:13} {row.vocab_size:6} {row.tokens_per_step:6} {row.few:4} to {row.many:2} {row.measured_bytes / 1e6:11.1f} "
        f"{row.predicted_bytes / 1e6:10.1f} {row.ratio:6.2f} {holes:>6} {row.process_bytes / 1e6:8.0f}{off}",
        flush=True,
    )


def print_summary(rows: Sequence[Row]) -> None:
    ratios = [row.ratio for row in rows]
    within = sum(abs(ratio - 1) <= WITHIN for ratio in ratios)
    print(
        f"{within} of {len(rows)} within {WITHIN:.0%}; ratios {min(ratios):.2f} to {max(ratios):.2f}, median {statistics.median(ratios):.2f}."
    )
    for name, dense in (("with routed experts", False), ("dense", True)):
        holes = [row.holes for row in rows if row.holes is not None and row.size.endswith(DENSE) is dense]
        if holes:
            print(f"holes, {name}: {min(holes):.2f} to {max(holes):.2f}, median {statistics.median(holes):.2f}.")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="Three small packs.")
    parser.add_argument("--json", type=Path, metavar="FILE", help="Also write the rows to this file.")
    parser.add_argument("--sizes", nargs="+", metavar="SIZE", help="Only packs of these sizes.")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        measured_process(options.measure)
        return 0
    wanted = [(shape, members) for shape, members in packs(options.quick) if not options.sizes or shape.size in options.sizes]
    wrong = _what_is_wrong(options, wanted)
    if wrong is not None:
        print(wrong, file=sys.stderr)
        return 2
    print(
        f"{'size':13} {'vocab':>6} {'tokens':>6} {'members':>10} {'measured MB':>11} {'predicted':>10} {'ratio':>6} {'holes':>6} {'process':>8}"
    )
    rows: list[Row] = []
    failures = 0
    for shape, members in wanted:
        try:
            new = list(rows_of(shape, members))
        except MeasuringError as error:
            print(error, file=sys.stderr)
            failures += 1
            continue
        for row in new:
            print_row(row)
        rows += new
        if options.json:
            write_rows(options.json, rows)
    if rows:
        print_summary(rows)
    return 1 if failures else 0


def _what_is_wrong(options: argparse.Namespace, wanted: Sequence[object]) -> str | None:
    """With options or machine, in a sentence; None: nothing."""
    unknown = sorted(set(options.sizes or []) - set(SIZES))
    if unknown:
        return f"Unknown size {', '.join(unknown)}; known sizes: {', '.join(SIZES)}."
    if not wanted:
        return f"Nothing is left to measure: packs here are of {', '.join(dict.fromkeys(shape.size for shape, _ in packs(options.quick)))}."
    if not Path("/proc/self/status").exists():
        return "The peak of a process is read from /proc/self/status, which this system lacks."
    return why_unwritable(options.json) if options.json is not None else None


if __name__ == "__main__":
    sys.exit(main())
