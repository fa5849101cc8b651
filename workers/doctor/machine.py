"""Cores, memory, shared memory, disk, open files, threads: what this machine, or the container we are in, has to offer.

Files of the kernel are read from a root that tests replace. The trade-off: Linux only, where mixopt runs.
"""

from __future__ import annotations

import os
import resource
import tempfile
from pathlib import Path

from mixopt.config import Experiment
from mixopt.cost import Shape
from mixopt.proxy_config import ProxyConfig as ProxySettings
from proxy_models.config import proxy_config
from workers.doctor.findings import Finding, ok, problem, warning
from workers.machine import ROOT, cpu_quota, free_memory
from workers.memory import pack_memory_bytes
from workers.output_folder import existing_folder, free_bytes, lack_of_space
from workers.packing import pack_size_of
from workers.ray_runner import OBJECT_STORE_BYTES

# Of `ray start` itself: it asks for as many, and every worker and connection takes some.
FEWEST_OPEN_FILES = 4096
# Ray stops storing objects on a file system that is fuller (its `local_fs_capacity_threshold`).
RAY_FULL_SHARE = 0.95
# Linux, `sockaddr_un`: 107 characters and a closing zero. Ray puts about 60 behind its folder, and ours is `mixopt-` with 8 letters.
SOCKET_CHARACTERS, RAY_SOCKET_CHARACTERS = 107, 60 + 16


def cores(experiment: Experiment | None = None, root: Path = ROOT) -> list[Finding]:
    """Cores this process may use, against those that Ray counts."""
    usable, counted = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    quota = cpu_quota(root)
    limit = min(usable, max(1, int(quota))) if quota else usable
    load = os.getloadavg()[0]
    asked = experiment.ray.cpus if experiment and experiment.ray.cpus else None
    found = []
    if _runs_here(experiment) and limit < counted and (asked is None or asked > limit):
        reason = f"a quota of {quota:g}" if quota and quota < usable else "the affinity of this process"
        found.append(
            warning(
                "cores",
                f"{limit} of {counted} cores may be used ({reason}); Ray may count {counted} and start too many workers.",
                f"Set `ray.cpus: {limit}` in the experiment file.",
            )
        )
    else:
        found.append(ok("cores", f"{limit} may be used."))
    if load > 1.5 * limit:
        found.append(
            warning("load", f"{load:.1f} processes want {limit} cores: others work here too.", "Wait for them, or expect longer times.")
        )
    return found


def _runs_here(experiment: Experiment | None) -> bool:
    return experiment is None or experiment.ray.address in (None, "in-process")


def memory(experiment: Experiment | None = None, root: Path = ROOT) -> list[Finding]:
    """Free memory against what packs of the experiment need, one per core; without an experiment, of nano proxies."""
    free = free_memory(root)
    if not _runs_here(experiment):
        return [ok("memory", "Packs run in the cluster; Ray looks after its nodes.")]
    if free is None:
        return [warning("memory", "How much memory is free is unknown here.", "Watch it while the first trials run.")]
    if experiment is not None and experiment.trainer is not None:
        return [ok("memory", f"{free / 1e9:.1f} GB free; what a trainer of your own needs is not known here.")]
    in_process = experiment is not None and experiment.ray.address == "in-process"
    slots = 1 if in_process else (experiment.ray.cpus if experiment and experiment.ray.cpus else len(os.sched_getaffinity(0)))
    size, needed = _largest_pack(experiment)
    total = slots * needed
    found = f"{free / 1e9:.1f} GB free; {slots} packs of {size} proxies at once need about {total / 1e9:.1f} GB."
    if free < needed:
        return [problem("memory", found, "End other programs, or set `ray.pack_size: 1` and a smaller `proxy.size` or `tokens_per_step`.")]
    if free < total:
        return [warning("memory", found, f"Set `ray.cpus: {max(1, int(free // needed))}`, or a smaller `ray.pack_size`.")]
    return [ok("memory", found)]


