"""The plan of a tiny experiment before it is prepared, once it is prepared, and after it has run: what was counted must be what happened."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mixopt.config import Experiment
from mixopt.corpus.inventory import take_inventory
from mixopt.cost import Plan, Shape
from mixopt.errors import DataError, RunError
from mixopt.experiment_file import parse_experiment
from mixopt.history import History
from mixopt.progress import Silent
from proxy_models.config import proxy_config
from workers import machine
from workers.checks import check_experiment
from workers.compose import compose, record_location
from workers.planning.estimate import make_plan
from workers.planning.expected_corpus import corpus_of
from workers.run import run
from workers.tokens.prepare import prepare

WORDS = {
    "code": "def return if else for while import class self none true x y z print",
    "prose": "the river ran past an old house where nobody had lived for years and grass grew",
    "tables": "one two three four five six seven eight nine ten sum mean total row column",
}


def write_documents(folder: Path) -> None:
    for name, words in WORDS.items():
        chosen = random.Random(name)
        lines = [json.dumps({"text": " ".join(chosen.choices(words.split(), k=60)) + ".\n"}) for _ in range(150)]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "target.jsonl").write_text((folder / "code.jsonl").read_text().replace("def", "let"))


def experiment(folder: Path, **changes: Any) -> Experiment:
    raw: dict[str, Any] = {
        "name": "tiny",
        "output": "run",
        "budget_tokens": "10B",
        "domains": [
            {"name": "code", "path": "code.jsonl", "tokens": "1B", "held_out": 0.2},
            {"name": "prose", "path": "prose.jsonl", "tokens": "6B", "held_out": 0.2},
            {"name": "tables", "path": "tables.jsonl", "tokens": "4B", "held_out": 0.2},
        ],
        "targets": [{"name": "more-code", "path": "target.jsonl"}],
        "tokenizer": {"vocab_size": 512},
        # Not whole steps: trials train on fewer tokens than their source says.
        "proxy": {"tokens": 2100, "window": 64, "tokens_per_step": 128, "seeds": 2},
        "search": {"trials": 8},
        "verification": {"size": "nano", "tokens": 4200, "seeds": 2, "evaluation_tokens": 512},
        "ray": {"address": "in-process"},
        "tracking": {"enabled": False},
    }
    return parse_experiment(raw | changes, folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    write_documents(folder)
    return folder


@pytest.fixture(scope="module")
def plans(folder: Path) -> dict[str, Plan]:
    """Before `prepare`, after it, and after the search; none may probe."""
    wanted = experiment(folder)
    check_experiment(wanted)
    made = {"new": make_plan(wanted, may_probe=False)}
    assert not record_location(wanted.output_dir).exists(), "a plan writes no record"
    prepare(wanted)
    made["prepared"] = make_plan(wanted, may_probe=False)
    run(wanted)
    made["done"] = make_plan(wanted, may_probe=False)
    return made


def test_flops_and_trials_are_what_the_trials_report(plans: dict[str, Plan], folder: Path) -> None:
    wanted = experiment(folder)
    with History.open(record_location(wanted.output_dir)) as history:
        (search,) = history.searches()
        for stage, name in (("search", "search"), ("verification", "verification")):
            outcomes = [r.outcome for r in history.trials(search.search_id, name) if r.outcome is not None]  # type: ignore[arg-type]
            (done,) = [part for part in plans["done"].stages if part.name == stage]
            assert done.trials == done.reused == len(outcomes)
            assert not done.at_most
            assert done.flops == sum(outcome.flops for outcome in outcomes)
            assert done.tokens == sum(outcome.tokens for outcome in outcomes)
            assert (done.flops_left, done.seconds, done.packs) == (0, 0, 0)
    assert plans["prepared"].stages[0].flops == plans["prepared"].stages[0].flops_left == plans["done"].stages[0].flops
    # So little text gives fewer than 512 entries of vocabulary; before it is tokenized, the plan goes by the experiment file.
    assert plans["new"].stages[0].flops == 8 * 2048 * proxy_config("nano", 512).training_flops_per_token(64)
    for earlier in ("new", "prepared"):
        before, after = plans[earlier], plans["done"]
        assert before.stages[0].trials == after.stages[0].trials == 8
        # Of the verification, before: every arm that there can be.
        assert before.stages[1].at_most
        assert before.stages[1].trials >= after.stages[1].trials


@pytest.mark.parametrize("strategy", ["bayes", "scaling"])
def test_several_sources_are_planned_up_to_what_the_trials_of_the_last_cost(folder: Path, strategy: str) -> None:
    search = {"trials": 8, "strategy": strategy, "surrogate": "multi_source_gp", "sources": [{"size": "nano", "tokens": 1024}]}
    plan = make_plan(experiment(folder, search=search, output="several"), may_probe=False)
    stage = plan.stages[0]
    assert stage.source == "trained/nano/2100"
    # A trial of 1,024 tokens has eight steps, one of 2,100 has sixteen; what is left does not pay for one more.
    assert 7 * 2048 <= stage.tokens <= 8 * 2100
    assert stage.trials > 8
    assert "what 8 trials of trained/nano/2100 cost" in stage.what


def test_a_learner_that_has_no_trial_to_learn_with_is_told(folder: Path) -> None:
    said = {}
    for trials in (8, 24):
        wanted = experiment(folder, search={"trials": trials, "strategy": "bayes"}, output="learning")
        said[trials] = [line for line in make_plan(wanted, may_probe=False).warnings if "first design of the strategy bayes" in line]
    assert len(said[8]) == 1
    assert said[8][0].startswith("All 8 trials")
    assert said[24] == []


def test_the_search_is_named_once_it_is_known(plans: dict[str, Plan], folder: Path) -> None:
    wanted = experiment(folder)
    assert plans["new"].search_id is None
    assert plans["prepared"].search_id == plans["done"].search_id == compose(wanted, prepare(wanted)).search_id
    assert not plans["new"].preparation.done
    assert plans["prepared"].preparation.done
    assert any("estimated from bytes" in note for note in plans["new"].notes)
    assert not any("estimated" in note for note in plans["prepared"].notes)


def test_disk_is_right_to_a_third(plans: dict[str, Plan], folder: Path) -> None:
    """Of such a small run the fixed parts are most: figures and databases."""
    out = folder / "run"

    def there(*patterns: str) -> float:
        return sum(path.stat().st_size for pattern in patterns for path in out.glob(pattern) if path.is_file())

    disk = plans["done"].disk
    assert disk.trials_bytes == pytest.approx(there("trials/**/*"), rel=0.05)
    assert disk.record_bytes == pytest.approx(there("record.sqlite*"), rel=0.5)
    assert disk.tokens_bytes == there("tokens/*.tokens")
    assert disk.mlflow_bytes == 0
    assert disk.lasting_bytes == pytest.approx(there("**/*"), rel=1 / 3)
    # Before anything is there all of it is to come, and at the end next to nothing.
    assert plans["new"].disk.needed_bytes >= 0.9 * plans["new"].disk.lasting_bytes
    assert disk.needed_bytes < 0.5 * plans["new"].disk.needed_bytes


def test_speed_comes_from_the_record_once_there_is_one(plans: dict[str, Plan], folder: Path) -> None:
    assert {stage.speed.origin for stage in plans["prepared"].stages} == {"assumed"}
    done = plans["done"].stages[0].speed
    assert done.origin == "record"
    trials = sum(stage.trials for stage in plans["done"].stages)
    assert f"from {trials} nano trials" in done.sentence
    # The measured speed is that of training: what measuring takes by the plan's own account is taken out of the seconds, and comes on top again.
    with History.open(record_location(folder / "run")) as history:
        (search,) = history.searches()
        outcomes = {name: [r.outcome for r in history.trials(search.search_id, name) if r.outcome] for name in ("search", "verification")}  # type: ignore[arg-type]
    seconds = {stage.name: sum(o.seconds for o in outcomes[stage.name]) / (1 + stage.measuring_share) for stage in plans["done"].stages}
    assert done.flops_per_second == pytest.approx(plans["done"].flops / sum(seconds.values()))
    more = make_plan(experiment(folder, search={"trials": 12}), may_probe=False).stages[0]
    assert (more.trials, more.reused) == (12, 8)
    assert more.seconds == pytest.approx(4 * more.seconds_per_trial)
    assert more.seconds_per_trial == pytest.approx(more.flops / 12 / done.flops_per_second * (1 + more.measuring_share))


def test_noise_is_known_once_it_was_measured(plans: dict[str, Plan], folder: Path) -> None:
    assert plans["prepared"].noise.origin == "none"
    noise = plans["done"].noise
    assert noise.origin == "record"
    assert [target.metric for target in noise.targets] == ["target/more-code"]
    assert "8 trials of this search" in noise.sentence
    # Another search over the same targets, with other bounds say, knows it too.
    domains = [domain.model_dump() | {"max_epochs": 8.0} for domain in experiment(folder).domains]
    other = make_plan(experiment(folder, domains=domains), may_probe=False)
    assert other.search_id != plans["done"].search_id
    assert other.noise.origin == "record"
    assert str(plans["done"].search_id)[:8] in other.noise.sentence
    assert other.stages[0].reused == 8, "no mixture of the design changed, so nothing would be trained"


def test_epochs_show_where_a_proxy_cannot_follow(plans: dict[str, Plan]) -> None:
    domains = {domain.name: domain for domain in plans["prepared"].domains}
    # 2,100 tokens: 210, 1,260 and 840 unique ones would match the target run, 4,096 is the floor.
    for domain in domains.values():
        assert domain.note == "floored"
        assert domain.unique_tokens == 4096
        assert domain.natural_epochs == pytest.approx(10 / 11)
    assert domains["prose"].proxy_natural_epochs == pytest.approx(6 / 11 * 2100 / 4096)
    assert domains["code"].unimax_epochs == pytest.approx(10 / 3)
    assert domains["code"].largest_weight == pytest.approx(0.4)
    assert any("code, prose, tables less often" in warning for warning in plans["prepared"].warnings)


def test_a_capped_domain_is_marked(folder: Path) -> None:
    long = {"tokens": 60_000, "window": 64, "tokens_per_step": 128, "seeds": 2}
    off = {"enabled": False}
    plan = make_plan(experiment(folder, proxy=long, verification=off), may_probe=False)
    capped = [domain.name for domain in plan.domains if domain.note == "capped"]
    assert capped == ["prose", "tables"]
    for domain in plan.domains:
        if domain.note == "capped":
            assert domain.prepared_tokens is not None
            assert domain.unique_tokens <= domain.prepared_tokens
            assert domain.proxy_natural_epochs > domain.natural_epochs
    assert [stage.name for stage in plan.stages] == ["search"]


def test_json_holds_everything_and_survives_a_trip_through_text(plans: dict[str, Plan]) -> None:
    for plan in plans.values():
        body = plan.to_json()
        assert json.loads(json.dumps(body, allow_nan=False)) == body
        assert body["totals"]["flops"] == plan.flops
        assert body["stages"][0]["speed"]["origin"] == plan.stages[0].speed.origin


def test_a_missing_file_is_found_before_anything_is_spent(folder: Path) -> None:
    domains = [domain.model_dump() for domain in experiment(folder).domains]
    domains[0]["path"] = [str(folder / "cod.jsonl")]
    with pytest.raises(DataError, match=r"cod\.jsonl"):
        make_plan(experiment(folder, domains=domains, output="other"), may_probe=False)


def test_remote_text_is_said_to_be_unknown(tmp_path: Path) -> None:
    write_documents(tmp_path)
    domains = [domain.model_dump() for domain in experiment(tmp_path).domains]
    domains[0]["path"] = ["s3://bucket/code.jsonl.gz"]
    plan = make_plan(experiment(tmp_path, domains=domains), may_probe=False)
    assert plan.preparation.seconds is None
    assert plan.disk.tokens_bytes is None
    assert [domain.prepared_tokens is None for domain in plan.domains] == [True, False, False]
    assert any("domain 'code'" in note for note in plan.notes)
    assert plan.stages[1].measuring_share < 10, "an unknown size is not taken for an endless one"


def test_a_limited_source_is_as_large_as_its_limit_and_a_file_address_is_a_file(tmp_path: Path) -> None:
    write_documents(tmp_path)
    raw = experiment(tmp_path)
    domains = [domain.model_dump() for domain in raw.domains]
    domains[0]["max_documents"] = 30
    domains[1]["path"] = [f"file://{tmp_path}/prose.jsonl"]
    targets = [raw.targets[0].model_dump() | {"max_documents": 10}]
    wanted = experiment(tmp_path, domains=domains, targets=targets)
    plan = make_plan(wanted, may_probe=False)
    manifest = prepare(wanted)
    assert plan.preparation.text_bytes is not None
    assert not any("is not known before" in note for note in plan.notes)
    read = sum(files.train.bytes + files.valid.bytes for files in manifest.domains.values()) + manifest.targets["more-code"].file.bytes
    assert plan.preparation.text_bytes == pytest.approx(read, rel=0.1)  # the rows of whole files are a little more than their text
    expected = corpus_of(experiment(tmp_path, domains=domains, targets=targets, output="other")).manifest
    for name in ("code", "prose"):
        assert expected.domains[name].train.bytes == pytest.approx(manifest.domains[name].train.bytes, rel=0.15)
    assert expected.targets["more-code"].file.bytes == pytest.approx(manifest.targets["more-code"].file.bytes, rel=0.01)


def test_what_changed_since_it_was_prepared_is_not_taken_for_what_will_be_trained(tmp_path: Path) -> None:
    write_documents(tmp_path)
    prepare(experiment(tmp_path))
    assert make_plan(experiment(tmp_path), may_probe=False).search_id is not None
    (tmp_path / "code.jsonl").write_text("\n".join((tmp_path / "code.jsonl").read_text().splitlines()[:100]) + "\n")
    plan = make_plan(experiment(tmp_path), may_probe=False)
    assert plan.search_id is None
    assert not plan.preparation.done
    assert any(note.startswith("Changed since it was prepared: domain 'code'; ") for note in plan.notes)
    prepare(experiment(tmp_path))
    assert make_plan(experiment(tmp_path), may_probe=False).search_id is not None
    plan = make_plan(experiment(tmp_path, tokenizer={"vocab_size": 600}), may_probe=False)
    assert plan.search_id is None
    assert any(note.startswith("Changed since it was prepared: the tokenizer; ") for note in plan.notes)


def test_bytes_become_the_same_tokens_in_a_plan_as_in_an_inventory(tmp_path: Path) -> None:
    write_documents(tmp_path)
    domains = [domain.model_dump() for domain in experiment(tmp_path).domains]
    domains[1] |= {"tokens": None, "bytes": "28GB"}
    wanted = experiment(tmp_path, domains=domains)
    planned = make_plan(wanted, may_probe=False).domains[1].target_tokens
    listed = take_inventory(wanted, Silent()).domains[1].target_tokens
    assert planned == pytest.approx(listed, rel=1e-3)
    assert planned == pytest.approx(1e10, rel=1e-3)


def test_a_tokenizer_of_the_hub_is_not_trained_and_its_size_not_known(tmp_path: Path) -> None:
    write_documents(tmp_path)
    own, hub = (make_plan(experiment(tmp_path, tokenizer=chosen), may_probe=False) for chosen in ({}, {"hub": "team/tokenizer"}))
    assert hub.preparation.seconds is not None
    assert own.preparation.seconds is not None
    assert hub.preparation.seconds < own.preparation.seconds
    assert any("team/tokenizer has is not known" in note for note in hub.notes)
    assert not any("entries" in note for note in own.notes)


def test_slots_are_those_of_a_cluster_that_answers_else_of_this_machine(
    folder: Path, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = experiment(folder, ray={"address": "10.0.0.1:6379"})
    found = {"CPU": 64.0, "GPU": 8.0, "memory": 1e12, "nodes": 4}
    monkeypatch.setattr("workers.ray_runner.probe", lambda address: found)
    plan = make_plan(asked)  # may probe, but not for GPUs that are elsewhere
    assert (plan.machine.slots, plan.machine.device, plan.machine.nodes, plan.machine.memory_bytes) == (8, "cuda", 4, 1e12)
    assert plan.stages[0].pack_size == 8, "all that are left, one pack"

    def unreachable(address: str) -> dict[str, float]:
        raise RunError("No Ray cluster answers at 10.0.0.1:6379.", "Check it.")

    monkeypatch.setattr("workers.ray_runner.probe", unreachable)
    monkeypatch.setattr(machine, "cores", lambda: 3)
    plan = make_plan(asked, may_probe=False)
    assert (plan.machine.slots, plan.machine.device) == (3, "cpu")
    assert any("No Ray cluster answers" in warning for warning in plan.warnings)


def test_only_shapes_that_the_record_lacks_are_probed(folder: Path, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    probed: list[Shape] = []

    def probe(shapes: dict[Shape, int], slots: int, *_: Any) -> dict[Shape, tuple[float, float]]:
        probed.extend(shapes)
        return dict.fromkeys(shapes, (2000000000.0, 3.0))

    monkeypatch.setattr("workers.planning.probe.probe_speed", probe)
    plan = make_plan(experiment(folder, verification={"size": "micro", "tokens": 4200, "seeds": 2}))
    assert [shape.size for shape in probed] == ["micro"]
    assert [stage.speed.origin for stage in plan.stages] == ["record", "probe"]
    assert plan.stages[1].seconds_per_trial == pytest.approx(
        plan.stages[1].flops / plan.stages[1].trials / 2e9 * (1 + plan.stages[1].measuring_share)
    )
    make_plan(experiment(folder))
    assert len(probed) == 1
