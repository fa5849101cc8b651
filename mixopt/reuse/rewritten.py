"""The experiment file of a plan: the new file with a group for what is kept, the proxies that the plan needs, and a warm start from the earlier search.

What the user wrote stays as it is written, comments aside. The main trade-off: a file written into another folder has absolute paths, and no longer moves
with its corpus.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from mixopt.config import Experiment
from mixopt.errors import ConfigError
from mixopt.experiment_file import absolute_paths, parse_experiment, read_experiment_mapping
from mixopt.reuse.plans import Plan
from mixopt.reuse.virtual import regrouped


def plan_mapping(
    raw: Mapping[str, Any], experiment: Experiment, plan: Plan, warm_start: Mapping[str, str] | None, tokenizer: str | None
) -> dict[str, Any]:
    """The content of the new file, changed into that of the plan.

    Args:
        raw: as it was written; `experiment` is what it means.
        warm_start: the entry of the earlier search; None: the search cannot begin with its runs.
        tokenizer: the earlier search's, where the new file would train another; None: leave it.

    Raises:
        ConfigError: the rules on groups do not allow the plan.
    """
    result = dict(raw)
    searched: Any = experiment.search.model_dump(mode="json")["warm_start"]
    given = dict(raw.get("search") or {})
    result["search"] = {**given, "trials": max(plan.proxies, 4) if plan.proxies else given.get("trials", experiment.search.trials)}
    if warm_start is not None:
        before = [{key: item for key, item in entry.items() if item} for entry in searched]
        result["search"]["warm_start"] = [*before, dict(warm_start)]
    if tokenizer is not None:
        result["tokenizer"] = {"path": tokenizer}
    if plan.units and plan.kept:
        paths, rules = regrouped({d.name: d.group for d in experiment.domains}, experiment.group_rules, plan.kept)
        # Entries of the file and of its model are in the same order; a group is the only thing that changes in them.
        result["domains"] = [{**entry, "group": paths[d.name]} for entry, d in zip(raw["domains"], experiment.domains, strict=True)]
        groups: dict[str, Any] = {}
        for rule in rules:
            shares = dict(rule.shares) if isinstance(rule.shares, tuple) else rule.shares
            groups[rule.path] = {
                **({"shares": shares} if shares is not None else {}),
                **({"bounds": list(rule.bounds)} if rule.bounds != (0.0, 1.0) else {}),
            }
        result["groups"] = {path: group for path, group in groups.items() if group}
        result.pop("levels", None)  # names of levels, which have one more now
        for entry in result["domains"]:
            if not entry["group"]:
                del entry["group"]
    return result


def write_plan(
    target: Path, file: Path, experiment: Experiment, plan: Plan, warm_start: Mapping[str, str] | None, tokenizer: str | None, why: str
) -> None:
    """Writes the file of a plan, which has been read again as `mixopt search` will read it.

    Raises:
        ConfigError: it cannot be written, or would overwrite the file that it is made from.
    """
    if target.resolve() == file.resolve():
        raise ConfigError(f"--write {target} is the file that the plan is made from.", "Name another file.")
    raw = read_experiment_mapping(file)
    if target.resolve().parent != file.resolve().parent:
        raw = absolute_paths(raw, file.resolve().parent)
    body = plan_mapping(raw, experiment, plan, warm_start, tokenizer)
    parse_experiment(body, target.resolve().parent)
    lines = ["Written by `mixopt reuse`; run it with `mixopt search`.", *why.splitlines()]
    text = "".join(f"# {line}\n" for line in lines) + yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=140)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--write {target} cannot be written ({error.strerror}).", "Name another file.") from error
