"""Where a member's first weights come from, when it does not begin from scratch: the weights that another run ended with.

Continued training takes them as they are, balancing biases included; upcycling makes experts of them (`upcycling.py`). Either way the optimizer
begins anew, with moments of zero, and so does the schedule of the learning rate, with its own warm-up: what a file of weights does not hold is
not guessed. The trade-off: weights are read for every member, one after the other, so that a pack never holds more than one parent.
"""

from __future__ import annotations

from torch import Tensor

from proxy_models.checkpoint import DamagedCheckpoint, load_checkpoint
from proxy_models.config import ProxyConfig
from proxy_models.specs import Beginning
from proxy_models.upcycling import upcycled


class LostParent(ValueError):
    """The weights that a member begins with are gone or damaged."""


def first_weights(config: ProxyConfig, seed: int, beginning: Beginning) -> dict[str, Tensor]:
    """Weights of a member before its first step, as `PackedProxy.member_state`.

    Args:
        seed: of the member; used where something is drawn.

    Raises:
        LostParent: the parent's file is missing or damaged.
        ValueError: it holds another dense proxy than upcycling needs.
    """
    try:
        state = load_checkpoint(beginning.weights).part("model")
    except FileNotFoundError as error:
        raise LostParent(f"The weights of {beginning.parent}, to begin with, are not at {beginning.weights}.") from error
    except DamagedCheckpoint as error:
        raise LostParent(f"The weights of {beginning.parent}, to begin with, are damaged: {error}") from error
    if beginning.kind == "upcycled":
        return upcycled(config, state, seed, beginning.reinitialized)
    return state
