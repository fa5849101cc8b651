"""Operators against brute force on whole vectors, and the algebra that each of them keeps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxy_models.merging.components import HeldComponent
from proxy_models.merging.merge import merge
from proxy_models.merging.operators import FisherWeighted, Linear, MergeOperator, RoutingWeighted, Spherical, TaskArithmetic
from proxy_models.merging.sparse_operators import Breadcrumbs, Dare, Ties

State = dict[str, Tensor]
NAMES = ["code", "math", "web"]
LAYER = "layers.0.moe."
SHAPES = {
    "embedding": (40, 6),
    "norm": (6,),
    LAYER + "router": (6, 4),
    LAYER + "router_bias": (4,),
    LAYER + "expert_in": (4, 6, 8),
    LAYER + "expert_out": (4, 4, 6),
}
"""Of a model in which blocks are a few rows, so that every piece is of several."""


def state(seed: int, step: float = 1.0) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: step * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def components(step: float = 0.3) -> list[HeldComponent]:
    start = state(0)
    moved = [state(seed, step) for seed in range(1, 1 + len(NAMES))]
    return [HeldComponent(name, {key: start[key] + move[key] for key in SHAPES}) for name, move in zip(NAMES, moved, strict=True)]


BASE = HeldComponent("base", state(0))
SHARES = {name: torch.rand(1, 4, generator=torch.Generator().manual_seed(seed)) for seed, name in enumerate(NAMES)}


def fisher() -> dict[str, HeldComponent]:
    return {name: HeldComponent(name, {key: v.square() for key, v in state(20 + i).items()}) for i, name in enumerate(NAMES)}


KEEPS_ALL: list[MergeOperator] = [
    Linear(),
    TaskArithmetic(),
    Spherical(),
    FisherWeighted.of(fisher()),
    RoutingWeighted(SHARES),
    Ties(density=1.0),
    Dare(density=1.0),
    Breadcrumbs(density=1.0, outliers=0.0),
]
"""Every operator, the sparse ones with settings that leave nothing out."""
EVERY: list[MergeOperator] = [*KEEPS_ALL[:5], Ties(density=0.5), Dare(density=0.5, seed=3), Breadcrumbs(density=0.6, outliers=0.1)]

simplex = st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda raw: sum(raw) > 1e-3).map(lambda raw: [w / sum(raw) for w in raw])

affine = st.lists(st.floats(-3, 3), min_size=2, max_size=2).map(lambda raw: [*raw, 1 - sum(raw)])


def kind(operator: MergeOperator) -> str:
    return type(operator).__name__


def given_as(weights: list[float]) -> dict[str, float]:
    return dict(zip(NAMES, weights, strict=True))


def same(one: State, other: State, tolerance: float = 1e-5) -> bool:
    """Equal but for rounding, and for the mean row of routers, which is free."""
    centred = [{k: v - v.mean(-1, keepdim=True) if k.endswith("router") else v for k, v in s.items()} for s in (one, other)]
    return all(torch.allclose(centred[0][name], centred[1][name], rtol=0, atol=tolerance) for name in SHAPES)


# Identical components


@pytest.mark.parametrize("operator", KEEPS_ALL, ids=kind)
@settings(max_examples=20, deadline=None)
@given(weights=simplex)
def test_identical_components_merge_to_the_component(operator: MergeOperator, weights: list[float]) -> None:
    one = components()[1]
    copies = [HeldComponent(name, {key: one.rows(key, 0, shape[0]) for key, shape in SHAPES.items()}) for name in NAMES]
    expected = {key: one.rows(key, 0, shape[0]) for key, shape in SHAPES.items()}
    merged = merge(copies, given_as(weights), operator, BASE)
    assert all(torch.allclose(merged[name], value, rtol=0, atol=1e-5) for name, value in expected.items())


@pytest.mark.parametrize("operator", KEEPS_ALL, ids=kind)
def test_a_component_alone_is_itself(operator: MergeOperator) -> None:
    parts = components()
    alone = merge(parts, {"code": 0.0, "math": 1.0, "web": 0.0}, operator, BASE)
    assert same(alone, {key: parts[1].rows(key, 0, shape[0]) for key, shape in SHAPES.items()})


@settings(max_examples=20, deadline=None)
@given(weights=simplex)
def test_linear_gives_identical_components_bit_for_bit(weights: list[float]) -> None:
    copies = [HeldComponent(name, state(4)) for name in NAMES]
    merged = merge(copies, given_as(weights))
    assert all(torch.equal(merged[name], value) for name, value in state(4).items())


@settings(max_examples=20, deadline=None)
@given(weights=affine)
def test_linear_gives_identical_components_bit_for_bit_beyond_them_too(weights: list[float]) -> None:
    """What float64 rounds is less than half a step of float32 while weights stay under a million or so."""
    copies = [HeldComponent(name, state(4)) for name in NAMES]
    merged = merge(copies, given_as(weights))
    assert all(torch.equal(merged[name], value) for name, value in state(4).items())


@settings(max_examples=20, deadline=None)
@given(weights=affine)
def test_linear_goes_from_the_base_by_what_components_have_moved(weights: list[float]) -> None:
    parts = components()
    merged = merge(parts, given_as(weights))
    for name, shape in SHAPES.items():
        start, *moved = (one.rows(name, 0, shape[0]).double() for one in (BASE, *parts))
        expected = start + sum((weight * (theta - start) for weight, theta in zip(weights, moved, strict=True)), torch.zeros_like(start))
        assert torch.allclose(merged[name], expected.float(), rtol=1e-6, atol=1e-6), name


@pytest.mark.parametrize("operator", [Ties(density=0.5), Breadcrumbs(density=0.6, outliers=0.1)], ids=kind)
def test_identical_components_keep_what_is_not_left_out(operator: MergeOperator) -> None:
    one = {key: components()[0].rows(key, 0, shape[0]) for key, shape in SHAPES.items()}
    merged = merge([HeldComponent(name, one) for name in NAMES], given_as([0.2, 0.3, 0.5]), operator, BASE)["embedding"]
    start = state(0)["embedding"]
    kept = merged != start
    assert torch.equal(merged[kept], one["embedding"][kept])
    assert int(kept.sum()) == round(operator.density * start.numel())  # type: ignore[attr-defined]


# The same algebra for all


@pytest.mark.parametrize("operator", EVERY, ids=kind)
@settings(max_examples=10, deadline=None)
@given(weights=simplex, order=st.permutations(range(3)))
def test_the_order_of_components_does_not_matter(operator: MergeOperator, weights: list[float], order: list[int]) -> None:
    parts = components()
    shuffled = [parts[index] for index in order]
    assert same(merge(parts, given_as(weights), operator, BASE), merge(shuffled, given_as(weights), operator, BASE))


@pytest.mark.parametrize("operator", EVERY, ids=kind)
def test_a_component_of_no_weight_changes_nothing(operator: MergeOperator) -> None:
    parts = components()
    two = merge(parts[:2], {"code": 0.25, "math": 0.75}, operator, BASE)
    three = merge(parts, {"code": 0.25, "math": 0.75, "web": 0.0}, operator, BASE)
    assert all(torch.equal(two[name], three[name]) for name in SHAPES)


@pytest.mark.parametrize("operator", EVERY, ids=kind)
def test_the_free_direction_of_routers_is_free(operator: MergeOperator) -> None:
    """A vector added to every expert's router row of one component changes nothing but that row mean."""
    parts = components()
    name = LAYER + "router"
    moved = {key: parts[0].rows(key, 0, shape[0]).clone() for key, shape in SHAPES.items()}
    moved[name] += torch.randn(6, 1, generator=torch.Generator().manual_seed(9))
    weights = given_as([0.4, 0.3, 0.3])
    other = merge([HeldComponent("code", moved), *parts[1:]], weights, operator, BASE)
    assert same(merge(parts, weights, operator, BASE), other, 1e-5)


