"""The few MLflow calls that the mirror needs, made safe: short waits, no duplicates, no noise.

Works against a tracking server (http) and a database (sqlite). Everything goes through `MlflowClient` with explicit run ids; MLflow's
"active run" is state of the process and is not used.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mixopt.addresses import without_login
from mixopt.errors import RunError
from mixopt.tracking.first_contact import check_address
from mixopt.tracking.inputs import Input
from mixopt.tracking.mirrored import KEY_TAG, SEARCH_TAG, MirroredRun
from mixopt.tracking.review import KIND, KIND_TAG, VIEW_TAG, shared_views

# Limits of one log_batch request (mlflow/utils/validation.py).
METRICS_PER_BATCH, PARAMS_PER_BATCH = 1000, 100
RUNS_PER_PAGE = 1000
NOISY_LOGGERS = ("mlflow.store.db.utils", "urllib3.connectionpool", "urllib3.util.retry")

# MLflow reads these from the environment at each request and offers no other way. A server that is down would otherwise hold each call for
# minutes (7 retries of 120 seconds). They are set only where the user has not set them, once, and stay set: taking them back would race with
# other threads, and nothing but MLflow reads them.
HTTP_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# A search on the user's machine reports to nobody, unless the user asks for it.
PRIVACY_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true"}


class MlflowServer:
    """One experiment on a tracking server or in a database. Connects when first used; used by one thread at a time.

    Raises:
        ConfigError: `uri` is no address.
    """

    def __init__(self, uri: str, experiment: str) -> None:
        check_address(uri)
        self.uri = uri
        self.experiment = experiment
        self._client: Any = None
        self._experiment_id = ""
        for name, value in (PRIVACY_ENVIRONMENT | (HTTP_ENVIRONMENT if uri.startswith("http") else {})).items():
            os.environ.setdefault(name, value)

    @property
    def shown_uri(self) -> str:
        """The address without user and password."""
        return without_login(self.uri)

    def runs(self, search_id: str) -> dict[str, str]:
        """Key -> run id of every run of a search. Of runs with one key the first is kept and the others are deleted.

        There is more than one when a request was repeated although its first try had arrived, or when two processes mirror one search.
        """
        client = self._connected()
        found: dict[str, str] = {}
        token = None
        while True:
            page = client.search_runs(
                [self._experiment_id],
                filter_string=f"tags.`{SEARCH_TAG}` = '{search_id}'",
                max_results=RUNS_PER_PAGE,
                order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
                page_token=token,
            )
            for run in page:
                key = run.data.tags.get(KEY_TAG, "")
                if found.setdefault(key, run.info.run_id) != run.info.run_id:
                    client.delete_run(run.info.run_id)
            token = page.token
            if not token:
                return found

    def create(self, run: MirroredRun) -> str:
        """Makes a run with its tags, in one request, so that it is never without its key; returns its id."""
        made = self._connected().create_run(self._experiment_id, start_time=run.started_ms, tags=dict(run.tags), run_name=run.name)
        return str(made.info.run_id)

    def write(self, run_id: str, run: MirroredRun, parts: Collection[str], made: bool) -> None:
        """Makes the run hold these parts of `run` (keys of `PARTS`); written twice, it is the same.

        Args:
            made: it has just been created with its name and tags.
        """
        from mlflow.entities import Metric, Param, RunTag

        client = self._connected()
        metrics: list[Any] = []
        params: list[Any] = []
        if "summaries" in parts:
            metrics += [Metric(name, value, run.summaries_ms, step) for name, value, step in run.summaries]
        if "measured" in parts:
            metrics += [Metric(name, value, run.measured_ms, step) for name, value, step in run.measured]
            params += [Param(name, value) for name, value in run.params.items()]
        tags = [RunTag(name, value) for name, value in run.tags.items()] if "state" in parts and not made else []
        if metrics or params or tags:
            client.log_batch(run_id, metrics[:METRICS_PER_BATCH], params[:PARAMS_PER_BATCH], tags)
        for chunk in _chunks(metrics, METRICS_PER_BATCH):
            client.log_batch(run_id, metrics=chunk)
        for chunk in _chunks(params, PARAMS_PER_BATCH):
            client.log_batch(run_id, params=chunk)
        if "inputs" in parts and run.inputs:
            client.log_inputs(run_id, datasets=[_dataset(item) for item in run.inputs])
        # Last: a run that looks finished is whole.
        if "state" in parts:
            if not made:
                client.update_run(run_id, status=run.status, name=run.name)
            if run.ended_ms is not None:
                client.set_terminated(run_id, run.status, run.ended_ms)

    def share_views(self, search_id: str) -> str:
        """Puts the pages of the search where MLflow finds them; returns the experiment's id."""
        client = self._connected()
        for key, view in shared_views(search_id).items():
            client.set_experiment_tag(self._experiment_id, VIEW_TAG + key, view)
        return self._experiment_id

    def upload(self, run_id: str, folder: Path, tables: Sequence[str]) -> None:
        """Copies everything in `folder` to the run's artifacts; `tables` are JSON tables among them that the UI shows as such."""
        client = self._connected()
        client.log_artifacts(run_id, str(folder))
        # What MlflowClient.log_table sets, which is not used because it appends to a table that is already there.
        client.set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([{"path": path, "type": "table"} for path in tables]))

    def _connected(self) -> Any:
        if self._client is None:
            from mlflow import MlflowClient

            artifacts = None
            if self.uri.startswith("sqlite:///"):
                folder = Path(self.uri.removeprefix("sqlite:///")).absolute().parent
                folder.mkdir(parents=True, exist_ok=True)
                artifacts = (folder / "mlflow-artifacts").as_uri()
            client = MlflowClient(tracking_uri=self.uri)
            self._experiment_id = self._experiment(client, artifacts)
            self._client = client
        return self._client

    def _experiment(self, client: Any, artifacts: str | None) -> str:
        """The experiment's id; made if it is not there, also when another process makes it at the same moment."""
        from mlflow.exceptions import MlflowException

        found = client.get_experiment_by_name(self.experiment)
        if found is None:
            try:
                return str(client.create_experiment(self.experiment, artifact_location=artifacts, tags={KIND_TAG: KIND}))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                found = client.get_experiment_by_name(self.experiment)
        if found.lifecycle_stage != "active":
            raise deleted_experiment(self.experiment, self.shown_uri)
        return str(found.experiment_id)


def deleted_experiment(experiment: str, shown_uri: str) -> RunError:
    return RunError(
        f"The MLflow experiment '{experiment}' at {shown_uri} was deleted.", "Restore it, or set another `tracking.experiment`."
    )


@contextmanager
def quiet_logging() -> Iterator[None]:
    """Keeps this thread's migrations and retries out of the log; other threads and real errors still get through."""
    thread = threading.get_ident()

    def loud(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.levelno >= logging.ERROR

    loggers = [logging.getLogger(name) for name in NOISY_LOGGERS]
    for logger in loggers:
        logger.addFilter(loud)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(loud)


def _dataset(item: Input) -> Any:
    """An input as MLflow has it; its pages know "local" sources by path and show the profile as it is."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    body = Dataset(
        name=item.name,
        digest=item.digest,
        source_type="local",
        source=json.dumps({"uri": item.source}),
        profile=json.dumps(dict(item.facts)),
    )
    return DatasetInput(body, tags=[InputTag("mlflow.data.context", item.context)])


def _chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """What is left after the first `size` items, in pieces of `size`."""
    for start in range(size, len(items), size):
        yield items[start : start + size]
