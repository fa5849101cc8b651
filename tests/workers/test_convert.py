from __future__ import annotations

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.errors import ConfigError, DataError
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Evaluation
from mixopt.trial import FailureKind, Outcome, Source, Trial, TrialDomain, trial_identity
from proxy_models.config import SIZES, default_learning_rate, proxy_config
from proxy_models.specs import MemberFailure, MemberResult
from workers.convert import (
    CostModel,
    evaluation_of,
    failure_of_member,
    member_of,
    outcome_of,
    proxy_of,
    recipe_for,
    settings_of,
    used_domains,
)
from workers.failures import failure_of

RECIPE = recipe_for(ProxySettings(window=64, tokens_per_step=256, tokens=4096), "nano", 512)


def trial(
    weights: dict[str, tuple[float, ...]], fractions: tuple[float, ...] = (1.0,), size: str = "nano", evaluator: str = "trained"
) -> Trial:
    """A trial over domains whose content hashes are their names reversed, so that the two orders differ."""
    names = tuple(weights)
    schedule = Schedule(tuple(Mixture(names, row) for row in zip(*weights.values(), strict=True)), fractions)
    domains = tuple(TrialDomain(name, name[::-1], 4096 + index * 64) for index, name in enumerate(names))
    source = Source(evaluator, size, 4096)
    identity = trial_identity(schedule, source, 7, RECIPE, domains, "tok", "1")
    return Trial(identity, schedule, source, 7, RECIPE, domains, "tok", "1")


FILES = {name[::-1]: Path(f"{name}.tokens") for name in ("ab", "ca", "bb", "dc")}


def test_the_recipe_says_all_that_training_needs() -> None:
    settings = settings_of(trial({"ab": (0.5,), "ca": (0.5,)}))
    assert (settings.tokens, settings.window, settings.tokens_per_step) == (4096, 64, 256)
    assert (settings.schedule, settings.warmup_fraction, settings.decay_fraction) == ("wsd", 0.05, 0.2)
    assert (settings.weight_decay, settings.clip) == (0.1, 1.0)


def test_settings_of_before_give_the_trials_of_before() -> None:
    """Whatever can be set now beside them: pinned, because kept trials are known by it."""
    default = recipe_for(ProxySettings(), "nano", 4096)
    assert sorted(default) == sorted(
        [
            "vocab_size",
            "window",
            "tokens_per_step",
            "learning_rate",
            "schedule",
            "warmup_fraction",
            "decay_fraction",
            "weight_decay",
            "clip",
        ]
    )
    schedule = Schedule.constant(Mixture(("ab", "ca"), (0.25, 0.75)))
    domains = (TrialDomain("ab", "ba", 64_000), TrialDomain("ca", "ac", 128_000))
    assert trial_identity(schedule, Source("trained", "nano", 1_000_000), 3, default, domains, "tok", "1") == "f2733eda7a3c035ee539"


@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        ({"balancing": "bias"}, {}),
        ({"balancing": "none"}, {"bias_update_rate": 0.0}),
        ({"balancing": "auxiliary_loss"}, {"bias_update_rate": 0.0, "auxiliary_loss": 0.01}),
        ({"balancing": "both", "auxiliary_loss": 0.002}, {"auxiliary_loss": 0.002}),
    ],
)
def test_balancing_enters_the_recipe_where_it_is_not_the_default(settings: dict[str, object], recipe: dict[str, float]) -> None:
    usual, chosen = (recipe_for(ProxySettings(**one), "nano", 512) for one in ({}, settings))  # type: ignore[arg-type]
    assert chosen == {**usual, **recipe}
    asked = trial({"ab": (0.5,), "ca": (0.5,)})
    model = proxy_of(Trial(**{**vars(asked), "recipe": chosen}))
    assert model == replace(proxy_config("nano", 512), **recipe)
    assert recipe_for(ProxySettings(**settings), "nano-dense", 512) == recipe_for(ProxySettings(), "nano-dense", 512)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
def test_the_learning_rate_follows_the_size_unless_it_is_given(size: str) -> None:
    assert recipe_for(ProxySettings(), size, 512)["learning_rate"] == default_learning_rate(size)
    assert recipe_for(ProxySettings(learning_rate=0.5), size, 512)["learning_rate"] == 0.5


def test_the_parametrization_is_in_the_recipe_only_where_it_is_not_the_standard_one() -> None:
    """Trials of before keep their identity."""
    standard, mup = (recipe_for(ProxySettings(parametrization=kind), "micro", 512) for kind in ("standard", "mup"))
    assert "parametrization" not in standard
    assert mup == {**standard, "parametrization": "mup", "learning_rate": default_learning_rate("nano")}
    of_mup = dataclasses.replace(trial({"ab": (1.0,)}, size="micro"), recipe=mup)
    assert proxy_of(of_mup) == proxy_config("micro", 512, "mup")
    assert proxy_of(trial({"ab": (1.0,)}, size="micro")) == proxy_config("micro", 512)


def test_an_unknown_size_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'micro'"):
        recipe_for(ProxySettings(), "mikro", 512)


def test_a_trial_of_another_evaluator_is_refused() -> None:
    with pytest.raises(ConfigError, match="command"):
        proxy_of(trial({"ab": (1.0,)}, evaluator="command"))


@pytest.mark.parametrize("evaluator", ["merged", "ensemble"])
def test_averages_are_of_the_shape_of_their_components(evaluator: str) -> None:
    assert proxy_of(trial({"ab": (1.0,)}, evaluator=evaluator)) == proxy_of(trial({"ab": (1.0,)}))
    assert CostModel(1.0).flops(trial({"ab": (1.0,)}, evaluator=evaluator)) == 0, "nothing is trained"


