"""Each method where its answer can be worked out: fixed points, gradients of quadratics, a convex program, a bandit, a power law."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog

from mixopt.constraints.rules import Constraints, Near
from mixopt.controllers import get_controller
from mixopt.controllers.ado import FEWEST_POINTS, allocation, fit_power_law
from mixopt.controllers.base import Adaptive, Setup
from mixopt.controllers.doge import doge_scores
from mixopt.controllers.fastmix import logit_slope
from mixopt.controllers.gate_load import load_distances
from mixopt.controllers.limits import tilted
from mixopt.controllers.odm import exp3
from mixopt.controllers.signals import Signal, Signals
from mixopt.controllers.tikmix_d import Terms, solve
from mixopt.domains import Domain, DomainSet
from mixopt.groups.rules import GroupRule
from mixopt.mixture import Mixture
from mixopt.space import MixtureSpace

SEEDS = st.integers(0, 2**32 - 1)
NAN = float("nan")


def controller_of(name: str, domains: int, options: dict[str, Any] | None = None, targets: int = 1, **changes: Any) -> Adaptive:
    given = {"tokens": 1_000_000, "step_tokens": 100, "floor": 0.0}
    names = tuple(f"d{index:02}" for index in range(domains)), tuple(f"t{index:02}" for index in range(targets))
    return get_controller(name, Setup(*names, **given | changes), options)


def observe(controller: Adaptive, values: dict[Signal, Any], tokens: int | None = None) -> np.ndarray:
    """The weights decided after these signals, in the order of names."""
    seen = controller.seen + controller.decision.tokens if tokens is None else tokens
    arrays = {signal: np.array(value, dtype=np.float64) for signal, value in values.items()}
    controller.observe(Signals(controller.setup.names, controller.setup.target_names, seen, arrays))
    return np.array(controller.weights)


# DoReMi


def test_doremi_ends_where_excess_losses_are_equal() -> None:
    """Excess b - a w falls with weight; the fixed point makes the largest excess least, which is where all are alike."""
    b, a = np.array([0.5, 0.4, 0.3]), np.array([0.6, 0.3, 0.2])
    level = brentq(lambda v: float(((b - v) / a).sum() - 1), -2, 2)
    expected = (b - level) / a
    assert expected.min() > 0
    controller = controller_of("doremi", 3, {"smoothing": 0.0, "every": 0.0})
    weights = np.full(3, 1 / 3)
    for _ in range(1500):
        weights = observe(controller, {Signal.EXCESS_LOSS: b - a * weights})
    assert np.allclose(weights, expected, atol=1e-6)
    assert np.allclose(controller.final().average().array(), expected, atol=0.02), "the mean over the run is the answer"


def test_doremi_follows_its_published_update() -> None:
    controller = controller_of("doremi", 3, {"smoothing": 0.01})
    weights = observe(controller, {Signal.EXCESS_LOSS: [0.3, 0.0, 0.1]})
    raised = np.exp([0.3, 0.0, 0.1])
    assert np.allclose(weights, 0.99 * raised / raised.sum() + 0.01 / 3)
    again = observe(controller, {Signal.EXCESS_LOSS: [NAN, 0.0, 0.1]})
    assert np.allclose(again, 0.99 * weights * raised / (weights @ raised) + 0.01 / 3), "the missing one keeps its last excess"


# Gradients of two quadratics


def quadratic(centre: np.ndarray, at: np.ndarray, curvature: np.ndarray) -> tuple[float, np.ndarray]:
    return float(0.5 * (at - centre) @ curvature @ (at - centre)), curvature @ (at - centre)


def test_products_above_zero_are_falls_of_the_targets_loss() -> None:
    """The sign convention, by finite differences: a step on domain j lowers the target's loss by step * <g_j, h>."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(3, 4, 4))
    # So flat that no gradient is clipped, which would change what a step is.
    curvatures = 0.02 * roots @ roots.transpose(0, 2, 1)
    centres, at = rng.normal(size=(3, 4)), rng.normal(size=4)
    gradients = [quadratic(centre, at, curvature)[1] for centre, curvature in zip(centres, curvatures, strict=True)]
    products = np.array([gradients[2] @ gradient for gradient in gradients[:2]])
    step = 1e-5
    falls = [
        quadratic(centres[2], at + step * gradient, curvatures[2])[0] - quadratic(centres[2], at - step * gradient, curvatures[2])[0]
        for gradient in gradients[:2]
    ]
    assert np.allclose(products, np.array(falls) / (2 * step), rtol=1e-5)
    norms = np.array([np.linalg.norm(gradient) for gradient in gradients])
    given_signals = {
        Signal.GRADIENT_PRODUCTS: products[None],
        Signal.HEAD_PRODUCTS: products[None],
        Signal.INFLUENCE: products[None],
        Signal.GRADIENT_NORMS: norms[:2],
        Signal.TARGET_NORMS: norms[2:],
    }
    for name in ("doge", "dga", "fastmix", "tikmix_d"):
        weights = observe(controller_of(name, 2), given_signals)
        assert (weights[0] > weights[1]) == (products[0] > products[1]), f"{name} goes where the target's loss falls most"


