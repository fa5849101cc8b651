"""The figures of a search: what it proposes, whether to believe it, how it got there, what it costs in repetitions.

Each figure is a function of plain data that returns a matplotlib Figure, or None where the search has not measured what it would show.
`write_figures` draws those there are. The main trade-off: few figures, each with its labels on the data, instead of a dashboard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixopt.history import History
from mixopt.tracking.canvas import (
    ARM_COLOURS,
    ARM_MARKERS,
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    VERMILION,
    domain_rows,
    legend_above,
    new_axes,
    save_png,
    spread,
)
from mixopt.tracking.findings import ARM_TITLES, Findings, read_findings
from mixopt.verification import OBJECTIVE

BASELINES = ("natural", "uniform", "unimax")
# Half the width of a central 90% interval of a normal distribution, in standard deviations.
NINETY_PERCENT = 1.645


def write_figures(folder: Path, history: History, search_id: str) -> list[Path]:
    """Draws every figure that the record has data for into `folder`, as PNG; returns their paths.

    Raises:
        DataError: the record does not hold the search.
    """
    return draw_figures(folder, read_findings(history, search_id))


def draw_figures(folder: Path, findings: Findings) -> list[Path]:
    """As `write_figures`, from findings already read."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = ((name, draw(findings)) for name, draw in FIGURES.items())
    return [save_png(figure, folder / f"{name}.png") for name, figure in drawn if figure is not None]


