"""The mirror in a real MLflow database: complete, without doubles, the same however it came about."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from mixopt.errors import DataError, RunError
from mixopt.history import History
from mixopt.proposal import Proposal
from mixopt.tracking.mirrored import KEY_TAG, NOTE_TAG, PARENT_TAG, _outcome_points, search_key
from mixopt.tracking.mlflow_mirror import MlflowMirror
from mixopt.tracking.mlflow_server import MlflowServer
from mixopt.trial import Outcome

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


def inputs(uri: str, run: Any) -> dict[str, tuple[str, str]]:
    """Name of a dataset of a run -> its context and digest."""
    from mlflow import MlflowClient

    found = MlflowClient(uri).get_run(run.info.run_id).inputs.dataset_inputs
    told = [(item.dataset.name, item.tags[0].value, item.dataset.digest) for item in found]
    assert len({name for name, _, _ in told}) == len(told)
    return {name: (context, digest) for name, context, digest in told}


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
    proposed = Proposal.from_json(finished.history.document(SEARCH_ID, "proposal")).mixture.as_dict()
    assert weights == pytest.approx(proposed, abs=1e-6)
    diverged, _ = [run for run in runs.values() if run["status"] == "FAILED"]  # one in the search, one in verification
    assert diverged["tags"]["mixopt.failure"] == "diverged: loss is not finite at step 12"
    assert diverged["tags"]["mixopt.state"] == "abandoned"
    first = next(run for run in runs.values() if run["name"] == "001 natural nano s0")
    natural = finished.domains.natural().as_dict()
    assert {name: first["metrics"][f"weight/{name}"] for name in natural} == pytest.approx(natural, abs=1e-6)
    assert first["params"] == {"size": "nano", "tokens": "1000000", "seed": "0"}
    assert first["metrics"]["bits_per_byte/target/functions"] > 1


def test_every_finished_run_has_the_numbers_to_sort_by(uri: str, mirrored: tuple[str, Path], finished: Any) -> None:
    """Of both stages and of the search itself, under one key."""
    runs = [run for run in runs_of(uri, mirrored[0]) if run.info.status == "FINISHED"]
    assert {run.data.tags["mixopt.stage"] for run in runs} == {"search", "verification"}
    values = {run.info.run_name: (run.data.metrics["objective"], run.data.metrics["mean_bits_per_byte"]) for run in runs}
    natural = [value for name, (value, _) in values.items() if name.startswith("v") and "natural" in name]
    assert len(natural) == 2
    assert sum(natural) == pytest.approx(0, abs=1e-4), "the objective is relative to the natural mixture at the same source"
    parent = values.pop(next(name for name in values if name.startswith("demo")))
    searched = [pair for name, pair in values.items() if not name.startswith("v")]
    assert parent == (min(value for value, _ in searched), min(mean for _, mean in searched))
    (search,) = (run for run in runs if run.data.tags["mixopt.kind"] == "search")
    best = finished.history.document(SEARCH_ID, "proposal")["best_measured"]["objective"]
    assert search.data.metrics["objective/best_measured"] == pytest.approx(best), "as the answer says it, whatever single runs are better"
    outcome = finished.history.trials(SEARCH_ID)[0].outcome
    ends = {m.evaluation_key: m.bits_per_byte for m in outcome.measurements if m.tokens == outcome.tokens}
    assert values["001 natural nano s0"][1] == pytest.approx((3 * ends["key-t"] + ends["key-q"]) / 4, rel=1e-5), (
        "weighted as the objective is"
    )


def test_names_sort_as_asked_and_verification_comes_last(uri: str, mirrored: tuple[str, Path], finished: Any) -> None:
    names = [run.info.run_name for run in runs_of(uri, mirrored[0]) if run.data.tags["mixopt.kind"] == "trial"]
    by_key = {run["name"]: key for key, run in contents(uri, mirrored[0]).items()}
    asked = [f"{search_key(SEARCH_ID)}/{r.stage}/{r.trial.trial_id}" for r in finished.history.trials(SEARCH_ID)]
    assert [by_key[name] for name in sorted(names)] == asked
    assert {name for name in names if name.startswith("v")} >= {"v001 proposal micro s0", "v002 proposal micro s1"}
    assert not any("verify:" in name or "_" in name for name in names)


def test_tags_tell_strategy_corpus_code_and_cost(uri: str, mirrored: tuple[str, Path]) -> None:
    runs = contents(uri, mirrored[0])
    shared = ("mixopt.strategy", "mixopt.objective", "mixopt.corpus", "mixopt.version", "mixopt.engine", "mixopt.search")
    told = {tuple(run["tags"][tag] for tag in shared) for run in runs.values()}
    (one,) = told
    assert one[:2] == ("regression", "noise_scaled over targets")
    assert one[3:] == ("0.1.0+0123456789ab", "1", "demo")
    parent = runs.pop(search_key(SEARCH_ID))
    done = [run for run in runs.values() if run["status"] == "FINISHED"]
    assert {run["tags"]["mixopt.cost"] for run in done} == {"6e+12 FLOPs, 22 s"}
    assert parent["metrics"]["cost/flops"] == sum(run["metrics"]["cost/flops"] for run in done)
    assert parent["tags"]["mixopt.cost"].startswith(f"{parent['metrics']['cost/flops']:.2g} FLOPs, ")


def test_datasets_are_inputs_with_their_content(uri: str, mirrored: tuple[str, Path], finished: Any) -> None:
    runs = {run.info.run_name: run for run in runs_of(uri, mirrored[0])}
    hashes = {d.name: d.content_hash[:16] for d in finished.domains.domains}
    targets = {f"target/{name}": f"{i:064x}"[:16] for i, name in enumerate(("functions", "questions"), start=200)}
    natural = inputs(uri, runs["001 natural nano s0"])
    assert natural == {name: ("training", h) for name, h in hashes.items()} | {t: ("evaluation", h) for t, h in targets.items()}
    parent = inputs(uri, next(run for name, run in runs.items() if name.startswith("demo")))
    assert parent.items() >= natural.items()
    assert parent.keys() - natural.keys() == {f"valid/{name}" for name in hashes}
    for record in finished.history.trials(SEARCH_ID):
        used = {name for name, weight in record.trial.schedule.average().as_dict().items() if weight > 0}
        run = next(r for r in runs.values() if r.data.tags.get("mixopt.trial_id") == record.trial.trial_id)
        assert {name for name, (context, _) in inputs(uri, run).items() if context == "training"} == used


def test_the_page_that_reviewers_are_sent_to_exists(uri: str, mirrored: tuple[str, Path], finished: Any) -> None:
    from mlflow import MlflowClient

    experiment = MlflowClient(uri).get_experiment_by_name(mirrored[0])
    view = json.loads(experiment.tags["mlflow.sharedViewState.mixopt-5ea7c400"])
    found = MlflowClient(uri).search_runs([experiment.experiment_id], view["searchFilter"], order_by=[f"{view['orderByKey']} ASC"])
    assert len(found) == 1 + len(finished.history.trials(SEARCH_ID))
    searches = json.loads(experiment.tags["mlflow.sharedViewState.mixopt-searches"])
    (search,) = MlflowClient(uri).search_runs([experiment.experiment_id], searches["searchFilter"])
    has = {f"{kind}.`{name}`" for kind in ("metrics", "params", "tags") for name in getattr(search.data, kind)}
    assert set(searches["selectedColumns"]) <= has
    assert set(view["selectedColumns"]) <= has, "the search stands among its trials, with the same columns"
    address = MlflowMirror(finished.history, SEARCH_ID, uri, mirrored[0]).review_address("http://127.0.0.1:5000/")
    assert address.startswith(f"http://127.0.0.1:5000/#/experiments/{experiment.experiment_id}/runs?")
    assert address.endswith("viewStateShareKey=mixopt-5ea7c400")


def test_a_proposal_that_comes_later_changes_one_number_of_a_trial(
    uri: str, experiment: str, recorded: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each part costs a request, and every trial of a search is written again when the proposal comes."""
    search = recorded().begin()
    trials = search.ask(5)
    search.complete(trials)
    mirror = MlflowMirror(search.history, SEARCH_ID, uri, experiment)
    mirror.sync()
    written: list[tuple[str, set[str]]] = []
    write = MlflowServer.write

    def listen(server: MlflowServer, run_id: str, run: Any, parts: Any, made: bool) -> None:
        written.append((run.name, set(parts)))
        write(server, run_id, run, parts, made)

    monkeypatch.setattr(MlflowServer, "write", listen)
    search.propose(trials)
    mirror.sync()
    children = [parts for name, parts in written if not name.startswith("demo")]
    assert children == [{"summaries"}] * 5