def test_doge_and_dga_follow_their_formulas() -> None:
    products, norms, target_norms = np.array([[0.3, -0.2, 0.1], [0.6, 0.4, -0.1]]), np.array([1.0, 2.0, 0.5]), np.array([1.5, 0.7])
    signals = {Signal.GRADIENT_PRODUCTS: products, Signal.GRADIENT_NORMS: norms, Signal.TARGET_NORMS: target_norms}
    even = np.full(3, 1 / 3)
    weights = observe(controller_of("doge", 3, targets=2), signals)
    scores = np.clip(products.sum(axis=0) / (norms.mean() + 1e-6), 0, 5)
    assert np.allclose(weights, tilted(even, scores, 0.05))
    dga = observe(controller_of("dga", 3, targets=2), signals)
    aligned = (products / (norms.mean() * target_norms[:, None])).mean(axis=0)
    assert np.allclose(dga, 0.9 * even + 0.1 * tilted(even, aligned, 10.0))


def test_doge_clips_gradients_as_if_they_had_been_clipped_before() -> None:
    rng = np.random.default_rng(1)
    g, h = rng.normal(size=(3, 20)) * np.array([[1.0], [2.0], [0.1]]), rng.normal(size=(2, 20)) * 2
    clip = 5.0
    short_g, short_h = (v * np.minimum(1, clip / np.linalg.norm(v, axis=1, keepdims=True)) for v in (g, h))
    expected = np.clip((short_h @ short_g.T).sum(axis=0) / (np.linalg.norm(short_g, axis=1).mean() + 1e-6), 0, clip)
    found = doge_scores(h @ g.T, np.linalg.norm(g, axis=1), np.linalg.norm(h, axis=1), np.array([0.5, 0.5]), clip)
    assert np.allclose(found, expected)
    assert 0 < expected.max() < clip, "neither clip of the score hides the products"


def test_doge_can_leave_out_a_domains_product_with_itself() -> None:
    given = Setup(("a", "b"), ("a", "b"), 1000, floor=0.0)
    products = np.array([[9.0, 1.0], [2.0, 16.0]])
    values = {Signal.GRADIENT_PRODUCTS: products, Signal.GRADIENT_NORMS: [3.0, 4.0], Signal.TARGET_NORMS: [3.0, 4.0]}
    weights = observe(get_controller("doge", given, {"leave_out_own": True}), values)
    assert np.allclose(weights, tilted(np.array([0.5, 0.5]), np.array([2.0, 1.0]) / (3.5 + 1e-6), 0.05))


