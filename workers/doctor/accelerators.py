"""GPUs, threads and memory allocator, as a worker of ours finds them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from workers.doctor.findings import Finding, ok, problem, warning
from workers.doctor.processes import probe_process
from workers.ray_runner import WORKER_ENVIRONMENT

PROBE_SECONDS = 120.0
"""Loading torch takes seconds, and a minute on a slow disk."""
RETURNED_SHARE = 0.5
"""Above it freed memory goes back to the kernel: measured 0 with our settings, 1 without."""


def torch_here() -> list[Finding]:
    """What torch finds in a process started as a worker is."""
    probed = probe_process("workers.doctor.torch_probe", [], WORKER_ENVIRONMENT, PROBE_SECONDS)
    if probed.trouble:
        return [problem("torch", f"torch cannot be used: {probed.trouble}.", "Install it anew: `pip install -c constraints.txt .`.")]
    return list(of_torch(probed.said, os.environ.get("LD_PRELOAD", "")))


def of_torch(said: dict[str, Any], preloaded: str) -> Iterator[Finding]:
    """Findings from what the probe said."""
    yield _of_devices(said)
    if said["threads"] != 1:
        yield warning(
            "worker threads",
            f"torch takes {said['threads']} threads in a worker although OMP_NUM_THREADS is 1.",
            "Look for a sitecustomize or MKL setting that raises it; one single-thread process per core is the fastest arrangement.",
        )
    yield _of_allocator(said, preloaded)


def _of_devices(said: dict[str, Any]) -> Finding:
    topic, build = "accelerators", f"torch {said['version']}"
    if said["devices"]:
        listed = ", ".join(f"{device['name']} ({device['bytes'] / 2**30:.0f} GiB)" for device in said["devices"])
        return ok(topic, f"{listed}; driver {said['driver'] or 'unknown'}, {build} for CUDA {said['cuda']}. A pack of trials takes one.")
    if said["driver"] and said["cuda"] is None:
        return warning(
            topic,
            f"An NVIDIA driver ({said['driver']}) is loaded, but {build} is a CPU build: the GPU stays idle.",
            f"Install the CUDA build of the same version: `pip install torch=={said['version'].partition('+')[0]}` with the index of your CUDA.",
        )
    if said["driver"]:
        return problem(
            topic,
            f"Driver {said['driver']} is loaded, but {build} for CUDA {said['cuda']} cannot use a GPU: {said['reason'] or 'none is visible'}.",
            "Update the driver, install a build for its CUDA version, or check CUDA_VISIBLE_DEVICES.",
        )
    return ok(topic, f"None; trials run on cores ({build}).")


def _of_allocator(said: dict[str, Any], preloaded: str) -> Finding:
    topic, cost = "allocator", "steps of small packs take about a third longer"
    if said["returned_share"] < RETURNED_SHARE:
        return ok(topic, f"Workers keep the memory they free ({said['libc'] or 'no glibc'}), so that steps fault no pages in again.")
    if preloaded:
        return warning(topic, f"LD_PRELOAD is {preloaded}; workers give freed memory back, and {cost}.", "Start mixopt without LD_PRELOAD.")
    if not said["libc"].startswith("glibc"):
        return warning(
            topic, f"This system has no glibc; our MALLOC_ settings do nothing, and {cost}.", "Use an image with glibc (Debian)."
        )
    return warning(
        topic,
        f"Workers give freed memory back although MALLOC_TRIM_THRESHOLD_ is set ({said['libc']}), and {cost}.",
        "Check GLIBC_TUNABLES, which overrides it.",
    )
