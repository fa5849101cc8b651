"""Effects of domains: the sum stays 1, signs and sizes are those of the surface, doubt is where nothing was measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.effects import DomainEffects, domain_effects, raised
from mixopt.groups.rules import Units
from mixopt.objective import Objective
from mixopt.prediction import Prediction
from mixopt.swarm import Points
from mixopt.trial import Source

DOMAINS = ("web", "code", "math")
NATURAL = np.array([0.6, 0.3, 0.1])
SOURCE = Source("trained", "nano", 1_000_000)
# Loss of metric m is SLOPES[m] @ weights: what a step does can be worked out by hand.
SLOPES = np.array([[0.0, -1.0, 0.5], [0.2, 0.0, 0.0]])


class Plane:
    """A surrogate that knows a linear law, with joint draws around it that share one error per draw at every point but `doubt`."""

    def __init__(self, metrics: tuple[str, ...], slopes: np.ndarray, doubt: np.ndarray) -> None:
        self.metrics, self.slopes, self.doubt = metrics, slopes, doubt
        self.noise_std = np.full(len(metrics), 0.01)

    def mean(self, points: Points) -> np.ndarray:
        return points.averages() @ self.slopes.T

    def posterior(self, points: Points) -> Plane:
        self.points = points
        return self

    def sample(self, count: int, seed: int) -> np.ndarray:
        random = np.random.default_rng(seed)
        slopes = self.slopes + self.doubt * random.normal(size=(count, *self.slopes.shape))
        return np.einsum("nd,cmd->cnm", self.points.averages(), slopes)


def prediction(doubt: float) -> Prediction:
    objective = Objective("noise_scaled", ("target/a",), (1.0,), (0.01,), (0.0,), 4, {})
    known = Plane(("target/a",), SLOPES[:1], np.array([[0.0, 0.0, doubt]]))
    other = Plane(("valid/web",), SLOPES[1:], np.zeros((1, 3)))
    return Prediction(DOMAINS, SOURCE, NATURAL, objective, known, other, None, "", np.ones((1, 1)), seed=3)  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1), min_size=2, max_size=12), st.floats(0.0001, 0.05), st.data())
def test_a_step_keeps_the_sum_and_the_others_proportions(parts: list[float], step: float, data: st.DataObject) -> None:
    weights = np.array(parts) / sum(parts)
    index = data.draw(st.integers(0, len(parts) - 1))
    if weights[index] + step > 1:
        return
    changed = raised(weights, index, step)
    assert changed.sum() == pytest.approx(1)
    assert changed[index] == pytest.approx(weights[index] + step)
    others = [position for position in range(len(parts)) if position != index]
    assert changed[others] / changed[others].sum() == pytest.approx(weights[others] / weights[others].sum())
    assert weights.sum() == pytest.approx(1)  # the mixture itself is not touched


def test_effects_are_the_slopes_of_the_surface() -> None:
    effects = domain_effects(prediction(doubt=0.0), "natural", NATURAL, step=0.02)
    assert effects.metrics == ("target/a", "valid/web", "objective")
    for row, name in enumerate(effects.domains):
        change = raised(NATURAL, DOMAINS.index(name), 0.02) - NATURAL
        expected = SLOPES @ change
        assert effects.mean[row][:2] == pytest.approx(expected)
        assert effects.mean[row][2] == pytest.approx(expected[0] / 0.01)  # in standard deviations of a seed
        assert effects.low[row] == pytest.approx(effects.mean[row])
    assert effects.mean[1][0] < 0 < effects.mean[2][0]  # code helps, math hurts


def test_what_the_surrogate_does_not_know_is_wide() -> None:
    effects = domain_effects(prediction(doubt=5.0), "natural", NATURAL)
    math, web = effects.domains.index("math"), effects.domains.index("web")
    width = [high[0] - low[0] for low, high in zip(effects.low, effects.high, strict=True)]
    assert width[math] > 3 * width[web]
    assert effects.low[math][0] < 0 < effects.high[math][0]


def test_a_domain_without_room_for_the_step_has_no_row() -> None:
    effects = domain_effects(prediction(doubt=0.0), "corner", np.array([0.995, 0.005, 0.0]))
    assert effects.domains == ("code", "math")


def test_a_group_with_a_given_split_is_raised_as_one() -> None:
    units = Units(("web", "rare/*"), DOMAINS, np.array([0, 1, 1]), np.array([1.0, 0.75, 0.25]))
    effects = domain_effects(prediction(doubt=0.0), "natural", NATURAL, step=0.02, units=units)
    assert effects.domains == ("web", "rare")
    change = raised(NATURAL, 0, 0.02) - NATURAL  # what web gains the group loses, in its own proportions
    assert effects.base == "natural"
    assert effects.mean[0][0] == pytest.approx(SLOPES[0] @ change)
    assert effects.mean[1][0] == pytest.approx(SLOPES[0] @ np.array([-0.02, 0.015, 0.005]))


def test_effects_survive_the_record() -> None:
    effects = domain_effects(prediction(doubt=1.0), "natural", NATURAL)
    assert DomainEffects.from_json(effects.to_json()) == effects