@pytest.mark.parametrize(
    ("name", "options"), [("doge", {"rate": 0.05}), ("dga", {"rate": 0.05}), ("fastmix", {"rate": 0.005, "momentum": 0.0})]
)
def test_on_two_quadratics_weights_find_the_mixture_whose_minimum_is_the_targets(name: str, options: dict[str, Any]) -> None:
    """Domains pull to 0 and 1, the target sits at .3: the mixture (.7, .3) is the one answer, from either side."""
    for start in (0.1, 0.9):
        prior = Mixture.of({"d00": 1 - start, "d01": start})
        controller = controller_of(name, 2, options | {"every": 0.0}, prior=prior, tokens=10_000_000)
        at, weights, late = np.array([start]), np.array(controller.weights), []
        for call in range(2500):
            g = np.array([at - 0.0, at - 1.0])
            h = at - 0.3
            at = at - 0.1 * (weights @ g)
            products, norms = (g @ h)[None], np.abs(g[:, 0])
            weights = observe(
                controller,
                {
                    Signal.GRADIENT_PRODUCTS: products,
                    Signal.HEAD_PRODUCTS: products,
                    Signal.GRADIENT_NORMS: norms,
                    Signal.TARGET_NORMS: np.abs(h),
                },
            )
            late += [weights[1]] if call >= 1200 else []
        assert np.mean(late) == pytest.approx(0.3, abs=0.03)


# FastMix


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(2, 6), st.sampled_from([0.0, 0.3]))
def test_fastmix_gradient_equals_finite_differences_of_one_training_step(seed: int, count: int, entropy: float) -> None:
    """Through a real step: the target's loss at theta - lr * sum_j w_j(z) g_j, of a quadratic, for a step so small that it is linear."""
    rng = np.random.default_rng(seed)
    logits, gradients, centre, at = rng.normal(size=count), rng.normal(size=(count, 5)), rng.normal(size=5), rng.normal(size=5)
    rate = 1e-4

    def softmax(z: np.ndarray) -> np.ndarray:
        raised = np.exp(z - z.max())
        return raised / raised.sum()

    def value(z: np.ndarray) -> float:
        weights = softmax(z)
        after = at - rate * weights @ gradients
        return float(-0.5 * ((after - centre) ** 2).sum() / rate - entropy * weights @ np.log(weights))

    step = 1e-4
    differences = [(value(logits + step * unit) - value(logits - step * unit)) / (2 * step) for unit in np.eye(count)]
    found = logit_slope(softmax(logits), gradients @ (at - centre), entropy)
    assert np.allclose(found, differences, atol=2e-3 * max(1.0, np.abs(gradients).max() ** 2))
    assert abs(found.sum()) < 1e-9


def test_fastmix_entropy_keeps_weights_from_corners() -> None:
    """In the published code a positive factor lowered the entropy."""
    weights = np.array([0.8, 0.15, 0.05])
    slope = logit_slope(weights, np.zeros(3), 1.0)
    assert slope[0] < 0
    assert slope[2] > 0


def test_fastmix_leaves_out_absent_domains_and_follows_signal_more_than_noise() -> None:
    present = observe(controller_of("fastmix", 3), {Signal.HEAD_PRODUCTS: [[-0.3, -0.1, NAN]]})
    assert present[2] == pytest.approx(1 / 3, abs=1e-12), "a zero would be the best of the three"
    controller = controller_of("fastmix", 2)
    observe(controller, {Signal.HEAD_PRODUCTS: [[1.0, -1.0]]})
    before = np.array(controller.weights)
    controller.memory["momentum"] = np.full(2, NAN)
    moved = np.abs(observe(controller, {Signal.HEAD_PRODUCTS: [[1e-4, -1e-4]]}) - before).max()
    assert moved < 0.01 * np.abs(before - 0.5).max(), "Adam would step as far for a gradient a ten thousandth as large"


# TiKMiX


