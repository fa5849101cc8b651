"""Turning a step into a CUDA graph, and saying why not where that cannot be.

A graph replays hundreds of launches as one. What it replays must read and write the same memory every time and never ask the host for
anything, which is how the device step is written anyway; without a graph the same function runs as it is. The trade-off: an engine that is
captured can only be fed by writing into its buffers.

Sources: the rules of torch.cuda.graph (torch's notes on CUDA semantics, "CUDA Graphs") and NVIDIA's list of what capture forbids.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

SWITCH = "MIXOPT_CUDA_GRAPHS"
"""Environment variable: 0 runs the device step without a graph, to find out whether capture is what fails. It never changes results'
meaning."""

WARM_UPS = 3
"""Steps before capture: libraries load, choose kernels and allocate on the first, and allocators settle on the next. 3 is what torch's own
examples take."""


def reason_against(device: torch.device, wanted: bool, environment: Mapping[str, str] = os.environ) -> str | None:
    """Why a step on this device is not captured, in half a sentence; None if capture can be tried."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    if not wanted:
        return "graphs are switched off by a setting"
    if environment.get(SWITCH, "1").strip().lower() in ("0", "off", "false", "no"):
        return f"{SWITCH} is {environment[SWITCH]}"
    return None


def capture(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Captures `run` and returns its replay.

    `run` is called several times before, so the caller sees to it that this changes nothing. Nothing is lost where capture fails: the
    current stream is put back, which torch's own context leaves at the capturing stream when ending a broken capture raises.

    Raises:
        RuntimeError: what `run` or the capture raised.
        torch.OutOfMemoryError: `run` did not fit, in the capture or before.
    """
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(current)
        with torch.cuda.stream(warm_up):
            for _ in range(WARM_UPS):
                run()
        current.wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        try:
            with _no_collection(), torch.cuda.graph(graph):
                run()
        except BaseException as error:
            torch.cuda.set_stream(current)
            if isinstance(error.__context__, torch.OutOfMemoryError):
                raise error.__context__ from None  # ending the broken capture raised in its place
            raise
    return graph.replay


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection within: an old graph that is destroyed, or an event that is, would break the capture."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
