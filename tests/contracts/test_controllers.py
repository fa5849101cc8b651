"""What every controller must do. A controller joins by its line in the registry, and is tested here without a line more.

Signals are made up, of every kind and with domains and targets missing at random; what a method makes of true ones is in
tests/controllers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mixopt.controllers import controller_names, get_controller, options_type
from mixopt.controllers.base import Adaptive, Decision, Setup
from mixopt.controllers.signals import AXES, Signal, Signals
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, DataError, InfeasibleError
from mixopt.groups.rules import GroupRule
from mixopt.mixture import Mixture, Schedule
from mixopt.space import MixtureSpace

DOMAINS = ("web", "code", "books", "math", "law")
# Two of them are domains' own held-out sets.
TARGETS = ("science", "web", "puzzles", "code")
TOKENS, STEP = 1_000_000, 500
CONTROLS = frozenset({"static", "stratified"})
# Their signals are of targets and probes only.
WITHOUT_DOMAINS = frozenset({"aioli", "skillit", "tikmix_m"})
LAYERS, EXPERTS = 3, 4
OTHERS = {
    "aioli": {"accumulate": True},
    "gate_load": {"accumulate": True, "layers": "all"},
    "odm": {"reward": "loss"},
    "fastmix": {"products": "all"},
}

Change = Callable[[Signals], Signals]


def setup(order: Sequence[str] = DOMAINS, targets: Sequence[str] = TARGETS, **changes: Any) -> Setup:
    return Setup(**{"domains": tuple(order), "targets": tuple(targets), "tokens": TOKENS, "step_tokens": STEP} | changes)


def made_up(controller: Adaptive, call: int, tokens: int, missing: float = 0.2) -> Signals:
    """Signals of every kind, the same for the same call in whatever order names are listed."""
    rng = np.random.default_rng(call)
    names, targets, probes = sorted(controller.setup.domains), sorted(controller.setup.targets), len(controller.decision.probes)
    sizes = {"D": len(names), "T": len(targets), "P": probes, "L": LAYERS, "E": EXPERTS}
    values = {}
    for signal in Signal:
        shape = tuple(sizes[axis] for axis in AXES[signal])
        drawn = rng.normal(0, 1e-3, shape) if len(shape) == 2 else 2.5 - 0.02 * call + rng.random(shape)
        if signal == Signal.GATE_LOAD:
            drawn = drawn / drawn.sum(axis=-1, keepdims=True)
        if signal == Signal.TRAIN_TOKENS:
            continue
        lost = rng.random(shape[:1]) < missing
        drawn[lost] = np.nan
        if AXES[signal] == "TD":
            drawn[:, rng.random(sizes["D"]) < missing] = np.nan
        values[signal] = drawn
    signals = Signals(tuple(names), tuple(targets), tokens, values, call, 1e-3)
    return signals.reordered(controller.setup.domains, controller.setup.targets)


def train(
    controller: Adaptive, calls: int = 60, change: Change = lambda signals: signals, first: int = 0
) -> list[tuple[Decision, Signals]]:
    """Runs to the end of the run or for so many calls; each decision with the signals that came after it."""
    trace = []
    for call in range(first, first + calls):
        if controller.seen >= TOKENS:
            break
        decision, tokens = controller.decision, min(controller.seen + controller.decision.tokens, TOKENS)
        signals = change(made_up(controller, call, tokens))
        trace.append((decision, signals))
        controller.observe(signals)
    return trace


def decisions(trace: Sequence[tuple[Decision, Signals]]) -> list[dict[str, Any]]:
    return [decision.to_json() for decision, _ in trace]


def without_domain(name: str) -> Change:
    """Signals in which a domain was never measured."""

    def masked(signals: Signals) -> Signals:
        values = {}
        for signal, given in signals.values.items():
            array = np.array(given)
            if "D" in AXES[signal]:
                index = [slice(None)] * array.ndim
                index[AXES[signal].index("D")] = signals.domains.index(name)  # type: ignore[call-overload]
                array[tuple(index)] = np.nan
            values[signal] = array
        return Signals(signals.domains, signals.targets, signals.tokens, values, signals.step, signals.learning_rate)

    return masked


def every_option(name: str) -> list[dict[str, Any]]:
    return [{}, OTHERS[name]] if name in OTHERS else [{}]


controllers = pytest.mark.parametrize("name", controller_names())
with_options = pytest.mark.parametrize(("name", "options"), [(name, some) for name in controller_names() for some in every_option(name)])


@with_options
def test_weights_keep_simplex_floor_and_caps(name: str, options: dict[str, Any]) -> None:
    floor, cap = {"law": 0.08, "web": 0.02}, {"code": 0.3, "web": 0.4}
    controller = get_controller(name, setup(floor=floor, cap=cap), options)
    trace = train(controller)
    assert len(trace) >= 3
    for decision, _ in trace:
        weights = decision.mixture.as_dict()
        assert abs(sum(weights.values()) - 1) < 1e-9
        assert all(weight >= floor.get(domain, 0.0) - 1e-9 for domain, weight in weights.items())
        assert all(weight <= cap.get(domain, 1.0) + 1e-9 for domain, weight in weights.items())
    if name not in CONTROLS:
        assert len({json.dumps(made["mixture"]) for made in decisions(trace)}) > 1, "a controller moves weights"


@controllers
def test_the_default_floor_keeps_every_domain(name: str) -> None:
    trace = train(get_controller(name, setup(prior=Mixture.of({"web": 1.0, "code": 0.0, "books": 0.0, "math": 0.0, "law": 0.0}))))
    assert min(min(decision.mixture.weights) for decision, _ in trace) >= 0.05 / 5 - 1e-9


@with_options
def test_a_run_uses_no_more_of_a_domain_than_there_is(name: str, options: dict[str, Any]) -> None:
    available = {"code": 0.11 * TOKENS, "math": 0.05 * TOKENS, "law": 0.3 * TOKENS}
    controller = get_controller(name, setup(available=available, floor=0.01), options)
    used, at = dict.fromkeys(DOMAINS, 0.0), 0
    for decision, signals in train(controller, calls=3000):
        for domain, weight in decision.sampling.as_dict().items():
            used[domain] += weight * (signals.tokens - at)
        at = signals.tokens
    assert at == TOKENS
    assert all(used[domain] <= tokens * (1 + 1e-9) for domain, tokens in available.items())


@with_options
def test_weights_stay_in_a_space(name: str, options: dict[str, Any]) -> None:
    groups = {"web": "", "code": "stem", "math": "stem", "books": "prose", "law": "prose"}
    tokens = {"web": 60.0, "code": 20.0, "books": 10.0, "math": 6.0, "law": 4.0}
    domains = DomainSet(
        tuple(Domain(domain, domain, 10_000, tokens[domain], groups[domain], 8.0) for domain in DOMAINS),
        100.0,
        (GroupRule("prose", (("books", 0.7), ("law", 0.3))), GroupRule("stem", bounds=(0.1, 0.4))),
    )
    space = MixtureSpace.from_domains(domains)
    for decision, _ in train(get_controller(name, setup(space=space, prior=domains.natural(), floor=0.02), options)):
        weights = decision.mixture.array(space.domains)
        assert space.contains(weights[None], 1e-9)[0]
        assert weights.min() >= 0.02 - 1e-9


@with_options
def test_no_step_is_larger_than_allowed(name: str, options: dict[str, Any]) -> None:
    trace = train(get_controller(name, setup(largest_step=0.03), options))
    moves = [decision.mixture.array() for decision, _ in trace if not decision.probed]
    steps = [0.5 * np.abs(after - before).sum() for before, after in itertools.pairwise(moves)]
    assert max(steps, default=0.0) <= 0.03 + 1e-9


@with_options
@pytest.mark.parametrize("cut", [1, 4, 17])
def test_a_saved_state_continues_as_if_nothing_had_happened(name: str, options: dict[str, Any], cut: int) -> None:
    given = setup(available={"code": 0.2 * TOKENS})
    whole = get_controller(name, given, options)
    trace = train(whole)
    if len(trace) <= cut:
        cut = len(trace) - 1
    before = get_controller(name, given, options)
    train(before, cut)
    text = json.dumps(before.state_dict(), allow_nan=False)
    # Saved in one process, restored in another, in which the domains may be listed otherwise.
    after = get_controller(name, setup(DOMAINS[::-1], TARGETS[::-1], available={"code": 0.2 * TOKENS}), options)
    after.load_state_dict(json.loads(text))
    assert json.dumps(after.state_dict()) == text
    rest = train(after, len(trace) - cut, first=cut)
    assert decisions(rest) == decisions(trace)[cut:]
    assert after.final().average().as_dict() == pytest.approx(whole.final().average().as_dict(), abs=1e-12)
    assert json.dumps(after.state_dict()) == json.dumps(whole.state_dict())


@with_options
def test_a_recorded_trace_gives_the_same_weights(name: str, options: dict[str, Any]) -> None:
    trace = train(get_controller(name, setup(), options))
    recorded = [json.loads(json.dumps(signals.to_json(), allow_nan=False)) for _, signals in trace]
    again = get_controller(name, setup(), options)
    made = []
    for stored in recorded:
        made.append(again.decision.to_json())
        again.observe(Signals.from_json(stored))
    assert made == decisions(trace)


@with_options
def test_listing_names_in_another_order_permutes_the_weights(name: str, options: dict[str, Any]) -> None:
    first = train(get_controller(name, setup(), options))
    other = train(get_controller(name, setup(("law", "books", "web", "math", "code"), ("code", "puzzles", "web", "science")), options))
    assert decisions(other) == decisions(first)
    assert other[0][0].mixture.domains[0] == "law"


@with_options
def test_reads_only_the_signals_it_names(name: str, options: dict[str, Any]) -> None:
    trace = train(get_controller(name, setup(), options))
    bare = get_controller(name, setup(), options)
    assert decisions(train(bare, change=lambda signals: signals.only(bare.needs))) == decisions(trace)
    for needed in bare.needs:
        signals = made_up(bare, 0, TOKENS)
        with pytest.raises(DataError, match=f"needs the signal '{needed}'"):
            bare.observe(signals.only(set(Signal) - {needed}))


@with_options
def test_a_domain_that_is_never_measured_keeps_its_weight(name: str, options: dict[str, Any]) -> None:
    """A zero in its place would be the largest or the least of all scores."""
    if name in WITHOUT_DOMAINS:
        return
    # A floor moves everybody to make room for those that sink to it.
    controller = get_controller(name, setup(floor=0.0), options)
    trace = train(controller, change=without_domain("books"))
    for decision, _ in trace:
        assert decision.mixture.as_dict()["books"] == pytest.approx(0.2, abs=1e-8)
    if name not in CONTROLS:
        assert np.ptp(controller.weights) > 1e-5, "the others move"


@with_options
def test_signals_in_which_nothing_was_measured_move_nothing(name: str, options: dict[str, Any]) -> None:
    prior = Mixture.of({"web": 0.3, "code": 0.25, "books": 0.2, "math": 0.15, "law": 0.1})

    def nothing(signals: Signals) -> Signals:
        values = {signal: np.full(array.shape, np.nan) for signal, array in signals.values.items()}
        return Signals(signals.domains, signals.targets, signals.tokens, values)

    trace = train(get_controller(name, setup(prior=prior), options), change=nothing)
    for decision, _ in trace:
        if not decision.probed:
            expected = dict.fromkeys(DOMAINS, 0.2) if name == "stratified" else prior.as_dict()
            assert decision.mixture.as_dict() == pytest.approx(expected, abs=1e-9)


@controllers
def test_the_result_is_what_was_trained_on(name: str) -> None:
    controller = get_controller(name, setup())
    trace = train(controller, calls=2000)
    tokens = np.diff([0, *(signals.tokens for _, signals in trace)])
    mean = tokens @ np.array([decision.mixture.array(DOMAINS) for decision, _ in trace]) / tokens.sum()
    result = controller.final()
    assert isinstance(result, Schedule)
    assert len(result.mixtures) <= 64
    assert np.allclose(result.average().array(DOMAINS), mean, atol=1e-9)


@controllers
def test_refuses_what_does_not_fit_it(name: str) -> None:
    controller = get_controller(name, setup())
    train(controller, 3)
    state = controller.state_dict()
    with pytest.raises(DataError, match="domains"):
        get_controller(name, setup((*DOMAINS[:-1], "laws"))).load_state_dict(state)
    with pytest.raises(DataError, match="controller"):
        get_controller("static" if name != "static" else "stratified", setup()).load_state_dict(state)
    with pytest.raises(ConfigError, match="Did you mean 'every'"):
        get_controller(name, setup(), {"evry": 0.1})
    with pytest.raises(ConfigError, match="every"):
        get_controller(name, setup(), {"every": 7})
    with pytest.raises(DataError, match="came behind"):
        controller.observe(made_up(controller, 9, controller.seen - 1 if controller.seen else -1))
    with pytest.raises(DataError, match="domains"):
        controller.observe(made_up(get_controller(name, setup((*DOMAINS[:-1], "laws"))), 9, TOKENS))
    with pytest.raises(InfeasibleError, match="available tokens allow"):
        get_controller(name, setup(available=dict.fromkeys(DOMAINS, 0.1 * TOKENS)))


@controllers
def test_every_option_says_what_it_is(name: str) -> None:
    assert all(field.description for field in options_type(name).model_fields.values())


def test_an_unknown_controller_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'aioli'"):
        get_controller("aoli", setup())