def problem(rng: np.random.Generator, targets: int, domains: int, free: bool = True) -> tuple[Terms, np.ndarray, Adaptive]:
    influence = rng.normal(0.3, 1.0, (targets, domains)) * 10.0 ** rng.uniform(-8, 0)
    cap = {} if free else {"cap": 1.5 / domains, "floor": 0.2 / domains}
    prior = rng.dirichlet(np.full(domains, 3.0))
    names = tuple(f"d{index:02}" for index in range(domains))
    controller = controller_of("tikmix_d", domains, targets=targets, prior=Mixture.from_array(names, prior), **cap)
    return Terms(influence, np.ones(targets), 1.0, 1.0, 1.0), np.array(controller.weights), controller


@pytest.mark.parametrize("seed", range(24))
def test_tikmix_d_is_within_a_certified_gap_of_the_optimum(seed: int) -> None:
    """Frank-Wolfe: the objective is convex, so value - best <= slope . (found - vertex), the vertex from an independent linear program."""
    rng = np.random.default_rng(seed)
    targets, domains = int(rng.integers(1, 12)), int(rng.integers(2, 27))
    terms, now, controller = problem(rng, targets, domains, free=seed % 2 == 0)
    found = solve(terms, now, controller.allowed)  # type: ignore[attr-defined]
    served = terms.influence / terms.scale[:, None]
    assert (served @ (found - now)).min() > -1e-7, "no target is served worse"
    assert abs(found.sum() - 1) < 1e-9
    limits = controller.setup.limits
    assert np.all((found >= limits.floor - 1e-9) & (found <= limits.cap + 1e-9))
    slope = terms.slope(found)
    vertex = linprog(
        slope,
        A_ub=-served,
        b_ub=-(served @ now),
        A_eq=np.ones((1, domains)),
        b_eq=[1.0],
        bounds=list(zip(limits.floor, limits.cap, strict=True)),
    )
    assert vertex.status == 0
    assert slope @ found - vertex.fun < 2e-5, "the certificate"
    assert terms.value(found) <= terms.value(now)


def test_tikmix_d_is_the_best_of_a_fine_grid() -> None:
    influence = np.array([[1.0, 0.2, -0.1], [0.1, 0.8, 0.3]])
    terms, now = Terms(influence, np.ones(2), 1.0, 1.0, 1.0), np.full(3, 1 / 3)
    steps = np.linspace(0, 1, 401)
    grid = np.array([[x, y, 1 - x - y] for x in steps for y in steps if x + y <= 1 + 1e-12])
    allowed = np.all((grid - now) @ influence.T >= 0, axis=1)
    shares = grid @ (influence / influence.max(axis=1, keepdims=True)).T
    safe = np.maximum(grid, 1e-300)
    values = np.where(allowed, shares.std(axis=1) - shares.sum(axis=1) + (grid * np.log(safe)).sum(axis=1), np.inf)
    weights = observe(controller_of("tikmix_d", 3, targets=2), {Signal.INFLUENCE: influence * 1e-5})
    assert terms.value(weights) <= values.min() + 1e-5
    assert np.abs(weights - grid[values.argmin()]).max() < 0.01


def test_tikmix_d_leaves_out_targets_that_nothing_serves_but_does_not_harm_them() -> None:
    influence = np.array([[1.0, 0.1, 0.5], [-0.2, -0.9, -0.9]])
    weights = observe(controller_of("tikmix_d", 3, targets=2), {Signal.INFLUENCE: influence})
    assert influence[1] @ weights >= influence[1] @ np.full(3, 1 / 3) - 1e-7
    assert weights[0] > 0.4
    nothing = observe(controller_of("tikmix_d", 3, targets=1), {Signal.INFLUENCE: [[-1.0, -0.2, -0.5]]})
    assert -1.0 * nothing[0] - 0.2 * nothing[1] - 0.5 * nothing[2] >= -1.7 / 3 - 1e-7


def test_tikmix_d_serves_no_target_worse_where_a_step_is_cut() -> None:
    influence = np.array([[1.0, 0.2, -0.1, 0.0], [0.1, 0.8, 0.3, -0.2]])
    weights = observe(controller_of("tikmix_d", 4, targets=2, largest_step=0.02), {Signal.INFLUENCE: influence})
    assert 0.5 * np.abs(weights - 0.25).sum() == pytest.approx(0.02)
    assert np.all(influence @ (weights - 0.25) > 0)


