"""Which domain helps which target, drawn: a heat map of what one more point of a domain does, greyed where the surrogate does not know."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from mixopt.tracking.canvas import (
    BLUE,
    FAINT,
    INK,
    LETTER_INCHES,
    MUTED,
    VERMILION,
    WIDE,
    Layout,
    cut,
    domain_rows,
    legend_above,
    mark,
    name_room,
    new_axes,
)
from mixopt.tracking.drawings.evidence import NINETY_PERCENT
from mixopt.tracking.findings import Findings, short_metric
from mixopt.tracking.report.measured import noise_by_metric
from mixopt.verification import OBJECTIVE

# Opacity of cells whose sign is likely, and of those where it is unclear.
PALE, GREY = 0.14, 0.35
# Columns beyond this leave a cell no room for its number.
MOST_NUMBERED_COLUMNS = 14


@dataclass(frozen=True)
class Cell:
    """The effect of a domain on a metric: mean and 90% interval in `unit`, and the noise in it that the drawing divides by.

    An objective that is in standard deviations of a seed already is not divided again (`noise_std` 1): one unit, one number.
    """

    domain: str
    metric: str
    unit: str
    mean: float
    low: float
    high: float
    noise_std: float

    @property
    def certainty(self) -> Literal["clear", "likely", "unclear"]:
        """Clear: the interval excludes zero. Likely: the mean is a standard deviation from it, so that the sign is wrong one time in six."""
        if self.low > 0 or self.high < 0:
            return "clear"
        return "likely" if abs(self.mean) > (self.high - self.low) / (2 * NINETY_PERCENT) else "unclear"

    @property
    def scaled(self) -> float:
        """In standard deviations of one seed."""
        return self.mean / self.noise_std

    @property
    def verdict(self) -> str:
        if self.certainty == "unclear":
            return "unclear"
        return ("likely " if self.certainty == "likely" else "") + ("better" if self.mean < 0 else "worse")


def effect_cells(findings: Findings) -> list[list[Cell]]:
    """One row per domain, the one that helps the objective most first; the objective, then the shown metrics. Empty where none are known."""
    effects = findings.effects
    scales = {row.metric: row.noise_std for row in noise_by_metric(findings, findings.shown_metrics)}
    if effects is None or not scales:
        return []
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal else {}
    in_bits = findings.objective_unit == findings.loss_unit
    scales = {OBJECTIVE: float(evidence.get("objective_noise_std") or 1.0) if in_bits else 1.0, **scales}
    columns = [(effects.metrics.index(metric), metric, scale) for metric, scale in scales.items() if metric in effects.metrics]
    cells = [
        [
            Cell(
                domain,
                "objective" if metric == OBJECTIVE else short_metric(metric),
                findings.objective_unit if metric == OBJECTIVE else findings.loss_unit,
                effects.mean[row][column],
                effects.low[row][column],
                effects.high[row][column],
                scale,
            )
            for column, metric, scale in columns
        ]
        for row, domain in enumerate(effects.domains)
    ]
    return sorted(cells, key=lambda row: (row[0].mean, row[0].domain))


def effects_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Heat map: what one more point of a domain's share does for each target, in standard deviations of a seed; grey where unclear."""
    effects, cells = findings.effects, effect_cells(findings)
    if effects is None or not cells:
        return None
    columns = len(cells[0])
    left = name_room(effects.domains, layout, 1.6)
    widest = 0.9 * columns  # a cell wider than this is a bar
    titles = [cut(cell.metric, 1.3) for cell in cells[0]]
    figure, axes = new_axes(
        "What one more point of a domain does for each target",
        f"Predicted change when a domain gains {effects.step:.0%} of all tokens, from {effects.base}, in standard deviations of a seed.",
        layout,
        0.27 * len(cells),
        {
            "left": left,
            "right": max(0.25, layout.width - left - widest),
            "top": (LETTER_INCHES + 0.005) * max(map(len, titles)) + 0.15,
            "bottom": 0.1,
        },
        legend=5,
    )
    domain_rows(axes, [row[0].domain for row in cells], guides=False)
    axes.set_ylim(len(cells) - 0.5, -0.5)
    axes.set_xlim(-0.5, columns - 0.5)
    axes.spines["bottom"].set_visible(False)
    axes.xaxis.tick_top()
    axes.set_xticks(range(columns), titles, rotation=90 if layout.narrow else 55, ha="center" if layout.narrow else "left")
    axes.tick_params(axis="x", length=0, pad=2)
    strengths = sorted(abs(cell.scaled) for row in cells for cell in row)
    largest = strengths[math.ceil(0.95 * len(strengths)) - 1] or 1.0
    for line, row in enumerate(cells):
        for column, cell in enumerate(row):
            _draw_cell(axes, line, column, cell, largest, numbered=not layout.narrow and columns <= MOST_NUMBERED_COLUMNS)
    handles = [_square(BLUE, 0.6, "helps"), _square(VERMILION, 0.6, "hurts"), _square(BLUE, PALE, "likely helps")]
    handles += [_square(VERMILION, PALE, "likely hurts"), _square(FAINT, GREY, "unclear")]
    legend_above(axes, handles, layout)
    return figure


def _draw_cell(axes: Any, line: int, column: int, cell: Cell, largest: float, numbered: bool) -> None:
    from matplotlib.patches import Rectangle

    colour = FAINT if cell.certainty == "unclear" else BLUE if cell.mean < 0 else VERMILION
    alpha = {"clear": 0.3 + 0.4 * min(abs(cell.scaled) / largest, 1), "likely": PALE, "unclear": GREY}[cell.certainty]
    box = Rectangle((column - 0.47, line - 0.45), 0.94, 0.9, facecolor=colour, alpha=alpha, edgecolor="none", zorder=1)
    axes.add_patch(box)
    numbers = f"{cell.mean:+.3g} {cell.unit} ({cell.low:+.3g} to {cell.high:+.3g}): {cell.verdict}"
    scaled = [f"{cell.scaled:+.2f} standard deviations of a seed"] if cell.noise_std != 1 else []
    mark(box, f"{cell.domain} on {cell.metric}", numbers, *scaled)
    if numbered:
        text = f"{cell.scaled:+.{1 if abs(cell.scaled) >= 0.95 else 2}f}".replace("-", "\N{MINUS SIGN}")
        ink = MUTED if cell.certainty == "unclear" else INK
        axes.text(column, line, text, ha="center", va="center", fontsize=7.5, color=ink, zorder=2)


def _square(colour: str, alpha: float, label: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, alpha=alpha, edgecolor="none", label=label)
