"""The answer drawn: shares of the proposed mixture beside its baselines, and how often the target run would repeat each domain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mixopt.domains import unique_tokens_of
from mixopt.terminal import quantity
from mixopt.tracking.canvas import (
    ARM_COLOURS,
    ARM_MARKERS,
    BLUE,
    INK,
    VERMILION,
    WIDE,
    Layout,
    domain_rows,
    legend_above,
    mark,
    name_room,
    new_axes,
)
from mixopt.tracking.findings import ARM_TITLES, Findings

BASELINES = ("natural", "uniform", "unimax")


def compared_arms(findings: Findings) -> dict[str, Mapping[str, float]]:
    """The mixtures that the proposal is seen against: arm -> shares."""
    arms: dict[str, Mapping[str, float]] = {arm: findings.context[arm] for arm in BASELINES if arm in findings.context}
    if findings.proposal is not None and findings.proposal.best_measured.get("weights"):
        arms["best_measured"] = findings.proposal.best_measured["weights"]
    return arms


def mixture_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """Weights of the proposal with near-optimal ranges and caps, against natural, uniform, UniMax and the best measured mixture."""
    proposal = findings.proposal
    if proposal is None:
        return None
    weights = proposal.mixture.as_dict()
    names = sorted(weights, key=lambda name: (-weights[name], name))
    arms = compared_arms(findings)
    upper = [findings.context["upper"].get(name, 1.0) for name in names]
    shown = [value for mixture in (weights, *arms.values()) for value in mixture.values()]
    limit = 1.06 * max([*shown, *(high for _, high in proposal.near_optimal.values())])
    figure, axes = new_axes(
        "Proposed mixture and its baselines",
        "Share of training tokens. Bars: how far a weight can move before the prediction is clearly worse.",
        layout,
        (0.4 if layout.narrow else 0.36) * len(names) + 0.1,
        _margins(names, layout),
        legend=1 + len(arms) + any(cap <= limit for cap in upper),
    )
    domain_rows(axes, names)
    for row, name in enumerate(names):
        low, high = proposal.near_optimal.get(name, (weights[name], weights[name]))
        cap = f"at most {upper[row]:.1%} allowed"
        axes.plot([low, high], [row - 0.14] * 2, color=BLUE, alpha=0.3, linewidth=6, solid_capstyle="butt", zorder=2)
        (dot,) = axes.plot(weights[name], row - 0.14, "o", color=BLUE, markersize=7, zorder=4)
        mark(dot, name, f"proposal {weights[name]:.1%}", f"near-optimal {low:.1%} to {high:.1%}", cap, *_shares(arms, name))
        for arm, mixture in arms.items():
            if arm == "uniform":
                continue
            style = {"color": ARM_COLOURS[arm], "marker": ARM_MARKERS[arm], "fillstyle": "none", "markeredgewidth": 1.1}
            (dot,) = axes.plot(mixture[name], row + 0.2, markersize=4.5, linestyle="none", zorder=3, **style)
            mark(dot, name, f"{ARM_TITLES[arm]} {mixture[name]:.1%}")
    if "uniform" in arms:  # the same in every row, so a line says it with less ink
        axes.axvline(1 / len(names), color=ARM_COLOURS["uniform"], linewidth=1.2, linestyle=":", zorder=1)
    caps = _draw_caps(axes, upper, limit)
    axes.set_xlim(-0.01 * limit, limit)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
    if layout.narrow:
        axes.locator_params(axis="x", nbins=4)
    _column(axes, names, "proposal", BLUE, {name: f"{weight:.1%}" for name, weight in weights.items()}, 0)
    if not layout.narrow:
        base = "natural" if "natural" in arms else "uniform"  # where no tokens are known, that is all there is to compare with
        _column(axes, names, base, ARM_COLOURS[base], {name: f"{weight:.1%}" for name, weight in arms.get(base, {}).items()}, 1)
    legend_above(axes, _mixture_legend(arms, bool(caps)), layout)
    return figure


def _shares(arms: Mapping[str, Mapping[str, float]], name: str) -> list[str]:
    return [f"{ARM_TITLES[arm]} {mixture[name]:.1%}" for arm, mixture in arms.items()]


def _mixture_legend(arms: Mapping[str, Mapping[str, float]], caps: bool) -> list[Any]:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=BLUE, marker="o", linestyle="none", markersize=7, label="proposal")]
    for arm in arms:
        look: dict[str, Any] = (
            {"linestyle": ":"} if arm == "uniform" else {"linestyle": "none", "marker": ARM_MARKERS[arm], "fillstyle": "none"}
        )
        handles.append(Line2D([], [], color=ARM_COLOURS[arm], markersize=5, label=ARM_TITLES[arm], **look))
    return handles + [_cap_handle("largest allowed")] * caps


def _cap_handle(label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=VERMILION, marker="|", markersize=11, markeredgewidth=2, linestyle="none", label=label)


def epochs_figure(findings: Findings, layout: Layout = WIDE) -> Any | None:
    """How often the target run repeats each domain, with the caps."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    if findings.proposal is None:
        return None
    epochs = findings.proposal.epochs
    domains = {domain["name"]: domain for domain in findings.context["domains"]}
    budget_tokens = float(findings.context["budget_tokens"])
    natural = {name: findings.context["natural"][name] * budget_tokens / unique_tokens_of(domains[name]) for name in epochs}
    names = sorted(epochs, key=lambda name: (-epochs[name], name))
    limit = 1.08 * max([*epochs.values(), *natural.values()])
    allowed = [float(domains[name]["max_epochs"]) for name in names]
    figure, axes = new_axes(
        "How often the target run repeats each domain",
        f"Epochs over the domain's own tokens in a run of {quantity(budget_tokens)} tokens.",
        layout,
        0.32 * len(names) + 0.1,
        _margins(names, layout),
        legend=2 + any(cap <= limit * 1.25 for cap in allowed),
    )
    domain_rows(axes, names)
    bars = axes.barh(range(len(names)), [epochs[name] for name in names], height=0.55, color=BLUE, alpha=0.85, zorder=2)
    for bar, name, cap in zip(bars, names, allowed, strict=True):
        about = "about " if domains[name].get("token_count_source") == "estimated" else ""
        tokens = f"{about}{quantity(float(domains[name]['target_tokens']))} tokens in the target corpus"
        mark(bar, name, f"proposal {epochs[name]:.2f} epochs", f"natural {natural[name]:.2f} epochs", f"at most {cap:g} allowed", tokens)
    axes.plot([natural[name] for name in names], range(len(names)), "D", color=INK, markerfacecolor="white", markersize=5, zorder=3)
    caps = _draw_caps(axes, allowed, limit * 1.25)
    axes.set_xlim(0, max([limit, *(cap * 1.04 for cap in caps)]))
    axes.set_xlabel("epochs", color=INK, fontsize=9)
    _column(axes, names, "epochs", BLUE, {name: f"{epochs[name]:.2f}" for name in names}, 0)
    if not layout.narrow:
        _column(axes, names, "cap", VERMILION, {name: f"{float(domains[name]['max_epochs']):g}" for name in names}, 1)
    handles = [
        Patch(color=BLUE, alpha=0.85, label="proposal"),
        Line2D([], [], color=INK, marker="D", markerfacecolor="white", linestyle="none", markersize=5, label="natural"),
    ]
    legend_above(axes, handles + [_cap_handle("cap")] * bool(caps), layout)
    return figure


