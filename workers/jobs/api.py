"""Ray's Jobs API, made safe: bounded waits, one sentence per error, and only the jobs that mixopt submitted.

Everything goes over HTTP to the dashboard of the head, so the machine that submits needs no Ray of its own. Ray's client sends requests
without a time limit and lets RAY_ADDRESS overrule the address it was given; both are mended here. Logs are followed by asking again, which
survives cut connections and proxies. The trade-off: each look fetches the whole log; a search writes a line per finished trial.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mixopt.errors import ConfigError, MixoptError, RunError

ADDRESS_VARIABLE = "RAY_API_SERVER_ADDRESS"
"""Ray's name for the address of a cluster's dashboard."""
KEY, ATTEMPT, NAME, OUTPUT, CONTENT = "mixopt.key", "mixopt.attempt", "mixopt.name", "mixopt.output", "mixopt.content"
"""Metadata by which jobs of mixopt are known."""

CONNECT_SECONDS = 5.0
REQUEST_SECONDS = 60.0
"""A submission answers once the head's agent has taken it, which takes some seconds on a loaded machine."""
LOOK_SECONDS = 1.0
LOST_SECONDS = 300.0
"""How long a follower waits for a cluster that does not answer any more; a head under load takes its time."""
GRACE_SECONDS = 30
"""What a job of ours is given between SIGTERM and SIGKILL, instead of Ray's 3 seconds, so that packs write their checkpoints."""
UPLOAD_BYTES = 1 << 20
"""Most that is uploaded: an experiment file has some kilobytes. Ray itself would take 100 MiB."""


@dataclass(frozen=True)
class Job:
    """One job as the cluster knows it.

    Attributes:
        state: pending, running, stopped, succeeded or failed.
        started, ended: seconds since 1970, UTC.
        exit_code: of its process; None while it runs, and when it was stopped or killed.
    """

    job_id: str
    state: str
    started: float | None
    ended: float | None
    message: str
    exit_code: int | None
    metadata: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        return self.state in ("stopped", "succeeded", "failed")

    @property
    def key(self) -> str:
        return self.metadata[KEY]

    @property
    def attempt(self) -> int:
        return int(self.metadata[ATTEMPT])

    @property
    def name(self) -> str:
        return self.metadata.get(NAME, "")

    @property
    def seconds(self) -> float | None:
        """How long it ran, or has run so far."""
        return None if self.started is None else (self.ended or time.time()) - self.started


