"""Submits an experiment to a Ray cluster as a job: checked here, then from the cluster, then run there by the very same `mixopt search`.

A job's id is the key of its search and the number of the attempt, `1f0c9a2b4d6e-2`. The key stands for the search where its identity
(`mixopt.search_identity`) cannot be known yet: that one hashes prepared tokens, which the machine that submits need not have. The key
hashes what those are made from, and the output folder. So the number of trials, verification, tracking and Ray change neither of the two, and
the same file finds its job again. The trade-off: documents that change under the same paths give another search under the same key.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel

from mixopt.addresses import without_login
from mixopt.answer.config import ObjectiveConfig
from mixopt.components.config import ComponentsConfig
from mixopt.config import Experiment, SearchConfig
from mixopt.corpus.config import DomainConfig
from mixopt.errors import ConfigError, MixoptError, RunError
from mixopt.groups.config import GroupConfig
from mixopt.groups.rules import ancestors
from mixopt.progress import Reporter
from mixopt.proxy_config import ProxyConfig
from mixopt.trial import content_digest
from workers.checks import check_settings
from workers.jobs.api import ATTEMPT, CONTENT, KEY, NAME, OUTPUT, Job, JobsApi
from workers.jobs.check import ANSWER, versions

KEY_DIGITS = 12
"""Of the digests in job ids: enough to tell all searches of a cluster apart, few enough to be typed."""
FILE = "experiment.yaml"
# `exec`, so that the signals of Ray's job manager reach Python and not only a shell.
CHECK_ENTRYPOINT = f"exec python -m workers.jobs.check {FILE}"
SEARCH_ENTRYPOINT = f"exec python -m mixopt search {FILE}"
CHECK_SECONDS = 180.0
"""How long the check may take, the start of its worker on a loaded head included."""
RACES = 5
"""How often another submission may take the id that was free a moment ago."""

LATER_OF_PROXY = ("parametrization", "beginning", "balancing", "auxiliary_loss")
LATER_OF_DOMAIN = ("prompt_column", "completion_column", "revision")
LATER_OF_OBJECTIVE = ("floors", "confidence")
LATER_OF_SEARCH = ("options", "sources", "evaluators", "warm_start")
"""What a file could not say once: at the default it stays out of the key, so that a file finds the job that an earlier version submitted."""

SHARED = "A job reads the paths of its file on the cluster: put data and `output` on a file system that every node mounts."


@dataclass(frozen=True)
class Submitted:
    """What became of a submission.

    Attributes:
        attached: the job was already there and has not ended.
        outdated: it runs an earlier version of the file, in which the number of trials, say, was another.
    """

    job: Job
    attached: bool
    outdated: bool


def job_key(experiment: Experiment) -> str:
    """What tells one search of a cluster from another before anything is prepared; equal files have equal keys.

    Leaves out what `search_identity` leaves out: names of targets and levels, groups without a rule, the number of trials and how they are asked for,
    verification, tracking and Ray.
    """
    body = experiment.model_dump(mode="json")
    for section in ("name", "levels", "groups", "verification", "tracking", "ray"):
        del body[section]
    for key in ("trials", "batch", "max_attempts", "stop_early"):
        del body["search"][key]
    if not experiment.constraints.constraints:
        del body["constraints"]
    if body["trainer"] is None:
        del body["trainer"]
    if experiment.components == ComponentsConfig():
        del body["components"]
    _leave_out_defaults(body["proxy"], ProxyConfig, LATER_OF_PROXY)
    _leave_out_defaults(body["objective"], ObjectiveConfig, LATER_OF_OBJECTIVE)
    _leave_out_defaults(body["search"], SearchConfig, LATER_OF_SEARCH)
    for domain in body["domains"]:
        _leave_out_defaults(domain, DomainConfig, LATER_OF_DOMAIN)
    body["objective"]["over"] = experiment.objective_over
    body["domains"] = sorted(
        ({k: v for k, v in domain.items() if k != "group"} for domain in body["domains"]), key=lambda d: str(d["name"])
    )
    body["rules"] = _rules(experiment)
    body["targets"] = sorted(json.dumps({k: v for k, v in target.items() if k != "name"}, sort_keys=True) for target in body["targets"])
    return content_digest([body, versions()["engine"]])[:KEY_DIGITS]


def _leave_out_defaults(section: dict[str, Any], model: type[BaseModel], names: Sequence[str]) -> None:
    """Takes these fields out of a dumped section where they have their defaults."""
    defaults = model.model_construct().model_dump(mode="json", include=set(names))
    for name in names:
        if section[name] == defaults[name]:
            del section[name]


def _rules(experiment: Experiment) -> list[object]:
    """The rules on groups, each with the domains that it is about and where in the group they are; groups without a rule are labels."""
    described: list[object] = []
    for path, group in sorted(experiment.groups.items()):
        if group != GroupConfig():
            members = {d.name: d.group.removeprefix(path) for d in experiment.domains if path in ancestors(d.group)}
            described.append([path, group.model_dump(mode="json"), members])
    return described


def passed_on(names: Sequence[str]) -> dict[str, str]:
    """The environment variables that a job shall have.

    Raises:
        ConfigError: one is not set, or belongs to Ray.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ConfigError(f"--env {name} is not the name of a variable.", f"Run `export {name.partition('=')[0]}=...`, and name it.")
        if name.startswith("RAY_"):
            raise ConfigError(
                f"--env {name} would overrule the cluster's own settings.", "Leave it out: jobs find their cluster themselves."
            )
        if name not in os.environ:
            raise ConfigError(f"--env {name} names a variable that is not set.", f"Run `export {name}=...` first.")
    return {name: os.environ[name] for name in names}


