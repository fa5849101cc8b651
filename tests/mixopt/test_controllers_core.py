"""What all controllers stand on: the tilt, the limits, the course and the signals' JSON, as properties."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mixopt.constraints.rules import Constraints, Near
from mixopt.controllers import get_controller
from mixopt.controllers.base import Decision, Setup
from mixopt.controllers.course import MOST_PHASES, Course
from mixopt.controllers.limits import Limits, kept, smoothed, tilted, weighted_mean
from mixopt.controllers.signals import Signal, Signals
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, DataError, InfeasibleError
from mixopt.mixture import Mixture
from mixopt.space import MixtureSpace

SEEDS = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(SEEDS, st.integers(2, 9), st.floats(-5, 5), st.sampled_from([1.0, 30.0, 1e6]))
def test_tilting_is_exponential_and_leaves_out_what_has_no_score(seed: int, count: int, rate: float, offset: float) -> None:
    rng = np.random.default_rng(seed)
    base, score = rng.dirichlet(np.ones(count)), rng.normal(size=count)
    plain = base * np.exp(rate * score)
    assert np.allclose(tilted(base, score, rate), plain / plain.sum(), atol=1e-12)
    assert np.allclose(tilted(base, score + offset, rate), tilted(base, score, rate), atol=1e-6 if offset > 100 else 1e-12)
    absent = rng.random(count) < 0.4
    partly = tilted(base, np.where(absent, np.nan, score), rate)
    assert np.array_equal(partly[absent], base[absent])
    assert abs(partly.sum() - 1) < 1e-12
    if not absent.all():
        ratio = partly[~absent] / plain[~absent]
        assert np.allclose(ratio, ratio[0], rtol=1e-9), "the others share what they had"


def test_a_score_beyond_what_floats_can_raise_is_a_corner() -> None:
    assert tilted(np.array([0.5, 0.5]), np.array([0.0, 1e5])).tolist() == [0.0, 1.0]
    assert tilted(np.array([0.5, 0.5]), np.array([np.nan, np.nan])).tolist() == [0.5, 0.5]
    assert tilted(np.array([0.0, 1.0]), np.array([9.0, 0.0])).tolist() == [0.0, 1.0]


def test_masks_are_kept_through_averages() -> None:
    last, fresh = np.array([1.0, np.nan, 3.0, np.nan]), np.array([2.0, 5.0, np.nan, np.nan])
    assert np.array_equal(kept(last, fresh), [2.0, 5.0, 3.0, np.nan], equal_nan=True)
    assert np.array_equal(smoothed(last, fresh, 0.75), [1.25, 5.0, 3.0, np.nan], equal_nan=True)
    rows = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    assert np.array_equal(weighted_mean(rows, np.array([0.25, 0.75])), [2.5, 4.0, np.nan], equal_nan=True)


@settings(deadline=None, max_examples=50)
@given(SEEDS, st.integers(2, 6))
def test_what_is_left_of_a_domain_always_leaves_a_mixture_and_is_never_used_up(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    total = 1000
    available = rng.dirichlet(np.ones(count)) * total * (1 + rng.random())
    floor = np.minimum(0.05 / count, available / total)
    limits = Limits(floor, np.ones(count), available, total, float(rng.uniform(0.05, 1)))
    used, seen, before = np.zeros(count), 0, limits.nearest(np.full(count, 1 / count), np.zeros(count), 0)
    while seen < total:
        lower, upper = limits.box(used, seen)
        assert upper.sum() >= 1 - 1e-9
        before = limits.step(before, rng.dirichlet(np.full(count, 0.3)), used, seen)
        assert np.all(before <= upper + 1e-9)
        assert np.all(before >= lower - 1e-9)
        tokens = int(min(rng.integers(1, 200), total - seen))
        later = used + tokens * before
        if seen + tokens < total:
            assert np.all(limits.box(later, seen + tokens)[1] >= np.minimum(upper, 1) - 1e-6), "a limit that was kept never shrinks"
        used, seen = later, seen + tokens
    assert np.all(used <= available + 1e-6)


def test_more_drawn_than_asked_for_leaves_what_there_is() -> None:
    limits = Limits(np.zeros(3), np.ones(3), np.array([40.0, 40.0, 30.0]), 100, 1.0)
    weights = limits.nearest(np.array([0.8, 0.1, 0.1]), np.array([45.0, 20.0, 15.0]), 80)
    assert weights[0] == 0.0
    assert weights.sum() == pytest.approx(1)


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.integers(1, 700))
def test_a_course_is_short_and_its_average_exact(seed: int, decisions: int) -> None:
    rng = np.random.default_rng(seed)
    course, drawn, total = Course.empty(3), np.zeros(3), 0.0
    for _ in range(decisions):
        weights, tokens = rng.dirichlet(np.ones(3)), float(rng.integers(1, 50))
        course, drawn, total = course.then(weights, tokens), drawn + tokens * weights, total + tokens
    assert len(course.tokens) <= MOST_PHASES
    assert course.tokens.sum() == pytest.approx(total)
    assert np.allclose(course.average, drawn / total, atol=1e-12)
    again = Course.from_json(json.loads(json.dumps(course.to_json())), 3)
    assert np.array_equal(again.drawn, course.drawn)
    assert decisions < 200 or len(course.tokens) > MOST_PHASES / 4, "joined no more than need be"


def test_a_constant_mixture_is_one_phase() -> None:
    course = Course.empty(2)
    for _ in range(100):
        course = course.then(np.array([0.25, 0.75]), 10)
    assert course.tokens.tolist() == [1000.0]


@settings(deadline=None, max_examples=30)
@given(SEEDS)
def test_signals_survive_json_and_reordering(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = {
        Signal.TRAIN_LOSS: np.where(rng.random(3) < 0.5, np.nan, rng.normal(size=3)),
        Signal.INFLUENCE: np.where(rng.random((2, 3)) < 0.3, np.nan, rng.normal(size=(2, 3))),
        Signal.GATE_LOAD: rng.random((3, 2, 4)),
        Signal.MIXTURE_INFLUENCE: np.zeros((2, 0)),
    }
    signals = Signals(("a", "b", "c"), ("t", "u"), 100, values, 3, 0.5)
    again = Signals.from_json(json.loads(json.dumps(signals.to_json(), allow_nan=False)))
    moved = again.reordered(("c", "a", "b"), ("u", "t"))
    assert (again.domains, again.targets, again.tokens, again.step, again.learning_rate) == (signals.domains, signals.targets, 100, 3, 0.5)
    for signal, given_values in values.items():
        assert np.array_equal(again[signal], given_values, equal_nan=True)
    assert np.array_equal(moved[Signal.TRAIN_LOSS], values[Signal.TRAIN_LOSS][[2, 0, 1]], equal_nan=True)
    assert np.array_equal(moved[Signal.INFLUENCE], values[Signal.INFLUENCE][[1, 0]][:, [2, 0, 1]], equal_nan=True)
    assert np.array_equal(moved[Signal.GATE_LOAD], values[Signal.GATE_LOAD][[2, 0, 1]])


def test_signals_of_wrong_shape_or_infinite_are_refused() -> None:
    with pytest.raises(DataError, match=r"'influence' has shape \(3, 2\)"):
        Signals(("a", "b", "c"), ("t", "u"), 0, {Signal.INFLUENCE: np.zeros((3, 2))})
    with pytest.raises(DataError, match="infinite"):
        Signals(("a",), (), 0, {Signal.TRAIN_LOSS: np.array([np.inf])})


def test_loss_factors_correct_for_how_domains_are_drawn() -> None:
    """The expected loss under the sampling, times the factors, is the loss under the weights."""
    decision = Decision(Mixture.of({"a": 0.7, "b": 0.3, "c": 0.0}), 1, "loss_weight")
    sampling = Mixture.of({"c": 0.2, "b": 0.5, "a": 0.3})
    factors, losses = decision.loss_factors(sampling), {"a": 2.0, "b": 3.0, "c": 5.0}
    drawn = sampling.as_dict()
    assert sum(drawn[name] * factors[name] * losses[name] for name in losses) == pytest.approx(0.7 * 2 + 0.3 * 3)
    assert sum(drawn[name] * factors[name] for name in losses) == pytest.approx(1)
    with pytest.raises(DataError, match="'b' has weight and is never drawn"):
        decision.loss_factors(Mixture.of({"a": 1.0, "b": 0.0, "c": 0.0}))


def test_setups_that_make_no_sense_are_refused() -> None:
    given_names = ("a", "b")
    for changes, message in (
        ({"floor": {"z": 0.1}}, "names the domain 'z'"),
        ({"cap": 1.5}, "`cap` is 1.5"),
        ({"available": {"a": -3}}, "`available` is -3"),
        ({"target_weights": {"u": 1.0}}, "names the target 'u'"),
        ({"target_weights": {"t": 0.0}}, "target_weights"),
        ({"largest_step": 0}, "largest_step"),
        ({"tokens": 0}, "tokens"),
        ({"domains": ("a", "a")}, "repeat"),
        ({"domains": ("a",)}, "at least two"),
    ):
        with pytest.raises(ConfigError, match=message):
            Setup(**{"domains": given_names, "targets": ("t",), "tokens": 10} | changes)  # type: ignore[arg-type]
    with pytest.raises(InfeasibleError, match="Floors"):
        get_controller("static", Setup(given_names, (), 10, floor=0.6))
    with pytest.raises(ConfigError, match="no targets"):
        get_controller("aioli", Setup(given_names, (), 10))
    with pytest.raises(ConfigError, match="every probe of 2 domains is the same"):
        get_controller("aioli", Setup(given_names, ("t",), 1000), {"lean": 0.5})
    with pytest.raises(ConfigError, match="One round of probes takes 20 tokens"):
        get_controller("aioli", Setup(given_names, ("t",), 15, step_tokens=10))


def domain_set(constraints: Constraints) -> DomainSet:
    return DomainSet(tuple(Domain(name, name, 1000, 50.0) for name in ("a", "b", "c")), 100.0, (), constraints)


def test_spaces_that_a_controller_cannot_keep_are_refused() -> None:
    def made(floor: float, constraints: Constraints, names: tuple[str, ...] = ("c", "a", "b")) -> None:
        space = MixtureSpace.from_domains(domain_set(constraints))
        get_controller("static", Setup(names, (), 100, space=space, floor=floor))

    near = Constraints(None, Near("natural", 0.1))
    made(0.1, near)
    with pytest.raises(ConfigError, match="largest number"):
        made(0.1, Constraints(2, None))
    with pytest.raises(InfeasibleError, match=r"gives every domain 0\.4"):
        made(0.4, near)
    with pytest.raises(ConfigError, match="The space is over"):
        made(0.1, near, ("a", "b"))
    with pytest.raises(ConfigError, match="`cap` or `available`"):
        Setup(("a", "b", "c"), (), 100, cap=0.5, space=MixtureSpace.from_domains(domain_set(near)))
