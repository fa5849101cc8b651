"""Searches over several sources: how they are composed, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.config import Experiment
from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.strategies import get_strategy
from mixopt.surrogates import get_surrogate
from mixopt.trial import Source
from workers.checks import check_settings
from workers.compose import compose
from workers.offers import trial_flops

SMALL, TINY = {"size": "nano", "tokens": "500K"}, {"size": "nano", "tokens": "100K"}


def experiment(tmp_path: Path, **search: Any) -> Experiment:
    raw = {
        "name": "several",
        "output": "out",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("d0", "d1")],
        "targets": [{"name": "t", "path": "t.jsonl"}],
        "proxy": {"size": "micro", "tokens": "1M"},
        "search": {"surrogate": "auto", **search},
        "verification": {"size": "small", "tokens": "2M"},
    }
    return parse_experiment(raw, tmp_path)


def manifest() -> Manifest:
    def file(name: str) -> TokenFile:
        return TokenFile(f"{name}.tokens", f"content-{name}", 1_000_000, 4_000_000, 100)

    files = {name: DomainFiles(file(f"{name}.train"), file(f"{name}.valid")) for name in ("d0", "d1")}
    return Manifest(Path("tokens"), "tokenizer.json", "hash", 4096, files, {"t": TargetFile("completion", file("target-t"))})


def test_measuring_is_a_fixed_part_of_what_short_trials_cost() -> None:
    """25 sets of at least two windows at the end and one at three earlier points: 64,000 tokens of 512 each, at .4 of training."""
    costs = {tokens: trial_flops(Source("trained", "nano", tokens), 4096, 512, 25) for tokens in (10**4, 10**5, 10**6, 10**7)}
    fixed = 0.4 * 25 * 5 * 512
    assert costs[10**4] / costs[10**5] == pytest.approx((10**4 + fixed) / (10**5 + fixed))
    assert costs[10**7] / costs[10**6] == pytest.approx(10, rel=0.03), "of long ones a tenth"


def test_offers_are_the_cheapest_first_and_the_answer_is_wanted_at_the_proxy(tmp_path: Path) -> None:
    search = compose(experiment(tmp_path, sources=[SMALL, TINY]), manifest())
    offers = search.strategy.assignment.offers
    assert [offer.source.key for offer in offers] == ["trained/nano/100000", "trained/nano/500000", "trained/micro/1000000"]
    costs = [offer.cost for offer in offers]
    assert costs == sorted(costs)
    assert costs[1] / costs[0] == pytest.approx(5, rel=0.02), "sets are scored on whole windows"
    assert costs[2] == trial_flops(offers[2].source, 4096, 512, 3)
    assert offers[0].parameters == offers[1].parameters < offers[2].parameters
    # A token meets about six FLOPs per parameter and training step, more with attention.
    assert 6 < costs[2] / 1.1 / 1e6 / offers[2].parameters < 12
    assert search.strategy.assignment.source == search.factory.source
    assert (
        len({trial.trial_id for trial in (offer.make(search.strategy.assignment.planned(1)[0].schedule, 0, "") for offer in offers)}) == 3
    )


def test_every_source_has_its_own_held_out_subsets_under_the_same_names(tmp_path: Path) -> None:
    search = compose(experiment(tmp_path, sources=[SMALL]), manifest())
    small, large = (search.metrics(source) for source in search.sources)
    assert not set(small) & set(large)
    assert sorted(small.values()) == sorted(large.values()) == sorted(set(search.search_metrics.values()))
    assert search.search_metrics == small | large


def test_sources_and_options_make_another_search_and_their_order_none(tmp_path: Path) -> None:
    ids = [
        compose(experiment(tmp_path, **search), manifest()).search_id
        for search in ({}, {"sources": [SMALL]}, {"sources": [SMALL, TINY]}, {"sources": [TINY, SMALL]})
    ]
    assert len(set(ids)) == 3
    assert ids[2] == ids[3]


def test_laws_know_the_sizes(tmp_path: Path) -> None:
    search = compose(experiment(tmp_path, sources=[SMALL], surrogate="scaling_additive"), manifest())
    surrogate: Any = search.strategy.assignment.surrogate
    assert set(surrogate.sizes) == {"nano", "micro"}
    settings = search.strategy.assignment.settings
    assert (settings.source, settings.measured_only) == (search.factory.source, False)
    alone = compose(experiment(tmp_path), manifest()).strategy.assignment.settings
    assert (alone.source, alone.measured_only, alone.sizes) == (None, True, None)


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"sources": [{"size": "pico", "tokens": "1M"}]}, "sources.0.size"),
        ({"sources": [{"size": "nano", "tokens": 2048}]}, "sources.0.tokens"),
        ({"sources": [SMALL, SMALL]}, "names a source twice"),
        ({"sources": [{"size": "micro", "tokens": "1M"}]}, "names a source twice"),
        ({"sources": [{"size": "micro", "tokens": "3M"}]}, "costs as much as"),
        ({"sources": [SMALL], "surrogate": "gaussian_process"}, "one source only"),
        ({"sources": [SMALL], "surrogate": "sft_law"}, "one size only"),
        ({"sources": [SMALL], "strategy": "climb"}, "'climb' runs trials of `proxy` only"),
        ({"sources": [SMALL], "strategy": "pareto"}, "'pareto' runs trials of `proxy` only"),
        ({"options": {"rounds": 3}}, "search.options.rounds"),
        # What only a strategy itself can tell.
        ({"strategy": "pareto"}, "a front has two to four"),
        ({"strategy": "pareto", "stop_early": True}, "stop_early"),
        ({"strategy": "bayes", "sources": [SMALL], "stop_early": True}, "stop_early"),
        # Whatever asks, and whether it counts: every metric is predicted.
        ({"strategy": "sft", "surrogate": "sft_law"}, "target/t"),
        ({"strategy": "regression", "surrogate": "sft_law"}, "target/t"),
    ],
)
def test_what_is_wrong_with_sources_and_options_is_said_before_anything_is_read(
    tmp_path: Path, search: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(experiment(tmp_path, **search))


def test_metrics_that_do_not_count_are_predicted_too(tmp_path: Path) -> None:
    raw: dict[str, Any] = {
        "name": "own",
        "output": "out",
        "budget_tokens": "1B",
        "domains": [{"name": name, "tokens": "1B"} for name in ("d0", "d1")],
        "trainer": {
            "kind": "elsewhere",
            "name": "mine",
            "tokens": "1M",
            "metrics": ["valid/d0", "valid/d1", {"name": "other", "weight": 0}],
        },
        "search": {"strategy": "sft", "surrogate": "sft_law"},
    }
    with pytest.raises(ConfigError, match="'other' belongs to no domain"):
        check_settings(parse_experiment(raw, tmp_path))
    raw["trainer"]["metrics"].pop()
    check_settings(parse_experiment(raw, tmp_path))


def test_sources_are_not_those_of_the_verification_and_begin_from_scratch(tmp_path: Path) -> None:
    raw = experiment(tmp_path, sources=[SMALL])
    same = raw.model_copy(update={"verification": raw.verification.model_copy(update={"size": "nano", "tokens": 500_000})})
    with pytest.raises(ConfigError, match=r"verification.*search\.sources"):
        check_settings(same)
    beginning = raw.proxy.beginning.model_copy(update={"kind": "continued"})
    with pytest.raises(ConfigError, match="continued"):
        check_settings(raw.model_copy(update={"proxy": raw.proxy.model_copy(update={"beginning": beginning})}))


def test_an_unknown_surrogate_or_strategy_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="regresion"):
        check_settings(experiment(tmp_path, strategy="regresion"))
    with pytest.raises(ConfigError):
        get_strategy("climbing", compose(experiment(tmp_path), manifest()).strategy.assignment)
    with pytest.raises(ConfigError):
        get_surrogate("gp")
