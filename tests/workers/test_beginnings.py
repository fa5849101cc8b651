"""The base of a search: which trial it is, what follows from it for identities, and what happens where its weights are lost."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mixopt.corpus.manifest import DomainFiles, Manifest, TargetFile, TokenFile
from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.history import History
from mixopt.mixture import Mixture, Schedule
from mixopt.proxy_config import ProxyConfig as ProxySettings
from mixopt.runner import Evaluation
from mixopt.trial import FailureKind, Source, Trial, TrialDomain, trial_identity
from proxy_models.checkpoint import load_checkpoint
from proxy_models.token_store import TokenWriter
from workers.beginnings import check_base, forget_results_without_weights, stored_trial
from workers.checks import check_settings
from workers.compose import Search, compose
from workers.control import DriverControl
from workers.convert import member_of, recipe_for
from workers.search_context import context
from workers.train_pack import PackJob, TrialResult, run_pack
from workers.trial_folder import TrialFolder

NAMES = ("web", "code", "math")


def composed(folder: Path, beginning: dict[str, Any] | None = None, tokenizer: str = "hash", **changes: Any) -> Search:
    """A search over a corpus that is prepared only in name."""

    def file(name: str) -> TokenFile:
        return TokenFile(f"{name}.tokens", f"content-{name}", 1_000_000, 4_000_000, 100)

    raw: dict[str, Any] = {
        "name": "begun",
        "output": str(folder),
        "budget_tokens": "10B",
        "domains": [{"name": n, "path": f"{n}.jsonl", "tokens": t} for n, t in zip(NAMES, ("6B", "3B", "1B"), strict=True)],
        "proxy": {"tokens": 204_800, "window": 64, "tokens_per_step": 1024} | ({} if beginning is None else {"beginning": beginning}),
        "verification": {"size": "micro", "tokens": 409_600},
    }
    for section, change in changes.items():
        raw[section] = {**raw.get(section, {}), **change}
    manifest = Manifest(
        folder / "tokens",
        "tokenizer.json",
        tokenizer,
        4096,
        {name: DomainFiles(file(f"{name}.train"), file(f"{name}.valid")) for name in NAMES},
        {"t": TargetFile("completion", file("target-t"))},
    )
    return compose(parse_experiment(raw, folder), manifest)


CONTINUED = {"kind": "continued", "base": {"tokens": 819_200}}


def natural(search: Search) -> Trial:
    return search.factory.make(Schedule.constant(search.domains.natural()), 0, "natural")


def test_identities_from_scratch_are_what_they_always_were(tmp_path: Path) -> None:
    """Pinned: a search of an earlier version goes on with its trials. `kind: scratch` said aloud changes nothing."""
    search = composed(tmp_path)
    assert (search.search_id, natural(search).trial_id) == PINNED
    assert composed(tmp_path, {"kind": "scratch"}).search_id == search.search_id
    assert (search.base, search.verification_base, search.bases) == (None, None, ())
    assert "beginning" not in search.factory.recipe
    assert "beginning" not in context(search)


PINNED = ("e8540cf068613add081d", "34daf86772dabb419077")


def test_the_base_is_a_trial_from_scratch_that_a_search_of_its_own_would_share(tmp_path: Path) -> None:
    search = composed(tmp_path, {"kind": "continued", "base": {"tokens": 204_800}})
    assert search.base is not None
    assert search.base.trial_id == natural(composed(tmp_path)).trial_id, "of the same tokens, mixture, seed and rate"
    trial = natural(search)
    assert trial.inputs == (search.base.trial_id,)
    assert trial.recipe["beginning"] == {"kind": "continued"}
    assert {key: value for key, value in trial.recipe.items() if key != "beginning"} == dict(search.base.recipe)


def test_verification_begins_with_a_base_of_its_own_in_the_same_proportion(tmp_path: Path) -> None:
    search = composed(tmp_path, CONTINUED)
    assert search.base is not None
    assert search.verification_base is not None
    assert search.base.source == Source("trained", "nano", 819_200)
    assert search.verification_base.source == Source("trained", "micro", 1_638_400)
    assert search.verification_factory.inputs == (search.verification_base.trial_id,)
    assert search.bases == (search.base, search.verification_base)
    assert {base.source.key for base in search.bases} <= search.evaluations.keys()
    off = composed(tmp_path, CONTINUED, verification={"enabled": False})
    assert (off.search_id, off.bases) == (search.search_id, (search.base,))


def test_an_upcycled_search_begins_with_the_dense_control(tmp_path: Path) -> None:
    search = composed(tmp_path, {"kind": "upcycled", "reinitialized": 0.25})
    assert [base.source.size for base in search.bases] == ["nano-dense", "micro-dense"]
    assert natural(search).recipe["beginning"] == {"kind": "upcycled", "reinitialized": 0.25}
    described = context(search)["beginning"]
    assert (described["kind"], described["reinitialized"]) == ("upcycled", 0.25)
    assert described["bases"]["search"]["trial"] == natural(search).inputs[0]


def test_searches_share_a_base_and_whatever_changes_it_changes_their_trials(tmp_path: Path) -> None:
    search = composed(tmp_path, CONTINUED)
    other = composed(tmp_path, CONTINUED, objective={"kind": "mean"})
    assert other.search_id != search.search_id
    assert other.bases == search.bases
    assert natural(other).trial_id == natural(search).trial_id
    changes = [
        {},
        {"tokens": 409_600},
        {"seed": 1},
        {"mixture": "uniform"},
        {"mixture": {"web": 0.5, "code": 0.5}},
        {"learning_rate": 1e-3},
        {"budget_tokens": "20B"},
    ]
    searches = [composed(tmp_path, {"kind": "continued", "base": {**CONTINUED["base"], **change}}) for change in changes]
    searches += [composed(tmp_path, {"kind": "upcycled", "reinitialized": share}) for share in (0.5, 0.25)]
    assert len({one.search_id for one in searches}) == len(searches)
    assert len({natural(one).trial_id for one in searches}) == len(searches)


def test_the_base_repeats_documents_as_the_first_stage_of_the_target_does(tmp_path: Path) -> None:
    """By default in proportion: base and trials then share their unique windows. `budget_tokens` of the base is its target's own."""

    def unique(trial: Trial | None) -> dict[str, int]:
        assert trial is not None
        return {domain.name: domain.unique_tokens for domain in trial.domains}

    search = composed(tmp_path, CONTINUED)
    assert unique(search.base) == unique(natural(search)) == {"web": 122_880, "code": 61_440, "math": 20_480}
    larger = composed(tmp_path, {"kind": "continued", "base": {**CONTINUED["base"], "budget_tokens": "20B"}})
    assert unique(larger.base) == {"web": 245_760, "code": 122_880, "math": 40_960}
    assert unique(natural(larger)) == unique(natural(search)), "a trial repeats as its own stage does"