@pytest.mark.parametrize("operator", EVERY, ids=kind)
def test_blocks_do_not_show(operator: MergeOperator, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = given_as([0.4, 0.3, 0.3])
    small = merge(components(), weights, operator, BASE)
    monkeypatch.setattr("proxy_models.merging.pieces.BLOCK_SHARE", 1e6)
    whole = merge(components(), weights, operator, BASE)
    assert same(small, whole, 1e-6)


@pytest.mark.parametrize("operator", EVERY, ids=kind)
def test_the_bias_is_averaged_by_every_operator(operator: MergeOperator) -> None:
    name, weights = LAYER + "router_bias", [0.4, 0.3, 0.3]
    expected = sum(w * part.rows(name, 0, 4) for w, part in zip(weights, components(), strict=True))
    assert torch.allclose(merge(components(), given_as(weights), operator, BASE)[name], expected, atol=1e-6)


# Brute force: vector by vector, in float64, with nothing of the streaming


def vectors(of: HeldComponent, centre: bool) -> Iterator[tuple[str, int | None, np.ndarray]]:
    """Every piece as one vector, experts by themselves."""
    for name, shape in SHAPES.items():
        value = of.rows(name, 0, shape[0]).double()
        if centre and name.endswith("router"):
            value = value - value.mean(-1, keepdim=True)
        if "expert" in name:
            yield from ((name, e, value[e].flatten().numpy()) for e in range(shape[0]))
        else:
            yield name, None, value.flatten().numpy()


def brute(rule: Callable[..., np.ndarray], weights: list[float], centre: bool) -> State:
    """`rule(thetas, theta_0, weights, name, expert)` for each piece; the bias is averaged."""
    parts = components()
    columns = [list(vectors(part, centre)) for part in parts]
    merged = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in SHAPES.items()}
    for place, (name, expert, start) in enumerate(vectors(BASE, centre)):
        thetas = np.array([column[place][2] for column in columns])
        value = np.array(weights) @ thetas if name.endswith("bias") else rule(thetas, start, np.array(weights), name, expert)
        if expert is None:
            merged[name] = torch.from_numpy(value).view(SHAPES[name])
        else:
            merged[name][expert] = torch.from_numpy(value).view(SHAPES[name][1:])
    return {name: value.float() for name, value in merged.items()}


