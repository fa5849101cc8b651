"""Reads experiment files: YAML into the models of `config`, with an error that names the key, the value and the remedy.

What all such files share is in `yaml_file`; here are the paths, which are relative to the file. The main trade-off: the resolved file holds absolute
paths, so that it can be read from anywhere on this machine, and on no other.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mixopt.addresses import is_url
from mixopt.config import Experiment
from mixopt.warm_start.config import with_absolute_paths
from mixopt.yaml_file import expand_variables, read_mapping, validate

WHAT = "the experiment file"


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment file.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong, or an environment variable is not set.
    """
    return parse_experiment(read_experiment_mapping(path), path.resolve().parent)


def read_experiment_mapping(path: Path) -> dict[str, Any]:
    """What an experiment file holds, as it is written.

    Raises:
        ConfigError: the file is missing or not YAML.
    """
    return read_mapping(path, "Experiment file", "Name a YAML file; `mixopt schema` prints what goes into it.")


def parse_experiment(raw: dict[str, Any], base: Path) -> Experiment:
    """Validates the content of an experiment file whose relative paths are relative to `base`."""
    return validate(Experiment, absolute_paths(raw, base), WHAT, "`mixopt schema` prints every key with its type and meaning.")


def absolute_paths(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    """The content of a file with variables expanded, and with absolute paths in place of those relative to `base`.

    Raises:
        ConfigError: an environment variable is not set.
    """

    def absolute(value: Any) -> Any:
        if isinstance(value, str):
            if is_url(value) or not value.strip():
                return value  # nothing, as an empty variable leaves it, is refused and not taken for the file's own folder
            return os.path.normpath(base / Path(value).expanduser())
        return [absolute(item) for item in value] if isinstance(value, list) else value

    result = expand_variables(raw, WHAT)
    if "output" in result:
        result["output"] = absolute(result["output"])
    for section in ("domains", "targets"):
        entries = result.get(section)
        if isinstance(entries, list):
            result[section] = [
                {key: absolute(item) if key in ("path", "valid") else item for key, item in entry.items()}
                if isinstance(entry, dict)
                else entry
                for entry in entries
            ]
    tokenizer = result.get("tokenizer")
    if isinstance(tokenizer, dict) and isinstance(tokenizer.get("path"), str):
        result["tokenizer"] = {**tokenizer, "path": absolute(tokenizer["path"])}
    search = result.get("search")
    if isinstance(search, dict) and "warm_start" in search:
        result["search"] = {**search, "warm_start": with_absolute_paths(search["warm_start"], absolute)}
    trainer = result.get("trainer")
    if isinstance(trainer, dict) and trainer.get("kind") == "command":
        result["trainer"] = {**trainer, "folder": absolute(trainer.get("folder") or ".")}
    tracking, database = result.get("tracking"), "sqlite:///"
    if isinstance(tracking, dict) and str(tracking.get("uri")).startswith(database):
        result["tracking"] = {**tracking, "uri": database + absolute(tracking["uri"].removeprefix(database))}
    return result
