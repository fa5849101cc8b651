"""A whole step without the host, not captured: equal to the step with it, harmless to others when a member diverges, and silent.

The engine runs here as on a GPU, but for the graph: the same buffers, the same function, the loss over groups of members.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import proxy_models.device.engine as device_engine
from proxy_models.config import ProxyConfig, proxy_config
from proxy_models.device.capture import SWITCH, reason_against
from proxy_models.device.engine import LOSS, NORM, STEPPED, Engine, EnginePool, EngineShape
from proxy_models.device.precision import Compute
from proxy_models.model import PackedProxy
from proxy_models.optimizer import PackedAdamW

CPU = torch.device("cpu")
RATES = [1e-2, 3e-3, 1e-3]
GROUPED = Compute(loss_bytes=2**20)


def shape_of(config: ProxyConfig, places: int = 3, compute: Compute = GROUPED) -> EngineShape:
    return EngineShape(config, places, windows=4, window=32, weight_decay=0.1, clip=0.5, device=CPU, compute=compute)


def engine_of(config: ProxyConfig, compute: Compute = GROUPED, seeds: tuple[int, ...] = (0, 1, 2)) -> Engine:
    engine = Engine(shape_of(config, len(seeds), compute))
    engine.begin(seeds, RATES[: len(seeds)])
    return engine


def weights_of(engine: Engine, k: int) -> dict[str, Tensor]:
    optimizer = {f"optimizer.{name}": tensor for name, tensor in engine.optimizer.member_state(k).items()}
    return {**engine.model.member_state(k), **optimizer}


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def scale_of(step: int) -> list[float]:
    return [1.0, min(1.0, (step + 1) / 5), 1.0 - step / 20]


@pytest.mark.parametrize(("experts", "dense"), [("grouped", False), ("capacity", False), ("grouped", True)])
def test_ten_steps_are_those_of_the_step_with_the_host(
    tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], experts: str, dense: bool
) -> None:
    """Rates, schedules and clipping of each member's own; what is left is the order of sums in loss and norms."""
    if dense:
        tiny = replace(tiny, n_experts=0, top_k=0, n_shared_experts=4)
    engine = engine_of(tiny, replace(GROUPED, experts=experts))
    model = PackedProxy(tiny, [0, 1, 2])
    optimizer = PackedAdamW(model, RATES, 0.1, clip=0.5)
    for step in range(10):
        tokens, scale, active = draw_tokens(3, step), scale_of(step), [True, True, step != 4]
        loss_K = model.training_loss(tokens)
        loss_K.sum().backward()
        norms, _ = optimizer.step(scale, active)
        optimizer.zero_grad()
        model.update_router_bias(active)
        engine.step(tokens, [rate * one for rate, one in zip(RATES, scale, strict=True)], active)
        torch.testing.assert_close(engine.results_3K[LOSS], loss_K.detach(), rtol=0, atol=1e-6)
        assert engine.results_3K[NORM].tolist() == pytest.approx(norms, rel=1e-4)
        assert engine.results_3K[STEPPED].tolist() == [float(flag) for flag in active]
    for (name, one), (_, other) in zip(engine.model.state_dict().items(), model.state_dict().items(), strict=True):
        # Of up to 0.1 travelled. Where Adam divides one tiny number by another, the order of a sum shows: 7e-6 seen.
        difference = (one - other).abs()
        assert float(difference.max()) < 5e-5, name
        assert float((difference > 1e-6).float().mean()) < 0.01, name
    assert max(norms) > 0.5 > 0, "clipping was part of it"
    assert [float(engine.optimizer.member_state(k)["step"]) for k in range(3)] == [10.0, 10.0, 9.0]


