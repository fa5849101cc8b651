"""A few seconds of real training on made-up tokens, one process per slot at once: how fast this machine is, before anything is prepared.

The processes train through `proxy_models.train.train_pack`, with the environment that Ray workers get, and at the same time, because slots
share caches, memory bandwidth and whatever else runs here. Nothing outlives the temporary folder. The trade-off: a few steps on a busy
machine say what it does now; trials of an earlier search say it better, and are preferred where there are any.

Run as a module it is one of these processes. They talk through files in the folder: a process writes `ready-N` once torch is loaded, begins
when `go` appears, and writes one result per shape.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mixopt.cost import Machine, Shape
from mixopt.progress import Reporter
from proxy_models.config import proxy_config
from workers.machine import this_machine
from workers.memory import host_memory_bytes
from workers.packing import Device
from workers.planning.speed import ASSUMED_FLOPS_PER_SECOND

PROBE_SECONDS = 20.0
"""Wanted for a whole probe, the start of its processes included."""
LEAST_TRAINING_SECONDS = 2.0
MOST_TRAINING_SECONDS = 6.0
START_SECONDS = 30.0
"""After which a process that has not loaded torch is given up: five times what a busy machine took."""
STEP_SECONDS = 0.3
"""A pack for the probe is made smaller until one step of it takes about so long; packs gain next to nothing where steps are that long."""
PATIENCE_SECONDS = 10.0
"""Of the fewest steps of one shape at the assumed speed: longer ones are shortened to fewer windows, and given up if one takes longer."""
DRAWN_PER_SECOND = 100e6
"""Initial weights: a third of what one core drew."""
POLL_SECONDS = 0.02
UNIQUE_WINDOWS = 64
# A step before the clock starts: buffers are allocated, code is loaded.
FEWEST_STEPS = 2


@dataclass(frozen=True)
class ProbeShape:
    """What one process trains: a pack of `members` proxies."""

    shape: Shape
    members: int

    @property
    def flops_per_step(self) -> float:
        config = proxy_config(self.shape.size, self.shape.vocab_size)
        return config.training_flops_per_token(self.shape.window) * self.shape.tokens_per_step * self.members

    @property
    def expected_seconds(self) -> float:
        """Of initial weights and the fewest steps that a probe makes, at the assumed speed."""
        drawn = self.members * proxy_config(self.shape.size, self.shape.vocab_size).parameters().total
        return drawn / DRAWN_PER_SECOND + (FEWEST_STEPS + 1) * self.flops_per_step / ASSUMED_FLOPS_PER_SECOND


def probe_for(machine: Machine, shapes: Mapping[Shape, int], reporter: Reporter) -> tuple[dict[Shape, tuple[float, float]], list[str]]:
    """What a few seconds of training here say of `shapes` (shape -> trials of a pack), whose trials will run on `machine`; as `probe_speed`.

    Returns:
        The speeds, and what a reader has to know of them: what was left out, that this machine was busy, that it is not the one of the trials. For
        the GPUs of a cluster nothing is measured: this machine says nothing about them.
    """
    local = machine.where == "this machine"
    if not shapes or (not local and machine.device != "cpu"):
        return {}, []
    load = os.getloadavg()[0]
    wanted, slots = fitting(shapes, machine if local else replace(this_machine(), device=machine.device))
    left_out = sorted({shape.size for shape in shapes} - {shape.size for shape in wanted})
    notes = []
    if left_out:
        notes.append(f"The speed of {', '.join(left_out)} was not measured: a few steps would take too long, or too much memory.")
    if not wanted:
        return {}, notes
    probed = probe_speed(wanted, slots, machine.device, reporter)
    if not probed:
        notes.append(f"The probe of the speed came to no result in its time (load {load:.1f} on {slots} slots).")
        return {}, notes
    if load > slots / 2:
        notes.append(f"This machine was busy while its speed was measured (load {load:.1f} on {slots} slots): alone it is faster.")
    if not local:
        notes.append(f"Speed was measured on this machine, not on {machine.where}.")
    return probed, notes


def probe_speed(
    shapes: Mapping[Shape, int], slots: int, device: Device, reporter: Reporter, seconds: float = PROBE_SECONDS
) -> dict[Shape, tuple[float, float]]:
    """Speed of one slot in useful FLOPs per second, and the seconds it rests on, for each shape that could be measured in the time.

    Args:
        shapes: shape -> trials of a pack of it.
        slots: processes at once.
    """
    wanted = [ProbeShape(shape, _members(shape, pack_size)) for shape, pack_size in shapes.items()]
    with tempfile.TemporaryDirectory(prefix="mixopt-probe-") as name, reporter.stage("Measuring the speed of training", None, ""):
        return _Probe(Path(name), wanted, slots, device, seconds).run()


def fitting(shapes: Mapping[Shape, int], here: Machine) -> tuple[dict[Shape, int], int]:
    """What can be probed on this machine for these shapes (shape -> trials of a pack), the quickest first, and by how many processes at once.

    Steps that would take too long are made shorter; a shape of which even one window takes too long, or which does not fit into memory on all
    slots, is left out. Fewer slots are taken only where nothing fits on all. A machine whose memory does not suffice for a search must not be filled by
    the plan of it.
    """
    short = {}
    for shape, pack_size in sorted(shapes.items(), key=lambda pair: ProbeShape(pair[0], 1).expected_seconds):
        shortened = _shortened(shape)
        if shortened is not None:
            short[shortened] = pack_size
    for slots in range(here.slots, 0, -1):
        room = math.inf if here.memory_bytes is None else here.memory_bytes / slots
        wanted = {shape: pack_size for shape, pack_size in short.items() if _host_bytes(shape, pack_size, here) <= room}
        if wanted:
            return wanted, slots
    return {}, here.slots


def _shortened(shape: Shape) -> Shape | None:
    """The shape with as many windows per step as let a probe end in its time; None: not even one does."""
    one_window = ProbeShape(replace(shape, tokens_per_step=shape.window), 1)
    windows = min(shape.tokens_per_step // shape.window, int(PATIENCE_SECONDS / one_window.expected_seconds))
    return replace(shape, tokens_per_step=windows * shape.window) if windows else None


def _host_bytes(shape: Shape, pack_size: int, here: Machine) -> float:
    config = proxy_config(shape.size, shape.vocab_size)
    return host_memory_bytes(config, shape.window, shape.tokens_per_step, _members(shape, pack_size), here.device)


def _members(shape: Shape, pack_size: int) -> int:
    one = ProbeShape(shape, 1).flops_per_step
    return max(1, min(pack_size, int(STEP_SECONDS * ASSUMED_FLOPS_PER_SECOND / one)))


class _Probe:
    def __init__(self, folder: Path, shapes: Sequence[ProbeShape], slots: int, device: Device, seconds: float) -> None:
        self._folder, self._shapes, self._slots, self._device, self._seconds = folder, shapes, slots, device, seconds
        self._started = time.monotonic()
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self) -> dict[Shape, tuple[float, float]]:
        try:
            self._start()
            self._wait(lambda number: (self._folder / f"ready-{number}").exists(), START_SECONDS)
            left = self._seconds - (time.monotonic() - self._started)
            training = min(MOST_TRAINING_SECONDS, max(LEAST_TRAINING_SECONDS, left / len(self._shapes)))
            _write(self._folder / "go", {"seconds": training})
            # A shape whose steps take longer than all of its time is given up: what the others measured is scaled to it.
            last = len(self._shapes) - 1
            patience = sum(training + max(MOST_TRAINING_SECONDS, 2 * wanted.expected_seconds) for wanted in self._shapes)
            self._wait(lambda number: _result(self._folder, number, last).exists(), patience)
        finally:
            for process in self._processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
        return self._results()

    def _start(self) -> None:
        from workers.ray_runner import WORKER_ENVIRONMENT

        for number in range(self._slots):
            environment = {**os.environ, **WORKER_ENVIRONMENT}
            if self._device == "cuda":
                environment["CUDA_VISIBLE_DEVICES"] = str(number)
            job = {
                "shapes": [asdict(shape) for shape in self._shapes],
                "device": self._device,
                "number": number,
                "folder": str(self._folder),
            }
            command = [sys.executable, "-m", "workers.planning.probe", json.dumps(job)]
            self._processes.append(
                subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )

    def _wait(self, done: Callable[[int], bool], seconds: float) -> None:
        """Until every process is done or has ended, or the time is over."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if all(done(number) or process.poll() is not None for number, process in enumerate(self._processes)):
                return
            time.sleep(POLL_SECONDS)

    def _results(self) -> dict[Shape, tuple[float, float]]:
        """Means over the processes; a shape counts only where every process measured it, because fewer of them contend less."""
        found: dict[Shape, list[tuple[float, float]]] = {}
        for path in self._folder.glob("result-*.json"):
            body = json.loads(path.read_text(encoding="utf-8"))
            found.setdefault(Shape(**body["shape"]), []).append((body["flops"], body["seconds"]))
        return {
            shape: (sum(flops / seconds for flops, seconds in runs) / len(runs), sum(seconds for _, seconds in runs) / len(runs))
            for shape, runs in found.items()
            if len(runs) == self._slots
        }


