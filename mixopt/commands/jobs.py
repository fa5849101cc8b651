"""Searches as jobs on a Ray cluster: `submit`, `jobs`, `status`, `logs`, `stop`."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from mixopt.commands.arguments import ExperimentFile, TrialsOption, with_trials
from mixopt.errors import ConfigError, DataError, MixoptError, RunError

if TYPE_CHECKING:
    from workers.jobs.api import Job, JobsApi

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_PATIENCE_SECONDS = 120.0
"""How long `stop` waits for a job to end; its grace is a quarter of that."""

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help=f"Dashboard of the cluster; default: RAY_API_SERVER_ADDRESS or RAY_ADDRESS, else {DEFAULT_ADDRESS}.",
    ),
]
JobName = Annotated[
    str, typer.Argument(metavar="JOB", help="Job id or its first digits, or an experiment file: its newest job.", show_default=False)
]


class Detached(MixoptError):
    """The user stopped following; the job goes on."""

    exit_code = 130


def submit(
    file: ExperimentFile,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Print the job's log and end with its exit code.")] = False,
    trials: TrialsOption = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Variable to hand to the job, as HF_TOKEN. Ray keeps it with the job and may show it in its dashboard.",
        ),
    ] = None,
) -> None:
    """Runs a search as a job on a Ray cluster; attaches to the one that runs, goes on where the last one stopped."""
    from mixopt.experiment_file import load_experiment

    experiment = load_experiment(file)  # before anything heavy is loaded, so that a slip in the file is answered at once
    from mixopt.terminal import RichReporter, print_line
    from workers.jobs.submit import check_here, passed_on
    from workers.jobs.submit import submit as submit_job

    experiment = with_trials(experiment, trials)
    check_here(experiment)
    environment = passed_on(env or [])
    reporter = RichReporter()
    api = _connect(address)
    if api.is_open:
        reporter.note(f"Anyone who reaches {api.address} can run code there: start the head with RAY_AUTH_MODE=token.")
    submitted = submit_job(experiment, api, reporter, environment)
    job = submitted.job
    reporter.note(f"Attached to job {job.job_id}, which is {job.state}." if submitted.attached else f"Submitted job {job.job_id}.")
    if submitted.outdated:
        reporter.note(f"It runs the file as it was then. For what has changed since: `mixopt stop {job.job_id}`, and submit again.")
    if follow:
        _follow(api, job.job_id)
    print_line(reporter.output, job.job_id)
    reporter.note(f"`mixopt logs {job.job_id} --follow` follows it, `mixopt stop {job.job_id}` stops it.")


def jobs(address: Address = None) -> None:
    """Lists the searches that were submitted to a cluster."""
    from mixopt.terminal import make_console, rows_table

    api = _connect(address)
    rows = [[job.job_id, job.name, job.state, _moment(job.started), _duration(job.seconds), _said(job)] for job in api.jobs()]
    console = make_console()
    console.print(rows_table(f"Jobs at {api.address}", ["job", "name", "state", "started", "duration", ""], rows))


def status(name: JobName, address: Address = None) -> None:
    """Prints how a job stands."""
    from mixopt.terminal import make_console, print_line
    from workers.jobs.api import OUTPUT

    api = _connect(address)
    job = _find(api, name)
    console = make_console()
    lines = {
        "Job": job.job_id,
        "Name": job.name,
        "State": job.state if job.exit_code is None else f"{job.state}, exit code {job.exit_code}",
        "Started": _moment(job.started),
        "Duration": _duration(job.seconds),
        "Output": job.metadata.get(OUTPUT, ""),
        "Message": _said(job),
        "Last line": next((line for line in reversed(api.logs(job.job_id).splitlines()) if line.strip()), ""),
    }
    for title, text in lines.items():
        if text:
            print_line(console, f"{title}: {text}")


def logs(
    name: JobName,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on until the job ends, and end with its exit code.")] = False,
) -> None:
    """Prints what a job has written."""
    api = _connect(address)
    job = _find(api, name)
    if follow:
        _follow(api, job.job_id)
    typer.echo(api.logs(job.job_id), nl=False)


def stop(name: JobName, address: Address = None) -> None:
    """Stops a job and waits until it has ended; what it has finished is kept."""
    from workers.jobs.api import OUTPUT

    api = _connect(address)
    job = _find(api, name)
    if job.is_over:
        typer.echo(f"Job {job.job_id} is over: {job.state}.")
        return
    api.stop(job.job_id)
    job = api.wait(job.job_id, STOP_PATIENCE_SECONDS)
    if not job.is_over:
        raise RunError(
            f"Job {job.job_id} has not ended within {STOP_PATIENCE_SECONDS:.0f} seconds.", f"Look with `mixopt status {job.job_id}`."
        )
    typer.echo(f"Job {job.job_id} is {job.state}. What it has finished is kept in {job.metadata.get(OUTPUT, 'its output')}.")
    typer.echo("`mixopt submit FILE` with the same file goes on from there; nothing is trained twice.")


def _connect(address: str | None) -> JobsApi:
    from workers.jobs.api import ADDRESS_VARIABLE, JobsApi

    given = [address, *(value for name in (ADDRESS_VARIABLE, "RAY_ADDRESS") if (value := os.environ.get(name, "")).startswith("http"))]
    return JobsApi(next((value for value in given if value), DEFAULT_ADDRESS))


def _find(api: JobsApi, name: str) -> Job:
    """The newest job of an experiment file, or the one whose id begins so; of several attempts of one search the last."""
    if not name.strip():  # as an empty variable leaves it; every id begins so
        raise ConfigError("The name of the job is empty.", "`mixopt jobs` lists those that are there.")
    if Path(name).is_file():
        from mixopt.experiment_file import load_experiment
        from workers.jobs.submit import job_key

        found = api.attempts(job_key(load_experiment(Path(name))))
        wanted = f"the search of {name}"
    else:
        found = [job for job in api.jobs() if job.job_id.startswith(name)]
        found = [job for job in found if job.job_id == name] or found
        wanted = f"'{name}'"
    if not found:
        raise DataError(f"There is no job of {wanted} at {api.address}.", "`mixopt jobs` lists those that are there.")
    if len({job.key for job in found}) > 1:
        raise ConfigError(f"'{name}' fits {len(found)} jobs at {api.address}.", "Give more digits.")
    return max(found, key=lambda job: job.attempt)


def _follow(api: JobsApi, job_id: str) -> NoReturn:
    """Prints the log of a job until it is over, and ends as it ended."""
    try:
        for text in api.follow(job_id):
            typer.echo(text, nl=False)
        job = api.job(job_id)
    except KeyboardInterrupt:
        raise Detached(
            f"Job {job_id} goes on.", f"`mixopt logs {job_id} --follow` follows it again, `mixopt stop {job_id}` stops it."
        ) from None
    if job.state == "succeeded":
        raise typer.Exit(0)
    if job.state == "stopped" or job.exit_code == Detached.exit_code:
        raise Detached(f"Job {job_id} was stopped.", "`mixopt submit FILE` with the same file goes on; nothing is trained twice.")
    code = job.exit_code or 0
    typer.echo(f"Job {job_id} failed" + (f" with exit code {code}." if code else f": {_said(job)}"), err=True)
    raise typer.Exit(code if 0 < code < 256 else RunError.exit_code)


def _said(job: Job) -> str:
    """Ray's message in a line; of a failed job what it said last, which is what it ended with."""
    lines = [line.strip() for line in job.message.splitlines() if line.strip()]
    return "" if not lines or job.state in ("running", "succeeded", "stopped") else lines[-1][:200]


def _moment(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = int(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
