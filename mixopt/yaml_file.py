"""Files that people write in YAML, read into frozen models: one error at a time, which names the key, the value and the remedy.

Experiment files and `mixopt fit --config` read alike: `${NAME}` expands environment variables, a key that occurs twice is refused, and so is one that
nobody knows, with the nearest valid one. The main trade-off: the first problem is told, not all of them; a file is mended one sentence at a time.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from mixopt.addresses import is_url, without_login
from mixopt.errors import ConfigError

AnyModel = TypeVar("AnyModel", bound=BaseModel)

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


def read_mapping(path: Path, what: str, remedy: str) -> dict[str, Any]:
    """The content of a YAML file that holds a mapping.

    Args:
        what: the kind of file, as messages begin, as "Experiment file".
        remedy: where there is no such file.

    Raises:
        ConfigError: the file is missing, cannot be read, is not YAML, or holds something else.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise ConfigError(f"{what} {path} {found}.", remedy)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{what} {path} cannot be read ({error.strerror}).", "Mend its permissions.") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}.", "Mend the line it names.") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, not a mapping.", remedy)
    return raw


def validate(model: type[AnyModel], raw: dict[str, Any], what: str, remedy: str) -> AnyModel:
    """The model of a mapping whose variables are expanded.

    Args:
        what: the kind of file, as "the experiment file".
        remedy: where all valid keys can be seen.

    Raises:
        ConfigError: a key is unknown, or a value is wrong.
    """
    for location, key, valid in _unknown_keys(raw, model, ""):
        near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
        nearest = f"Did you mean '{near[0]}'?" if near else f"Valid keys there: {', '.join(sorted(valid))}."
        raise ConfigError(f"Unknown key '{location}{key}' in {what}.", nearest)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_first_problem(error, what), remedy) from error


def expand_variables(raw: dict[str, Any], what: str) -> dict[str, Any]:
    """The mapping with `${NAME}` in its texts replaced by the environment's value.

    Raises:
        ConfigError: a variable is not set, `${` begins none, or an anchor of the file holds itself.
    """
    try:
        return typing.cast(dict[str, Any], _expand_variables(raw, ""))
    except RecursionError as error:
        raise ConfigError(f"{what[0].upper()}{what[1:]} has an anchor that holds itself.", "Write out what `*NAME` stands for.") from error


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


def _first_problem(error: ValidationError, what: str) -> str:
    problem = error.errors()[0]
    location = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    message = PLAIN_WORDS.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if problem["type"] == "missing" and isinstance(problem["loc"][-1], int):  # of a list of fixed length
        return f"'{location.rpartition('[')[0]}' is {problem['input']!r}: it has too few values."
    if problem["type"] == "missing":
        return f"Key '{location}' is missing from {what}."
    if isinstance(problem["input"], dict) and problem["type"] == "value_error":
        return f"'{location}': {message}." if location else f"{message[0].upper()}{message[1:]}."
    if not location:
        return f"{message[0].upper()}{message[1:]}."
    shown = problem["input"]
    if isinstance(shown, str) and is_url(shown):
        shown = without_login(shown)
    return f"'{location}' is {shown!r}: {message}."