def mixture_figure(findings: Findings) -> Any | None:
    """Weights of the proposal with near-optimal ranges and caps, against natural, uniform, UniMax and the best measured mixture."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    proposal = findings.proposal
    if proposal is None:
        return None
    weights = proposal.mixture.as_dict()
    names = sorted(weights, key=lambda name: (-weights[name], name))
    arms: dict[str, Mapping[str, float]] = {arm: findings.context[arm] for arm in BASELINES if arm in findings.context}
    if proposal.best_measured.get("weights"):
        arms["best_measured"] = proposal.best_measured["weights"]
    subtitle = "Share of training tokens. Bars: how far a weight can move before the prediction is clearly worse."
    figure, axes = new_axes(
        "Proposed mixture and its baselines",
        subtitle,
        8.4,
        1.75 + 0.36 * len(names),
        {"left": 1.7, "right": 1.35, "top": 1.05, "bottom": 0.55},
    )
    domain_rows(axes, names)
    for row, name in enumerate(names):
        low, high = proposal.near_optimal.get(name, (weights[name], weights[name]))
        axes.plot([low, high], [row - 0.14] * 2, color=BLUE, alpha=0.3, linewidth=6, solid_capstyle="butt", zorder=2)
        axes.plot(weights[name], row - 0.14, "o", color=BLUE, markersize=7, zorder=4)
        for arm, mixture in arms.items():
            if arm == "uniform":
                continue
            style = {"color": ARM_COLOURS[arm], "marker": ARM_MARKERS[arm], "fillstyle": "none", "markeredgewidth": 1.1}
            axes.plot(mixture[name], row + 0.2, markersize=4.5, linestyle="none", zorder=3, **style)
    if "uniform" in arms:  # the same in every row, so a line says it with less ink
        axes.axvline(1 / len(names), color=ARM_COLOURS["uniform"], linewidth=1.2, linestyle=":", zorder=1)
    shown = [value for mixture in (weights, *arms.values()) for value in mixture.values()]
    limit = 1.06 * max([*shown, *(high for _, high in proposal.near_optimal.values())])
    caps = _draw_caps(axes, [findings.context["upper"].get(name, 1.0) for name in names], limit)
    axes.set_xlim(-0.01 * limit, limit)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}%"))
    _column(axes, names, "proposal", BLUE, {name: f"{weight:.1%}" for name, weight in weights.items()}, 0)
    _column(axes, names, "natural", INK, {name: f"{weight:.1%}" for name, weight in arms.get("natural", {}).items()}, 1)
    handles = [Line2D([], [], color=BLUE, marker="o", linestyle="none", markersize=7, label="proposal")]
    for arm in arms:
        look: dict[str, Any] = (
            {"linestyle": ":"} if arm == "uniform" else {"linestyle": "none", "marker": ARM_MARKERS[arm], "fillstyle": "none"}
        )
        handles.append(Line2D([], [], color=ARM_COLOURS[arm], markersize=5, label=ARM_TITLES[arm], **look))
    if caps:
        handles.append(
            Line2D([], [], color=VERMILION, marker="|", markersize=11, markeredgewidth=2, linestyle="none", label="largest allowed")
        )
    legend_above(axes, handles)
    return figure


def epochs_figure(findings: Findings) -> Any | None:
    """How often the target run repeats each domain, with the caps."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if findings.proposal is None:
        return None
    epochs = findings.proposal.epochs
    domains = {domain["name"]: domain for domain in findings.context["domains"]}
    budget_tokens = float(findings.context["budget_tokens"])
    natural = {name: findings.context["natural"][name] * budget_tokens / float(domains[name]["target_tokens"]) for name in epochs}
    names = sorted(epochs, key=lambda name: (-epochs[name], name))
    figure, axes = new_axes(
        "How often the target run repeats each domain",
        f"Epochs over the domain's own tokens in a run of {_tokens(budget_tokens)} tokens.",
        8.4,
        1.75 + 0.32 * len(names),
        {"left": 1.7, "right": 1.35, "top": 1.05, "bottom": 0.55},
    )
    domain_rows(axes, names)
    axes.barh(range(len(names)), [epochs[name] for name in names], height=0.55, color=BLUE, alpha=0.85, zorder=2)
    axes.plot([natural[name] for name in names], range(len(names)), "D", color=INK, markerfacecolor="white", markersize=5, zorder=3)
    limit = 1.08 * max([*epochs.values(), *natural.values()])
    caps = _draw_caps(axes, [float(domains[name]["max_epochs"]) for name in names], limit * 1.25)
    axes.set_xlim(0, max([limit, *(cap * 1.04 for cap in caps)]))
    axes.set_xlabel("epochs", color=INK, fontsize=9)
    _column(axes, names, "epochs", BLUE, {name: f"{epochs[name]:.2f}" for name in names}, 0)
    _column(axes, names, "cap", VERMILION, {name: f"{float(domains[name]['max_epochs']):g}" for name in names}, 1)
    handles = [
        Patch(color=BLUE, alpha=0.85, label="proposal"),
        Line2D([], [], color=INK, marker="D", markerfacecolor="white", linestyle="none", markersize=5, label="natural"),
    ]
    if caps:
        handles.append(Line2D([], [], color=VERMILION, marker="|", markersize=11, markeredgewidth=2, linestyle="none", label="cap"))
    legend_above(axes, handles)
    return figure


def predicted_figure(findings: Findings) -> Any | None:
    """Measured objective of each trial against its out-of-fold prediction with its interval."""
    from matplotlib.lines import Line2D

    pairs = findings.proposal.evidence.get("predicted") if findings.proposal else None
    if not pairs:
        return None
    evidence = findings.proposal.evidence if findings.proposal else {}
    rho = (evidence.get("spearman") or {}).get("objective")
    inside = sum(abs(pair["measured"] - pair["mean"]) <= NINETY_PERCENT * pair["std"] for pair in pairs)
    figure, axes = new_axes(
        "Predicted against measured",
        f"{len(pairs)} trials, each predicted without itself, 90% intervals; {inside} of {len(pairs)} hold the measured value."
        + ("" if rho is None else f" Spearman {rho:.2f}."),
        7.2,
        6.2,
        {"left": 0.85, "right": 0.4, "top": 1.0, "bottom": 0.7},
    )
    halves = [NINETY_PERCENT * pair["std"] for pair in pairs]
    ends = [pair["measured"] for pair in pairs]
    ends += [pair["mean"] + sign * half for pair, half in zip(pairs, halves, strict=True) for sign in (-1, 1)]
    margin = 0.04 * (max(ends) - min(ends)) or 1.0
    limits = (min(ends) - margin, max(ends) + margin)
    axes.plot(limits, limits, color=MUTED, linewidth=1, zorder=1)
    for pair, half in zip(pairs, halves, strict=True):
        colour = ARM_COLOURS.get(pair["label"], MUTED)
        marker = ARM_MARKERS.get(pair["label"], "o")
        axes.errorbar(
            pair["mean"], pair["measured"], xerr=half, fmt=marker, markersize=5, color=colour, ecolor=colour, elinewidth=0.8, alpha=0.75
        )
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_aspect("equal")
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    axes.set_xlabel(f"predicted objective ({findings.objective_unit}, lower is better)", color=INK, fontsize=9)
    axes.set_ylabel("measured objective", color=INK, fontsize=9)
    arms = [arm for arm in BASELINES if any(pair["label"] == arm for pair in pairs)]
    handles = [
        Line2D([], [], color=ARM_COLOURS[a], marker=ARM_MARKERS[a], markersize=5, linestyle="none", label=ARM_TITLES[a]) for a in arms
    ]
    handles.append(Line2D([], [], color=MUTED, marker="o", markersize=5, linestyle="none", label="other mixtures"))
    legend_above(axes, handles)
    return figure


