"""Router, dispatch and experts: permutation properties, gradients, balancing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from proxy_models.config import ProxyConfig
from proxy_models.moe import (
    CALL_MULTIPLICATIONS,
    ROW_MULTIPLE,
    Dispatch,
    ExpertProduct,
    FromRows,
    PackedMoE,
    PickLogits,
    SortWeights,
    SwiGLU,
    ToRows,
    plan_dispatch,
)

ROW = 20_000
"""Multiplications of a row with which, in these tests, some members share a product and some do not."""


def choose(members: int, tokens: int, n_experts: int, top_k: int, seed: int) -> Tensor:
    """Distinct experts per token, int64 (S, K, N)."""
    scores = torch.rand(members, tokens, n_experts, generator=torch.Generator().manual_seed(seed))
    return scores.topk(top_k).indices.permute(2, 0, 1)


sizes = st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(2, 6), st.integers(0, 10**6))


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_dispatch_is_a_stable_sort_by_member_and_expert(size: tuple[int, int, int, int]) -> None:
    members, tokens, n_experts, seed = size
    expert_SKN = choose(members, tokens, n_experts, 2, seed)
    plan = plan_dispatch(expert_SKN, n_experts, ROW)
    slots = [(k * n_experts + int(expert_SKN[s, k, n]), s, k * tokens + n) for s in range(2) for k in range(members) for n in range(tokens)]
    rows = plan.row_of_slot_R.tolist()
    assert [slots[slot] for slot in sorted(range(len(slots)), key=rows.__getitem__)] == sorted(slots)  # what a stable sort leaves
    assert plan.token_of_row_P[plan.row_of_slot_R].tolist() == [token for _, _, token in slots]
    groups = [group for group, _, _ in slots]
    assert plan.load_KE.flatten().tolist() == [groups.count(group) for group in range(members * n_experts)]
    owner = {
        row: (block.member, block.first + (row - block.start) // block.capacity)
        for block in plan.blocks
        for row in range(*block.rows.indices(10**9))
    }
    assert sorted(owner) == list(range(len(plan.token_of_row_P)))  # blocks cover all rows, once
    for (group, _, _), row in zip(slots, rows, strict=True):
        assert owner[row] == divmod(group, n_experts)
    for row in set(owner) - set(rows):
        assert plan.token_of_row_P[row] == owner[row][0] * tokens  # padding reads its own member


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, ROW, 10**9]), st.floats(0, 2))
def test_padding_costs_no_more_than_the_products_it_saves(seed: int, row: int, favour: float) -> None:
    scores = torch.rand(3, 200, 8, generator=torch.Generator().manual_seed(seed))
    scores[..., 2] += favour
    plan = plan_dispatch(scores.topk(2).indices.permute(2, 0, 1), 8, row)
    for member in range(3):
        blocks = [block for block in plan.blocks if block.member == member]
        assert all(block.capacity % ROW_MULTIPLE == 0 and block.capacity > 0 for block in blocks)
        each = sum(max(1, -(-load // ROW_MULTIPLE)) * ROW_MULTIPLE for load in plan.load_KE[member].tolist())
        if len(blocks) == 1:
            assert (8 * blocks[0].capacity - each) * row <= 7 * CALL_MULTIPLICATIONS
        else:
            assert [block.capacity for block in blocks] != [blocks[0].capacity] * 8
            assert sum(block.capacity for block in blocks) == each


def test_a_member_is_laid_out_by_its_own_load_alone() -> None:
    expert_SKN = choose(3, 50, 4, 2, seed=3)
    together = plan_dispatch(expert_SKN, 4, ROW)
    for k in range(3):
        alone = plan_dispatch(expert_SKN[:, k : k + 1], 4, ROW)
        blocks = [(block.first, block.last, block.capacity) for block in together.blocks if block.member == k]
        assert blocks == [(block.first, block.last, block.capacity) for block in alone.blocks]


@settings(max_examples=20, deadline=None)
@given(sizes)
def test_from_rows_undoes_to_rows(size: tuple[int, int, int, int]) -> None:
    members, tokens, n_experts, seed = size
    plan = plan_dispatch(choose(members, tokens, n_experts, 2, seed), n_experts, ROW)
    x_MD = torch.randn(members * tokens, 3, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(FromRows.apply(ToRows.apply(x_MD, plan), plan, members * tokens), 2 * x_MD)


@pytest.fixture
def plan() -> Dispatch:
    return plan_dispatch(choose(2, 5, 4, 2, seed=1), 4, ROW)


def test_custom_gradients_pass_gradcheck(plan: Dispatch) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_()

    expert_KNS = choose(2, 5, 4, 2, seed=1).permute(1, 2, 0)
    # Padding has weight zero, which is what stops its gradient.
    weight_P1 = SortWeights.apply(torch.ones(20, dtype=torch.float64), plan)[:, None]
    assert torch.autograd.gradcheck(lambda x: ToRows.apply(x, plan) * weight_P1, draw(10, 3))
    assert torch.autograd.gradcheck(lambda x: FromRows.apply(x * weight_P1, plan, 10), draw(len(weight_P1), 3))
    assert torch.autograd.gradcheck(lambda x: SortWeights.apply(x, plan), draw(20))
    assert torch.autograd.gradcheck(lambda x: PickLogits.apply(x, expert_KNS), draw(2, 5, 4))
    assert torch.autograd.gradcheck(lambda x: SwiGLU.apply(x, None), draw(2, 3, 8))
    assert torch.autograd.gradcheck(SwiGLU.apply, (draw(6, 8), draw(6, 1)))


@pytest.mark.parametrize("favourite", [0.0, 50.0], ids=["balanced", "collapsed"])
def test_expert_products_agree_with_a_loop_over_rows(favourite: float) -> None:
    """Balanced members share one product, collapsed ones have a product per expert."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(2, 200, 4, generator=generator)
    scores[..., 0] += favourite
    plan = plan_dispatch(scores.topk(2).indices.permute(2, 0, 1), 4, ROW)
    assert len(plan.blocks) == (8 if favourite else 2)
    rows = torch.randn(len(plan.token_of_row_P), 8, dtype=torch.float64, generator=generator).requires_grad_()
    matrices = torch.randn(2, 4, 8, 16, dtype=torch.float64, generator=generator).requires_grad_()
    of_row = [
        matrices[block.member, block.first + i // block.capacity] for block in plan.blocks for i in range(block.rows.stop - block.start)
    ]
    slow = torch.stack([row @ matrix for row, matrix in zip(rows, of_row, strict=True)])
    fast = ExpertProduct.apply(rows, matrices, plan)
    slope = torch.randn(fast.shape, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(fast, slow)
    for one, other in zip(*(torch.autograd.grad(out, (rows, matrices), slope) for out in (fast, slow)), strict=True):
        torch.testing.assert_close(one, other)


class Operations(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def new_moe(config: ProxyConfig, members: int) -> PackedMoE:
    torch.manual_seed(0)
    moe = PackedMoE(config, members)
    for parameter in moe.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return moe


def test_nothing_adds_into_shared_places(tiny: ProxyConfig) -> None:
    """Gather-only in both directions: no operation that would be an atomic addition on a GPU."""
    moe = new_moe(tiny, 2)
    with Operations() as operations:
        moe(torch.randn(2, 24, tiny.d_model).requires_grad_(), record_load=True).square().sum().backward()
    assert any("bmm" in name for name in operations.names)
    assert not [
        name for name in operations.names if any(part in name for part in ("index_add", "scatter_add", "index_put", "scatter_reduce"))
    ]


def test_weights_are_the_scores_of_the_chosen_normalized_without_bias(tiny: ProxyConfig) -> None:
    moe = new_moe(tiny, 2)
    moe.router_bias.copy_(torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]))
    x_KND = torch.randn(2, 30, tiny.d_model)
    expert_KNS, weight_KNS, *_ = moe.route(x_KND)
    scores = torch.bmm(x_KND, moe.router).softmax(-1)
    chosen = scores.gather(-1, expert_KNS)
    torch.testing.assert_close(weight_KNS, chosen / chosen.sum(-1, keepdim=True))
    assert (expert_KNS[1] == 0).any(-1).all(), "a bias above any score always wins the choice"
    assert torch.equal(expert_KNS[0].sort().values, scores[0].topk(2).indices.sort().values)


def test_bias_moves_load_toward_uniform_without_gradient(tiny: ProxyConfig) -> None:
    """A router that prefers one expert for every token is balanced by the bias alone, the weights untouched."""
    moe = new_moe(tiny, 2)
    with torch.no_grad():
        moe.router.mul_(0.3)
        moe.norm.fill_(1.0)
    generator = torch.Generator().manual_seed(1)
    tilt = 4.0 * torch.nn.functional.normalize(moe.router[:, :, 0].detach(), dim=-1)[:, None, :]

    def largest_share() -> list[float]:
        moe(tilt + torch.randn(2, 512, tiny.d_model, generator=generator), record_load=True)
        return (moe.load.amax(-1) / moe.load.sum(-1)).tolist()

    with torch.no_grad():
        before = largest_share()
        for _ in range(600):
            largest_share()
            moe.update_bias([True, False])
        after = largest_share()
    assert min(before) > 0.38  # 0.5 is the most that one of two choices can take
    assert after[0] < 0.30  # uniform is 0.25
    assert after[1] > 0.38, "the inactive member is not balanced"
    assert torch.equal(moe.router_bias[1], torch.zeros(4))
    assert "router_bias" not in dict(moe.named_parameters())


def test_bias_step_is_the_sign_of_the_shortage(tiny: ProxyConfig) -> None:
    moe = new_moe(tiny, 1)
    moe.load.copy_(torch.tensor([[10, 4, 2, 0]]))
    moe.update_bias()
    torch.testing.assert_close(moe.router_bias, torch.tensor([[-1.0, 0.0, 1.0, 1.0]]) * tiny.bias_update_rate)