@pytest.mark.parametrize("near", [None, 0.1])
def test_tikmix_d_serves_no_target_worse_in_a_space(near: float | None) -> None:
    """A group of a given split, bounds on another, and a largest distance from the natural mixture; certified where the set is a polytope."""
    groups = {"a": "", "b": "stem", "c": "stem", "d": "prose", "e": "prose"}
    rules = (GroupRule("prose", (("d", 0.7), ("e", 0.3))), GroupRule("stem", bounds=(0.1, 0.45)))
    constraints = Constraints(None, None if near is None else Near("natural", near))
    made = tuple(Domain(name, name, 1000, 40.0, group, 8.0) for name, group in groups.items())
    domains = DomainSet(made, 100.0, () if near is not None else rules, constraints)
    space = MixtureSpace.from_domains(domains)
    influence = np.array([[0.1, 0.9, 0.2, 0.3, 0.0], [0.3, -0.1, 0.2, 0.8, 0.9], [0.0, 0.2, 0.1, 0.3, 0.2]])
    given_setup = Setup(tuple(groups), ("t", "u", "v"), 1000, prior=domains.natural(), space=space, floor=0.02)
    controller = get_controller("tikmix_d", given_setup)
    now = np.array(controller.weights)
    weights = observe(controller, {Signal.INFLUENCE: influence})
    assert space.contains(weights[None], 1e-9)[0]
    assert np.all(influence @ (weights - now) >= -1e-7)
    assert np.all(weights >= 0.02 - 1e-9)
    terms, allowed = Terms(influence, np.ones(3), 1.0, 1.0, 1.0), controller.allowed  # type: ignore[attr-defined]
    assert terms.value(weights) < terms.value(now)
    if near is not None:
        assert 0.5 * np.abs(weights - domains.natural().array()).sum() == pytest.approx(near, abs=1e-6), "as far as it may"
        return
    slope = allowed.expand.T @ terms.slope(weights)
    served = influence @ allowed.expand
    rows, ends = np.concatenate([-served, allowed.rows, -allowed.rows]), np.concatenate([-influence @ now, allowed.largest, -allowed.least])
    limits = list(zip(allowed.lower, allowed.upper, strict=True))
    vertex = linprog(slope, A_ub=rows, b_ub=ends, A_eq=np.ones((1, len(slope))), b_eq=[1.0], bounds=limits)
    assert terms.slope(weights) @ weights - vertex.fun < 2e-5


def test_tikmix_m_comes_near_the_best_mixture_of_its_box() -> None:
    """Influence is linear in the mixture; the best within half and twice the current weights is a linear program."""
    rng = np.random.default_rng(4)
    influence = rng.normal(0.2, 1.0, (3, 6))
    controller = controller_of("tikmix_m", 6, targets=3)
    probes = np.array([mixture.array(controller.setup.names) for mixture in controller.decision.probes])
    assert probes.shape == (32, 6)
    assert np.all((probes >= 1 / 12 - 1e-12) & (probes <= 1 / 3 + 1e-12))
    measured = influence @ probes.T
    worth = (influence[measured.max(axis=1) > 0] / measured.max(axis=1, keepdims=True)[measured.max(axis=1) > 0]).sum(axis=0)
    weights = observe(controller, {Signal.MIXTURE_INFLUENCE: measured + rng.normal(0, 0.01, measured.shape)})
    best = -linprog(-worth, A_eq=np.ones((1, 6)), b_eq=[1.0], bounds=[(1 / 12, 1 / 3)] * 6).fun
    assert np.all((weights >= 1 / 12 - 1e-9) & (weights <= 1 / 3 + 1e-9))
    assert worth @ weights - worth.mean() > 0.8 * (best - worth.mean())
    assert len(controller.decision.probes) == 32


