"""What the proxies did, drawn: learning curves, noise against spread, where the compute went."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mixopt.terminal import quantity
from mixopt.tracking.canvas import (
    ARM_COLOURS,
    ARM_MARKERS,
    BLUE,
    FAINT,
    GREEN,
    HEAD_INCHES,
    INK,
    LEGEND_ROW_INCHES,
    MUTED,
    ORANGE,
    WIDE,
    Layout,
    add_axes,
    cut,
    domain_rows,
    legend_above,
    legend_rows,
    mark,
    name_room,
    new_axes,
    new_figure,
)
from mixopt.tracking.findings import ARM_TITLES, Findings, short_metric
from mixopt.tracking.report.measured import Curve, cost_by_stage, curves, noise_by_metric
from mixopt.verification import MEAN_BITS_PER_BYTE

# Panels beyond this say nothing that the table does not; the mean and the first targets are drawn.
MOST_PANELS = 16
# Faint lines beyond this are a grey area.
MOST_FAINT_CURVES = 200
PANEL_INCHES = 1.25


def curves_figure(stage: str, findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Small multiples: loss over training tokens, for the mean and each target; named mixtures in colour, other trials faint."""
    shown = [MEAN_BITS_PER_BYTE, *findings.shown_metrics[: MOST_PANELS - 1]]
    by_metric: dict[str, list[Curve]] = {}
    for curve in curves(findings, stage, findings.shown_metrics):
        if len(curve.tokens) > 1:
            by_metric.setdefault(curve.metric, []).append(curve)
    panels = [metric for metric in shown if metric in by_metric]
    if not panels:
        return None
    best = None
    if stage == "search" and findings.proposal is not None:
        best = findings.proposal.best_measured.get("trial_id")
    arms = [arm for arm in ARM_COLOURS if any(arm in curve.arms for curve in by_metric[panels[0]])]
    if best is not None and "best_measured" not in arms:
        arms.append("best_measured")
    columns = min(2 if layout.narrow else 4, len(panels))
    rows = math.ceil(len(panels) / columns)
    top = HEAD_INCHES + LEGEND_ROW_INCHES * legend_rows(len(arms) + (stage == "search"), layout) + 0.34
    cell_height = PANEL_INCHES + 0.52
    height = top + rows * cell_height + 0.12
    _, size, tokens = findings.context["sources"][stage]
    figure = new_figure(
        "Learning curves of the search" if stage == "search" else "Learning curves of the verification",
        f"{findings.loss_unit[0].upper()}{findings.loss_unit[1:]} over tokens (size {size}, to {quantity(tokens)}); named mixtures: mean of seeds. "
        + (
            "All points on the same windows."
            if all(curve.one_set_of_rows for metric in panels for curve in by_metric[metric])
            else "Early points: fewer windows, so ends can jump."
        ),
        layout,
        height,
    )
    cell_width = (layout.width - 0.1) / columns
    axes = None
    for number, metric in enumerate(panels):
        row, column = divmod(number, columns)
        left, bottom = 0.1 + column * cell_width + 0.42, height - top - row * cell_height - PANEL_INCHES
        place = (left / layout.width, bottom / height, (cell_width - 0.56) / layout.width, PANEL_INCHES / height)
        axes = add_axes(figure, place)
        _panel(axes, metric, by_metric[metric], arms, best, cell_width - 0.2, findings.loss_unit)
    legend_above(axes, _curve_legend(arms, stage == "search"), layout)
    return figure


