"""Identity: what changes the trained weights changes the id, and nothing else does."""

from __future__ import annotations

import json

import pytest

from mixopt.domains import Domain, DomainSet
from mixopt.errors import ConfigError
from mixopt.factory import TrialFactory
from mixopt.mixture import Mixture, Schedule
from mixopt.trial import FailureKind, Measurement, Outcome, Source, Trial, content_digest, trial_from_spec

RECIPE = {"window": 64, "learning_rate": 3e-3}
SOURCE = Source("trained", "nano", 100_000)


def domain_set(names: dict[str, str], budget: float = 1e9) -> DomainSet:
    return DomainSet(tuple(Domain(name, content, 500_000, 4e8) for name, content in names.items()), budget)


def make(
    weights: dict[str, float],
    names: dict[str, str] | None = None,
    seed: int = 0,
    source: Source = SOURCE,
    recipe: dict = RECIPE,
    tokenizer: str = "tok",
    engine: str = "1",
    budget: float = 1e9,
) -> Trial:
    names = names or {name: f"hash-{name}" for name in weights}
    factory = TrialFactory(domain_set(names, budget), source, recipe, tokenizer, engine)
    return factory.make(Schedule.constant(Mixture.of(weights)), seed, "design")


BASE = make({"a": 0.25, "b": 0.75})


def test_the_id_ignores_the_order_and_the_names_of_domains() -> None:
    assert make({"b": 0.75, "a": 0.25}).trial_id == BASE.trial_id
    renamed = make({"x": 0.25, "y": 0.75}, {"x": "hash-a", "y": "hash-b"})
    assert renamed.trial_id == BASE.trial_id


def test_a_domain_without_weight_does_not_change_the_id() -> None:
    assert make({"a": 0.25, "b": 0.75, "c": 0.0}).trial_id == BASE.trial_id


def test_weights_within_float_noise_share_an_id() -> None:
    assert make({"a": 0.25 + 1e-12, "b": 0.75 - 1e-12}).trial_id == BASE.trial_id


@pytest.mark.parametrize(
    "other",
    [
        make({"a": 0.26, "b": 0.74}),
        make({"a": 0.25, "b": 0.75}, seed=1),
        make({"a": 0.25, "b": 0.75}, source=Source("trained", "micro", 100_000)),
        make({"a": 0.25, "b": 0.75}, source=Source("trained", "nano", 200_000)),
        make({"a": 0.25, "b": 0.75}, recipe={**RECIPE, "learning_rate": 1e-3}),
        make({"a": 0.25, "b": 0.75}, tokenizer="other"),
        make({"a": 0.25, "b": 0.75}, engine="2"),
        make({"a": 0.25, "b": 0.75}, {"a": "hash-a", "b": "changed text"}),
        make({"a": 0.25, "b": 0.75}, budget=2e8),  # another number of unique tokens
        make({"a": 0.75, "b": 0.25}),
    ],
    ids=["weights", "seed", "size", "tokens", "recipe", "tokenizer", "engine", "content", "unique", "swapped"],
)
def test_whatever_changes_the_weights_changes_the_id(other: Trial) -> None:
    assert other.trial_id != BASE.trial_id


def test_a_label_is_not_part_of_the_identity() -> None:
    factory = TrialFactory(domain_set({"a": "1", "b": "2"}), SOURCE, RECIPE, "tok", "1")
    schedule = Schedule.constant(Mixture.of({"a": 0.5, "b": 0.5}))
    assert factory.make(schedule, 0, "natural").trial_id == factory.make(schedule, 0, "uniform").trial_id


def test_the_id_is_stable_over_releases() -> None:
    """A changed id orphans every trial that users have paid for: change the engine version instead, and say so in the changelog."""
    assert BASE.trial_id == "4d5232c8b840823c3309"


def test_a_spec_rebuilds_its_trial() -> None:
    assert trial_from_spec(json.loads(json.dumps(BASE.spec()))) == BASE


def test_an_outcome_survives_json() -> None:
    outcome = Outcome("id", {"h": (0.5,), "g": (0.5,)}, (Measurement("k", 10, 2.0, 1.0),), 10, 1e9, 2.5, {"epochs": {"h": 1.0}})
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_never_recorded(value: float) -> None:
    with pytest.raises(ConfigError, match="diverged trial is a failure"):
        Measurement("k", 10, value, 1.0)


def test_digests_refuse_what_json_cannot_say() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        content_digest({"loss": float("nan")})


def test_a_diverged_trial_is_not_tried_again_and_a_lost_worker_is() -> None:
    assert not FailureKind.DIVERGED.retryable
    assert FailureKind.WORKER_LOST.retryable
