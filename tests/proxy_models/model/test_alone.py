"""A member alone is the same as in a pack, bit for bit on a CPU: losses, gradients, weights after steps, losses on held-out rows.

What a checkpoint is worth rests on it: packs change their size whenever a member leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW
from proxy_models.products import SWITCH, fast_products, product_library

STEPS = 3


@pytest.fixture
def choose(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str | None], None]]:
    """choose(library): products run in it; None: as usual here."""

    def choose(library: str | None) -> None:
        monkeypatch.delenv(SWITCH, raising=False)
        if library is not None:
            monkeypatch.setenv(SWITCH, library)
        product_library.cache_clear()

    yield choose
    product_library.cache_clear()


@dataclass(frozen=True)
class Run:
    losses_SK: Tensor
    gradients: list[dict[str, Tensor]]
    weights: dict[str, Tensor]
    scored_KBT: Tensor


@fast_products()
def run(config: ProxyConfig, seeds: Sequence[int], windows: int, window: int) -> Run:
    model = PackedProxy(config, seeds)
    optimizer = PackedAdamW(model, [3e-3] * len(seeds), weight_decay=0.1)
    losses, gradients = [], []
    for step in range(STEPS):
        tokens_KBS = torch.stack([tokens(config, seed, step, windows, window) for seed in seeds])
        loss_K = model.training_loss(tokens_KBS)
        loss_K.sum().backward()
        losses.append(loss_K.detach().clone())
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None})
        optimizer.step([1.0] * len(seeds), [True] * len(seeds))
        optimizer.zero_grad()
        model.update_router_bias()
    return Run(torch.stack(losses), gradients, dict(model.state_dict()), model.token_losses(tokens_KBS))


def tokens(config: ProxyConfig, seed: int, step: int, windows: int, window: int) -> Tensor:
    return torch.randint(0, config.vocab_size, (windows, window + 1), generator=torch.Generator().manual_seed(1000 * seed + step))


@pytest.mark.parametrize(
    ("size", "vocabulary", "windows", "window", "library"),
    [
        ("nano", 512, 1, 64, None),
        ("nano", 512, 3, 33, None),
        ("nano", 512, 3, 33, "mkl"),
        ("nano", 512, 1, 9, None),
        ("nano", 512, 1, 9, "mkl"),
        ("nano", 4096, 4, 128, None),
        ("micro", 512, 1, 128, None),
        ("micro", 512, 1, 128, "mkl"),
        ("small", 512, 1, 64, None),
    ],
)
def test_alone_equals_in_a_pack_bit_for_bit(
    size: str, vocabulary: int, windows: int, window: int, library: str | None, choose: Callable[[str | None], None]
) -> None:
    """In the library of this processor, and in that of most others."""
    choose(library)
    assert_alone_equals_in_a_pack(proxy_config(size, vocabulary), windows, window)


@pytest.mark.parametrize("tokens", [(1, 64), (3, 33), (1, 9)])
def test_a_balancing_loss_stays_with_its_member(tokens: tuple[int, int]) -> None:
    assert_alone_equals_in_a_pack(replace(proxy_config("nano", 512), auxiliary_loss=0.1), *tokens)


def assert_alone_equals_in_a_pack(config: ProxyConfig, windows: int, window: int) -> None:
    pack = run(config, (0, 1, 2), windows, window)
    for k in (0, 2):
        alone = run(config, (k,), windows, window)
        assert torch.equal(pack.losses_SK[:, k], alone.losses_SK[:, 0])
        for step in range(STEPS):
            differing = [name for name, slope in alone.gradients[step].items() if not torch.equal(pack.gradients[step][name][k], slope[0])]
            assert not differing, f"gradients of step {step}"
        assert not [name for name, tensor in alone.weights.items() if not torch.equal(pack.weights[name][k], tensor[0])]
        assert torch.equal(pack.scored_KBT[k], alone.scored_KBT[0])
