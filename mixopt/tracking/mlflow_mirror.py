"""The MLflow mirror: what the record knows about a search, shown as one parent run with a child run per trial.

It pulls from the record only, so it can be late, interrupted or absent without harm: `sync` writes what is missing or has changed, and a
mirror completed later equals one made at once. A run carries its key as a tag from its first moment, so that a mirror killed between making a
run and noting it finds the run again. Main trade-off: a sync reads the whole search (milliseconds for hundreds of trials) instead of
following events, which leaves nothing to replay.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mixopt.errors import RunError
from mixopt.history import History
from mixopt.progress import Reporter, Silent
from mixopt.tracking.findings import Findings, read_findings
from mixopt.tracking.mirrored import MirroredRun, search_key, search_run, trial_runs, trials_table
from mixopt.tracking.mlflow_server import MlflowServer, quiet_logging
from mixopt.tracking.note import answer_markdown
from mixopt.tracking.report.write import REPORT_NAME, write_report
from mixopt.tracking.review import shared_views, view_address, view_key
from mixopt.trial import content_digest

logger = logging.getLogger(__name__)

TABLE_NAME = "trials.json"
# A failed sync that took longer met a server that does not answer (a request waits ten seconds), not one that is away.
HUNG_SECONDS = 5.0
# No counter of the record: differs from each of them.
INCOMPLETE = -1
# How often the thread looks whether the search was stopped: Ray gives a job 3 seconds to end.
STOP_LOOK_SECONDS = 0.25


class MlflowMirror:
    """Mirrors one search to one MLflow experiment. A run that was deleted in MLflow is made again by the next mirror.

    Args:
        uri: tracking server (http...) or database (sqlite:///...).
        experiment: its name; made when it is not there, in case of a database with its artifacts in `mlflow-artifacts` beside it.
        folder: where figures and answer are kept on this machine too; None: nowhere.

    Attributes:
        shown_state: state of the search that the parent run shows; "" before the first sync.
    """

    def __init__(self, history: History, search_id: str, uri: str, experiment: str, folder: Path | None = None) -> None:
        self.history = history
        self.search_id = search_id
        self._server = MlflowServer(uri, experiment)
        self._folder = folder
        # Server and experiment as the record names them: the same whoever logs in.
        self._target = f"mlflow:{content_digest([self.shown_uri, experiment])}"
        self._runs: dict[str, str] | None = None
        self.shown_state = ""

    @property
    def shown_uri(self) -> str:
        """The address without user and password."""
        return self._server.shown_uri

    def sync(self, should_stop: Callable[[], bool] = lambda: False) -> bool:
        """Writes what the record holds and MLflow does not.

        Args:
            should_stop: asked before each run; a sync that stops early leaves a mirror that the next one completes.

        Returns:
            Whether the mirror is complete as of the moment this sync began.

        Raises:
            DataError: the record does not hold the search.
            RunError: MLflow does not answer, or refuses.
        """
        findings = read_findings(self.history, self.search_id)
        with quiet_logging():
            import sqlalchemy.exc
            from mlflow.exceptions import MlflowException

            try:
                return self._sync(findings, should_stop)
            except (MlflowException, OSError, sqlalchemy.exc.SQLAlchemyError) as error:
                self._runs = None  # what exists there is not certain any more
                raise RunError(
                    f"MLflow at {self.shown_uri} could not be written ({self._reason(error)}).",
                    "Nothing is lost: `mixopt mirror DIR` completes it when MLflow answers.",
                ) from error

    def _reason(self, error: Exception) -> str:
        """The first line of an error, in which the address may stand with its password."""
        text = str(error).replace(self._server.uri.rstrip("/"), self.shown_uri.rstrip("/")).strip()
        return text.splitlines()[0][:200] if text else type(error).__name__

    def _sync(self, findings: Findings, should_stop: Callable[[], bool]) -> bool:
        parent_id = self._write_parent(search_run(findings))
        self.shown_state = findings.search.state
        self._share_views()
        children = trial_runs(findings, parent_id)
        self._look_up(children)
        # Those that were cut short first: of a job that is being stopped nothing shall stay "running".
        for child in sorted(children, key=lambda run: run.status != "KILLED"):
            if should_stop():
                return False
            self._write(child)
        if should_stop():
            return False
        self._upload(parent_id, findings)
        return True

    def _write_parent(self, parent: MirroredRun) -> str:
        self._look_up([parent])
        known = self._runs or {}
        if parent.key in known:
            return self._write(parent)
        self._write(parent)
        # Another process may have made it at the same moment. Both see both now and keep the same one, before children hang on the other.
        self._runs = self._server.runs(self.search_id)
        return self._write(parent)

    def _share_views(self) -> None:
        """Makes the pages that a reviewer is sent to; once, for people may change them there."""
        key, digest = f"{search_key(self.search_id)}/view", content_digest(shared_views(self.search_id))
        known = self.history.mirror_run(self._target, key)
        if known is None or known.digest != digest:
            self.history.set_mirror_run(self._target, key, self._server.share_views(self.search_id), digest)

    def review_address(self, base: str) -> str:
        """Where the search's trials are seen on a tracking server, or a page over the database, that answers at `base`."""
        known = self.history.mirror_run(self._target, f"{search_key(self.search_id)}/view")
        return f"{base.rstrip('/')}/#/experiments" if known is None else view_address(base, known.run_id, view_key(self.search_id))

    def _look_up(self, wanted: Sequence[MirroredRun]) -> None:
        """Asks MLflow for the search's runs, unless all that are wanted are known: an earlier mirror or another process may have made them."""
        if self._runs is None or any(run.key not in self._runs for run in wanted):
            self._runs = self._server.runs(self.search_id)

    def _write(self, run: MirroredRun) -> str:
        """Makes or updates a run unless it already holds this content; returns its id."""
        assert self._runs is not None
        digests, known = run.digests(), self.history.mirror_run(self._target, run.key)
        run_id = self._runs.get(run.key)
        before = known.digest.split(".") if known is not None and known.run_id == run_id else []
        # A mirror that an earlier version made knows one digest for all, which fits none of the parts.
        parts = [part for place, part in enumerate(digests) if before[place : place + 1] != [digests[part]]]
        if run_id is not None and not parts:
            return run_id
        made = run_id is None
        if run_id is None:
            run_id = self._runs[run.key] = self._server.create(run)
        self._server.write(run_id, run, parts, made)
        self.history.set_mirror_run(self._target, run.key, run_id, ".".join(digests.values()))
        return run_id

    def _upload(self, parent_id: str, findings: Findings) -> None:
        """Figures, answer, experiment file and tables, once there is an answer or the search has ended; again when they change."""
        if findings.proposal is None and findings.search.state == "running":
            return
        answer = answer_markdown(findings)
        key = f"{search_key(self.search_id)}/artifacts"
        digest = content_digest([answer, findings.swarm.digest(), findings.search.experiment_yaml, trials_table(findings)])
        known = self.history.mirror_run(self._target, key)
        if known is not None and (known.run_id, known.digest) == (parent_id, digest):
            return
        with tempfile.TemporaryDirectory(prefix="mixopt-mirror-") as name:
            folder = Path(name)
            (folder / "answer.md").write_text(answer, encoding="utf-8")
            (folder / "experiment.yaml").write_text(findings.search.experiment_yaml, encoding="utf-8")
            findings.swarm.table.write_parquet(folder / "swarm.parquet")
            (folder / TABLE_NAME).write_text(json.dumps(trials_table(findings)), encoding="utf-8")
            self._draw(folder)
            self._server.upload(parent_id, folder, [TABLE_NAME])
            if self._folder is not None:
                for path in (*(folder / "figures").glob("*.png"), folder / "answer.md"):
                    _copy(path, self._folder / path.relative_to(folder))
        self.history.set_mirror_run(self._target, key, parent_id, digest)

    def _draw(self, folder: Path) -> None:
        """Report and figures; without them the rest is still worth having."""
        try:
            write_report(folder / REPORT_NAME, self.history, self.search_id, folder / "figures")
        except Exception:
            logger.exception("Report and figures of search %s could not be drawn for MLflow.", self.search_id)


class MirrorThread:
    """Keeps a mirror up beside a search; starts at once. Whatever MLflow does, the search neither waits nor fails.

    Args:
        interval_seconds: how often it asks the record whether anything changed.
        reporter: told once when MLflow first fails.
    """

    def __init__(self, mirror: MlflowMirror, interval_seconds: float, reporter: Reporter | None = None) -> None:
        self._mirror = mirror
        self._interval_seconds = interval_seconds
        self._reporter = reporter or Silent()
        self._stopping = threading.Event()
        self._deadline = float("inf")
        self._complete = False
        self._told = False
        # A daemon, so that a server that never answers cannot keep the process alive either.
        self._thread = threading.Thread(target=self._run, name="mlflow-mirror", daemon=True)
        self._thread.start()

    def stop(self, timeout_seconds: float) -> bool:
        """Lets the mirror catch up, for at most `timeout_seconds`; returns whether it is complete."""
        self._deadline = time.monotonic() + timeout_seconds
        self._stopping.set()
        self._thread.join(timeout_seconds)
        return self._complete and not self._thread.is_alive()

    def _run(self) -> None:
        mirrored: int | None = None
        last = False
        while True:
            last = self._stopping.is_set()
            began = time.monotonic()
            mirrored = self._step(mirrored)
            # A server that hung while the search came to its end would be waited for twice.
            hung = mirrored is None and time.monotonic() - began > HUNG_SECONDS
            if last or (hung and self._stopping.is_set()):
                return
            self._wait()

    def _wait(self) -> None:
        """Until the next look; shorter when the search is stopped, which MLflow shall show before a cluster kills the process."""
        deadline = time.monotonic() + self._interval_seconds
        while not self._stopping.wait(min(STOP_LOOK_SECONDS, self._interval_seconds)) and time.monotonic() < deadline:
            if self._is_stopped_unseen():
                return

    def _is_stopped_unseen(self) -> bool:
        """Whether the search has ended and MLflow has not been told by this thread."""
        try:
            state = self._mirror.history.search(self._mirror.search_id).state
        except Exception:  # noqa: BLE001 - the sync meets it, too, and tells
            return False
        return state != "running" and state != self._mirror.shown_state

    def _step(self, mirrored: int | None) -> int | None:
        """Syncs if the record has moved since the counter `mirrored`.

        Returns:
            The counter that is mirrored now, INCOMPLETE if the sync stopped early, None after a failure.
        """
        try:
            # Read before the sync: what changes meanwhile is seen the next time.
            counter = self._mirror.history.change_counter()
            if counter != mirrored:
                self._complete = False
                self._complete = self._mirror.sync(lambda: time.monotonic() > self._deadline or self._is_stopped_unseen())
            return counter if self._complete else INCOMPLETE
        except Exception as error:  # noqa: BLE001 - a mirror is no reason to stop a search; `stop` says that it is not complete
            self._complete = False
            if not self._told:
                self._told = True
                self._reporter.note(f"The MLflow mirror is behind, the search goes on. {error}")
            return None


def _copy(source: Path, target: Path) -> None:
    """Copies a file; whoever reads or writes `target` meanwhile never meets half of it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.mirror")
    shutil.copyfile(source, temporary)
    os.replace(temporary, target)