class JobsApi:
    """The Jobs API of one cluster; connects at once.

    Args:
        address: of the dashboard, as http://127.0.0.1:8265.

    Attributes:
        is_open: whether the cluster takes requests without a token.

    Raises:
        ConfigError: not such an address.
        RunError: nothing answers there, it is not a Ray dashboard, or it refuses the token.
    """

    def __init__(self, address: str) -> None:
        self.address = _checked(address)
        self.is_open = self._answers_without_token()
        with self._sentences(), _only_address(self.address):
            self._client = _bounded_client(self.address)

    def jobs(self) -> list[Job]:
        """Those that mixopt submitted, oldest first."""
        with self._sentences():
            found = [_job(details) for details in self._client.list_jobs()]
        return sorted((job for job in found if KEY in job.metadata), key=lambda job: (job.started or 0.0, job.attempt))

    def attempts(self, key: str) -> list[Job]:
        """The jobs of one search, by attempt."""
        return sorted((job for job in self.jobs() if job.key == key), key=lambda job: job.attempt)

    def job(self, job_id: str) -> Job:
        with self._sentences():
            return _job(self._client.get_job_info(job_id))

    def submit(
        self, job_id: str, entrypoint: str, files: Mapping[str, str], environment: Mapping[str, str], metadata: Mapping[str, str]
    ) -> bool:
        """Starts a job in a folder that holds `files` (name -> text); returns False if the id is taken.

        Raises:
            ConfigError: the files are too large.
        """
        size = sum(len(text.encode("utf-8")) for text in files.values())
        if size > UPLOAD_BYTES:
            raise ConfigError(
                f"The experiment file has {size:,} bytes, more than the {UPLOAD_BYTES:,} that are uploaded.",
                "Name files by patterns such as data/*.jsonl instead of one by one.",
            )
        with tempfile.TemporaryDirectory(prefix="mixopt-job-") as folder:
            for name, text in files.items():
                (Path(folder) / name).write_text(text, encoding="utf-8")
            runtime = {"working_dir": folder, "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(GRACE_SECONDS), **environment}}
            try:
                with self._sentences():
                    self._client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime, metadata=dict(metadata))
            except RunError as error:
                if "already exists" in error.message:
                    return False
                raise
        return True

    def logs(self, job_id: str) -> str:
        """All that the job has written so far."""
        with self._sentences():
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """What the job has written and writes, in pieces, until it is over.

        Raises:
            RunError: the cluster has not answered for minutes.
        """
        shown, heard = 0, time.monotonic()
        while True:
            try:
                over = self.job(job_id).is_over  # before the log, so that its last lines are not missed
                text = self.logs(job_id)
            except RunError:
                if time.monotonic() - heard > LOST_SECONDS:
                    raise
                time.sleep(LOOK_SECONDS)
                continue
            heard = time.monotonic()
            if len(text) > shown:
                yield text[shown:]
                shown = len(text)
            if over:
                return
            time.sleep(LOOK_SECONDS)

    def stop(self, job_id: str) -> None:
        """Asks the job to stop; SIGKILL follows after its grace. A job that is over stays as it is."""
        with self._sentences():
            self._client.stop_job(job_id)

    def wait(self, job_id: str, seconds: float) -> Job:
        """The job once it is over, or as it is after so many seconds."""
        deadline = time.monotonic() + seconds
        while not (job := self.job(job_id)).is_over and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS / 4)
        return job

    def forget(self, job_id: str) -> None:
        """Removes a job that is over from the cluster's list."""
        with self._sentences():
            self._client.delete_job(job_id)

    def _answers_without_token(self) -> bool:
        import requests

        remedy = "Name the dashboard of the head with --address, as http://HOST:8265, and check that the head runs."
        try:
            answer = requests.get(f"{self.address}/api/version", timeout=CONNECT_SECONDS)
        except requests.RequestException as error:
            raise RunError(f"No Ray cluster answers at {self.address} ({_reason(error)}).", remedy) from error
        if answer.status_code in (401, 403):
            return False
        if answer.status_code != 200 or '"ray_version"' not in answer.text:
            raise RunError(f"What answers at {self.address} is not the dashboard of a Ray head.", remedy)
        return True

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Turns what Ray's client raises into one sentence with a remedy."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except MixoptError:
            raise
        except AuthenticationError as error:
            raise self._not_let_in(str(error)) from error
        except (ConnectionError, requests.RequestException) as error:
            raise RunError(f"The Ray cluster at {self.address} does not answer ({_reason(error)}).", "Check that its head runs.") from error
        except RuntimeError as error:
            # A traceback of the head's, whose last line with words in it says why.
            lines = [line.strip() for line in str(error).splitlines() if any(letter.isalpha() for letter in line)] or ["no reason given"]
            raise RunError(
                f"The Ray cluster at {self.address} refuses: {lines[-1]}", "The logs of the head say more; `mixopt jobs` lists its jobs."
            ) from error

    def _not_let_in(self, reason: str) -> RunError:
        remedy = (
            "Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH (a file; default ~/.ray/auth_token) or RAY_AUTH_TOKEN to the token that the head "
            "was started with."
        )
        if "Forbidden" in reason:
            return RunError(f"The Ray cluster at {self.address} refuses the token.", remedy)
        if "cannot be opened" in reason:
            return RunError(f"RAY_AUTH_TOKEN_PATH is {os.environ.get('RAY_AUTH_TOKEN_PATH')}, which holds no token.", remedy)
        return RunError(f"The Ray cluster at {self.address} asks for a token, and there is none.", remedy)


def _bounded_client(address: str) -> Any:
    """Ray's client with a time limit on each request."""
    import logging

    from ray.job_submission import JobSubmissionClient

    class Bounded(JobSubmissionClient):  # type: ignore[misc] # ray is not typed
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            return super()._do_request(method, endpoint, **{"timeout": (CONNECT_SECONDS, REQUEST_SECONDS), **options})

    # Its uploads are told as log lines, with the paths of our temporary folder.
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return Bounded(address)


@contextmanager
def _only_address(address: str) -> Iterator[None]:
    """Ray takes the address from the environment before the one it is given."""
    before = os.environ.get(ADDRESS_VARIABLE)
    os.environ[ADDRESS_VARIABLE] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[ADDRESS_VARIABLE]
        else:
            os.environ[ADDRESS_VARIABLE] = before


def _checked(address: str) -> str:
    from urllib.parse import urlsplit

    whole = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(whole)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"'{address}' is not the address of a Ray dashboard.", "Write it as http://HOST:8265.")
    return whole.rstrip("/")


def _job(details: Any) -> Job:
    def seconds(milliseconds: int | None) -> float | None:
        return None if milliseconds is None else milliseconds / 1000

    return Job(
        job_id=str(details.submission_id or details.job_id),
        state=str(details.status).lower(),
        started=seconds(details.start_time),
        ended=seconds(details.end_time),
        message=str(details.message or ""),
        exit_code=details.driver_exit_code,
        metadata=dict(details.metadata or {}),
    )


def _reason(error: Exception) -> str:
    """The innermost words of a network error."""
    text = str(error)
    for words in (
        "Connection refused",
        "timed out",
        "Name or service not known",
        "No route to host",
        "Temporary failure in name resolution",
    ):
        if words.lower() in text.lower():
            return words[0].lower() + words[1:]
    return type(error).__name__
