"""The chunked loss against log_softmax over all logits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proxy_models.loss import Workspace, _needs_shift, mean_losses, token_losses

K, N, D, V = 3, 50, 16, 70


def draw(dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(K, N, D, generator=generator, dtype=dtype) * scale
    output = torch.randn(K, V, D, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), output.requires_grad_(), torch.randint(0, V, (K, N), generator=generator)


def plain_losses(hidden: Tensor, output: Tensor, target: Tensor) -> Tensor:
    return -torch.bmm(hidden, output.mT).log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 50, 128])
def test_losses_and_gradients_are_those_of_all_logits(chunk_tokens: int) -> None:
    hidden, output, target = draw()
    weights = torch.tensor([1.0, 0.5, -2.0], dtype=torch.float64)  # the backward pass must scale by member
    expected = plain_losses(hidden, output, target)
    gradients = torch.autograd.grad(expected.mean(1) @ weights, (hidden, output))
    workspace = Workspace(chunk_tokens)
    torch.testing.assert_close(token_losses(hidden, output, target, workspace), expected, rtol=1e-12, atol=1e-12)
    losses = mean_losses(hidden, output, target, workspace)
    torch.testing.assert_close(losses, expected.mean(1), rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(losses @ weights, (hidden, output)), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)


def test_chunks_do_not_change_the_loss_in_float32() -> None:
    hidden, output, target = draw(torch.float32)
    losses = [mean_losses(hidden, output, target, Workspace(chunk)).detach() for chunk in (1, 13, 50)]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-6, atol=0)


def test_large_logits_neither_overflow_nor_underflow() -> None:
    """Logits of several hundred: the plain exponential overflows and the target's probability underflows in float32."""
    hidden, output, target = draw(torch.float32, scale=100.0)
    losses = token_losses(hidden, output, target, Workspace())
    assert losses.max() > 200
    torch.testing.assert_close(losses, plain_losses(hidden, output, target).detach(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 20.0, 100.0])
def test_shifted_and_unshifted_exponentials_agree_with_double_precision(scale: float) -> None:
    """Rows are shifted only where the bound on logits asks for it; float32 losses and gradients keep their digits on both sides of it."""
    fast = draw(torch.float32, scale)
    exact = (fast[0].detach().double().requires_grad_(), fast[1].detach().double().requires_grad_(), fast[2])
    losses = mean_losses(*fast, Workspace(16))
    expected = plain_losses(*exact).mean(1)
    torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(losses.sum(), fast[:2]), torch.autograd.grad(expected.sum(), exact[:2])
    for got, want in zip(*gradients, strict=True):
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-5 * float(want.abs().max()))


@example(99.9, 2**17, 2**13)
@given(st.floats(0, 130), st.integers(1, 2**20), st.integers(2, 2**18))
def test_unshifted_sums_times_tokens_fit_float32(logit: float, tokens: int, vocabulary: int) -> None:
    """The worst there can be: every logit is as large as the norms allow. Infinite, the factor of the gradients would be zero."""
    hidden, output = torch.full((1, 1), logit), torch.ones(1, 1)
    if not _needs_shift(hidden.expand(tokens, 1), output.expand(vocabulary, 1)):
        assert (hidden.exp2() * vocabulary * tokens).isfinite().all()
        assert (1 / hidden.exp2()).item() > torch.finfo(torch.float32).tiny


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def test_the_logits_are_never_all_held() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 64, 8, generator=generator).requires_grad_()
    output = torch.randn(2, 500, 8, generator=generator).requires_grad_()
    target = torch.randint(0, 500, (2, 64), generator=generator)
    workspace = Workspace(16)
    with LargestTensor() as plain:
        plain_losses(hidden, output, target)
    assert plain.elements == 2 * 64 * 500
    with LargestTensor() as chunked:
        mean_losses(hidden, output, target, workspace).sum().backward()
        token_losses(hidden, output, target, workspace)
    assert chunked.elements <= max(16 * 500, output.numel())


def test_a_nan_stays_in_its_member() -> None:
    clean = draw(torch.float32)
    mean_losses(*clean, Workspace(8)).sum().backward()
    hidden, output, target = draw(torch.float32)
    with torch.no_grad():
        hidden[1, 3, 2] = float("nan")
    losses = mean_losses(hidden, output, target, Workspace(8))
    losses.sum().backward()
    assert losses.isnan().tolist() == [False, True, False]
    for k in (0, 2):
        assert torch.equal(hidden.grad[k], clean[0].grad[k])
        assert torch.equal(output.grad[k], clean[1].grad[k])


def test_a_second_backward_is_refused() -> None:
    losses = mean_losses(*draw(), Workspace())
    losses.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="once per forward pass"):
        losses.sum().backward()


def test_chunks_hold_a_token() -> None:
    with pytest.raises(ValueError, match="chunk_tokens is 0"):
        Workspace(0)
