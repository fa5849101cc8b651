"""Ray and MLflow: do they answer, do they let us in, and are they what mixopt was built against."""

from __future__ import annotations

import os
import platform
import re
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from mixopt import __version__
from mixopt.addresses import without_login
from mixopt.config import Experiment
from mixopt.tracking.first_contact import DATABASES, check_address, first_contact
from mixopt.tracking.mlflow_server import MlflowServer, quiet_logging
from workers.compose import tracking_uri
from workers.doctor.findings import Finding, counted, ok, problem, warning
from workers.doctor.processes import probe_process
from workers.output_folder import existing_folder
from workers.ray_runner import PROBE_SECONDS, WORKER_ENVIRONMENT

RAY_SECONDS = 2 * PROBE_SECONDS + 60.0
"""The runner probes an address within 45 seconds, then joins it; a task starts a worker."""
HTTP_SECONDS = 10.0
DATABASE_SECONDS = 5.0


def ray_here(experiment: Experiment | None, start: bool = True) -> list[Finding]:
    """Authentication, then Ray itself: joined, or started for a moment, with one task.

    Args:
        start: whether a local cluster may be started; an address is always tried.
    """
    address = experiment.ray.address if experiment else None
    if address == "in-process":
        return [ok("ray", "Not used: `ray.address` is in-process.")]
    found = list(authentication(address, os.environ, Path.home()))
    if address is None and not start:
        return [*found, ok("ray", f"Version {metadata.version('ray')}; not started.")]
    inputs = [] if experiment is None or address is None else [str(existing_folder(experiment.output_dir))]
    probed = probe_process("workers.doctor.ray_probe", [address or "local", *inputs], {}, RAY_SECONDS)
    where = f"The cluster at {address}" if address else "A cluster of its own"
    if probed.trouble:
        return [
            *found,
            problem("ray", f"{where} does not work: {probed.trouble}.", "Look at memory, disk and `ray.address`; or set it to in-process."),
        ]
    return [*found, *of_ray(where, probed.said)]


def of_ray(where: str, said: dict[str, Any]) -> Iterator[Finding]:
    """Findings from what the probe said."""
    if "error" in said:
        yield problem("ray", said["error"], said["hint"])
        return
    seen = said["seen"]
    gpus = f" and {counted(round(said['gpus']), 'GPU')}" if said["gpus"] else ""
    yield ok("ray", f"{where} answers and ran a task: Ray {said['ray']}, {counted(round(said['cores']), 'core')}{gpus}.")
    missing = [name for name, value in WORKER_ENVIRONMENT.items() if seen["environment"].get(name) != value]
    if missing:
        yield problem(
            "ray workers", f"A worker did not get {', '.join(missing)}.", "Look for a runtime environment that overrides `env_vars`."
        )
    if seen["mixopt"] != __version__:
        yield problem(
            "ray workers",
            f"A worker has mixopt {seen['mixopt']}, here it is {__version__}.",
            "Install the same version on every node of the cluster.",
        )
    elif seen["python"] != platform.python_version():
        yield warning(
            "ray workers",
            f"Workers run Python {seen['python']}, here it is {platform.python_version()}.",
            "Use one image or environment for all nodes.",
        )
    if seen["missing"]:
        yield problem(
            "ray workers",
            f"A worker does not see {', '.join(seen['missing'])}.",
            "Put `output` on a disk that all nodes mount at the same path.",
        )


def authentication(address: str | None, environment: os._Environ[str] | dict[str, str], home: Path) -> Iterator[Finding]:
    """Whether Ray asks for a token, and whether others can read ours."""
    topic, mode = "ray authentication", environment.get("RAY_AUTH_MODE", "").lower()
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or home / ".ray" / "auth_token")
    given = "RAY_AUTH_TOKEN" in environment
    if not given and file.is_file() and _others_may_read(file):
        yield problem(topic, f"Others may read the token in {file}: with it they run code in the cluster.", f"Run `chmod 600 {file}`.")
    if address is None:
        if mode and mode != "token":
            yield warning(topic, f"RAY_AUTH_MODE is {mode}: who reaches a port of Ray runs code here.", "Unset it, or set it to token.")
        else:
            yield ok(topic, "On: a cluster of its own listens on loopback only, with a token made for it.")
    elif mode != "token":
        yield warning(
            topic,
            f"RAY_AUTH_MODE is {mode or 'not set'}: without a token, who reaches a port of the cluster runs code there.",
            "Start the head and mixopt with RAY_AUTH_MODE=token and one token (`ray get-auth-token --generate`).",
        )
    elif not given and not file.is_file():
        yield problem(
            topic,
            f"RAY_AUTH_MODE is token, but there is none in {file}.",
            "Set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token.",
        )
    else:
        yield ok(topic, f"On, with the token of {'RAY_AUTH_TOKEN' if given else file}.")


