"""Submissions without a cluster: keys, attempts, races, what is uploaded, what is refused; against a cluster made of a dictionary."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from mixopt.config import Experiment
from mixopt.errors import ConfigError, DataError, InfeasibleError, RunError
from mixopt.experiment_file import load_experiment, parse_experiment
from mixopt.progress import Silent
from workers.jobs.api import Job
from workers.jobs.check import ANSWER, look, versions
from workers.jobs.submit import FILE, SEARCH_ENTRYPOINT, check_here, job_key, passed_on, submit

RAW: dict[str, Any] = {
    "name": "one",
    "output": "run",
    "budget_tokens": "10B",
    "domains": [
        {"name": "code", "path": "code.jsonl", "tokens": "1B", "group": "a"},
        {"name": "prose", "path": "prose.jsonl", "tokens": "60B"},
    ],
    "targets": [{"name": "more", "path": "more.jsonl"}],
}


def experiment(**changes: Any) -> Experiment:
    return parse_experiment(RAW | changes, Path("/data"))


class Cluster:
    """Stands for `JobsApi`: jobs in a dictionary, checks that answer `answer`."""

    address = "http://cluster:8265"

    def __init__(self, answer: Mapping[str, Any] | None = None, log: str = "") -> None:
        self.known: dict[str, Job] = {}
        self.sent: dict[str, tuple[str, Mapping[str, str], Mapping[str, str]]] = {}
        self.log = (
            log or "Runtime env is setting up.\n" + ANSWER + json.dumps(answer or {"versions": versions(), "python": "", "nodes": 2}) + "\n"
        )
        self.taken_by_others = 0

    def attempts(self, key: str) -> list[Job]:
        return sorted((job for job in self.known.values() if job.metadata and job.key == key), key=lambda job: job.attempt)

    def submit(
        self, job_id: str, entrypoint: str, files: Mapping[str, str], environment: Mapping[str, str], metadata: Mapping[str, str]
    ) -> bool:
        if self.taken_by_others and metadata:
            self.taken_by_others -= 1
            self.known[job_id] = Job(job_id, "running", time.time(), None, "", None, metadata)
        if job_id in self.known:
            return False
        self.sent[job_id] = (entrypoint, files, environment)
        self.known[job_id] = Job(job_id, "running" if metadata else "succeeded", time.time(), None, "", None, metadata)
        return True

    def job(self, job_id: str) -> Job:
        return self.known[job_id]

    def wait(self, job_id: str, seconds: float) -> Job:
        return self.known[job_id]

    def logs(self, job_id: str) -> str:
        return self.log

    def forget(self, job_id: str) -> None:
        del self.known[job_id]

    def end(self, job_id: str, state: str) -> None:
        job = self.known[job_id]
        self.known[job_id] = Job(job_id, state, job.started, time.time(), "", None, job.metadata)


def test_what_makes_another_search_makes_another_key() -> None:
    same = [
        experiment(name="two"),
        experiment(search={"trials": 96, "batch": 4, "max_attempts": 5, "stop_early": True}),
        experiment(verification={"enabled": False}),
        experiment(tracking={"uri": "http://mlflow:5000"}),
        experiment(ray={"address": "auto"}),
        experiment(domains=list(reversed(RAW["domains"]))),
        experiment(domains=[RAW["domains"][0] | {"group": "b"}, RAW["domains"][1]]),
        experiment(targets=[{"name": "renamed", "path": "more.jsonl"}]),
        experiment(objective={"over": "targets"}),
        experiment(levels=["source"]),
        experiment(groups={"a": {}}),
    ]
    ruled = {"groups": {"a": {"bounds": [0, 0.5]}}}
    other = [
        experiment(output="elsewhere"),
        experiment(budget_tokens="20B"),
        experiment(search={"seed": 1}),
        experiment(search={"surrogate": "lightgbm"}),
        experiment(proxy={"tokens": "2M"}),
        experiment(proxy={"parametrization": "mup"}),
        experiment(proxy={"balancing": "both"}),
        experiment(proxy={"balancing": "both", "auxiliary_loss": 0.1}),
        experiment(proxy={"learning_rate": "calibrated"}),
        experiment(proxy={"beginning": {"kind": "continued"}}),
        experiment(proxy={"beginning": {"kind": "upcycled"}}),
        experiment(objective={"kind": "mean"}),
        experiment(objective={"over": "all"}),
        experiment(tokenizer={"vocab_size": 4096}),
        experiment(targets=[]),
        experiment(targets=[{"name": "more", "path": "more.jsonl", "weight": 2}]),
        experiment(domains=[RAW["domains"][0] | {"path": "other.jsonl"}, RAW["domains"][1]]),
        experiment(domains=[RAW["domains"][0] | {"prompt_column": "p", "completion_column": "c"}, RAW["domains"][1]]),
        experiment(domains=[RAW["domains"][0] | {"bounds": [0, 0.5]}, RAW["domains"][1]]),
        experiment(**ruled),
        experiment(**ruled, domains=[RAW["domains"][0], RAW["domains"][1] | {"group": "a"}]),  # the rule is about both then
    ]
    assert {job_key(one) for one in same} == {job_key(experiment())}
    keys = [job_key(one) for one in (experiment(), *other)]
    assert len(set(keys)) == len(keys)


def test_a_file_finds_the_job_that_an_earlier_version_submitted() -> None:
    """Pinned, as part 3 made it with this engine. Fields that came later stay out at their defaults."""
    assert job_key(experiment()) == "5653a3ce7dbe"
    spelled = {"parametrization": "standard", "balancing": "bias", "beginning": {"kind": "scratch"}}
    assert job_key(experiment(proxy=spelled)) == job_key(experiment())


def test_a_running_job_is_attached_to_and_an_ended_one_goes_on_as_the_next_attempt() -> None:
    cluster: Any = Cluster()
    key = job_key(experiment())
    first = submit(experiment(), cluster, Silent(), {"HF_TOKEN": "secret"})
    assert (first.job.job_id, first.attached) == (f"{key}-1", False)
    again = submit(experiment(), cluster, Silent(), {})
    assert (again.job.job_id, again.attached, again.outdated) == (f"{key}-1", True, False)
    more = submit(experiment(search={"trials": 96}), cluster, Silent(), {})
    assert (more.job.job_id, more.attached, more.outdated) == (f"{key}-1", True, True)
    for number, state in enumerate(("stopped", "failed", "succeeded"), start=2):
        cluster.end(f"{key}-{number - 1}", state)
        assert submit(experiment(), cluster, Silent(), {}).job.job_id == f"{key}-{number}"
    assert submit(experiment(output="elsewhere"), cluster, Silent(), {}).job.attempt == 1
    assert not [job_id for job_id in cluster.known if "check" in job_id], "checks are cleared away"


def test_only_the_experiment_is_uploaded_and_only_named_variables_are_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "never to be seen")
    cluster: Any = Cluster()
    job = submit(experiment(ray={"cpus": 3, "pack_size": 2}), cluster, Silent(), {"HF_TOKEN": "secret"}).job
    entrypoint, files, environment = cluster.sent[job.job_id]
    assert entrypoint == SEARCH_ENTRYPOINT
    assert environment == {"HF_TOKEN": "secret"}
    assert list(files) == [FILE]
    assert "never to be seen" not in files[FILE]
    (tmp_path / FILE).write_text(files[FILE])
    read = load_experiment(tmp_path / FILE)
    assert read.domains == experiment().domains, "paths are those of this machine"
    assert (read.ray.address, read.ray.cpus, read.ray.pack_size) == ("auto", None, 2)


def test_of_two_submissions_at_once_one_wins_and_the_other_attaches() -> None:
    cluster: Any = Cluster()
    cluster.taken_by_others = 1
    lost = submit(experiment(), cluster, Silent(), {})
    assert lost.attached
    assert len([job for job in cluster.known if "check" not in job]) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (
            {"versions": {"mixopt": "0.0.1", "engine": "0"}, "python": "/p", "nodes": 1},
            RunError,
            "runs mixopt 0.0.1 (engine 0), this machine mixopt",
        ),
        (
            {"error": {"message": "/data/code.jsonl is not there.", "hint": "Mend it.", "exit_code": 3}},
            DataError,
            "cluster: /data/code.jsonl",
        ),
        ({"error": {"message": "'output' is /data/run.", "hint": "", "exit_code": 2}}, ConfigError, "Seen from the cluster: 'output'"),
    ],
)
def test_what_the_cluster_finds_wrong_is_said_and_nothing_is_started(answer: dict[str, Any], kind: type[Exception], words: str) -> None:
    cluster: Any = Cluster({"versions": versions(), "python": "", **answer})
    with pytest.raises(kind) as caught:
        submit(experiment(), cluster, Silent(), {})
    assert words in caught.value.message  # type: ignore[attr-defined]
    assert caught.value.hint  # type: ignore[attr-defined]
    assert not cluster.known


def test_a_cluster_without_mixopt_is_told_by_its_last_words() -> None:
    cluster: Any = Cluster(log="Running entrypoint\n/usr/bin/python: No module named workers\n\n")
    with pytest.raises(RunError, match="The cluster cannot run mixopt: /usr/bin/python: No module named workers"):
        submit(experiment(), cluster, Silent(), {})


def test_a_login_is_not_submitted() -> None:
    with pytest.raises(ConfigError) as caught:
        check_here(experiment(tracking={"uri": "https://me:secret@mlflow.example/x"}))
    assert "mlflow.example" in caught.value.message
    assert "secret" not in str(caught.value)
    assert "--env" in caught.value.hint
    check_here(experiment(tracking={"uri": "https://mlflow.example/x"}))


def test_what_is_wrong_with_the_file_is_found_here_and_no_folder_is_made(tmp_path: Path) -> None:
    output = tmp_path / "run"
    bad = [RAW["domains"][0] | {"max_epochs": 0.1}, RAW["domains"][1] | {"bounds": [0, 0.2]}]
    with pytest.raises(InfeasibleError):
        check_here(experiment(output=str(output), domains=bad))
    check_here(experiment(output=str(output)))
    assert not output.exists()


@pytest.mark.parametrize("name", ["NOT_SET_ANYWHERE", "RAY_ADDRESS", "A=B", ""])
def test_variables_that_cannot_be_passed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "x")
    with pytest.raises(ConfigError, match="--env"):
        passed_on([name])


def test_the_check_sees_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The part that runs on the cluster; nodes are looked at by tests with a cluster."""
    monkeypatch.setattr("workers.jobs.check.check_nodes", lambda experiment: 1)
    file = tmp_path / FILE

    def answer(**changes: Any) -> dict[str, Any]:
        file.write_text(yaml.safe_dump(RAW | changes))
        return look(file)

    names = ("code.jsonl", "prose.jsonl", "more.jsonl")
    for name in names:
        (tmp_path / name).write_text('{"text": "a"}\n')
    assert answer() == {"versions": versions(), "python": answer()["python"], "nodes": 1}
    for name in names:
        (tmp_path / name).rename(tmp_path / "away")
        error = answer()["error"]
        assert str(tmp_path / name) in error["message"]
        assert error["exit_code"] == 3
        (tmp_path / "away").rename(tmp_path / name)
    assert "tokenizer.json" in answer(tokenizer={"path": "tokenizer.json"})["error"]["message"]
    assert answer(output="code.jsonl/run")["error"]["exit_code"] == 2
    assert "Unknown key" in answer(nonsense=1)["error"]["message"], "a file of a later mixopt"


def test_another_folder_on_a_node_is_seen(tmp_path: Path) -> None:
    from workers.jobs.check import look_from_node

    (tmp_path / "code.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "prose.jsonl").write_text('{"text": "a"}\n')
    there = parse_experiment(RAW | {"targets": []}, tmp_path)
    mark = tmp_path / "mark"
    with pytest.raises(DataError, match="is not the one that the head sees"):
        look_from_node(there, str(mark))
    mark.touch()
    assert look_from_node(there, str(mark)) == versions()
