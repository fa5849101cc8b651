"""Exporters: the mixture in the syntax of the trainer that runs the full-scale job. One file each, one protocol (`base`), one contract test.

A module of this package joins by defining `EXPORTERS`. `export` holds the rules that no format may break: the domains are those of the
search, epoch caps, bounds, rules on groups and limits on the whole hold, several phases go only where the syntax can express them.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixopt.errors import ConfigError, DataError
from mixopt.export.base import (
    Exporter,
    ExportInput,
    check_bounds,
    check_constraints,
    check_domains,
    check_epochs,
    check_groups,
    check_options,
)
from mixopt.mixture import Mixture, Schedule
from mixopt.proposal import Proposal
from mixopt.verification import Verification

if TYPE_CHECKING:
    from mixopt.history import History

__all__ = ["ExportInput", "Exporter", "choose_schedule", "export", "export_search", "exporter_names", "get_exporter", "write_export"]


@functools.cache
def _registry() -> dict[str, Exporter]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {exporter.name: exporter for module in modules for exporter in getattr(module, "EXPORTERS", ())}


def exporter_names() -> tuple[str, ...]:
    """The formats there are, sorted."""
    return tuple(sorted(_registry()))


def get_exporter(name: str) -> Exporter:
    """The exporter of this name.

    Raises:
        ConfigError: there is none; names the nearest.
    """
    exporters = _registry()
    if name not in exporters:
        near = difflib.get_close_matches(name, exporters, n=1, cutoff=0.5)
        remedy = f"Did you mean '{near[0]}'?" if near else f"Formats: {', '.join(exporter_names())}."
        raise ConfigError(f"There is no export format '{name}'.", remedy)
    return exporters[name]


def choose_schedule(
    context: Mapping[str, Any], proposal: Proposal | None, verification: Verification | None, arm: str | None = None
) -> tuple[str, Schedule]:
    """(arm, schedule) to export: the arm asked for, else the one that verification recommends, else the proposal.

    Raises:
        DataError: the search has no proposal yet.
        ConfigError: there is no such arm.
    """
    if proposal is None:
        raise DataError("The search has no proposal yet.", "Let `mixopt search` finish first.")
    arms = {"proposal": proposal.schedule, "best_measured": Schedule.constant(Mixture.of(proposal.best_measured["weights"]))}
    arms |= {name: Schedule.constant(Mixture.of(context[name])) for name in ("natural", "uniform", "unimax")}
    wanted = arm or (verification.recommended if verification else "proposal")
    if wanted not in arms:
        raise ConfigError(f"There is no mixture '{wanted}' to export.", f"There are: {', '.join(arms)}.")
    return wanted, arms[wanted]


def export(name: str, request: ExportInput) -> dict[str, str]:
    """Files of the format `name`: file name -> text.

    Raises:
        ConfigError: unknown format or option, other domains than the search's, or a schedule that the syntax cannot express.
        InfeasibleError: the mixture breaks an epoch cap, or leaves the bounds, the rules on groups or the limits of the experiment file.
    """
    exporter = get_exporter(name)
    check_options(exporter, request.options)
    check_domains(request.context, request.schedule)
    check_epochs(request.context, request.schedule.average())
    check_bounds(request.context, request.schedule.average())
    check_groups(request.context, request.schedule.average())
    check_constraints(request.context, request.schedule.average())
    phases = len(request.schedule.mixtures)
    if phases > 1 and not exporter.phases:
        able = ", ".join(other for other in exporter_names() if get_exporter(other).phases)
        raise ConfigError(f"The schedule has {phases} phases; the format '{name}' can express one.", f"Formats that can: {able}.")
    return exporter.render(request)


def export_search(
    history: History, search_id: str, name: str, folder: Path, arm: str | None = None, options: Mapping[str, str] | None = None
) -> list[Path]:
    """Exports a mixture of a recorded search; `arm` as in `choose_schedule`. Returns the files written into `folder`.

    Raises:
        DataError: the search has no context or no proposal yet.
        ConfigError, InfeasibleError: as `export` and `choose_schedule`.
    """
    get_exporter(name)  # a slip in the name is answered before anything is read
    context = history.document(search_id, "context")
    if context is None:
        raise DataError(f"Search {search_id} has no context in the record.", "Run `mixopt search FILE`, which writes it first.")
    body, verified = history.document(search_id, "proposal"), history.document(search_id, "verification")
    proposal = None if body is None else Proposal.from_json(body)
    verification = None if verified is None else Verification.from_json(verified)
    arm, schedule = choose_schedule(context, proposal, verification, arm)
    return write_export(name, ExportInput(schedule, arm, search_id, context, proposal, verification, dict(options or {})), folder)


def write_export(name: str, request: ExportInput, folder: Path) -> list[Path]:
    """Writes the files of `export` into `folder`; returns their paths."""
    files = export(name, request)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file_name, text in files.items():
        path = folder / file_name
        path.write_text(text, encoding="utf-8", newline="\n")
        paths.append(path)
    return paths
