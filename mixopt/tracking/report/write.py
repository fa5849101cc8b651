"""The report: everything the record knows about a search in one HTML file that needs nothing else, with the figures as PNG beside it.

Sections come in the order in which a reviewer asks; what has not been measured is said where it would stand. `render`
makes the page of them. The main trade-off: the report is made of what the record holds and of nothing else, so that it can be written again at any
time, by anybody who has the record.
"""

from __future__ import annotations

from pathlib import Path

from mixopt import __version__
from mixopt.history import History
from mixopt.tracking.figures import FIGURES, draw_figures
from mixopt.tracking.findings import Findings, read_findings
from mixopt.tracking.report.blocks import Section
from mixopt.tracking.report.calibration import calibration_sections
from mixopt.tracking.report.experts import experts_section
from mixopt.tracking.report.front import front_sections
from mixopt.tracking.report.merging import merging_sections
from mixopt.tracking.report.refit import with_effects
from mixopt.tracking.report.render import Head, render, write_whole
from mixopt.tracking.report.runs import cost_section, curves_section, epochs_section, export_section, made_section, noise_section
from mixopt.tracking.report.sections import (
    answer_section,
    effects_section,
    mixture_section,
    objective_section,
    predicted_section,
    verification_section,
)

REPORT_NAME = "report.html"


def write_report(path: Path, history: History, search_id: str, figures: Path | None = None, folder: Path | None = None) -> Path:
    """Writes the report of a search as HTML, whole or not at all; returns its path.

    Args:
        figures: folder for the figures as PNG; None: only those in the page.
        folder: output folder that the commands in the report name; default: as in the experiment file.

    Raises:
        DataError: the record does not hold the search.
    """
    findings = with_effects(read_findings(history, search_id))
    if figures is not None:
        draw_figures(figures, findings)
    return write_whole(path, report_html(findings, folder))


def report_html(findings: Findings, folder: Path | None = None) -> str:
    """The page. The same findings give the same page, byte for byte."""
    search = findings.search
    written = (
        f"Written by mixopt {__version__} from the record of search {search.search_id}, as it stood on {search.updated:%Y-%m-%d %H:%M} UTC."
    )
    head = Head(search.name, f"search {search.search_id[:8]}", f"{search.name}: which mixture to train on", written)
    return render(head, report_sections(findings, folder), lambda name, layout: FIGURES[name](findings, layout))


def report_sections(findings: Findings, folder: Path | None = None) -> list[Section]:
    """The content of the page, as plain blocks."""
    return [
        answer_section(findings),
        mixture_section(findings),
        *front_sections(findings),
        *merging_sections(findings),
        verification_section(findings),
        predicted_section(findings),
        objective_section(findings),
        effects_section(findings),
        epochs_section(findings),
        curves_section(findings),
        noise_section(findings),
        experts_section(findings),
        *calibration_sections(findings),
        cost_section(findings),
        export_section(findings, folder),
        made_section(findings),
    ]
