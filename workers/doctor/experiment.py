"""An experiment file before its first command: settings, constraints and the files it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mixopt.config import Experiment
from mixopt.corpus.files import open_file, resolve_files
from mixopt.corpus.tokenizer import load_tokenizer
from mixopt.errors import MixoptError
from workers.compose import check_settings
from workers.doctor.findings import Finding, ok, problem


def settings(experiment: Experiment) -> list[Finding]:
    """Names, sizes, bounds and epoch caps, as `search` checks them."""
    try:
        check_settings(experiment)
    except MixoptError as error:
        return [problem("experiment", error.message, error.hint)]
    return [ok("experiment", f"{experiment.name}: its settings are valid, and some mixture meets its constraints.")]


def inputs(experiment: Experiment) -> list[Finding]:
    """Whether every path of a domain, target or tokenizer leads to files."""
    found = list(_missing(experiment))
    return found or [ok("inputs", f"The files of {len(experiment.domains)} domains and {len(experiment.targets)} targets are there.")]


def _missing(experiment: Experiment) -> Iterator[Finding]:
    named = [(domain.path, f"domain '{domain.name}'") for domain in experiment.domains]
    named += [(domain.valid, f"held-out set of domain '{domain.name}'") for domain in experiment.domains if domain.valid]
    named += [(target.path, f"target '{target.name}'") for target in experiment.targets]
    for paths, owner in named:
        try:
            for file in resolve_files(paths or (), owner):
                with open_file(file):
                    pass
        except MixoptError as error:
            yield problem("inputs", error.message, error.hint)
        except OSError as error:
            yield problem("inputs", f"{error.filename} of {owner} cannot be read ({error.strerror}).", "Mend its permissions.")
    if experiment.tokenizer.path is not None:
        try:
            load_tokenizer(Path(experiment.tokenizer.path))
        except MixoptError as error:
            yield problem("inputs", error.message, error.hint)
