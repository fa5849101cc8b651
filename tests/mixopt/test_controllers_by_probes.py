"""Aioli and Skill-It where the truth is known: losses that fall linearly in the weights, by a matrix that they must find."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mixopt.controllers import get_controller
from mixopt.controllers.aioli import normalised
from mixopt.controllers.base import Adaptive, Decision, Setup
from mixopt.controllers.limits import tilted
from mixopt.controllers.probing import drops_per_domain
from mixopt.controllers.signals import Signal, Signals

DOMAINS, TARGETS = ("a", "b", "c", "d"), ("s", "t", "u")
# Drop of each target's loss per token of each domain, in nats; one domain harms a target.
MATRIX = np.array([[3.0, 1.0, 0.5, 0.0], [0.2, 2.0, 0.1, 0.4], [-0.5, 0.3, 1.5, 0.2]]) * 1e-6


def setup(**changes: Any) -> Setup:
    return Setup(**{"domains": DOMAINS, "targets": TARGETS, "tokens": 1_000_000, "step_tokens": 100, "floor": 0.0} | changes)


def run(controller: Adaptive, matrix: np.ndarray = MATRIX, until: int = 1, missing: float = 0.0) -> list[Decision]:
    """Trains on linear losses until so many rounds of probes are over; the decisions."""
    losses, made = np.array([9.0, 7.0, 5.0]), []
    rng = np.random.default_rng(0)
    while controller.memory["round"][0] < until:
        decision = controller.decision
        losses = losses - decision.tokens * matrix @ decision.mixture.array(DOMAINS)
        shown = np.where(rng.random(3) < missing, np.nan, losses)
        tokens = controller.seen + decision.tokens
        made.append(decision)
        controller.observe(Signals(DOMAINS, TARGETS, tokens, {Signal.VALIDATION_LOSS: shown}))
    return made


@pytest.mark.parametrize("options", [{}, {"rounds": 3}, {"lean": 0.5}, {"warmup": 0.1}])
def test_aioli_recovers_the_matrix_of_linear_dynamics(options: dict[str, Any]) -> None:
    controller = get_controller("aioli", setup(), options)
    made = run(controller)
    assert np.allclose(controller.memory["matrix"], normalised(MATRIX), atol=1e-9)
    expected = tilted(np.full(4, 0.25), 4 * normalised(MATRIX).sum(axis=0), 0.15)
    assert np.allclose(controller.decision.mixture.array(DOMAINS), expected, atol=1e-9)
    assert sorted(decision.probed for decision in made if decision.probed) == sorted(DOMAINS * options.get("rounds", 1))


def test_aioli_learns_from_the_probes_that_limits_allow() -> None:
    """Caps cut the probes of two domains; the matrix is solved for what was trained on."""
    controller = get_controller("aioli", setup(cap={"a": 0.4, "c": 0.5}, floor=0.1))
    run(controller)
    assert np.allclose(controller.memory["matrix"], normalised(MATRIX), atol=1e-9)


def test_aioli_recovers_it_around_targets_that_were_not_measured_at_times() -> None:
    controller = get_controller("aioli", setup(), {"rounds": 6})
    run(controller, missing=0.2)
    assert np.allclose(controller.memory["matrix"], normalised(MATRIX), atol=1e-9)


def test_probes_and_training_share_an_interval() -> None:
    controller = get_controller("aioli", setup())
    made = run(controller)
    probes = sum(decision.tokens for decision in made)
    assert probes == pytest.approx(0.3 * 100_000, rel=0.1)
    assert probes + controller.decision.tokens == 100_000


def test_without_effects_there_is_nothing_to_follow() -> None:
    controller = get_controller("aioli", setup())
    run(controller, np.zeros((3, 4)))
    assert controller.decision.mixture.array().tolist() == [0.25] * 4


def test_a_target_that_does_not_count_changes_nothing() -> None:
    weights = {"s": 1.0, "u": 3.0}
    controllers = [get_controller("aioli", setup(target_weights=weights)) for _ in range(2)]
    run(controllers[0])
    # Its row changes the normalisation of all rows, and therefore the strength, but not the order of the others.
    run(controllers[1], MATRIX * np.array([[1.0], [2.0], [1.0]]))
    moves = [np.log(controller.decision.mixture.array(DOMAINS) * 4) for controller in controllers]
    centred = [move - move.mean() for move in moves]
    assert np.corrcoef(*centred)[0, 1] == pytest.approx(1, abs=1e-9)


def test_accumulating_tilts_what_was_there() -> None:
    once, twice = (get_controller("aioli", setup(), {"accumulate": True}) for _ in range(2))
    run(once)
    run(twice, until=2)
    first, second = (np.log(controller.decision.mixture.array(DOMAINS)) for controller in (once, twice))
    assert np.allclose(second - second.mean(), 2 * (first - first.mean()), atol=1e-6)
    memoryless = get_controller("aioli", setup())
    run(memoryless, until=2)
    third = np.log(memoryless.decision.mixture.array(DOMAINS))
    assert np.allclose(third - third.mean(), first - first.mean(), atol=1e-6)


def test_drops_count_per_token_trained() -> None:
    rng = np.random.default_rng(1)
    mixtures, spans = rng.dirichlet(np.ones(4), 9), rng.uniform(0.5, 2, 9)
    drops = spans[:, None] * mixtures @ MATRIX.T
    losses = np.concatenate([np.zeros((1, 3)), -np.cumsum(drops, axis=0)])
    assert np.allclose(drops_per_domain(mixtures, losses, spans), MATRIX, atol=1e-12)


def observe_losses(controller: Adaptive, losses: list[float]) -> np.ndarray:
    tokens = controller.seen + controller.decision.tokens
    decision = controller.observe(Signals(DOMAINS, TARGETS, tokens, {Signal.VALIDATION_LOSS: np.array(losses)}))
    return decision.mixture.array(DOMAINS)


GRAPH = {"s": {"a": 1.0, "b": 0.5}, "t": {"b": 1.0}, "u": {"c": 1.0, "a": 0.25}}
GRAPH_ROWS = np.array([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.25, 0.0, 1.0, 0.0]])


def test_skillit_tilts_by_graph_times_windowed_losses() -> None:
    controller = get_controller("skillit", setup(), {"graph": GRAPH, "rate": 0.5, "window": 2})
    first = observe_losses(controller, [4.0, 2.0, 8.0])
    assert np.allclose(first, tilted(np.full(4, 0.25), GRAPH_ROWS.sum(axis=0), 0.5)), "at first every loss is 1"
    observe_losses(controller, [2.0, 2.0, 6.0])
    last = observe_losses(controller, [1.0, float("nan"), 4.0])
    relative = np.array([1.5 / 4, 1.0, 5.0 / 8])
    assert np.allclose(last, tilted(np.full(4, 0.25), relative @ GRAPH_ROWS, 0.5))


def test_skillit_is_not_moved_by_the_size_of_a_targets_loss() -> None:
    """Noise has a high loss for ever; only what is left of it in relation to the start counts."""
    small, large = (get_controller("skillit", setup(), {"graph": GRAPH}) for _ in range(2))
    for share in (1.0, 0.8, 0.7):
        one, other = observe_losses(small, [4 * share, 2 * share, 1.0]), observe_losses(large, [4 * share, 2 * share, 50.0])
    assert np.allclose(one, other)


def test_skillit_learns_its_graph_by_one_round_of_probes() -> None:
    controller = get_controller("skillit", setup())
    run(controller)
    first = np.array([9.0, 7.0, 5.0])
    served = np.maximum(MATRIX / first[:, None], 0)
    assert np.allclose(controller.memory["graph"], served / served.max(), atol=1e-9)
    before = controller.decision
    assert not before.probed
    for _ in range(5):
        observe_losses(controller, [8.0, 6.0, 4.0])
        assert not controller.decision.probed, "once"
