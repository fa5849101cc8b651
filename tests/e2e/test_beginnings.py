"""Searches whose trials begin with a base: killed anywhere they go on to the same answer, a lost base is trained anew, and people are told."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixopt.history import History
from mixopt.trial import TrialState
from proxy_models.checkpoint import load_checkpoint
from workers.compose import record_location
from workers.trial_folder import TrialFolder

pytestmark = pytest.mark.slow

# As in conftest.py: tokens per step.
STEP = 128


def proxy(beginning: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": 16 * STEP, "window": 64, "tokens_per_step": STEP, "seeds": 2, "beginning": beginning}


CONTINUED = proxy({"kind": "continued", "base": {"tokens": 32 * STEP}})


@pytest.fixture(scope="module")
def begun(small_experiment: dict[str, Any], undisturbed: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The search that nobody disturbs; the reference for all."""
    place = type(undisturbed)(tmp_path_factory.mktemp("begun"), small_experiment | {"proxy": CONTINUED}, undisturbed.nursery)
    shutil.copytree(undisturbed.output / "tokens", place.output / "tokens")
    place.search()
    return place


def starts(lines: list[dict[str, Any]]) -> list[int]:
    """Tokens after the first step, each time that a trial was taken up."""
    return [line["tokens"] for line in lines if line["event"] == "training"]


def by_stage(place: Any) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for record in place.records():
        found.setdefault(record.stage, []).append(record.trial.trial_id)
    return found


def test_the_base_is_trained_first_and_every_trial_begins_with_it(begun: Any) -> None:
    stages = by_stage(begun)
    assert list(stages) == ["base", "search", "verification"]
    base, larger = stages["base"]
    records = {record.trial.trial_id: record for record in begun.records()}
    assert {records[trial_id].trial.inputs for trial_id in stages["search"]} == {(base,)}
    assert {records[trial_id].trial.inputs for trial_id in stages["verification"]} == {(larger,)}
    assert [records[trial_id].trial.source.tokens for trial_id in (base, larger)] == [32 * STEP, 48 * STEP]
    assert {record.state for record in records.values()} == {TrialState.COMPLETED}
    begins = {trial_id: next(line["time"] for line in lines if line["event"] == "training") for trial_id, lines in begun.work().items()}
    assert min(begins, key=lambda trial_id: begins[trial_id]) == base
    # What training goes on from is known: the first loss of a trial is near the last one of its base, not near log 512.
    first = {t: records[t].outcome.diagnostics["training_loss"][0][1] for t in (base, *stages["search"])}
    assert all(first[trial_id] < first[base] - 0.5 for trial_id in stages["search"])


POINTS = {
    "with half of the base's weights written": "worker-during-checkpoint:1",
    "with the base of the verification trained": "driver-before-outcome:8",
}


@pytest.mark.parametrize("when", POINTS)
def test_killed(when: str, make_place: Callable[..., Any], begun: Any) -> None:
    place = make_place(proxy=CONTINUED)
    place.search(kill_at=POINTS[when], code=-signal.SIGKILL)
    finished = place.finished()
    place.search()
    assert place.answer() == begun.answer()
    assert {trial_id: place.finished()[trial_id] for trial_id in finished} == finished, "trained again"
    assert set(place.work()) == set(begun.work())
    (base, _) = by_stage(place)["base"]
    again = 2 if "half" in when else 1  # there was no checkpoint yet
    assert starts(place.work()[base]) == [STEP] * again


def test_a_base_whose_weights_are_lost_is_trained_anew_for_what_is_left(make_place: Callable[..., Any], begun: Any) -> None:
    place = make_place(proxy=CONTINUED)
    place.search(kill_at="driver-before-outcome:4", code=-signal.SIGKILL)
    finished = place.finished()
    (base,) = by_stage(place)["base"]
    weights = TrialFolder(place.output, base).weights_path
    before = {name: tensor.clone() for name, tensor in load_checkpoint(weights).tensors.items()}  # not mapped from the file
    weights.write_bytes(weights.read_bytes()[:-64])
    ended = place.search()
    assert f"Base: trial {base[:8]}" in ended.errors
    assert place.answer() == begun.answer()
    assert starts(place.work()[base]) == [STEP, STEP]
    now = place.finished()
    after = load_checkpoint(weights).tensors
    assert all(torch.equal(after[name], before[name]) for name in before), "to the same weights"
    assert {t: now[t] for t in finished if t != base} == {t: finished[t] for t in finished if t != base}, "the others stay as they are"


