"""Which library multiplies float32 matrices on the CPU.

torch sends them to MKL, which on AMD processors with AVX-512 runs at half the speed that oneDNN, which torch carries too, reaches there (111 against 242
billion FLOPs per second and core on an EPYC; small batched products three to five times). torch has no switch for the library, but one for
the precision of oneDNN: told that bfloat16 would do inside a product, it sends the product there. Without AMX, oneDNN has no faster kernel of
lower precision and computes in float32; `_accurate` makes sure, in every process, before anything is trained.

The trade-off: a global switch of torch, set only while packs train or are scored; threads share it, so the last that is done puts it back. Which
library a processor gets depends on the processor alone, so that runs repeat bit for bit on one machine.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SWITCH = "MIXOPT_PRODUCTS"
"""Environment variable that overrides the choice: "mkl" or "onednn"."""
# Relative error of a product of 256 terms: float32 rounds to 6e-8, bfloat16 to 4e-3.
FLOAT32_ERROR = 1e-5


@contextmanager
def fast_products() -> Iterator[None]:
    """Within, float32 products on the CPU run in the library that is fastest on this processor, and are float32 whatever torch was told before."""
    precision = "bf16" if product_library() == "onednn" else "ieee"
    _SWITCH.take(precision)
    try:
        yield
    finally:
        _SWITCH.give_back()


class _Switch:
    """Torch's setting, one for all threads of a process: several packs may want it at once, and whoever ends first must not take it from the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = "none"

    def take(self, precision: str) -> None:
        matmul = _precision_of_products()
        with self._lock:
            if not self._users:
                self._before, matmul.fp32_precision = matmul.fp32_precision, precision
            self._users += 1

    def give_back(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                _precision_of_products().fp32_precision = self._before


_SWITCH = _Switch()


@functools.cache
def product_library() -> str:
    """ "onednn" or "mkl".

    Raises:
        ValueError: the environment asks for another, or for oneDNN where it would round to bfloat16.
    """
    asked = os.environ.get(SWITCH)
    if asked not in (None, "mkl", "onednn"):
        raise ValueError(f"{SWITCH} is '{asked}'; it is 'mkl' or 'onednn'.")
    if asked == "mkl" or (asked is None and not _amd_with_avx512()):
        return "mkl"
    if torch.backends.mkldnn.is_available() and _accurate():
        return "onednn"
    if asked == "onednn":
        raise ValueError(f"{SWITCH} is 'onednn', which on this processor is missing or would compute in bfloat16; unset it.")
    return "mkl"


def _amd_with_avx512() -> bool:
    try:
        facts = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "AuthenticAMD" in facts and " avx512f" in facts and "amx_bf16" not in facts


def _precision_of_products() -> Any:
    """Torch's settings of products in oneDNN; set at run time, so that type checkers do not know them."""
    return torch.backends.mkldnn.matmul  # type: ignore[attr-defined]


def _accurate() -> bool:
    """Whether products stay float32 with the switch set."""
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 64, 256, generator=generator), torch.randn(2, 256, 64, generator=generator)
    exact = torch.bmm(one.double(), other.double())
    matmul = _precision_of_products()
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    try:
        errors = [(torch.bmm(one, other) - exact).abs().max(), (torch.mm(one[0], other[0]) - exact[0]).abs().max()]
    finally:
        matmul.fp32_precision = before
    return bool(max(errors) < FLOAT32_ERROR * exact.abs().max())
