"""The device path where there is a GPU: the graph against the same code without it, silence towards the host, and the kernels against a
CPU.

Skipped without one. A GPU's sums may come in any order (attention's backward pass adds with atomics), so parity is within tolerances: over
ten steps, as chaos would grow what is left after that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.device.adamw import DeviceAdamW
from proxy_models.device.engine import LOSS, NORM, STEPPED, Engine, EngineShape
from proxy_models.device.loss import group_mean_losses
from proxy_models.device.precision import Compute, default_compute, grouped_without_host
from proxy_models.device.step import _with_index
from proxy_models.model import PackedProxy

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU, and torch finds none here")]

RATES = [1e-2, 3e-3, 1e-3, 3e-3]


@pytest.fixture
def gpu() -> torch.device:
    return _with_index(torch.device("cuda"))


@contextmanager
def silent() -> Iterator[None]:
    """Within, whatever waits for the device raises."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def engine_on(device: torch.device, config: ProxyConfig, places: int = 4, graphs: bool = True, compute: Compute | None = None) -> Engine:
    compute = compute or default_compute(device) or Compute()
    engine = Engine(EngineShape(config, places, 4, 32, 0.1, 0.5, device, compute, graphs))
    engine.begin(range(places), (RATES * 16)[:places])
    return engine


def train(engine: Engine, draw: Callable[..., Tensor], steps: int, active: list[bool] | None = None) -> Tensor:
    """Results (steps, 3, K), on the host."""
    places = engine.shape.places
    rows = []
    for step in range(steps):
        engine.step(draw(places, step), (RATES * 16)[:places], active or [True] * places)
        rows.append(engine.results_3K.clone())
    return torch.stack(rows).cpu()


def computes(device: torch.device) -> list[Compute]:
    usual = default_compute(device)
    assert usual is not None
    return list(dict.fromkeys([usual, replace(usual, experts="capacity"), replace(usual, experts="capacity", loss_bytes=2**20)]))


def test_the_graph_replays_the_code_it_was_made_of(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], gpu: torch.device) -> None:
    for compute in computes(gpu):
        graph, eager = engine_on(gpu, tiny, compute=compute), engine_on(gpu, tiny, graphs=False, compute=compute)
        results, expected = train(graph, draw_tokens, 10), train(eager, draw_tokens, 10)
        assert graph.captured, graph.uncaptured
        assert not eager.captured
        assert graph.model.compute == compute, "captured without falling back"
        torch.testing.assert_close(results[:, LOSS], expected[:, LOSS], rtol=0, atol=2e-3)
        torch.testing.assert_close(results[0, NORM], expected[0, NORM], rtol=1e-3, atol=0)
        assert results[:, STEPPED].all()
        assert [float(graph.optimizer.member_state(k)["step"]) for k in range(4)] == [10.0] * 4, "warming up took no step"


def test_steps_do_not_wait_for_the_host(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], gpu: torch.device) -> None:
    for graphs in (True, False):
        engine = engine_on(gpu, tiny, graphs=graphs)
        if not graphs and not grouped_without_host(gpu):
            continue
        train(engine, draw_tokens, 2)
        tokens = [draw_tokens(4, step) for step in range(8)]
        with silent():
            for one in tokens:
                engine.step(one, RATES, [True, True, False, True])
        assert engine.results_3K[STEPPED].tolist() == [1.0, 1.0, 0.0, 1.0]


def test_it_computes_what_a_cpu_does(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], gpu: torch.device) -> None:
    """Float32 on the CPU against the device's own precision: first losses within 1e-3 nats, ten steps within 1e-2."""
    cpu = engine_on(torch.device("cpu"), tiny, compute=Compute())
    expected = train(cpu, draw_tokens, 10)
    for compute in computes(gpu):
        results = train(engine_on(gpu, tiny, compute=compute), draw_tokens, 10)
        torch.testing.assert_close(results[0, LOSS], expected[0, LOSS], rtol=0, atol=1e-3)
        torch.testing.assert_close(results[:, LOSS], expected[:, LOSS], rtol=0, atol=1e-2)
        torch.testing.assert_close(results[0, NORM], expected[0, NORM], rtol=1e-2, atol=0)


def test_a_real_size_is_captured_with_grouped_products(draw_tokens: Callable[..., Tensor], gpu: torch.device) -> None:
    """64 nano proxies: 512 groups, heads of 32; and one micro."""
    for size, places in (("nano", 64), ("micro", 1)):
        engine = engine_on(gpu, proxy_config(size, 8192), places)
        results = train(engine, draw_tokens, 3)
        assert engine.captured, engine.uncaptured
        assert results.isfinite().all()
        assert grouped_without_host(gpu) == (engine.model.compute is not None and engine.model.compute.experts == "grouped")


