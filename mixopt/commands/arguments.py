"""What several commands take: an experiment file, an output folder with its record, one of its searches."""

from __future__ import annotations

import json
import os
import tempfile
from errno import EISDIR
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixopt.errors import ConfigError, DataError

if TYPE_CHECKING:
    from mixopt.config import Experiment
    from mixopt.history import History, SearchRecord

ExperimentFile = Annotated[Path, typer.Argument(metavar="FILE", help="Experiment file (YAML).", show_default=False)]
OutputFolder = Annotated[Path, typer.Argument(metavar="DIR", help="Output folder of a search.", show_default=False)]
SearchOption = Annotated[str | None, typer.Option("--search", help="Search id or its first digits; default: the newest search in DIR.")]
TrialsOption = Annotated[int | None, typer.Option("--trials", min=4, help="Overrides search.trials; raising it continues the search.")]


def check_json(file: Path | None) -> None:
    """That `write_json` will be able to write: for commands that work a while before they do. Makes the file's folder.

    Raises:
        ConfigError: it will not.
    """
    if file is None:
        return
    try:
        if file.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR))
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=file.parent):
            pass
    except OSError as error:
        raise ConfigError(f"--json {file} cannot be written ({error.strerror}).", "Name another file.") from error


def write_json(file: Path, body: Any) -> None:
    """Writes what a command found, for programs.

    Raises:
        ConfigError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(body, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"--json {file} cannot be written ({error.strerror}).", "Name another file.") from error


def with_trials(experiment: Experiment, trials: int | None) -> Experiment:
    """The experiment with another number of trials, if one is given.

    Raises:
        ConfigError: more than an experiment file may ask for.
    """
    from mixopt.config import MOST_TRIALS

    if trials is None:
        return experiment
    if trials > MOST_TRIALS:
        raise ConfigError(f"--trials {trials} is more than {MOST_TRIALS:,}.", "Ask for fewer; the search can be continued later.")
    return experiment.model_copy(update={"search": experiment.search.model_copy(update={"trials": trials})})


def open_record(folder: Path) -> History:
    from mixopt.history import History
    from workers.compose import record_location

    location = record_location(folder)
    if not location.exists():
        raise DataError(f"{folder} holds no record of a search.", "Name the `output` folder of an experiment file that was searched.")
    return History.open(location)


def find_search(history: History, folder: Path, search_id: str | None) -> SearchRecord:
    searches = history.searches()
    if search_id is not None:
        searches = [record for record in searches if record.search_id.startswith(search_id)]
        if len(searches) > 1:
            raise ConfigError(f"--search {search_id} fits {len(searches)} searches in {folder}.", "Give more digits.")
    if not searches:
        raise DataError(f"{folder} holds no search{'' if search_id is None else ' ' + search_id}.", "Run `mixopt search FILE` first.")
    return searches[-1]


def stored_experiment(record: SearchRecord) -> Any:
    import yaml

    from mixopt.experiment_file import parse_experiment

    return parse_experiment(yaml.safe_load(record.experiment_yaml), Path("/"))
