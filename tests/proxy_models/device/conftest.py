"""Tokens for the tiny proxy of all tests, and a watch for whatever would make a device wait for the host."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proxy_models.config import ProxyConfig


@pytest.fixture
def draw_tokens(tiny: ProxyConfig) -> Callable[..., Tensor]:
    """draw_tokens(members, step): skewed ids, int64 (K, 4, 33); member k's depend on k and step alone."""

    def draw(members: int, step: int = 0, sequences: int = 4, window: int = 32) -> Tensor:
        streams = []
        for k in range(members):
            generator = torch.Generator().manual_seed(1_000 * step + k)
            streams.append((torch.rand(sequences, window + 1, generator=generator) ** 3 * tiny.vocab_size).long())
        return torch.stack(streams)

    return draw


class HostAskedError(AssertionError):
    """Something looked at values of a tensor."""


METHODS = (
    "item",
    "tolist",
    "numpy",
    "cpu",
    "nonzero",
    "unique",
    "is_nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "__array__",
)
"""Methods that bring values to Python. Some never reach the dispatcher on a CPU, and a function mode would not see the backward pass."""


@contextmanager
def _without_methods() -> Iterator[None]:
    def refuse(name: str) -> Callable[..., Any]:
        def method(*_: Any, **__: Any) -> Any:
            raise HostAskedError(f"Tensor.{name} waits for the device")

        return method

    own = {name: vars(Tensor)[name] for name in METHODS if name in vars(Tensor)}
    for name in METHODS:
        setattr(Tensor, name, refuse(name))
    try:
        yield
    finally:
        for name in METHODS:
            delattr(Tensor, name)
        for name, method in own.items():
            setattr(Tensor, name, method)


class _Operators(TorchDispatchMode):
    """Refuses operators whose result or whose work depends on values, tensors made from Python data, and copies to another device."""

    FORBIDDEN = frozenset(
        {
            "_local_scalar_dense",
            "nonzero",
            "masked_select",
            "_unique2",
            "unique_dim",
            "bincount",
            "repeat_interleave",
            "is_nonzero",
            "equal",
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.seen.add(name)
        if name in self.FORBIDDEN:
            raise HostAskedError(f"aten::{name} waits for the device")
        if name == "where" and any(isinstance(value, Tensor) and value.dim() == 0 for value in args[1:]):
            raise HostAskedError("aten::where copies a scalar to the device")
        if name == "_to_copy" and (kwargs or {}).get("device") not in (None, args[0].device):
            raise HostAskedError("aten::_to_copy copies between devices")
        if name == "lift_fresh":
            raise HostAskedError("a tensor is made from Python values")
        return func(*args, **(kwargs or {}))


@contextmanager
def _watch() -> Iterator[_Operators]:
    with _without_methods(), _Operators() as operators:
        yield operators


@pytest.fixture
def watch() -> Callable[[], AbstractContextManager[_Operators]]:
    """A context in which nothing may wait for the device; gives the operators seen."""
    return _watch


@pytest.fixture
def asked() -> type[HostAskedError]:
    return HostAskedError