def check_here(experiment: Experiment) -> None:
    """What can be found wrong on the machine that submits, before anything is sent.

    Raises:
        ConfigError, InfeasibleError: as `check_settings`, a login in `tracking.uri`, or trials that nobody here runs.
    """
    if experiment.trainer is not None and experiment.trainer.kind == "elsewhere":
        raise ConfigError(
            "Trials of `kind: elsewhere` run elsewhere; a job would have nothing to do.", "Use `mixopt ask` and `mixopt tell`."
        )
    check_settings(experiment)
    uri = experiment.tracking.uri
    if uri is not None and without_login(uri) != uri:
        raise ConfigError(
            f"'tracking.uri' holds a login for {urlsplit(without_login(uri)).hostname}, and a submitted file is kept on the cluster.",
            "Take it out, set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and pass both with `--env`.",
        )


def submit(experiment: Experiment, api: JobsApi, reporter: Reporter, environment: Mapping[str, str]) -> Submitted:
    """Attaches to the job of this search if it has one that has not ended; else checks the cluster and starts the next attempt.

    Args:
        experiment: has passed `check_here`.
        environment: variables the job shall have. Ray keeps them with the job.

    Raises:
        MixoptError: the cluster has another mixopt, does not see a path, or does not answer.
    """
    key = job_key(experiment)
    # A job uses the cluster it runs in, whatever the file says about the machine it was written for.
    on_cluster = experiment.model_copy(update={"ray": experiment.ray.model_copy(update={"address": "auto", "cpus": None})})
    text = on_cluster.to_yaml()
    metadata = {
        KEY: key,
        NAME: experiment.name,
        OUTPUT: experiment.output,
        CONTENT: content_digest(text),
        "mixopt.version": versions()["mixopt"],
    }
    checked = False
    for _ in range(RACES):
        attempts = api.attempts(key)
        going = [job for job in attempts if not job.is_over]
        if going:
            return Submitted(going[-1], attached=True, outdated=going[-1].metadata.get(CONTENT) != metadata[CONTENT])
        if not checked:
            with reporter.stage(f"Checking from {api.address}", None, ""):
                nodes = check_cluster(api, key, text, environment)
            reporter.note(f"The cluster has this mixopt and sees every path on {nodes} node{'' if nodes == 1 else 's'}.")
            checked = True
        attempt = attempts[-1].attempt + 1 if attempts else 1
        job_id = f"{key}-{attempt}"
        if api.submit(job_id, SEARCH_ENTRYPOINT, {FILE: text}, environment, {**metadata, ATTEMPT: str(attempt)}):
            return Submitted(api.job(job_id), attached=False, outdated=False)
    raise RunError(f"Job {key} was submitted by others {RACES} times meanwhile.", "`mixopt jobs` shows what runs.")


def check_cluster(api: JobsApi, key: str, text: str, environment: Mapping[str, str]) -> int:
    """Has the cluster look at the experiment; returns the number of its nodes.

    Raises:
        RunError: it has another mixopt or none, or did not answer in time.
        MixoptError: what the check found wrong there, with its exit code.
    """
    job_id = f"{key}-check-{os.urandom(3).hex()}"
    api.submit(job_id, CHECK_ENTRYPOINT, {FILE: text}, environment, {})
    job = api.wait(job_id, CHECK_SECONDS)
    if not job.is_over:
        api.stop(job_id)
        raise RunError(
            f"The check on the cluster has not ended within {CHECK_SECONDS:.0f} seconds (job {job_id} is {job.state}: {job.message})",
            "Check that the head is not overloaded, and submit again.",
        )
    lines = api.logs(job_id).splitlines()
    answers = [line.removeprefix(ANSWER) for line in lines if line.startswith(ANSWER)]
    if not answers:
        words = [line.strip() for line in lines if line.strip()]
        raise RunError(
            f"The cluster cannot run mixopt: {words[-1] if words else job.message}",
            f"Install mixopt {versions()['mixopt']} on every node; jobs run the `python` that is first on the PATH the head was started with.",
        )
    api.forget(job_id)
    return _judged(api.address, json.loads(answers[-1]))


def _judged(address: str, answer: Mapping[str, object]) -> int:
    here, there = versions(), answer["versions"]
    assert isinstance(there, dict)
    if there != here:
        raise RunError(
            f"The cluster at {address} runs mixopt {there.get('mixopt')} (engine {there.get('engine')}), this machine mixopt {here['mixopt']} "
            f"(engine {here['engine']}).",
            f"Install one of the two on both sides; the cluster's python is {answer.get('python')}.",
        )
    error = answer.get("error")
    if isinstance(error, dict):
        raise _on_cluster(str(error["message"]), str(error["hint"]), int(error["exit_code"]))
    nodes = answer["nodes"]
    assert isinstance(nodes, int)
    return nodes


def _on_cluster(message: str, hint: str, exit_code: int) -> MixoptError:
    kinds = {kind.exit_code: kind for kind in MixoptError.__subclasses__()}
    return kinds.get(exit_code, RunError)(f"Seen from the cluster: {message}", f"{hint} {SHARED}".strip())