def test_domains_without_weight_stay_at_home_and_the_rest_is_ordered_by_content() -> None:
    member = member_of(trial({"ab": (0.25,), "ca": (0.75,), "bb": (0.0,)}), FILES)
    assert [stream.key for stream in member.domains] == ["ac", "ba"]
    assert [stream.path for stream in member.domains] == [Path("ca.tokens"), Path("ab.tokens")]
    assert [stream.unique_tokens for stream in member.domains] == [4096 + 64, 4096]
    assert member.weights == ((0.75, 0.25),)
    assert (member.seed, member.learning_rate) == (7, 3e-3)


def test_phases_keep_their_weights_and_fractions() -> None:
    member = member_of(trial({"ab": (1.0, 0.0), "ca": (0.0, 0.5), "dc": (0.0, 0.5)}, (0.25, 0.75)), FILES)
    assert [stream.key for stream in member.domains] == ["ac", "ba", "cd"]
    assert member.weights == ((0.0, 1.0, 0.0), (0.5, 0.0, 0.5))
    assert member.fractions == (0.25, 0.75)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=4).filter(lambda w: sum(w) > 0.1), st.floats(-4e-10, 4e-10))
def test_what_is_trained_is_a_function_of_the_identity(raw: list[float], noise: float) -> None:
    names = ("ab", "ca", "bb", "dc")[: len(raw)]
    weights = [weight / sum(raw) for weight in raw]
    shifted = [max(0.0, weight + noise) for weight in weights]
    one = trial({name: (weight,) for name, weight in zip(names, weights, strict=True)})
    # The same mixture listed backwards, with float noise.
    other = trial({name: (weight,) for name, weight in reversed(list(zip(names, [s / sum(shifted) for s in shifted], strict=True)))})
    if [d.unique_tokens for d in one.domains] != [d.unique_tokens for d in reversed(other.domains)]:
        other = Trial(**{**vars(other), "domains": tuple(reversed(one.domains))})
    used = used_domains(one)
    for phase in zip(*used.values(), strict=True):
        assert math.isclose(math.fsum(phase), 1, abs_tol=1e-12)
    identities = [
        trial_identity(t.schedule, t.source, t.seed, t.recipe, t.domains, t.tokenizer_hash, t.engine_version) for t in (one, other)
    ]
    if identities[0] == identities[1]:
        assert used_domains(other) == used
        assert member_of(other, FILES).domains == member_of(one, FILES).domains


def test_a_domain_without_tokens_is_named() -> None:
    with pytest.raises(DataError, match="for ca"):
        member_of(trial({"ab": (0.5,), "ca": (0.5,)}), {"ba": Path("ab.tokens")})


def test_two_domains_of_one_content_are_refused() -> None:
    base = trial({"ab": (0.5,), "ca": (0.5,)})
    twins = tuple(TrialDomain(domain.name, "same", 4096) for domain in base.domains)
    with pytest.raises(DataError, match="hold the text"):
        used_domains(Trial(**{**vars(base), "domains": twins}))


def test_evaluations_lose_their_name_only() -> None:
    spec = evaluation_of(Evaluation("key", "target/x", "completion", Path("x.tokens"), 640, 128, "early"))
    facts = {"key": "key", "path": Path("x.tokens"), "kind": "completion", "max_tokens": 640, "curve_tokens": 128, "curve_key": "early"}
    assert vars(spec) == facts
    with pytest.raises(ConfigError, match="'prose'"):
        evaluation_of(Evaluation("key", "target/x", "prose", Path("x.tokens"), None))


def test_results_become_outcomes_that_survive_json() -> None:
    result = MemberResult("id", {"ba": (0.5, 0.25)}, (("k", 256, 2.0, 1.5), ("k", 512, 1.0, 0.75)), 512, 1e9, 2.5, {"steps": 2})
    outcome = outcome_of(result)
    assert Outcome.from_json(outcome.to_json()) == outcome
    assert [(m.tokens, m.loss_nats, m.bits_per_byte) for m in outcome.measurements] == [(256, 2.0, 1.5), (512, 1.0, 0.75)]
    assert (outcome.flops, outcome.seconds) == (1e9, 2.5)


def test_failures_keep_kind_message_and_tokens() -> None:
    failure = failure_of_member(MemberFailure("id", "diverged", "loss became nan", 256))
    assert (failure.kind, failure.message, failure.tokens) == (FailureKind.DIVERGED, "loss became nan", 256)
    assert failure_of_member(MemberFailure("id", "new kind", "", 0)).kind is FailureKind.ERROR


def test_exceptions_are_typed_by_their_class_even_when_ray_wraps_them() -> None:
    class RayTaskError(MemoryError):
        """Ray derives the class that it raises from the one that the task raised."""

    assert failure_of(RayTaskError("x")).kind is FailureKind.OUT_OF_MEMORY
    assert failure_of(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")).kind is FailureKind.OUT_OF_MEMORY
    assert failure_of(FileNotFoundError("gone")).kind is FailureKind.DATA
    assert failure_of(RuntimeError("anything else")).kind is FailureKind.ERROR
    assert not failure_of(RuntimeError("anything else")).kind.retryable


def test_cost_counts_flops_and_grows_with_what_is_trained() -> None:
    nano, micro = (trial({"ab": (1.0,)}, size=size) for size in ("nano", "micro"))
    cost = CostModel(flops_per_second=1e10)
    assert cost.flops(nano) == proxy_config("nano", 512).training_flops_per_token(64) * 4096
    assert cost.seconds(micro) == cost.flops(micro) / 1e10 > cost.seconds(nano)
