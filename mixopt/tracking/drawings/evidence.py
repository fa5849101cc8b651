"""Why to believe the answer, drawn: predictions against measurements, the search's progress, the verification, effects of domains."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mixopt.terminal import quantity
from mixopt.tracking.canvas import (
    ARM_COLOURS,
    ARM_MARKERS,
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    PAPER,
    VERMILION,
    WIDE,
    Layout,
    domain_rows,
    legend_above,
    mark,
    name_room,
    new_axes,
    spread,
)
from mixopt.tracking.drawings.mixture import BASELINES
from mixopt.tracking.findings import ARM_TITLES, Findings
from mixopt.verification import OBJECTIVE, Comparison

# Half the width of a central 90% interval of a normal distribution, in standard deviations.
NINETY_PERCENT = 1.645
# Marks that can be pointed at make a page large; of a search of thousands the arms and the best stay reachable, the others are dots.
MOST_MARKS = 400
# More dots than this hide each other, and take minutes to draw.
MOST_DRAWN = 500
VERDICT_COLOURS = {"better": BLUE, "worse": VERMILION, "undecided": MUTED}


def predicted_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Measured objective of each trial against its out-of-fold prediction with its interval."""
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal else {}
    pairs = evidence.get("predicted")
    if not pairs:
        return None
    rho = (evidence.get("spearman") or {}).get("objective")
    inside = sum(abs(pair["measured"] - pair["mean"]) <= NINETY_PERCENT * pair["std"] for pair in pairs)
    shown = _some(pairs)
    part = "" if len(shown) == len(pairs) else f" {len(shown)} of them are drawn."
    arms = [arm for arm in BASELINES if any(pair["label"] == arm for pair in pairs)]
    size = layout.width - 1.0 if layout.narrow else 4.5
    figure, axes = new_axes(
        "Predicted against measured",
        f"{len(pairs)} trials, each predicted without itself, 90% intervals; {inside} of {len(pairs)} hold the measured value."
        + ("" if rho is None else f" Spearman {rho:.2f}.")
        + part,
        layout,
        size,
        {"left": 0.8 if layout.narrow else 1.2, "right": 0.2 if layout.narrow else 1.5, "bottom": 0.7},
        legend=1 + len(arms),
        width=None if layout.narrow else 7.2,
    )
    halves = [NINETY_PERCENT * pair["std"] for pair in pairs]
    ends = [pair["measured"] for pair in pairs]
    ends += [pair["mean"] + sign * half for pair, half in zip(pairs, halves, strict=True) for sign in (-1, 1)]
    margin = 0.04 * (max(ends) - min(ends)) or 1.0
    limits = (min(ends) - margin, max(ends) + margin)
    axes.plot(limits, limits, color=MUTED, linewidth=1, zorder=1)
    axes.hlines(
        [pairs[number]["measured"] for number in shown],
        [pairs[number]["mean"] - halves[number] for number in shown],
        [pairs[number]["mean"] + halves[number] for number in shown],
        colors=[ARM_COLOURS.get(pairs[number]["label"], MUTED) for number in shown],
        linewidth=0.8,
        alpha=0.6,
    )
    for number in shown:
        pair, half = pairs[number], halves[number]
        colour = ARM_COLOURS.get(pair["label"], MUTED)
        (dot,) = axes.plot(pair["mean"], pair["measured"], ARM_MARKERS.get(pair["label"], "o"), markersize=5, color=colour, alpha=0.8)
        if len(pairs) <= MOST_MARKS or pair["label"] in ARM_COLOURS:
            interval = f"{pair['mean'] - half:.2f} to {pair['mean'] + half:.2f}"
            mark(dot, trial_title(number + 1, pair), f"predicted {pair['mean']:.2f} ({interval})", f"measured {pair['measured']:.2f}")
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_aspect("equal")
    axes.grid(color=FAINT, linewidth=0.5)
    axes.set_axisbelow(True)
    unit = "" if layout.narrow else f" ({findings.objective_unit}, lower is better)"
    axes.set_xlabel(f"predicted objective{unit}", color=INK, fontsize=9)
    axes.set_ylabel("measured objective", color=INK, fontsize=9)
    legend_above(axes, [*map(_arm_handle, arms), dot_handle("other mixtures", MUTED)], layout)
    return figure


def _some(pairs: Sequence[Mapping[str, Any]]) -> list[int]:
    """Numbers of the trials to draw: all, or of thousands an even part from the best predicted to the worst, and every baseline."""
    if len(pairs) <= MOST_DRAWN:
        return list(range(len(pairs)))
    ranked = sorted(range(len(pairs)), key=lambda number: pairs[number]["mean"])
    step = len(ranked) / MOST_DRAWN
    kept = {ranked[int(place * step)] for place in range(MOST_DRAWN)}
    return sorted(kept | {number for number, pair in enumerate(pairs) if pair["label"] in ARM_COLOURS})


