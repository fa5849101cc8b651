"""An experiment file before its first command: settings, constraints and the files it reads."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mixopt.config import Experiment
from mixopt.corpus.files import open_file, resolve_files
from mixopt.corpus.tokenizer import load_tokenizer
from mixopt.errors import MixoptError
from workers.checks import check_settings
from workers.doctor.findings import Finding, counted, ok, problem
from workers.own_trainer.pieces import check_program


def settings(experiment: Experiment) -> list[Finding]:
    """Names, sizes, bounds and epoch caps, as `search` checks them."""
    try:
        check_settings(experiment)
        if experiment.trainer is not None:
            check_program(experiment)
    except MixoptError as error:
        return [problem("experiment", error.message, error.hint)]
    return [ok("experiment", f"{experiment.name}: its settings are valid, and some mixture meets its constraints.")]


def inputs(experiment: Experiment) -> list[Finding]:
    """Whether every path of a domain, target or tokenizer leads to files."""
    if experiment.trainer is not None:
        return [ok("inputs", "A trainer of your own reads its data itself.")]
    found = list(_missing(experiment))
    if found:
        return found
    of_files = [sum(part.hub is None for part in parts) for parts in (experiment.domains, experiment.targets)]
    remote = len(experiment.domains) + len(experiment.targets) - sum(of_files)
    said = f"The files of {counted(of_files[0], 'domain')} and {counted(of_files[1], 'target')} are there."
    if remote:
        said += f" The hub was not asked for its {counted(remote, 'data set')}; `mixopt domains FILE --quick` reads the beginning of each."
    return [ok("inputs", said)]


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
