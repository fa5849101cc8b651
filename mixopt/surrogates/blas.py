"""BLAS held to one thread: threads slow matrices of a few hundred rows several times over, and their number would change the last digits."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController


@functools.cache
def _blas() -> ThreadpoolController:
    """Finds the loaded libraries once: looking takes about 2 ms, and an optimizer asks for predictions hundreds of times."""
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[object]:
    """Inside it linear algebra runs on one thread."""
    limited: AbstractContextManager[object] = _blas().limit(limits=1, user_api="blas")
    return limited
