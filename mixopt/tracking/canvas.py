"""How all figures look: one palette, two layouts, one type of axes, labels that do not cover each other, marks that can be pointed at.

Figures are `matplotlib.figure.Figure` objects drawn by Agg. pyplot and rcParams are left alone: both are state of the whole process, and
figures are also drawn by the mirror's thread. One drawing serves the PNG and the page (`svg`), so what the page says about a mark on hover
is fastened to the mark where it is drawn.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, which people with any colour vision tell apart (jfly.uni-koeln.de/color); one colour per arm in every figure.
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, MUTED, FAINT, PAPER = "#222222", "#6b6b6b", "#d9d9d9", "#ffffff"
ARM_COLOURS = {"proposal": BLUE, "best_measured": GREEN, "natural": INK, "unimax": ORANGE, "uniform": PURPLE}
ARM_MARKERS = {"proposal": "o", "best_measured": "^", "natural": "D", "unimax": "s", "uniform": "v"}

DOTS_PER_INCH = 144
# Inches at the top of every figure for title and subtitle; the page writes both as text and cuts this strip off.
HEAD_INCHES = 0.66
LEGEND_ROW_INCHES = 0.22
# Inches of one letter of 9 points, DejaVu Sans, on average; titles of rows are cut to what fits.
LETTER_INCHES = 0.078
# What a mark says is the id of its group in the SVG, after this word and its place in the order of marks. The separator is a character that XML keeps and names do not hold.
MARK, LINE_BREAK = "mark:", "\u2028"
_ORDER = itertools.count()
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Layout:
    """Room for a drawing, inches wide: a desk and paper, or a phone."""

    width: float
    narrow: bool


WIDE, NARROW = Layout(8.4, narrow=False), Layout(3.5, narrow=True)


def new_figure(title: str, subtitle: str, layout: Layout, height: float) -> Any:
    """A figure with a title and no axes; `height` in inches, head included."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = layout.width
    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.text(0.15 / width, 1 - 0.28 / height, title, fontsize=12, fontweight="bold", color=INK, va="center", gid="title")
    figure.text(0.15 / width, 1 - 0.52 / height, subtitle, fontsize=9, color=MUTED, va="center", gid="subtitle")
    return figure


def new_axes(
    title: str, subtitle: str, layout: Layout, height: float, margins: Mapping[str, float], legend: int = 0, width: float | None = None
) -> tuple[Any, Any]:
    """A figure with one pair of axes.

    Args:
        height: inches of the axes themselves.
        margins: inches left free at "left", "right", "bottom" and between legend and axes ("top").
        legend: entries of the legend, for which room is left above the axes.
        width: inches of the figure, where it is not the layout's.

    Returns:
        (figure, axes)
    """
    layout = layout if width is None else Layout(width, layout.narrow)
    top = HEAD_INCHES + LEGEND_ROW_INCHES * legend_rows(legend, layout) + margins.get("top", 0.12)
    total = height + top + margins["bottom"]
    figure = new_figure(title, subtitle, layout, total)
    left = margins["left"] / layout.width
    axes = add_axes(figure, (left, margins["bottom"] / total, 1 - left - margins["right"] / layout.width, height / total))
    return figure, axes


def add_axes(figure: Any, place: tuple[float, float, float, float]) -> Any:
    """Axes of the house at (left, bottom, width, height) in shares of the figure."""
    axes = figure.add_axes(place, facecolor="none")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    return axes


def name_room(names: Sequence[str], layout: Layout, most: float) -> float:
    """Inches left of the axes that the names of rows need, `most` at most, or what a phone has."""
    letters = max(len(line) for name in names for line in name.split("\n"))
    return min(0.25 + LETTER_INCHES * (letters + 1), 1.25 if layout.narrow else most)


def domain_rows(axes: Any, names: Sequence[str], guides: bool = True) -> None:
    """One row per name, the first on top, with a faint guide for the eye; names are cut to the room left of the axes."""
    room = axes.get_position().x0 * axes.figure.get_size_inches()[0] - 0.15
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), [cut(name, room) for name in names])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(names) if guides else 0):
        axes.axhline(row, color=FAINT, linewidth=0.6, zorder=0)


def cut(name: str, inches: float) -> str:
    """The name, or its beginning and an ellipsis; each line of its own."""
    letters = max(int(inches / LETTER_INCHES), 4)
    return "\n".join(line if len(line) <= letters else line[: letters - 1] + "…" for line in name.split("\n"))


def mark(artist: Any, *lines: str) -> Any:
    """Fastens what the page says when this artist is pointed at; returns the artist. By keyboard, marks follow in the order of the calls."""
    artist.set_gid(f"{MARK}{next(_ORDER)}:" + LINE_BREAK.join(_NOT_XML.sub("", " ".join(line.split())) for line in lines))
    return artist


def legend_rows(entries: int, layout: Layout) -> int:
    return math.ceil(entries / 2) if layout.narrow else min(entries, 1)


def legend_above(axes: Any, handles: Sequence[Any], layout: Layout) -> None:
    """The legend between subtitle and axes, from the figure's left edge: in one line, or in two columns where it is narrow."""
    width, height = axes.figure.get_size_inches()
    axes.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.1 / width, 1 - HEAD_INCHES / height),
        bbox_transform=axes.figure.transFigure,
        ncols=2 if layout.narrow else len(handles),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handletextpad=0.3,
        columnspacing=1.1,
        borderaxespad=0.0,
        labelspacing=0.35,
    )


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Positions close to `values` and at least `gap` apart, in the same order; where labels go.

    Labels that would overlap form a block whose centre is the mean of what they label.
    """
    order = sorted(range(len(values)), key=lambda index: values[index])
    blocks: list[list[int]] = []
    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and _start(blocks[-1], values, gap) - _end(blocks[-2], values, gap) < gap:
            last = blocks.pop()
            blocks[-1] = blocks[-1] + last
    placed = [0.0] * len(values)
    for block in blocks:
        for rank, index in enumerate(block):
            placed[index] = _start(block, values, gap) + rank * gap
    return placed


def _start(block: Sequence[int], values: Sequence[float], gap: float) -> float:
    return sum(values[index] for index in block) / len(block) - gap * (len(block) - 1) / 2


def _end(block: Sequence[int], values: Sequence[float], gap: float) -> float:
    return _start(block, values, gap) + gap * (len(block) - 1)


def save_png(figure: Any, path: Path) -> Path:
    """Writes the figure, whole or not at all; without a date in it, so that the same figure gives the same bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}")
    figure.savefig(temporary, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})
    os.replace(temporary, path)
    return path
