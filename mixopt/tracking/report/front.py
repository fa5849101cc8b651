"""The section of a search with several objectives: its front, drawn and as a table; nothing for the searches with one."""

from __future__ import annotations

from mixopt.tracking.drawings.front import front_of
from mixopt.tracking.findings import Findings
from mixopt.tracking.report.blocks import Drawing, Prose, Section, Table, percent


def front_sections(findings: Findings) -> list[Section]:
    """One section, or none."""
    front = front_of(findings)
    if front is None:
        return []
    names, points = list(front["objectives"]), front["predicted"]
    wished = front["preferences"]
    chosen = (
        "the one where the objectives, each over its range on the front, have the least sum"
        if wished is None
        else "the one that these preferences choose: " + ", ".join(f"{name} {weight:g}" for name, weight in wished.items())
    )
    on_front = sum(point["undominated"] for point in front["measured"])
    said = (
        f"No mixture is best in {' and '.join(names)} alike. Of {len(front['measured'])} runs {on_front} feasible ones are beaten by no other in everything; "
        f"the proposal is {chosen}."
    )
    rows = [
        [*(f"{mean:+.2f} ± {std:.2f}" for mean, std in zip(point["mean"], point["std"], strict=True)), _largest(point["weights"])]
        for point in points
    ]
    alt = f"{len(points)} predicted mixtures from best in {names[0]} to best in {names[1]}, {len(front['measured'])} measured ones, and the proposal"
    table = Table(
        front["unit"], [*names, "largest shares"], rows, words=[len(names)], folded=f"{len(rows)} mixtures of the front as a table"
    )
    return [Section("front", "The front", [Prose(said), Drawing("front", alt), table])]


def _largest(weights: dict[str, float]) -> str:
    ranked = sorted(weights.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {percent(weight)}" for name, weight in ranked if weight > 0)