class _Enough(Exception):
    """A probe has trained for its time."""


def train_for_a_while(wanted: ProbeShape, folder: Path, device: str, seconds: float, checkpoint: bool = False) -> tuple[float, float]:
    """Trains a pack for `seconds`; returns useful FLOPs and the seconds they took, the first step left out.

    Args:
        checkpoint: end by writing checkpoints, as a pack that is stopped does; they may be gigabytes.
    """
    import numpy as np

    from proxy_models.token_store import TokenWriter
    from proxy_models.train import DomainStream, MemberSpec, TrainSettings, train_pack

    shape = wanted.shape
    folder.mkdir()
    streams: list[DomainStream] = []
    for name in ("one", "two"):
        ids = np.random.default_rng(len(streams)).integers(0, shape.vocab_size, UNIQUE_WINDOWS * shape.window + 1)
        with TokenWriter(folder / f"{name}.tokens", shape.vocab_size, "probe") as writer:
            writer.add(ids.tolist(), len(ids), 0)
            writer.close(name)
        streams.append(DomainStream(name, folder / f"{name}.tokens", UNIQUE_WINDOWS * shape.window))
    members = [MemberSpec(f"m{number}", number, 1e-3, tuple(streams), ((0.5, 0.5),)) for number in range(wanted.members)]
    # More tokens than fit into the time.
    settings = TrainSettings(10**6 * shape.tokens_per_step, shape.window, shape.tokens_per_step, checkpoint_seconds=1e9)
    times: list[float] = []
    begun = time.monotonic()

    def enough() -> bool:
        return len(times) >= FEWEST_STEPS and time.monotonic() - begun >= seconds

    def on_progress(_: Mapping[str, int]) -> None:
        times.append(time.monotonic())
        if enough() and not checkpoint:
            raise _Enough

    with suppress(_Enough):
        train_pack(
            proxy_config(shape.size, shape.vocab_size),
            settings,
            members,
            [],
            {member.member_id: folder / member.member_id for member in members},
            device=device,
            on_progress=on_progress,
            should_stop=lambda ids: ids if enough() else (),
        )
    return wanted.flops_per_step * (len(times) - 1), times[-1] - times[0]


def main(job: Mapping[str, Any]) -> None:
    """One process of a probe."""
    import torch

    from proxy_models.train import train_pack  # noqa: F401 - loaded before the clock starts

    torch.set_num_threads(1)
    folder, number = Path(job["folder"]), int(job["number"])
    (folder / f"ready-{number}").touch()
    patience = time.monotonic() + 2 * START_SECONDS
    while not (folder / "go").exists():
        if time.monotonic() > patience or not folder.exists():
            return  # whoever asked is gone
        time.sleep(POLL_SECONDS)
    seconds = float(json.loads((folder / "go").read_text(encoding="utf-8"))["seconds"])
    for index, body in enumerate(job["shapes"]):
        wanted = ProbeShape(Shape(**body["shape"]), int(body["members"]))
        flops, taken = train_for_a_while(wanted, folder / f"pack-{number}-{index}", str(job["device"]), seconds)
        result = {"shape": body["shape"], "flops": flops, "seconds": taken}
        _write(_result(folder, number, index), result)


def _result(folder: Path, number: int, shape: int) -> Path:
    return folder / f"result-{number}-{shape}.json"


def _write(path: Path, body: Mapping[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(body), encoding="utf-8")
    os.replace(temporary, path)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
