"""What is wrong with a tracking address, found out before anything is spent.

An address that is none, a login that is refused, or something that answers and is not MLflow never mends itself: that is an error. A server that
is merely away is not: MLflow is a mirror of the record, an outage may begin and end at any time, and a search must not depend on
when. So the first sentence of such a search says that the mirror is behind and how it is completed, and the search goes on.
"""

from __future__ import annotations

import re
import sqlite3
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mixopt.addresses import without_login
from mixopt.errors import ConfigError, RunError

SERVERS, DATABASES = ("http", "https"), ("sqlite", "postgresql", "mysql", "mssql")
HINT = "Write http://host:port of a tracking server, or sqlite:///folder/mlflow.db, or leave `tracking.uri` out."
LOGIN = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, or set `tracking.enabled: false`."
CONNECT_SECONDS = 5


def check_address(uri: str) -> None:
    """Finds a tracking address that can be none; asks nobody.

    Raises:
        ConfigError: the scheme is not one that MLflow mirrors go to, or there is no host, or no such port.
    """
    shown = without_login(uri)
    try:
        parts = urlsplit(uri)
        _ = parts.port  # raises where it is not a number
    except ValueError as error:
        raise ConfigError(f"'tracking.uri' is '{shown}', which is no address: {error}.", HINT) from error
    kind = parts.scheme.partition("+")[0]
    if kind == "databricks" or uri == "databricks":
        return
    if kind not in (*SERVERS, *DATABASES):
        raise ConfigError(f"'tracking.uri' is '{shown}', which is no address of an MLflow server or database.", HINT)
    if kind == "sqlite":
        if not re.match(r"sqlite:///.", uri):
            raise ConfigError(f"'tracking.uri' is '{shown}', which names no file.", HINT)
    elif not parts.hostname:
        raise ConfigError(f"'tracking.uri' is '{shown}', which names no host.", HINT)


def first_contact(uri: str, experiment: str) -> str | None:
    """Asks the tracking server or database for the experiment.

    Returns:
        None if it answers, else a sentence that says that it is away; a search goes on without it.

    Raises:
        ConfigError: the address is none, what answers is not MLflow, the file is no database or cannot be written, or a driver is missing.
        RunError: the login is refused, or the experiment was deleted.
    """
    check_address(uri)
    kind = uri.partition("://")[0].partition("+")[0]
    if kind == "sqlite":
        _check_file(Path(uri.removeprefix("sqlite:///")))
        return None
    reason = _ask_server(uri, experiment) if kind not in DATABASES else _ask_database(uri)
    if reason is None:
        return None
    return (
        f"MLflow at {without_login(uri)} does not answer ({reason}): the search goes on without it, and `mixopt mirror` completes it later "
        "if it does not come back meanwhile."
    )


def _check_file(path: Path) -> None:
    """Tries what the mirror will need of a database file, without MLflow's migrations, which take seconds."""
    problem = f"'tracking.uri' names {path}, which"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = not path.exists()
        with path.open("ab"):
            pass
        if fresh:
            path.unlink()
            return
        connection = sqlite3.connect(path)
        try:
            connection.execute("select count(*) from sqlite_master").fetchone()
        finally:
            connection.close()
    except OSError as error:
        raise ConfigError(f"{problem} cannot be written ({error.strerror}).", "Mend its permissions, or name another file.") from error
    except sqlite3.OperationalError:
        return  # another process holds it for a moment
    except sqlite3.DatabaseError as error:
        raise ConfigError(f"{problem} is not a database.", "Name another file; a new one is made where there is none.") from error


def _ask_server(uri: str, experiment: str) -> str | None:
    """Why a server gives no answer; None if it does."""
    from mixopt.tracking.mlflow_server import MlflowServer, deleted_experiment, quiet_logging

    shown = MlflowServer(uri, experiment).shown_uri  # it also sets short waits
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        with quiet_logging():
            found = MlflowClient(tracking_uri=uri).get_experiment_by_name(experiment)
    except MlflowException as error:
        return _understood(error, shown)
    except OSError as error:
        return _short(str(error))
    if found is not None and found.lifecycle_stage != "active":
        raise deleted_experiment(experiment, shown)
    return None


def _understood(error: Any, shown: str) -> str:
    """Why a server is away, from the error of MLflow's client. Raises the errors that do not mend themselves."""
    text, status = str(error), error.get_http_status_code()
    stated = re.search(r"failed with error code (\d+)", text)
    status = int(stated[1]) if stated else status
    if status == 401:
        raise RunError(f"MLflow at {shown} refuses the login (401).", LOGIN) from error
    if status == 403:
        raise RunError(f"MLflow at {shown} lets this login not read experiments (403).", LOGIN) from error
    if status in (404, 405) or "not in a valid JSON format" in text:
        raise ConfigError(f"What answers at {shown} is no MLflow tracking server.", HINT) from error
    return f"HTTP {status}" if stated else _short(text)


def _ask_database(uri: str) -> str | None:
    """Why a database server lets nobody in; None if it does."""
    import sqlalchemy as sa

    shown = without_login(uri)
    try:
        engine = sa.create_engine(uri, connect_args={"connect_timeout": CONNECT_SECONDS} if not uri.startswith("mssql") else {})
    except (ImportError, sa.exc.NoSuchModuleError, sa.exc.ArgumentError) as error:
        raise ConfigError(
            f"The driver for {shown} is missing ({_short(str(error))}).",
            "For PostgreSQL: `pip install 'mixopt[postgres]'`, and an address that begins with postgresql+psycopg://.",
        ) from error
    try:
        with engine.connect():
            return None
    except sa.exc.SQLAlchemyError as error:
        text = str(getattr(error, "orig", error))
        if re.search(r"authentication failed|access denied|login failed", text, re.IGNORECASE):
            raise RunError(f"The database {shown} refuses the login.", "Mend user and password of `tracking.uri`.") from error
        return _short(text)
    finally:
        engine.dispose()


def _short(text: str) -> str:
    """The cause in a client's long message."""
    system = re.findall(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    if system:
        return str(system[-1]).strip()
    refused = re.search(r"too many (\d+) error responses", text)
    if refused:
        return f"HTTP {refused[1]}"
    return "no answer in time" if "timed out" in text.lower() else " ".join(text.split())[:120]
