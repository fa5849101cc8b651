"""The loss over groups of members against log_softmax over all logits, in full and in half precision."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from proxy_models.device.loss import group_mean_losses, group_token_losses, plan_chunks
from proxy_models.device.precision import Compute

K, N, D, V = 3, 50, 16, 70


def draw(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(K, N, D, generator=generator, dtype=dtype) * scale
    output = torch.randn(K, V, D, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), output.requires_grad_(), torch.randint(0, V, (K, N), generator=generator)


def plain_losses(hidden: Tensor, output: Tensor, target: Tensor) -> Tensor:
    return -torch.bmm(hidden, output.mT).log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)


def bytes_for(rows: int, element: int = 8) -> int:
    return rows * 2 * V * element


@pytest.mark.parametrize("rows", [1, 7, 50, 101, 10_000])  # chunks of one member's tokens; one member; two members; all
def test_losses_and_gradients_are_those_of_all_logits(rows: int) -> None:
    hidden, output, target = draw()
    compute = Compute(loss_bytes=bytes_for(rows))
    weights = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)  # the backward pass must scale by member
    expected = plain_losses(hidden, output, target)
    gradients = torch.autograd.grad(expected.mean(1) @ weights, (hidden, output))
    torch.testing.assert_close(group_token_losses(hidden, output, target, compute), expected, rtol=1e-12, atol=1e-12)
    losses = group_mean_losses(hidden, output, target, compute)
    torch.testing.assert_close(losses, expected.mean(1), rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(losses @ weights, (hidden, output)), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("rows", [7, 101, 10_000])
def test_bfloat16_operands_give_float32_losses_and_gradients(rows: int) -> None:
    """Against exact arithmetic on the rounded operands: the loss is exact but for float32, the gradients but for the rounding of softmax -
    onehot.

    bfloat16 has 8 bits, so one rounding is at most 2^-9; sums of such errors of either sign stay below three of them, relative to the
    largest gradient.
    """
    hidden, output, target = draw(torch.float32)
    rounded = [tensor.detach().bfloat16().double().requires_grad_() for tensor in (hidden, output)]
    expected = plain_losses(rounded[0], rounded[1], target).mean(1)
    gradients = torch.autograd.grad(expected.sum(), rounded)
    losses = group_mean_losses(hidden, output, target, Compute(torch.bfloat16, loss_bytes=bytes_for(rows, 4)))
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses.double(), expected, rtol=1e-6, atol=1e-6)
    for got, want in zip(torch.autograd.grad(losses.sum(), (hidden, output)), gradients, strict=True):
        assert got.dtype == torch.float32
        assert float((got - want).abs().max() / want.abs().max()) < 3 * 2**-9


def test_a_nearly_certain_token_keeps_its_gradient_in_bfloat16() -> None:
    """p - 1 with p from a table of 8 bits would be 0 or -2^-8; it is -1.0e-3."""
    hidden, output = torch.tensor([[[8.0] + [0.0] * 7]]).requires_grad_(), torch.zeros(1, 4, 8)
    output[0, 0, 0] = 1.0
    output.requires_grad_()
    losses = group_mean_losses(hidden, output, torch.zeros(1, 1, dtype=torch.int64), Compute(torch.bfloat16, loss_bytes=1))
    exact = -3 * torch.tensor(-8.0).exp() / (1 + 3 * torch.tensor(-8.0).exp())
    (grad_hidden,) = torch.autograd.grad(losses.sum(), (hidden,))
    assert float(grad_hidden[0, 0, 0]) == pytest.approx(float(exact), rel=2**-8)


def test_a_ruined_member_stays_alone() -> None:
    hidden, output, target = draw()
    compute = Compute(loss_bytes=bytes_for(10_000))
    clean = torch.autograd.grad(group_mean_losses(hidden, output, target, compute).sum(), (hidden, output))
    ruined = hidden.detach().clone()
    ruined[1, 3, 0] = torch.nan
    ruined.requires_grad_()
    losses = group_mean_losses(ruined, output, target, compute)
    assert losses.isfinite().tolist() == [True, False, True]
    for got, want in zip(torch.autograd.grad(losses.sum(), (ruined, output)), clean, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_chunks_cover_everything_once_and_stay_in_the_workspace() -> None:
    for members, tokens, budget in itertools.product((1, 5, 64), (1, 30, 1024), (1, 100, 5_000, 10**7)):
        rows = max(1, budget // (2 * V * 4))
        seen = torch.zeros(members, tokens)
        for chunk in plan_chunks(members, tokens, V, 4, budget):
            seen[chunk.members, chunk.tokens] += 1
            assert seen[chunk.members, chunk.tokens].numel() <= rows
        assert bool((seen == 1).all())


def test_the_loss_is_differentiated_once() -> None:
    hidden, output, target = draw()
    losses = group_mean_losses(hidden, output, target, Compute(loss_bytes=10**6))
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once per forward pass"):
        losses.sum().backward()
