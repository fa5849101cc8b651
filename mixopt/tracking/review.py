"""How MLflow's page of runs looks when searches are reviewed: the trials of one as a flat table sorted by the objective, or all searches.

MLflow's own first page shows one row per search, no numbers, and the trials behind a small cross. Its pages can show a *shared view*, which is
JSON in a tag of the experiment and named in the address; this writes that JSON. It is a format of MLflow's pages (3.x), not of
its API: a version that does not understand it shows its usual page, and nothing is lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from mixopt.tracking.mirrored import SEARCH_TAG

# What the pages look for (seen in MLflow 3.17 when a view is shared there).
VIEW_TAG = "mlflow.sharedViewState."
# Shows "Model training" rather than the pages for language-model applications.
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
# Of the trials of one search, and of the searches of an experiment beside each other: sorted by the first; width in pixels.
NAME = {"attributes.`Run Name`": 260}
TRIAL_COLUMNS = {
    "metrics.`objective`": 120,
    "metrics.`mean_bits_per_byte`": 170,
    "tags.`mixopt.stage`": 120,
    "tags.`mixopt.cost`": 180,
    "tags.`mixopt.router`": 160,
}
SEARCH_COLUMNS = {
    "metrics.`mean_bits_per_byte`": 170,
    "metrics.`objective/predicted`": 160,
    "metrics.`trials/completed`": 130,
    "params.`strategy`": 110,
    "params.`surrogate`": 150,
    "params.`size`": 80,
    "params.`tokens`": 100,
    "tags.`mixopt.objective`": 200,
    "tags.`mixopt.recommended`": 160,
    "tags.`mixopt.corpus`": 200,
    "tags.`mixopt.version`": 200,
    "tags.`mixopt.cost`": 180,
}
MADE = {"runDateAndNestInfo": 150, "duration": 90}
SEARCHES_KEY = "mixopt-searches"


def view_key(search_id: str) -> str:
    """Name of the view of a search's trials, in addresses."""
    return f"mixopt-{search_id[:8]}"


def shared_views(search_id: str) -> dict[str, str]:
    """Key of a view -> the view: every trial of the search and the search itself, best first; and all searches of the experiment."""
    return {
        view_key(search_id): _view(f"tags.`{SEARCH_TAG}` = '{search_id}'", TRIAL_COLUMNS),
        SEARCHES_KEY: _view("tags.`mixopt.kind` = 'search'", SEARCH_COLUMNS),
    }


def _view(search_filter: str, columns: Mapping[str, int]) -> str:
    widths = {**NAME, **columns, **MADE}
    return json.dumps(
        {
            "searchFilter": search_filter,
            "orderByKey": next(iter(columns)),
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(columns),
            "columnOrder": list(widths),
            "columnWidths": widths,
            "runsHiddenMode": "FIRST_10_RUNS",
        }
    )


def view_address(base: str, experiment_id: str, key: str) -> str:
    """Address of a view on a tracking server at `base`."""
    query = f"workflowType=machine_learning&viewStateShareKey={key}"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"
