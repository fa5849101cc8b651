"""The tables of the record, and how a database that holds them is opened.

Why these choices: SQLite in WAL mode lets the mirror and the tables of the command line read while the search writes. `synchronous=FULL`
syncs each commit, so an acknowledged write survives not only kill -9 (for which NORMAL would do) but also a power cut; a trial commits
a handful of times, so the syncs cost nothing that counts. Writers take the lock when they begin (BEGIN IMMEDIATE): a transaction that
reads before it writes would otherwise fail, without waiting, whenever another process wrote in between.

Main trade-off: WAL needs shared memory, hence one machine and a local disk. A record that several machines share is a PostgreSQL URL.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from mixopt.errors import ConfigError, DataError

SCHEMA_VERSION = 1
# How long a writer waits for another one. Transactions last milliseconds; a minute covers a stalled disk.
BUSY_TIMEOUT_SECONDS = 60

metadata = sa.MetaData()

versions = sa.Table("schema_version", metadata, sa.Column("version", sa.Integer, primary_key=True, autoincrement=False))

searches = sa.Table(
    "searches",
    metadata,
    sa.Column("search_id", sa.String(64), primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("experiment_yaml", sa.Text, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created", sa.Float, nullable=False),  # seconds since 1970, UTC
    sa.Column("updated", sa.Float, nullable=False),
)

# Shared by all searches: what happened to a trial does not depend on who asked for it.
trials = sa.Table(
    "trials",
    metadata,
    sa.Column("trial_id", sa.String(64), primary_key=True),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("failure", sa.JSON(none_as_null=True)),
    sa.Column("updated", sa.Float, nullable=False),
)

# One search's view of a trial: its own names of the domains, its own label, its own order.
search_trials = sa.Table(
    "search_trials",
    metadata,
    sa.Column("search_id", sa.ForeignKey("searches.search_id"), primary_key=True),
    sa.Column("stage", sa.String(16), primary_key=True),
    sa.Column("trial_id", sa.ForeignKey("trials.trial_id"), primary_key=True, index=True),
    sa.Column("ordinal", sa.Integer, nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.UniqueConstraint("search_id", "stage", "ordinal"),
)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("trial_id", sa.ForeignKey("trials.trial_id"), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
)

# Append only. Every change of the tables above and of `documents` adds one row in its own transaction.
events = sa.Table(
    "events",
    metadata,
    sa.Column("event_id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("happened", sa.Float, nullable=False),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("subject", sa.String(64), nullable=False),  # a trial id or a search id
    sa.Column("detail", sa.JSON, nullable=False),
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("search_id", sa.ForeignKey("searches.search_id"), primary_key=True),
    sa.Column("kind", sa.String(32), primary_key=True),
    sa.Column("body", sa.JSON, nullable=False),
)

mirror_runs = sa.Table(
    "mirror_runs",
    metadata,
    sa.Column("target", sa.String(512), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("run_id", sa.String(128), nullable=False),
    sa.Column("digest", sa.String(128), nullable=False),
)


def open_database(location: Path | str) -> Engine:
    """Opens the record at `location`, creating its folder and tables where they do not exist.

    Args:
        location: path of an SQLite file, or an SQLAlchemy URL such as `postgresql+psycopg://host/name`.

    Raises:
        ConfigError: the URL cannot be read, or its driver is not installed.
        DataError: the file is not a database, is unreachable, or was written by another version.
    """
    url = _url(location)
    shown = url.database if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
    try:
        engine = _engine(url)
    except (ImportError, NoSuchModuleError) as error:
        raise ConfigError(f"No driver for the record {shown} ({error}).", "For PostgreSQL: `pip install 'psycopg[binary]'`.") from error
    try:
        _create_or_check(engine, str(shown))
    except SQLAlchemyError as error:
        engine.dispose()
        reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        raise DataError(
            f"The record {shown} cannot be opened: {' '.join(reason.split())}.", "Check that it is a mixopt record and can be written."
        ) from error
    except DataError:
        engine.dispose()
        raise
    return engine


def _url(location: Path | str) -> URL:
    if isinstance(location, str) and "://" in location:
        try:
            return make_url(location)
        except ArgumentError as error:
            # The text of the error would show a password.
            raise ConfigError("The URL of the record cannot be read.", "Write it as postgresql+psycopg://user@host/name.") from error
    path = Path(location).expanduser().resolve()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"Folder {path.parent} of the record cannot be created: {error.strerror}.", "Choose another `output:`.") from error
    return URL.create("sqlite", database=str(path))


def _engine(url: URL) -> Engine:
    to_json = functools.partial(json.dumps, allow_nan=False)
    if url.get_backend_name() != "sqlite":
        return sa.create_engine(url, json_serializer=to_json, pool_pre_ping=True)
    engine = sa.create_engine(url, json_serializer=to_json, connect_args={"timeout": BUSY_TIMEOUT_SECONDS})
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # sqlite3 begins no transactions of its own; `_begin_sqlite` does
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    reading = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if reading else "BEGIN IMMEDIATE")


def _create_or_check(engine: Engine, shown: str) -> None:
    """Creates the tables and their version in one transaction, or checks the version that is there."""
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            # Two first openings at once: `create table if not exists` races in PostgreSQL. The number only has to be ours.
            connection.execute(sa.text("SELECT pg_advisory_xact_lock(6049231)"))
        if not sa.inspect(connection).has_table(versions.name):
            metadata.create_all(connection)
            connection.execute(versions.insert().values(version=SCHEMA_VERSION))
            return
        found = connection.execute(sa.select(versions.c.version)).scalars().all()
    if found != [SCHEMA_VERSION]:
        raise DataError(
            f"The record {shown} has version {found[0] if found else 'none'}, this mixopt reads {SCHEMA_VERSION}.",
            "Use the mixopt that wrote it, or give the search another `output:`.",
        )
