"""MLflow's own pages over a mirrored search, as a reviewer opens them: the trials as one sorted table, the answer on the search's run."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mixopt.history import History
from mixopt.tracking.mlflow_mirror import MlflowMirror

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PATIENCE_SECONDS = 180.0
SEARCH_ID = "5ea7c4" + "0" * 14


def recorded_search(folder: Path) -> Any:
    """The recorded search of the mirror's tests, finished: ten trials of which one diverged, and a verification of two seeds."""
    path = Path(__file__).parents[1] / "mixopt" / "tracking" / "conftest.py"
    spec = importlib.util.spec_from_file_location("recorded_search", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look for their module there
    spec.loader.exec_module(module)
    return module.RecordedSearch(History.open(folder / "record.sqlite")).finish(10, seeds=2)


def text_with(browser: Any, wanted: list[str]) -> str:
    """What the page says, once it says all that is wanted."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        text = str(browser.run("return document.body.innerText"))
        missing = [words for words in wanted if words not in text]
        if not missing:
            return text
        assert time.monotonic() < deadline, f"the page never says {missing}, but:\n{text[:2000]}"
        time.sleep(0.5)


def test_reviewers_find_the_trials_sorted_and_the_answer(
    start_browser: Callable[[], Any], tracking_server: Callable[[Path], Any], tmp_path: Path
) -> None:
    search = recorded_search(tmp_path)
    server = tracking_server(tmp_path / "mlflow.db")
    server.start()
    mirror = MlflowMirror(search.history, SEARCH_ID, server.uri, "mixopt")
    assert mirror.sync()
    browser = start_browser()
    browser.resize(1700, 1100)

    # Where a finished search sends its user: every trial, best first, with its number beside its name.
    browser.open(mirror.review_address(server.uri))
    values = {run.info.run_name: run.data.metrics.get("objective") for run in _runs(server.uri)}
    # The page draws what is in sight only.
    best = sorted((name for name in values if values[name] is not None), key=lambda name: values[name])[:6]
    page = text_with(browser, [*best, f"{len(values)} matching runs", "objective", "mean_bits_per_byte", "mixopt.cost"])
    places = [page.index(name) for name in best]
    assert places == sorted(places), best
    assert f"{values[best[0]]:.6f}"[:7] in page, "its objective is seen, too"

    # The run of the search: the answer as its description, its data, its tags.
    parent = next(run for run in _runs(server.uri) if run.data.tags["mixopt.kind"] == "search")
    address = f"{server.uri}/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    browser.open(address)
    page = text_with(browser, ["Train on ", "Datasets", "mixopt.strategy", "regression", "mixopt.corpus", "mixopt.cost", "Parameters (11)"])
    assert parent.info.run_name in page

    # The swarm as a table.
    browser.open(f"{address}/artifacts/trials.json")
    page = text_with(browser, ["answer.md", "experiment.yaml", "swarm.parquet", "View as table", "001 natural nano s0"])


def _runs(uri: str) -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return list(client.search_runs([client.get_experiment_by_name("mixopt").experiment_id]))