def test_the_rate_of_the_second_stage_is_not_the_bases(tmp_path: Path) -> None:
    search = composed(
        tmp_path, CONTINUED, proxy={"learning_rate": 1e-4, "tokens": 204_800, "window": 64, "tokens_per_step": 1024, "beginning": CONTINUED}
    )
    assert search.base is not None
    assert (search.base.recipe["learning_rate"], search.factory.recipe["learning_rate"]) == (3e-3, 1e-4)


def test_a_bases_rate_carries_over_to_the_verification_in_mup_alone(tmp_path: Path) -> None:
    beginning = {"kind": "continued", "base": {"tokens": 819_200, "learning_rate": 2e-3}}
    for parametrization, larger in (("standard", 1.5e-3), ("mup", 2e-3)):
        search = composed(
            tmp_path, beginning, proxy={"parametrization": parametrization, "tokens": 204_800, "window": 64, "beginning": beginning}
        )
        assert [base.recipe["learning_rate"] for base in search.bases] == [2e-3, larger]


def test_a_dense_size_cannot_be_upcycled(tmp_path: Path) -> None:
    search = composed(tmp_path, CONTINUED)
    raw = search.experiment.model_dump(mode="json")
    raw["proxy"] |= {"size": "nano-dense", "beginning": {"kind": "upcycled"}}
    with pytest.raises(ConfigError, match=r"'proxy\.size' is 'nano-dense', which has no experts"):
        check_settings(parse_experiment(raw, tmp_path))


# A trial of the store as the base, and worker processes


@pytest.fixture
def job(tmp_path: Path) -> PackJob:
    """A base from scratch and two trials that begin with it, over one token file."""
    path = tmp_path / "a.tokens"
    with TokenWriter(path, 512, "tokenizer") as writer:
        writer.add(np.arange(1, 400).tolist(), text_bytes=1000)
        writer.close("content-a")
    base = made({}, 0)
    begun = [made({"beginning": {"kind": "continued"}}, seed, (base.trial_id,)) for seed in (0, 1)]
    control = DriverControl(tmp_path / "control")
    evaluations = (Evaluation("key", "valid/a", "text", path, 64),)
    return PackJob("pack", tmp_path, control.folder, (base, *begun), {"content-a": path}, evaluations)


def made(beginning: dict[str, Any], seed: int, inputs: tuple[str, ...] = ()) -> Trial:
    recipe = {**recipe_for(ProxySettings(window=64, tokens_per_step=128, tokens=1024), "nano", 512), **beginning}
    schedule, source = Schedule.constant(Mixture(("a",), (1.0,))), Source("trained", "nano", 1024)
    domains = (TrialDomain("a", "content-a", 320),)
    identity = trial_identity(schedule, source, seed, recipe, domains, "tokenizer", "1", inputs)
    return Trial(identity, schedule, source, seed, recipe, domains, "tokenizer", "1", "", inputs)


