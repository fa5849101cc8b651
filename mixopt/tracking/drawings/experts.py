"""Which experts each domain uses, drawn: for one proxy, a small map per layer, domains by experts.

Experts of two proxies have nothing to do with each other, so no mean over trials or seeds could be drawn; one trial stands for all, and the report's
table has the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mixopt.balance import Balance
from mixopt.history import TrialRecord
from mixopt.terminal import quantity
from mixopt.tracking.canvas import (
    BLUE,
    FAINT,
    HEAD_INCHES,
    INK,
    LEGEND_ROW_INCHES,
    MUTED,
    WIDE,
    Layout,
    add_axes,
    cut,
    domain_rows,
    legend_above,
    legend_rows,
    mark,
    name_room,
    new_figure,
)
from mixopt.tracking.findings import ARM_TITLES, Findings
from mixopt.tracking.report.measured import arms_of

# Cells of all maps together; more weigh a page down and are too small to see. The first and the last layers are drawn then.
MOST_CELLS = 1600
CELL_INCHES = 0.2
TRAINING = "training"


@dataclass(frozen=True)
class ExpertMap:
    """What the drawing and its table show of one trial.

    Attributes:
        trial: its label and seed as people read them.
        names: TRAINING, then the domains.
        shares_LNE: share of the tokens of each name that each expert saw; a token is seen by several, so rows sum to that number.
    """

    trial: str
    experts_per_token: int
    names: tuple[str, ...]
    shares_LNE: tuple[tuple[tuple[float, ...], ...], ...]


def shown_trial(findings: Findings) -> tuple[TrialRecord, Balance] | None:
    """A run of the proposal in the verification, else the best measured trial, else the last that counted its experts' load by domain."""
    found = [pair for pair in findings.balances if pair[1].by_set]
    verified = [pair for pair in found if pair[0].stage == "verification" and "proposal" in arms_of(pair[0])]
    best = (findings.proposal.best_measured if findings.proposal else {}).get("trial_id")
    measured = [pair for pair in found if pair[0].stage == "search" and pair[0].trial.trial_id == best]
    return next(iter([*verified, *measured, *found[::-1]]), None)


def expert_map(findings: Findings) -> ExpertMap | None:
    """The map of `shown_trial`; None where nothing was counted by domain."""
    shown = shown_trial(findings)
    if shown is None:
        return None
    record, balance = shown
    metrics = {**findings.context["metrics"], **(findings.context.get("metrics_verification") or {})}
    by_domain = {
        metrics[key].removeprefix("valid/"): rows for key, rows in balance.by_set.items() if metrics.get(key, "").startswith("valid/")
    }
    named = [(name, by_domain[name]) for name in findings.domains if name in by_domain]
    if not named:
        return None
    arms = [ARM_TITLES.get(arm, arm) for arm in arms_of(record)] or [record.trial.label]
    source = record.trial.source
    return ExpertMap(
        trial=f"{' = '.join(arms)}, seed {record.trial.seed}, {source.size}, {quantity(source.tokens)} tokens",
        experts_per_token=balance.experts_per_token,
        names=(TRAINING, *(name for name, _ in named)),
        shares_LNE=tuple(
            tuple(tuple(balance.token_shares(rows_E)) for rows_E in (rows_LE[layer], *(rows[layer] for _, rows in named)))
            for rows_LE in [balance.rows_LE]
            for layer in range(len(rows_LE))
        ),
    )


def experts_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Small maps, one per layer: the share of each domain's tokens that each expert saw."""
    shown = expert_map(findings)
    if shown is None:
        return None
    layers = drawn_layers(shown)
    experts = len(shown.shares_LNE[0][0])
    left = name_room(shown.names, layout, 1.6)
    columns = min(2 if layout.narrow else 4, len(layers))
    cell_width = min((layout.width - left - 0.1) / columns, CELL_INCHES * experts * 1.4 + 0.15)
    rows, map_height = math.ceil(len(layers) / columns), CELL_INCHES * len(shown.names)
    top = HEAD_INCHES + LEGEND_ROW_INCHES * legend_rows(3, layout) + 0.3
    height = top + rows * (map_height + 0.45)
    figure = new_figure(
        "Which experts see which domain",
        cut(f"Share of the tokens that each expert sees. {shown.trial}.", WIDE.width - 0.3),
        layout,
        height,
    )
    axes = None
    for number, layer in enumerate(layers):
        row, column = divmod(number, columns)
        bottom = height - top - row * (map_height + 0.45) - map_height
        place = (left + column * cell_width, bottom, cell_width - 0.15, map_height)
        axes = add_axes(figure, (place[0] / layout.width, place[1] / height, place[2] / layout.width, place[3] / height))
        _draw_map(axes, layer, shown, labelled=column == 0)
    legend_above(axes, _legend(shown.experts_per_token / experts), layout)
    return figure


def drawn_layers(shown: ExpertMap) -> list[int]:
    """All layers, or as many of the first and the last as there is room for."""
    layers = len(shown.shares_LNE)
    most = max(2, MOST_CELLS // (len(shown.names) * len(shown.shares_LNE[0][0])))
    if layers <= most:
        return list(range(layers))
    return [*range(math.ceil(most / 2)), *range(layers - most // 2, layers)]


def _draw_map(axes: Any, layer: int, shown: ExpertMap, labelled: bool) -> None:
    from matplotlib.collections import PolyCollection
    from matplotlib.colors import to_rgba

    shares_NE = shown.shares_LNE[layer]
    experts = len(shares_NE[0])
    domain_rows(axes, shown.names, guides=False)
    axes.set_ylim(len(shown.names) - 0.5, -0.5)
    if not labelled:
        axes.set_yticks([])
    axes.set_xlim(-0.5, experts - 0.5)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    axes.set_title(f"layer {layer + 1}", fontsize=8.5, color=INK, loc="left", pad=3)
    for row, (name, shares_E) in enumerate(zip(shown.names, shares_NE, strict=True)):
        boxes = [[(e - 0.5, row - 0.42), (e + 0.5, row - 0.42), (e + 0.5, row + 0.42), (e - 0.5, row + 0.42)] for e in range(experts)]
        colours = [to_rgba(INK if row == 0 else BLUE, _opacity(share)) for share in shares_E]
        cells = axes.add_collection(PolyCollection(boxes, facecolors=colours, edgecolors=FAINT, linewidths=0.4, clip_on=False, zorder=1))
        mark(cells, f"{name}, layer {layer + 1}", f"share of tokens by expert: {spoken_shares(shares_E)}")


def spoken_shares(shares_E: Sequence[float]) -> str:
    """The experts that see most, until little is left, and how many see next to nothing."""
    order = sorted(range(len(shares_E)), key=lambda expert: (-shares_E[expert], expert))
    told = [f"e{expert + 1} {shares_E[expert]:.0%}" for expert in order[:8] if shares_E[expert] >= 0.005]
    unused = sum(share < 0.005 for share in shares_E)
    return ", ".join(told) + (f"; {unused} under 0.5%" if unused else "")


def _opacity(share: float) -> float:
    return 0.9 * min(share, 1.0)


def _legend(even: float) -> list[Any]:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Patch

    shades = [(0.0, "no token"), (even, f"even use ({even:.0%})"), (1.0, "every token")]
    return [Patch(facecolor=to_rgba(BLUE, _opacity(share)), edgecolor=MUTED, linewidth=0.4, label=label) for share, label in shades]
