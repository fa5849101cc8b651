"""`mixopt components` as a user runs it: a base and one component per domain, nothing twice, and no loss when it is killed."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.history import History
from workers.compose import record_location

pytestmark = pytest.mark.slow

STEP = 128
CONTINUED = {
    "tokens": 16 * STEP,
    "window": 64,
    "tokens_per_step": STEP,
    "seeds": 2,
    "beginning": {"kind": "continued", "base": {"tokens": 24 * STEP}},
}


def weights(place: Any) -> dict[str, tuple[str, int, str]]:
    """Trial id -> its weights and result, of finished trials."""
    found: dict[str, tuple[str, int, str]] = place.finished()
    return found


@pytest.fixture(scope="module")
def whole(small_experiment: dict[str, Any], undisturbed: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, Any], str]:
    """Components that nobody disturbed: the place, what the command found, what it printed."""
    folder = tmp_path_factory.mktemp("components")
    place = type(undisturbed)(folder, small_experiment | {"proxy": CONTINUED}, undisturbed.nursery)
    shutil.copytree(undisturbed.output / "tokens", place.output / "tokens")
    ended = place.run("components", str(place.file), "--json", str(folder / "found.json"))
    return place, json.loads((folder / "found.json").read_text()), ended.output


def test_it_trains_a_base_and_a_component_per_domain_and_says_how_far_they_went(whole: tuple[Any, dict[str, Any], str]) -> None:
    place, found, output = whole
    assert [row["domain"] for row in found["rows"]] == ["code", "prose"]
    assert found["general"] == pytest.approx({"code": 1 / 3, "prose": 2 / 3})
    for row in found["rows"]:
        assert 0 < row["displacement"] < 1
        assert row["own"] < row["others"], "a component knows its own domain best"
        assert row["trial"][:8] in output
    assert (found["trained"], found["reused"]) == (2, 0)
    assert set(weights(place)) == {found["base"], *(row["trial"] for row in found["rows"])}
    with History.open(record_location(place.output)) as history:
        (family,) = history.components()
        assert (family.search_id, family.state) == (found["family_id"], "finished")
        assert [record.stage for record in history.trials(family.search_id)] == ["base", "components", "components"]
        assert history.searches() == [], "a family is no search"
    before = weights(place)
    again = place.run("components", str(place.file))
    assert "Components: 0 trained now, 2 already in the record." in again.output
    assert weights(place) == before


@pytest.mark.parametrize(
    "point",
    [
        "driver-after-ask:2",
        "driver-after-record:2",
        "worker-after-checkpoint:1",
        "worker-before-result:2",
        "driver-before-outcome:2",
        "driver-before-proposal:1",
    ],
)
def test_killed_it_goes_on_and_trains_nothing_finished_again(
    point: str, whole: tuple[Any, dict[str, Any], str], make_place: Callable[..., Any], tmp_path: Path
) -> None:
    place = make_place(proxy=CONTINUED)
    place.run("components", str(place.file), kill_at=point, code=-signal.SIGKILL)
    before = weights(place)
    place.run("components", str(place.file), "--json", str(tmp_path / "found.json"))
    after = weights(place)
    assert {key: after[key] for key in before} == before
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["rows"] == whole[1]["rows"], "as if nothing had happened"
    assert all([line["event"] for line in lines].count("finished") <= 1 for lines in place.work().values())


def test_a_domain_that_is_added_costs_one_component(
    whole: tuple[Any, dict[str, Any], str], small_experiment: dict[str, Any], tmp_path: Path
) -> None:
    place = whole[0]
    before = weights(place)
    wide = yaml.safe_load(place.file.read_text())
    more = tmp_path / "numbers.jsonl"
    more.write_text("".join(json.dumps({"text": " ".join(str(n * k) for n in range(50))}) + "\n" for k in range(1, 80)))
    wide["domains"] = [*wide["domains"], {"name": "numbers", "path": str(more), "tokens": "2B", "held_out": 0.2}]
    file = tmp_path / "wide.yaml"
    file.write_text(yaml.safe_dump(wide))
    # The tokenizer was trained on the other domains; it is kept, as whoever adds a domain has to keep it.
    tokenizer = next((place.output / "tokens").rglob("tokenizer*.json"))
    wide["tokenizer"] = {"path": str(tokenizer)}
    file.write_text(yaml.safe_dump(wide))
    narrow = {**yaml.safe_load(place.file.read_text()), "tokenizer": {"path": str(tokenizer)}}
    (tmp_path / "narrow.yaml").write_text(yaml.safe_dump(narrow))
    place.run("components", str(tmp_path / "narrow.yaml"))
    kept = weights(place)
    ended = place.run("components", str(file), "--json", str(tmp_path / "wide.json"))
    assert "Extended by numbers" in ended.output
    wider = json.loads((tmp_path / "wide.json").read_text())
    assert (wider["trained"], wider["reused"]) == (1, 2)
    assert set(weights(place)) - set(kept) == {wider["rows"][2]["trial"]}
    assert kept.items() >= before.items()


def averages(place: Any) -> dict[str, str]:
    """Trial id -> result, of what was averaged."""
    found = {}
    for path in (place.output / "trials").glob("*/folds.json"):
        found[path.parent.name] = (path.parent / "result.json").read_text()
    return found


@pytest.mark.parametrize("evaluator", ["merged", "ensemble"])
def test_an_ablation_says_what_each_domain_brings(
    evaluator: str, whole: tuple[Any, dict[str, Any], str], make_place: Callable[..., Any], tmp_path: Path
) -> None:
    """Code helps code: alone, left out, and by its Shapley value; and a killed ablation scores nothing twice."""
    place = make_place(proxy=CONTINUED)
    command = ("ablate", str(place.file), "--evaluator", evaluator, "--json", str(tmp_path / "found.json"))
    place.run(*command, kill_at="driver-before-outcome:5", code=-signal.SIGKILL)
    before = averages(place)
    ended = place.run(*command)
    assert {key: averages(place)[key] for key in before} == before
    found = json.loads((tmp_path / "found.json").read_text())
    ablation = found["ablation"]
    assert ablation["metrics"] == ["mean", "target/more-code"]
    assert ablation["subsets"] == 4
    code, prose = (ablation["domains"].index(name) for name in ("code", "prose"))
    for kind in ("leave_one_out", "add_one_in", "shapley"):
        values = ablation[kind]["value"]
        assert values[code][0] > values[prose][0], kind
        assert ablation[kind]["low"][code][0] <= values[code][0] <= ablation[kind]["high"][code][0]
    gain = ablation["base"][0] - ablation["everything"][0]
    assert sum(row[0] for row in ablation["shapley"]["value"]) == pytest.approx(gain), "the shares add up to what all bring"
    assert "Shapley" in ended.output
    assert f"No gate has judged {evaluator} proxies" in ended.output
    with History.open(record_location(place.output)) as history:
        (family,) = history.components()
        asked = [record for record in history.trials(family.search_id) if record.stage == "ablation"]
    assert {record.trial.source.evaluator for record in asked} == {evaluator}
    assert len(asked) == 4
    next((place.output / "trials").glob("*/folds.json")).unlink()
    mended = place.run("ablate", str(place.file), "--evaluator", evaluator)
    assert "1 scored now, 3 already there" in mended.output, "what a clean-up took is measured once more"
    again = place.run("ablate", str(place.file), "--evaluator", evaluator)
    assert "0 scored now, 4 already there" in again.output
    assert "mixopt" not in place.run("ablate", str(place.file), "--evaluator", "merging", code=2).output


def test_without_a_base_in_the_file_it_says_what_to_write(make_place: Callable[..., Any]) -> None:
    place = make_place()
    ended = place.run("components", str(place.file), code=2)
    assert "from scratch" in ended.errors
    assert "kind: continued" in ended.errors
