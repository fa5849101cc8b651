"""The report: everything the record knows about a search in one HTML file that needs nothing else, with the figures as PNG beside it.

Sections come in the order in which a reviewer asks; what has not been measured is said where it would stand. The page holds its style, its
script and its drawings, each drawn twice, for a desk and for a phone. It asks the network for nothing, and its policy lets no other script
run. The main trade-off: drawings are made by matplotlib and themed afterwards (`svg`), not by a chart library: the smallest of those that
do all this weighs more than the whole page may.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixopt import __version__
from mixopt.history import History
from mixopt.tracking.canvas import NARROW, WIDE
from mixopt.tracking.figures import FIGURES, draw_figures
from mixopt.tracking.findings import Findings, read_findings
from mixopt.tracking.report.blocks import Drawing, Section
from mixopt.tracking.report.calibration import calibration_sections
from mixopt.tracking.report.experts import experts_section
from mixopt.tracking.report.refit import with_effects
from mixopt.tracking.report.runs import cost_section, curves_section, epochs_section, export_section, made_section, noise_section
from mixopt.tracking.report.sections import (
    answer_section,
    effects_section,
    mixture_section,
    objective_section,
    predicted_section,
    verification_section,
)
from mixopt.tracking.report.svg import inline_svg

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
    page = report_html(findings, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(page, encoding="utf-8")
    os.replace(temporary, path)
    return path


def report_html(findings: Findings, folder: Path | None = None) -> str:
    """The page. The same findings give the same page, byte for byte."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script, style = _page_file("report.js"), _page_file("report.css")
    template = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined).from_string(_page_file("report.html"))
    return template.render(
        name=findings.search.name,
        search_id=findings.search.search_id,
        updated=f"{findings.search.updated:%Y-%m-%d %H:%M} UTC",
        version=__version__,
        sections=[_drawn(findings, section) for section in report_sections(findings, folder)],
        style=Markup(style),
        script=Markup(script),
        # The one script that the page's own policy lets run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def report_sections(findings: Findings, folder: Path | None = None) -> list[Section]:
    """The content of the page, as plain blocks."""
    return [
        answer_section(findings),
        mixture_section(findings),
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


def _drawn(findings: Findings, section: Section) -> Section:
    """The section with its figures drawn; one that has nothing to show is left out, its section says why."""
    blocks: list[Any] = []
    for block in section.blocks:
        if not isinstance(block, Drawing):
            blocks.append(block)
        elif (drawing := _drawing(findings, block, section.title)) is not None:
            blocks.append(drawing)
    return dataclasses.replace(section, blocks=blocks)


def _drawing(findings: Findings, block: Drawing, heading: str) -> dict[str, Any] | None:
    from markupsafe import Markup

    draw = FIGURES[block.name]
    wide, narrow = draw(findings, WIDE), draw(findings, NARROW)
    if wide is None or narrow is None:
        return None
    words = {text.get_gid(): text.get_text() for text in wide.texts}
    return {
        "block": "drawing",
        "name": block.name,
        "title": "" if words["title"] == heading else words["title"],
        "subtitle": words["subtitle"],
        "wide": Markup(inline_svg(wide, f"{block.name}-wide", block.alt)),
        "narrow": Markup(inline_svg(narrow, f"{block.name}-narrow", block.alt)),
    }


@functools.cache
def _page_file(name: str) -> str:
    return (files("mixopt.tracking.report") / "page" / name).read_text(encoding="utf-8")
