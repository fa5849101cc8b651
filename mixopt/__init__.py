"""mixopt finds the mixture of training domains for a language model.

`mixopt.fit` answers for runs that were trained elsewhere; it is loaded when it is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mixopt.fitting.fit import fit as fit

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "fit":
        from mixopt.fitting.fit import fit

        return fit
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