def trial_title(number: int, entry: Mapping[str, Any]) -> str:
    """How a mark names a trial: its place, what it was asked for, the first digits of its id."""
    label = ARM_TITLES.get(entry["label"], entry["label"]) or "trial"
    return f"trial {number}, {label} ({str(entry['trial_id'])[:8]})" if entry.get("trial_id") else f"trial {number}, {label}"


def _arm_handle(arm: str) -> Any:
    return dot_handle(ARM_TITLES[arm], ARM_COLOURS[arm], ARM_MARKERS[arm])


def dot_handle(label: str, colour: str, marker: str = "o") -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, marker=marker, markersize=5, linestyle="none", label=label)


def line_handle(label: str, colour: str, **look: Any) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=colour, label=label, **look)


def objective_trials(findings: Findings) -> list[Mapping[str, Any]]:
    """The measured objective of each trial of the search in the order asked, as the proposal knew it."""
    evidence: Mapping[str, Any] = findings.proposal.evidence if findings.proposal else {}
    return list(evidence.get("objective_over_trials") or evidence.get("predicted") or ())


def objective_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Measured objective over the trials in the order asked, with the best so far, the baselines and the proposal."""
    proposal, trials = findings.proposal, objective_trials(findings)
    if proposal is None or not trials:
        return None
    values = [float(trial["measured"]) for trial in trials]
    numbers = list(range(1, len(values) + 1))
    best = [min(values[:count]) for count in numbers]
    levels = _levels(trials, values)
    figure, axes = new_axes(
        "Objective over the trials",
        f"Difference to the natural mixture in {findings.objective_unit}, lower is better. Each dot is one proxy; arrows: far above.",
        layout,
        2.8 if layout.narrow else 3.0,
        {"left": 0.72 if layout.narrow else 0.85, "right": 0.15 if layout.narrow else 1.75, "top": 0.3, "bottom": 0.65},
        legend=2 + len(levels) if layout.narrow else 0,
    )
    colours = [ARM_COLOURS.get(trial["label"], MUTED) for trial in trials]
    top = max(_top(values), proposal.objective.high)  # the proposal's interval is drawn whole, and what lies beside it too
    kept = [index for index, value in enumerate(values) if value <= top]
    for index in kept:
        dot = axes.scatter([numbers[index]], [values[index]], c=[colours[index]], s=22, alpha=0.8, linewidths=0, zorder=3)
        if len(values) <= MOST_MARKS or trials[index]["label"] in ARM_COLOURS or values[index] == best[-1]:
            mark(dot, trial_title(numbers[index], trials[index]), f"measured {values[index]:+.2f}", f"best so far {best[index]:+.2f}")
    axes.step(numbers, best, where="post", color=GREEN, linewidth=1.8, zorder=2)
    ends = [("best run so far", best[-1], GREEN)]
    for arm, level in levels.items():
        axes.axhline(level, color=ARM_COLOURS[arm], linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        ends.append((ARM_TITLES[arm], level, ARM_COLOURS[arm]))
    effect = proposal.objective
    error = [[max(effect.mean - effect.low, 0.0)], [max(effect.high - effect.mean, 0.0)]]
    axes.errorbar(len(values) + 1.2, effect.mean, yerr=error, fmt="none", color=BLUE, ecolor=BLUE, capsize=3, zorder=4)
    (dot,) = axes.plot(len(values) + 1.2, effect.mean, "o", color=BLUE, markersize=7, zorder=4)
    mark(dot, "proposal (predicted, not measured)", f"{effect.mean:+.2f} (90% interval {effect.low:+.2f} to {effect.high:+.2f})")
    ends.append(("proposal (predicted)", effect.mean, BLUE))
    axes.set_xlim(0.3, len(values) + 1.7)
    axes.locator_params(axis="x", integer=True, nbins=6 if layout.narrow else 10)
    axes.set_xlabel("trial, in the order asked", color=INK, fontsize=9)
    axes.set_ylabel("measured objective", color=INK, fontsize=9)
    low, high = axes.get_ylim()
    for index in sorted(set(range(len(values))) - set(kept)):  # their values stand beside an arrow at the upper edge
        (dot,) = axes.plot(numbers[index], high, "^", color=colours[index], markersize=6, clip_on=False, zorder=3)
        mark(dot, trial_title(numbers[index], trials[index]), f"measured {values[index]:+.2f}, above what is drawn")
        place = (numbers[index], high)
        axes.annotate(f"{values[index]:.0f}", place, (0, 6), textcoords="offset points", ha="center", fontsize=8, color=MUTED)
    axes.set_ylim(low, high)
    if layout.narrow:
        lines = [line_handle(text, colour, linestyle="-" if colour == GREEN else (0, (4, 3))) for text, _, colour in ends[:-1]]
        legend_above(axes, [*lines, dot_handle("proposal (predicted)", BLUE)], layout)
    else:
        for (text, level, colour), y in zip(ends, spread([end[1] for end in ends], 0.06 * (high - low)), strict=True):
            axes.annotate(text, (1.0, level), (1.02, y), xycoords=("axes fraction", "data"), color=colour, fontsize=9, va="center")
    return figure


def _levels(trials: Sequence[Mapping[str, Any]], values: Sequence[float]) -> dict[str, float]:
    """Baseline -> mean of its measured runs, for those that were run."""
    repeats = {arm: [v for v, trial in zip(values, trials, strict=True) if trial["label"] == arm] for arm in BASELINES}
    return {arm: math.fsum(runs) / len(runs) for arm, runs in repeats.items() if runs}


def _top(values: Sequence[float]) -> float:
    """Where the axis of the objective ends: a mixture of one domain may be ten times as bad as all others, which would then lie on one line.

    Three times the spread of the better half above its median (Tukey's far-out fence, of the half that matters).
    """
    ordered = sorted(values)
    median = ordered[len(ordered) // 2]
    fence = median + 3 * (median - ordered[0])
    return fence if fence > median else ordered[-1]


def compared_rows(findings: Findings) -> list[Comparison]:
    """The objective of the proposal against each other mixture, each mixture once."""
    verification = findings.verification
    rivals = verification.rivals if verification else {}
    return [row for row in (verification.comparisons if verification else ()) if row.metric == OBJECTIVE and row.baseline in rivals]


def verification_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Paired differences of the objective at the larger source, proposal minus each other arm."""
    verification, rows = findings.verification, compared_rows(findings)
    if verification is None or not rows:
        return None
    source = verification.source
    titles = [[ARM_TITLES.get(name, name) for name in verification.rivals[row.baseline]] for row in rows]
    separators = [" =\n" if layout.narrow or len(" = ".join(title)) > 20 else " = " for title in titles]
    labels = [separator.join(title) for separator, title in zip(separators, titles, strict=True)]
    figure, axes = new_axes(
        "Verification: the proposal at a larger source",
        f"Objective of the proposal minus each other mixture's, seed by seed (ticks), {verification.confidence:.0%} intervals. "
        f"Size {source.size}, {quantity(source.tokens)} tokens.",
        layout,
        (0.62 if layout.narrow else 0.45) * len(rows) + 0.1,
        {"left": name_room(labels, WIDE, 1.9), "right": 0.15 if layout.narrow else 2.2, "bottom": 0.6},
    )
    domain_rows(axes, labels)
    axes.axvline(0, color=INK, linewidth=1)
    for position, (row, title) in enumerate(zip(rows, titles, strict=True)):
        colour = VERDICT_COLOURS[row.verdict]
        number = f"{row.mean:+.3g} ({row.low:+.3g} to {row.high:+.3g})".replace("-", "\N{MINUS SIGN}")
        # A butt end: the default would draw an interval that stops short of 0 across it.
        axes.plot([row.low, row.high], [position] * 2, color=colour, linewidth=2.2, solid_capstyle="butt", zorder=2)
        (dot,) = axes.plot(row.mean, position, "o", color=colour, markersize=8, zorder=3)
        seeds = ", ".join(f"{value:+.3g}" for value in row.values)
        mark(dot, f"proposal minus {' = '.join(title)}", f"{number}: {row.verdict}", f"by seed {seeds}")
        axes.plot(row.values, [position + 0.25] * len(row.values), "|", color=colour, markersize=7, alpha=0.8, zorder=2)
        if layout.narrow:
            place = {"transform": axes.get_yaxis_transform(), "va": "center", "ha": "center"}
            paper = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}
            axes.text(0.5, position - 0.3, number, color=colour, fontsize=8.5, bbox=paper, **place)
        else:
            axes.annotate(number, (1.02, position), xycoords=("axes fraction", "data"), color=colour, fontsize=9, va="center")
    ends = [0.0, *(value for row in rows for value in (row.low, row.high, *row.values))]
    margin = 0.08 * (max(ends) - min(ends)) or 1.0
    axes.set_xlim(min(ends) - margin, max(ends) + margin)
    label = "left of 0: better" if layout.narrow else f"left of 0: the proposal is better ({verification.objective_unit})"
    axes.set_xlabel(label, color=INK, fontsize=9)
    return figure