def _panel(axes: Any, metric: str, found: Sequence[Curve], arms: Sequence[str], best: str | None, room: float, unit: str) -> None:
    from matplotlib.collections import LineCollection

    title = "mean of the objective" if metric == MEAN_BITS_PER_BYTE else short_metric(metric)
    axes.set_title(cut(title, room), fontsize=8.5, color=INK, loc="left", pad=3)
    faint = [list(zip(curve.tokens, curve.bits_per_byte, strict=True)) for curve in found if not curve.arms and curve.trial_id != best]
    axes.add_collection(LineCollection(faint[:MOST_FAINT_CURVES], colors=MUTED, linewidths=0.5, alpha=0.35, zorder=1))
    ends = sorted({count for curve in found for count in curve.tokens})
    for arm in arms:
        runs = [curve for curve in found if arm in curve.arms or (arm == "best_measured" and curve.trial_id == best)]
        if not runs:
            continue
        tokens = sorted(set.intersection(*(set(curve.tokens) for curve in runs)))
        losses = [[dict(zip(curve.tokens, curve.bits_per_byte, strict=True))[count] for count in tokens] for curve in runs]
        means = [math.fsum(values) / len(values) for values in zip(*losses, strict=True)]
        if len(runs) > 1:
            axes.fill_between(tokens, *_range(losses), color=ARM_COLOURS[arm], alpha=0.15, linewidth=0, zorder=2)
        axes.plot(tokens, means, color=ARM_COLOURS[arm], linewidth=1.3, zorder=3)
        (dot,) = axes.plot(tokens[-1:], means[-1:], ARM_MARKERS[arm], color=ARM_COLOURS[arm], markersize=3.5, zorder=4)
        seeds = f"mean of {len(runs)} seeds" if len(runs) > 1 else "one run"
        steps = ", ".join(f"{value:.3f} at {quantity(count)}" for count, value in zip(tokens, means, strict=True))
        mark(dot, f"{ARM_TITLES[arm]} on {title} ({seeds})", f"{unit}: {steps}")
    axes.autoscale_view()
    axes.set_xscale("log", base=2)
    _limit(axes, found, ends)
    axes.set_xticks([ends[0], ends[-1]], [quantity(ends[0]), quantity(ends[-1])], fontsize=8)
    axes.minorticks_off()
    axes.tick_params(labelsize=8, length=2)
    axes.locator_params(axis="y", nbins=4)


def _range(losses: Sequence[Sequence[float]]) -> tuple[list[float], list[float]]:
    """Least and largest loss over the runs, at each token count."""
    return [min(values) for values in zip(*losses, strict=True)], [max(values) for values in zip(*losses, strict=True)]


def _limit(axes: Any, found: Sequence[Curve], ends: Sequence[int]) -> None:
    """The axis shows nine tenths of all points and every named mixture: one useless mixture must not flatten the others."""
    values = sorted(value for curve in found for value in curve.bits_per_byte)
    named = [value for curve in found if curve.arms for value in curve.bits_per_byte]
    high = max([values[math.ceil(0.9 * len(values)) - 1], *named])
    margin = 0.05 * (high - values[0]) or 0.01
    axes.set_ylim(values[0] - margin, high + margin)
    axes.set_xlim(ends[0] * 0.93, ends[-1] * 1.12)


def _curve_legend(arms: Sequence[str], others: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=ARM_COLOURS[arm], marker=ARM_MARKERS[arm], markersize=4, linewidth=1.3, label=ARM_TITLES[arm]) for arm in arms
    ]
    return handles + [Line2D([], [], color=MUTED, linewidth=0.8, alpha=0.6, label="other mixtures")] * others


