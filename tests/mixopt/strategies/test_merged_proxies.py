"""Strategies that run averages of components beside trained trials, on a law: budgets, rounds, reach, evidence, and what depends on what."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mixopt.answer.floors import Floor
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError, InfeasibleError
from mixopt.factory import TrialFactory
from mixopt.mixture import FloatArray, Schedule
from mixopt.space import MixtureSpace
from mixopt.strategies import get_strategy
from mixopt.strategies.base import START, Assignment, Offer, Strategy
from mixopt.strategies.proxies import macro_rank
from mixopt.strategies.standing import Standing
from mixopt.surrogates import get_surrogate
from mixopt.swarm import Swarm
from mixopt.trial import Source, Trial

TRAINED, MERGED = Source("trained", "nano", 1_000_000), Source("merged", "nano", 500_000)
TOKENS = {"web": 60.0, "code": 20.0, "books": 10.0, "math": 6.0, "law": 4.0}
BLENDS_MD = np.array([[0.2, 1.0, 0.1, 0.7, 0.05], [0.5, 0.1, 1.0, 0.4, 0.05]])
METRICS = ("target/a", "target/b")
NOISE_STD = 0.01


def domain_set() -> DomainSet:
    return DomainSet(tuple(Domain(name, f"hash-{name}", 10_000_000, count) for name, count in TOKENS.items()), 100.0)


def losses_of(trial: Trial) -> FloatArray:
    """Averages have no noise, another level and a bend."""
    mixed_M = BLENDS_MD @ trial.schedule.average().array(tuple(TOKENS))
    if trial.source == MERGED:
        return np.asarray(2.0 + 1.5 * (mixed_M + 0.05) ** -0.3)
    return np.asarray(1.0 + (mixed_M + 0.03) ** -0.35 + np.random.default_rng(int(trial.trial_id[:8], 16)).normal(0, NOISE_STD, 2))


def run(trials: Sequence[Trial]) -> Swarm:
    costs = [0.1 if trial.source == MERGED else 1.0 for trial in trials]
    return Swarm.of_trials(tuple(TOKENS), trials, METRICS, np.array([losses_of(trial) for trial in trials]).reshape(-1, 2), costs)


def make_merged(schedule: Schedule, seed: int, label: str) -> Trial:
    """As averages are: the seed is no part of the identity."""
    factory = TrialFactory(domain_set(), MERGED, {"window": 512}, "tokenizer", "1")
    return replace(factory.make(schedule, 0, label), seed=seed)


def assignment(trials: int = 24, before: float = 8.0, **changes: Any) -> Assignment:
    domains = domain_set()
    make = TrialFactory(domains, TRAINED, {"window": 512}, "tokenizer", "1").make
    arguments: dict[str, Any] = {
        "space": MixtureSpace.from_domains(domains),
        "domains": domains,
        "offers": (Offer(MERGED, make_merged, 0.1), Offer(TRAINED, make, 1.0)),
        "surrogate": get_surrogate("multi_source_gp"),
        "metrics": dict.fromkeys(METRICS, 1.0),
        "objective_kind": "noise_scaled",
        "trials": trials,
        "seeds": 3,
        "pull": 0.0,
        "seed": 0,
        "before": before,
    }
    return Assignment(**arguments | changes)


def finish(strategy: Strategy, batch: int = 9, begun: Sequence[Trial] = ()) -> tuple[Swarm, list[Trial]]:
    done = list(begun)
    while fresh := strategy.ask(batch, run(done), [], []):
        assert len(fresh) <= batch
        done += fresh
    return run(done), done


def at(trials: Sequence[Trial], source: Source) -> list[Trial]:
    return [trial for trial in trials if trial.source == source]


strategies = pytest.mark.parametrize("name", ["demix", "mergemix"])


@strategies
def test_trained_trials_measure_noise_and_the_rest_are_averages_within_the_space(name: str) -> None:
    one = assignment()
    _, asked = finish(get_strategy(name, one))
    trained, merged = at(asked, TRAINED), at(asked, MERGED)
    assert [trial.trial_id for trial in trained] == [trial.trial_id for trial in one.planned(START)]
    assert asked[: len(trained)] == trained
    assert len({trial.trial_id for trial in merged}) == len(merged) == {"demix": 110, "mergemix": 41}[name], "(24 - 8 - 5) / .1, at most"
    weights = np.array([trial.schedule.average().array(one.space.domains) for trial in merged])
    outside = [trial for trial, inside in zip(merged, one.space.contains(weights), strict=True) if not inside]
    assert all(trial.schedule.average() == one.domains.natural() for trial in outside)


@strategies
def test_the_course_does_not_hang_on_the_order_of_results_nor_on_batches(name: str) -> None:
    one = assignment(trials=16, before=4.0)
    _, expected = finish(get_strategy(name, one))
    rng = np.random.default_rng(2)
    pending: list[Trial] = []
    done: list[Trial] = []
    while fresh := get_strategy(name, one).ask(4, run(done), pending, []):
        pending += fresh
        while len(pending) > 3 or (pending and not get_strategy(name, one).ask(1, run(done), pending, [])):
            done.append(pending.pop(int(rng.integers(len(pending)))))
    assert {trial.trial_id for trial in [*done, *pending]} == {trial.trial_id for trial in expected}


@strategies
def test_trials_of_a_gate_are_counted_and_never_asked_again(name: str) -> None:
    one = assignment()
    mixtures = [one.planned(START)[2].schedule, one.planned(START)[0].schedule]
    gate = [*one.planned(12), *(make_merged(schedule, 0, "gate") for schedule in mixtures)]
    _, done = finish(get_strategy(name, one), begun=gate)
    assert len({trial.trial_id for trial in done}) == len(done)
    assert len(at(done, TRAINED)) == 12
    assert len(at(done, MERGED)) == {"demix": 40, "mergemix": 40}[name], "(24 - 8 - 12) / .1"


@strategies
def test_where_nothing_is_left_nothing_is_asked(name: str) -> None:
    assert get_strategy(name, assignment(trials=8, before=8.0)).ask(5, run([]), [], []) == []
    few = get_strategy(name, assignment(trials=8, before=5.0)).ask(9, run([]), [], [])
    assert [trial.source for trial in few] == [TRAINED] * 3


@strategies
def test_averages_of_a_smaller_reach_are_asked_for_within_it(name: str) -> None:
    domains = domain_set()
    half = 0.5 * domains.natural().array()
    space = MixtureSpace.from_domains(domains)
    reach = replace(space, lower=half, unit_lower=half)
    offers = assignment().offers
    one = assignment(trials=16, before=4.0, offers=(replace(offers[0], reach=reach), offers[1]))
    swarm, asked = finish(get_strategy(name, one))
    weights = np.array([trial.schedule.average().array(space.domains) for trial in at(asked, MERGED)])
    assert reach.contains(weights, 1e-9).all()
    found = get_strategy(name, one).propose(swarm).mixture.array(space.domains)
    assert reach.contains(found[None], 1e-6).all()


@strategies
def test_a_proposal_tells_what_its_predictions_are_of(name: str) -> None:
    one = assignment()
    swarm, _ = finish(get_strategy(name, one))
    proposal = get_strategy(name, one).propose(swarm)
    evidence = json.loads(json.dumps(proposal.to_json(), allow_nan=False))["evidence"]
    assert evidence["source"] == evidence["measured_source"] == MERGED.key
    assert evidence["noise_source"] == TRAINED.key
    assert evidence["proxies"]["source"] == MERGED.key
    noise = one.objective(swarm)
    assert evidence["noise_std"] == pytest.approx(dict(zip(noise.metrics, noise.noise_std, strict=True)))
    natural = [row["measured"] for row in evidence["objective_over_trials"] if row["label"] != ""]
    assert min(np.abs(natural)) < 1e-9, "the natural mixture's average is what differences are to"
    # What the proposal is worth, in the law's own losses: most of what the caps allow over natural.
    weights = np.stack([proposal.mixture.array(tuple(TOKENS)), one.domains.natural().array(), [0.06, 0.44, 0.3, 0.2, 0.0]])
    true = (1.0 + (weights @ BLENDS_MD.T + 0.03) ** -0.35).mean(axis=1)
    assert true[0] < true[1] - 0.5 * (true[1] - true[2])


@strategies
def test_floors_are_kept_as_predicted(name: str) -> None:
    swarm, _ = finish(get_strategy(name, assignment()))
    free = get_strategy(name, assignment()).propose(swarm).effects["target/b"].mean
    least = free - 0.01
    held = get_strategy(name, assignment(floors=(Floor("target/b", "natural", least),))).propose(swarm)
    assert held.effects["target/b"].mean <= least + 1e-6 < free
    with pytest.raises(InfeasibleError):
        get_strategy(name, assignment(floors=(Floor("all", "natural", -1.0),))).propose(swarm)


@strategies
def test_stopping_early_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="stop_early"):
        get_strategy(name, assignment(stop_early=True))


def test_ranks_weigh_metrics_whatever_their_scale() -> None:
    losses = np.array([[1.0, 30.0], [2.0, 10.0], [3.0, 20.0]])
    assert macro_rank(losses, (1.0, 1.0), worst=False).tolist() == pytest.approx([2 / 3, 0.5, 5 / 6])
    assert macro_rank(losses * [1e6, 1], (3.0, 1.0), worst=False).tolist() == pytest.approx([0.5, 7 / 12, 11 / 12])
    assert macro_rank(losses, (1.0, 1.0), worst=True).tolist() == pytest.approx([1.0, 2 / 3, 1.0])


def test_bayes_asks_averages_in_blocks_and_spends_the_rest_on_trained_trials() -> None:
    """Budget 40, components 4: a tenth of 36 spread out, a twentieth near the optimum in blocks of 8, a twentieth later; the others are trained."""
    one = assignment(trials=40, before=4.0)
    swarm, asked = finish(get_strategy("bayes", one), batch=8)
    merged, trained = at(asked, MERGED), at(asked, TRAINED)
    assert [trial.source for trial in asked[:8]] == [TRAINED] * 8
    assert [trial.source for trial in asked[8:44]] == [MERGED] * 36
    assert len(merged) == 36 + 18 + 18
    assert 4 + 0.1 * len(merged) + len(trained) == pytest.approx(40, abs=1)
    assert one.space.contains(np.array([trial.schedule.average().array(one.space.domains) for trial in merged[1:]]), 1e-6).all()
    found = get_strategy("bayes", one).propose(swarm)
    assert found.evidence["source"] == TRAINED.key
    weights = np.stack([found.mixture.array(tuple(TOKENS)), one.domains.natural().array()])
    true = (1.0 + (weights @ BLENDS_MD.T + 0.03) ** -0.35).mean(axis=1)
    assert true[0] < true[1] - 0.08


def test_bayes_counts_the_trials_of_a_gate_as_its_first_design() -> None:
    one = assignment()
    gate = [
        *one.planned(START),
        *(one.learned(trial.schedule.average(), number, "gate") for number, trial in enumerate(one.planned(12)[5:])),
    ]
    gate += [make_merged(trial.schedule, 0, "gate") for trial in gate[:1]]
    fresh = get_strategy("bayes", one).ask(64, run(gate), [], [])
    assert [trial.source for trial in fresh] == [MERGED] * 15, "a tenth of 16 at .1 each, less the gate's"
    known = [*gate, *fresh]
    near = get_strategy("bayes", one).ask(64, run(known), [], [])
    assert [trial.source for trial in near] == [MERGED] * 8
    assert get_strategy("bayes", one).ask(64, run(known), near, []) == [], "they take moments, and what follows is to know of them"
    # Where the gate trusted none, its trials count as well, and so do the components.
    alone = replace(one, offers=one.offers[1:], surrogate=get_surrogate("gaussian_process"))
    trained = at(gate, TRAINED)
    planned = [trial for trial in get_strategy("bayes", alone, {"first": 14}).ask(64, run(trained), [], []) if trial.label != "bayes"]
    assert len(planned) == 2
    _, done = finish(get_strategy("bayes", alone), begun=trained)
    assert len(done) == 24 - 8


def test_averages_that_mislead_do_not_hurt_bayes(monkeypatch: pytest.MonkeyPatch) -> None:
    """They like what the law does not; the trained trials tell."""
    one = assignment(trials=40, before=4.0)
    true_losses = losses_of

    def misled(trial: Trial) -> FloatArray:
        return 4.0 - true_losses(trial) if trial.source == MERGED else true_losses(trial)

    monkeypatch.setattr(f"{__name__}.losses_of", misled)
    swarm, _ = finish(get_strategy("bayes", one), batch=8)
    found = get_strategy("bayes", one).propose(swarm).mixture.array(tuple(TOKENS))
    weights = np.stack([found, one.domains.natural().array()])
    true = (1.0 + (weights @ BLENDS_MD.T + 0.03) ** -0.35).mean(axis=1)
    assert true[0] < true[1] - 0.08


def test_a_space_of_few_mixtures_is_averaged_once_and_no_more() -> None:
    """Averages have no seeds to be asked for again with."""
    one = assignment()
    alone = replace(one, offers=(one.offers[0],), trials=50, before=0.0)
    few = [np.eye(5)[place] for place in (0, 1, 2)]
    standing = Standing.of(alone, Swarm.empty(tuple(TOKENS)), [], [])
    asked = standing.numbered((few[place % 3] for place in range(10_000)), 20, "x")
    assert len(asked) == len({trial.trial_id for trial in asked}) == 3
