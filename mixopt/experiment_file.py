"""Reads experiment files: YAML into the models of `config`, with an error that names the key, the value and the remedy.

`${NAME}` expands environment variables, relative paths are relative to the file, unknown keys are refused with the nearest valid one. The main
trade-off: the first problem is told, not all of them; a file is mended one sentence at a time.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from mixopt.config import Experiment, is_url, without_login
from mixopt.errors import ConfigError

# For problems whose words in pydantic speak of Python's types and regular expressions.
PLAIN_WORDS = {
    "string_pattern_mismatch": "write letters, digits, `_`, `-` and `.`, up to 64, a letter or digit first",
    "tuple_type": "write a list, as [a, b]",
    "model_type": "write keys with values, as {key: value}",
    "dict_type": "write keys with values, as {key: value}",
    "string_type": "write text, in quotes where YAML would read something else",
}


class _Loader(yaml.SafeLoader):
    """Refuses a key that occurs twice, of which YAML libraries silently keep the last."""

    # While composing, because merging (`<<`) later puts keys beside those that override them.
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"key '{key.value}' occurs twice in one mapping", key.start_mark)
                seen.add(key.value)
        return node


def load_experiment(path: Path) -> Experiment:
    """Reads an experiment file.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown, a value is wrong, or an environment variable is not set.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"Experiment file {path} {found}.", "Name a YAML file; `mixopt schema` prints what goes into it.")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"Experiment file {path} cannot be read ({error.strerror}).", "Mend its permissions.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.", "Mend the line it names.") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{path} holds a {type(raw).__name__}, not a mapping.", "Start with `name:`, `output:`, `budget_tokens:`, `domains:`."
        )
    return parse_experiment(raw, path.resolve().parent)


def parse_experiment(raw: dict[str, Any], base: Path) -> Experiment:
    """Validates the content of an experiment file whose relative paths are relative to `base`."""
    try:
        expanded = _expand_variables(raw, "")
    except RecursionError as error:
        raise ConfigError("The experiment file has an anchor that holds itself.", "Write out what `*NAME` stands for.") from error
    for location, key, valid in _unknown_keys(expanded, Experiment, ""):
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        remedy = f"Did you mean '{near[0]}'?" if near else f"Valid keys there: {', '.join(sorted(valid))}."
        raise ConfigError(f"Unknown key '{location}{key}' in the experiment file.", remedy)
    try:
        return Experiment.model_validate(_absolute_paths(expanded, base))
    except ValidationError as error:
        raise ConfigError(_first_problem(error), "`mixopt schema` prints every key with its type and meaning.") from error


def _expand_variables(value: Any, location: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand_variables(item, f"{location}{key}.") for key, item in value.items()}
    if isinstance(value, list):
        return [_expand_variables(item, f"{location}{index}.") for index, item in enumerate(value)]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        if name is None:
            raise ConfigError(f"'{location.rstrip('.')}' is {value!r}, with a '${{' that begins no variable.", "Write ${NAME}.")
        if name not in os.environ:
            raise ConfigError(f"'{location.rstrip('.')}' uses ${{{name}}}, which is not set.", f"Run `export {name}=...` first.")
        return os.environ[name]

    return re.sub(r"\$\{(?:([A-Za-z_][A-Za-z0-9_]*)\})?", replace, value)


def _absolute_paths(raw: dict[str, Any], base: Path) -> dict[str, Any]:
    def absolute(value: Any) -> Any:
        if isinstance(value, str):
            if is_url(value) or not value.strip():
                return value  # nothing, as an empty variable leaves it, is refused and not taken for the file's own folder
            return os.path.normpath(base / Path(value).expanduser())
        return [absolute(item) for item in value] if isinstance(value, list) else value

    result = dict(raw)
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
    tracking, database = result.get("tracking"), "sqlite:///"
    if isinstance(tracking, dict) and str(tracking.get("uri")).startswith(database):
        result["tracking"] = {**tracking, "uri": database + absolute(tracking["uri"].removeprefix(database))}
    return result


def _unknown_keys(value: Any, model: type[BaseModel], location: str) -> Iterator[tuple[str, str, list[str]]]:
    """(location, key, valid keys) of every key that no model knows, outermost first."""
    if not isinstance(value, dict):
        return
    for key in value:
        if key not in model.model_fields:
            yield location, str(key), list(model.model_fields)
    for key, field in model.model_fields.items():
        inner = _model_of(field.annotation)
        if inner is None or key not in value:
            continue
        if typing.get_origin(field.annotation) is dict:
            for name, item in value[key].items() if isinstance(value[key], dict) else ():
                yield from _unknown_keys(item, inner, f"{location}{key}.{name}.")
        elif isinstance(value[key], list):
            for index, item in enumerate(value[key]):
                yield from _unknown_keys(item, inner, f"{location}{key}[{index}].")
        else:
            yield from _unknown_keys(value[key], inner, f"{location}{key}.")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) in (tuple, list, dict, typing.Union, types.UnionType):
        return next((model for model in map(_model_of, typing.get_args(annotation)) if model is not None), None)
    return None


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    location = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    message = PLAIN_WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):  # of a list of fixed length
        return f"'{location.rpartition('[')[0]}' is {problem['input']!r}: it has too few values."
    if problem["type"] == "missing":
        return f"Key '{location}' is missing from the experiment file."
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":
        return f"'{location}': {message}." if location else f"{message[0].upper()}{message[1:]}."
    if not location:
        return f"{message[0].upper()}{message[1:]}."
    shown = problem["input"]
    if isinstance(shown, str) and is_url(shown):
        shown = without_login(shown)
    return f"'{location}' is {shown!r}: {message}."
