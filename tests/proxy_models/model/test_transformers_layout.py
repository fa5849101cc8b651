"""A proxy in the layout of transformers, loaded as a user loads it, gives the proxy's logits."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW
from proxy_models.reference import PlainProxy
from proxy_models.transformers_layout import transformers_layout

pytestmark = pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")

FINE_GRAINED = ProxyConfig(
    "fine-grained", vocab_size=96, d_model=48, n_layers=2, n_heads=3, n_experts=64, top_k=8, n_shared_experts=2, d_expert=32
)
SHAPES = {
    **{size: proxy_config(size, 256) for size in ("nano", "micro", "small", "nano-dense", "micro-dense")},
    "64 experts": FINE_GRAINED,
}


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    yield
    transformers.utils.logging.enable_progress_bar()


def random_state(config: ProxyConfig, seed: int = 0) -> dict[str, Tensor]:
    """Weights at their initial scale, and norms and biases that cannot be left out unseen."""
    generator = torch.Generator().manual_seed(seed)
    state = PackedProxy(config, [seed]).member_state(0)
    for name, tensor in state.items():
        if name.endswith("norm"):
            tensor += 0.3 * torch.randn(tensor.shape, generator=generator)
        if name.endswith("router_bias"):
            tensor += (0.5 / config.n_experts) * torch.randn(tensor.shape, generator=generator)
        if name == "embedding":
            tensor *= 10  # logits as large as after training
    return state


def loaded(folder: Path, config: ProxyConfig, state: Mapping[str, Tensor], window: int = 64) -> torch.nn.Module:
    """As `AutoModelForCausalLM.from_pretrained` gives it; no weight may be missing, unexpected or of another shape."""
    from transformers import AutoModelForCausalLM

    architecture, tensors = transformers_layout(config, state, window, end_id=0)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(architecture))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    model, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values()), report
    assert type(model).__module__.startswith("transformers.models.")
    return model


def own_logits(config: ProxyConfig, state: Mapping[str, Tensor], tokens_BT: Tensor) -> Tensor:
    pack = PackedProxy(config, [0], draw=False)
    pack.load_member_state(0, state)
    return pack.logits(tokens_BT[None])[0]


def draw(config: ProxyConfig, windows: int, window: int) -> Tensor:
    return torch.randint(0, config.vocab_size, (windows, window), generator=torch.Generator().manual_seed(7))


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES)
def test_random_weights_give_the_same_logits(shape: str, tmp_path: Path) -> None:
    config = SHAPES[shape]
    state, tokens_BT = random_state(config), draw(config, 2, 64)
    theirs, ours = loaded(tmp_path / "model", config, state)(tokens_BT).logits, own_logits(config, state, tokens_BT)
    assert float(ours.std()) > 0.3, "logits of nothing would be equal, too"
    assert float((theirs - ours).abs().max()) < 1e-4
    assert float((theirs - PlainProxy(config, state).logits(tokens_BT)).abs().max()) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("config", [proxy_config("nano", 64), proxy_config("nano-dense", 64)], ids=["experts", "dense"])
def test_the_last_position_of_a_long_window_is_turned_as_far(config: ProxyConfig, tmp_path: Path) -> None:
    state, tokens_BT = random_state(config), draw(config, 1, 512)
    theirs, ours = loaded(tmp_path / "model", config, state, window=512)(tokens_BT).logits, own_logits(config, state, tokens_BT)
    assert float((theirs - ours).abs().max()) < 1e-4


@pytest.mark.parametrize("shape", ["tiny", "tiny-dense", "micro", "64 experts"])
def test_trained_weights_give_the_same_logits(
    shape: str, tiny: ProxyConfig, tiny_dense: ProxyConfig, draw_tokens: Callable[..., Tensor], tmp_path: Path
) -> None:
    """After enough steps for weights, norms and balancing bias to have moved; of two members the second."""
    micro = proxy_config("micro", tiny.vocab_size)
    config = {"tiny": tiny, "tiny-dense": tiny_dense, "micro": micro, "64 experts": FINE_GRAINED}[shape]
    pack, steps = PackedProxy(config, [0, 1]), 60 if shape.startswith("tiny") else 15
    optimizer = PackedAdamW(pack, [1e-2, 1e-2], weight_decay=0.1)
    for step in range(steps):
        pack.training_loss(draw_tokens(2, step)).sum().backward()
        optimizer.step(torch.ones(2), torch.ones(2, dtype=torch.bool))
        pack.update_router_bias()
    state, tokens_BT = pack.member_state(1), draw(config, 4, 32)
    if config.n_experts:
        assert float(state["layers.0.moe.router_bias"].abs().max()) > 0.4 * steps * config.bias_update_rate
    with torch.no_grad():
        theirs = loaded(tmp_path / "model", config, state, window=32)(tokens_BT).logits
    ours = pack.logits(tokens_BT.expand(2, -1, -1))
    assert float((theirs - ours[1]).abs().max()) < 1e-4
    assert float((theirs - ours[0]).abs().max()) > 0.1, "the other member is another model"


@torch.no_grad()
@pytest.mark.parametrize(
    ("shape", "name", "change"),
    [
        ("64 experts", "layers.1.moe.router_bias", lambda t: torch.zeros_like(t)),
        ("64 experts", "layers.0.moe.shared_out", lambda t: torch.zeros_like(t)),
        ("nano", "layers.0.moe.norm", lambda t: torch.ones_like(t)),
        ("nano-dense", "layers.1.attention.qkv", lambda t: t.roll(1, -1)),
    ],
)
def test_the_comparison_sees_each_part(shape: str, name: str, change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    config = SHAPES[shape]
    state, tokens_BT = random_state(config), draw(config, 2, 64)
    theirs = loaded(tmp_path / "model", config, {**state, name: change(state[name])})(tokens_BT).logits
    assert float((theirs - own_logits(config, state, tokens_BT)).abs().max()) > 1e-2


@torch.no_grad()
def test_tokens_written_one_by_one_are_those_of_the_whole_window(tmp_path: Path) -> None:
    """The cache of generation turns keys as a whole window does."""
    config = proxy_config("nano", 64)
    state = random_state(config)
    model = loaded(tmp_path / "model", config, state)
    text = draw(config, 1, 5)
    for _ in range(8):
        text = torch.cat([text, own_logits(config, state, text)[:, -1:].argmax(-1)], dim=1)
    written = model.generate(text[:, :5], max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert written.tolist() == text.tolist()
