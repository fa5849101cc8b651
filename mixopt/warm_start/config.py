"""What `search.warm_start` may say: an earlier search, or tables of runs.

A line is text, as `../runs/old` (the newest search of that output folder), `3fa9c1d2` (a search of this output folder) or `runs.csv`, or it names the
parts. The main trade-off: text is short and is told apart by how it looks; a folder called like an id has to be written as `{folder: ./3fa9c1d2}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from mixopt.config_model import Model

SEARCH_ID = re.compile(r"[0-9a-f]{8,20}")
TABLES = (".csv", ".parquet")
PATHS = ("folder", "runs", "mixtures", "metrics")


class EarlierRuns(Model):
    """One earlier search, or one swarm in tables."""

    folder: str | None = Field(None, min_length=1, description="Output folder of an earlier search; default: this experiment's own.")
    search: str | None = Field(None, description="Its id, or the first 8 digits or more; default: the newest of the folder.")
    runs: str | None = Field(
        None,
        min_length=1,
        description="CSV or Parquet, a row per run: an id, weights by the names of domains here, losses by those of metrics.",
    )
    mixtures: str | None = Field(None, min_length=1, description="With `metrics`: the weights of runs, as `mixopt fit` reads them.")
    metrics: str | None = Field(None, min_length=1, description="The same runs' losses.")
    names: dict[str, str] = Field({}, description="Column of a table -> the metric here that it holds, as {gsm8k_bpb: target/gsm8k}.")

    @model_validator(mode="after")
    def _one_kind(self) -> EarlierRuns:
        kinds = {
            "a search": self.folder is not None or self.search is not None,
            "`runs`": self.runs is not None,
            "`mixtures` and `metrics`": self.mixtures is not None or self.metrics is not None,
        }
        named = [kind for kind, given in kinds.items() if given]
        if len(named) != 1:
            found = " and ".join(named) if named else "nothing"
            raise ValueError(f"an entry is one earlier search or one swarm in tables, and this one names {found}; write one entry each")
        if (self.mixtures is None) != (self.metrics is None):
            raise ValueError("only one of `mixtures` and `metrics` is given; name both, or one table as `runs`")
        if self.names and self.is_search:
            raise ValueError("`names` belongs to tables; the metrics of a search are matched by what was scored")
        if self.search is not None and not SEARCH_ID.fullmatch(self.search):
            raise ValueError(
                f"{self.search!r} is no id of a search; write 8 to 20 of its digits, 0 to 9 and a to f, as `mixopt show` prints them"
            )
        return self

    @property
    def is_search(self) -> bool:
        return self.folder is not None or self.search is not None


def spelled_out(entry: Any) -> Any:
    """An entry written as text, by its parts; anything else as it is."""
    if not isinstance(entry, str):
        return entry
    if SEARCH_ID.fullmatch(entry):
        return {"search": entry}
    return {"runs" if PurePath(entry).suffix.lower() in TABLES else "folder": entry}


def _listed(value: Any) -> Any:
    entries = [value] if isinstance(value, str | dict) else value
    return [spelled_out(entry) for entry in entries] if isinstance(entries, list | tuple) else entries


WarmStart = Annotated[tuple[EarlierRuns, ...], BeforeValidator(_listed)]


def with_absolute_paths(value: Any, absolute: Callable[[Any], Any]) -> Any:
    """The value of `search.warm_start` as the file has it, with paths made absolute; what is wrong with it is found later."""
    entries = _listed(value)
    if not isinstance(entries, list):
        return entries
    return [
        {key: absolute(item) if key in PATHS else item for key, item in entry.items()} if isinstance(entry, dict) else entry
        for entry in entries
    ]