def test_steps_on_scored_tokens_are_those_of_the_step_with_the_host(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """With a step in between that is told nothing, which all count; a member without a scored token moves by its moments alone."""
    engine = engine_of(tiny)
    model = PackedProxy(tiny, [0, 1, 2])
    optimizer = PackedAdamW(model, RATES, 0.1, clip=0.5)
    for step in range(6):
        tokens, active = draw_tokens(3, step), [True] * 3
        scored = torch.rand(3, 4, 32, generator=torch.Generator().manual_seed(step)) < 0.4
        scored[0] = step != 2
        told = None if step == 3 else scored
        loss_K = model.training_loss(tokens, scored_KBT=told)
        loss_K.sum().backward()
        norms, _ = optimizer.step([1.0] * 3, active)
        optimizer.zero_grad()
        model.update_router_bias(active)
        engine.step(tokens, RATES, active, told)
        torch.testing.assert_close(engine.results_3K[LOSS], loss_K.detach(), rtol=0, atol=1e-6)
        assert engine.results_3K[NORM].tolist() == pytest.approx(norms, rel=1e-4)
        assert engine.results_3K[STEPPED].tolist() == [1.0] * 3
        assert (float(loss_K[0].detach()), norms[0]) == (0.0, 0.0) or step != 2
    for (name, one), (_, other) in zip(engine.model.state_dict().items(), model.state_dict().items(), strict=True):
        assert float((one - other).abs().max()) < 5e-5, name


@pytest.mark.parametrize("rate", [1e18, 3e37])  # a loss that is NaN, and a finite loss with a gradient that is not
def test_a_member_that_diverges_freezes_and_the_others_never_know(
    tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], rate: float
) -> None:
    clean, hurt = engine_of(tiny), engine_of(tiny)
    frozen: dict[str, Tensor] | None = None
    stepped = []
    for step in range(8):
        tokens = draw_tokens(3, step)
        clean.step(tokens, RATES, [True, True, True])
        hurt.step(tokens, [RATES[0], rate if step == 3 else RATES[1], RATES[2]], [True, True, True])
        stepped.append(bool(hurt.results_3K[STEPPED, 1]))
        if not stepped[-1]:
            frozen = frozen or weights_of(hurt, 1)
            assert not math.isfinite(float(hurt.results_3K[LOSS, 1])) or not math.isfinite(float(hurt.results_3K[NORM, 1]))
            assert same(weights_of(hurt, 1), frozen)
    assert stepped == [True] * stepped.index(False) + [False] * (8 - stepped.index(False))
    assert stepped.index(False) == 4
    for k in (0, 2):
        assert same(weights_of(hurt, k), weights_of(clean, k))


