"""The evaluation budget: what measuring a trial may cost."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.experiment_file import parse_experiment
from mixopt.trial import content_digest
from proxy_models.config import proxy_config
from workers.compose import compose
from workers.evaluations import EARLY_POINTS, EVALUATION_SHARE, FORWARD_COST, evaluation_cost, evaluation_tokens, plan_evaluations


def manifest(domains: int) -> Manifest:
    """A prepared corpus of so many domains, and one target."""

    def file(name: str) -> TokenFile:
        return TokenFile(f"{name}.tokens", f"content-{name}", 1_000_000, 4_000_000, 100)

    names = [f"d{index}" for index in range(domains)]
    files = {name: DomainFiles(file(f"{name}.train"), file(f"{name}.valid")) for name in names}
    return Manifest(Path("tokens"), "tokenizer.json", "hash", 4096, files, {"t": TargetFile("completion", file("target-t"))})


@given(st.integers(8_192, 10**9), st.integers(1, 100), st.sampled_from([64, 256, 512, 1024]))
def test_measuring_costs_a_tenth_of_the_training_unless_sets_would_say_nothing(tokens: int, sets: int, window: int) -> None:
    end, early = evaluation_tokens(tokens, sets, window)
    assert end >= 2 * window
    assert early >= window
    if (end, early) != (2 * window, window):
        cost = FORWARD_COST * sets * (end + EARLY_POINTS * early) / tokens
        assert cost <= EVALUATION_SHARE
        assert cost > EVALUATION_SHARE / 3


@pytest.mark.parametrize(("tokens", "domains", "within"), [(150_000, 9, True), (1_000_000, 20, True), (20_000, 9, False)])
def test_the_planned_cost_counts_every_set_and_point(tokens: int, domains: int, within: bool) -> None:
    planned = plan_evaluations(manifest(domains), tokens, 256, None)
    assert len(planned) == domains + 1
    by_hand = FORWARD_COST * sum((e.max_tokens or 0) + 3 * (e.curve_tokens or 0) for e in planned) / tokens
    assert evaluation_cost(planned, tokens) == pytest.approx(by_hand)
    assert (by_hand <= EVALUATION_SHARE) is within


@pytest.mark.parametrize(("parametrization", "elsewhere"), [("standard", 1.5e-3), ("mup", 0.01)])
def test_a_rate_given_for_the_search_is_that_of_its_verification_in_mup_alone(
    tmp_path: Path, parametrization: str, elsewhere: float
) -> None:
    raw = {
        "name": "rates",
        "output": "out",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("d0", "d1")],
        "targets": [{"name": "t", "path": "t.jsonl"}],
        "proxy": {"learning_rate": 0.01, "parametrization": parametrization},
        "verification": {"size": "micro"},
    }
    search = compose(parse_experiment(raw, tmp_path), manifest(2))
    recipes = [search.factory.recipe, search.verification_factory.recipe]
    assert [recipe["learning_rate"] for recipe in recipes] == [0.01, elsewhere]
    assert [recipe.get("parametrization", "standard") for recipe in recipes] == [parametrization] * 2


def test_an_evaluation_is_named_by_what_is_scored_and_the_name_of_its_curve_moves_nothing() -> None:
    """The first key is that of earlier parts, by which kept trials are recognized."""
    planned = plan_evaluations(manifest(2), 1_000_000, 256, None)
    for one, hashed in zip(planned, ("content-d0.valid", "content-d1.valid", "content-target-t"), strict=True):
        end, early = one.max_tokens, one.curve_tokens
        assert one.key == content_digest([hashed, one.kind, 256, end, early])
        assert one.curve_key == content_digest([hashed, one.kind, 256, early, "curve"])
    assert len({key for one in planned for key in (one.key, one.curve_key)}) == 6
    larger = plan_evaluations(manifest(2), 1_000_000, 256, 500_000)
    assert [one.curve_key for one in larger] == [one.curve_key for one in planned], "the same rows, whatever the end has"


def test_a_forward_pass_is_charged_at_least_its_flops() -> None:
    config = proxy_config("nano", 4096)
    assert config.forward_flops_per_token(256) / config.training_flops_per_token(256) <= FORWARD_COST
