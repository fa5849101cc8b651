"""What there is to run on: slots, free memory and free disk, of this machine or of a Ray cluster that answers.

Slots are counted as `RayRunner` will count them, without starting Ray. The trade-off: the memory of a cluster is its sum, as Ray reports it,
and not what each node has free.
"""

from __future__ import annotations

import os
from pathlib import Path

from mixopt.config import Experiment, RayConfig
from mixopt.cost import Machine
from workers.output_folder import free_bytes
from workers.packing import Device

ROOT = Path("/")


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
        disk_bytes=float(free_bytes(experiment.output_dir)),
        nodes=max(1, int(found.get("nodes", 1))),
    )


def this_machine(experiment: Experiment | None = None) -> Machine:
    """This machine, with the slots that the runner of this experiment has on it, or would have without a cluster; None: by default."""
    ray = experiment.ray if experiment else RayConfig()
    gpus = 0 if ray.address == "in-process" else _gpus()
    slots = 1 if ray.address == "in-process" else ray.cpus or cores()
    return Machine(
        where="this machine",
        device="cuda" if gpus else "cpu",
        slots=min(gpus, slots) if gpus else slots,
        memory_bytes=free_memory(),
        disk_bytes=float(free_bytes(experiment.output_dir)) if experiment else None,
        device_bytes=_gpu_bytes() if gpus else None,
    )


def cores() -> int:
    """Cores that a local Ray would offer: those of the machine, or the quota of its container."""
    count, quota = os.cpu_count() or 1, cpu_quota()
    return count if quota is None else min(count, max(1, int(quota)))


def cpu_quota(root: Path = ROOT) -> float | None:
    """Cores' worth of time that the container may use; None: no limit."""
    words = _words(root / "sys/fs/cgroup/cpu.max")  # cgroup v2
    if len(words) != 2:
        words = _words(root / "sys/fs/cgroup/cpu/cpu.cfs_quota_us")[:1] + _words(root / "sys/fs/cgroup/cpu/cpu.cfs_period_us")[:1]
    if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
        return int(words[0]) / int(words[1])
    return None


def free_memory(root: Path = ROOT) -> float | None:
    """Bytes that new processes can take: of the machine, or of the container where that is less."""
    known = []
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            known.append(1024.0 * int(rest.split()[0]))
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        bound, taken = _words(root / "sys/fs/cgroup" / limit), _words(root / "sys/fs/cgroup" / used)
        if bound and taken and bound[0].isdigit() and taken[0].isdigit():
            known.append(max(0.0, float(bound[0]) - float(taken[0])))
    return min(known, default=None)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _gpus() -> int:
    """GPUs that torch can use here; torch is only loaded where a driver is installed."""
    if not Path("/proc/driver/nvidia").exists():
        return 0
    import torch

    return torch.cuda.device_count()


def _gpu_bytes() -> float:
    """Memory of the smallest GPU here."""
    import torch

    return min(float(torch.cuda.get_device_properties(number).total_memory) for number in range(torch.cuda.device_count()))
