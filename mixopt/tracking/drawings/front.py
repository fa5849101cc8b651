"""The front of a search with several objectives: what was measured, what is predicted to be best, and the point that is proposed.

Two objectives at a time: of three or four the first two are drawn, and the table beside it has all. The main trade-off: a projection, in
which points of the front may look beaten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mixopt.tracking.canvas import ARM_COLOURS, ARM_MARKERS, BLUE, FAINT, GREEN, INK, MUTED, WIDE, Layout, legend_above, mark, new_axes
from mixopt.tracking.drawings.evidence import dot_handle, line_handle
from mixopt.tracking.findings import ARM_TITLES, Findings


def front_of(findings: Findings) -> Mapping[str, Any] | None:
    """The front in the proposal's evidence; None where the search has one objective."""
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal else {}
    return evidence.get("front")


def front_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Measured runs, the predicted front with its intervals, and the proposal, over the first two objectives."""
    front = front_of(findings)
    if front is None:
        return None
    names, left_out = front["objectives"], len(front["objectives"]) - 2
    figure, axes = new_axes(
        "The front",
        "Each objective relative to the natural mixture, in standard deviations of a seed; lower is better."
        + (f" {names[0]} and {names[1]} of {len(names)} objectives." if left_out else ""),
        layout,
        2.8 if layout.narrow else 3.6,
        {"left": 0.8, "right": 0.2, "bottom": 0.7},
        legend=4,
    )
    for point in front["measured"]:
        x, y = point["values"][:2]
        colour = ARM_COLOURS.get(point["label"], MUTED)
        (dot,) = axes.plot(x, y, ARM_MARKERS.get(point["label"], "o"), markersize=5, color=colour, alpha=1.0 if point["feasible"] else 0.35)
        name = ARM_TITLES.get(point["label"], point["label"]) or point["trial_id"][:8]
        mark(dot, name, f"{names[0]} {x:+.2f}", f"{names[1]} {y:+.2f}", "" if point["feasible"] else "not feasible")
    means = [point["mean"] for point in front["predicted"]]
    stds = [point["std"] for point in front["predicted"]]
    columns = [[row[place] for row in rows] for rows in (means, stds) for place in (0, 1)]
    axes.errorbar(*columns[:2], xerr=columns[2], yerr=columns[3], fmt="none", ecolor=GREEN, elinewidth=0.7, alpha=0.5, zorder=2)
    axes.plot(*columns[:2], color=GREEN, linewidth=1.6, marker="o", markersize=3, zorder=3)
    (dot,) = axes.plot(*front["proposal"][:2], "D", color=BLUE, markersize=8, zorder=4)
    mark(dot, "proposal (predicted)", *(f"{name} {value:+.2f}" for name, value in zip(names, front["proposal"], strict=True)))
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(names[0], color=INK, fontsize=9)
    axes.set_ylabel(names[1], color=INK, fontsize=9)
    handles = [
        dot_handle("measured", MUTED),
        line_handle("predicted front, one std", GREEN, linestyle="-"),
        dot_handle("proposal", BLUE, "D"),
    ]
    legend_above(axes, handles, layout)
    return figure
