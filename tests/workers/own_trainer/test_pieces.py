"""What makes two trials of a user's trainer the same, and two searches; and what is looked at before they run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

from mixopt.config import Experiment
from mixopt.experiment_file import parse_experiment
from mixopt.mixture import Mixture, Schedule
from workers.checks import check_experiment
from workers.compose import Search, compose
from workers.doctor.experiment import inputs, settings
from workers.doctor.machine import memory
from workers.jobs.submit import job_key
from workers.own_trainer.pieces import own_manifest
from workers.own_trainer.plan import own_plan

RAW: dict[str, Any] = {
    "name": "own",
    "output": "run",
    "budget_tokens": "10B",
    "domains": [{"name": "a", "tokens": "20B"}, {"name": "b", "tokens": "5B", "revision": "may"}],
    "trainer": {
        "kind": "command",
        "name": "toy",
        "tokens": 1000,
        "metrics": ["loss"],
        "command": ["{python}", "train.py"],
        "time_limit": "1h",
    },
    "ray": {"cpus": 4},
}


def experiment(folder: Path, *changes: tuple[str, Any]) -> Experiment:
    """The file with values at dotted places; None takes one out."""
    raw = copy.deepcopy(RAW)
    for place, value in changes:
        *path, last = place.split(".")
        inner: Any = raw
        for part in path:
            inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    return parse_experiment(raw, folder)


def composed(folder: Path, *changes: tuple[str, Any]) -> Search:
    found = experiment(folder, *changes)
    return compose(found, own_manifest(found))


def trial_id(search: Search) -> str:
    return search.factory.make(Schedule.constant(Mixture.of({"a": 0.5, "b": 0.5})), 1, "design").trial_id


@pytest.mark.parametrize(
    ("changes", "same_trial", "same_search"),
    [
        ([("trainer.version", "2")], False, False),
        ([("trainer.name", "other")], False, False),
        ([("trainer.tokens", 2000)], False, False),
        ([("domains.1.revision", "june")], False, False),
        ([("domains.1.revision", None)], False, False),
        ([("domains.0.name", "c")], None, False),
        ([("domains.1.tokens", "6B")], True, False),
        ([("budget_tokens", "11B")], True, False),
        ([("trainer.metrics", ["loss", "other"])], True, False),
        ([("trainer.metrics", [{"name": "loss", "maximize": True}])], True, False),
        ([("trainer.command", ["{python}", "other.py"])], True, True),
        ([("trainer.folder", "elsewhere")], True, True),
        ([("trainer.time_limit", None), ("trainer.cpus", 3), ("trainer.gpus", 1), ("trainer.unit", "nats")], True, True),
        ([("trainer.kind", "elsewhere"), ("trainer.command", None), ("trainer.time_limit", None)], True, True),
        ([("domains.0.group", "web"), ("search.trials", 96), ("output", "other")], True, True),
        ([("domains.0.path", "data/a")], True, True),
    ],
)
def test_what_trials_and_searches_depend_on(
    tmp_path: Path, changes: list[tuple[str, Any]], same_trial: bool | None, same_search: bool
) -> None:
    first, second = composed(tmp_path), composed(tmp_path, *changes)
    if same_trial is not None:
        assert (trial_id(first) == trial_id(second)) is same_trial
    assert (first.search_id == second.search_id) is same_search


def test_the_resolved_file_is_the_same_experiment(tmp_path: Path) -> None:
    import yaml

    found = experiment(tmp_path)
    assert found.trainer is not None
    assert found.trainer.folder == str(tmp_path)
    assert not found.verification.enabled
    again = parse_experiment(yaml.safe_load(found.to_yaml()), Path("/"))
    assert again == found
    assert compose(again, own_manifest(again)).search_id == composed(tmp_path).search_id
    assert job_key(again) == job_key(found)


def test_verification_is_of_the_same_trainer_unless_it_says_more(tmp_path: Path) -> None:
    asked = composed(tmp_path, ("verification.tokens", 5000))
    assert asked.experiment.verification.enabled
    assert asked.verification_factory.source.key == "command/toy/5000"
    larger = composed(tmp_path, ("verification", {"size": "toy-large", "tokens": 1000}))
    assert larger.verification_factory.source.key == "command/toy-large/1000"


def test_plan_and_doctor_say_what_they_can(tmp_path: Path) -> None:
    found = experiment(tmp_path, ("verification", {"size": "toy-large", "tokens": 5000, "seeds": 2}))
    check_experiment(found)
    plan = own_plan(found)
    assert (plan.trials, plan.slots, plan.verification) == (48, 4, 10)
    assert plan.sentences()[-1] == "Time: at most 12 h, 4 trials at once, each within its time limit."
    assert plan.to_json()["domains"][1][2] == pytest.approx(10 / 25), "epochs at the natural mixture"
    assert [finding.status for finding in (*settings(found), *inputs(found), *memory(found))] == ["ok"] * 3
    missing = settings(experiment(tmp_path, ("trainer.command", ["./none.sh"])))
    assert "which is no program here" in missing[0].found
