"""Benchmarks are scripts: their modules are found from their folder, and forgotten after a test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Loads a module of `benchmarks/` by its name, as `throughput` or `speed.measure`."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if name in ("merging_runs", "searching", "speed", "transfer") or (file is not None and Path(file).is_relative_to(BENCHMARKS)):
            del sys.modules[name]
