"""What there is to run on: slots, free memory and free disk, of this machine or of a Ray cluster that answers.

Slots are counted as `RayRunner` will count them, without starting Ray. The trade-off: the memory of a cluster is its sum, as Ray reports it,
and not what each node has free.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mixopt.config import Experiment
from mixopt.cost import Machine
from workers.plan import Device

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def look_at(experiment: Experiment) -> Machine:
    """Where this experiment's trials would run.

    Raises:
        ConfigError, RunError: a Ray address is given and is none, or no cluster answers there; as `workers.ray_runner.probe`.
    """
    address = experiment.ray.address
    if address is None or address == "in-process":
        return this_machine(experiment)
    from workers.ray_runner import probe

    found = probe(address)
    cores, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    device: Device = "cuda" if gpus else "cpu"
    slots = max(1, min(gpus, cores) if gpus else cores)
    return Machine(
        where=f"the Ray cluster at {address}",
        device=device,
        slots=slots,
        memory_bytes=found.get("memory"),
        disk_bytes=free_disk(experiment.output_dir),
        nodes=max(1, int(found.get("nodes", 1))),
    )


def this_machine(experiment: Experiment) -> Machine:
    """This machine, with the slots that the runner of this experiment has on it, or would have without a cluster."""
    gpus = 0 if experiment.ray.address == "in-process" else _gpus()
    slots = 1 if experiment.ray.address == "in-process" else experiment.ray.cpus or cores()
    return Machine(
        where="this machine",
        device="cuda" if gpus else "cpu",
        slots=min(gpus, slots) if gpus else slots,
        memory_bytes=available_memory(),
        disk_bytes=free_disk(experiment.output_dir),
    )


def cores() -> int:
    """Cores that a local Ray would offer: those of the machine, or the quota of its container."""
    count = os.cpu_count() or 1
    quota = _first_words(CGROUP / "cpu.max")
    if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
        count = min(count, max(1, int(quota[0]) // int(quota[1])))
    return count


def available_memory() -> float | None:
    """Bytes that a new process could take without swapping: of the machine, or of its container if that is less; None: unknown."""
    available: float | None = None
    if MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text(encoding="ascii").splitlines() if ":" in line)
        if "MemAvailable" in fields:
            available = 1024.0 * int(fields["MemAvailable"].split()[0])
    limit, used = _first_words(CGROUP / "memory.max"), _first_words(CGROUP / "memory.current")
    if limit and used and limit[0].isdigit() and used[0].isdigit():
        room = float(max(0, int(limit[0]) - int(used[0])))
        available = room if available is None else min(available, room)
    return available


def free_disk(folder: Path) -> float | None:
    """Bytes free where `folder` is or will be; None: unknown."""
    for place in (folder, *folder.parents):
        if place.exists():
            return float(shutil.disk_usage(place).free)
    return None


def _first_words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except OSError:
        return []


def _gpus() -> int:
    """GPUs that torch can use here; torch is only loaded where a driver is installed."""
    if not Path("/proc/driver/nvidia").exists():
        return 0
    import torch

    return torch.cuda.device_count()
