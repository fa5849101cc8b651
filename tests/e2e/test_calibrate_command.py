"""`mixopt calibrate` as a user runs it: tables and a line to write, the same trials as the search, and no loss when it is killed."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History
from workers.compose import record_location

pytestmark = pytest.mark.slow

OPTIONS = ("--quick", "--seeds", "2")


def calibrate(place: Any, *options: str, **how: Any) -> Any:
    return place.run("calibrate", str(place.file), *OPTIONS, *options, **how)


def rewrite(place: Any, **proxy: Any) -> None:
    """The experiment file with other settings under `proxy`."""
    raw = yaml.safe_load(place.file.read_text())
    place.file.write_text(yaml.safe_dump({**raw, "proxy": {**raw["proxy"], **proxy}}))


def trainings(place: Any) -> Counter[str]:
    """Trial id -> how often it was brought to its end."""
    return Counter({trial_id: [line["event"] for line in lines].count("finished") for trial_id, lines in place.work().items()})


def document(place: Any) -> dict[str, Any]:
    """The stored calibration, without what depends on the clock."""
    with History.open(record_location(place.output)) as history:
        (record,) = history.calibrations()
        assert record.state == "finished"
        body = history.document(record.search_id, "calibration")
    assert body is not None
    return {**body, "resources": [entry["source"] for entry in body["resources"]]}


@dataclass(frozen=True)
class Undisturbed:
    """A calibration that nobody disturbed.

    Attributes:
        ended: what the command printed; `found`: its --json file.
        document: what it stored.
    """

    place: Any
    ended: Any
    found: Path
    document: dict[str, Any]


@pytest.fixture(scope="module")
def undisturbed_calibration(small_experiment: dict[str, Any], undisturbed: Any, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("calibrated")
    place = type(undisturbed)(folder, small_experiment, undisturbed.nursery)
    shutil.copytree(undisturbed.output / "tokens", place.output / "tokens")
    ended = calibrate(place, "--json", str(folder / "found.json"))
    return Undisturbed(place, ended, folder / "found.json", document(place))


def test_it_says_what_it_found_and_the_search_trains_none_of_it_again(undisturbed_calibration: Undisturbed, tmp_path: Path) -> None:
    place, ended, found = undisturbed_calibration.place, undisturbed_calibration.ended, undisturbed_calibration.found
    for title in ("Learning rates of nano, 2,048 tokens", "Seed noise of nano", "What tokens bring", "Speed and memory"):
        assert title in ended.output
    assert "The smallest difference that can be told from noise" in ended.output
    (body,) = json.loads(found.read_text())["calibrations"]
    assert [row["rate"] for row in body["rates"]] == [3e-3, 3e-5, 3e-4, 9e-3]
    assert all(row["ranking"] is not None for row in body["rates"])
    assert body["references"] == ["nano, 8,192 tokens"]
    assert {row["metric"] for row in body["noise"]} == {"target/more-code", "valid/code", "valid/prose"}
    assert json.loads(found.read_text())["trained"] == len(place.work())
    before = trainings(place)
    assert set(before.values()) == {1}

    again = calibrate(place)
    assert "Trials: 0 trained now" in again.output
    assert trainings(place) == before

    plan = tmp_path / "plan.json"
    place.run("plan", str(place.file), "--no-probe", "--json", str(plan))
    planned = json.loads(plan.read_text())
    assert "trials of its calibration" in planned["noise"]["sentence"]
    assert planned["calibration"].startswith("by ")
    assert planned["stages"][0]["speed"]["origin"] == "record"
    assert planned["stages"][0]["reused"] >= 4

    searched = place.search()
    assert "Calibrated by " in searched.errors
    after = trainings(place)
    assert set(after.values()) == {1}, "a trial was trained twice"
    assert set(before) <= set(after)
    asked = {record.trial.trial_id for record in place.records() if record.stage == "search"}
    assert len(asked & set(before)) >= 4
    with History.open(record_location(place.output)) as history:
        search_id = place.search_id(history)
        proposal = history.document(search_id, "proposal")
        copied = history.document(search_id, "calibration")
    assert proposal is not None
    assert proposal["evidence"]["trials"] > len(asked), "the calibration's repeats are in the noise of the search"
    assert proposal["evidence"]["calibration_trials"] == proposal["evidence"]["trials"] - len(asked)
    assert copied is not None
    assert copied["origin"] == "calibrate"
    assert place.run("show", str(place.output)).output.count("killed") >= 1
    report = next(place.output.glob("searches/*/report.html")).read_text()
    assert '<h2 id="calibration">' in report


def test_killed_it_goes_on_and_finds_the_same(make_place: Callable[..., Any], undisturbed_calibration: Any) -> None:
    place = make_place()
    calibrate(place, kill_at="driver-before-outcome:7", code=-signal.SIGKILL)
    finished = place.finished()
    assert finished
    calibrate(place)
    assert document(place) == undisturbed_calibration.document
    assert {key: value for key, value in place.finished().items() if key in finished} == finished
    with sqlite3.connect(record_location(place.output)) as connection:
        counted = Counter(row[0] for row in connection.execute("select subject from events where kind = 'completed'"))
    connection.close()
    assert set(counted.values()) == {1}


def test_a_search_calibrates_itself_from_its_own_trials(undisturbed: Any) -> None:
    found = document(undisturbed)
    assert found["origin"] == "search"
    assert [row["rate"] for row in found["rates"]] == [3e-3]
    assert found["degrees_of_freedom"] >= 2
    searched = [record for record in undisturbed.records() if record.stage == "search"]
    assert found["trials"] == len(searched), "nothing was trained for it"


def test_what_cannot_be_is_said_before_anything_is_trained(make_place: Callable[..., Any], tmp_path: Path) -> None:
    place = make_place()
    dry = calibrate(place, "--dry-run")
    assert "trials, 0 of them in the record, about" in dry.output
    short = calibrate(place, "--minutes", "0.001", code=2)
    assert "--minutes 0.001 is too short" in short.errors
    assert "cannot be written" in calibrate(place, "--json", str(tmp_path), code=2).errors
    rewrite(place, learning_rate="calibrated")
    refused = place.run("search", str(place.file), code=2)
    assert "no calibration of this experiment has compared rates" in refused.errors
    assert "mixopt calibrate" in refused.errors
    rewrite(place, learning_rate="fast")
    assert "'fast' is no rate" in calibrate(place, code=2).errors
    assert place.work() == {}
    least = place.run("calibrate", str(tmp_path / "nowhere.yaml"), code=2)
    assert "nowhere.yaml" in least.errors
