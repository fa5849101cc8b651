"""The figures of a search: what it proposes, whether to believe it, how it got there, what it costs in repetitions.

Each figure is a function of findings and a layout that returns a matplotlib Figure, or None where the search has not measured what it would
show. `write_figures` draws those there are as PNG; the report draws the same ones into its page. The main trade-off: few figures, each with
its labels on the data, instead of a dashboard.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mixopt.history import History
from mixopt.tracking.canvas import WIDE, Layout, save_png
from mixopt.tracking.drawings.effects import effects_figure
from mixopt.tracking.drawings.evidence import objective_figure, predicted_figure, verification_figure
from mixopt.tracking.drawings.experts import experts_figure
from mixopt.tracking.drawings.front import front_figure
from mixopt.tracking.drawings.mixture import epochs_figure, mixture_figure
from mixopt.tracking.drawings.runs import cost_figure, curves_figure, noise_figure
from mixopt.tracking.findings import Findings, read_findings

__all__ = [
    "FIGURES",
    "draw_figures",
    "effects_figure",
    "epochs_figure",
    "mixture_figure",
    "objective_figure",
    "predicted_figure",
    "verification_figure",
    "write_figures",
]

# Name, which is the file's too -> the drawing. Wide ones become PNG; a page has each wide and narrow.
FIGURES: dict[str, Callable[[Findings, Layout], Any | None]] = {
    "mixture": mixture_figure,
    "epochs": epochs_figure,
    "predicted": predicted_figure,
    "objective": objective_figure,
    "verification": verification_figure,
    "front": front_figure,
    "effects": effects_figure,
    "curves": partial(curves_figure, "search"),
    "curves-verification": partial(curves_figure, "verification"),
    "noise": noise_figure,
    "experts": experts_figure,
    "cost": cost_figure,
}


def write_figures(folder: Path, history: History, search_id: str) -> list[Path]:
    """Draws every figure that the record has data for into `folder`, as PNG; returns their paths.

    Raises:
        DataError: the record does not hold the search.
    """
    return draw_figures(folder, read_findings(history, search_id))


def draw_figures(folder: Path, findings: Findings) -> list[Path]:
    """As `write_figures`, from findings already read."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = ((name, draw(findings, WIDE)) for name, draw in FIGURES.items())
    return [save_png(figure, folder / f"{name}.png") for name, figure in drawn if figure is not None]
