"""How MLflow's page of runs looks when a search is reviewed: its trials as one flat table, sorted by the objective.

MLflow's own first page shows one row per search, no numbers, and the trials behind a small cross. Its pages can show a *shared view*, which is
JSON in a tag of the experiment and named in the address; this writes that JSON. It is a format of MLflow's pages (3.x), not of
its API: a version that does not understand it shows its usual page, and nothing is lost.
"""

from __future__ import annotations

import json

# What the pages look for (seen in MLflow 3.17 when a view is shared there).
VIEW_TAG = "mlflow.sharedViewState."
# Shows "Model training" rather than the pages for language-model applications.
KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
COLUMNS = (
    "metrics.`objective`",
    "metrics.`mean_bits_per_byte`",
    "params.`size`",
    "params.`seed`",
    "tags.`mixopt.stage`",
    "tags.`mixopt.cost`",
)


def view_key(search_id: str) -> str:
    """Name of the view in addresses."""
    return f"mixopt-{search_id[:8]}"


def trials_view(search_id: str) -> str:
    """The view of one search: every trial of it, and the search itself, best first."""
    from mixopt.tracking.mirrored import SEARCH_TAG

    return json.dumps(
        {
            "searchFilter": f"tags.`{SEARCH_TAG}` = '{search_id}'",
            "orderByKey": COLUMNS[0],
            "orderByAsc": True,
            "startTime": "ALL",
            "lifecycleFilter": "Active",
            "datasetsFilter": [],
            "modelVersionFilter": "All Runs",
            "selectedColumns": list(COLUMNS),
            "columnWidths": {},
            "columnOrder": [],
            "runsHiddenMode": "FIRST_10_RUNS",
        }
    )


def view_address(base: str, experiment_id: str, search_id: str) -> str:
    """Address of the view on a tracking server at `base`."""
    query = f"workflowType=machine_learning&viewStateShareKey={view_key(search_id)}"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"