def test_another_search_over_the_same_output_shares_the_base_and_may_name_it(make_place: Callable[..., Any], begun: Any) -> None:
    place = make_place(proxy=CONTINUED)
    shutil.copytree(begun.output, place.output, dirs_exist_ok=True)
    base, larger = by_stage(begun)["base"]
    work = place.work()
    other = place.file.with_name("other.yaml")

    raw: dict[str, Any] = yaml.safe_load(place.file.read_text())
    raw |= {"name": "other", "verification": {"enabled": False}, "objective": {"kind": "mean"}}

    def write(beginning: dict[str, Any]) -> str:
        raw["proxy"]["beginning"] = beginning
        other.write_text(yaml.safe_dump(raw))
        return str(other)

    named = {"kind": "continued", "base": {"trial": base[:10]}}
    assert "Trials: 0 trained now" in place.run("search", write(named)).output, "a base under its id is the same base"
    assert {trial_id: starts(lines) for trial_id, lines in place.work().items()} == {t: starts(lines) for t, lines in work.items()}
    with History.open(record_location(place.output)) as history:
        assert sorted(record.name for record in history.searches()) == ["killed", "other"]

    unknown = {"kind": "continued", "base": {"trial": "0123456789"}}
    assert "holds no such trial" in place.run("search", write(unknown), code=2).errors
    wrong = {"kind": "upcycled", "base": {"trial": larger[:10]}}
    assert "is of size 'nano', and trials of `proxy.size` begin with one of 'nano-dense'" in place.run("plan", write(wrong), code=2).errors


def test_people_are_told_what_trials_begin_with(begun: Any, tmp_path: Path) -> None:
    base, larger = by_stage(begun)["base"]
    said = f"trial {base[:8]} (nano, {32 * STEP:,} tokens of the natural mixture, seed 0)"
    shown = " ".join(begun.run("show", str(begun.output)).output.split())
    assert f"continued from {base[:8]}" in shown
    assert said in shown
    plan = tmp_path / "plan.json"
    printed = begun.run("plan", str(begun.file), "--no-probe", "--json", str(plan)).output
    assert f"Base: what all trials begin with (continued), {said}" in printed
    stages = json.loads(plan.read_text())["stages"]
    assert [(stage["name"], stage["trials"], stage["reused"]) for stage in stages if "base" in stage["name"]] == [
        ("base", 1, 1),
        ("verification base", 1, 1),
    ]
    (folder,) = (begun.output / "searches").iterdir()
    assert said in (folder / "answer.md").read_text()
    assert said in (folder / "report.html").read_text()
    begun.run("export", str(begun.output), "--to", "json", "--out", str(tmp_path / "out"))
    (written,) = [path for path in (tmp_path / "out").iterdir() if path.suffix == ".json"]
    beginning = json.loads(written.read_text())["provenance"]["beginning"]
    assert (beginning["kind"], beginning["bases"]["search"]["trial"], beginning["bases"]["verification"]["trial"]) == (
        "continued",
        base,
        larger,
    )
    assert "beginnings: scratch, continued, upcycled" in begun.run("list").output


def test_the_mirror_shows_the_base_and_what_began_with_it(make_place: Callable[..., Any], begun: Any, empty_database: Path) -> None:
    from mlflow import MlflowClient

    place = make_place(proxy=CONTINUED)
    shutil.copytree(begun.output, place.output, dirs_exist_ok=True)
    shutil.copy(empty_database, place.output / "mlflow.db")
    place.run("mirror", str(place.output), "--uri", f"sqlite:///{place.output / 'mlflow.db'}")
    client = MlflowClient(tracking_uri=f"sqlite:///{place.output / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mixopt").experiment_id])
    names = sorted(run.info.run_name for run in runs)
    assert [name for name in names if name.startswith("b")] == ["b001 base nano s0", "b002 base nano s0"]
    base, _ = by_stage(begun)["base"]
    tags = {run.info.run_name: run.data.tags.get("mixopt.beginning") for run in runs}
    assert tags["001 natural nano s0"] == f"continued from {base[:8]}"
    assert tags["b001 base nano s0"] is None
    means = {run.info.run_name: run.data.metrics.get("mean_bits_per_byte") for run in runs}
    assert all(mean is not None for name, mean in means.items() if name.startswith("b0")), "the loss that trials begin with"


def test_trials_made_of_a_dense_base(make_place: Callable[..., Any]) -> None:
    """As the snippet in docs/beginnings.md, at the smallest size there is."""
    place = make_place(proxy=proxy({"kind": "upcycled", "reinitialized": 0.5}), verification={"enabled": False})
    place.search()
    records = place.records()
    (base,) = [record for record in records if record.stage == "base"]
    assert base.trial.source.size == "nano-dense"
    assert base.outcome.diagnostics["expert_load"] == {"least": [], "largest": []}
    searched = [record for record in records if record.stage == "search"]
    assert {record.trial.source.size for record in searched} == {"nano"}
    assert {record.outcome.diagnostics["beginning"]["parent"] for record in searched} == {base.trial.trial_id}
    assert all(len(record.outcome.diagnostics["expert_load"]["largest"]) == 2 for record in searched)