def agrees(operator: MergeOperator, rule: Callable[..., np.ndarray], base: HeldComponent | None = BASE) -> None:
    weights = [0.5, 0.3, 0.2]
    expected = brute(rule, weights, operator.centres_routers)
    assert same(merge(components(), given_as(weights), operator, base), expected, 2e-6)


def test_linear_and_task_arithmetic() -> None:
    agrees(Linear(), lambda t, t0, w, *_: w @ t)
    agrees(TaskArithmetic(scale=0.7), lambda t, t0, w, *_: t0 + 0.7 * (w @ (t - t0)))


def trimmed(tau: np.ndarray, density: float) -> np.ndarray:
    kept = np.argsort(-abs(tau))[: round(density * len(tau))]
    result = np.zeros_like(tau)
    result[kept] = tau[kept]
    return result


def test_ties() -> None:
    def rule(t: np.ndarray, t0: np.ndarray, w: np.ndarray, *_: object) -> np.ndarray:
        kept = np.array([trimmed(tau, 0.5) for tau in t - t0])
        merged = np.zeros_like(t0)
        for i in range(len(t0)):
            sign = np.sign(w @ kept[:, i])
            merged[i] = sum(w[k] * kept[k, i] for k in range(len(w)) if np.sign(kept[k, i]) == sign)
        return t0 + 0.8 * merged

    agrees(Ties(density=0.5, scale=0.8), rule)


def test_ties_never_mixes_signs() -> None:
    """What TIES claims: an element moves in the direction of the majority by weight, never by less than its agreeing components say."""
    parts = components()
    merged = merge(parts, given_as([0.5, 0.3, 0.2]), Ties(density=1.0), BASE)["embedding"] - state(0)["embedding"]
    linear = merge(parts, given_as([0.5, 0.3, 0.2]), Linear())["embedding"] - state(0)["embedding"]
    clear = linear.abs() > 1e-4
    assert torch.equal(merged[clear].sign(), linear[clear].sign())
    assert bool((merged.abs() >= linear.abs() - 1e-5).all())
    assert float((merged.abs() > linear.abs() + 1e-3).float().mean()) > 0.1


def test_breadcrumbs() -> None:
    def rule(t: np.ndarray, t0: np.ndarray, w: np.ndarray, *_: object) -> np.ndarray:
        total = np.zeros_like(t0)
        for weight, tau in zip(w, t - t0, strict=True):
            order = np.argsort(-abs(tau))
            above = round(0.1 * len(tau))
            kept = order[above : above + round(0.6 * len(tau))]
            total[kept] += weight * tau[kept]
        return t0 + total

    agrees(Breadcrumbs(density=0.6, outliers=0.1), rule)


