"""Which trials a calibration asks for: those that the search and its verification ask for first, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mixopt.calibration.design import Extent, at_rate, calibration_identity, plan_calibration, rates_of
from mixopt.domains import DomainSet
from mixopt.mixture import Schedule
from mixopt.strategies.design import design_sequence

EXTENT = Extent((0.01, 0.1, 1.0, 3.0), draws=3, seeds=3, longer=4, larger=True)


@pytest.mark.parametrize("seed", [0, 5])
def test_runs_at_the_own_rate_are_the_searchs_first_trials(world: Any, seed: int) -> None:
    factory = world().factory()
    plan = plan_calibration(factory, EXTENT, seed)
    asked = []
    for point in design_sequence(factory.domains, 3, seed):
        if len(asked) == 24:
            break
        asked.append(factory.make(Schedule.constant(point.mixture), point.seed, point.label).trial_id)
    mine = [trial.trial_id for trial in (*plan.rates[0][1], *plan.repeats)]
    assert {trial.trial_id for trial in plan.rates[0][1]} <= set(asked)
    # The search has two seeds at each corner, the calibration three; all else is the search's.
    assert len(set(mine) - set(asked)) == 2


def test_runs_of_the_larger_source_are_the_verifications(world: Any) -> None:
    made = world()
    larger = made.factory(tokens=150_000, size="micro")
    plan = plan_calibration(made.factory(), EXTENT, 7, larger)
    (reference,) = [trials for name, trials in plan.references if name.startswith("micro")]
    domains = made.domains
    for mixture in (domains.natural(), domains.uniform(), domains.unimax()):
        assert larger.make(Schedule.constant(mixture), 0, "verify:natural").trial_id in {trial.trial_id for trial in reference}


def test_every_mixture_has_the_same_seed_at_every_rate_and_in_every_reference_of_its_size(world: Any) -> None:
    plan = world().plan(EXTENT)
    first = plan.rates[0][1]
    for _, trials in plan.rates:
        assert [(t.schedule, t.seed) for t in trials] == [(t.schedule, t.seed) for t in first]
    for _, trials in plan.references:
        assert [t.schedule for t in trials] == [t.schedule for t in first]
    assert [rate for rate, _ in plan.rates] == [3e-3, 3e-5, 3e-4, 9e-3]
    assert len({trial.trial_id for trial in plan.trials}) == len(plan.trials)


def test_every_trial_begins_with_what_the_searchs_trials_begin_with(world: Any) -> None:
    made = world()
    recipe = {**made.factory().recipe, "beginning": {"kind": "continued"}}
    factory = replace(made.factory(), recipe=recipe, inputs=("base",))
    larger = replace(made.factory(tokens=150_000, size="micro"), recipe=recipe, inputs=("larger base",))
    plan = plan_calibration(factory, EXTENT, 0, larger)
    assert {trial.inputs for trial in plan.trials if trial.source.size == "nano"} == {("base",)}
    assert {trial.inputs for trial in plan.trials if trial.source.size == "micro"} == {("larger base",)}
    first = next(iter(design_sequence(factory.domains, 3, 0)))
    assert factory.make(Schedule.constant(first.mixture), first.seed, "").trial_id in {t.trial_id for t in plan.rates[0][1]}


def test_unimax_that_is_uniform_is_trained_once(world: Any) -> None:
    made = world(domains=DomainSet(tuple(replace(d, max_epochs=1e6) for d in world().domains.domains), 40e9))
    plan = made.plan(EXTENT)
    assert len(plan.rates[0][1]) == 4 + 3
    assert len(world().plan(EXTENT).rates[0][1]) == 5 + 3


def test_rates_are_numbers_that_people_read() -> None:
    assert rates_of(0.003, (1 / 100, 1 / 30, 1.0, 3.0)) == (0.003, 3e-5, 1e-4, 9e-3)
    assert rates_of(0.0012345678, (1.0, 0.1))[0] == 0.0012345678


def test_identity_is_of_what_a_calibration_depends_on(world: Any) -> None:
    made = world()
    factory = made.factory()
    same = calibration_identity(factory)
    assert calibration_identity(at_rate(factory, 1e-4)) == same
    assert same.startswith("calibration-")
    assert len(same) <= 64
    others = [
        made.factory(tokens=200_000),
        made.factory(size="micro"),
        replace(factory, recipe={**factory.recipe, "clip": 0.5}),
        replace(factory, tokenizer_hash="other"),
        replace(factory, engine_version="2"),
        replace(factory, inputs=("base",)),
        replace(factory, domains=DomainSet(made.domains.domains[:3], 40e9)),
        replace(factory, domains=DomainSet(made.domains.domains, 6e9)),
    ]
    assert len({same, *map(calibration_identity, others)}) == 1 + len(others)


def test_every_run_begins_with_what_the_searchs_trials_begin_with(world: Any) -> None:
    """At other rates and lengths, too; and a calibration from scratch is another one."""
    begun = replace(world().factory(), inputs=("base",))
    plan = plan_calibration(begun, Extent((0.1, 1.0), draws=2, seeds=2, longer=4, larger=False), 0)
    assert {trial.inputs for trial in plan.trials} == {("base",)}
    assert {trial.source.tokens // begun.source.tokens for trial in plan.trials} == {1, 4}
    assert calibration_identity(begun) != calibration_identity(world().factory())
