"""The most memory that a process took while it trained a pack, as the kernel or torch counted it.

On a CPU it is the resident memory of the whole process: Python, torch and whatever else runs in it. The kernel's mark is set back when a pack begins;
where that is not allowed it is the most since the process started. The trade-off: workers give no memory back (`ray_runner.WORKER_ENVIRONMENT`), so a
small pack after a large one shows what the large one took.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from workers.packing import Device

PROC = Path("/proc/self")
RESET_PEAK = "5"
"""Written to `clear_refs`, it sets the mark back (proc(5), Linux 4.0)."""


class PeakMemory:
    """Measures from its creation on."""

    def __init__(self, device: Device) -> None:
        self._device, self._members = device, 0
        if device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):
                (PROC / "clear_refs").write_text(RESET_PEAK)
        self._before = self._read("VmRSS")

    def trained_together(self, members: int) -> None:
        """So many members have taken a step together: the most of them goes into the record."""
        self._members = max(self._members, members)

    def to_json(self) -> dict[str, Any]:
        """JSON values: `peak_bytes` since the start and `before_bytes` at it, None where the machine does not say; `members`; `device`."""
        return {
            "peak_bytes": self._read("VmHWM"),
            "before_bytes": self._before,
            "members": self._members,
            "device": self._device,
        }

    def _read(self, field: str) -> float | None:
        if self._device == "cuda":
            import torch

            return float(torch.cuda.max_memory_allocated() if field == "VmHWM" else torch.cuda.memory_allocated())
        with suppress(OSError):
            lines = (PROC / "status").read_text(encoding="ascii", errors="replace").splitlines()
            return next((1024.0 * int(line.split()[1]) for line in lines if line.startswith(field)), None)
        return None
