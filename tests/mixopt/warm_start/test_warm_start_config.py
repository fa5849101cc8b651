"""How `search.warm_start` is written, and what is wrong with what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mixopt.errors import ConfigError
from mixopt.experiment_file import parse_experiment
from mixopt.warm_start.config import EarlierRuns


def entries(value: Any) -> tuple[EarlierRuns, ...]:
    raw = {
        "name": "warm",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("a", "b")],
        "search": {"warm_start": value},
    }
    return parse_experiment(raw, Path("/base")).search.warm_start


def test_text_is_told_apart_by_how_it_looks() -> None:
    found = entries(
        ["../runs/old", "3fa9c1d2", "tables/runs.csv", {"mixtures": "m.csv", "metrics": "/l.parquet"}, {"folder": "./3fa9c1d2"}]
    )
    assert found == (
        EarlierRuns(folder="/runs/old"),
        EarlierRuns(search="3fa9c1d2"),
        EarlierRuns(runs="/base/tables/runs.csv"),
        EarlierRuns(mixtures="/base/m.csv", metrics="/l.parquet"),
        EarlierRuns(folder="/base/3fa9c1d2"),
    )
    assert entries("../runs/old") == (EarlierRuns(folder="/runs/old"),)
    assert entries([]) == ()


def test_the_resolved_file_says_the_same() -> None:
    import yaml

    raw = {
        "name": "warm",
        "output": "run",
        "budget_tokens": "1B",
        "domains": [{"name": name, "path": f"{name}.jsonl", "tokens": "1B"} for name in ("a", "b")],
        "search": {"warm_start": ["../runs/old", {"runs": "r.csv", "names": {"x": "valid/a"}}]},
    }
    experiment = parse_experiment(raw, Path("/base"))
    assert parse_experiment(yaml.safe_load(experiment.to_yaml()), Path("/elsewhere")) == experiment


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([{"folder": "a", "runs": "b.csv"}], "names a search and `runs`"),
        ([{}], "names nothing"),
        ([{"mixtures": "m.csv"}], "only one of `mixtures` and `metrics`"),
        ([{"search": "newest"}], "no id of a search"),
        ([{"folder": "a", "names": {"x": "valid/a"}}], "`names` belongs to tables"),
        ([{"fodler": "a"}], "Unknown key 'search.warm_start[0].fodler'"),
        (3, "warm_start"),
    ],
)
def test_what_is_wrong_is_said(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        entries(value)
    assert message in error.value.message