def test_a_trial_that_takes_another_label_takes_another_name(uri: str, experiment: str, recorded: Make) -> None:
    """As when a later proposal is what an earlier verification already trained."""
    search = recorded().begin()
    trials = search.ask(4)
    search.complete(trials)
    MlflowMirror(search.history, SEARCH_ID, uri, experiment).sync()
    search.history.add_trials(SEARCH_ID, [replace(trials[3], label="verify:proposal+unimax")], "search")
    assert MlflowMirror(search.history, SEARCH_ID, uri, experiment).sync()
    names = {run["name"] for run in contents(uri, experiment).values()}
    assert f"004 proposal = unimax nano s{trials[3].seed}" in names
    assert len(names) == 5


def test_two_searches_compare_because_their_keys_agree(uri: str, experiment: str, recorded: Make) -> None:
    """Searches over other domains and targets, in one experiment: one table in which what means the same has one column without holes."""
    import mlflow

    small, large = recorded(4).begin(), recorded(6).begin()
    for search, search_id in ((small, "a" * 20), (large, "b" * 20)):
        history = search.history
        context = history.document(SEARCH_ID, "context")
        if search is large:  # other targets, too
            context["metrics"] = {key: {"target/functions": "target/proofs"}.get(name, name) for key, name in context["metrics"].items()}
            context["objective"]["weights"] = {"target/proofs": 1.0, "target/questions": 1.0}
        history.add_search(search_id, f"search-{search_id[0]}", history.search(SEARCH_ID).experiment_yaml)
        history.save_document(search_id, "context", context)
        trials = search.ask(4)
        history.add_trials(search_id, trials, "search")
        search.complete(trials)
        proposal = search.propose(trials)
        history.save_document(search_id, "proposal", proposal.to_json())
        history.set_search_state(search_id, "finished")
        MlflowMirror(history, search_id, uri, experiment).sync()
    before = mlflow.get_tracking_uri()
    try:
        mlflow.set_tracking_uri(uri)
        table = mlflow.search_runs(experiment_names=[experiment])
    finally:
        mlflow.set_tracking_uri(before)
    trials = table[table["tags.mixopt.kind"] == "trial"]
    assert trials["tags.mixopt.search"].value_counts().to_dict() == {"search-a": 4, "search-b": 4}
    common = [f"metrics.{name}" for name in ("objective", "mean_bits_per_byte", "cost/flops", "cost/seconds", "cost/tokens")]
    common += ["metrics.weight/web"]
    common += [f"params.{name}" for name in ("size", "tokens", "seed")]
    common += [f"tags.mixopt.{name}" for name in ("strategy", "corpus", "version", "engine", "cost", "stage", "state")]
    losses = [f"metrics.{kind}/{name}" for kind in ("bits_per_byte", "loss_nats") for name in ("target/questions", "valid/web")]
    assert not trials[common + losses].isna().any().any()
    searches = table[table["tags.mixopt.kind"] == "search"]
    own = ["strategy", "surrogate", "objective", "pull", "budget_tokens", "domains", "learning_rate", "window"]
    own = [f"params.{name}" for name in own] + ["metrics.trials/completed", "metrics.objective/predicted"]
    assert searches[common + own].columns[searches[common + own].isna().any()].tolist() == []
    assert set(searches["params.domains"]) == {"4", "6"}
    assert searches["tags.mixopt.corpus"].nunique() == 2


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
    figures = {name for name in files if name.startswith("figures/") and name.endswith(".png")}
    assert figures >= {f"figures/{name}.png" for name in ("mixture", "epochs", "predicted", "objective", "verification")}
    assert files == figures | {"answer.md", "report.html", "experiment.yaml", "swarm.parquet", "trials.json"}
    swarm = finished.history.swarm(SEARCH_ID, finished.domains.names, finished.metrics)
    assert pl.read_parquet(folder / "swarm.parquet").equals(swarm.table)
    table = json.loads((folder / "trials.json").read_text())
    assert all(len(row) == len(table["columns"]) for row in table["data"])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["trial"] for row in rows if row["stage"] == "search"] == list(swarm.trial_ids)
    assert len({row["trial"] for row in rows}) == len(rows) > len(swarm)
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


