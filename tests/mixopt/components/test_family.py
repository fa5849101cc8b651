"""What averages of components stand for: beta is mixed in and un-mixed, and what is beyond their reach is refused or extrapolated."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.components.family import Family, component_factory, family_of
from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.groups.rules import GroupRule
from mixopt.mixture import Mixture, Schedule
from mixopt.space import MixtureSpace
from mixopt.trial import Source

NAMES = ("web", "code", "math", "law")
TOKENS = (6e9, 2e9, 1e9, 1e9)
RECIPE = {"vocab_size": 512, "window": 64, "tokens_per_step": 1024, "learning_rate": 0.003, "schedule": "constant"}


def domains(names: tuple[str, ...] = NAMES, group: str = "") -> DomainSet:
    made = tuple(
        Domain(name, f"content-{name}", 1_000_000, tokens, group if name in ("math", "law") else "")
        for name, tokens in zip(NAMES, TOKENS, strict=True)
        if name in names
    )
    rules = (GroupRule(group, (("math", 0.6), ("law", 0.4)), (0.0, 1.0)),) if group else ()
    return DomainSet(made, 10e9, rules)


def family(share: float = 0.5, kind: str = "linear", among: DomainSet | None = None, general: Mixture | None = None) -> Family:
    among = among or domains()
    base = TrialFactory(among, Source("trained", "nano", 819_200), RECIPE, "hash", "engine").make(
        Schedule.constant(Mixture.of(dict(zip(NAMES, (0.6, 0.2, 0.1, 0.1), strict=True))))
        if len(among.names) == 4
        else Schedule.constant(among.natural()),
        0,
        "base",
    )
    factory = component_factory(among, Source("trained", "nano", 204_800), {**RECIPE, "beginning": {"kind": "continued"}}, base)
    return family_of(among, base, factory.make, general or among.natural(), share, 0, {"kind": kind})


shares = st.lists(st.floats(0.0, 1.0), min_size=4, max_size=4).filter(lambda row: sum(row) > 0.1)


@given(shares, st.sampled_from([0.0, 0.25, 0.5, 0.9]))
def test_general_data_is_mixed_in_and_un_mixed(row: list[float], share: float) -> None:
    made, weights = family(share), np.array(row) / sum(row)
    mixture = made.mixture(weights)
    np.testing.assert_allclose(made.weights(mixture), weights, atol=1e-9)
    np.testing.assert_allclose(mixture.array(), (1 - share) * weights + share * made.general.array(), atol=1e-12)
    assert made.weights(made.general).tolist() == pytest.approx(made.general.array().tolist()), "general data stand for themselves"


def test_a_component_has_its_domain_and_its_share_of_general_data() -> None:
    made = family(0.5)
    weights = {name: trial.schedule.average().as_dict() for name, trial in made.components.items()}
    assert weights["math"] == pytest.approx({"web": 0.3, "code": 0.1, "math": 0.55, "law": 0.05})
    assert {trial.inputs for trial in made.trials} == {(made.base.trial_id,)}
    assert all(trial.domains[0].unique_tokens > 900_000 for trial in made.trials), "nothing is repeated that need not be"
    pure = made.mixture(np.eye(4)[2])
    assert pure.as_dict() == pytest.approx(weights["math"]), "a component alone stands for what it was trained on"


@given(shares, st.integers(0, 5), st.integers(0, 5))
def test_a_merged_trial_is_its_mixture_whatever_number_it_was_asked_for_under(row: list[float], one: int, other: int) -> None:
    made = family(0.25)
    schedule = Schedule.constant(made.mixture(np.array(row) / sum(row)))
    first, second = (made.maker("merged").make(schedule, seed, "x") for seed in (one, other))
    assert first.trial_id == second.trial_id
    assert (first.seed, first.source.key) == (one, "merged/nano/204800")
    assert sum(first.recipe["merge"]["weights"].values()) == pytest.approx(1)
    assert made.maker("ensemble").make(schedule, one, "x").trial_id != first.trial_id


def test_only_linear_merges_extrapolate() -> None:
    lean = Schedule.constant(Mixture.of({"web": 0.0, "code": 0.4, "math": 0.3, "law": 0.3}))
    trial = family(0.5).maker("merged").make(lean, 0, "")
    made = family(0.5)
    assert trial.recipe["merge"]["weights"][made.components["web"].trial_id] == pytest.approx(-0.6)
    for maker in (family(0.5, "ties").maker("merged"), family(0.5).maker("ensemble")):
        with pytest.raises(ConfigError, match="only 0 of 'web'") as error:
            maker.make(lean, 0, "")
        assert "general" in error.value.hint
    assert family(0.0).maker("ensemble").make(lean, 0, "").recipe["merge"]["weights"].values()


def test_the_reach_is_what_averages_can_be() -> None:
    made = family(0.5)
    space = MixtureSpace.from_domains(domains())
    reach = made.reach(space)
    sampled = reach.sample(200, np.random.default_rng(0))
    weights = np.array([made.weights(Mixture.from_array(space.domains, row)) for row in sampled])
    assert weights.min() > -1e-9
    assert space.contains(sampled).all()
    assert not reach.contains(space.project(np.array([[0.0, 0.4, 0.3, 0.3]])))[0]


def test_the_reach_of_groups_holds_the_general_share_of_every_domain() -> None:
    """math and law move as one unit, three to two; general data have as much of each."""
    made = family(0.5, among=domains(group="g"), general=domains().natural())
    reach = made.reach(MixtureSpace.from_domains(domains(group="g")))
    sampled = reach.sample(100, np.random.default_rng(0))
    assert sampled[:, 3].min() >= 0.05 - 1e-9


def test_a_cap_below_the_general_share_is_refused_with_the_domain() -> None:
    capped = domains()
    first = dataclasses.replace(capped.domains[0], bounds=(0.0, 0.2))
    space = MixtureSpace.from_domains(dataclasses.replace(capped, domains=(first, *capped.domains[1:])))
    with pytest.raises(ConfigError, match="holds more of 'web'"):
        family(0.5).reach(space)


def test_adding_a_domain_leaves_the_other_components_and_their_merges_as_they_are() -> None:
    fewer = domains(("web", "code", "math"))
    before = family(0.5, among=fewer)
    general = Mixture.of({**before.general.as_dict(), "law": 0.0})
    factory = component_factory(domains(), before.source, before.trials[0].recipe, before.base)
    after = family_of(domains(), before.base, factory.make, general, 0.5, 0, {"kind": "linear"})
    assert {name: after.components[name].trial_id for name in before.components} == {
        name: trial.trial_id for name, trial in before.components.items()
    }
    mixture = Mixture.of({"web": 0.5, "code": 0.3, "math": 0.2})
    wider = Mixture.of({**mixture.as_dict(), "law": 0.0})
    one = before.maker("merged").make(Schedule.constant(mixture), 0, "")
    assert after.maker("merged").make(Schedule.constant(wider), 0, "").trial_id == one.trial_id