def test_dare_keeps_and_rescales() -> None:
    parts = components()
    name, start = "embedding", state(0)["embedding"]
    alone = merge([parts[0]], {"code": 1.0}, Dare(density=0.25, seed=1), BASE)[name]
    tau = parts[0].rows(name, 0, 40) - start
    kept = alone != start
    assert torch.allclose((alone - start)[kept], 4 * tau[kept], atol=1e-5)
    # 240 coins of a quarter: four standard deviations are 27.
    assert abs(int(kept.sum()) - 60) < 27
    together = merge(parts, given_as([1.0, 0.0, 0.0]), Dare(density=0.25, seed=1), BASE)[name]
    assert torch.equal(alone, together), "coins depend on the company"
    assert not torch.equal(alone, merge([parts[0]], {"code": 1.0}, Dare(density=0.25, seed=2), BASE)[name])


def test_components_toss_coins_of_their_own() -> None:
    one = {key: components()[0].rows(key, 0, shape[0]) for key, shape in SHAPES.items()}
    merged = merge([HeldComponent(name, one) for name in NAMES], given_as([0.2, 0.3, 0.5]), Dare(density=0.5), BASE)["embedding"]
    ratio = (merged - state(0)["embedding"]) / (one["embedding"] - state(0)["embedding"])
    assert len({round(value, 2) for value in ratio.flatten().tolist()}) == 7  # twice every sum of some of .2, .3 and .5; .5 is one of two


def test_dare_is_task_arithmetic_on_average() -> None:
    """What DARE claims. The mean of 400 seeds, within five standard errors of each element's own spread."""
    weights = given_as([0.5, 0.3, 0.2])
    *parts, base = (HeldComponent(part.name, {"norm": part.rows("norm", 0, 6)}) for part in [*components(), BASE])
    merges = torch.stack([merge(parts, weights, Dare(density=0.5, seed=seed), base)["norm"] for seed in range(400)])
    error = (merges.mean(0) - merge(parts, weights, TaskArithmetic(), base)["norm"]).abs()
    assert bool((error < 5 * merges.std(0) / math.sqrt(400) + 1e-6).all())
    assert bool((merges.std(0) > 0).all())


def test_spherical_with_and_without_a_base() -> None:
    def mean(vectors_KN: np.ndarray, w: np.ndarray) -> np.ndarray:
        lengths = np.linalg.norm(vectors_KN, axis=1)
        units = vectors_KN / lengths[:, None]
        middle = w @ units
        middle /= np.linalg.norm(middle)
        tangent = np.zeros_like(middle)
        for weight, unit in zip(w, units, strict=True):
            angle = math.acos(unit @ middle)
            away = unit - (unit @ middle) * middle
            tangent += weight * angle * away / np.linalg.norm(away)
        turn = np.linalg.norm(tangent)
        return (w @ lengths) * (math.cos(turn) * middle + math.sin(turn) * tangent / turn)

    agrees(Spherical(), lambda t, t0, w, *_: t0 + mean(t - t0, w))
    agrees(Spherical(), lambda t, t0, w, *_: mean(t, w), base=None)


@settings(max_examples=20, deadline=None)
@given(share=st.floats(0.01, 0.99))
def test_spherical_is_slerp_for_two(share: float) -> None:
    one, two = (part.rows("embedding", 0, 40).double() for part in components(step=1.0)[:2])
    merged = merge(components(step=1.0)[:2], {"code": 1 - share, "math": share}, Spherical())["embedding"].double()
    lengths = one.norm(), two.norm()
    angle = torch.acos((one * two).sum() / lengths[0] / lengths[1])
    direction = (torch.sin((1 - share) * angle) * one / lengths[0] + torch.sin(share * angle) * two / lengths[1]) / torch.sin(angle)
    assert torch.allclose(merged, ((1 - share) * lengths[0] + share * lengths[1]) * direction, atol=1e-5)