def _largest_pack(experiment: Experiment | None) -> tuple[str, float]:
    """(size, bytes) of the pack that needs most."""
    proxy = experiment.proxy if experiment else ProxySettings()
    vocabulary = experiment.tokenizer.vocab_size if experiment else 8192
    sizes = {proxy.size} | ({experiment.verification.size} if experiment and experiment.verification.enabled else set())
    needs = {}
    for name in sizes:
        shape = Shape(name, vocabulary, proxy.window, proxy.tokens_per_step)
        members = (experiment.ray.pack_size if experiment else None) or pack_size_of(shape)
        needs[f"{members} {name}"] = pack_memory_bytes(proxy_config(name, vocabulary), proxy.window, proxy.tokens_per_step, members)
    largest = max(needs, key=lambda pack: needs[pack])
    return largest, needs[largest]


def output_disk(folder: Path) -> list[Finding]:
    """Whether the output folder can be written, and what is free; makes nothing."""
    place = existing_folder(folder)
    if not place.is_dir():
        return [problem("output", f"{place} is a file; {folder} cannot be made below it.", "Name another `output`.")]
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return [problem("output", f"{place} cannot be written ({error.strerror}).", "Mend its permissions, or name another `output`.")]
    lack = lack_of_space(folder)
    if lack:
        return [problem("output", f"{folder}, {lack}.", "Free space there, or name a folder on another disk.")]
    return [ok("output", f"{folder}: {free_bytes(folder) / 1e9:,.1f} GB free.")]


def temporary_disk() -> list[Finding]:
    """The folder for temporary files: Ray keeps its sockets and logs there."""
    folder = Path(tempfile.gettempdir())
    facts = os.statvfs(folder)
    free, full = facts.f_bavail * facts.f_frsize, 1 - facts.f_bavail / max(facts.f_blocks, 1)
    remedy = "Free space there, or set TMPDIR to a folder on a local disk."
    if len(str(folder)) + RAY_SOCKET_CHARACTERS > SOCKET_CHARACTERS:
        return [
            problem("temporary files", f"{folder} is too long a path for Ray's sockets.", "Set TMPDIR to a shorter path, such as /tmp.")
        ]
    if full > RAY_FULL_SHARE:
        return [warning("temporary files", f"{folder} is {full:.0%} full; above {RAY_FULL_SHARE:.0%} Ray stops storing objects.", remedy)]
    if free < 1e9:
        return [warning("temporary files", f"{folder} has {free / 1e6:,.0f} MB free; Ray's logs alone may take some hundreds.", remedy)]
    return [ok("temporary files", f"{folder}: {free / 1e9:,.1f} GB free.")]


def shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Where Ray passes objects between processes."""
    topic, needed = "shared memory", OBJECT_STORE_BYTES
    if not folder.is_dir():
        return [warning(topic, f"There is no {folder}; Ray uses a slower disk.", "Mount one: `--shm-size=1g` for a container.")]
    facts = os.statvfs(folder)
    free = facts.f_bavail * facts.f_frsize
    if free < needed:
        return [
            warning(
                topic,
                f"{folder} has {free / 1e6:,.0f} MB free, less than the {needed / 1e6:,.0f} MB that Ray sets aside.",
                "Enlarge it: `--shm-size=1g` for a container, an emptyDir of medium Memory for a pod.",
            )
        ]
    return [ok(topic, f"{folder}: {free / 1e9:,.1f} GB free.")]


def open_files() -> list[Finding]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (float("inf") if limit == resource.RLIM_INFINITY else limit for limit in limits)
    # Ray raises its own limit as far as it may.
    if hard < FEWEST_OPEN_FILES:
        return [
            warning("open files", f"A process may hold {hard:g} open, Ray asks for {FEWEST_OPEN_FILES}.", "Raise it: `ulimit -n 65536`.")
        ]
    return [ok("open files", f"{soft:g} per process, {hard:g} at most.")]


def threads() -> list[Finding]:
    """Of this process; workers are told one each."""
    asked = {name: os.environ[name] for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name in os.environ}
    more = [f"{name}={value}" for name, value in asked.items() if value != "1"]
    if more:
        return [
            warning(
                "threads",
                f"{', '.join(more)}: surrogates and packs in process use more than one thread each.",
                "Leave them unset or set them to 1; one single-thread process per core is the fastest arrangement.",
            )
        ]
    return [ok("threads", "One per process, one process per core: the fastest arrangement.")]
