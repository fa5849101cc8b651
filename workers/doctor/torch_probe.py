"""Run as a process by `doctor`, with the environment of a worker: prints what torch finds here, and what the allocator does, as JSON.

Whether freed memory stays with the process cannot be read anywhere; it shows in page faults: a tensor that is allocated again and again
costs faults only where the kernel took its pages back.
"""

from __future__ import annotations

import json
import platform
import resource
from pathlib import Path

# Above 32 MB glibc always gives memory back by itself (its DEFAULT_MMAP_THRESHOLD_MAX).
TENSOR_BYTES = 40 << 20
# The heap settles over some rounds: freed pieces have to meet before a tensor fits where the last one was (measured: 8).
SETTLING_ROUNDS, ROUNDS = 24, 8


def main() -> None:
    import torch

    available = torch.cuda.is_available()
    devices = []
    for index in range(torch.cuda.device_count() if available else 0):
        facts = torch.cuda.get_device_properties(index)
        devices.append({"name": facts.name, "bytes": facts.total_memory})
    said = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "available": available,
        "reason": "" if available else _reason(),
        "devices": devices,
        "driver": _driver(),
        "threads": torch.get_num_threads(),
        "libc": " ".join(platform.libc_ver()).strip(),
        "returned_share": round(_returned_share(), 3),
    }
    print(json.dumps(said))


def _reason() -> str:
    """Why CUDA does not start, in torch's words."""
    import torch

    if torch.version.cuda is None:
        return ""
    try:
        torch.zeros(1, device="cuda")
    except Exception as error:  # noqa: BLE001 - torch raises several kinds, and all are an answer here
        return " ".join(str(error).split())[:300]
    return ""


def _driver() -> str:
    """Version of an NVIDIA driver; "" if none is loaded."""
    try:
        lines = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    words = lines[0].split() if lines else []
    return next((word for word in words if word[:1].isdigit()), "unknown")


def _returned_share() -> float:
    """Share of a large tensor's pages that the kernel takes back when it is freed: 0 if they stay with the process, 1 if all go."""
    import torch

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(TENSOR_BYTES // 4).fill_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    first = max(faults() for _ in range(SETTLING_ROUNDS))
    return sum(faults() for _ in range(ROUNDS)) / ROUNDS / max(first, 1)


if __name__ == "__main__":
    main()
