"""Expert products of fixed capacity: equal to grouped ones while nothing is dropped, and honest about what is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import proxy_models.device.experts as device_experts
from proxy_models.config import ProxyConfig
from proxy_models.device.capacity import capacity_product, capacity_rows, dropped_rows, plan_places
from proxy_models.device.precision import Compute
from proxy_models.model import PackedProxy


def looped_product(rows: Tensor, matrices: Tensor, ends: Tensor) -> Tensor:
    pieces = rows.tensor_split(ends[:-1].tolist())
    return torch.cat([piece @ matrix for piece, matrix in zip(pieces, matrices, strict=True)])


SIZES = [3, 0, 5, 1, 9, 0]


def case(sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    ends = torch.tensor(sizes).cumsum(0).to(torch.int32)
    rows = torch.randn(sum(sizes), 4, generator=generator, dtype=torch.float64)
    return rows.requires_grad_(), torch.randn(len(sizes), 4, 7, generator=generator, dtype=torch.float64).requires_grad_(), ends


@pytest.mark.parametrize("capacity", [9, 12])
def test_with_room_for_all_it_is_the_product_of_each_group(capacity: int) -> None:
    rows, matrices, ends = case(SIZES)
    weights = torch.randn(sum(SIZES), 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = looped_product(rows, matrices, ends)
    got = capacity_product(rows, matrices, plan_places(ends, len(rows), capacity))
    torch.testing.assert_close(got, expected)
    for one, other in zip(
        torch.autograd.grad((got * weights).sum(), (rows, matrices)),
        torch.autograd.grad((expected * weights).sum(), (rows, matrices)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_rows_beyond_the_capacity_give_zeros_and_get_no_gradient() -> None:
    rows, matrices, ends = case(SIZES)
    got = capacity_product(rows, matrices, plan_places(ends, len(rows), 4))
    kept = torch.cat([torch.arange(size) < 4 for size in SIZES])
    expected = looped_product(rows, matrices, ends)
    torch.testing.assert_close(got[kept], expected[kept])
    assert not got[~kept].any()
    (gradient,) = torch.autograd.grad(got.sum(), (rows,))
    assert gradient[kept].any()
    assert not gradient[~kept].any()
    assert dropped_rows(torch.tensor(SIZES).view(2, 3), 4).tolist() == [1, 5]


def test_padding_brings_no_stranger_into_a_gradient() -> None:
    """An empty place points at some row; were that row read, even with weight zero, its NaN would spread."""
    rows, matrices, ends = case([2, 6])
    ruined = rows.detach().clone()
    ruined[2:] = torch.nan
    ruined.requires_grad_()
    product = capacity_product(ruined, matrices, plan_places(ends, 8, 6))
    gradients = torch.autograd.grad(product.sum(), (ruined, matrices))
    assert product[:2].isfinite().all()
    assert gradients[1][0].isfinite().all()


def test_how_many_rows_a_group_has_room_for() -> None:
    assert capacity_rows(1024, n_experts=8, top_k=2, factor=4.0) == 1024  # every token
    assert capacity_rows(1024, n_experts=64, top_k=8, factor=4.0) == 512
    assert capacity_rows(1000, n_experts=8, top_k=2, factor=1.0) == 256  # 250, in whole 8
    assert capacity_rows(5, n_experts=8, top_k=2, factor=100.0) == 5


def test_a_model_computes_the_same_with_either_product(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    grouped, padded = (
        PackedProxy(tiny, [0, 1], compute=Compute()),
        PackedProxy(tiny, [0, 1], compute=Compute(experts="capacity", capacity_factor=4.0)),
    )
    losses = [model.training_loss(draw_tokens(2)) for model in (grouped, padded)]
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-6, atol=1e-6)
    for loss in losses:
        loss.sum().backward()
    for (name, one), (_, other) in zip(grouped.named_parameters(), padded.named_parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)
    assert all(not moe.dropped(128).any() for model in (grouped, padded) for moe in model.moe_layers)


@pytest.mark.parametrize("most", [4, 8, 11])  # one, two and two of three members in a call
def test_grouped_products_may_need_several_calls(
    tiny: ProxyConfig, draw_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    gradients = []
    for limit in (1023, most):
        monkeypatch.setattr(device_experts, "MOST_GROUPS", limit)
        model = PackedProxy(tiny, [0, 1, 2], compute=Compute())
        loss_K = model.training_loss(draw_tokens(3))
        gradients.append([loss_K.detach(), *torch.autograd.grad(loss_K.sum(), list(model.parameters()))])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_capacity_belongs_to_a_member(tiny: ProxyConfig, draw_tokens: Callable[..., Tensor]) -> None:
    """With little room rows are dropped and counted; a member drops the same whoever is beside it."""
    tight = Compute(experts="capacity", capacity_factor=0.5)
    pair, alone = PackedProxy(tiny, [0, 1], compute=tight), PackedProxy(tiny, [1, 7], compute=tight)
    first = pair.training_loss(draw_tokens(2))
    second = alone.training_loss(draw_tokens(2)[[1, 0]])
    assert torch.equal(first[1], second[0])
    dropped = pair.moe_layers[0].dropped(128)
    assert dropped[1] == alone.moe_layers[0].dropped(128)[0] > 0
    loose = PackedProxy(tiny, [0, 1]).training_loss(draw_tokens(2))
    assert not torch.equal(first, loose)