def test_a_member_that_diverges_stays_alone(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], gpu: torch.device) -> None:
    """The others' losses stay within what two runs of the same differ by; the one that diverged stands still."""
    engine, clean = engine_on(gpu, tiny), engine_on(gpu, tiny)
    train(engine, draw_tokens, 2)
    expected = train(clean, draw_tokens, 6)
    with torch.no_grad():
        engine.model.layers[0].attention.qkv[1, 0, 0] = float("inf")
    before = engine.model.member_state(1)
    rows = []
    for step in range(2, 6):
        engine.step(draw_tokens(4, step), RATES, [True] * 4)
        rows.append(engine.results_3K.cpu().clone())
    results = torch.stack(rows)
    assert results[:, STEPPED].tolist() == [[1.0, 0.0, 1.0, 1.0]] * 4
    others = [0, 2, 3]
    torch.testing.assert_close(results[:, LOSS][:, others], expected[2:, LOSS][:, others], rtol=0, atol=2e-3)
    after = engine.model.member_state(1)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_members_move_to_a_smaller_graph_and_refill_it(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], gpu: torch.device) -> None:
    large, small = engine_on(gpu, tiny, 4), engine_on(gpu, tiny, 2)
    train(large, draw_tokens, 3)
    train(small, draw_tokens, 1)  # captured before, by other members
    with silent():
        small.take_over(large, [2, 0])
    tokens = draw_tokens(4, 3)
    large.step(tokens, [1e-3] * 4, [True] * 4)
    small.step(tokens[[2, 0]], [1e-3] * 2, [True] * 2)
    torch.testing.assert_close(small.results_3K[LOSS].cpu(), large.results_3K[LOSS].cpu()[[2, 0]], rtol=0, atol=1e-3)
    fresh = engine_on(gpu, tiny, 4)
    small.model.load_member_state(1, fresh.model.member_state(3))
    small.optimizer.load_member_state(1, fresh.optimizer.member_state(3))
    small.activate(1)
    tokens = draw_tokens(4, 0)
    small.step(tokens[[0, 3]], [RATES[3]] * 2, [True] * 2)
    fresh.step(tokens, [RATES[3]] * 4, [True] * 4)
    torch.testing.assert_close(small.results_3K[:2, 1].cpu(), fresh.results_3K[:2, 3].cpu(), rtol=1e-3, atol=1e-3)


def test_the_optimizer_is_that_of_a_cpu(tiny: ProxyConfig, gpu: torch.device) -> None:
    optimizers = [DeviceAdamW(PackedProxy(tiny, [0, 1, 2, 3], device), RATES, 0.1, clip=0.3) for device in ("cpu", gpu)]
    for step in range(5):
        generator = torch.Generator().manual_seed(step)
        gradients = [0.01 * torch.randn(parameter.shape, generator=generator) for parameter in optimizers[0].model.parameters()]
        gradients[0][2, 0, 0] = float("nan") if step == 3 else 0.0
        for optimizer, device in zip(optimizers, ("cpu", gpu), strict=True):
            _, stepped_K = optimizer.update(
                [gradient.to(device, copy=True) for gradient in gradients],
                torch.tensor(RATES).to(device),
                torch.tensor([True, step != 2, True, True]).to(device),
            )
            assert stepped_K.tolist() == [True, step != 2, step != 3, True]
    for k in range(4):
        for name, tensor in optimizers[0].member_state(k).items():
            torch.testing.assert_close(optimizers[1].member_state(k)[name].cpu(), tensor, rtol=1e-5, atol=1e-8)
        for name, tensor in optimizers[0].model.member_state(k).items():
            torch.testing.assert_close(optimizers[1].model.member_state(k)[name].cpu(), tensor, rtol=1e-5, atol=1e-6)


def test_the_loss_is_that_of_a_cpu(gpu: torch.device) -> None:
    """Of operands rounded alike: losses to float32, gradients to the rounding of softmax - onehot."""
    generator = torch.Generator().manual_seed(0)
    hidden, output = torch.randn(3, 130, 64, generator=generator), 0.2 * torch.randn(3, 1000, 64, generator=generator)
    target = torch.randint(0, 1000, (3, 130), generator=generator)
    for loss_bytes in (2**18, 2**21, 2**29):
        compute, seen = Compute(torch.bfloat16, loss_bytes=loss_bytes), []
        for device in (torch.device("cpu"), gpu):
            leaves = [tensor.to(device).requires_grad_() for tensor in (hidden, output)]
            losses = group_mean_losses(leaves[0], leaves[1], target.to(device), compute)
            seen.append([losses.detach().cpu(), *(one.cpu() for one in torch.autograd.grad(losses.sum(), leaves))])
        torch.testing.assert_close(seen[1][0], seen[0][0], rtol=1e-5, atol=1e-5)
        for one, other in zip(seen[1][1:], seen[0][1:], strict=True):
            assert float((one - other).abs().max() / other.abs().max()) < 2**-8


@pytest.mark.parametrize("switch", ["0", "1"])
def test_the_switch_turns_graphs_off(
    tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], gpu: torch.device, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    monkeypatch.setenv("MIXOPT_CUDA_GRAPHS", switch)
    engine = engine_on(gpu, tiny)
    train(engine, draw_tokens, 1)
    assert engine.captured == (switch == "1")
