"""Components of an experiment: which trials they are, what a search asks of them, what they cost, and how an earlier family is extended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.history import History
from mixopt.merging.remedies import Making
from mixopt.mixture import Schedule
from mixopt.trial import Measurement, Outcome, Source
from workers.checks import check_settings
from workers.components import KIND, family_document, family_id
from workers.compose import Search, compose
from workers.convert import used_domains
from workers.planning.averages import averages_cost, break_even
from workers.search_context import context

TOKENS = {"web": "6B", "code": "3B", "math": "1B", "law": "2B"}
CONTINUED = {"kind": "continued", "base": {"tokens": 819_200}}


def experiment(folder: Path, names: tuple[str, ...] = ("web", "code", "math"), **changes: Any) -> Any:
    raw: dict[str, Any] = {
        "name": "merged",
        "output": str(folder),
        "budget_tokens": "8B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": TOKENS[name]} for name in names],
        "proxy": {"tokens": 204_800, "window": 64, "tokens_per_step": 1024, "beginning": CONTINUED},
        "components": {"general": 0.5, "tokens": 204_800},
        "search": {"strategy": "bayes", "evaluators": ["merged", "ensemble"]},
        "verification": {"enabled": False},
    }
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change}
    return parse_experiment(raw, folder)


def composed(folder: Path, names: tuple[str, ...] = ("web", "code", "math"), **changes: Any) -> Search:
    """A search over a corpus that is prepared only in name."""

    def file(name: str) -> TokenFile:
        return TokenFile(f"{name}.tokens", f"content-{name}", 1_000_000, 4_000_000, 100)

    parts = {name: DomainFiles(file(f"{name}.train"), file(f"{name}.valid")) for name in names}
    manifest = Manifest(folder / "tokens", "tokenizer.json", "hash", 4096, parts, {"t": TargetFile("completion", file("target-t"))})
    return compose(experiment(folder, names, **changes), manifest)


def test_components_branch_from_the_base_that_the_trials_have(tmp_path: Path) -> None:
    search = composed(tmp_path)
    assert search.base is not None
    assert search.family is not None
    assert {trial.inputs for trial in search.family.trials} == {(search.base.trial_id,)}
    assert search.factory.inputs == (search.base.trial_id,)
    assert {trial.recipe["schedule"] for trial in search.family.trials} == {"constant"}
    assert search.family.source == search.factory.source, "the horizon is that of the search's proxies"
    assert [source.key for source in search.sources] == ["ensemble/nano/204800", "merged/nano/204800", "trained/nano/204800"]
    assert {source.key for source in search.sources} <= search.evaluations.keys()
    natural = Schedule.constant(search.domains.natural())
    keys = [set(search.metrics(source)) for source in search.sources]
    assert keys[0] == keys[1] == keys[2], "averages are scored on the rows of the trained trials"
    costs = [offer.cost / search.strategy.assignment.offers[-1].cost for offer in search.strategy.assignment.offers]
    assert costs[0] < 1e-3
    assert 0.05 < costs[1] < 0.15
    assert search.strategy.assignment.offers[0].make(natural, 0, "").source.evaluator == "ensemble"
    assert search.strategy.assignment.offers[0].reach is not None, "ensembles do not extrapolate"
    assert search.strategy.assignment.offers[1].reach is None


def test_by_default_components_are_a_third_as_long_and_hold_no_general_data(tmp_path: Path) -> None:
    raw = {**experiment(tmp_path).model_dump(mode="json"), "components": {}}
    given = parse_experiment(raw, tmp_path)
    assert (given.component_tokens, given.components.general) == (67 * 1024, 0.0)
    raw["proxy"] = {**raw["proxy"], "tokens": 10 * 1024}
    assert parse_experiment(raw, tmp_path).component_tokens == 8 * 1024, "but never fewer than eight steps"


def test_evaluators_make_another_search_and_their_settings_too(tmp_path: Path) -> None:
    ids = {
        composed(tmp_path, **changes).search_id
        for changes in (
            {},
            {"search": {"evaluators": ["merged"]}},
            {"search": {"evaluators": [], "surrogate": "expert_ensemble"}},
            {"components": {"general": 0.25}},
            {"components": {"tokens": 102_400}},
            {"components": {"operator": "ties"}},
            {"components": {"router": "frozen"}},
        )
    }
    assert len(ids) == 7
    plain = composed(tmp_path, search={"evaluators": []})
    other = composed(tmp_path, search={"evaluators": []}, components={"general": 0.25})
    assert plain.search_id == other.search_id, "what is not used makes no difference"
    assert "components" not in context(plain)
    assert context(composed(tmp_path))["components"]["general"] == 0.5


def test_a_strategy_of_merged_proxies_has_some(tmp_path: Path) -> None:
    given = experiment(tmp_path, search={"strategy": "demix", "evaluators": []})
    assert given.search.evaluators == (), "said aloud"
    raw = {**experiment(tmp_path).model_dump(mode="json"), "search": {"strategy": "demix"}}
    assert parse_experiment(raw, tmp_path).search.evaluators == ("merged",)
    assert parse_experiment(raw, tmp_path).search.surrogate == "expert_ensemble"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxy": {"beginning": {"kind": "scratch"}}}, "trials begin from scratch"),
        ({"proxy": {"beginning": {"kind": "upcycled"}}}, "trials begin upcycled"),
        ({"components": {"tokens": 4096}}, r"`components\.tokens` is 4096, fewer than 8 steps"),
        ({"components": {"general": 1.0}}, "general"),
        ({"components": {"mixture": {"wab": 1.0}}}, r"`components\.mixture` gives weight to wab"),
        ({"components": {"operator": "linear", "operator_options": {"density": 0.5}}}, "it takes none"),
        ({"components": {"operator": "ties", "operator_options": {"density": 3.0}}}, "density"),
        ({"search": {"evaluators": ["merged", "merged"]}}, "named twice"),
        ({"search": {"surrogate": "gaussian_process"}}, "takes runs of one source only"),
        ({"search": {"strategy": "regression"}}, "runs trials of `proxy` only"),
        ({"search": {"trials": 18}}, "3 components cost as much as 3 trials, beside 12 of the gate"),
        ({"components": {"most_share": 0.05}}, r"more than `components\.most_share` \(0\.05\) of 48 allows"),
        ({"search": {"strategy": "scaling"}}, "runs trials of `proxy` only"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_spent(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_settings(experiment(tmp_path, **changes))


# Adding a domain


def remembered(folder: Path, search: Search) -> None:
    """As training leaves it."""
    assert search.components is not None
    assert search.family is not None
    with History.open(folder / "record.sqlite") as history:
        history.add_search(family_id(search.family), "merged", "")
        history.save_document(family_id(search.family), KIND, family_document(search.components, search.family))


def test_adding_a_domain_trains_one_component(tmp_path: Path) -> None:
    before = composed(tmp_path)
    remembered(tmp_path, before)
    after = composed(tmp_path, ("web", "code", "math", "law"))
    assert before.family is not None
    assert after.family is not None
    assert after.components is not None
    kept = {name: trial.trial_id for name, trial in before.family.components.items()}
    now = {name: trial.trial_id for name, trial in after.family.components.items()}
    assert {name: now[name] for name in kept} == kept
    assert after.components.extends == ("law",)
    assert after.base is not None
    assert before.base is not None
    assert after.base.trial_id == before.base.trial_id
    assert after.family.general.as_dict() == pytest.approx({**before.domains.natural().as_dict(), "law": 0.0})
    remembered(tmp_path, after)
    again = composed(tmp_path, ("web", "code", "math", "law"))
    assert again.search_id == after.search_id, "the extended family is its own from then on"
    assert composed(tmp_path).search_id == before.search_id


def test_a_family_is_not_extended_where_that_is_not_wanted_or_settings_differ(tmp_path: Path) -> None:
    before = composed(tmp_path)
    remembered(tmp_path, before)
    assert before.base is not None
    wider = ("web", "code", "math", "law")
    for changes in (
        {"components": {"extend": False}},
        {"components": {"mixture": "uniform"}},
        {"components": {"seed": 1}},
        {"proxy": {"weight_decay": 0.2}},
    ):
        after = composed(tmp_path, wider, **changes)
        assert after.base is not None
        assert after.base.trial_id != before.base.trial_id


def test_a_family_of_few_of_the_domains_or_of_other_token_counts_is_no_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrow = composed(tmp_path, ("web", "code"))
    remembered(tmp_path, narrow)
    wide = composed(tmp_path, ("web", "code", "math", "law"))
    assert wide.components is not None
    assert wide.components.extends == ()
    remembered(tmp_path, composed(tmp_path))
    monkeypatch.setitem(TOKENS, "web", "60B")
    changed = composed(tmp_path, ("web", "code", "math", "law"))
    assert changed.components is not None
    assert changed.components.extends == ()


def test_whoever_has_begun_goes_on_as_begun(tmp_path: Path) -> None:
    """With a base of its own, whatever family is recorded later; and with an extended one, whatever is trained beside."""
    wider = ("web", "code", "math", "law")
    own = composed(tmp_path, wider, components={"extend": False})
    remembered(tmp_path, composed(tmp_path))
    extended = composed(tmp_path, wider)
    assert extended.search_id != own.search_id
    assert own.base is not None
    with History.open(tmp_path / "record.sqlite") as history:
        history.add_search("s", "s", "")
        history.add_trials("s", [own.base], "base")
        history.complete(Outcome(own.base.trial_id, used_domains(own.base), (Measurement("k", 819_200, 1.0, 1.0),), 819_200, 1.0, 1.0))
    begun = composed(tmp_path, wider)
    assert begun.base is not None
    assert begun.base.trial_id == own.base.trial_id
    remembered(tmp_path, extended)
    assert composed(tmp_path, wider).search_id == extended.search_id


def test_a_component_of_another_horizon_shares_the_base_of_a_family(tmp_path: Path) -> None:
    before = composed(tmp_path)
    remembered(tmp_path, before)
    after = composed(tmp_path, ("web", "code", "math", "law"), components={"tokens": 102_400})
    assert before.base is not None
    assert after.base is not None
    assert after.base.trial_id == before.base.trial_id


# Remedies and costs


def test_components_of_remedies_are_others_and_can_be_scored(tmp_path: Path) -> None:
    search = composed(tmp_path)
    assert search.components is not None
    assert search.components.horizons == (204_800, 102_400, 51_200, 25_600, 12_800)
    for tokens in search.components.horizons:
        assert Source("merged", "nano", tokens).key in search.evaluations
        assert Source("trained", "nano", tokens).key in search.evaluations
    shorter = search.components.family(Making(102_400, 0.5))
    frozen = search.components.family(Making(204_800, 0.5, frozen_router=True))
    assert search.family is not None
    assert len({trial.trial_id for one in (search.family, shorter, frozen) for trial in one.trials}) == 9


def test_the_break_even_is_where_both_cost_the_same(tmp_path: Path) -> None:
    assert break_even(80.0, 1.0, 11.0) == 8
    assert break_even(81.0, 1.0, 11.0) == 9
    assert break_even(80.0, 11.0, 11.0) is None
    for one in averages_cost(composed(tmp_path)):
        assert one.break_even is not None
        assert one.break_even_with_gate is not None
        paid = one.components_flops + one.gate_flops + one.break_even_with_gate * one.mixture_flops
        assert paid <= one.break_even_with_gate * one.trained_flops
        for mixtures in (one.break_even, one.break_even - 1):
            cheaper = one.components_flops + mixtures * one.mixture_flops <= mixtures * one.trained_flops
            assert cheaper == (mixtures == one.break_even)
        assert f"from {one.break_even} mixtures on" in one.sentence
