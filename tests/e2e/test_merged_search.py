"""A search with merged proxies as a user runs it: marked everywhere by their evaluator, verified like any other, and no loss when it is killed."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixopt.history import History
from workers.compose import record_location

pytestmark = pytest.mark.slow

STEP = 128
CHANGES = {
    "proxy": {
        "tokens": 48 * STEP,
        "window": 64,
        "tokens_per_step": STEP,
        "seeds": 2,
        "beginning": {"kind": "continued", "base": {"tokens": 64 * STEP}},
    },
    "components": {"general": 0.25, "tokens": 48 * STEP, "gate": 7, "remedies": ["shorter horizon"]},
    "search": {"strategy": "demix", "trials": 15, "options": {"rounds": [6, 4, 2]}, "evaluators": ["merged"]},
}


def done(place: Any) -> dict[str, str]:
    """Trial id -> its result, of everything that was trained or averaged."""
    return {path.parent.name: path.read_text() for path in (place.output / "trials").glob("*/result.json")}


def gate(place: Any) -> dict[str, Any]:
    with History.open(record_location(place.output)) as history:
        body = history.document(place.search_id(history), "gate")
    assert body is not None
    return body


@pytest.fixture(scope="module")
def whole(small_experiment: dict[str, Any], undisturbed: Any, empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A search that nobody disturbed, mirrored in MLflow."""
    changes = {**CHANGES, "tracking": {"enabled": True}}
    place = type(undisturbed)(tmp_path_factory.mktemp("merged"), small_experiment | changes, undisturbed.nursery)
    shutil.copytree(undisturbed.output / "tokens", place.output / "tokens")
    shutil.copy(empty_database, place.output / "mlflow.db")
    place.search()
    return place


def test_averages_are_in_record_mlflow_report_and_export_marked_by_their_evaluator(whole: Any, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    records = whole.records()
    counts = Counter((record.stage, record.trial.source.evaluator) for record in records)
    assert counts["components", "trained"] >= 2
    assert counts["search", "trained"] == 7 + 2, "the mixtures of the gate, and two repeats"
    assert counts["search", "merged"] >= 12
    assert {record.trial.source.evaluator for record in records if record.stage == "verification"} == {"trained"}

    client = MlflowClient(tracking_uri=f"sqlite:///{whole.output / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mixopt").experiment_id])
    merged = [run for run in runs if run.data.tags.get("mixopt.evaluator") == "merged"]
    assert len(merged) == counts["search", "merged"]
    assert all(0 < run.data.metrics["merge/displacement"] < 1 for run in merged)
    assert all(0 < run.data.metrics["merge/agreement"] <= 1 for run in merged)
    assert all(run.data.metrics["cost/tokens"] == 0 for run in merged)
    (parent,) = [run for run in runs if run.data.tags["mixopt.kind"] == "search"]
    assert "proxies are" in parent.data.tags["mixopt.gate"]

    folder = next((whole.output / "searches").iterdir())
    report = (folder / "report.html").read_text()
    assert '<h2 id="merging">' in report
    assert "Scored without training" in report
    assert "merged proxies" in (folder / "answer.md").read_text()

    whole.run("export", str(whole.output), "--to", "yaml", "--out", str(tmp_path / "export"))
    exported = "".join(path.read_text() for path in (tmp_path / "export").rglob("*") if path.is_file())
    assert '"general": 0.25' in exported
    assert "the general share of components is in it" in exported
    assert "merged" in whole.run("show", str(whole.output)).output


def test_the_verdict_of_the_gate_is_kept_and_the_answer_follows_it(whole: Any) -> None:
    body = gate(whole)
    assert len(body["attempts"]) in (1, 2)
    with History.open(record_location(whole.output)) as history:
        proposal = history.document(whole.search_id(history), "proposal")
    assert proposal is not None
    evaluator = "merged" if body["trusted"] else "trained"
    assert proposal["evidence"]["source"].startswith(evaluator)
    before = done(whole)
    again = whole.search()
    assert "is finished; nothing is left to train" in again.errors
    assert done(whole) == before


@pytest.mark.parametrize(
    "point",
    [
        "driver-before-outcome:3",  # the base, and components or trials of the gate
        "driver-before-outcome:12",
        "worker-before-result:14",
        "driver-before-proposal:3",
        "driver-after-record:6",
        "driver-before-outcome:24",
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_answer(point: str, whole: Any, make_place: Callable[..., Any]) -> None:
    place = make_place(**CHANGES)
    place.search(kill_at=point, code=-signal.SIGKILL)
    before = done(place)
    place.search()
    assert place.answer() == whole.answer()
    after = done(place)
    assert {key: after[key] for key in before} == before, "trained or averaged again"
    assert gate(place)["trusted"] == gate(whole)["trusted"]
    assert all([line["event"] for line in lines].count("finished") <= 1 for lines in place.work().values())