def test_tikmix_m_waits_where_too_few_probes_were_measured() -> None:
    controller = controller_of("tikmix_m", 6)
    measured = np.full((1, 32), NAN)
    measured[:, :5] = 1.0
    assert observe(controller, {Signal.MIXTURE_INFLUENCE: measured}).tolist() == pytest.approx([1 / 6] * 6)


# ODM


@pytest.mark.parametrize("arms", [3, 8])
def test_odms_regret_on_a_bandit_grows_slower_than_time(arms: int) -> None:
    """One arm a round, Bernoulli rewards; Exp3 has a regret of at most 2.63 sqrt(K T ln K). 4 seeds, their mean within it."""
    means = np.linspace(0.3, 0.7, arms)
    regrets = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        controller = controller_of("odm", arms, {"reward": "reward", "window": 100_000, "every": 0.0}, tokens=10_000_000)
        lost = []
        for _ in range(1500):
            arm = int(rng.choice(arms, p=controller.weights / controller.weights.sum()))
            reward = np.full(arms, NAN)
            reward[arm] = float(rng.random() < means[arm])
            lost.append(means.max() - means[arm])
            observe(controller, {Signal.REWARD: reward})
        regrets.append(np.cumsum(lost))
    regret = np.mean(regrets, axis=0)
    assert regret[-1] < 2.63 * np.sqrt(arms * 1500 * np.log(arms))
    assert regret[-1] < 0.7 * 1500 * (means.max() - means.mean()), "equal weights lose so much"
    assert regret[-1] - regret[750] < 0.9 * regret[750], "less in the second half than in the first"


def test_odm_does_not_forget_what_it_learned_as_its_rate_falls() -> None:
    """In the published code rewards are averaged and the rate falls, so that weights return to equal ones."""
    early, late = (exp3(np.full(4, 0.25), np.array([1.0, 0.5, 0.5, 0.5]), horizon) for horizon in (20, 2000))
    assert late[0] > early[0] > 0.3
    assert exp3(np.full(4, 0.25), np.array([1.0, 0.5, 0.5, 0.5]), 1).tolist() == pytest.approx([0.25] * 4), "nothing is known at first"


def test_odm_gives_nothing_to_noise_by_default_and_all_to_it_as_published() -> None:
    """d00 is noise at 6 nats that never falls, d01 falls."""
    weights = {}
    for reward in ("progress", "loss"):
        controller = controller_of("odm", 2, {"reward": reward, "every": 0.0}, tokens=10_000_000)
        rng = np.random.default_rng(0)
        for call in range(150):
            found = observe(controller, {Signal.TRAIN_LOSS: [6 + rng.normal(0, 0.01), 5 * np.exp(-call / 200) + rng.normal(0, 0.01)]})
        weights[reward] = found
    assert weights["progress"][0] < 0.2
    assert weights["loss"][0] > 0.6


# ADO


@settings(deadline=None, max_examples=60)
@given(st.floats(0, 4), st.floats(0.5, 400), st.floats(0.03, 0.75), st.integers(12, 120), st.sampled_from([1.0, 1e3, 1e9]))
def test_ado_recovers_a_power_law(floor: float, scale: float, exponent: float, points: int, unit: float) -> None:
    tokens = np.linspace(1.0, 40.0, points)
    losses = floor + scale * tokens**-exponent
    found = fit_power_law(tokens * unit, losses)
    assert found[2] == pytest.approx(exponent, rel=2e-3, abs=1e-4)
    assert found[0] == pytest.approx(floor, rel=2e-3, abs=2e-3 * losses.max())
    assert found[0] + found[1] * (tokens * unit) ** -found[2] == pytest.approx(losses, rel=1e-5)


