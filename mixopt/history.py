"""The record: searches, trials, outcomes and events in a database. Everything else (MLflow, figures, reports) is a mirror of it.

A trial is written before anything runs; each change is one transaction that also appends one event, so kill -9 at any line leaves either
the state before or the state after. What happened to a trial is shared by all searches of a record; its label, order and domain names
belong to the search that asked.

Main trade-off: specs and outcomes are JSON values, not columns. They are read whole, by this class only, and stay readable with any SQL
client; in return new fields of a trial need no migration.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from mixopt.errors import DataError
from mixopt.record import CALIBRATION_PREFIX, COMPONENTS_PREFIX, contents, tables
from mixopt.swarm import Swarm, on_curve_rows
from mixopt.trial import Failure, FailureKind, JsonValue, Outcome, Trial, TrialState, content_digest, trial_from_spec

SearchState = Literal["running", "interrupted", "finished", "failed"]
StageName = Literal["base", "components", "search", "verification", "calibration", "ablation"]


@dataclass(frozen=True)
class SearchRecord:
    """One search as the record knows it; `created` and `updated` are UTC."""

    search_id: str
    name: str
    experiment_yaml: str
    state: SearchState
    created: datetime
    updated: datetime


@dataclass(frozen=True)
class TrialRecord:
    """One trial as one search sees it.

    Attributes:
        trial: with this search's label and names of domains.
        ordinal: 0 for the trial asked first in its stage.
        attempts: failures so far, cancellations not counted.
        failure: the last one; None once completed.
        updated: last change of state, UTC.
    """

    trial: Trial
    stage: StageName
    ordinal: int
    state: TrialState
    attempts: int
    outcome: Outcome | None
    failure: Failure | None
    updated: datetime


@dataclass(frozen=True)
class MirrorRun:
    """What a mirror made for one key: its run there, and a digest of what was written to it."""

    run_id: str
    digest: str


class History:
    """The record. Safe to share between threads; any number of processes may open the same one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._shown = engine.url.database if engine.dialect.name == "sqlite" else engine.url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, location: Path | str) -> History:
        """Opens or creates a record.

        Args:
            location: path of an SQLite file, or an SQLAlchemy URL.

        Raises:
            ConfigError: the URL cannot be read, or its driver is not installed.
            DataError: not a database, unreachable, or written by another version.
        """
        return cls(tables.open_database(location))

    def close(self) -> None:
        self._engine.dispose()

    def __enter__(self) -> History:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # Searches

    def add_search(self, search_id: str, name: str, experiment_yaml: str) -> None:
        """Records a search, or updates name and experiment of a known one. Its state begins as "interrupted": recorded, not running."""
        now = time.time()
        known = sa.select(tables.searches.c.name, tables.searches.c.experiment_yaml).where(tables.searches.c.search_id == search_id)
        given = {"name": name, "experiment_yaml": experiment_yaml}
        with self._write() as connection:
            row = {"search_id": search_id, **given, "state": "interrupted", "created": now, "updated": now}
            if self._insert_new(connection, tables.searches, [row]):
                self._event(connection, "search added", search_id)
            elif connection.execute(known.with_for_update(key_share=True)).one()._asdict() != given:
                self._update_search(connection, search_id, **given)
                self._event(connection, "search updated", search_id)

    def searches(self) -> list[SearchRecord]:
        """All searches, newest last."""
        return [record for record in self._recorded() if not record.search_id.startswith((CALIBRATION_PREFIX, COMPONENTS_PREFIX))]

    def calibrations(self) -> list[SearchRecord]:
        """All calibrations, which are recorded as searches are, newest last."""
        return [record for record in self._recorded() if record.search_id.startswith(CALIBRATION_PREFIX)]

    def components(self) -> list[SearchRecord]:
        """All families of components, recorded in the same way, newest last."""
        return [record for record in self._recorded() if record.search_id.startswith(COMPONENTS_PREFIX)]

    def _recorded(self) -> list[SearchRecord]:
        query = sa.select(tables.searches).order_by(tables.searches.c.created, tables.searches.c.search_id)
        with self._read() as connection:
            return [_search_record(row) for row in connection.execute(query)]

    def search(self, search_id: str) -> SearchRecord:
        """Raises DataError if the record does not hold it."""
        with self._read() as connection:
            row = connection.execute(sa.select(tables.searches).where(tables.searches.c.search_id == search_id)).one_or_none()
        if row is None:
            raise _unknown_search(search_id)
        return _search_record(row)

    def set_search_state(self, search_id: str, state: SearchState) -> None:
        with self._write() as connection:
            self._lock_search(connection, search_id)
            self._update_search(connection, search_id, state=state)
            self._event(connection, f"search {state}", search_id)

    # Trials

    def add_trials(self, search_id: str, trials: Sequence[Trial], stage: StageName) -> None:
        """Records trials in the order given, before anything runs; all of them or none.

        Trials the search already holds in this stage keep their place and take the new label. Trials another search trained are linked.

        Raises:
            DataError: the search is unknown, or two domains of a trial hold the same text.
        """
        for trial in trials:
            contents.refuse_twin_domains(trial)
        now = time.time()
        with self._write() as connection:
            self._lock_search(connection, search_id)
            mine = (tables.search_trials.c.search_id == search_id) & (tables.search_trials.c.stage == stage)
            held = connection.execute(sa.select(tables.search_trials.c.trial_id, tables.search_trials.c.spec).where(mine))
            known = {row.trial_id: content_digest(row.spec) for row in held}
            distinct = {trial.trial_id: trial for trial in trials}
            new = [trial for trial in distinct.values() if trial.trial_id not in known]
            changed = [t for key, t in distinct.items() if key in known and known[key] != content_digest(t.spec())]
            # Sorted, here and wherever several trials are locked: two writers then never wait for each other in a circle (PostgreSQL).
            new_ids = sorted(trial.trial_id for trial in new)
            fresh = [{"trial_id": key, "state": TrialState.PROPOSED, "attempts": 0, "updated": now} for key in new_ids]
            self._insert_new(connection, tables.trials, fresh)
            links = [
                {"search_id": search_id, "stage": stage, "trial_id": trial.trial_id, "ordinal": ordinal, "spec": trial.spec()}
                for ordinal, trial in enumerate(new, start=len(known))
            ]
            if links:
                connection.execute(tables.search_trials.insert(), links)
            for trial in changed:
                same = mine & (tables.search_trials.c.trial_id == trial.trial_id)
                connection.execute(tables.search_trials.update().where(same).values(spec=trial.spec()))
            for trial in (*new, *changed):
                self._event(connection, "asked", trial.trial_id, {"search": search_id, "stage": stage, "label": trial.label})

    def mark_running(self, trial_ids: Iterable[str]) -> None:
        """Proposed and failed trials are now running; others keep their state (a completed one may only be scored again)."""
        waiting = (TrialState.PROPOSED, TrialState.FAILED)
        with self._write() as connection:
            for trial_id in sorted(trial_ids):
                row = self._lock_trial(connection, trial_id)
                if row.state in waiting:
                    self._update_trial(connection, trial_id, state=TrialState.RUNNING)
                    self._event(connection, "running", trial_id, {"attempt": row.attempts + 1})

    def complete(self, outcome: Outcome) -> bool:
        """Records what a trial measured; the trial is completed.

        Of a trial that has an outcome, only measurements not known yet are added (evaluations asked for later); the rest stays as it was
        recorded first. Diagnostics that are not finite are stored as null.

        Returns:
            False if nothing was new.

        Raises:
            DataError: the trial is unknown, its realized shares do not fit its domains, or a number is not finite.
        """
        with self._write() as connection:
            return self._complete(connection, outcome, replaced=False)

    def fail(self, trial_id: str, failure: Failure, max_attempts: int) -> TrialState:
        """Records a failure.

        Returns:
            FAILED if trying again can help and fewer than `max_attempts` attempts failed, else ABANDONED. A cancelled trial is FAILED and
            its attempts are not counted. A trial that has an outcome stays completed in the record, whatever is returned here: only
            scoring it again failed.

        Raises:
            DataError: the trial is unknown.
        """
        with self._write() as connection:
            return self._fail(connection, trial_id, failure, max_attempts)

    def tell(self, outcomes: Sequence[Outcome], failures: Mapping[str, Failure], max_attempts: int, replaced: bool = False) -> None:
        """Records what trials measured and how others failed, all of it or none, as `complete` and `fail` do.

        Args:
            failures: trial id -> failure.
            replaced: measurements take the place of those that are recorded; shares, FLOPs and seconds stay as they were recorded first.

        Raises:
            DataError: as `complete`.
        """
        measured = {outcome.trial_id: outcome for outcome in outcomes}
        with self._write() as connection:
            for trial_id in sorted({*measured, *failures}):
                if trial_id in measured:
                    self._complete(connection, measured[trial_id], replaced)
                if trial_id in failures:
                    self._fail(connection, trial_id, failures[trial_id], max_attempts)

    def retry_abandoned(self, search_id: str) -> list[str]:
        """Proposes again the search's abandoned trials that did not diverge, with their attempts at 0; returns their ids.

        For a search that stopped because its trials failed: the cause (a full disk, a missing file) may have been mended since.
        """
        given_up = [record for record in self.trials(search_id) if record.state is TrialState.ABANDONED]
        again = [r.trial.trial_id for r in given_up if r.failure is not None and r.failure.kind is not FailureKind.DIVERGED]
        with self._write() as connection:
            for trial_id in sorted(again):
                self._lock_trial(connection, trial_id)
                self._update_trial(connection, trial_id, state=TrialState.PROPOSED, attempts=0)
                self._event(connection, "proposed again", trial_id, {"search": search_id})
        return again

    def trials(self, search_id: str, stage: StageName | None = None) -> list[TrialRecord]:
        """The trials of a search in ask order: those that others begin with, those of the search, those of verification."""
        query = _trial_query(search_id, stage)
        with self._read() as connection:
            return [_trial_record(row) for row in connection.execute(query)]

    def trial(self, search_id: str, stage: StageName, trial_id: str) -> TrialRecord:
        """One trial of a search. Raises DataError if the search does not hold it in this stage."""
        query = _trial_query(search_id, stage).where(tables.search_trials.c.trial_id == trial_id)
        with self._read() as connection:
            row = connection.execute(query).one_or_none()
        if row is None:
            raise DataError(f"Search {search_id} has no trial {trial_id} in its {stage} stage.")
        return _trial_record(row)

    def find_trials(self, digits: str) -> dict[str, Trial]:
        """Trials whose id begins with these digits, whichever search asked for them, as the first of these sees them."""
        link = tables.search_trials
        query = sa.select(link.c.trial_id, link.c.spec).where(link.c.trial_id.startswith(digits, autoescape=True))
        with self._read() as connection:
            rows = connection.execute(query.order_by(link.c.search_id, link.c.stage)).all()
        return {row.trial_id: trial_from_spec(row.spec) for row in reversed(rows)}

    def completed_trials(self) -> frozenset[str]:
        """Ids of the trials that have an outcome, whichever search asked for them."""
        with self._read() as connection:
            return frozenset(connection.execute(sa.select(tables.outcomes.c.trial_id)).scalars())

    def states(self, trial_ids: Collection[str]) -> dict[str, TrialState]:
        """Where trials are, whichever search asked for them; without those that the record does not hold."""
        here = tables.trials.c.trial_id.in_(list(trial_ids))
        with self._read() as connection:
            rows = connection.execute(sa.select(tables.trials.c.trial_id, tables.trials.c.state).where(here)).all()
        return {row.trial_id: TrialState(row.state) for row in rows}

    def others_of(self, search_id: str, trial_ids: Collection[str]) -> dict[str, list[SearchRecord]]:
        """Trial id -> the searches but this one that asked for it too, the oldest first; without trials that no other one asked for."""
        link = tables.search_trials
        query = sa.select(link.c.trial_id, link.c.search_id).where(link.c.trial_id.in_(list(trial_ids)), link.c.search_id != search_id)
        with self._read() as connection:
            held = {(row.trial_id, row.search_id) for row in connection.execute(query)}
        found: dict[str, list[SearchRecord]] = {}
        for record in self.searches() if held else []:
            for trial_id in sorted(trial for trial, search in held if search == record.search_id):
                found.setdefault(trial_id, []).append(record)
        return found

    def swarm(
        self,
        search_id: str,
        domains: Sequence[str],
        metrics: Mapping[str, str],
        stage: StageName = "search",
        curve_metrics: Mapping[str, str] | None = None,
    ) -> Swarm:
        """The completed trials of one stage as a table, in ask order.

        Args:
            domains: names of this search's domains, in the order the swarm should have.
            metrics: evaluation key -> name of the metric; measurements of other keys are left out.
            curve_metrics: the same for end losses on the rows of earlier points, for `Swarm.curves`; None: leave these out.

        Raises:
            DataError: `domains` are not those the trials were asked over.
        """
        completed = [(record.trial, record.outcome) for record in self.trials(search_id, stage) if record.outcome is not None]
        return contents.swarm_of(completed, domains, {**on_curve_rows(curve_metrics or {}), **metrics})

    # Documents and mirrors

    def save_document(self, search_id: str, kind: str, body: Mapping[str, JsonValue], outdates: Sequence[str] = ()) -> None:
        """Stores a JSON document of a search ("context", "proposal", "verification", "calibration", "components", "gate", "ablation"), in place of an earlier one.

        Numbers that are not finite are stored as null.

        Args:
            outdates: kinds that are about this document, and are removed in the same transaction when it is new or has changed.
        """
        new = contents.finite(body)
        with self._write() as connection:
            self._lock_search(connection, search_id)
            here = (tables.documents.c.search_id == search_id) & (tables.documents.c.kind == kind)
            found = connection.execute(sa.select(tables.documents.c.body).where(here)).scalar_one_or_none()
            if found == new:
                return
            if found is None:
                connection.execute(tables.documents.insert().values(search_id=search_id, kind=kind, body=new))
            else:
                connection.execute(tables.documents.update().where(here).values(body=new))
            about = (tables.documents.c.search_id == search_id) & tables.documents.c.kind.in_(outdates)
            connection.execute(tables.documents.delete().where(about))
            self._event(connection, "document", search_id, {"kind": kind})

    def document(self, search_id: str, kind: str) -> dict[str, JsonValue] | None:
        here = (tables.documents.c.search_id == search_id) & (tables.documents.c.kind == kind)
        with self._read() as connection:
            body: dict[str, JsonValue] | None = connection.execute(sa.select(tables.documents.c.body).where(here)).scalar_one_or_none()
        return body

    def mirror_run(self, target: str, key: str) -> MirrorRun | None:
        """What was mirrored to `target` (a tracking server and experiment) under `key` (a search or trial)."""
        here = (tables.mirror_runs.c.target == target) & (tables.mirror_runs.c.key == key)
        with self._read() as connection:
            row = connection.execute(sa.select(tables.mirror_runs.c.run_id, tables.mirror_runs.c.digest).where(here)).one_or_none()
        return None if row is None else MirrorRun(row.run_id, row.digest)

    def set_mirror_run(self, target: str, key: str, run_id: str, digest: str) -> None:
        """Remembers a mirrored run. Not a change in the sense of `change_counter`, or a mirror would wake itself."""
        here = (tables.mirror_runs.c.target == target) & (tables.mirror_runs.c.key == key)
        with self._write() as connection:
            values = {"run_id": run_id, "digest": digest}
            if connection.execute(tables.mirror_runs.update().where(here).values(values)).rowcount == 0:
                self._insert_new(connection, tables.mirror_runs, [{"target": target, "key": key, **values}])

    def change_counter(self) -> int:
        """A number that grows with every write to searches, trials, outcomes and documents.

        The number of events rather than the last one's id: concurrent PostgreSQL transactions may commit their ids out of order.
        """
        with self._read() as connection:
            return connection.execute(sa.select(sa.func.count()).select_from(tables.events)).scalar_one()

    # Inside a transaction

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with self._explained("read"), self._engine.connect().execution_options(read_only=True) as connection:
            yield connection

    @contextmanager
    def _write(self) -> Iterator[Connection]:
        with self._explained("written"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """A full disk, a lost server or a damaged file as one sentence; what was recorded before stays recorded."""
        try:
            yield
        except sa.exc.DatabaseError as error:
            if isinstance(error, sa.exc.IntegrityError | sa.exc.ProgrammingError):
                raise  # a mistake of ours
            reason = " ".join(str(error.orig).split())
            raise DataError(
                f"The record {self._shown} could not be {what}: {reason}.",
                "Mend the cause and run the same command again; nothing is lost.",
            ) from error

    def _complete(self, connection: Connection, outcome: Outcome, replaced: bool) -> bool:
        self._lock_trial(connection, outcome.trial_id)
        stored = connection.execute(
            sa.select(tables.outcomes.c.body).where(tables.outcomes.c.trial_id == outcome.trial_id)
        ).scalar_one_or_none()
        if stored is None:
            specs = sa.select(tables.search_trials.c.spec).where(tables.search_trials.c.trial_id == outcome.trial_id)
            contents.check_outcome(outcome, trial_from_spec(connection.execute(specs.limit(1)).scalar_one()))
            body = {**outcome.to_json(), "diagnostics": contents.finite(outcome.diagnostics)}
            connection.execute(tables.outcomes.insert().values(trial_id=outcome.trial_id, body=body))
            added = outcome.measurements
        else:
            before = Outcome.from_json(stored)
            if replaced:
                before = contents.without_measurements(before, outcome)
            added = contents.new_measurements(before, outcome)
            if not added:
                return False
            body = replace(before, measurements=before.measurements + added).to_json()
            connection.execute(tables.outcomes.update().where(tables.outcomes.c.trial_id == outcome.trial_id).values(body=body))
        self._update_trial(connection, outcome.trial_id, state=TrialState.COMPLETED, failure=None)
        kind = "completed" if stored is None else "replaced" if replaced else "scored"
        self._event(connection, kind, outcome.trial_id, {"measurements": len(added), "seconds": outcome.seconds})
        return True

    def _fail(self, connection: Connection, trial_id: str, failure: Failure, max_attempts: int) -> TrialState:
        row = self._lock_trial(connection, trial_id)
        attempts = row.attempts + (failure.kind is not FailureKind.CANCELLED)
        again = failure.kind is FailureKind.CANCELLED or (failure.kind.retryable and attempts < max_attempts)
        state = TrialState.FAILED if again else TrialState.ABANDONED
        body = {"kind": failure.kind, "message": failure.message, "tokens": failure.tokens}
        if row.state == TrialState.COMPLETED:
            self._update_trial(connection, trial_id, attempts=attempts)
        else:
            self._update_trial(connection, trial_id, attempts=attempts, state=state, failure=body)
        self._event(connection, state, trial_id, {**body, "attempt": attempts})
        return state

    def _lock_search(self, connection: Connection, search_id: str) -> None:
        query = sa.select(tables.searches.c.search_id).where(tables.searches.c.search_id == search_id).with_for_update(key_share=True)
        if connection.execute(query).one_or_none() is None:
            raise _unknown_search(search_id)

    def _lock_trial(self, connection: Connection, trial_id: str) -> Any:
        """The row of a trial, locked until the end of the transaction (SQLite: the whole record is).

        `key_share` leaves the row free for the foreign keys of `add_trials`, which lock in ask order: a cycle, without it.
        """
        row = connection.execute(
            sa.select(tables.trials).where(tables.trials.c.trial_id == trial_id).with_for_update(key_share=True)
        ).one_or_none()
        if row is None:
            raise DataError(f"Trial {trial_id} is not in the record.", "Trials are recorded with `add_trials` before they run.")
        return row

    def _update_search(self, connection: Connection, search_id: str, **values: object) -> None:
        update = tables.searches.update().where(tables.searches.c.search_id == search_id)
        connection.execute(update.values(updated=time.time(), **values))

    def _update_trial(self, connection: Connection, trial_id: str, **values: object) -> None:
        connection.execute(tables.trials.update().where(tables.trials.c.trial_id == trial_id).values(updated=time.time(), **values))

    def _insert_new(self, connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> int:
        """Inserts the rows whose primary key is not there yet; returns how many were inserted."""
        if not rows:
            return 0
        insert = postgresql.insert(table) if self._engine.dialect.name == "postgresql" else sqlite.insert(table)
        statement = insert.on_conflict_do_nothing().values(list(rows))
        return connection.execute(statement, execution_options={"preserve_rowcount": True}).rowcount

    def _event(self, connection: Connection, kind: str, subject: str, detail: Mapping[str, JsonValue] | None = None) -> None:
        row = {"happened": time.time(), "kind": kind, "subject": subject, "detail": dict(detail or {})}
        connection.execute(tables.events.insert().values(row))


def _unknown_search(search_id: str) -> DataError:
    return DataError(f"Search {search_id} is not in the record.", "`mixopt show DIR` shows the newest search of an output folder.")


def _search_record(row: Any) -> SearchRecord:
    return SearchRecord(row.search_id, row.name, row.experiment_yaml, row.state, _time(row.created), _time(row.updated))


def _trial_query(search_id: str, stage: StageName | None) -> sa.Select[Any]:
    link, trial, outcome = tables.search_trials, tables.trials, tables.outcomes
    query = (
        sa.select(link.c.spec, link.c.stage, link.c.ordinal, trial, outcome.c.body)
        .join(trial, trial.c.trial_id == link.c.trial_id)
        .outerjoin(outcome, outcome.c.trial_id == link.c.trial_id)
        .where(link.c.search_id == search_id)
        .order_by(link.c.stage, link.c.ordinal)
    )
    return query if stage is None else query.where(link.c.stage == stage)


def _trial_record(row: Any) -> TrialRecord:
    failure = None if row.failure is None else Failure(FailureKind(row.failure["kind"]), row.failure["message"], row.failure["tokens"])
    return TrialRecord(
        trial=trial_from_spec(row.spec),
        stage=row.stage,
        ordinal=row.ordinal,
        state=TrialState(row.state),
        attempts=row.attempts,
        outcome=None if row.body is None else Outcome.from_json(row.body),
        failure=failure,
        updated=_time(row.updated),
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
