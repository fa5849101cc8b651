"""How all figures look: one palette, one type of axes, labels that do not cover each other.

Figures are `matplotlib.figure.Figure` objects drawn by Agg. pyplot and rcParams are left alone: both are state of the whole process, and
figures are also drawn by the mirror's thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Okabe and Ito's palette, which people with any colour vision tell apart (jfly.uni-koeln.de/color); one colour per arm in every figure.
BLUE, ORANGE, GREEN, VERMILION, PURPLE = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7"
INK, MUTED, FAINT = "#222222", "#6b6b6b", "#d9d9d9"
ARM_COLOURS = {"proposal": BLUE, "best_measured": GREEN, "natural": INK, "unimax": ORANGE, "uniform": PURPLE}
ARM_MARKERS = {"proposal": "o", "best_measured": "^", "natural": "D", "unimax": "s", "uniform": "v"}

DOTS_PER_INCH = 144


def new_axes(title: str, subtitle: str, width: float, height: float, margins: Mapping[str, float]) -> tuple[Any, Any]:
    """A figure with one pair of axes.

    Args:
        width, height: inches.
        margins: inches left free at "left", "right", "top", "bottom" of the axes; the title stands in the top margin.

    Returns:
        (figure, axes)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DOTS_PER_INCH, facecolor="white")
    FigureCanvasAgg(figure)
    left, bottom = margins["left"] / width, margins["bottom"] / height
    size = (1 - left - margins["right"] / width, 1 - bottom - margins["top"] / height)
    axes = figure.add_axes((left, bottom, *size))
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED)
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9)
    figure.text(0.15 / width, 1 - 0.28 / height, title, fontsize=12, fontweight="bold", color=INK, va="center")
    figure.text(0.15 / width, 1 - 0.52 / height, subtitle, fontsize=9, color=MUTED, va="center")
    return figure, axes


def domain_rows(axes: Any, names: Sequence[str]) -> None:
    """One row per domain, the first on top, with a faint guide for the eye."""
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row in range(len(names)):
        axes.axhline(row, color=FAINT, linewidth=0.6, zorder=0)


def legend_above(axes: Any, handles: Sequence[Any]) -> None:
    """The legend in one line between subtitle and axes, from the figure's left edge."""
    width, height = axes.figure.get_size_inches()
    axes.legend(
        handles=list(handles),
        loc="upper left",
        bbox_to_anchor=(0.1 / width, 1 - 0.66 / height),
        bbox_transform=axes.figure.transFigure,
        ncols=len(handles),
        frameon=False,
        fontsize=8.5,
        handletextpad=0.3,
        columnspacing=1.1,
        borderaxespad=0.0,
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
