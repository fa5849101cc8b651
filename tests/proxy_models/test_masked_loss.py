"""The loss on some tokens only, on both paths: what is not scored counts for exactly nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from proxy_models.config import ProxyConfig
from proxy_models.device.loss import group_mean_losses
from proxy_models.device.precision import Compute
from proxy_models.loss import Workspace, mean_losses
from proxy_models.model import PackedProxy
from proxy_models.reference import PlainProxy

K, N, D, V = 4, 50, 16, 70

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
LOSSES: dict[str, Loss] = {
    **{f"chunks of {c}": lambda h, o, t, s, c=c: mean_losses(h, o, t, Workspace(c), scored_KN=s) for c in (7, 128)},  # type: ignore[misc]
    # one member's tokens in chunks; two members at once; all
    **{
        f"{rows} rows": lambda h, o, t, s, rows=rows: group_mean_losses(h, o, t, Compute(loss_bytes=rows * 2 * V * 8), s)  # type: ignore[misc]
        for rows in (7, 101, 10_000)
    },
}
each_path = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


def draw(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, outputs, targets, and what is scored: half, a single token, none, all."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(K, N, D, generator=generator, dtype=dtype)
    output = torch.randn(K, V, D, generator=generator, dtype=dtype)
    scored = torch.rand(K, N, generator=generator) < 0.5
    scored[1], scored[2], scored[3] = False, False, True
    scored[1, 31] = True
    return hidden.requires_grad_(), output.requires_grad_(), torch.randint(0, V, (K, N), generator=generator), scored


@each_path
def test_losses_and_gradients_are_those_of_the_scored_logits(loss: Loss) -> None:
    hidden, output, target, scored = draw()
    weights = torch.tensor([1.0, 0.5, 3.0, -2.0], dtype=torch.float64)  # the backward pass must scale by member
    all_losses = -torch.bmm(hidden, output.mT).log_softmax(-1).gather(-1, target[..., None]).squeeze(-1)
    means = [all_losses[k][scored[k]].mean() if scored[k].any() else torch.zeros((), dtype=torch.float64) for k in range(K)]
    expected = torch.stack(means)
    gradients = torch.autograd.grad(expected @ weights, (hidden, output))
    losses = loss(hidden, output, target, scored)
    torch.testing.assert_close(losses, expected, rtol=1e-12, atol=1e-12)
    for got, want in zip(torch.autograd.grad(losses @ weights, (hidden, output)), gradients, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-14)


@each_path
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_tokens_have_exactly_no_gradient_and_their_targets_do_not_matter(loss: Loss, dtype: torch.dtype) -> None:
    hidden, output, target, scored = draw(dtype)
    losses = loss(hidden, output, target, scored)
    gradients = torch.autograd.grad(losses.sum(), (hidden, output))
    assert bool((gradients[0][~scored] == 0).all())
    assert bool((gradients[0][scored] != 0).any(-1).all())
    others = torch.where(scored, target, (target + 1 + torch.arange(N)) % V)
    again = loss(hidden, output, others, scored)
    assert torch.equal(again, losses)
    assert all(torch.equal(*both) for both in zip(torch.autograd.grad(again.sum(), (hidden, output)), gradients, strict=True))


@each_path
def test_a_member_without_a_scored_token_has_loss_and_gradient_zero(loss: Loss) -> None:
    hidden, output, target, scored = draw(torch.float32)
    losses = loss(hidden, output, target, scored)
    gradients = torch.autograd.grad(losses.sum(), (hidden, output))
    assert float(losses[2].detach()) == 0
    assert all(bool((gradient[2] == 0).all()) for gradient in gradients)
    assert all(bool(tensor.isfinite().all()) for tensor in (losses, *gradients))


@each_path
def test_all_scored_is_as_nothing_said(loss: Loss) -> None:
    hidden, output, target, _ = draw(torch.float32)
    plain = loss(hidden, output, target, None)
    gradients = torch.autograd.grad(plain.sum(), (hidden, output))
    said = loss(hidden, output, target, torch.ones_like(target, dtype=torch.bool))
    assert torch.equal(said, plain)
    assert all(torch.equal(*both) for both in zip(torch.autograd.grad(said.sum(), (hidden, output)), gradients, strict=True))


def test_on_a_cpu_company_changes_no_bit() -> None:
    hidden, output, target, scored = draw(torch.float32)
    together = mean_losses(hidden, output, target, Workspace(7), scored_KN=scored)
    gradients = torch.autograd.grad(together.sum(), (hidden, output))
    for k in range(K):
        alone = [tensor[k : k + 1].detach().requires_grad_() for tensor in (hidden, output)]
        loss = mean_losses(*alone, target[k : k + 1], Workspace(7), scored_KN=scored[k : k + 1])
        assert torch.equal(loss[0], together[k])
        assert all(torch.equal(one[0], two[k]) for one, two in zip(torch.autograd.grad(loss.sum(), alone), gradients, strict=True))


def test_on_a_cpu_logits_are_made_for_scored_tokens_only(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    made = Workspace.logits
    monkeypatch.setattr(Workspace, "logits", lambda self, hidden, output: (rows.append(len(hidden)), made(self, hidden, output))[1])
    hidden, output, target, scored = draw(torch.float32)
    mean_losses(hidden, output, target, Workspace(), scored_KN=scored)
    assert sum(rows) == int(scored.sum()) < target.numel()


@pytest.mark.parametrize("compute", [None, Compute(experts="capacity", loss_bytes=2**20)])
def test_a_model_trains_on_scored_tokens_alone(compute: Compute | None) -> None:
    """Every gradient of every weight, against a plain model whose loss is a mean over the scored tokens."""
    config = ProxyConfig("tiny", vocab_size=96, d_model=32, n_layers=2, n_heads=2, n_experts=4, top_k=2, n_shared_experts=2, d_expert=16)
    model = PackedProxy(config, [1, 2, 3], compute=compute).double()
    generator = torch.Generator().manual_seed(4)
    tokens = torch.randint(0, 96, (3, 4, 33), generator=generator)
    scored = torch.rand(3, 4, 32, generator=generator) < 0.3
    scored[1, 2], scored[2] = False, True
    losses = model.training_loss(tokens, scored_KBT=scored)
    gradients = torch.autograd.grad(losses.sum(), list(model.parameters()))
    for k in range(3):
        plain = PlainProxy(config, model.member_state(k))
        loss = plain.token_losses(tokens[k])[scored[k]].mean()
        loss.backward()
        torch.testing.assert_close(losses[k], loss, rtol=1e-12, atol=0)
        for (name, _), gradient in zip(model.named_parameters(), gradients, strict=True):
            torch.testing.assert_close(gradient[k], plain.weights[name].grad, rtol=1e-9, atol=1e-13)