def test_a_frozen_member_stays_so_until_its_place_is_taken(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """After one ruined batch the weights are sound, so a later batch would be finite: the flag must not come back by itself."""
    engine = engine_of(tiny)
    sound = engine.model.layers[0].attention.qkv[1, 0, 0].item()
    with torch.no_grad():
        engine.model.layers[0].attention.qkv[1, 0, 0] = math.inf
    engine.step(draw_tokens(3, 0), RATES, [True] * 3)
    with torch.no_grad():
        engine.model.layers[0].attention.qkv[1, 0, 0] = sound
    for step in (1, 2):
        engine.step(draw_tokens(3, step), RATES, [True] * 3)
        assert engine.results_3K[STEPPED].tolist() == [1.0, 0.0, 1.0]
        assert engine.results_3K[LOSS].isfinite().all()
    engine.activate(1)
    engine.step(draw_tokens(3, 3), RATES, [True] * 3)
    assert engine.results_3K[STEPPED].tolist() == [1.0] * 3


def test_a_loss_that_is_not_finite_is_enough(
    tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a target's probability underflows: the loss is infinite, its gradient is not."""
    engine = engine_of(tiny)
    before, loss = weights_of(engine, 1), engine.model.training_loss
    monkeypatch.setattr(engine.model, "training_loss", lambda *args, **kw: loss(*args, **kw) + torch.tensor([0.0, math.inf, 0.0]))
    engine.step(draw_tokens(3), RATES, [True] * 3)
    assert engine.results_3K[STEPPED].tolist() == [1.0, 0.0, 1.0]
    assert engine.results_3K[NORM].isfinite().all()
    assert same(weights_of(engine, 1), before)


def test_dropped_rows_are_counted_of_steps_taken(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    engine = engine_of(tiny, Compute(experts="capacity", capacity_factor=0.5))
    for step in range(2):
        engine.step(draw_tokens(3, step), RATES, [True, False, step == 0])
    dropped = engine.dropped_K.tolist()
    assert dropped[0] > dropped[2] > dropped[1] == 0
    engine.activate(0)
    assert engine.dropped_K.tolist() == [0, 0, dropped[2]]


def test_vacant_places_change_nothing(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """A pack of two padded to four: the two train as in a pack of their own, the padding keeps its weights."""
    exact, padded = engine_of(tiny, seeds=(0, 1)), Engine(shape_of(tiny, 4))
    padded.begin([0, 1, 9, 9], [*RATES[:2], 0.0, 0.0])
    before = weights_of(padded, 3)
    for step in range(4):
        tokens = draw_tokens(2, step)
        exact.step(tokens, RATES[:2], [True, True])
        padded.step(torch.cat([tokens, torch.zeros_like(tokens)]), [*RATES[:2], 0.0, 0.0], [True, True, False, False])
    for k in range(2):
        assert same(weights_of(exact, k), weights_of(padded, k))
    assert same(weights_of(padded, 3), before)


def test_members_move_into_a_smaller_engine(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """Members 2 and 0 of four go on in an engine of two as if nothing had been; one of them is frozen, and stays so."""
    large, small = Engine(shape_of(tiny, 4)), Engine(shape_of(tiny, 2))
    large.begin([0, 1, 2, 3], [*RATES, 1e-3])
    for step in range(3):
        large.step(draw_tokens(4, step), [1e-3] * 4, [True] * 4)
    large._alive_K[0] = False
    small.take_over(large, [2, 0])
    assert small.model.seeds == (2, 0)
    assert small.optimizer.learning_rates == (RATES[2], RATES[0])
    assert same(weights_of(small, 0), weights_of(large, 2))
    tokens = draw_tokens(4, 3)
    large.step(tokens, [1e-3] * 4, [True] * 4)
    small.step(tokens[[2, 0]], [1e-3] * 2, [True] * 2)
    assert small.results_3K[STEPPED].tolist() == [1.0, 0.0]
    assert same(weights_of(small, 0), weights_of(large, 2))
    assert same(weights_of(small, 1), weights_of(large, 0))


def test_a_used_engine_begins_anew(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    fresh, used = engine_of(tiny), engine_of(tiny, seeds=(7, 8, 9))
    for step in range(3):
        used.step(draw_tokens(3, step), [1e38] * 3, [True] * 3)
    used.begin([0, 1, 2], RATES)
    for engine in (fresh, used):
        engine.step(draw_tokens(3), RATES, [True] * 3)
    assert all(same(weights_of(fresh, k), weights_of(used, k)) for k in range(3))
    assert torch.equal(fresh.results_3K, used.results_3K)


@pytest.mark.parametrize(
    "compute",
    [
        GROUPED,
        Compute(torch.bfloat16, loss_bytes=2**20),
        Compute(torch.bfloat16, experts="capacity", loss_bytes=2**14),  # members one at a time, tokens in chunks
    ],
)
def test_nothing_in_a_step_waits_for_the_device(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], watch, compute: Compute) -> None:  # type: ignore[no-untyped-def]
    """What is between two buffers' copies is what a graph captures. The step before it fills caches, as warming up does."""
    engine = engine_of(tiny, compute)
    engine.step(draw_tokens(3), RATES, [True] * 3)
    with watch() as operators:
        engine.run()
        engine.run_masked()
    assert {"_fused_adamw_", "_log_softmax", "sort"} <= operators.seen


@pytest.mark.parametrize("size", ["nano", "micro", "small", "medium", "small-dense"])
@pytest.mark.parametrize("experts", ["grouped", "capacity"])
def test_a_step_needs_no_values_at_all(monkeypatch: pytest.MonkeyPatch, size: str, experts: str) -> None:
    """64 members of a real size on torch's device without memory: whatever looks at a number fails, in C++ too, and kernels check types and strides.

    There the grouped product makes the checks that it makes on a GPU. For the optimizer's kernel, which has no such form, its checks are made here.
    """
    calls = []

    def fused(*lists: list[Tensor], lr: Tensor, grad_scale: Tensor, found_inf: Tensor, **_: object) -> None:
        weights, *others = lists[:4]
        for tensors in others:
            for weight, other in zip(weights, tensors, strict=True):
                assert (other.shape, other.stride(), other.dtype, other.device) == (
                    weight.shape,
                    weight.stride(),
                    weight.dtype,
                    weight.device,
                )
        for scalar in (lr, grad_scale, found_inf, *lists[5]):
            assert (scalar.dtype, scalar.device.type, scalar.numel()) == (torch.float32, "meta", 1)
        calls.append(len(weights))

    monkeypatch.setattr(torch, "_fused_adamw_", fused)
    config = proxy_config(size, 8192)
    compute = Compute(torch.bfloat16, experts=experts)  # type: ignore[arg-type]
    engine = Engine(EngineShape(config, 64, 8, 128, 0.1, 1.0, torch.device("meta"), compute))
    engine.run()
    engine.run_masked()
    assert sum(calls) == 2 * 64 * len(list(engine.model.parameters()))


def test_the_watch_sees_what_it_should(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], watch, asked) -> None:  # type: ignore[no-untyped-def]
    model = PackedProxy(tiny, [0, 1, 2])
    optimizer = PackedAdamW(model, RATES, 0.1)
    with pytest.raises(asked, match="waits"), watch():
        model.training_loss(draw_tokens(3))  # the range of ids
    loss_K = model.training_loss(draw_tokens(3), ids_checked=True)
    loss_K.sum().backward()
    with pytest.raises(asked, match="waits"), watch():
        optimizer.step([1.0] * 3, [True] * 3)
    with pytest.raises(asked, match="scalar"), watch():
        torch.where(loss_K > 0, loss_K, 0.0)
    with pytest.raises(asked, match="Python values"), watch():
        torch.tensor([1.0])


def test_bfloat16_products_stay_near_float32(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """First losses within 5e-4 nats, first gradient norms within 0.5%, and 30 steps of learning within 5e-3 nats.

    Seen where this was written: 5e-5, 0.07% and 6e-4; another seed moves the last by 3e-2.
    """
    half, full = engine_of(tiny, Compute(torch.bfloat16, loss_bytes=2**20)), engine_of(tiny)
    for step in range(30):
        tokens = draw_tokens(3, step % 3)
        for engine in (half, full):
            engine.step(tokens, [3e-3] * 3, [True] * 3)
        difference = (half.results_3K - full.results_3K).abs()
        assert float(difference[LOSS].max()) < (5e-4 if step == 0 else 5e-3)
        if step == 0:
            assert float((difference[NORM] / full.results_3K[NORM]).max()) < 5e-3
            first = float(full.results_3K[LOSS].mean())
    assert float(full.results_3K[LOSS].mean()) < first - 0.3, "something was learned"
    assert all(tensor.dtype == torch.float32 for tensor in half.model.parameters())
    assert all(tensor.dtype == torch.float32 for name, tensor in half.optimizer.member_state(0).items())


def test_the_router_and_the_residual_stream_are_float32(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """Not only by type: they hold numbers that bfloat16 has not."""
    model = PackedProxy(tiny, [0], compute=Compute(torch.bfloat16, loss_bytes=2**20))
    seen: list[Tensor] = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        route = layer.moe.route
        layer.moe.route = lambda normed, route=route: seen.append(normed) or route(normed)
    model.training_loss(draw_tokens(1))
    assert len(seen) == 4
    assert all(tensor.dtype == torch.float32 and bool((tensor != tensor.bfloat16()).any()) for tensor in seen)


# Capture and what stands in for it


def test_why_a_step_is_not_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert reason_against(CPU, True, {}) == "the device is cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert reason_against(cuda, True, {}) == "torch finds no CUDA device"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert reason_against(cuda, False, {}) == "graphs are switched off by a setting"
    assert reason_against(cuda, True, {SWITCH: "0"}) == f"{SWITCH} is 0"
    assert reason_against(cuda, True, {SWITCH: "1"}) is None
    assert reason_against(cuda, True, {}) is None


class FakeCapture:
    """Stands for `capture`: runs what it is given as often as warming up does, fails where told to, and replays by running."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        self.failing, self.replays = failing, 0

    def __call__(self, run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        engine = run.__self__  # type: ignore[attr-defined]
        if engine.model.compute.experts in self.failing:
            raise RuntimeError(f"no {engine.model.compute.experts}\nat some line of C++")
        for _ in range(4):
            run()

        def replay() -> None:
            self.replays += 1
            run()

        return replay


def captured_with(fake: FakeCapture, monkeypatch: pytest.MonkeyPatch, engine: Engine) -> Engine:
    monkeypatch.setattr(device_engine, "capture", fake)
    monkeypatch.setattr(device_engine, "reason_against", lambda device, wanted: None)
    return engine


def test_warming_up_changes_no_weight(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    plain, fake = engine_of(tiny), FakeCapture()
    plain.step(draw_tokens(3), RATES, [True] * 3)
    captured = captured_with(fake, monkeypatch, engine_of(tiny))
    captured.step(draw_tokens(3), RATES, [True] * 3)
    assert captured.captured
    assert not plain.captured
    assert fake.replays == 1
    assert all(same(weights_of(plain, k), weights_of(captured, k)) for k in range(3))
    assert torch.equal(plain.results_3K, captured.results_3K)
    # A pack in which somebody joins who has prompts: a second capture, amid training.
    plain._steps[True] = plain.run_masked
    scored = torch.rand(3, 4, 32, generator=torch.Generator().manual_seed(0)) < 0.4
    for step, told in enumerate((scored, None, scored)):
        plain.step(draw_tokens(3, step), RATES, [True] * 3, told)
        captured.step(draw_tokens(3, step), RATES, [True] * 3, told)
        assert all(same(weights_of(plain, k), weights_of(captured, k)) for k in range(3))
        assert torch.equal(plain.results_3K, captured.results_3K)
    assert fake.replays == 4


@pytest.mark.parametrize(
    ("failing", "experts", "captured", "line"),
    [
        ((), "grouped", True, None),
        (("grouped",), "capacity", True, "because capture failed with grouped expert products: no grouped."),
        (("grouped", "capacity"), "grouped", False, "without a CUDA graph: capture failed with grouped expert products: no grouped; with"),
    ],
)
def test_what_is_done_where_capture_fails(
    tiny: ProxyConfig,
    draw_tokens: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failing: tuple[str, ...],
    experts: str,
    captured: bool,
    line: str | None,
) -> None:
    """Grouped products, else those of fixed capacity, else no graph; one line says why, and the step is the same step."""
    plain = engine_of(tiny)
    engine = captured_with(FakeCapture(failing), monkeypatch, engine_of(tiny))
    with caplog.at_level(logging.INFO):
        for step in range(2):
            engine.step(draw_tokens(3, step), RATES, [True] * 3)
    for step in range(2):
        plain._steps[False] = plain.run
        plain.step(draw_tokens(3, step), RATES, [True] * 3)
    assert (engine.model.compute.experts, engine.captured) == (experts, captured)
    assert [moe.compute.experts for moe in engine.model.moe_layers] == [experts] * 2
    assert (engine.uncaptured is None) == captured
    assert (
        captured
        or engine.uncaptured == "capture failed with grouped expert products: no grouped; with capacity expert products: no capacity"
    )
    assert len(caplog.messages) == (line is not None)
    assert line is None or line in caplog.text
    torch.testing.assert_close(engine.results_3K, plain.results_3K, rtol=1e-5, atol=1e-6)


def test_memory_is_not_taken_for_a_failed_capture(
    tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(run: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise torch.OutOfMemoryError("full")

    engine = captured_with(full, monkeypatch, engine_of(tiny))  # type: ignore[arg-type]
    with pytest.raises(torch.OutOfMemoryError):
        engine.step(draw_tokens(3), RATES, [True] * 3)


class Owner:
    pass


def test_the_pool_lends_an_engine_to_one_at_a_time(tiny: ProxyConfig) -> None:
    pool, first, second = EnginePool(max_idle=1), Owner(), Owner()
    shape = shape_of(tiny, 2)
    engine = pool.take(shape, first)
    engine._captured.add(False)  # as captured
    assert pool.take(shape, second) is not engine
    del first  # a pack that ended, or that an exception unwound
    assert pool.idle() == [engine]
    third = Owner()
    assert pool.take(replace(shape, places=4), third) is not engine
    assert pool.take(shape, third) is engine
    assert pool.take(replace(shape, clip=0.7), third) is not engine


def test_the_pool_keeps_nothing_of_other_proxies(tiny: ProxyConfig) -> None:
    pool, owner = EnginePool(), Owner()
    for places in (1, 2):
        engine = pool.take(shape_of(tiny, places), owner)
        engine._captured.add(False)
        pool.give_back(engine)
    assert len(pool.idle()) == 2
    used = pool.take(shape_of(tiny, 2), owner)
    pool.take(shape_of(replace(tiny, d_expert=8), 1), owner)
    assert pool.idle() == []
    assert pool.take(shape_of(tiny, 2), Owner()) is not used


def test_the_pool_keeps_few_and_only_what_is_captured(tiny: ProxyConfig) -> None:
    pool, owner = EnginePool(max_idle=2), Owner()
    engines = [pool.take(shape_of(tiny, places), owner) for places in (1, 2, 3, 4)]
    for engine in engines[:3]:
        engine._captured.add(False)
    for engine in engines:
        pool.give_back(engine)
    assert pool.idle() == engines[1:3]
    assert pool.drop_idle() == 2
    assert pool.idle() == []


def test_the_pool_makes_room_before_it_gives_up(tiny: ProxyConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, owner, tries = EnginePool(), Owner(), []
    idle = pool.take(shape_of(tiny, 1), owner)
    idle._captured.add(False)
    pool.give_back(idle)

    def build(shape: EngineShape) -> Engine:
        tries.append(shape.places)
        if pool.idle():
            raise torch.OutOfMemoryError("full")
        return Engine(shape)

    monkeypatch.setattr(device_engine, "Engine", build)
    assert pool.take(shape_of(tiny, 2), owner).shape.places == 2
    assert tries == [2, 2]
    monkeypatch.setattr(device_engine, "Engine", lambda shape: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    with pytest.raises(torch.OutOfMemoryError):
        pool.take(shape_of(tiny, 8), owner)