def objective_figure(findings: Findings) -> Any | None:
    """Measured objective over the trials in the order asked, with the best so far, the baselines and the proposal."""
    proposal = findings.proposal
    evidence: Mapping[str, Any] = proposal.evidence if proposal else {}
    trials = evidence.get("objective_over_trials") or evidence.get("predicted")
    if proposal is None or not trials:
        return None
    values = [float(trial["measured"]) for trial in trials]
    numbers = list(range(1, len(values) + 1))
    best = [min(values[:count]) for count in numbers]
    figure, axes = new_axes(
        "Objective over the trials",
        f"Difference to the natural mixture in {findings.objective_unit}, lower is better. Each dot is one trained proxy; arrows: far above.",
        8.4,
        4.6,
        {"left": 0.85, "right": 1.75, "top": 0.95, "bottom": 0.65},
    )
    colours = [ARM_COLOURS.get(trial["label"], MUTED) for trial in trials]
    top = max(_top(values), proposal.objective.high)  # the proposal's interval is drawn whole, and what lies beside it too
    kept = [index for index, value in enumerate(values) if value <= top]
    axes.scatter(
        [numbers[i] for i in kept], [values[i] for i in kept], c=[colours[i] for i in kept], s=22, alpha=0.8, linewidths=0, zorder=3
    )
    axes.step(numbers, best, where="post", color=GREEN, linewidth=1.8, zorder=2)
    ends = [("best run so far", best[-1], GREEN)]
    for arm in BASELINES:
        repeats = [value for value, trial in zip(values, trials, strict=True) if trial["label"] == arm]
        if repeats:
            level = math.fsum(repeats) / len(repeats)
            axes.axhline(level, color=ARM_COLOURS[arm], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
            ends.append((ARM_TITLES[arm], level, ARM_COLOURS[arm]))
    effect = proposal.objective
    error = [[max(effect.mean - effect.low, 0.0)], [max(effect.high - effect.mean, 0.0)]]
    axes.errorbar(len(values) + 1.2, effect.mean, yerr=error, fmt="o", color=BLUE, markersize=7, capsize=3, zorder=4)
    ends.append(("proposal (predicted)", effect.mean, BLUE))
    axes.set_xlim(0.3, len(values) + 1.7)
    axes.set_xlabel("trial, in the order asked", color=INK, fontsize=9)
    axes.set_ylabel("measured objective", color=INK, fontsize=9)
    low, high = axes.get_ylim()
    for index in sorted(set(range(len(values))) - set(kept)):  # their values stand beside an arrow at the upper edge
        axes.plot(numbers[index], high, "^", color=colours[index], markersize=6, clip_on=False, zorder=3)
        axes.annotate(
            f"{values[index]:.0f}", (numbers[index], high), (0, 6), textcoords="offset points", ha="center", fontsize=7, color=MUTED
        )
    axes.set_ylim(low, high)
    for (text, level, colour), y in zip(ends, spread([end[1] for end in ends], 0.05 * (high - low)), strict=True):
        axes.annotate(text, (1.0, level), (1.02, y), xycoords=("axes fraction", "data"), color=colour, fontsize=9, va="center")
    return figure


def verification_figure(findings: Findings) -> Any | None:
    """Paired differences of the objective at the larger source, proposal minus each other arm."""
    verification = findings.verification
    rivals = verification.rivals if verification else {}
    rows = [row for row in (verification.comparisons if verification else ()) if row.metric == OBJECTIVE and row.baseline in rivals]
    if verification is None or not rows:
        return None
    source = verification.source
    figure, axes = new_axes(
        "Verification: the proposal at a larger source",
        f"Objective of the proposal minus each other mixture's, seed by seed (ticks), {verification.confidence:.0%} intervals. "
        f"Size {source.size}, {_tokens(source.tokens)} tokens.",
        8.4,
        1.7 + 0.45 * len(rows),
        {"left": 1.9, "right": 2.2, "top": 0.85, "bottom": 0.65},
    )
    domain_rows(axes, [" = ".join(ARM_TITLES.get(name, name) for name in rivals[row.baseline]) for row in rows])
    numbers = {row.baseline: f"{row.mean:+.3g} ({row.low:+.3g} to {row.high:+.3g})".replace("-", "\N{MINUS SIGN}") for row in rows}
    axes.axvline(0, color=INK, linewidth=1)
    for position, row in enumerate(rows):
        colour = {"better": BLUE, "worse": VERMILION, "undecided": MUTED}[row.verdict]
        # A butt end: the default would draw an interval that stops short of 0 across it.
        axes.plot([row.low, row.high], [position] * 2, color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
        axes.plot(row.mean, position, "o", color=colour, markersize=8, zorder=3)
        axes.plot(row.values, [position + 0.25] * len(row.values), "|", color=colour, markersize=7, alpha=0.8, zorder=2)
        axes.annotate(numbers[row.baseline], (1.02, position), xycoords=("axes fraction", "data"), color=colour, fontsize=9, va="center")
    ends = [0.0, *(value for row in rows for value in (row.low, row.high, *row.values))]
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    axes.set_xlabel(f"left of 0: the proposal is better ({verification.objective_unit})", color=INK, fontsize=9)
    return figure


FIGURES: dict[str, Callable[[Findings], Any | None]] = {
    "mixture": mixture_figure,
    "epochs": epochs_figure,
    "predicted": predicted_figure,
    "objective": objective_figure,
    "verification": verification_figure,
}


def _top(values: Sequence[float]) -> float:
    """Where the axis of the objective ends: a mixture of one domain may be ten times as bad as all others, which would then lie on one line.

    Three times the spread of the better half above its median (Tukey's far-out fence, of the half that matters).
    """
    ordered = sorted(values)
    median = ordered[len(ordered) // 2]
    fence = median + 3 * (median - ordered[0])
    return fence if fence > median else ordered[-1]


def _draw_caps(axes: Any, caps: Sequence[float], limit: float) -> list[float]:
    """Marks the caps that lie within `limit`; returns them."""
    shown = [(row, cap) for row, cap in enumerate(caps) if cap <= limit]
    for row, cap in shown:
        axes.plot([cap] * 2, [row - 0.36, row + 0.36], color=VERMILION, linewidth=2, solid_capstyle="butt", zorder=2.5)
    return [cap for _, cap in shown]


def _column(axes: Any, names: Sequence[str], title: str, colour: str, texts: Mapping[str, str], position: int) -> None:
    """Numbers by domain in a column right of the axes; the first column (position 0) is bold."""
    x = 1 + (0.6 + 0.6 * position) / (axes.get_position().width * axes.figure.get_size_inches()[0])
    place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "color": colour}
    axes.text(x, -0.85, title, fontsize=8, **place)
    for row, name in enumerate(names):
        axes.text(x, row, texts.get(name, ""), fontsize=9, fontweight="normal" if position else "bold", **place)


def _tokens(count: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.0f}"
