"""Whether a folder, loaded by transformers as a user would load it, gives the logits of the proxy that it was made from.

The trade-off: where two experts are all but tied, rounding decides, and both sides may choose differently, with reason. So a token with such a tie,
and those after it in its window, which see it, are not compared.

Legend: B windows, T tokens of a window, L layers, E experts, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.model import PackedProxy

WINDOWS = 4
MOST_TOKENS = 2048
"""In all windows: both sides hold the logits of all of them at once."""
LARGEST_DIFFERENCE = 1e-4
"""Of two logits, where these are at most 10, and so 1e-5 of the largest where it is more. Trained nano and micro proxies, with logits up to 22, differed
by at most 3.5e-5; so did the plain reference (`proxy_models.reference`) from the engine by 2.1e-5: it is rounding."""
TIED = 1e-5
"""Two experts are tied if their scores differ by less than this share of the larger: about a hundred times what rounding does to a score."""


@dataclass(frozen=True)
class Comparison:
    """Attributes: difference, largest: of two logits, and of any. compared, tied: tokens compared, and left out for a tie. transformers: version."""

    difference: float
    largest: float
    compared: int
    tied: int
    transformers: str

    @property
    def equal(self) -> bool:
        return self.compared > 0 and self.difference <= LARGEST_DIFFERENCE * max(1.0, self.largest / 10)

    @property
    def sentence(self) -> str:
        left_out = f"; {self.tied:,} behind a tie of two experts are left out" if self.tied else ""
        return (
            f"Loaded by transformers {self.transformers}, its logits differ from the proxy's by at most {self.difference:.1e}, over "
            f"{self.compared:,} tokens{left_out}."
        )


@torch.no_grad()
def compare(folder: Path, config: ProxyConfig, state: Mapping[str, Tensor], window: int, seed: int = 0) -> Comparison:
    """Compares the logits of random tokens, in windows as long as those of training where memory allows."""
    model, version = _load(folder)
    own = PackedProxy(config, [0], draw=False)
    own.load_member_state(0, state)
    length = max(1, min(window, MOST_TOKENS // WINDOWS))
    tokens_BT = torch.randint(0, config.vocab_size, (WINDOWS, length), generator=torch.Generator().manual_seed(seed))
    ours_BTV = own.logits(tokens_BT[None])[0]
    answer = model(tokens_BT, **({"output_router_logits": True} if config.n_experts else {}))
    difference_BT = (answer.logits - ours_BTV).abs().amax(-1)
    decided_BT = _decided(config, state, getattr(answer, "router_logits", None), difference_BT.shape)
    compared = int(decided_BT.sum())
    return Comparison(
        difference=float(difference_BT[decided_BT].max()) if compared else float("nan"),
        largest=float(ours_BTV.abs().max()),
        compared=compared,
        tied=decided_BT.numel() - compared,
        transformers=version,
    )


def _load(folder: Path) -> tuple[Any, str]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval(), str(transformers.__version__)


def _decided(config: ProxyConfig, state: Mapping[str, Tensor], router_logits: tuple[Tensor, ...] | None, shape: torch.Size) -> Tensor:
    """Tokens (B, T) at and before which no layer's last chosen expert is tied with the first one that is not."""
    decided_BT = torch.ones(shape, dtype=torch.bool)
    if not config.n_experts or config.top_k == config.n_experts:
        return decided_BT
    assert router_logits is not None, "transformers gave no router logits"
    assert len(router_logits) == config.n_layers
    for layer, logits in enumerate(router_logits):
        scores_BTE = logits.view(*shape, -1).softmax(-1) + state[f"layers.{layer}.moe.router_bias"]
        sorted_BTE = scores_BTE.sort(-1, descending=True).values
        last, first_not = sorted_BTE[..., config.top_k - 1], sorted_BTE[..., config.top_k]
        decided_BT &= last - first_not > TIED * torch.maximum(last.abs(), first_not.abs())
    return decided_BT.long().cumprod(-1).bool()
