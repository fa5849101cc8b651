"""How many threads fits use: BLAS one, and metrics side by side where somebody says so.

BLAS threads slow matrices of a few hundred rows several times over, and their number would change the last digits. Metrics are independent, so a process that
has the machine to itself (`mixopt fit`) fits several at once: in threads, since the time is spent in LAPACK, which lets others run, and nothing is copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import TypeVar

from threadpoolctl import ThreadpoolController

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")
_AT_ONCE: ContextVar[int] = ContextVar("metrics_at_once", default=1)


@functools.cache
def _blas() -> ThreadpoolController:
    """Finds the loaded libraries once: looking takes about 2 ms, and an optimizer asks for predictions hundreds of times."""
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Inside it linear algebra runs on one thread."""
    limited: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return limited


@contextmanager
def metrics_at_once(count: int) -> Iterator[None]:
    """Inside it surrogates fit so many metrics at the same time. Results do not depend on it."""
    token = _AT_ONCE.set(count)
    try:
        yield
    finally:
        _AT_ONCE.reset(token)


def over_metrics(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> tuple[_Result, ...]:
    """`function` of every item, in their order, with one BLAS thread each."""
    with one_blas_thread():
        if _AT_ONCE.get() == 1:
            return tuple(function(item) for item in items)
        with ThreadPoolExecutor(_AT_ONCE.get()) as pool:
            return tuple(pool.map(function, items))