def noise_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Seed noise of each target against its spread over mixtures, both as standard deviations, and their ratio."""
    from matplotlib.lines import Line2D

    rows = sorted(noise_by_metric(findings, findings.shown_metrics), key=lambda row: (-row.ratio, row.metric))
    if not rows:
        return None
    first = rows[0]
    names = [short_metric(row.metric) for row in rows]
    figure, axes = new_axes(
        "Noise: what a target can tell apart",
        f"Standard deviations in {findings.loss_unit}: over {first.mixtures} mixtures, and over seeds of one mixture "
        f"({first.degrees_of_freedom} degrees of freedom).",
        layout,
        0.3 * len(rows) + 0.1,
        {"left": name_room(names, layout, 1.7), "right": 0.85 if layout.narrow else 1.5, "top": 0.22, "bottom": 0.5},
        legend=3,
    )
    domain_rows(axes, names)
    axes.set_xscale("log")
    x = 1 + 0.78 / (axes.get_position().width * layout.width)
    for position, row in enumerate(rows):
        colour = MUTED if row.screened or row.ratio <= 1 else GREEN
        lines = [f"spread over mixtures {row.spread_std:.4f}", f"seed noise {row.noise_std:.4f}", f"signal to noise {row.ratio:.1f}"]
        runs = [f"{name}: {std:.4f} over {seeds} seeds" for name, seeds, std in row.by_mixture]
        shown = max(row.spread_std, row.noise_std / 20)  # a spread of nothing has no place on a logarithmic axis
        axes.plot([row.noise_std, shown], [position] * 2, color=colour, linewidth=2, alpha=0.4, zorder=2)
        spots = [max(std, row.noise_std / 20) for _, _, std in row.by_mixture]
        axes.plot(spots, [position] * len(spots), "|", color=INK, markersize=8, alpha=0.6, zorder=2.5)
        (dot,) = axes.plot(row.noise_std, position, "D", color=INK, markerfacecolor="white", markersize=5, zorder=3)
        mark(dot, f"{short_metric(row.metric)}: seed noise {row.noise_std:.4f} {findings.loss_unit}", *runs)
        (dot,) = axes.plot(shown, position, "o", color=colour, markersize=7, zorder=4)
        mark(dot, short_metric(row.metric), *lines, *([f"left out: {row.screened}"] if row.screened else []))
        place = {"transform": axes.get_yaxis_transform(), "va": "center", "color": colour, "fontsize": 9}
        axes.text(x, position, f"{row.ratio:.1f}", fontweight="bold", ha="right", **place)
        if row.screened and not layout.narrow:
            axes.text(x, position, "  left out", ha="left", **place)
    title = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(x, -0.85, "signal/noise", fontsize=8, color=MUTED, **title)
    low, high = axes.get_xlim()
    steps = [float(f"{digit}e{power}") for power in range(-7, 3) for digit in (1, 2, 5)]
    ticks = [step for step in steps if low <= step <= high]
    # At most one label for each inch or so.
    axes.set_xticks(ticks if len(ticks) <= (4 if layout.narrow else 8) else ticks[:: 3 if layout.narrow else 2])
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel(findings.loss_unit, color=INK, fontsize=9)
    legend_above(
        axes,
        [
            Line2D([], [], color=GREEN, marker="o", markersize=7, linestyle="none", label="over mixtures"),
            Line2D([], [], color=INK, marker="D", markerfacecolor="white", markersize=5, linestyle="none", label="over seeds"),
            Line2D([], [], color=INK, marker="|", markersize=8, linestyle="none", label="one mixture's seeds"),
        ],
        layout,
    )
    return figure


def cost_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Trials, tokens, FLOPs and seconds: how each is shared by the stages."""
    from matplotlib.patches import Patch

    stages = [stage for stage in cost_by_stage(findings) if stage.tokens]
    if not stages:
        return None
    figure, axes = new_axes(
        "What the search has cost",
        "Completed trials of each stage; seconds are those of one worker.",
        layout,
        0.36 * 4,
        {"left": 0.9 if layout.narrow else 1.3, "right": 0.8 if layout.narrow else 1.3, "top": 0.12, "bottom": 0.45},
        legend=len(stages),
    )
    quantities = {
        "trials": [float(stage.states.get("completed", 0)) for stage in stages],
        "tokens": [float(stage.tokens) for stage in stages],
        "FLOPs": [stage.flops for stage in stages],
        "seconds": [stage.seconds for stage in stages],
    }
    colours = {"base": MUTED, "components": ORANGE, "search": BLUE, "verification": GREEN}
    axes.set_ylim(3.5, -0.5)
    axes.set_yticks(range(4), list(quantities))
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    for row, (name, values) in enumerate(quantities.items()):
        total, start = math.fsum(values), 0.0
        axes.barh(row, 1.0, height=0.6, color=FAINT, alpha=0.4, zorder=0)
        for stage, value in zip(stages, values, strict=True):
            (bar,) = axes.barh(row, value / total if total else 0, left=start, height=0.6, color=colours[stage.stage], alpha=0.85, zorder=2)
            mark(bar, f"{stage.stage}: {amount(name, value)} {name}", f"{value / total if total else 0:.0%} of {amount(name, total)}")
            start += value / total if total else 0
        axes.text(
            1.03, row, amount(name, total), transform=axes.get_yaxis_transform(), fontsize=9, fontweight="bold", color=INK, va="center"
        )
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0%", "50%", "100%"])
    legend_above(axes, [Patch(color=colours[stage.stage], alpha=0.85, label=stage.stage) for stage in stages], layout)
    return figure


def amount(name: str, value: float) -> str:
    """A quantity as people read it; FLOPs as a power of ten."""
    if name == "FLOPs":
        return f"{value:.2e}".replace("e+", "e")
    return f"{value:,.0f}" if name in ("trials", "seconds") else quantity(value)
