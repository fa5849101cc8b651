"""The mirror in a real MLflow database: complete, without doubles, the same however it came about."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mixopt.errors import DataError, RunError
from mixopt.history import History
from mixopt.proposal import Proposal
from mixopt.tracking.mirrored import KEY_TAG, NOTE_TAG, PARENT_TAG, search_key
from mixopt.tracking.mlflow_mirror import MlflowMirror
from mixopt.tracking.mlflow_server import MlflowServer

pytestmark = pytest.mark.slow  # the first use of an MLflow database runs its migrations, 6 to 11 seconds

SEARCH_ID = "5ea7c4" + "0" * 14
Make = Callable[..., Any]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def finished(recorded: Make) -> Any:
    """Small, since each mirrored run costs a tenth of a second: five trials, one of them diverged, and a verification of two seeds."""
    return recorded().finish(5, seeds=2)


@pytest.fixture(scope="module")
def mirrored(uri: str, finished: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """Experiment and local folder of a finished search, mirrored at once; for tests that only look."""
    folder = tmp_path_factory.mktemp("folder")
    assert MlflowMirror(finished.history, SEARCH_ID, uri, "shared", folder).sync()
    return "shared", folder


@pytest.fixture
def experiment(request: pytest.FixtureRequest) -> str:
    """An experiment of its own for each test, in the one database."""
    return str(request.node.name)


def runs_of(uri: str, experiment: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def contents(uri: str, experiment: str) -> dict[str, Any]:
    """What a reviewer sees, by key; ids and times, which must differ between mirrors, left out."""
    runs = runs_of(uri, experiment)
    keys = {run.info.run_id: run.data.tags[KEY_TAG] for run in runs}
    assert len(set(keys.values())) == len(runs), Counter(keys.values())
    return {
        run.data.tags[KEY_TAG]: {
            "name": run.info.run_name,
            "status": run.info.status,
            "params": run.data.params,
            "metrics": run.data.metrics,
            "tags": run.data.tags | ({PARENT_TAG: keys[run.data.tags[PARENT_TAG]]} if PARENT_TAG in run.data.tags else {}),
        }
        for run in runs
    }


def artifacts(uri: str, experiment: str) -> Path:
    (parent,) = [run for run in runs_of(uri, experiment) if run.data.tags["mixopt.kind"] == "search"]
    return Path(parent.info.artifact_uri.removeprefix("file://"))


def test_a_finished_search_is_one_parent_with_a_child_per_trial(uri: str, mirrored: tuple[str, Path], finished: Any) -> None:
    runs = contents(uri, mirrored[0])
    parent = runs.pop(search_key(SEARCH_ID))
    assert len(runs) == len(finished.history.trials(SEARCH_ID))
    assert {run["tags"][PARENT_TAG] for run in runs.values()} == {search_key(SEARCH_ID)}
    assert parent["status"] == "FINISHED"
    assert parent["tags"][NOTE_TAG].startswith("# demo\n\n**Train on ")
    weights = {name.removeprefix("weight/"): value for name, value in parent["metrics"].items() if name.startswith("weight/")}
    assert weights == pytest.approx(Proposal.from_json(finished.history.document(SEARCH_ID, "proposal")).mixture.as_dict())
    diverged, _ = [run for run in runs.values() if run["status"] == "FAILED"]  # one in the search, one in verification
    assert diverged["tags"]["mixopt.failure"] == "diverged: loss is not finite at step 12"
    assert diverged["tags"]["mixopt.state"] == "abandoned"
    first = next(run for run in runs.values() if run["name"] == "001 natural nano s0")
    natural = finished.domains.natural().as_dict()
    assert {name: float(first["params"][f"weight.{name}"]) for name in natural} == pytest.approx(natural, rel=1e-5)
    assert first["params"]["source"] == "trained/nano/1000000"
    assert first["metrics"]["bits_per_byte/target/functions"] > 1


@pytest.mark.parametrize("metric", ["loss_nats", "bits_per_byte"])
def test_losses_are_curves_over_tokens(uri: str, mirrored: tuple[str, Path], finished: Any, metric: str) -> None:
    from mlflow import MlflowClient

    run = next(run for run in runs_of(uri, mirrored[0]) if run.info.run_name == "001 natural nano s0")
    history = MlflowClient(uri).get_metric_history(run.info.run_id, f"{metric}/target/functions")
    outcome = finished.history.trials(SEARCH_ID)[0].outcome
    measured = [(m.tokens, getattr(m, metric)) for m in outcome.measurements if m.evaluation_key == "key-t"]
    assert len(measured) > 1
    assert [(point.step, point.value) for point in history] == measured


def test_the_parent_carries_answer_figures_and_tables(uri: str, mirrored: tuple[str, Path], finished: Any) -> None:
    folder = artifacts(uri, mirrored[0])
    assert folder.parent.parent.name == "mlflow-artifacts"
    assert folder.parent.parent.parent == Path(uri.removeprefix("sqlite:///")).parent
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    figures = {f"figures/{name}.png" for name in ("mixture", "epochs", "predicted", "objective", "verification")}
    assert files == figures | {"answer.md", "experiment.yaml", "swarm.parquet", "trials.json"}
    swarm = finished.history.swarm(SEARCH_ID, finished.domains.names, finished.metrics)
    assert pl.read_parquet(folder / "swarm.parquet").equals(swarm.table)
    table = json.loads((folder / "trials.json").read_text())
    assert [row[0] for row in table["data"]] == list(swarm.trial_ids)
    assert all(len(row) == len(table["columns"]) for row in table["data"])
    local = mirrored[1]
    assert {str(path.relative_to(local)) for path in local.rglob("*") if path.is_file()} == figures | {"answer.md"}


def test_a_mirror_made_step_by_step_equals_one_made_at_once(uri: str, experiment: str, recorded: Make) -> None:
    search = recorded().begin()
    mirror = MlflowMirror(search.history, SEARCH_ID, uri, experiment)
    mirror.sync()
    trials = search.ask(6)
    search.history.mark_running([trials[0].trial_id])
    mirror.sync()
    assert [run["status"] for key, run in contents(uri, experiment).items() if key != search_key(SEARCH_ID)] == ["RUNNING"]
    search.complete(trials[:4])
    mirror.sync()
    search.diverge(trials[4])
    search.complete(trials[5:])
    proposal = search.propose([trial for trial in trials if trial is not trials[4]])
    MlflowMirror(search.history, SEARCH_ID, uri, experiment).sync()  # another process goes on
    search.verify(proposal, seeds=2)
    search.history.set_search_state(SEARCH_ID, "finished")
    assert mirror.sync()
    MlflowMirror(search.history, SEARCH_ID, uri, f"{experiment} at once").sync()
    assert contents(uri, experiment) == contents(uri, f"{experiment} at once")


def test_syncing_again_writes_nothing(uri: str, mirrored: tuple[str, Path], finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"wrote {args}")

    for method in ("create", "write", "upload"):
        monkeypatch.setattr(MlflowServer, method, refuse)
    assert MlflowMirror(finished.history, SEARCH_ID, uri, mirrored[0]).sync()


@pytest.mark.parametrize("after", [1, 4])
def test_a_mirror_killed_after_making_a_run_is_completed_without_doubles(
    uri: str, experiment: str, finished: Any, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    remember, calls = History.set_mirror_run, []

    def die(history: History, *args: Any) -> None:
        calls.append(args)
        if len(calls) == after:
            raise KeyboardInterrupt
        remember(history, *args)

    monkeypatch.setattr(History, "set_mirror_run", die)
    with pytest.raises(KeyboardInterrupt):
        MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    monkeypatch.setattr(History, "set_mirror_run", remember)
    assert len(runs_of(uri, experiment)) == after
    MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    assert len(contents(uri, experiment)) == 1 + len(finished.history.trials(SEARCH_ID))


def test_runs_are_found_again_when_the_record_forgot_them(
    uri: str, experiment: str, finished: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    before, ids = contents(uri, experiment), {run.info.run_id for run in runs_of(uri, experiment)}
    monkeypatch.setattr(History, "mirror_run", lambda *_: None)
    MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    assert contents(uri, experiment) == before
    assert {run.info.run_id for run in runs_of(uri, experiment)} == ids
    run = next(run for run in runs_of(uri, experiment) if run.info.run_name == "001 natural nano s0")
    assert len(MlflowClient(uri).get_metric_history(run.info.run_id, "loss_nats/valid/web")) == 3  # written twice, there once


def test_doubles_from_a_repeated_request_are_removed(uri: str, experiment: str, finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    create = MlflowServer.create

    def create_twice(server: MlflowServer, run: Any) -> str:
        create(server, run)
        return create(server, run)

    monkeypatch.setattr(MlflowServer, "create", create_twice)
    MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    monkeypatch.setattr(MlflowServer, "create", create)
    assert len(runs_of(uri, experiment)) > 1 + len(finished.history.trials(SEARCH_ID))
    MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    assert len(contents(uri, experiment)) == 1 + len(finished.history.trials(SEARCH_ID))


def test_two_processes_may_make_the_experiment_at_once(uri: str, experiment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    first = MlflowServer(uri, experiment)
    first.runs(SEARCH_ID)
    found, asked = MlflowClient.get_experiment_by_name, []

    def late(client: Any, name: str) -> Any:
        asked.append(name)
        return None if len(asked) == 1 else found(client, name)  # as if the other process made it right after the first look

    monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
    second = MlflowServer(uri, experiment)
    assert second.runs(SEARCH_ID) == {}
    assert len(asked) == 2


def test_a_deleted_experiment_is_named(uri: str, experiment: str, finished: Any) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    client.delete_experiment(client.create_experiment(experiment))
    with pytest.raises(RunError, match="was deleted"):
        MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()


def test_a_sync_that_is_stopped_is_not_complete_and_the_next_one_goes_on(uri: str, experiment: str, finished: Any) -> None:
    mirror = MlflowMirror(finished.history, SEARCH_ID, uri, experiment)
    answers = iter([False, False, True])
    assert not mirror.sync(lambda: next(answers))
    assert len(runs_of(uri, experiment)) == 3
    assert mirror.sync()
    assert len(contents(uri, experiment)) == 1 + len(finished.history.trials(SEARCH_ID))


def test_a_search_that_is_not_in_the_record_is_refused(uri: str, experiment: str, finished: Any) -> None:
    with pytest.raises(DataError, match="is not in the record"):
        MlflowMirror(finished.history, "0" * 20, uri, experiment).sync()
