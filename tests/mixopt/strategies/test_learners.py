"""What strategies that learn ask for: rounds that look where the best is expected, samplers that know what is under way, laws that reach beyond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from mixopt.answer.floors import Floor
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, DataError, InfeasibleError
from mixopt.factory import TrialFactory
from mixopt.mixture import FloatArray
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy, read_options
from mixopt.strategies.base import Assignment, Offer
from mixopt.strategies.standing import Standing
from mixopt.surrogates import get_surrogate
from mixopt.swarm import SCHEMA, Swarm
from mixopt.trial import Source, Trial

NAMES = ("web", "code", "math")
DOMAINS = DomainSet(tuple(Domain(name, f"h-{name}", 10**7, tokens) for name, tokens in zip(NAMES, (60.0, 25.0, 15.0), strict=True)), 100.0)
SPACE = MixtureSpace.from_domains(DOMAINS)
BEST = np.array([0.3, 0.45, 0.25])
SIZES = {"nano": 1e6, "micro": 4e6, "mini": 16e6, "small": 64e6}
EMPTY = Swarm.empty(NAMES)


def bowl(weights: FloatArray, size: str) -> FloatArray:
    return np.asarray(1.0 + ((weights - BEST) ** 2).sum(axis=-1))


def offer(size: str, cost: float = 1.0) -> Offer:
    factory = TrialFactory(DOMAINS, Source("trained", size, 10**6), {"window": 64}, "t", "1")
    return Offer(factory.source, factory.make, cost, SIZES[size])


def assignment(trials: int = 28, offers: tuple[Offer, ...] = (), **changes: Any) -> Assignment:
    settings: dict[str, Any] = {
        "space": SPACE, "domains": DOMAINS, "offers": offers or (offer("nano"),), "surrogate": get_surrogate("gaussian_process"),
        "metrics": {"x": 1.0}, "objective_kind": "noise_scaled", "trials": trials, "seeds": 3, "pull": 0.0, "seed": 0,
    }  # fmt: skip
    return Assignment(**settings | changes)


def run(trials: Sequence[Trial], law: Callable[[FloatArray, str], FloatArray] = bowl, noise_std: float = 0.003) -> Swarm:
    rows = []
    for trial in trials:
        noise = np.random.default_rng(int(trial.trial_id[:8], 16)).normal(0, noise_std)
        loss = float(law(trial.schedule.average().array(NAMES), trial.source.size)) + noise
        common = {
            "trial_id": trial.trial_id,
            "label": trial.label,
            "evaluator": "trained",
            "size": trial.source.size,
            "source_tokens": 10**6,
        }
        shares = trial.schedule.array().tolist()
        measured = {
            "metric": "x",
            "tokens": 10**6,
            "loss_nats": loss,
            "bits_per_byte": loss,
            "flops": SIZES[trial.source.size],
            "seconds": 1.0,
        }
        rows.append({**common, "seed": trial.seed, "fractions": [1.0], "requested": shares, "realized": shares, **measured})
    return Swarm(NAMES, pl.DataFrame(rows, schema=SCHEMA))


def weights_of(trials: Sequence[Trial]) -> FloatArray:
    return np.array([trial.schedule.average().array(NAMES) for trial in trials])


def finish(strategy: Any, batch: int = 6) -> list[Trial]:
    asked: list[Trial] = []
    while fresh := strategy.ask(batch, run(asked) if asked else EMPTY, [], []):
        asked += fresh
    return asked


def test_later_rounds_of_climb_lie_nearer_to_the_optimum() -> None:
    asked = finish(get_strategy("climb", assignment()))
    excess = bowl(weights_of(asked), "nano") - 1
    rounds = [np.median(part) for part in (excess[5:16], excess[16:24], excess[24:])]
    assert rounds[0] > 4 * rounds[1]
    assert rounds[1] > rounds[2]
    assert SPACE.contains(weights_of(asked[16:]), 1e-9).all()


def test_climb_waits_at_the_end_of_a_round_and_only_there() -> None:
    strategy = get_strategy("climb", assignment())
    first = strategy.ask(16, EMPTY, [], [])
    assert len(first) == 16
    assert strategy.ask(5, run(first[:15]), first[15:], []) == []
    second = strategy.ask(5, run(first), [], [])
    assert len(second) == 5
    # Within a round results change nothing, and the rest of it can be asked for before any.
    rest = strategy.ask(9, run(first), second, [])
    assert len(rest) == 3
    assert strategy.ask(9, run([*first, *second[:2]]), second[2:], []) == rest


def test_climb_replaces_what_was_abandoned_within_the_round() -> None:
    strategy = get_strategy("climb", assignment())
    first = strategy.ask(16, EMPTY, [], [])
    second = strategy.ask(8, run(first), [], [])
    instead = strategy.ask(8, run([*first, *second[1:]]), [], second[:1])
    assert len(instead) == 1
    assert not (weights_of(instead) == weights_of(second)).all(axis=1).any()


@pytest.mark.parametrize(
    ("sampler", "coordinates"),
    [(sampler, "stick_breaking") for sampler in ("tpe", "gp", "cmaes", "nsga2", "qmc", "random")]
    + [("tpe", "exponential"), ("qmc", "exponential")],
)
def test_every_sampler_of_optuna_asks_for_feasible_mixtures_and_knows_what_is_under_way(sampler: str, coordinates: str) -> None:
    strategy = get_strategy("optuna", assignment(), {"sampler": sampler, "coordinates": coordinates, "first": 0.5})
    done = strategy.ask(14, EMPTY, [], [])
    swarm = run(done)
    fresh = strategy.ask(1 if sampler == "gp" else 3, swarm, [], [])  # which takes seconds for each
    assert sampler == "gp" or fresh == strategy.ask(3, swarm, [], [])
    assert SPACE.contains(weights_of(fresh), 1e-9).all()
    apart = np.abs(weights_of(fresh)[:, None] - weights_of([*done, *fresh])[None]).sum(axis=2)
    assert ((apart < 1e-6).sum(axis=1) == 1).all(), "each is new, but for itself"
    later = strategy.ask(1, swarm, fresh, [])
    assert np.abs(weights_of(later) - weights_of(fresh)).sum(axis=1).min() > 1e-6
    assert {trial.label for trial in fresh} == {"optuna"}


@pytest.mark.parametrize(("trials", "options", "planned"), [(60, {}, 20), (30, {}, 17), (12, {}, 8), (30, {"first": 0.0}, 5)])
def test_the_share_of_the_common_design_before_optuna_s_sampler(trials: int, options: dict[str, float], planned: int) -> None:
    asked = get_strategy("optuna", assignment(trials), options).ask(trials, EMPTY, [], [])
    assert sum(trial.label != "optuna" for trial in asked) == planned


def test_optuna_s_tpe_comes_nearer_than_chance() -> None:
    excess = {}
    for sampler in ("tpe", "random"):
        asked = finish(get_strategy("optuna", assignment(40), {"sampler": sampler}), batch=2)
        excess[sampler] = float(np.median(bowl(weights_of(asked[-12:]), "nano")) - 1)
    assert excess["tpe"] < excess["random"] / 2


def test_options_name_their_mistakes() -> None:
    for name, options, match in (
        ("climb", {"rounds": [4]}, "rounds"),
        ("climb", {"rounds": [4, -1]}, "above 0"),
        ("optuna", {"sampler": "bohb"}, "sampler"),
        ("scaling", {"answer_share": 1.0}, "answer_share"),
        ("grid", {"step": 3}, "step"),
        ("random", {"steps": 3}, "takes none|no option"),
    ):
        with pytest.raises(ConfigError, match=match):
            read_options(name, options)


WORTHS = np.array([0.5, 1.0, 0.8])


def growing(weights: FloatArray, size: str) -> FloatArray:
    """The additive law with powers of a half: least where weights are in proportion to the squares of worths."""
    return np.asarray(0.5 + 0.5 / (np.sqrt(weights) @ WORTHS) + 2.0 * (SIZES[size] / 1e6) ** -0.35)


def test_scaling_reaches_a_size_that_was_never_run() -> None:
    offers = tuple(offer(size, cost) for size, cost in (("nano", 1 / 64), ("micro", 1 / 16), ("mini", 1 / 4), ("small", 1.0)))
    one = assignment(6, offers, surrogate=get_surrogate("scaling_additive", sizes=SIZES))
    strategy = get_strategy("scaling", one, {"answer_share": 0.0})
    trials = strategy.ask(500, EMPTY, [], [])
    assert {trial.source.size for trial in trials} == {"nano", "micro", "mini"}
    assert sum(next(o.cost for o in offers if o.source == trial.source) for trial in trials) <= 6
    proposal = strategy.propose(run(trials, growing))
    assert proposal.evidence["source"] == offers[-1].source.key
    assert proposal.evidence["runs_by_source"][offers[-1].source.key] == 0
    natural, best = (growing(weights, "small") for weights in (DOMAINS.natural().array(), WORTHS**2 / (WORTHS**2).sum()))
    assert growing(proposal.mixture.array(NAMES), "small") < natural - 0.7 * (natural - best)
    assert proposal.objective.low < proposal.objective.mean < proposal.objective.high < 0


def test_runs_of_another_source_alone_are_no_answer() -> None:
    """A surrogate of one source would answer for the cheap one, and the page would say that it is of the dear one."""
    offers = (offer("nano", 1 / 2), offer("small"))
    one = assignment(6, offers, surrogate=get_surrogate("multi_source_gp", sizes=SIZES))
    cheap = replace(one, offers=offers[:1]).planned(12)
    for name in ("bayes", "scaling"):
        with pytest.raises(DataError, match=r"nano.*the answer is wanted for .*small"):
            get_strategy(name, one).propose(run(cheap))


def test_a_small_budget_of_bayes_has_baselines_where_the_answer_is_wanted() -> None:
    offers = (offer("nano", 1 / 2), offer("small"))
    one = assignment(6, offers, surrogate=get_surrogate("multi_source_gp", sizes=SIZES))
    asked = finish(get_strategy("bayes", one))
    there = [trial.label for trial in asked if trial.source == one.source]  # UniMax is the uniform mixture here
    assert there[:4] == ["natural", "uniform", "natural", "uniform"]
    assert len(there) + sum(trial.source != one.source for trial in asked) / 2 <= 6


@pytest.mark.parametrize("name", ["random", "climb", "doe", "optuna"])
def test_learners_and_controls_stop_early_where_nothing_is_to_be_gained(name: str) -> None:
    """Where no mixture matters, perfect knowledge gains less than noise; it is looked at from half of the trials on."""
    strategy = get_strategy(name, assignment(40, stop_early=True))
    asked: list[Trial] = []
    flat = lambda weights, size: np.zeros(weights.shape[:-1]) + 1.0  # noqa: E731
    while fresh := strategy.ask(8, run(asked, flat) if asked else EMPTY, [], []):
        asked += fresh
    assert 20 <= len(asked) < 40


def test_controls_propose_what_they_measured() -> None:
    strategy = get_strategy("random", assignment(20))
    asked = finish(strategy)
    swarm = run(asked)
    proposal = strategy.propose(swarm)
    feasible = SPACE.contains(weights_of(asked), 1e-6)
    means = {key: [] for key in map(tuple, weights_of(asked).round(9))}
    for key, value, fits in zip(map(tuple, weights_of(asked).round(9)), swarm.values(["x"])[:, 0], feasible, strict=True):
        if fits:
            means[key].append(value)
    best = min((np.mean(values), key) for key, values in means.items() if values)[1]
    assert proposal.mixture.array(NAMES) == pytest.approx(best, abs=1e-8)
    assert proposal.relaxations == ()
    assert proposal.evidence["optimizer"]["method"] == "best measured"


def test_controls_refuse_what_is_not_feasible_or_misses_every_floor() -> None:
    one = assignment(20)
    strategy = get_strategy("random", one)
    asked = finish(strategy)
    swarm = run(asked)
    tight = replace(
        DOMAINS,
        domains=tuple(
            replace(domain, bounds=(1 / 3 + 0.001, 0.36) if domain.name == "math" else (0.1, 0.33)) for domain in DOMAINS.domains
        ),
    )
    with pytest.raises(DataError, match="feasible"):
        get_strategy("random", replace(one, space=MixtureSpace.from_domains(tight))).propose(swarm)
    impossible = (Floor("x", "natural", -10.0),)
    with pytest.raises(InfeasibleError, match="keeps every floor"):
        get_strategy("random", replace(one, floors=impossible)).propose(swarm)


def test_standing_counts_and_orders_what_was_asked_for() -> None:
    one = assignment(20)
    start = one.start()
    learned = [one.learned(DOMAINS.uniform(), number, "x") for number in (7, 5, 6)]
    standing = Standing.of(one, run([learned[0], *reversed(start)]), learned[1:2], learned[2:])
    assert (standing.alive, standing.asked, standing.left) == (7, 8, 13)
    assert standing.order() == [*(trial.trial_id for trial in start), learned[1].trial_id, learned[0].trial_id]
    assert standing.numbers() == {learned[1].trial_id: 5, learned[0].trial_id: 7}
    assert standing.room(100, learned) == 10
    assert standing.fresh(one.planned(7), 5, one.planned(6)[5:]) == one.planned(7)[6:]
    assert standing.fresh(one.planned(9), 3, one.planned(6)[5:]) == one.planned(8)[6:]
    numbered = standing.numbered(SPACE.sample(4, np.random.default_rng(0)), 3, "y")
    assert [trial.seed - one.first_learned_seed for trial in numbered] == [8, 9, 10]
    again = standing.numbered(np.tile(DOMAINS.natural().array(), (99, 1)), 2, "y")
    assert len(again) == 2, "where there is one mixture it gets more seeds"