@pytest.mark.parametrize(("noting", "made"), [(1, 1), (4, 3)])  # the second thing noted is the page of the search
def test_a_mirror_killed_after_making_a_run_is_completed_without_doubles(
    uri: str, experiment: str, finished: Any, monkeypatch: pytest.MonkeyPatch, noting: int, made: int
) -> None:
    remember, calls = History.set_mirror_run, []

    def die(history: History, *args: Any) -> None:
        calls.append(args)
        if len(calls) == noting:
            raise KeyboardInterrupt
        remember(history, *args)

    monkeypatch.setattr(History, "set_mirror_run", die)
    with pytest.raises(KeyboardInterrupt):
        MlflowMirror(finished.history, SEARCH_ID, uri, experiment).sync()
    monkeypatch.setattr(History, "set_mirror_run", remember)
    assert len(runs_of(uri, experiment)) == made
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


def test_how_many_tokens_were_scored_is_told_where_some_were_not() -> None:
    def told(**diagnostics: Any) -> list[float]:
        points = _outcome_points(Outcome("t", {}, (), 1000, 1e9, 2.0, diagnostics), {})
        return [value for name, value, tokens in points if name == "scored_tokens" and tokens == 1000]

    assert told() == []
    assert told(scored_tokens={"text": 1000}) == []
    assert told(scored_tokens={"pairs": 250, "text": 400}) == [650.0]
