"""What capture does around torch.cuda, against a stand-in for it: warming up, the stream that must come back, memory that runs out within."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch

from proxy_models.device.capture import WARM_UPS, capture


class Cuda:
    """As much of torch.cuda as capture uses. As torch's, `graph` leaves the current stream at the capturing one where ending the capture
    raises."""

    def __init__(self, ending: Exception | None = None) -> None:
        self.ending, self.log, self.stream_now = ending, [], "caller's"

    def install(self, monkeypatch: pytest.MonkeyPatch) -> Cuda:
        cuda = self

        class Stream:
            def __init__(self, name: str = "warm-up") -> None:
                self.name = name

            def wait_stream(self, other: Stream) -> None:
                cuda.log.append(f"{self.name} waits for {other.name}")

        class Graph:
            def replay(self) -> None:
                cuda.log.append("replay")

        @contextmanager
        def stream(one: Stream) -> Iterator[None]:
            before, cuda.stream_now = cuda.stream_now, one.name
            yield
            cuda.stream_now = before

        class Capturing:
            def __init__(self, graph: Graph) -> None:
                self.before = ""

            def __enter__(self) -> None:
                self.before, cuda.stream_now = cuda.stream_now, "capturing"

            def __exit__(self, *_: object) -> None:
                if cuda.ending is not None:
                    raise cuda.ending
                cuda.stream_now = self.before

        def set_stream(one: Stream) -> None:
            cuda.stream_now = one.name

        replacements = {
            "device": lambda device: nullcontext(),
            "current_stream": lambda: Stream(cuda.stream_now),
            "Stream": Stream,
            "stream": stream,
            "set_stream": set_stream,
            "CUDAGraph": Graph,
            "graph": Capturing,
        }
        for name, value in replacements.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return self

    def run(self) -> None:
        self.log.append(f"run on {self.stream_now}{'' if gc.isenabled() else ', nothing collected'}")


DEVICE = torch.device("cuda")


def test_it_warms_up_beside_and_then_captures(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda().install(monkeypatch)
    replay = capture(cuda.run, DEVICE)
    assert cuda.log == [
        "warm-up waits for caller's",
        *["run on warm-up"] * WARM_UPS,
        "caller's waits for warm-up",
        "run on capturing, nothing collected",
    ]
    replay()
    assert cuda.log[-1] == "replay"
    assert cuda.stream_now == "caller's"
    assert gc.isenabled()


def test_a_failed_capture_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(RuntimeError("operation not permitted when stream is capturing")).install(monkeypatch)
    with pytest.raises(RuntimeError, match="not permitted"):
        capture(cuda.run, DEVICE)
    assert cuda.stream_now == "caller's"
    assert gc.isenabled()


def test_memory_that_runs_out_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ending the capture that broke off raises an error of its own, which says nothing of memory."""
    cuda = Cuda(RuntimeError("operation failed due to a previous error during capture")).install(monkeypatch)

    def run() -> None:
        if cuda.stream_now == "capturing":
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        capture(run, DEVICE)
    assert cuda.stream_now == "caller's"