def _others_may_read(file: Path) -> bool:
    """Whether anybody but its owner may; not in a folder that only its owner may enter, as that of infra/secrets.sh."""
    return bool(file.stat().st_mode & 0o077 and file.absolute().parent.stat().st_mode & 0o011)


def mlflow(experiment: Experiment | None) -> list[Finding]:
    """Whether the tracking server or database of the experiment takes our runs; creates nothing there."""
    if experiment is None:
        return [ok("mlflow", f"Version {metadata.version('mlflow')}; without `tracking.uri` a search keeps mlflow.db in its output.")]
    if not experiment.tracking.enabled:
        return [ok("mlflow", "Not used: `tracking.enabled` is false.")]
    uri = tracking_uri(experiment)
    if uri.startswith("sqlite:///"):
        return sqlite_database(Path(uri.removeprefix("sqlite:///")))
    check_address(uri)
    if uri.partition("://")[0].partition("+")[0] in DATABASES:
        return [database_server(uri, experiment.tracking.experiment)]
    found = list(server_version(uri)) if uri.startswith(("http://", "https://")) else []
    if any(finding.status == "problem" for finding in found):
        return found
    return [*found, logged_in(uri)]


def sqlite_database(path: Path) -> list[Finding]:
    """A database file: is it one, and does nobody hold it."""
    if not path.exists():
        place = existing_folder(path.parent)
        if not os.access(place, os.W_OK):
            return [problem("mlflow", f"{place} cannot be written, so {path.name} cannot be made there.", "Set another `tracking.uri`.")]
        return [ok("mlflow", f"{path} will be made by the first search.")]
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=DATABASE_SECONDS, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
            known = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'alembic_version'").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        if "locked" in str(error):
            return [
                warning(
                    "mlflow", f"{path} is locked by another process.", "If that lasts, use a tracking server (`mlflow server`) instead."
                )
            ]
        return [problem("mlflow", f"{path} cannot be used: {error}.", "Move it away, or set another `tracking.uri`.")]
    if not known:
        return [problem("mlflow", f"{path} is a database, but not one of MLflow.", "Set another `tracking.uri`.")]
    return [ok("mlflow", f"{path} can be written.")]


def database_server(uri: str, experiment: str) -> Finding:
    """One connection, as a search makes it first. MLflow's own client is not asked: it would try for two minutes, and set up what it finds empty.

    Raises:
        MixoptError: the login is refused, or the driver is missing.
    """
    away = first_contact(uri, experiment)
    if away is not None:
        return problem("mlflow", away, "Start it, or mend `tracking.uri`.")
    return ok("mlflow", f"{without_login(uri)} lets us in.")


def server_version(uri: str) -> Iterator[Finding]:
    """Whether a server answers over HTTP, and its version."""
    shown = without_login(uri)
    try:
        with urllib.request.urlopen(f"{shown.rstrip('/')}/version", timeout=HTTP_SECONDS) as answer:  # http or https, as the caller checks
            version = answer.read(100).decode("utf-8", "replace").strip()
    except urllib.error.HTTPError as error:
        if error.code not in (401, 403):  # who asks for a login first is asked again with one
            yield problem("mlflow", f"{shown} answers /version with HTTP {error.code}: it is no MLflow server.", "Mend `tracking.uri`.")
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        yield problem(
            "mlflow", f"No MLflow server answers at {shown}: {reason}.", "Start it, or mend `tracking.uri`; a search goes on without it."
        )
        return
    ours = metadata.version("mlflow")
    if not re.fullmatch(r"\d+\.\d+\S*", version):
        yield problem("mlflow", f"What answers at {shown} is no MLflow server.", "Mend `tracking.uri`.")
    elif version.split(".")[0] != ours.split(".")[0]:
        yield warning(
            "mlflow", f"The server at {shown} is MLflow {version}, here it is {ours}.", "Use the same major version on both sides."
        )
    else:
        yield ok("mlflow", f"{shown} answers: MLflow {version} (here {ours}).")


def logged_in(uri: str) -> Finding:
    """One request as the mirror makes them."""
    topic, shown = "mlflow login", MlflowServer(uri, "").shown_uri  # it also sets short waits
    from mlflow import MlflowClient

    try:
        with quiet_logging():
            MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # noqa: BLE001 - MLflow raises kinds of its own, of requests and of sqlalchemy; all mean that it does not work
        text = " ".join(str(error).split())
        if re.search(r"\b401\b", text) or "authenticat" in text.lower():
            return problem(
                topic,
                f"{shown} refuses our login (401).",
                "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN.",
            )
        if re.search(r"\b403\b", text):
            return problem(topic, f"{shown} lets us in but not read experiments (403).", "Ask for permission, or use another login.")
        return problem(topic, f"{shown} does not take requests: {text[:200]}", "Look at the server's log; a search goes on without it.")
    return ok(topic, f"{shown} takes our requests.")