def test_spherical_of_what_has_no_direction() -> None:
    start = state(0)
    stayed, opposite = HeldComponent("stayed", start), {key: start[key] - 1 for key in SHAPES}
    there = HeldComponent("there", {key: start[key] + 1 for key in SHAPES})
    half = {"there": 0.5, "stayed": 0.5}
    assert torch.allclose(merge([there, stayed], half, Spherical(), BASE)["embedding"], start["embedding"] + 0.5, atol=1e-6)
    cancelled = merge([there, HeldComponent("back", opposite)], {"there": 0.5, "back": 0.5}, Spherical(), BASE)
    assert torch.allclose(cancelled["embedding"], start["embedding"], atol=1e-6)
    assert torch.equal(merge([stayed], {"stayed": 1.0}, Spherical(), BASE)["embedding"], start["embedding"])


def test_fisher() -> None:
    information = fisher()
    flat = {name: {(key, e): v + 1e-6 for key, e, v in vectors(one, centre=False)} for name, one in information.items()}
    norms = [math.sqrt(sum(float(v @ v) for v in flat[name].values())) for name in NAMES]

    def rule(t: np.ndarray, t0: np.ndarray, w: np.ndarray, name: str, expert: int | None) -> np.ndarray:
        c = w / norms / np.sum(1 / np.array(norms))
        f = np.array([flat[one][name, expert] for one in NAMES])
        return np.asarray(np.einsum("k,kn,kn->n", c, f, t) / np.einsum("k,kn->n", c, f))

    agrees(FisherWeighted.of(information), rule)


def test_fisher_goes_with_whom_a_weight_matters_to() -> None:
    """What Fisher weighting claims, with all other things equal."""
    ones = {key: torch.ones(shape) for key, shape in SHAPES.items()}
    caring = {key: value.clone() for key, value in ones.items()}
    caring["norm"][0], caring["norm"][1] = 100.0, 0.01
    parts = components()[:2]
    operator = FisherWeighted.of({"code": HeldComponent("code", caring), "math": HeldComponent("math", ones)})
    merged = merge(parts, {"code": 0.5, "math": 0.5}, operator)["norm"]
    code, math_ = (part.rows("norm", 0, 6) for part in parts)
    nearer = (merged - math_) / (code - math_)
    assert nearer[0] > 0.95 > 0.6 > nearer[2] > 0.05 > nearer[1]


def test_routing_weights() -> None:
    def rule(t: np.ndarray, t0: np.ndarray, w: np.ndarray, name: str, expert: int | None) -> np.ndarray:
        if expert is None:
            return np.asarray(w @ t)
        used = np.array([float(SHARES[one][0, expert]) for one in NAMES])
        return np.asarray((w * used) @ t / (w @ used))

    agrees(RoutingWeighted(SHARES), rule)
    nobody = {name: torch.zeros(1, 4) for name in NAMES}
    agrees(RoutingWeighted(nobody), lambda t, t0, w, *_: w @ t)


# Settings


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TaskArithmetic(scale=0.0), "scale is 0.0"),
        (lambda: Ties(density=0.0), "density is 0.0"),
        (lambda: Ties(scale=math.nan), "scale is nan"),
        (lambda: Dare(density=1.5), "density is 1.5"),
        (lambda: Breadcrumbs(density=0.9, outliers=0.2), "outliers is 0.2"),
        (lambda: RoutingWeighted({"code": -torch.ones(1, 4)}), "shares of component 'code'"),
        (lambda: FisherWeighted.of({"code": HeldComponent("code", {"norm": -torch.ones(6)})}), "component 'code' is negative in 'norm'"),
    ],
)
def test_settings_out_of_range_are_named(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_what_an_operator_misses_is_named() -> None:
    weights = given_as([0.4, 0.3, 0.3])
    with pytest.raises(ValueError, match="no Fisher information of component 'web'"):
        merge(components(), weights, FisherWeighted.of({name: fisher()[name] for name in NAMES[:2]}))
    with pytest.raises(ValueError, match="no routing shares of component 'web'"):
        merge(components(), weights, RoutingWeighted({name: SHARES[name] for name in NAMES[:2]}))
    with pytest.raises(ValueError, match=r"'code' are 1 by 3; 'layers\.0\.moe\.expert_in' has more"):
        merge(components(), weights, RoutingWeighted({name: shares[:, :3] for name, shares in SHARES.items()}))