def test_ados_fit_holds_against_spikes() -> None:
    rng = np.random.default_rng(0)
    tokens = np.linspace(1e5, 2e6, 80)
    losses = 2.0 + 60 * tokens**-0.3 + rng.normal(0, 2e-3, 80)
    spiked = losses.copy()
    spiked[[20, 50]] += 1.5
    (clean, _, _), (with_spikes, _, _) = fit_power_law(tokens, losses), fit_power_law(tokens, spiked)
    assert abs(with_spikes - clean) < 0.1
    assert abs(clean - 2.0) < 0.2


def test_ado_gives_tokens_where_its_laws_fall_fastest() -> None:
    """Three known laws; the weights are those of the formula."""
    laws = [(2.0, 30.0, 0.3), (1.0, 5.0, 0.1), (3.0, 400.0, 0.5)]
    controller = controller_of("ado", 3, {"every": 0.02, "warmup": 0.0, "inertia": 0.0}, tokens=1_000_000)
    history = None
    for call in range(1, 40):
        middle = (call - 0.5) * 20_000
        losses = [floor + scale * middle**-exponent for floor, scale, exponent in laws]
        history = controller.weights if history is None else 0.9 * history + 0.1 * controller.weights
        before = np.array(controller.weights)
        weights = observe(controller, {Signal.TRAIN_LOSS: losses})
        if call < FEWEST_POINTS:
            assert np.array_equal(weights, before), "nothing is fitted to one point"
    now = 39 * 20_000
    slopes = np.array([exponent * scale * now**-exponent for _, scale, exponent in laws])
    assert history is not None
    expected = np.sqrt(history) * slopes
    assert np.allclose(weights, expected / expected.sum(), atol=1e-4)
    assert np.ptp(weights) > 0.1


def test_ado_lets_nothing_vanish() -> None:
    share = allocation(np.full(4, 0.25), np.full(4, 0.25), np.array([1.0, 1e-9, 0.0, NAN]))
    assert share[3] == 0.25
    assert share[2] > 0.009
    assert share.sum() == pytest.approx(1)


# Gate loads


LOADS = np.array([[0.5, 0.5, 0.0], [0.4, 0.6, 0.0], [0.0, 0.2, 0.8]])


def test_gate_load_weighs_by_mean_distance() -> None:
    gaps = np.linalg.norm(LOADS[:, None] - LOADS[None], axis=-1)
    assert np.allclose(load_distances(LOADS[:, None]), gaps.mean(axis=1))
    weights = observe(controller_of("gate_load", 3), {Signal.GATE_LOAD: np.stack([np.full((3, 3), 1 / 3), LOADS], axis=1)})
    assert np.allclose(weights, 0.95 * tilted(np.full(3, 1 / 3), gaps.mean(axis=1), 10.0) + 0.05 / 3), "the last layer counts"


def test_gate_load_does_not_run_away_on_loads_that_stay() -> None:
    """As published, 20 updates with a gap of .05 put .9 on one domain (methods, section 10)."""
    loads = np.array([[0.55, 0.45], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])[:, None]
    ends = {}
    for accumulate in (False, True):
        controller = controller_of("gate_load", 4, {"accumulate": accumulate})
        first = observe(controller, {Signal.GATE_LOAD: loads})
        for _ in range(19):
            last = observe(controller, {Signal.GATE_LOAD: loads})
        ends[accumulate] = (first, last)
    assert np.allclose(*ends[False])
    assert ends[True][1][0] > 0.8
    assert ends[False][1][0] < 0.4


# Clusters


def test_cluster_refine_takes_rewards_below_zero() -> None:
    """Dividing by their sum, as published, would make weights negative."""
    weights = observe(controller_of("cluster_refine", 3), {Signal.REWARD: [-1.0, 0.5, NAN]})
    assert np.allclose(weights, [2 / 3 / (1 + np.exp(1.5)), 2 / 3 / (1 + np.exp(-1.5)), 1 / 3])
    again = observe(controller_of("cluster_refine", 2, prior=Mixture.of({"d00": 0.2, "d01": 0.8})), {Signal.REWARD: [1.0, 1.0]})
    assert np.allclose(again, [0.2, 0.8]), "multiplied by the weights before, which the published code forgets"