def run(job: PackJob, *trials: Trial) -> list[TrialResult]:
    return run_pack(dataclasses.replace(job, trials=trials))


@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_a_trial_whose_base_is_lost_fails_before_it_costs_anything(job: PackJob, damage: str) -> None:
    base, first, second = job.trials
    folder = TrialFolder(job.store, base.trial_id)
    if damage == "damaged":
        folder.path.mkdir(parents=True)
        folder.weights_path.write_bytes(b"no weights")
    for result in run(job, first, second):
        assert result.failure is not None
        assert (result.failure.kind, result.failure.tokens) == (FailureKind.DATA, 0)
        assert f"weights of trial {base.trial_id[:8]}, which this trial begins with, are {damage}" in result.failure.message
        assert "Run the same command again" in result.failure.message


def test_trials_begin_with_the_weights_of_the_store(job: PackJob) -> None:
    base, first, second = job.trials
    assert all(result.outcome for result in run(job, base))
    outcomes = [result.outcome for result in run(job, first, second)]
    assert all(outcome and outcome.diagnostics["beginning"]["parent"] == base.trial_id for outcome in outcomes)
    states = [load_checkpoint(TrialFolder(job.store, trial.trial_id).weights_path).part("model") for trial in job.trials]
    distance = [float((states[0]["embedding"] - state["embedding"]).norm()) for state in states]
    assert distance[0] == 0
    fresh = float((states[0]["embedding"] - torch.randn(states[0]["embedding"].shape) * 0.02).norm())
    assert 0 < distance[1] < 0.7 * fresh, "near the base, where a fresh start would be far"
    assert distance[1] != distance[2], "the seed decides the order of data"


def test_results_without_weights_are_forgotten_and_trained_anew_to_the_same(job: PackJob) -> None:
    base, *_ = job.trials
    run(job, base)
    folder = TrialFolder(job.store, base.trial_id)
    before = load_checkpoint(folder.weights_path)
    assert forget_results_without_weights(job.store, [base]) == []
    folder.weights_path.unlink()
    assert forget_results_without_weights(job.store, [base]) == [base.trial_id]
    assert folder.read_outcome() is None
    assert all(result.outcome for result in run(job, base))
    after = load_checkpoint(folder.weights_path)
    assert all(torch.equal(before.tensors[name], after.tensors[name]) for name in before.tensors)


def test_a_way_to_begin_that_is_not_known_here_is_refused() -> None:
    trial = made({"beginning": {"kind": "merged"}}, 0, ("one", "two"))
    with pytest.raises(ConfigError, match="in a way that is not known here"):
        member_of(trial, {"content-a": Path("a.tokens")})


def test_a_trial_is_found_by_its_first_digits_in_folders_and_in_the_record(job: PackJob, tmp_path: Path) -> None:
    base, first, _ = job.trials
    run(job, base)
    assert stored_trial(job.store, base.trial_id[:8]) == base
    with pytest.raises(ConfigError, match="holds no such trial"):
        stored_trial(job.store, first.trial_id[:8])
    with History.open(job.store / "record.sqlite") as history:
        history.add_search("s", "search", "")
        history.add_trials("s", [base, first], "search")
    assert stored_trial(job.store, first.trial_id) == first, "its folder is gone, and it can be trained anew"
    with pytest.raises(ConfigError, match="fits 2 trials"):
        stored_trial(job.store, "")


def test_a_base_that_is_named_has_to_fit(tmp_path: Path) -> None:
    """Size before documents are read, tokenizer once they are prepared."""
    search = composed(tmp_path, {"kind": "continued"}, verification={"size": "nano"})
    assert search.base is not None
    store = TrialFolder(tmp_path, search.base.trial_id)
    store.path.mkdir(parents=True)
    with History.open(tmp_path / "record.sqlite") as history:
        history.add_search("s", "search", "")
        history.add_trials("s", [dataclasses.replace(search.base, label="natural")], "search")
    named = {"kind": "continued", "base": {"trial": search.base.trial_id[:8]}}
    same = composed(tmp_path, named, verification={"size": "nano"})
    assert (same.search_id, natural(same).trial_id) == (search.search_id, natural(search).trial_id)
    assert same.bases == (search.base,), "verification of the same size begins with it, too"
    assert [base.label for base in same.bases] == ["base"], "whatever the search called it that trained it"
    check_base(same.experiment)
    with pytest.raises(ConfigError, match=r"`verification\.size` begin with one of 'micro'"):
        composed(tmp_path, named)
    with pytest.raises(ConfigError, match=r"`proxy\.size` begin with one of 'nano-dense'"):
        composed(tmp_path, {**named, "kind": "upcycled"}, verification={"size": "nano"})
    with pytest.raises(ConfigError, match="another tokenizer"):
        composed(tmp_path, named, tokenizer="other", verification={"size": "nano"})