def _margins(names: Sequence[str], layout: Layout) -> dict[str, float]:
    """Room for names of domains at the left, one or two columns of numbers at the right, and the columns' titles."""
    return {"left": name_room(names, layout, 1.7), "right": 0.72 if layout.narrow else 1.35, "top": 0.22, "bottom": 0.5}


def _draw_caps(axes: Any, caps: Sequence[float], limit: float) -> list[float]:
    """Marks the caps that lie within `limit`; returns them."""
    shown = [(row, cap) for row, cap in enumerate(caps) if cap <= limit]
    for row, cap in shown:
        axes.plot([cap] * 2, [row - 0.36, row + 0.36], color=VERMILION, linewidth=2, solid_capstyle="butt", zorder=2.5)
    return [cap for _, cap in shown]


def _column(axes: Any, names: Sequence[str], title: str, colour: str, texts: Mapping[str, str], position: int) -> None:
    """Numbers by domain in a column right of the axes; the first column (position 0) is bold."""
    x = 1 + (0.62 + 0.6 * position) / (axes.get_position().width * axes.figure.get_size_inches()[0])
    place = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center", "color": colour}
    axes.text(x, -0.85, title, fontsize=8, **place)
    for row, name in enumerate(names):
        axes.text(x, row, texts.get(name, ""), fontsize=9, fontweight="normal" if position else "bold", **place)
