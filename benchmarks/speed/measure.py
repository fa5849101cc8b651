"""Measures the lines of one shape in turns, and makes rows of what it measured."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from speed.disturbance import Disturbance
from speed.plan import Line, Shape, available_memory_bytes, left_out, sets_in_memory
from speed.processes import ProcessError, Stretch, Worker, take_turn
from speed.table import Row

PACE_TOKENS_PER_SECOND = 6e6
"""What an H200 is expected to train of 64 micro members at 1,024 tokens each (arithmetic: packed-training notes, section 6)."""

PACE_SHAPE = Shape("micro", 128, 1024, 8192)
PACE_MEMBERS = 64
PATIENCE = 20
"""Times the predicted seconds of a step before a process is given up."""


@dataclass(frozen=True)
class Bench:
    """What all measurements have in common.

    Attributes:
        root: the checkout that is measured.
        domains: token files, and how many tokens of each a member may see.
        seconds: of a turn.
        cores: processes busy at once.
    """

    root: Path
    domains: list[Path]
    device: str
    repeats: int
    seconds: float
    cores: int
    unique_tokens: int

    def job(self, shape: Shape | None, line: Line) -> dict[str, Any]:
        body: dict[str, Any] = {"kind": line.kind, "members": line.members, "device": self.device, **line.options}
        if shape is not None:
            body |= {"size": shape.size, "window": shape.window, "tokens_per_step": shape.tokens_per_step, "vocab_size": shape.vocab_size}
            body |= {"domains": [str(path) for path in self.domains], "unique_tokens": self.unique_tokens}
        return body

    def start(self, shape: Shape | None, line: Line, peak: float) -> list[Worker]:
        """As many processes as the line needs at most, not waited for."""
        step = line.step_seconds(shape, peak) if shape is not None else 1.0
        return [Worker(self.job(shape, line), line.engine, line.allocator, 10 + PATIENCE * step) for _ in range(max(line.processes))]

    def peak(self) -> float:
        """FLOPs per second of the matrix product, measured once; to predict with."""
        with Worker(self.job(None, self.peak_line), self.root, "workers", 30.0) as worker:
            worker.wait_ready()
            return self.rate(take_turn([worker], self.seconds))

    @property
    def peak_line(self) -> Line:
        return Line("peak", "peak", 1, self.root)

    def rate(self, stretches: Sequence[Stretch]) -> float:
        """What shares of the peak are shares of: by CPU time of one process, on a GPU by the clock."""
        if self.device == "cpu":
            return sum(one.tokens for one in stretches) / sum(one.cpu_seconds for one in stretches)
        return sum(one.tokens_per_second for one in stretches)


@dataclass
class Running:
    """A line while it is measured.

    Attributes:
        rounds: processes -> what they did, by the number of the round.
        error: why it was given up, or left out.
        last_words: of its first process.
    """

    line: Line
    workers: list[Worker] = field(default_factory=list)
    rounds: dict[int, dict[int, list[Stretch]]] = field(default_factory=dict)
    error: str | None = None
    last_words: dict[str, Any] = field(default_factory=dict)

    def losses_nats(self) -> list[float]:
        """Mean over members, by step."""
        members = self.last_words.get("losses_nats") or []
        return [statistics.fmean(values) for values in zip(*members, strict=True)] if members else []


def measure_shape(bench: Bench, shape: Shape, lines: Sequence[Line], peak: float) -> list[Row]:
    """Rows of a shape, in the order of `lines`; a line that fails has one that says why."""
    memory = available_memory_bytes(bench.device)
    running = [Running(line.for_shape(shape, peak), error=left_out(line, shape, peak, memory)) for line in lines]
    peaks: dict[int, float] = {}
    disturbance = Disturbance()
    measured = [one.line for one in running if one.error is None]
    for number, together in enumerate(sets_in_memory(measured, shape, memory)):
        chosen = [one for one in running if one.line in together]
        _measure_set(bench, shape, chosen, peaks, peak, first_round=number * bench.repeats)
    others, stolen = disturbance.shares()
    return [row.with_values(others_share=others, stolen_share=stolen) for row in rows_of(bench, shape, running, peaks)]


def _measure_set(bench: Bench, shape: Shape, running: Sequence[Running], peaks: dict[int, float], peak: float, first_round: int) -> None:
    """Takes turns among lines that are in memory together; fills in their rounds and the peak of each round."""
    with ExitStack() as stack:
        multiplier = stack.enter_context(Worker(bench.job(None, bench.peak_line), bench.root, "workers", 30.0))
        multiplier.wait_ready()
        for one in running:
            one.workers = [stack.enter_context(worker) for worker in bench.start(shape, one.line, peak)]
        for one in running:
            try:
                for worker in one.workers:
                    worker.wait_ready()
            except ProcessError as error:
                _give_up(one, error)
        for number in range(first_round, first_round + bench.repeats):
            peaks[number] = bench.rate(take_turn([multiplier], bench.seconds / 2))
            # Another line begins in every round, so that none always follows the same one.
            turn = number % max(1, len(running))
            for one in [*running[turn:], *running[:turn]]:
                for processes in one.line.processes:
                    if one.error is None:
                        try:
                            one.rounds.setdefault(processes, {})[number] = take_turn(one.workers[:processes], bench.seconds)
                        except ProcessError as error:
                            _give_up(one, error)
        for one in running:
            if one.error is None:
                try:
                    one.last_words = one.workers[0].end()
                except ProcessError as error:
                    print(f"Losses are not known: {error}", file=sys.stderr)


def _give_up(one: Running, error: ProcessError) -> None:
    one.error = str(error)
    for worker in one.workers:
        worker.kill()


def rows_of(bench: Bench, shape: Shape, running: Sequence[Running], peaks: Mapping[int, float]) -> list[Row]:
    """Rows of all lines of a shape: medians and ranges over rounds."""
    reference = next((one for one in running if one.line.is_reference), None)
    trainers = [one for one in running if one.line.kind != "data path" and one.losses_nats()]
    loss_steps = min((len(one.losses_nats()) for one in trainers), default=0)
    rows = []
    for one in running:
        if not one.rounds or one.error is not None:
            rows.append(_row(bench, shape, one.line, 1, error=one.error or "not measured"))
        for processes, rounds in one.rounds.items():
            row = _row(bench, shape, one.line, processes)
            row = _with_speed(row, bench, one.line, rounds, peaks, shape.flops_per_token)
            if reference is not None and one.line.kind != "data path":
                row = _with_ratios(row, bench, rounds, reference.rounds.get(processes, {}))
            losses = one.losses_nats()[:loss_steps]
            if losses:
                tail = losses[-max(1, loss_steps // 3) :]
                row = row.with_values(first_loss_nats=losses[0], loss_nats=statistics.fmean(tail), loss_steps=loss_steps)
            rows.append(row.with_values(peak_resident_bytes=one.last_words.get("peak_resident_bytes")))
    return _with_comparisons_of_own(rows)


def _row(bench: Bench, shape: Shape, line: Line, processes: int, error: str | None = None) -> Row:
    return Row(
        size=shape.size,
        window=shape.window,
        tokens_per_step=shape.tokens_per_step,
        vocab_size=shape.vocab_size,
        members=line.members,
        implementation=line.implementation,
        allocator=line.allocator,
        processes=processes,
        device=bench.device,
        error=error,
    )


def _with_speed(
    row: Row, bench: Bench, line: Line, rounds: Mapping[int, Sequence[Stretch]], peaks: Mapping[int, float], flops_per_token: float
) -> Row:
    by_clock = [sum(one.tokens_per_second for one in stretches) for stretches in rounds.values()]
    by_cpu = [sum(one.tokens for one in stretches) / max(1e-9, sum(one.cpu_seconds for one in stretches)) for stretches in rounds.values()]
    row = row.with_values(
        repeats=len(rounds),
        steps=sum(one.steps for stretches in rounds.values() for one in stretches),
        **_spread("tokens_per_second", by_clock),
        **_spread("tokens_per_cpu_second", by_cpu),
    )
    if line.kind == "data path":
        return row
    peak = statistics.median(peaks[number] for number in rounds)
    shares = [bench.rate(stretches) * flops_per_token / peak for stretches in rounds.values()]
    return row.with_values(flops_per_token=flops_per_token, peak_flops_per_second=peak, **_spread("share_of_peak", shares))


def _with_ratios(row: Row, bench: Bench, rounds: Mapping[int, Sequence[Stretch]], others: Mapping[int, Sequence[Stretch]]) -> Row:
    """To the reference, round by round."""
    common = [(rounds[number], others[number]) for number in rounds if number in others]
    if not common:
        return row
    by_clock = [sum(s.tokens_per_second for s in own) / sum(s.tokens_per_second for s in other) for own, other in common]
    row = row.with_values(**_spread("ratio_to_transformers", by_clock))
    if bench.device != "cpu":
        return row
    return row.with_values(**_spread("ratio_per_cpu_second", [bench.rate(own) / bench.rate(other) for own, other in common]))


def _with_comparisons_of_own(rows: Sequence[Row]) -> list[Row]:
    """What needs other rows of the shape: mixopt with one member, `transformers` as it is without settings, the training a data path feeds."""
    return [_compared(row, [other for other in rows if other.processes == row.processes]) for row in rows]


def _compared(row: Row, others: Sequence[Row]) -> Row:
    own = _pace(row)
    if own is None:
        return row
    if row.implementation == "data path":
        # The fastest training of the shape, whatever its members.
        fed = [pace for other in others if other.implementation == "mixopt" and (pace := _pace(other))]
        return row.with_values(times_training=own / max(fed) if fed else None)
    if not row.implementation.startswith("mixopt"):
        return row
    alone = next((_pace(other) for other in others if other.implementation == row.implementation and other.members == 1), None)
    bare = next((_pace(other) for other in others if other.allocator == "default"), None)
    return row.with_values(ratio_to_one_member=own / alone if alone else None, ratio_to_default_allocator=own / bare if bare else None)


def _pace(row: Row) -> float | None:
    """Tokens per CPU second on a CPU, which other work on the machine hardly moves; by the clock on a GPU."""
    return row.tokens_per_cpu_second if row.device == "cpu" else row.tokens_per_second


def measure_pace(bench: Bench) -> list[Row]:
    """The data path at the pace of a GPU, which is assumed: many members, fed from one core.

    Raises:
        ProcessError: the process ended or did not answer.
    """
    line = Line("data path", "data path", PACE_MEMBERS, bench.root)
    rounds = {}
    with Worker(bench.job(PACE_SHAPE, line), bench.root, "workers", 30.0) as worker:
        worker.wait_ready()
        for number in range(bench.repeats):
            rounds[number] = take_turn([worker], bench.seconds)
    row = _with_speed(_row(bench, PACE_SHAPE, line, 1), bench, line, rounds, {}, PACE_SHAPE.flops_per_token)
    times = (_pace(row) or 0.0) / PACE_TOKENS_PER_SECOND
    return [row.with_values(device="cpu, at an assumed pace", times_training=times)]


def _spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Median and range under a row's names."""
    return {name: statistics.median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
