"""Trials written down for a trainer elsewhere: a table, JSON lines, or one folder per trial in the syntax of a trainer.

Pure: what is written where, as text. The mixtures of a search ignore the caps of the target run, for the swarm stays wide, so an exporter's syntax is used
here without its checks of caps and bounds, which are for mixtures that somebody will train at full scale.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mixopt.errors import ConfigError
from mixopt.export import exporter_names, get_exporter
from mixopt.export.base import ExportInput, check_options
from mixopt.own_trainer.config import ID_COLUMN
from mixopt.own_trainer.outcome import request_of
from mixopt.trial import Trial

TABLES = ("csv", "jsonl")
"""Formats that are one text; all others are folders."""
INDEX_NAME = "index.csv"


def check_format(name: str, options: Mapping[str, str]) -> None:
    """That there is such a format, with these options.

    Raises:
        ConfigError: there is not.
    """
    if name not in TABLES:
        try:
            check_options(get_exporter(name), options)
        except ConfigError as error:
            formats = ", ".join((*TABLES, *exporter_names()))
            raise ConfigError(error.message, error.hint if "Did you mean" in error.hint or options else f"Formats: {formats}.") from error
    elif options:
        raise ConfigError(f"The format '{name}' has no option '{next(iter(options))}'.", "Options belong to formats of trainers.")


def table(trials: Sequence[Trial], name: str, folders: bool = False) -> str:
    """The trials as CSV or as JSON lines.

    CSV has a row per trial: trial_id, label, seed, source, tokens, and a column per domain; with several phases a row per phase, which says which and
    what fraction of the tokens it has. A line of JSON is a program's request.

    Args:
        folders: CSV says which folder a trial has, too.
    """
    if name == "jsonl":
        return "".join(json.dumps(request_of(trial), ensure_ascii=False) + "\n" for trial in trials)
    phases = any(len(trial.schedule.mixtures) > 1 for trial in trials)
    domains = list(dict.fromkeys(domain for trial in trials for domain in trial.schedule.domains))
    head = [ID_COLUMN, "label", "seed", "source", "tokens", *(["phase", "fraction"] if phases else []), *domains]
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(["folder"] if folders else [])])
    for trial in trials:
        about = [trial.trial_id, trial.label, trial.seed, trial.source.key, trial.source.tokens]
        for number, (mixture, fraction) in enumerate(zip(trial.schedule.mixtures, trial.schedule.fractions, strict=True)):
            weights = mixture.as_dict()
            phase = [number, repr(fraction)] if phases else []
            folder = [trial.trial_id] if folders else []
            writer.writerow([*about, *phase, *(repr(weights.get(domain, 0.0)) for domain in domains), *folder])
    return text.getvalue()


def files(trials: Sequence[Trial], name: str, search_id: str, context: Mapping[str, Any], options: Mapping[str, str]) -> dict[str, str]:
    """Relative path -> text: for every trial a folder of its id with the exporter's files, and an index.

    Raises:
        ConfigError: the syntax cannot express a mixture, or an option is wrong.
    """
    exporter = get_exporter(name)
    check_options(exporter, options)
    found = {INDEX_NAME: table(trials, "csv", folders=True)}
    for trial in trials:
        if len(trial.schedule.mixtures) > 1 and not exporter.phases:
            raise ConfigError(f"Trial {trial.trial_id} has several phases; the format '{name}' can express one.", "Write csv or jsonl.")
        request = ExportInput(trial.schedule, trial.label, search_id, context, options=dict(options))
        found |= {f"{trial.trial_id}/{file}": text for file, text in exporter.render(request).items()}
    return found
