"""A page of a report from plain blocks: one HTML file that needs nothing else.

The page holds its style, its script and its drawings, each drawn twice, for a desk and for a phone. It asks the network for nothing, and its policy
lets no other script run. The main trade-off: drawings are made by matplotlib and themed afterwards (`svg`), not by a chart library: the smallest of
those that do all this weighs more than the whole page may.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from mixopt import __version__
from mixopt.tracking.canvas import NARROW, WIDE, Layout
from mixopt.tracking.report.blocks import Drawing, Section
from mixopt.tracking.report.svg import inline_svg

Draw = Callable[[str, Layout], Any]
"""Name of a figure and layout -> matplotlib figure, or None where there is nothing to show."""


@dataclass(frozen=True)
class Head:
    """What stands around the sections.

    Attributes:
        title: of the browser's window.
        subject: what the report is of, in a few words.
        heading: above everything.
        footer: a sentence that says what the page was written from.
    """

    title: str
    subject: str
    heading: str
    footer: str


def render(head: Head, sections: Sequence[Section], draw: Draw) -> str:
    """The page. The same content gives the same page, byte for byte."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    script, style = _page_file("report.js"), _page_file("report.css")
    template = Environment(autoescape=True, trim_blocks=True, undefined=StrictUndefined).from_string(_page_file("report.html"))
    return template.render(
        head=head,
        version=__version__,
        sections=[_drawn(draw, section) for section in sections],
        style=Markup(style),
        script=Markup(script),
        # The one script that the page's own policy lets run.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def write_whole(path: Path, text: str) -> Path:
    """Writes a file whole or not at all, making its folder; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _drawn(draw: Draw, section: Section) -> Section:
    """The section with its figures drawn; one that has nothing to show is left out, its section says why."""
    blocks: list[Any] = []
    for block in section.blocks:
        if not isinstance(block, Drawing):
            blocks.append(block)
        elif (drawing := _drawing(draw, block, section.title)) is not None:
            blocks.append(drawing)
    return dataclasses.replace(section, blocks=blocks)


def _drawing(draw: Draw, block: Drawing, heading: str) -> dict[str, Any] | None:
    from markupsafe import Markup

    wide, narrow = draw(block.name, WIDE), draw(block.name, NARROW)
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
